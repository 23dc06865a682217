//! Which processor does what.

use anyhow::{Context, Result};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

/// Where frames are made and delivered.
pub(super) const FRAMES: usize = 0;
/// Where the agent runs, and who asks it.
pub(super) const OTHER: usize = 1;

/// The calling thread, and whatever it starts, run there from now on.
pub(super) fn stay_on(processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("there is no processor {processor}"))
}
