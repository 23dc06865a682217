//! Programs that do nothing: what any there cost at least.

use std::{
    fs,
    os::fd::OwnedFd,
    path::PathBuf,
    process::{Command, id},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, ensure};
use macvlan_agent::kernel::{attach::HANDLER, tracing_link::Target};

use crate::{
    bpf::{self, number},
    lab::Link,
};

const OBJ_PIN: libc::c_int = 6;
const SCHED_CLS: u32 = 3;
/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS`.
const TCX: [u32; 2] = [46, 47];
const PINS: &str = "/sys/fs/bpf";

static PINNED: AtomicU32 = AtomicU32::new(0);

/// `r0 = -1` (`TC_ACT_UNSPEC`), `exit`.
const INSTRUCTIONS: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];

/// `BPF_TRACE_FENTRY` and `BPF_TRACE_FEXIT`, and for both `r0 = 0`, `exit`.
const TRACED: [u32; 2] = [24, 25];
const TRACING: [u64; 2] = [0xb7, 0x95];

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
    Clsact(Clsact),
    /// By tcx, and at entry and return of macvlan's handler.
    Handler([OwnedFd; 2], [OwnedFd; 2]),
}

impl Empty {
    /// By tcx.
    pub fn tcx(link: &Link) -> Result<Self> {
        Self::both_sides(link).map(Self::Tcx)
    }

    /// By tcx, and by fentry and fexit of macvlan's handler.
    pub fn handler(link: &Link) -> Result<Self> {
        let target = Target::find(HANDLER, "macvlan").context("could not find macvlan's handler")?;
        let attach =
            |kind| bpf::attach_to_function(&target, kind, &TRACING).context("could not attach to macvlan's handler");
        let [entry, exit] = TRACED;
        // The return first, as the agent does.
        let exit = attach(exit)?;
        Ok(Self::Handler(Self::both_sides(link)?, [attach(entry)?, exit]))
    }

    fn both_sides(link: &Link) -> Result<[OwnedFd; 2]> {
        let program = load(&INSTRUCTIONS)?;
        let index = link.index()?;
        let attach = |kind| {
            link.namespace
                .run(|| bpf::attach(&program, index, kind, 0).context("could not attach by tcx"))
        };
        Ok([attach(TCX[0])?, attach(TCX[1])?])
    }

    /// By a queueing discipline.
    pub fn clsact(link: &Link) -> Result<Self> {
        Clsact::attach(link, &INSTRUCTIONS, &["ingress", "egress"]).map(Self::Clsact)
    }
}

/// A program in a queueing discipline of its own, by the tool `tc`, for as long as it lives.
#[derive(Debug)]
pub struct Clsact(Link);

impl Clsact {
    /// Attaches a program to some sides of an interface.
    pub(crate) fn attach(link: &Link, instructions: &[u64], sides: &[&str]) -> Result<Self> {
        let number_of_pin = PINNED.fetch_add(1, Ordering::Relaxed);
        let pin = PathBuf::from(format!("{PINS}/macvlan-cost-{}-{number_of_pin}\0", id()));
        let text = pin.to_str().context("a path without text")?;
        let program = load(instructions)?;
        let mut attributes = Pin {
            path: text.as_ptr() as u64,
            program: number(&program)?,
            flags: 0,
        };
        bpf::call(OBJ_PIN, &mut attributes).context("could not pin a program")?;
        let path = text.trim_end_matches('\0');
        let attached = link.namespace.run(|| attach_clsact(&link.name, path, sides));
        fs::remove_file(path).context("could not remove a pin")?;
        attached?;
        Ok(Self(link.clone()))
    }
}

impl Drop for Clsact {
    fn drop(&mut self) {
        let Self(link) = self;
        // Where this fails, the interface goes with its lab.
        let _ = link
            .namespace
            .run(|| tc(&format!("qdisc del dev {} clsact", link.name)));
    }
}

fn attach_clsact(name: &str, path: &str, sides: &[&str]) -> Result<()> {
    tc(&format!("qdisc add dev {name} clsact"))?;
    for side in sides {
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

fn load(instructions: &[u64]) -> Result<OwnedFd> {
    bpf::load(SCHED_CLS, instructions).context("could not load a program")
}
