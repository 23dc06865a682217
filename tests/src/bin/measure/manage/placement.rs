//! Goal 20: a sub-interface for each of many namespaces: made beside its parent and moved, as `ip` does it, and made in
//! its place by `macvlan-agent apply`.

use std::{fmt::Write as _, process};

use anyhow::Result;
use macvlan_agent_tests::{manage::Desk, netns::Namespace};

use super::{
    rounds::Rounds,
    tools::{add, apply, batch, configuration, ensure_up, name, of_each, parent},
};
use crate::{Options, report};

const KEY: &str = "20";
const ROUNDS: usize = 3;
/// Each costs the same there, however many they are.
const THEIRS: u32 = 50;
const OURS: u32 = 250;

pub(super) fn measure(options: &Options) -> Result<()> {
    let names = (0..OURS).map(|number| format!("mvm{}-{number}", process::id()));
    let namespaces = names.map(|name| Namespace::create(&name)).collect::<Result<Vec<_>>>()?;
    let theirs = || {
        let (lab, desk) = (parent(), Desk::new());
        let mut lines = String::new();
        for (number, namespace) in (0..THEIRS).zip(&namespaces) {
            lines += &add(&lab.parent, number);
            writeln!(lines, "link set {} netns {}", name(number), namespace.label())?;
        }
        let took = batch(&desk, &lines)?;
        Ok(of_each(took, THEIRS))
    };
    let ours = || {
        let (lab, desk) = (parent(), Desk::new());
        let took = apply(
            &options.agent,
            &desk,
            &configuration(&lab.parent, OURS, &namespaces),
            &[],
        )?;
        for namespace in &namespaces {
            ensure_up(namespace, 1)?;
        }
        Ok(of_each(took, OURS))
    };
    Rounds::run(ROUNDS, theirs, ours)?.report(KEY, ["ip_batch_us", "apply_us"])?;
    report::note(
        KEY,
        &format!(
            "ip places {THEIRS}, which are down then, the agent {OURS}, which are up; each in a namespace of its own; the time of one"
        ),
    )
}
