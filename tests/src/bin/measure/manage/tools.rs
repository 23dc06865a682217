//! The two that are compared: `ip -batch` and `macvlan-agent apply`. Each is timed from its start to its end, as whoever
//! waits for it sees it.

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use macvlan_agent_tests::{
    lab::{self, Lab, Link, Mac, Place, Upstream},
    manage::Desk,
    netns::Namespace,
};

/// The group of what `ip` makes: as what we make, it is to be in one.
const GROUP: u32 = 0x1234_5678;

/// A parent in the process's own namespace; it takes all that stands on it along when it goes.
pub(super) fn parent() -> Lab {
    Lab::new(Place::Own, Upstream::Wire)
}

/// The name of a sub-interface.
pub(super) fn name(number: u32) -> String {
    format!("mv{number}")
}

/// A MAC for a sub-interface that `ip` makes.
pub(super) fn mac(number: u32) -> Mac {
    let [a, b, c, d] = number.to_be_bytes();
    Mac([0x02, 0x6d, a, b, c, d])
}

/// The line of a batch that makes a sub-interface as ours are: with a MAC, in a group, up.
pub(super) fn add(parent: &Link, number: u32) -> String {
    let (parent, name, mac) = (&parent.name, name(number), mac(number));
    format!("link add link {parent} name {name} address {mac} up group {GROUP} type macvlan mode bridge\n")
}

/// Lines of a batch that make so many sub-interfaces.
pub(super) fn add_all(parent: &Link, count: u32) -> String {
    (0..count).map(|number| add(parent, number)).collect()
}

/// Lines of a batch that mark as many of them as the agent marks its own.
pub(super) fn mark_all(count: u32) -> String {
    let mark = |number| format!("link set dev {} alias macvlan-agent:{}\n", name(number), name(number));
    (0..count).map(mark).collect()
}

/// A configuration with so many sub-interfaces, in the namespaces with these names or beside the parent.
pub(super) fn configuration(parent: &Link, count: u32, namespaces: &[Namespace]) -> String {
    let mut text = "sub_interfaces:\n".to_owned();
    let mut places = namespaces.iter();
    for number in 0..count {
        let (parent, name) = (&parent.name, name(number));
        let place = places.next();
        let netns = place.map_or_else(String::new, |place| format!(", netns: {}", place.label()));
        // Writing to a string does not fail.
        let _ = writeln!(text, "  - {{name: {name}, parent: {parent}, mode: bridge{netns}}}");
    }
    text
}

/// Runs a batch in the process's own namespace.
pub(super) fn batch(desk: &Desk, lines: &str) -> Result<Duration> {
    let file = desk.path("batch");
    fs::write(&file, lines)?;
    timed(Command::new("ip").arg("-batch").arg(&file))
}

/// Applies a configuration without an agent that runs.
pub(super) fn apply(agent: &Path, desk: &Desk, configuration: &str, more: &[&str]) -> Result<Duration> {
    let file = desk.configure(configuration);
    timed(Command::new(agent).arg("apply").arg(file).args(desk.flags()).args(more))
}

fn timed(command: &mut Command) -> Result<Duration> {
    command.stdin(Stdio::null());
    let begun = Instant::now();
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let took = begun.elapsed();
    let Output { status, stderr, .. } = output;
    ensure!(
        status.success(),
        "{command:?}: {status}: {}",
        String::from_utf8_lossy(&stderr)
    );
    Ok(took)
}

/// Fails unless so many sub-interfaces are up in a namespace.
pub(super) fn ensure_up(namespace: &Namespace, count: u32) -> Result<()> {
    let links = lab::links(namespace)?;
    let up = links
        .iter()
        .filter(|(name, up)| *up && name.starts_with("mv") && !name.starts_with("mvt"))
        .count();
    ensure!(u32::try_from(up)? == count, "{up} of {count} sub-interfaces are up");
    Ok(())
}

/// What one of `count` took, in microseconds.
pub(super) fn of_each(took: Duration, count: u32) -> f64 {
    took.as_secs_f64() * 1e6 / f64::from(count)
}
