//! What can be said of the sources without running them.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use crate::gate::{Gate, Outcome};
use crate::{ebpf, host, python};

const TYPOS_VERSION: &str = "1.52.0";
const DENY_VERSION: &str = "0.20.2";

/// Adds the lints to a list of steps.
pub(crate) fn steps(gate: &mut Gate) {
    gate.command("formatting", host::cargo("fmt --all --check"));
    gate.command(
        "clippy",
        host::cargo("clippy --workspace --all-targets --locked -- -D warnings"),
    );
    gate.step("spelling", || {
        host::read(host::tool(typos()?).current_dir(host::work_tree()?))?;
        Ok(Outcome::default())
    });
    gate.step("dependencies", || {
        let mut deny = host::tool(deny()?);
        deny.current_dir(host::work_tree()?)
            .args(["--workspace", "--locked", "--log-level=error"]);
        host::read(deny.args(["check", "bans", "licenses", "sources"]))?;
        Ok(Outcome::default())
    });
    gate.step("eBPF object belongs to its sources", || {
        ebpf::check().map(|()| Outcome::default())
    });
}

/// Only the lints.
pub(crate) fn run() -> Result<ExitCode> {
    provision()?;
    let mut gate = Gate::default();
    steps(&mut gate);
    Ok(gate.finish(""))
}

/// Puts the tools of the lints into the cache.
pub(crate) fn provision() -> Result<()> {
    typos()?;
    deny()?;
    Ok(())
}

/// The spelling checker, from Python's registry: its own binary there is ready in seconds.
fn typos() -> Result<PathBuf> {
    let _lock = host::lock_cache()?;
    let home = host::cache()?.join(format!("typos-{TYPOS_VERSION}"));
    let typos = home.join("bin/typos");
    if !typos.exists() {
        python::environment(&home, &["--no-deps", &format!("typos=={TYPOS_VERSION}")])?;
    }
    Ok(typos)
}

/// The checker of dependencies, built without optimizing: that halves the wait, and it runs for a second.
fn deny() -> Result<PathBuf> {
    let _lock = host::lock_cache()?;
    host::crate_program("cargo-deny", DENY_VERSION, "--debug --no-default-features", &[])
}
