//! The frame that this CPU is handing to macvlan, and what is known of it: `parent_ingress` reads it out of its context,
//! `handle_frame` takes it over, and where nobody has read it before, it reads it from the kernel's memory, which costs
//! ten times as much.
//!
//! `__netif_receive_skb_core` (`net/core/dev.c`, 5.10 to 7.3) runs the TC programs and then the rx handler of the same
//! device for the same skb, with softirqs off. In between the skb may change its device where a VLAN takes it
//! (`vlan_do_receive`), so a tagged frame is not handed over. What another program behind ours or a filter of the
//! ingress hook changes in the MACs of a frame is not seen.

use core::hint::black_box;

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use macvlan_agent_ebpf::{
    abi::{NO_SLOT, key::PARENT_PASSTHRU, limits},
    flow::{Cells, Flow},
    frame::Mac,
    front::{Parent, Whose},
};

use crate::{
    count::{self, Amount},
    direct,
    maps::REALTIME,
    skb::{Handled, Windows},
};

/// How far a frame has come.
pub(crate) type Stage = u64;
/// There is none.
pub(crate) const NONE: Stage = 0;
/// `parent_ingress` has read it.
pub(crate) const READ: Stage = 1;
/// The handler was entered with it, and has not returned.
pub(crate) const ENTERED: Stage = 2;

/// The frame.
#[repr(C)]
pub(crate) struct Entry {
    pub(crate) stage: Stage,
    /// The thread that entered, on PREEMPT_RT.
    pub(crate) thread: u64,
    /// The frame's address.
    pub(crate) skb: u64,
    /// 1 for a fragment that is not the last of its packet, where it is multicast.
    pub(crate) held: u64,
    /// One more than the place of its flow; 0 where it has none. With one it is a single frame, and of all below only its
    /// bytes are said here (`frame.kernel_bytes`).
    pub(crate) flow: u64,
    /// The cells that its flow counts in.
    pub(crate) cells: Cells,
    /// The cell of the parent, by its flow.
    pub(crate) total: u64,
    pub(crate) frame: Handled,
    /// Its slot is [`NO_SLOT`] while user space does not know it.
    pub(crate) parent: Parent,
    /// Whose the MACs are; not looked up for multicast.
    pub(crate) source: Whose,
    pub(crate) destination: Whose,
    pub(crate) windows: Windows,
}

impl Entry {
    /// Whether every unicast frame of its parent is for the one sub-interface.
    #[inline(always)]
    pub(crate) fn is_passthru(&self) -> bool {
        self.parent.flags & PARENT_PASSTHRU != 0
    }

    /// Reads the frame out of the kernel's memory, and looks up whose it is.
    #[inline(always)]
    pub(crate) fn read(&mut self, skb: u64) -> Option<()> {
        let frame = Handled::of(skb, &mut self.windows)?;
        let parent = count::parent(frame.parent).unwrap_or(Parent {
            slot: NO_SLOT,
            flags: 0,
            mac: Mac::default(),
        });
        let multicast = frame.header.is_multicast();
        self.skb = skb;
        self.flow = 0;
        self.frame = frame;
        self.parent = parent;
        self.held = u64::from(multicast && frame.is_early_fragment());
        if !multicast {
            let addressee = addressee(parent, frame.header.destination);
            self.destination = count::addressed(parent.slot, frame.parent, addressee);
            self.source = count::addressed(parent.slot, frame.parent, frame.header.source);
        }
        Some(())
    }

    /// Takes over a frame of this flow.
    #[inline(always)]
    pub(crate) fn take(&mut self, skb: u64, flow: &Flow, bytes: u64) {
        self.stage = READ;
        self.skb = skb;
        self.flow = u64::from(flow.place) + 1;
        self.cells = flow.cells;
        self.total = u64::from(flow.total);
        self.frame.kernel_bytes = bytes;
    }

    /// Says here what its flow says.
    #[inline(always)]
    pub(crate) fn unfold(&mut self) {
        let flow = count::flow_at(self.flow - 1);
        self.flow = 0;
        self.held = 0;
        self.frame.parent = flow.of.parent();
        self.frame.header = flow.of.header();
        self.frame.amount = Amount {
            frames: 1,
            bytes: self.frame.kernel_bytes,
        };
        self.parent = Parent::of_place(flow.parent);
        self.source = flow.source.whose();
        self.destination = flow.destination.whose();
    }
}

/// Where the kernel finds the sub-interface that a unicast frame is for.
#[inline(always)]
pub(crate) fn addressee(parent: Parent, destination: Mac) -> Mac {
    if parent.flags & PARENT_PASSTHRU != 0 {
        Mac::default()
    } else {
        destination
    }
}

/// This thread, where another one may interrupt it; and the place of its frame on this CPU.
#[inline(always)]
pub(crate) fn mine() -> (Option<u64>, &'static mut Entry) {
    if REALTIME.load() == 0 {
        return (None, at(count::cpu()));
    }
    let thread = bpf_get_current_pid_tgid();
    let entries = u64::from(limits::ENTRIES);
    (Some(thread), at(count::cpu() * entries + thread % entries))
}

/// The place of the one frame of a CPU, where no thread interrupts another.
#[inline(always)]
pub(crate) fn only(cpu: u64) -> &'static mut Entry {
    // Else the compiler adds up the address of each field anew.
    black_box(at(cpu))
}

#[inline(always)]
fn at(place: u64) -> &'static mut Entry {
    // SAFETY: every place that is looked for is inside the map; it is this CPU's, and the programs that use it run one
    // after the other.
    unsafe { &mut *direct::entry(place) }
}
