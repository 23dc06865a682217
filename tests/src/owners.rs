//! Which series belong to which container, as the scrape says.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{
    agent::{Agent, run_to_end},
    exposition::{Sample, Scrape, whole},
    surroundings::eventually,
};

/// The `macvlan_interface_info` of the one sub-interface whose label `label` says `value`.
pub fn info(scrape: &Scrape, label: &str, value: &str) -> Result<Sample, String> {
    let found: Vec<_> = scrape.samples("macvlan_interface_info", &[(label, value)]).collect();
    match found[..] {
        [sample] => Ok(sample.clone()),
        _ => Err(format!(
            "{} have {label}={value:?} of:\n{}",
            found.len(),
            scrape.listing("macvlan_interface_info")
        )),
    }
}

/// Waits until there is one, and says how long that took.
///
/// # Panics
/// When there is none within `deadline`.
#[must_use]
pub fn await_info(agent: &Agent, label: &str, value: &str, deadline: Duration) -> (Sample, Duration) {
    let start = Instant::now();
    let sample = eventually(deadline, || info(&agent.scrape(), label, value));
    (sample, start.elapsed())
}

/// Waits until no series has this label any more.
///
/// # Panics
/// When there is one left after `deadline`.
pub fn await_gone(agent: &Agent, label: &str, value: &str, deadline: Duration) {
    eventually(deadline, || {
        let scrape = agent.scrape();
        let left = scrape.samples.iter().filter(|sample| sample.label(label) == value);
        let left: Vec<_> = left.map(ToString::to_string).collect();
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{label}={value} is left in:\n{}", left.join("\n")))
        }
    });
}

/// A counter of the sub-interface that `info` is of; all its series that have these labels together.
#[must_use]
pub fn count(scrape: &Scrape, info: &Sample, name: &str, labels: &[(&str, &str)]) -> u64 {
    let own = ["parent", "interface", "netns"].map(|label| (label, info.label(label)));
    whole(scrape.sum(name, &[&own, labels].concat()))
}

/// The sub-interfaces that `list -o json` shows on a parent.
///
/// # Panics
/// When it fails.
#[must_use]
pub fn listed(agent: &Agent, parent: &str) -> Vec<Value> {
    let run_dir = format!("--run.dir={}", agent.run_dir().display());
    let output = run_to_end(&["list", "-o", "json", &run_dir]);
    assert!(output.status.success(), "{output:?}");
    let json: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    let all = json["sub_interfaces"].as_array().expect("a list").iter();
    all.filter(|each| each["parent"] == parent).cloned().collect()
}

/// The table that `list` shows.
///
/// # Panics
/// When it fails.
#[must_use]
pub fn table(agent: &Agent) -> String {
    let run_dir = format!("--run.dir={}", agent.run_dir().display());
    let output = run_to_end(&["list", &run_dir]);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("it is UTF-8")
}
