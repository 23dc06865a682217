//! fentry and fexit programs on a function of the kernel or of one of its modules. aya 0.14 looks functions up in the
//! kernel's own types only, and macvlan is a module as a rule: so these few programs are loaded here, from the same
//! object, over the same maps.
//!
//! While such a program is loaded its module cannot be removed (`btf_try_get_module`, `kernel/bpf/btf.c`).

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use aya_obj::Object;

use super::{
    btf::{self, Btf, BtfError},
    system_call::{call, descriptor},
};

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Before the function.
    Entry,
    /// After it.
    Exit,
}

/// A program and its attachment; dropping them detaches and unloads.
pub struct TracingLink {
    _link: OwnedFd,
    program: OwnedFd,
}

impl TracingLink {
    /// Runs that the kernel left out.
    #[must_use]
    pub fn missed(&self) -> u64 {
        missed_runs(self.program.as_fd()).unwrap_or(0)
    }
}

/// A function, as the kernel numbers it.
pub struct Target {
    /// The module's types; none for a function of the kernel itself.
    types: Option<OwnedFd>,
    id: u32,
}

/// Why a program is not attached.
#[derive(Debug, thiserror::Error)]
pub enum TracingError {
    /// The kernel's types cannot be read.
    #[error("cannot read the kernel's types")]
    Types {
        /// Why.
        #[from]
        source: BtfError,
    },
    /// The function is described nowhere.
    #[error("no module {module} describes a function {function}")]
    NoFunction {
        /// The function.
        function: String,
        /// Where it should be.
        module: String,
    },
    /// The object is not as expected.
    #[error("the eBPF object cannot be used: {0}")]
    Object(String),
    /// The kernel refused the program.
    #[error("the kernel refused the program {program}: {log}")]
    Load {
        /// Which.
        program: String,
        /// The last lines of the verifier.
        log: String,
        /// The system's word.
        source: io::Error,
    },
    /// The kernel refused the attachment.
    #[error("the kernel does not attach the program")]
    Attach {
        /// The system's word.
        #[from]
        source: io::Error,
    },
}

impl Target {
    /// A function of the kernel itself, by its number there.
    #[must_use]
    pub const fn of_kernel(id: u32) -> Self {
        Self { types: None, id }
    }

    /// Its number, and the types that it is a number among; none for the kernel's own.
    #[must_use]
    pub fn number(&self) -> (u32, Option<BorrowedFd<'_>>) {
        (self.id, self.types.as_ref().map(OwnedFd::as_fd))
    }

    /// Finds a function in a module that is loaded.
    pub fn find(function: &str, module: &str) -> Result<Self, TracingError> {
        let kernel = Btf::read(std::path::Path::new(btf::VMLINUX))?;
        let missing = || TracingError::NoFunction {
            function: function.to_owned(),
            module: module.to_owned(),
        };
        let bytes = fs::read(format!("/sys/kernel/btf/{module}")).map_err(|_| missing())?;
        let id = kernel.function_of_module(bytes, function)?.ok_or_else(missing)?;
        let types = module_types(module)?.ok_or_else(missing)?;
        Ok(Self { types: Some(types), id })
    }
}

/// Loads `program` of the object over `maps` and attaches it.
pub fn attach(
    object: &[u8],
    maps: &[(String, OwnedFd)],
    program: &str,
    side: Side,
    target: &Target,
) -> Result<TracingLink, TracingError> {
    let instructions = instructions(object, maps, program)?;
    let program = load(program, &instructions, side, target)?;
    let link = open_link(&program)?;
    Ok(TracingLink { _link: link, program })
}

/// The program's code with the maps' descriptors in it.
fn instructions(
    object: &[u8],
    maps: &[(String, OwnedFd)],
    program: &str,
) -> Result<Vec<aya_obj::generated::bpf_insn>, TracingError> {
    let unusable = |error: &dyn std::fmt::Display| TracingError::Object(error.to_string());
    let mut object = Object::parse(object).map_err(|error| unusable(&error))?;
    let text_sections = object.functions.keys().map(|(section, _)| *section).collect();
    let described = object.maps.clone();
    let known = described.iter().filter_map(|(name, map)| {
        let (_, descriptor) = maps.iter().find(|(other, _)| other == name)?;
        Some((name.as_str(), descriptor.as_raw_fd(), map))
    });
    object
        .relocate_maps(known, &text_sections)
        .map_err(|error| unusable(&error))?;
    object
        .relocate_calls(&text_sections)
        .map_err(|error| unusable(&error))?;
    let key = object
        .programs
        .get(program)
        .ok_or_else(|| unusable(&format!("it has no program {program}")))?
        .function_key();
    let function = object
        .functions
        .remove(&key)
        .ok_or_else(|| unusable(&format!("it has no code of {program}")))?;
    Ok(function.instructions)
}

/// `enum bpf_cmd`, `enum bpf_prog_type` and `enum bpf_attach_type` of `include/uapi/linux/bpf.h`.
mod bpf {
    pub(super) const PROG_LOAD: i64 = 5;
    pub(super) const OBJ_GET_INFO_BY_FD: i64 = 15;
    pub(super) const RAW_TRACEPOINT_OPEN: i64 = 17;
    pub(super) const BTF_GET_FD_BY_ID: i64 = 19;
    pub(super) const BTF_GET_NEXT_ID: i64 = 23;
    pub(super) const PROG_TYPE_TRACING: u32 = 26;
    pub(super) const TRACE_FENTRY: u32 = 24;
    pub(super) const TRACE_FEXIT: u32 = 25;
}

/// The part of `union bpf_attr` that loads a program; what stands behind it is zero.
#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    expected_attach_type: u32,
    btf: u32,
    function_record_size: u32,
    functions: u64,
    function_count: u32,
    line_record_size: u32,
    lines: u64,
    line_count: u32,
    attach_btf_id: u32,
    attach_btf_object: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Default)]
struct RawTracepointOpen {
    name: u64,
    program: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Default)]
struct GetId {
    id: u32,
    next: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct GetInfo {
    descriptor: u32,
    length: u32,
    info: u64,
}

/// `struct bpf_btf_info`.
#[repr(C)]
#[derive(Default)]
struct BtfInfo {
    btf: u64,
    btf_size: u32,
    id: u32,
    name: u64,
    name_length: u32,
    kernel: u32,
}

/// How often the kernel left a run of a program out because one was under way on the CPU; 0 before 5.12, which does not
/// say it.
pub fn missed_runs(program: BorrowedFd<'_>) -> io::Result<u64> {
    use aya_obj::generated::bpf_prog_info;
    const PLACE: usize = std::mem::offset_of!(bpf_prog_info, recursion_misses) / size_of::<u64>();
    // As long as any kernel's: an older one leaves the end as it is.
    let mut info = [0_u64; size_of::<bpf_prog_info>() / size_of::<u64>()];
    let mut attributes = GetInfo {
        descriptor: program.as_raw_fd().cast_unsigned(),
        length: count(size_of_val(&info)),
        info: info.as_mut_ptr().addr() as u64,
    };
    call(bpf::OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(info[PLACE])
}

fn address<T>(of: &[T]) -> u64 {
    of.as_ptr().addr() as u64
}

fn count(of: usize) -> u32 {
    u32::try_from(of).unwrap_or(u32::MAX)
}

fn load(
    program: &str,
    instructions: &[aya_obj::generated::bpf_insn],
    side: Side,
    target: &Target,
) -> Result<OwnedFd, TracingError> {
    let license = b"Dual MIT/GPL\0";
    let (id, types) = target.number();
    let mut attributes = ProgramLoad {
        kind: bpf::PROG_TYPE_TRACING,
        instruction_count: count(instructions.len()),
        instructions: address(instructions),
        license: address(license),
        expected_attach_type: match side {
            Side::Entry => bpf::TRACE_FENTRY,
            Side::Exit => bpf::TRACE_FEXIT,
        },
        attach_btf_id: id,
        attach_btf_object: types.map_or(0, |types| types.as_raw_fd().cast_unsigned()),
        ..ProgramLoad::default()
    };
    // The last byte stays zero.
    for (place, byte) in attributes.name.iter_mut().take(15).zip(program.bytes()) {
        *place = byte;
    }
    let source = match descriptor(bpf::PROG_LOAD, &mut attributes) {
        Ok(program) => return Ok(program),
        Err(source) => source,
    };
    // Once more with a log, for the reason.
    let mut log = vec![0_u8; 1 << 20];
    attributes.log_level = 1;
    attributes.log_size = count(log.len());
    attributes.log = log.as_mut_ptr().addr() as u64;
    if let Ok(program) = descriptor(bpf::PROG_LOAD, &mut attributes) {
        return Ok(program);
    }
    Err(TracingError::Load {
        program: program.to_owned(),
        log: end_of(&log),
        source,
    })
}

/// The last lines of a verifier's log, in one.
fn end_of(log: &[u8]) -> String {
    let text = String::from_utf8_lossy(log.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("processed ")).collect();
    let end = lines.get(lines.len().saturating_sub(2)..).unwrap_or_default();
    if end.is_empty() {
        "it does not say why".to_owned()
    } else {
        end.join("; ")
    }
}

fn open_link(program: &OwnedFd) -> Result<OwnedFd, TracingError> {
    let mut attributes = RawTracepointOpen {
        program: program.as_raw_fd().cast_unsigned(),
        ..RawTracepointOpen::default()
    };
    Ok(descriptor(bpf::RAW_TRACEPOINT_OPEN, &mut attributes)?)
}

/// The types of a module, found among those of all objects in the kernel by its name.
fn module_types(module: &str) -> Result<Option<OwnedFd>, TracingError> {
    let mut id = 0;
    loop {
        let mut next = GetId { id, ..GetId::default() };
        match call(bpf::BTF_GET_NEXT_ID, &mut next) {
            Ok(_) => id = next.next,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let mut open = GetId { id, ..GetId::default() };
        match descriptor(bpf::BTF_GET_FD_BY_ID, &mut open) {
            Ok(types) if name_of(&types)? == module.as_bytes() => return Ok(Some(types)),
            Ok(_) => {}
            // It went between the two calls.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn name_of(types: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut name = vec![0_u8; 64];
    let mut info = BtfInfo {
        name: name.as_mut_ptr().addr() as u64,
        name_length: count(name.len()),
        ..BtfInfo::default()
    };
    let mut attributes = GetInfo {
        descriptor: types.as_raw_fd().cast_unsigned(),
        length: count(size_of::<BtfInfo>()),
        info: (&raw mut info).addr() as u64,
    };
    match call(bpf::OBJ_GET_INFO_BY_FD, &mut attributes) {
        Ok(_) => {}
        // A name that is longer than any module of ours.
        Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    name.truncate(name.iter().position(|&byte| byte == 0).unwrap_or(0));
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_what_explains_it() {
        let log = b"0: (b7) r0 = 0\nfunc 'x' arg0 type PTR is not a struct\ninvalid bpf_context access\nprocessed 3 insns\n\0\0";
        assert_eq!(
            end_of(log),
            "func 'x' arg0 type PTR is not a struct; invalid bpf_context access"
        );
        assert_eq!(end_of(&[0; 8]), "it does not say why");
    }

    #[test]
    fn the_object_has_both_programs() {
        let object = Object::parse(crate::kernel::load::OBJECT).expect("the committed object is whole");
        for program in ["handle_frame_entry", "handle_frame_exit"] {
            assert!(object.programs.contains_key(program), "{program}");
        }
    }

    #[test]
    fn the_parts_of_the_attributes_are_as_long_as_the_kernels() {
        assert_eq!(std::mem::offset_of!(ProgramLoad, attach_btf_object), 112);
        assert_eq!((size_of::<RawTracepointOpen>(), size_of::<BtfInfo>()), (16, 32));
    }
}
