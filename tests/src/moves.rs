//! Which counters of one lab moved between two scrapes, and by how much: a test says all that must have moved, so
//! nothing else may have.

use std::{collections::BTreeMap, thread, time::Duration};

use crate::{
    agent::Agent,
    exposition::{Sample, Scrape, whole},
    lab::Lab,
    surroundings::{eventually, sees_verdicts},
};

/// Counter to increase. A counter is written as its name without `macvlan_` and `_total`, its sub-interface if it has
/// one, and its other labels: `delivered_frames macv1 cast=unicast path=external`.
pub type Moves = BTreeMap<String, u64>;

/// What must have moved.
#[must_use]
pub fn moves<const N: usize>(expected: [(&str, u64); N]) -> Moves {
    expected
        .into_iter()
        .map(|(counter, by)| (counter.to_owned(), by))
        .filter(|(_, by)| *by > 0)
        .collect()
}

/// The same, and what `macvlan_handle_frame` returned, where the agent can see that.
#[must_use]
pub fn moves_and_verdicts<const N: usize>(
    expected: [(&str, u64); N],
    delivered: u64,
    passed: u64,
    consumed: u64,
) -> Moves {
    let mut all = moves(expected);
    if sees_verdicts() {
        let verdicts = [("delivered", delivered), ("passed", passed), ("consumed", consumed)];
        all.extend(
            verdicts
                .into_iter()
                .filter(|(_, by)| *by > 0)
                .map(|(verdict, by)| (format!("parent_handled_frames verdict={verdict}"), by)),
        );
    }
    all
}

/// What did move on the lab's parent and its sub-interfaces. Multicast is left out: it is the kernel's own count, in
/// its own time.
///
/// # Panics
/// When a counter went back.
#[must_use]
pub fn moved(lab: &Lab, before: &Scrape, after: &Scrape) -> Moves {
    moved_on(&lab.parent_label(), before, after)
}

/// The same of the parent with a label.
///
/// # Panics
/// When a counter went back.
#[must_use]
pub fn moved_on(parent: &str, before: &Scrape, after: &Scrape) -> Moves {
    let counters = |scrape: &Scrape| -> BTreeMap<String, u64> {
        scrape
            .samples
            .iter()
            .filter(|sample| sample.label("parent") == parent && sample.name.starts_with("macvlan_"))
            .filter(|sample| sample.name.ends_with("_total") && sample.label("cast") != "multicast")
            .map(|sample| (short(sample), whole(sample.value)))
            .collect()
    };
    let old = counters(before);
    counters(after)
        .into_iter()
        .filter_map(|(counter, now)| {
            let then = old.get(&counter).copied().unwrap_or(0);
            assert!(now >= then, "{counter} went back from {then} to {now}");
            (now > then).then(|| (counter, now - then))
        })
        .collect()
}

/// Waits until exactly this has moved since `before`; returns the scrape that says so.
///
/// # Panics
/// When something else moved, or not enough in time.
pub fn await_moves(agent: &Agent, lab: &Lab, before: &Scrape, expected: &Moves, within: Duration) -> Scrape {
    await_moves_on(agent, &lab.parent_label(), before, expected, within)
}

/// The same of the parent with a label.
///
/// # Panics
/// When something else moved, or not enough in time.
#[expect(clippy::must_use_candidate, reason = "that it has moved is often all that matters")]
pub fn await_moves_on(agent: &Agent, parent: &str, before: &Scrape, expected: &Moves, within: Duration) -> Scrape {
    let check = || {
        let after = agent.scrape();
        let moved = moved_on(parent, before, &after);
        if moved == *expected {
            Ok(after)
        } else {
            Err(format!("moved: {moved:#?}\nexpected: {expected:#?}"))
        }
    };
    eventually(within, check);
    // A count that is still on its way past the expected one is caught here.
    thread::sleep(Duration::from_millis(100));
    check().unwrap_or_else(|why| panic!("it was right, and then moved on: {why}"))
}

/// What moved on every parent, multicast as well.
///
/// # Panics
/// When a counter went back.
#[must_use]
pub fn moved_by_parent(before: &Scrape, after: &Scrape) -> BTreeMap<String, Moves> {
    let counters = |scrape: &Scrape| -> BTreeMap<(String, String), u64> {
        let counters = scrape.samples.iter().filter(|sample| {
            !sample.label("parent").is_empty() && sample.name.starts_with("macvlan_") && sample.name.ends_with("_total")
        });
        counters
            .map(|sample| ((sample.label("parent").to_owned(), short(sample)), whole(sample.value)))
            .collect()
    };
    let old = counters(before);
    let mut moved: BTreeMap<String, Moves> = BTreeMap::new();
    for ((parent, counter), now) in counters(after) {
        let then = old.get(&(parent.clone(), counter.clone())).copied().unwrap_or(0);
        assert!(now >= then, "{counter} of {parent} went back from {then} to {now}");
        if now > then {
            moved.entry(parent).or_default().insert(counter, now - then);
        }
    }
    moved
}

fn short(sample: &Sample) -> String {
    let name = sample.name.trim_start_matches("macvlan_").trim_end_matches("_total");
    let own = ["parent", "interface", "netns"];
    let labels = sample.labels.iter().filter(|(label, _)| !own.contains(&label.as_str()));
    [name.to_owned(), sample.label("interface").to_owned()]
        .into_iter()
        .filter(|word| !word.is_empty())
        .chain(labels.map(|(label, value)| format!("{label}={value}")))
        .collect::<Vec<_>>()
        .join(" ")
}
