//! The agent on one side: it observes the parents of one stand and no others.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use macvlan_agent_tests::{agent::Agent, exposition};
use tempfile::TempDir;

use super::{processor, stand::Stand};

const LIMIT: Duration = Duration::from_mins(1);

/// How TC programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mechanism {
    Tcx,
    Clsact,
}

impl Mechanism {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// An agent that has attached its programs and knows all sub-interfaces; it runs on the processor that sends nothing.
pub(super) struct Observer {
    pub(super) agent: Agent,
    _directory: TempDir,
}

impl Observer {
    pub(super) fn start(program: &Path, stand: &Stand, mechanism: Mechanism) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("macvlan-measure-").tempdir()?;
        let file = directory.path().join("config.yaml");
        let labels: Vec<_> = stand
            .parents
            .iter()
            .map(|parent| format!("{:?}", parent.label()))
            .collect();
        let count = stand.size.sub_interfaces();
        let text = format!(
            "observe: {{ parents: {{ include: [{}] }} }}\nlimits: {{ sub_interfaces: {count}, per_namespace: {count} }}\n",
            labels.join(", ")
        );
        fs::write(&file, text).context("could not write the configuration")?;
        let flags = [
            format!("--config.file={}", file.display()),
            "--web.listen-address=127.0.0.1:0".to_owned(),
            // Probes would see the frames of all sides; what they cost is counted in instructions.
            "--hook.handle_frame=off".to_owned(),
        ];
        let agent = launch(program, &flags.map(OsString::from), mechanism)?;
        let observer = Self {
            agent,
            _directory: directory,
        };
        observer.await_all(stand, mechanism)?;
        Ok(observer)
    }

    fn await_all(&self, stand: &Stand, mechanism: Mechanism) -> Result<()> {
        let wanted = (2 * stand.parents.len(), usize::try_from(stand.size.sub_interfaces())?);
        let deadline = Instant::now() + LIMIT;
        loop {
            let text = exposition::get(self.agent.address(), "/metrics")?.body;
            let attached = format!("mechanism=\"{}\"", mechanism.word());
            let hooks = series(&text, "macvlan_agent_hook_info").filter(|line| line.contains(&attached));
            let found = (hooks.count(), series(&text, "macvlan_interface_info").count());
            if found == wanted {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!(
                    "the agent has {found:?} of {wanted:?} hooks by {} and sub-interfaces; it said:\n{}",
                    mechanism.word(),
                    self.agent.log()
                );
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Frames to sub-interfaces, by the agent's count.
    pub(super) fn delivered(&self) -> Result<u64> {
        let text = exposition::get(self.agent.address(), "/metrics")?.body;
        series(&text, "macvlan_delivered_frames_total")
            .map(|line| {
                let value = line.rsplit_once(' ').context("a series without a value")?.1;
                value.parse::<u64>().with_context(|| format!("{value} is no count"))
            })
            .sum()
    }

    /// How often its programs have run, while the kernel counts that.
    pub(super) fn runs(&self) -> Result<u64> {
        let ours = self.programs()?;
        let mut runs = 0;
        for program in aya::programs::loaded_programs() {
            let program = program.context("could not list the programs")?;
            if ours.contains(&program.id()) {
                runs += program.run_count();
            }
        }
        Ok(runs)
    }

    /// The programs that it holds, by their ids.
    fn programs(&self) -> Result<BTreeSet<u32>> {
        let directory = format!("/proc/{}/fdinfo", self.agent.pid());
        let mut ids = BTreeSet::new();
        for entry in fs::read_dir(&directory).with_context(|| format!("could not read {directory}"))? {
            // It opens and closes others all the time.
            let text = fs::read_to_string(entry?.path()).unwrap_or_default();
            let id = text.lines().find_map(|line| line.strip_prefix("prog_id:"));
            ids.extend(id.map(|id| id.trim().parse::<u32>()).transpose()?);
        }
        ensure!(!ids.is_empty(), "the agent has no programs");
        Ok(ids)
    }
}

fn series<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    let labels = move |line: &'a str| line.strip_prefix(name)?.starts_with('{').then_some(line);
    text.lines().filter_map(labels)
}

/// Starts it in a thread that has what the process inherits: its processor and, for clsact where the kernel has tcx, a
/// version of the kernel (2.6.x) that is older than tcx.
fn launch(program: &Path, flags: &[OsString], mechanism: Mechanism) -> Result<Agent> {
    let start = || {
        processor::stay_on(processor::OTHER)?;
        if mechanism == Mechanism::Clsact {
            // SAFETY: the call takes a number and no pointer; it changes what this thread, which ends here, and the
            // processes it starts are told by `uname`.
            let before = unsafe { libc::personality(UNAME26) };
            ensure!(before >= 0, "no personality: {}", std::io::Error::last_os_error());
        }
        Agent::launch_within(program, flags, LIMIT, &|| Ok(()))
    };
    thread::scope(|scope| {
        let started = scope.spawn(start).join();
        started.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// `UNAME26` of `personality(2)`.
const UNAME26: libc::c_ulong = 0x002_0000;
