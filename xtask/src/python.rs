//! Programs of Python's registry, in environments of their own.

use std::path::Path;

use anyhow::Result;

use crate::{apt, host};

/// Makes an environment and installs into it what `pip install` is given.
pub(crate) fn environment(home: &Path, packages: &[&str]) -> Result<()> {
    if host::read(host::tool("python3").args(["-c", "import ensurepip, venv"])).is_err() {
        apt::install(&["python3-venv"])?;
    }
    host::read(host::tool("python3").args(["-m", "venv", "--clear"]).arg(home))?;
    host::read(
        host::tool(home.join("bin/pip"))
            .args(["install", "--quiet"])
            .args(packages),
    )?;
    Ok(())
}
