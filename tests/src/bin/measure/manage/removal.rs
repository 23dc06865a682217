//! Goal 19: sub-interfaces removed one by one, as `ip` does it, and all that are managed by `macvlan-agent apply --prune`.

use std::fmt::Write as _;

use anyhow::Result;
use macvlan_agent_tests::{manage::Desk, netns::Namespace};

use super::{
    rounds::Rounds,
    tools::{add_all, apply, batch, configuration, ensure_up, name, of_each, parent},
};
use crate::{Options, report};

const KEY: &str = "19";
const ROUNDS: usize = 3;
/// Each costs the same there, however many they are.
const THEIRS: u32 = 100;
const OURS: u32 = 1_000;

pub(super) fn measure(options: &Options) -> Result<()> {
    let theirs = || {
        let (lab, desk) = (parent(), Desk::new());
        batch(&desk, &add_all(&lab.parent, THEIRS))?;
        let mut lines = String::new();
        for number in 0..THEIRS {
            writeln!(lines, "link del {}", name(number))?;
        }
        let took = batch(&desk, &lines)?;
        ensure_up(&Namespace::own(), 0)?;
        Ok(of_each(took, THEIRS))
    };
    let ours = || {
        let (lab, desk) = (parent(), Desk::new());
        apply(&options.agent, &desk, &configuration(&lab.parent, OURS, &[]), &[])?;
        ensure_up(&Namespace::own(), OURS)?;
        let took = apply(&options.agent, &desk, "sub_interfaces: []\n", &["--prune"])?;
        ensure_up(&Namespace::own(), 0)?;
        Ok(of_each(took, OURS))
    };
    Rounds::run(ROUNDS, theirs, ours)?.report(KEY, ["ip_batch_us", "apply_prune_us"])?;
    report::note(
        KEY,
        &format!("ip removes {THEIRS} of {THEIRS}, the agent {OURS} of {OURS}; the time of one"),
    )
}
