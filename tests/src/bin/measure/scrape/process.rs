//! The programs that are scraped, and what the kernel says of them.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use macvlan_agent_tests::netns::{DIRECTORY, Namespace};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use super::client::Client;

/// The agent's limits here, and whom it observes: nothing else that this machine may have.
const CONFIGURATION: &str = "\
limits: { sub_interfaces: 12000, per_namespace: 12000 }
observe: { parents: { include: [\"parent?\"] } }
";

/// How long a start may take.
const START: Duration = Duration::from_mins(1);

/// A program that serves metrics; ended with its handle.
pub(super) struct Process {
    child: Child,
    pub(super) address: SocketAddr,
    begun: Instant,
    directory: TempDir,
}

impl Process {
    /// Starts the agent, with tables for 12,000.
    pub(super) fn agent(program: &Path, namespace: &Namespace) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let configuration = directory.path().join("config.yaml");
        fs::write(&configuration, CONFIGURATION)?;
        let address = SocketAddr::from(([127, 0, 0, 1], 9988));
        let mut command = Command::new(program);
        command
            .arg("run")
            .arg(format!("--web.listen-address={address}"))
            .arg(format!("--config.file={}", configuration.display()))
            .arg(format!("--run.dir={}", directory.path().join("run").display()))
            .arg(format!("--state.dir={}", directory.path().join("state").display()))
            .args(["--containers.socket=", "--web.max-requests=0"]);
        Self::start(command, address, directory, |command| {
            namespace.run(|| {
                hide_namespaces()?;
                Ok(command.spawn()?)
            })
        })
    }

    /// Starts a `node_exporter` that reads network devices, over netlink where it can and all that `/sys` says of them.
    pub(super) fn node_exporter(program: &Path, namespace: &Namespace) -> Result<Self> {
        let name = namespace.name().context("a namespace without a name")?;
        let address = SocketAddr::from(([127, 0, 0, 1], 9100));
        // `ip` mounts the namespace's own `/sys`.
        let mut command = Command::new("ip");
        command.args(["netns", "exec", name]).arg(program).args([
            "--collector.disable-defaults",
            "--collector.netdev",
            "--collector.netdev.netlink",
            "--collector.netclass",
            "--web.disable-exporter-metrics",
        ]);
        command.arg(format!("--web.listen-address={address}"));
        Self::start(command, address, tempfile::tempdir()?, |command| Ok(command.spawn()?))
    }

    fn start(
        mut command: Command,
        address: SocketAddr,
        directory: TempDir,
        spawn: impl FnOnce(&mut Command) -> Result<Child>,
    ) -> Result<Self> {
        let log = File::create(directory.path().join("log"))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let begun = Instant::now();
        let child = spawn(&mut command).with_context(|| format!("could not start {command:?}"))?;
        Ok(Self {
            child,
            address,
            begun,
            directory,
        })
    }

    /// Asks for the metrics until they are `right`, and says how long that took from the start on.
    pub(super) fn await_right(&self, client: &mut Client, right: impl Fn(&str) -> bool) -> Result<Duration> {
        loop {
            let body = client.get(self.address, "/metrics", false)?.read()?.body;
            let took = self.begun.elapsed();
            if right(&body) {
                return Ok(took);
            }
            if took > START {
                bail!("the metrics did not become right; the agent said:\n{}", self.log());
            }
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// The most memory that it had until now, without the kernel's maps that it looks into, in millions of bytes.
    pub(super) fn peak_memory(&self) -> Result<f64> {
        let (peak, maps) = (self.of_status("VmHWM:")?, self.maps()?);
        ensure!(peak > maps, "{peak} kB at most, of which {maps} kB are maps");
        Ok(millions(peak - maps))
    }

    /// The memory that it has now: pages of its own, and pages of files without the kernel's maps, in millions of bytes.
    pub(super) fn memory(&self) -> Result<(f64, f64)> {
        let (own, files, maps) = (self.of_status("RssAnon:")?, self.of_status("RssFile:")?, self.maps()?);
        Ok((millions(own), millions(files.saturating_sub(maps))))
    }

    fn of_status(&self, name: &str) -> Result<u32> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        kilobytes(&status, name).with_context(|| format!("no {name}"))
    }

    /// What of the kernel's maps is mapped. Pages of a map are mapped as a whole when it is, and stay: they are in every
    /// peak.
    fn maps(&self) -> Result<u32> {
        let mut maps = 0;
        let mut is_map = false;
        for line in fs::read_to_string(format!("/proc/{}/smaps", self.child.id()))?.lines() {
            if let Some(size) = kilobytes(line, "Rss:") {
                maps += if is_map { size } else { 0 };
            } else if line.split_whitespace().next().is_some_and(|word| word.contains('-')) {
                is_map = line.ends_with("bpf-map");
            }
        }
        Ok(maps)
    }

    /// What it did until now.
    pub(super) fn activity(&self) -> Result<Activity> {
        let of_process = format!("/proc/{}", self.child.id());
        let stat = fs::read_to_string(format!("{of_process}/stat"))?;
        let (_, fields) = stat.rsplit_once(") ").context("no name in stat")?;
        // `utime` and `stime` are the 14th and 15th field, the name is the 2nd.
        let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u32>);
        let mut switches = BTreeMap::new();
        for thread in fs::read_dir(format!("{of_process}/task"))? {
            let thread = thread?;
            // One that ends meanwhile has no file any more.
            let Ok(status) = fs::read_to_string(thread.path().join("status")) else {
                continue;
            };
            let count = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))
                .context("no switches in status")?;
            switches.insert(thread.file_name(), count.trim().parse()?);
        }
        Ok(Activity {
            ticks: ticks.sum::<Result<u32, _>>()?,
            switches,
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It lets go of its hooks.
        let _ = i32::try_from(self.child.id()).map(|pid| kill(Pid::from_raw(pid), Signal::SIGTERM));
        let _ = self.child.wait();
    }
}

/// What a process did.
#[derive(Debug)]
pub(super) struct Activity {
    /// Processor ticks of all its threads, of those that have ended as well.
    ticks: u32,
    /// How often each of its threads waited of its own accord.
    switches: BTreeMap<OsString, u32>,
}

impl Activity {
    /// Ticks and switches since `before`; what a thread did that came and ended in between is in the ticks alone.
    pub(super) fn since(&self, before: &Self) -> (u32, u32) {
        let of_thread = |(thread, count): (&OsString, &u32)| count - before.switches.get(thread).unwrap_or(&0);
        (self.ticks - before.ticks, self.switches.iter().map(of_thread).sum())
    }
}

/// Takes the named namespaces out of this thread's sight, and so out of that of the processes that it starts.
fn hide_namespaces() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
    for name in fs::read_dir(DIRECTORY)? {
        // What somebody removes meanwhile is out of sight as well.
        let _ = umount2(&name?.path(), MntFlags::MNT_DETACH);
    }
    mount(Some("none"), DIRECTORY, Some("tmpfs"), MsFlags::empty(), nothing).context("hide the namespaces")
}

/// Bytes in millions.
fn millions(kilobytes: u32) -> f64 {
    f64::from(kilobytes) * 1024.0 / 1e6
}

fn kilobytes(text: &str, name: &str) -> Option<u32> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::kilobytes;

    #[test]
    fn sizes_are_found_by_their_name() {
        assert_eq!(
            kilobytes("VmPeak:\t  9 kB\nVmHWM:\t   17320 kB\n", "VmHWM:"),
            Some(17_320)
        );
        assert_eq!(kilobytes("Rss:                 256 kB", "Rss:"), Some(256));
        assert_eq!(kilobytes("7f00-7f01 rw-s 0 00:0f 1 anon_inode:bpf-map", "Rss:"), None);
    }
}
