//! The object and the programs in it.
//!
//! The first instance serves the agent's own namespace and holds the programs that there is one of. Each other
//! namespace with parents gets an instance of the two TC programs that knows the namespace's inode; all instances
//! share their maps through a file system of their own that no path leads to.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    panic::resume_unwind,
    path::Path,
    sync::Arc,
    thread,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Array, Map, MapData, MapError},
    programs::{Program, ProgramError, SchedClassifier, TestRun as _, TestRunOptions},
};
use macvlan_agent_ebpf::abi::{
    Cell, Change, Credit, CreditExchange, CreditRequest, Direct, Locations, SubInterfaceKey, change, label::Lost,
    limits,
};
use nix::{
    sched::{CloneFlags, unshare},
    sys::resource::{RLIM_INFINITY, Resource, setrlimit},
    unistd::chroot,
};

use super::{
    attach::HANDLER,
    counts::Counts,
    direct::DirectMaps,
    drop_reason::Symbols,
    facts::Facts,
    hooks::{Hook, NotAttached, Reason},
    room::Room,
};

/// The object that `cargo xtask ebpf` built.
pub static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/bpf/macvlan-agent.x86_64.bpfel.o"));

/// The program that changes the tables.
const TABLES: &str = "tables";

/// The one that gives what waits for its owner.
const CREDITS: &str = "credits";

/// The hooks that each instance has programs for.
const TC: [Hook; 2] = [Hook::ParentIngress, Hook::ParentEgress];

/// Maps that all instances share.
const SHARED: &[&str] = &[
    "ADDRESSES",
    "ASKS",
    "ATTEMPTED",
    "AYA_LOGS",
    "BLANK",
    "COMMON",
    "CREDITS",
    "DEVICES",
    "FRONT",
    "LAST_WARNING",
    "LOCATIONS",
    "LOST",
    "PARENTS",
    "PARENT_FRONT",
    "RARE",
    "REASONS",
    "SUB_INTERFACES",
    "WINDOWS",
];

/// Why the agent cannot run on this kernel.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Not allowed to.
    #[error(
        "not permitted to load eBPF programs: run as root, or give CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN \
         (CAP_SYS_ADMIN on kernels before 5.8)"
    )]
    NotPermitted,
    /// The object does not load.
    #[error("cannot load the eBPF object")]
    Object(#[source] Box<EbpfError>),
    /// A program does not load.
    #[error("the kernel refused the program {program}")]
    Program {
        /// Which.
        program: &'static str,
        /// What the kernel said.
        source: Box<ProgramError>,
    },
    /// A map is not as expected.
    #[error("cannot use the map {map}")]
    Map {
        /// Which.
        map: &'static str,
        /// Why.
        source: Box<MapError>,
    },
    /// A map cannot be mapped into memory.
    #[error("cannot map the counts into memory")]
    Pages(#[source] io::Error),
    /// A map cannot be made.
    #[error("cannot make a map")]
    Make(#[source] io::Error),
    /// The object has no such part: it was built from other sources.
    #[error("the eBPF object has no {0}: build it anew with `cargo xtask ebpf`")]
    Missing(&'static str),
    /// The number of CPUs is not known.
    #[error("cannot tell how many CPUs are possible")]
    Cpus(#[source] io::Error),
}

/// Why a table was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The program that makes changes did not run.
    #[error("the program that changes the tables did not run")]
    NotRun(#[from] LoadError),
    /// The table does not take the change.
    #[error("the table does not take the entry")]
    Refused(#[source] io::Error),
}

/// The programs and maps in the kernel.
pub struct Kernel {
    pub(super) core: Ebpf,
    pub(super) others: BTreeMap<u32, Ebpf>,
    own_netns: u32,
    shared: Option<OwnedFd>,
    pub(super) facts: Facts,
    /// The maps by their names, for programs that aya does not load.
    pub(super) maps: Vec<(String, OwnedFd)>,
    pub(super) direct: DirectMaps,
    cpus: u32,
    room: Room,
    counts: Arc<Counts>,
    handler_is_located: bool,
}

impl Kernel {
    /// Loads the programs, with tables of that size. `own_netns` is the inode of the calling thread's namespace, `types`
    /// the file with the kernel's types; `frame_free` says whether that program will be attached.
    pub fn load(own_netns: u32, types: &Path, room: Room, frame_free: bool) -> Result<Self, LoadError> {
        let facts = Facts::read(types);
        // Before 5.11 maps are charged to the locked memory of the process.
        if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
            tracing::debug!(%error, "the limit of locked memory stays as it is");
        }
        let cpus = aya::util::nr_cpus().map_err(|(_, source)| LoadError::Cpus(source))?;
        let cpus = u32::try_from(cpus).map_err(|_| LoadError::Cpus(io::ErrorKind::InvalidData.into()))?;
        let shared = private_file_system()
            .inspect_err(|error| tracing::info!(%error, "parents in other namespaces cannot be observed"))
            .ok();
        let direct = DirectMaps::make(room, cpus, is_realtime(), facts.cast).map_err(|error| {
            if is_denied(&error) {
                LoadError::NotPermitted
            } else {
                LoadError::Make(error)
            }
        })?;
        let mut core = instance(own_netns, (cpus, room), &direct, Some(&facts), shared.as_ref())?;
        let [ingress, egress] = TC.map(Hook::name);
        load_programs(
            &mut core,
            &[ingress, egress, TABLES, CREDITS],
            frame_free && facts.offsets.is_ok(),
        )?;
        let counts = counts(&core, &direct, cpus, room)?;
        let maps = map_descriptors(&core)?;
        fill_reasons(&mut core, &facts)?;
        let mut kernel = Self {
            core,
            others: BTreeMap::new(),
            own_netns,
            shared,
            facts,
            maps,
            direct,
            cpus,
            room,
            counts: Arc::new(counts),
            handler_is_located: false,
        };
        kernel.self_test();
        Ok(kernel)
    }

    /// The counts.
    #[must_use]
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// How large the tables are.
    #[must_use]
    pub fn room(&self) -> Room {
        self.room
    }

    /// Why the kernel's fields cannot be read, if they cannot.
    #[must_use]
    pub fn unreadable(&self) -> Option<&NotAttached> {
        self.facts.offsets.as_ref().err()
    }

    /// Whether macvlan is known to be no module.
    #[must_use]
    pub fn macvlan_is_built_in(&self) -> bool {
        self.facts.built_in_handler.is_some()
    }

    /// Whether a full broadcast queue shows in the parent's `rx_dropped` alone.
    #[must_use]
    pub fn queue_is_silent(&self) -> bool {
        self.facts.drop_reasons.queue_is_silent
    }

    /// The map of that name.
    pub(super) fn map(&self, name: &'static str) -> Result<&OwnedFd, LoadError> {
        let map = self.maps.iter().find(|(other, _)| other == name);
        map.map(|(_, descriptor)| descriptor).ok_or(LoadError::Missing(name))
    }

    /// Tells `frame_free` where the functions are that decide, and macvlan's handler, or that they are nowhere.
    pub fn locate(&mut self, symbols: &Symbols) -> Result<(), LoadError> {
        let range = symbols.range(HANDLER);
        self.handler_is_located = range.is_some();
        self.counts.set_handler_range(range.unwrap_or_default());
        let known = self.facts.drop_reasons.locations(symbols);
        let mut locations: Array<_, Locations> = array(&mut self.core, "LOCATIONS")?;
        locations.set(0, known, 0).map_err(map_error("LOCATIONS"))
    }

    /// Whether the handler was found the last time.
    #[must_use]
    pub fn handler_is_located(&self) -> bool {
        self.handler_is_located
    }

    /// Makes changes in the tables that frames are looked up in, up to the first that is refused. To take out what is not
    /// there is no error.
    pub fn change(&self, changes: &[Change]) -> Result<(), ChangeError> {
        for some in changes.chunks(change::AT_ONCE) {
            let options = TestRunOptions {
                data_in: Some(Change::bytes(some)),
                ..TestRunOptions::default()
            };
            let code = self.run(TABLES, options)?;
            if code != 0 {
                return Err(ChangeError::Refused(io::Error::from_raw_os_error(code & change::ERROR)));
            }
        }
        Ok(())
    }

    /// What each CPU has counted under a key that had no entry; `removes` says whether it is taken out.
    pub(super) fn credits(&self, key: SubInterfaceKey, removes: bool) -> Result<Vec<Credit>, LoadError> {
        let mut credits = Vec::new();
        let mut first = 0;
        while first < self.cpus {
            let question = CreditExchange {
                request: CreditRequest {
                    key,
                    first,
                    removes: removes.into(),
                },
                credit: Credit {
                    since: 0,
                    cell: Cell::EMPTY,
                },
            };
            let mut answer = question;
            let options = TestRunOptions {
                data_in: Some(question.bytes()),
                data_out: Some(answer.bytes_mut()),
                ..TestRunOptions::default()
            };
            first = match self.run(CREDITS, options)? {
                found @ 1.. => {
                    credits.push(answer.credit);
                    found.cast_unsigned()
                }
                _ => first + limits::CPUS_AT_ONCE,
            };
        }
        Ok(credits)
    }

    /// Runs a program once and gives what it returns.
    fn run(&self, name: &'static str, options: TestRunOptions<'_>) -> Result<i32, LoadError> {
        let program: &SchedClassifier = self
            .core
            .program(name)
            .and_then(|program| program.try_into().ok())
            .ok_or(LoadError::Missing(name))?;
        let result = program.test_run(options).map_err(|error| refused(name, error))?;
        Ok(result.return_value.cast_signed())
    }

    /// The instance that serves a namespace, loaded when it is first asked for.
    pub(super) fn instance_of(&mut self, netns: u32) -> Result<&mut Ebpf, LoadError> {
        if netns == self.own_netns {
            return Ok(&mut self.core);
        }
        if !self.others.contains_key(&netns) {
            let shared = self.shared.as_ref().ok_or(LoadError::NotPermitted)?;
            let mut fresh = instance(netns, (self.cpus, self.room), &self.direct, None, Some(shared))?;
            let [ingress, egress] = TC.map(Hook::name);
            load_programs(&mut fresh, &[ingress, egress], false)?;
            self.others.insert(netns, fresh);
        }
        self.others.get_mut(&netns).ok_or(LoadError::NotPermitted)
    }

    /// Unloads the instance of a namespace that has no parents any more.
    pub(super) fn forget_instance(&mut self, netns: u32) {
        self.others.remove(&netns);
    }

    /// Reads what the programs log.
    pub fn logger(&mut self) -> Result<aya_log::EbpfLogger<&'static dyn log::Log>, aya_log::Error> {
        aya_log::EbpfLogger::init(&mut self.core)
    }

    /// Runs the self-test; on failure the hooks that read the kernel's fields are off.
    fn self_test(&mut self) {
        if self.facts.offsets.is_err() {
            return;
        }
        if let Err(detail) = run_self_test(&mut self.core) {
            self.facts.offsets = Err(NotAttached::new(Reason::SelfTestFailed, detail));
        }
    }
}

/// A BPF file system that is mounted nowhere: maps stand in it by name, and it goes with us.
fn private_file_system() -> io::Result<OwnedFd> {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
    let context = fsopen("bpf", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    Ok(fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?)
}

fn instance(
    netns: u32,
    (cpus, room): (u32, Room),
    direct: &DirectMaps,
    facts: Option<&Facts>,
    shared: Option<&OwnedFd>,
) -> Result<Ebpf, LoadError> {
    let (realtime, cast_to) = (u32::from(is_realtime()), direct.cast_to());
    let lost = u32::try_from(Lost::ALL.len()).unwrap_or(u32::MAX);
    let says_reason = u32::from(facts.is_some_and(|facts| facts.drop_reasons.says_reason));
    let unsent = u32::from(facts.is_some_and(|facts| facts.unsent_is_uncounted));
    let netns_above = u64::from(netns) << u32::BITS;
    let mut loader = loader();
    loader
        .btf(None)
        .override_global("NETNS_ABOVE", &netns_above, true)
        .override_global("NETNS", &netns, true)
        .override_global("CPUS", &cpus, true)
        .override_global("FLOW_STRIDE", &direct.flow_stride, true)
        .override_global("LAST_FLOW", &direct.last_flow, true)
        .override_global("LAST_ENTRY", &direct.last_entry, true)
        .override_global("DIRECT_CELLS", &direct.cells, true)
        .override_global("CAST_TO", &cast_to, true)
        .override_global("REALTIME", &realtime, true)
        .override_global("SAYS_REASON", &says_reason, true)
        .override_global("UNSENT_UNCOUNTED", &unsent, true)
        .map_max_entries("LOST", lost * cpus);
    for (map, entries) in room.entries(cpus, direct.cells != 0) {
        loader.map_max_entries(map, entries);
    }
    if let Some(Ok(offsets)) = facts.map(|facts| &facts.offsets) {
        loader.override_global("OFFSETS", offsets, true);
    }
    if let Some(directory) = shared {
        for name in SHARED {
            loader.map_pin_path(
                name,
                std::path::PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd())),
            );
        }
    }
    loader.load(direct.object().bytes()).map_err(|error| {
        if is_denied(&error) {
            LoadError::NotPermitted
        } else {
            LoadError::Object(Box::new(error))
        }
    })
}

/// Whether softirqs can be preempted.
fn is_realtime() -> bool {
    fs::read_to_string("/sys/kernel/realtime").is_ok_and(|text| text.trim() == "1")
}

/// A loader. Aya's reads the kernel's types whenever one is made, used or not, which takes tens of milliseconds and some
/// 17 MB; so it is made where they are not in sight.
fn loader() -> EbpfLoader<'static> {
    let hidden = thread::spawn(|| {
        // Of this thread alone, which ends here. Where either is not permitted, they are read for nothing.
        if unshare(CloneFlags::CLONE_FS).is_ok() {
            let _ = chroot("/proc/self");
        }
        EbpfLoader::new()
    });
    hidden.join().unwrap_or_else(|_| EbpfLoader::new())
}

/// Loads TC programs, and `frame_free` where it is asked for: the verifier takes long, so each is given to it by a thread
/// of its own. What becomes of `frame_free` is seen where it is attached.
fn load_programs(instance: &mut Ebpf, names: &[&'static str], with_frame_free: bool) -> Result<(), LoadError> {
    let (mut programs, mut frame_free) = (Vec::new(), None);
    for (name, program) in instance.programs_mut() {
        if let Some(name) = names.iter().find(|other| **other == name) {
            let program: Result<&mut SchedClassifier, _> = program.try_into();
            programs.push((*name, program.map_err(|_| LoadError::Missing(name))?));
        } else if with_frame_free && name == Hook::FrameFree.name() {
            frame_free = Some(program);
        }
    }
    let has = |name: &str| programs.iter().any(|(other, _)| *other == name);
    if let Some(missing) = names.iter().find(|name| !has(name)) {
        return Err(LoadError::Missing(missing));
    }
    thread::scope(|scope| {
        let each = programs
            .into_iter()
            .map(|(name, program)| scope.spawn(move || program.load().map_err(|error| refused(name, error))));
        let each: Vec<_> = each.collect();
        if let Some(Program::RawTracePoint(program)) = frame_free
            && let Err(error) = program.load()
        {
            tracing::debug!(error = %chain(&error), "frame_free is not loaded");
        }
        each.into_iter()
            .try_for_each(|load| load.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

pub(super) fn refused(program: &'static str, error: ProgramError) -> LoadError {
    if is_denied(&error) {
        LoadError::NotPermitted
    } else {
        LoadError::Program {
            program,
            source: Box::new(error),
        }
    }
}

/// The TC program of that name.
pub(super) fn classifier<'a>(instance: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SchedClassifier, LoadError> {
    instance
        .program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(LoadError::Missing(name))
}

fn counts(core: &Ebpf, direct: &DirectMaps, cpus: u32, room: Room) -> Result<Counts, LoadError> {
    let map = |name: &'static str| match core.map(name) {
        Some(Map::Array(data)) => Ok(data.fd().as_fd()),
        _ => Err(LoadError::Missing(name)),
    };
    let cells = if direct.cells == 0 {
        (map("COMMON")?, map("RARE")?)
    } else {
        (direct.map(Direct::Common), direct.map(Direct::Rare))
    };
    let settings = direct.map(Direct::Settings);
    Counts::map(cells, map("LOST")?, settings, room.slots() as usize, cpus as usize).map_err(LoadError::Pages)
}

/// Tells `frame_free` what the kernel's reasons mean.
fn fill_reasons(core: &mut Ebpf, facts: &Facts) -> Result<(), LoadError> {
    let mut reasons: Array<_, u32> = array(core, "REASONS")?;
    for (number, cause) in &facts.drop_reasons.causes {
        if *number < limits::REASONS {
            reasons.set(*number, *cause as u32, 0).map_err(map_error("REASONS"))?;
        }
    }
    Ok(())
}

/// An array of the instance.
fn array<'core, V: aya::Pod>(
    core: &'core mut Ebpf,
    map: &'static str,
) -> Result<Array<&'core mut MapData, V>, LoadError> {
    let found = core.map_mut(map).ok_or(LoadError::Missing(map))?;
    Array::try_from(found).map_err(map_error(map))
}

fn map_error(map: &'static str) -> impl FnOnce(MapError) -> LoadError {
    move |source| LoadError::Map {
        map,
        source: Box::new(source),
    }
}

/// The maps of an instance: a program that is loaded by other means shares them.
fn map_descriptors(core: &Ebpf) -> Result<Vec<(String, OwnedFd)>, LoadError> {
    let descriptors = core.maps().filter_map(|(name, map)| {
        let data: &MapData = match map {
            Map::Array(data)
            | Map::HashMap(data)
            | Map::LruHashMap(data)
            | Map::PerCpuArray(data)
            | Map::RingBuf(data) => data,
            _ => return None,
        };
        let descriptor = data.fd().as_fd().try_clone_to_owned().map_err(LoadError::Pages);
        Some(descriptor.map(|descriptor| (name.to_owned(), descriptor)))
    });
    descriptors.collect()
}

/// Lets the kernel run `self_test` on a frame of known content and says what it read wrong.
fn run_self_test(core: &mut Ebpf) -> Result<(), String> {
    let program = classifier(core, "self_test").map_err(|error| error.to_string())?;
    program
        .load()
        .map_err(|error| format!("the kernel refused the self-test: {}", chain(&error)))?;
    let mut frame = [0_u8; 64];
    for (byte, index) in frame.iter_mut().zip(1_u8..=6) {
        *byte = index;
    }
    for (byte, index) in frame.iter_mut().skip(6).zip(0x11_u8..=0x16) {
        *byte = index;
    }
    let options = TestRunOptions {
        data_in: Some(&frame),
        ..TestRunOptions::default()
    };
    let result = program
        .test_run(options)
        .map_err(|error| format!("the self-test did not run: {}", chain(&error)))?;
    match result.return_value {
        0 => Ok(()),
        1 => Err("the self-test could not read a field of the kernel's".to_owned()),
        2 => Err("the self-test read another interface index than the frame's".to_owned()),
        3 => Err("the self-test read another length than the frame's".to_owned()),
        4 => Err("the self-test read another Ethernet header than the frame's".to_owned()),
        5 => Err("the self-test read another namespace than its own".to_owned()),
        other => Err(format!("the self-test returned {other}")),
    }
}

/// An error with what led to it, in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let line = next.to_string();
        if !text.contains(&line) {
            text.push_str(": ");
            text.push_str(&line);
        }
        cause = next.source();
    }
    text
}

/// The system's error behind another one.
pub(super) fn os_error(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut cause = Some(error);
    while let Some(next) = cause {
        if let Some(code) = next.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(code);
        }
        cause = next.source();
    }
    None
}

/// Whether rights are missing. Not EACCES: that is how the verifier refuses a program.
pub(super) fn is_denied(error: &(dyn std::error::Error + 'static)) -> bool {
    os_error(error) == Some(libc::EPERM)
}
