//! Stock kernels under an emulator: the table of them, and one command run as root in one of them.

pub(crate) mod initramfs;
pub(crate) mod kernel;
pub(crate) mod qemu;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{apt, host};
use initramfs::Program;
use kernel::{Freshness, Kernel};
use qemu::Clock;

const PACKAGES: [&str; 8] = [
    "bpftool",
    "busybox-static",
    "cpio",
    "iproute2",
    "kmod",
    "qemu-system-x86",
    "xz-utils",
    "zstd",
];

/// What every machine has beside busybox.
const TOOLS: [&str; 4] = ["bpftool", "bridge", "ip", "tc"];

/// Installs what machines are made with.
pub(crate) fn provision() -> Result<()> {
    let _lock = host::lock_cache()?;
    apt::install(&PACKAGES)
}

/// Boots a kernel of the table, runs a shell command in it and shows what it prints.
pub(crate) fn run_command(
    name: &str,
    clock: Clock,
    programs: &[PathBuf],
    command: &str,
    limit: Duration,
) -> Result<()> {
    provision()?;
    let kernel = kernel::find(name)?;
    let programs: Vec<_> = programs
        .iter()
        .map(|path| Program::in_bin(path))
        .collect::<Result<_>>()?;
    let session = run_script(&kernel, Freshness::Cached, clock, programs, command, limit, true)?;
    match session.verdict {
        Some(true) => Ok(()),
        Some(false) => bail!("the command failed on {name}"),
        None => bail!("no verdict from {name}: {}", session.end_of_kernel_log()),
    }
}

/// Boots a kernel with programs and runs a shell script in it; the script's exit status is the verdict.
pub(crate) fn run_script(
    kernel: &Kernel,
    freshness: Freshness,
    clock: Clock,
    mut programs: Vec<Program>,
    script: &str,
    limit: Duration,
    echo: bool,
) -> Result<qemu::Session> {
    let tree = kernel.fetch(freshness)?;
    for tool in TOOLS {
        let path = host::find_tool(tool).with_context(|| format!("{tool} is not installed"))?;
        programs.push(Program::in_bin(&path)?);
    }
    let room = tempfile::tempdir().context("make a directory for the machine")?;
    let image = room.path().join("initramfs");
    initramfs::pack(&tree, &programs, script, &image)?;
    qemu::boot(&tree.image()?, &image, clock, limit, echo)
}
