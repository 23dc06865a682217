//! A TC program that does nothing, on both sides of an interface: what any program there costs at least.

use std::{
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::PathBuf,
    process::{Command, id},
};

use anyhow::{Context, Result, ensure};

use crate::lab::Link;

const PROG_LOAD: libc::c_int = 5;
const OBJ_PIN: libc::c_int = 6;
const LINK_CREATE: libc::c_int = 28;
const SCHED_CLS: u32 = 3;
/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS`.
const TCX: [u32; 2] = [46, 47];
const PINS: &str = "/sys/fs/bpf";

/// `r0 = -1` (`TC_ACT_UNSPEC`), `exit`.
const INSTRUCTIONS: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];
const LICENSE: &[u8; 4] = b"GPL\0";

/// The first fields of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
}

/// The same for `BPF_OBJ_PIN`.
#[repr(C)]
struct Pin {
    path: u64,
    program: u32,
    flags: u32,
}

/// The same for `BPF_LINK_CREATE`.
#[repr(C)]
struct Attach {
    program: u32,
    index: u32,
    kind: u32,
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
            let attributes = Attach {
                program: number(&program)?,
                index,
                kind,
                flags: 0,
            };
            link.namespace
                .run(|| bpf(LINK_CREATE, &attributes).context("could not attach by tcx"))
        };
        Ok(Self::Tcx([attach(TCX[0])?, attach(TCX[1])?]))
    }

    /// By a queueing discipline, with the tool `tc`; the interface must be in the process's own namespace.
    pub fn clsact(link: &Link) -> Result<Self> {
        let pin = PathBuf::from(format!("{PINS}/macvlan-cost-{}\0", id()));
        let text = pin.to_str().context("a path without text")?;
        let program = load()?;
        let attributes = Pin {
            path: text.as_ptr() as u64,
            program: number(&program)?,
            flags: 0,
        };
        call(OBJ_PIN, &attributes).context("could not pin a program")?;
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
    let attributes = Load {
        kind: SCHED_CLS,
        count: u32::try_from(INSTRUCTIONS.len())?,
        instructions: INSTRUCTIONS.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
    };
    bpf(PROG_LOAD, &attributes).context("could not load an empty program")
}

fn number(descriptor: &OwnedFd) -> Result<u32> {
    Ok(u32::try_from(descriptor.as_raw_fd())?)
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    let descriptor = call(command, attributes)?;
    // SAFETY: the call returned a new descriptor, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn call<T>(command: libc::c_int, attributes: &T) -> io::Result<i32> {
    // SAFETY: the attributes are the first fields of the command's, in the kernel's layout, of the length that is said;
    // what they point to lives during the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}
