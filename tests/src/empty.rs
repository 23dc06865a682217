//! A TC program that does nothing, on both sides of an interface: what any program there costs at least.

use std::{
    fs,
    os::fd::OwnedFd,
    path::PathBuf,
    process::{Command, id},
};

use anyhow::{Context, Result, ensure};

use crate::{
    bpf::{self, number},
    lab::Link,
};

const OBJ_PIN: libc::c_int = 6;
const SCHED_CLS: u32 = 3;
/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS`.
const TCX: [u32; 2] = [46, 47];
const PINS: &str = "/sys/fs/bpf";

/// `r0 = -1` (`TC_ACT_UNSPEC`), `exit`.
const INSTRUCTIONS: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];

/// The first fields of `union bpf_attr` for `BPF_OBJ_PIN`.
#[repr(C)]
struct Pin {
    path: u64,
    program: u32,
    flags: u32,
}

/// Attached for as long as it lives.
#[derive(Debug)]
pub enum Empty {
    /// By links of the kernel's, 6.6 and newer.
    Tcx([OwnedFd; 2]),
    /// By a queueing discipline.
    Clsact(String),
}

impl Empty {
    /// By tcx.
    pub fn tcx(link: &Link) -> Result<Self> {
        let program = load()?;
        let index = link.index()?;
        let attach = |kind| {
            link.namespace
                .run(|| bpf::attach(&program, index, kind, 0).context("could not attach by tcx"))
        };
        Ok(Self::Tcx([attach(TCX[0])?, attach(TCX[1])?]))
    }

    /// By a queueing discipline, with the tool `tc`; the interface must be in the process's own namespace.
    pub fn clsact(link: &Link) -> Result<Self> {
        let pin = PathBuf::from(format!("{PINS}/macvlan-cost-{}\0", id()));
        let text = pin.to_str().context("a path without text")?;
        let program = load()?;
        let mut attributes = Pin {
            path: text.as_ptr() as u64,
            program: number(&program)?,
            flags: 0,
        };
        bpf::call(OBJ_PIN, &mut attributes).context("could not pin a program")?;
        let path = text.trim_end_matches('\0');
        let attached = attach_clsact(&link.name, path);
        fs::remove_file(path).context("could not remove a pin")?;
        attached?;
        Ok(Self::Clsact(link.name.clone()))
    }
}

impl Drop for Empty {
    fn drop(&mut self) {
        if let Self::Clsact(name) = self {
            // Where this fails, the interface goes with its lab.
            let _ = tc(&format!("qdisc del dev {name} clsact"));
        }
    }
}

fn attach_clsact(name: &str, path: &str) -> Result<()> {
    tc(&format!("qdisc add dev {name} clsact"))?;
    for side in ["ingress", "egress"] {
        tc(&format!(
            "filter add dev {name} {side} bpf direct-action object-pinned {path}"
        ))?;
    }
    Ok(())
}

fn tc(words: &str) -> Result<()> {
    let output = Command::new("tc").args(words.split(' ')).output().context("start tc")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "tc {words}: {said}");
    Ok(())
}

fn load() -> Result<OwnedFd> {
    bpf::load(SCHED_CLS, &INSTRUCTIONS).context("could not load an empty program")
}
