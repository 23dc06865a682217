//! Where the tests run and what must be possible there: said by `cargo xtask test` in the environment, or found out
//! for a developer who runs a test binary by hand.

use std::{
    env, fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// A hook and how it must be attached; without a mechanism it must not be attachable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedHook {
    /// `parent_ingress` …
    pub name: String,
    /// `tcx`, `clsact`, `kprobe` …
    pub mechanism: Option<String>,
}

/// The kernel under test: "host", or the version of the VM's.
#[must_use]
pub fn kernel() -> String {
    env::var("MACVLAN_TEST_KERNEL").unwrap_or_else(|_| "host".into())
}

/// Whether this is the developer's machine and not a VM of ours.
#[must_use]
pub fn on_host() -> bool {
    kernel() == "host"
}

/// Whether the slow variants are asked for.
#[must_use]
pub fn long() -> bool {
    env::var_os("MACVLAN_TEST_LONG").is_some_and(|value| !value.is_empty() && value != "0")
}

/// The hooks that must attach here, and how: `MACVLAN_TEST_HOOKS`, else what the running kernel should be able to.
///
/// # Panics
/// When `MACVLAN_TEST_HOOKS` is not a list of `name=mechanism`.
#[must_use]
pub fn hooks() -> Vec<ExpectedHook> {
    let list = env::var("MACVLAN_TEST_HOOKS").unwrap_or_else(|_| {
        let tc = if release() >= (6, 6) { "tcx" } else { "clsact" };
        let kprobes = Path::new("/sys/bus/event_source/devices/kprobe/type").exists();
        let handler = if kprobes { "kprobe" } else { "none" };
        format!("parent_ingress={tc},parent_egress={tc},handle_frame={handler}")
    });
    list.split(',')
        .map(|entry| {
            let Some((name, mechanism)) = entry.trim().split_once('=') else {
                panic!("MACVLAN_TEST_HOOKS: {entry:?} is not NAME=MECHANISM");
            };
            ExpectedHook {
                name: name.into(),
                mechanism: (mechanism != "none").then(|| mechanism.into()),
            }
        })
        .collect()
}

/// How a hook must be attached here; none when it must not be attachable.
#[must_use]
pub fn mechanism(hook: &str) -> Option<String> {
    hooks()
        .into_iter()
        .find(|expected| expected.name == hook)
        .and_then(|expected| expected.mechanism)
}

/// Whether the kernel has what not all of them have, by its name in the table of kernels: `MACVLAN_TEST_LACKS` lists what
/// it lacks; where it is not set, the running kernel says so itself. A test that goes without proves that it is not there.
#[must_use]
pub fn has(what: &str) -> bool {
    match env::var("MACVLAN_TEST_LACKS") {
        Ok(lacks) => !lacks.split(',').any(|lacked| lacked == what),
        Err(_) => match what {
            "bc_queue_len" => release() >= (5, 11),
            "bc_cutoff" => release() >= (6, 5),
            "vlan" => Path::new("/proc/net/vlan/config").exists(),
            "bond" => Path::new("/sys/class/net/bonding_masters").exists(),
            _ => !on_host(),
        },
    }
}

/// Whether the agent sees here what `macvlan_handle_frame` returned.
#[must_use]
pub fn sees_verdicts() -> bool {
    mechanism("handle_frame").is_some()
}

/// The agent under test: `MACVLAN_AGENT`, else the workspace's release build.
#[must_use]
pub fn agent_program() -> PathBuf {
    env::var_os("MACVLAN_AGENT").map_or_else(
        || {
            let target = env::var_os("CARGO_TARGET_DIR").map_or_else(
                || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
                PathBuf::from,
            );
            target.join("release/macvlan-agent")
        },
        PathBuf::from,
    )
}

/// A Prometheus program (`promtool`, `prometheus`): from `MACVLAN_PROMETHEUS_DIR`, else from the path.
///
/// # Panics
/// When there is none: a test that needs it is not passed by leaving it out.
#[must_use]
pub fn prometheus_program(name: &str) -> PathBuf {
    debian_program("MACVLAN_PROMETHEUS_DIR", name)
}

/// Debian's node exporter: from `MACVLAN_NODE_EXPORTER_DIR`, else from the path.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn node_exporter_program() -> PathBuf {
    debian_program("MACVLAN_NODE_EXPORTER_DIR", "prometheus-node-exporter")
}

/// A file of Debian's docker.io, containerd, runc, podman, conmon, netavark or containernetworking-plugins, by its path
/// below `usr`: from `MACVLAN_CONTAINERS_DIR`, where they are unpacked. Not from the path: what a machine calls `docker`
/// may be anything.
///
/// # Panics
/// When it is not there.
#[must_use]
pub fn container_program(path: &str) -> PathBuf {
    let variable = "MACVLAN_CONTAINERS_DIR";
    let directory = env::var_os(variable).unwrap_or_else(|| {
        panic!("set {variable} to the directory usr of Debian's container packages, as `cargo xtask test` unpacks them")
    });
    let file = Path::new(&directory).join(path);
    assert!(file.exists(), "{} is not there: is {variable} right?", file.display());
    file
}

fn debian_program(variable: &str, name: &str) -> PathBuf {
    let directories = env::var_os(variable)
        .or_else(|| env::var_os("PATH"))
        .unwrap_or_default();
    env::split_paths(&directories)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("no {name}: set {variable} to the directory of Debian's"))
}

/// A deadline for the slowest place that these tests run in: emulated machines take ten times as long.
#[must_use]
pub fn patience(on_host_takes: Duration) -> Duration {
    if on_host() { on_host_takes } else { on_host_takes * 10 }
}

/// Asks until there is an answer.
///
/// # Panics
/// When there is none within `deadline`; the message is the last of `probe`'s.
pub fn eventually<T>(deadline: Duration, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match probe() {
            Ok(answer) => return answer,
            Err(why) if start.elapsed() > deadline => panic!("not within {deadline:?}: {why}"),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Sleeps until `moment`.
pub fn sleep_until(moment: Instant) {
    thread::sleep(moment.saturating_duration_since(Instant::now()));
}

/// The first two numbers of the running kernel's release.
#[must_use]
pub fn release() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|number| number.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}
