//! The agent started for a person: with what the machine has, or with the lab. Needs Rust alone.

use std::os::unix::process::CommandExt;
use std::process::Stdio;

use anyhow::{Context, Result};

use crate::{host, programs};

/// Builds the agent and becomes it.
pub(crate) fn agent(flags: &[String]) -> Result<()> {
    let built = programs::release(&["macvlan-agent"], Stdio::inherit())?;
    become_root_program(&built[0], |command| command.arg("run").args(flags))
}

/// Builds the agent and the lab and becomes the lab, which starts the agent. It is looked at once: what counts is how soon.
pub(crate) fn lab(once: bool, flags: &[String]) -> Result<()> {
    let built = programs::by_profile("lab", &["macvlan-agent", "macvlan-lab"], Stdio::inherit())?;
    become_root_program(&built[1], |command| {
        command.arg("--agent").arg(&built[0].path);
        if once {
            command.arg("--once");
        }
        if !flags.is_empty() {
            command.arg("--").args(flags);
        }
        command
    })
}

/// Becomes the program, so that Ctrl-C and its exit status are its own.
fn become_root_program(
    program: &programs::Built,
    arguments: impl FnOnce(&mut std::process::Command) -> &mut std::process::Command,
) -> Result<()> {
    let mut command = host::root_tool(&program.path)?;
    let error = arguments(command.stdin(Stdio::inherit())).exec();
    Err(error).with_context(|| format!("start {}", host::words(&command)))
}
