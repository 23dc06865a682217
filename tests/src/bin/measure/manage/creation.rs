//! Goal 18: many sub-interfaces on one parent, by one `ip -batch` and by `macvlan-agent apply`.

use anyhow::Result;
use macvlan_agent_tests::{lab::Link, manage::Desk, netns::Namespace};

use super::{
    rounds::Rounds,
    tools::{add_all, apply, batch, configuration, ensure_up, mark_all, of_each, parent},
};
use crate::{
    Options,
    report::{self, Quartiles},
};

/// How many, and in how many rounds.
const SIZES: [(u32, usize); 5] = [(100, 5), (250, 5), (1_000, 5), (2_000, 3), (4_000, 3)];

pub(super) fn measure(options: &Options) -> Result<()> {
    for (count, rounds) in SIZES {
        let by_batch = |lines: &dyn Fn(&Link) -> String| {
            let (lab, desk) = (parent(), Desk::new());
            let took = batch(&desk, &lines(&lab.parent))?;
            ensure_up(&Namespace::own(), count)?;
            Ok(of_each(took, count))
        };
        let mut marked = Vec::new();
        let theirs = || {
            marked.push(by_batch(&|parent| add_all(parent, count) + &mark_all(count))?);
            by_batch(&|parent| add_all(parent, count))
        };
        let ours = || {
            let (lab, desk) = (parent(), Desk::new());
            let took = apply(&options.agent, &desk, &configuration(&lab.parent, count, &[]), &[])?;
            ensure_up(&Namespace::own(), count)?;
            Ok(of_each(took, count))
        };
        let rounds = Rounds::run(rounds, theirs, ours)?;
        report::point("creation", "ip_batch", f64::from(count), rounds.theirs()?.median)?;
        report::point(
            "creation",
            "macvlan-agent_apply",
            f64::from(count),
            rounds.ours()?.median,
        )?;
        if [1_000, 4_000].contains(&count) {
            let key = format!("18.{count}");
            rounds.report(&key, ["ip_batch_us", "apply_us"])?;
            report::side(&key, "ip_batch,marked_us", Quartiles::of(marked)?)?;
            report::note(
                &key,
                "each is made with a MAC, in a group, up; ours are marked and written down as well; a batch that gives each \
                 an alias of the same length is the kernel's price for that",
            )?;
        }
    }
    Ok(())
}
