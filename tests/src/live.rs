//! Frames out of the kernel itself: test runs of an XDP program whose frames go on living
//! (`BPF_F_TEST_XDP_LIVE_FRAMES`, 5.18 and newer). No frame costs a system call, nor a wire.

use std::{
    os::fd::OwnedFd,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result};

use crate::{
    bpf::{self, instruction},
    lab::{Mac, veth},
    netns::Namespace,
};

const PROG_TEST_RUN: libc::c_int = 10;
const XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
const DRIVER_MODE: u32 = 1 << 2;
const LIVE_FRAMES: u32 = 1 << 1;
/// Frames that the kernel makes and hands on at once.
const AT_ONCE: u32 = 64;
/// Odd numbers and a shift that leave no two numbers alike and none beside its neighbour (as `MurmurHash3` ends).
const SCATTER: [u32; 2] = [0x85eb_ca6b, 0xc2b2_ae35];
const SCATTER_SHIFT: u32 = 13;

/// `w0 = XDP_PASS`, `exit`.
const PASS: [u64; 2] = [instruction(0xb4, [0, 0], 0, 2), instruction(0x95, [0, 0], 0, 0)];

/// `union bpf_attr` for `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    result: u32,
    length: u32,
    length_out: u32,
    data: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_length: u32,
    context_length_out: u32,
    context: u64,
    context_out: u64,
    flags: u32,
    processor: u32,
    batch: u32,
    padding: u32,
}

/// `struct xdp_md`.
#[repr(C)]
#[derive(Default)]
struct Metadata {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress: u32,
    queue: u32,
    egress: u32,
}

static SOURCES: AtomicU32 = AtomicU32::new(0);

/// A program that lets frames pass.
#[derive(Debug)]
pub struct Source {
    program: OwnedFd,
    /// Attached somewhere for as long as it lives: else the kernel would change its table of XDP programs for each test
    /// run, and wait for all processors to see that.
    _attached: OwnedFd,
}

impl Source {
    /// The frames are as they are given. The program stands at a veth in `namespace`, which nothing passes.
    pub fn plain(namespace: &Namespace) -> Result<Self> {
        Self::new(namespace, &PASS)
    }

    fn new(namespace: &Namespace, instructions: &[u64]) -> Result<Self> {
        let number = SOURCES.fetch_add(1, Ordering::Relaxed);
        let ends = [format!("source{number}"), format!("nothing{number}")];
        let (anchor, _) = veth(namespace, &ends[0], namespace, &ends[1])?;
        let program = bpf::load(XDP, instructions).context("could not load an XDP program")?;
        let index = anchor.index()?;
        let attach =
            || bpf::attach(&program, index, ATTACH_XDP, DRIVER_MODE).context("could not attach an XDP program");
        Ok(Self {
            _attached: namespace.run(attach)?,
            program,
        })
    }

    /// Each frame's destination becomes the [`mac`] of a random number below `count`; its first two bytes stay.
    pub fn random(namespace: &Namespace, count: u32) -> Result<Self> {
        let [one, other] = SCATTER.map(u32::cast_signed);
        let choose = [
            // r6 = r1: the context.
            instruction(0xbf, [6, 1], 0, 0),
            // call bpf_get_prandom_u32; w0 %= count.
            instruction(0x85, [0, 0], 0, 7),
            instruction(0x94, [0, 0], 0, i32::try_from(count)?),
            // w0 *= one; w1 = w0; w1 >>= 13; w0 ^= w1; w0 *= other.
            instruction(0x24, [0, 0], 0, one),
            instruction(0xbc, [1, 0], 0, 0),
            instruction(0x74, [1, 0], 0, SCATTER_SHIFT.cast_signed()),
            instruction(0xac, [0, 1], 0, 0),
            instruction(0x24, [0, 0], 0, other),
            // r0 = be32 r0.
            instruction(0xdc, [0, 0], 0, 32),
            // r2 = data; r3 = data_end; r4 = r2 + 14.
            instruction(0x61, [2, 6], 0, 0),
            instruction(0x61, [3, 6], 4, 0),
            instruction(0xbf, [4, 2], 0, 0),
            instruction(0x07, [4, 0], 0, 14),
            // if r4 > r3, leave out the next; *(u32 *)(r2 + 2) = w0.
            instruction(0x2d, [4, 3], 1, 0),
            instruction(0x63, [2, 0], 2, 0),
        ];
        Self::new(namespace, &[choose.as_slice(), &PASS].concat())
    }

    /// Lets `count` copies of `frame` arrive at the interface `index` of the calling thread's namespace. Returns how
    /// many nanoseconds each took, by the kernel's clock, which leaves out what it does before the first.
    pub fn arrive(&self, index: u32, frame: &[u8], count: u32) -> Result<u32> {
        let length = u32::try_from(frame.len())?;
        let context = Metadata {
            data_end: length,
            ingress: index,
            ..Metadata::default()
        };
        let mut run = TestRun {
            program: bpf::number(&self.program)?,
            length,
            data: frame.as_ptr() as u64,
            repeat: count,
            context_length: u32::try_from(size_of_val(&context))?,
            context: (&raw const context) as u64,
            flags: LIVE_FRAMES,
            batch: AT_ONCE,
            ..TestRun::default()
        };
        bpf::call(PROG_TEST_RUN, &mut run).context("the kernel makes no live frames (before 5.18?)")?;
        Ok(run.duration)
    }
}

/// The MAC number so many of those that begin with two bytes: as far from its neighbours as random ones are.
#[must_use]
pub fn mac([first, second]: [u8; 2], number: u32) -> Mac {
    let [one, other] = SCATTER;
    let number = number.wrapping_mul(one);
    let [a, b, c, d] = (number ^ number >> SCATTER_SHIFT).wrapping_mul(other).to_be_bytes();
    Mac([first, second, a, b, c, d])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::mac;

    #[test]
    fn no_two_numbers_have_one_mac() {
        let all: BTreeSet<_> = (0..20_000).map(|number| mac([2, 1], number)).collect();
        assert_eq!(all.len(), 20_000);
    }
}
