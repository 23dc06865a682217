//! Raw tracepoint `skb:kfree_skb`: where the kernel gives a frame up, and why (`trace_kfree_skb` in
//! `net/core/skbuff.c`). The record's first two arguments are the same since 5.10, the reason follows since 5.17.
//!
//! A busy host frees a million frames a second that are none of ours. So the reason, or where no reason says it the
//! function, decides first; only for the few that may matter is the frame looked at.
//!
//! Frames are freed with softirqs on as well, so another hook may interrupt this one: its counters are its own, and the
//! kernel does not run it inside itself.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use macvlan_agent_ebpf::{
    abi::{
        Counter, DeviceEntry, Direction, HANDLER_ATTACHED, Location, NO_SLOT, ParentKey, SlotEntry, SubInterfaceKey,
        key::{DEVICE_NO_CARRIER, DEVICE_TAP, PARENT_KEEPS_SOURCE},
        label::Cause,
        limits,
    },
    frame::Says,
    front::Parent,
    verdict::bridged,
};

use super::{handle_frame::is_handled, parent_egress};
use crate::{
    count::{self, Tally},
    direct,
    maps::{DEVICES, LOCATIONS, REASONS, SAYS_REASON, UNSENT_UNCOUNTED, WINDOWS},
    skb::{self, Handled, Windows},
};

#[raw_tracepoint(tracepoint = "kfree_skb")]
pub(crate) fn frame_free(context: RawTracePointContext) -> i32 {
    let cause = cause(&context);
    if cause != Cause::None as u32 {
        let _ = freed(context.arg(0), cause);
    }
    0
}

/// What it means that a frame is freed, as far as that can be told without looking at it.
#[inline(always)]
fn cause(context: &RawTracePointContext) -> u32 {
    // The third argument is read only where there is one: the verifier leaves the other branch out.
    if SAYS_REASON.load() != 0 {
        let reason: u32 = context.arg(2);
        let cause = REASONS.get(reason).copied().unwrap_or(Cause::None as u32);
        if cause != Cause::ByLocation as u32 {
            return cause;
        }
    }
    by_location(context.arg(1))
}

#[inline(always)]
fn by_location(address: u64) -> u32 {
    // SAFETY: the settings are always there; each word is read whole.
    let handler = unsafe { (&raw const (*direct::settings()).handler).read_volatile() };
    if handler.contains(address) {
        return Cause::Handler as u32;
    }
    let Some(locations) = LOCATIONS.get(0) else {
        return Cause::None as u32;
    };
    let mut index = 0;
    while index < limits::LOCATIONS {
        let Location { range, cause, .. } = &locations.functions[index];
        if range.contains(address) {
            return *cause;
        }
        index += 1;
    }
    Cause::None as u32
}

#[inline(always)]
fn freed(skb: u64, cause: u32) -> Option<()> {
    // SAFETY: the lookup succeeded; the element is this CPU's and this program's.
    let windows = unsafe { &mut *WINDOWS.get_ptr_mut(0)? };
    let place = skb::device_of(skb, windows)?;
    if cause == Cause::Neighbour as u32 {
        let device = device(place)?;
        count::cell(device.slot)?.add(Counter::NeighbourFailedPackets, skb::frames_of(skb));
        return Some(());
    }
    if cause == Cause::Forward as u32 {
        return not_forwarded(skb, device(place)?, windows);
    }
    if cause == Cause::TapQueue as u32 {
        return tap_queue_full(skb, device(place)?, windows);
    }
    if let Some(parent) = count::parent(place) {
        return on_parent(skb, cause, parent, windows);
    }
    if cause == Cause::Transmit as u32 {
        return unsent(skb, device(place)?);
    }
    None
}

#[inline(always)]
fn device(place: ParentKey) -> Option<DeviceEntry> {
    // SAFETY: the entry is copied at once; user space replaces entries whole.
    unsafe { DEVICES.get(place) }.copied()
}

#[inline(always)]
fn on_parent(skb: u64, cause: u32, parent: Parent, windows: &mut Windows) -> Option<()> {
    if cause == Cause::Handler as u32 {
        return queue_full(skb, parent, windows);
    }
    let total = count::cell(parent.slot)?;
    if cause == Cause::Transmit as u32 {
        return attempt_failed(&Handled::pushed(skb, windows)?, parent);
    }
    total.add(Counter::OtherwiseDroppedSkbs, 1);
    if cause == Cause::Backlog as u32 {
        let frame = Handled::of(skb, windows)?;
        let source = count::sub_interface(SubInterfaceKey::of(frame.parent, frame.header.source));
        let destination = count::sub_interface(SubInterfaceKey::of(frame.parent, frame.header.destination));
        if bridged(source.mode, destination.mode) {
            total.add(Counter::SiblingBacklogFullFrames, frame.amount.frames);
        }
    }
    Some(())
}

/// In the handler a copy is freed where the broadcast queue is full (`macvlan_broadcast_enqueue`, 5.10 to 6.18; it is
/// inlined), and the frame itself where a sub-interface was down or one in mode source keeps what it took.
#[inline(always)]
fn queue_full(skb: u64, parent: Parent, windows: &mut Windows) -> Option<()> {
    let frame = Handled::of(skb, windows)?;
    if !frame.header.is_multicast() || is_handled(skb) {
        return None;
    }
    let seen = count::state() & HANDLER_ATTACHED != 0;
    if !seen && parent.flags & PARENT_KEEPS_SOURCE != 0 {
        return None;
    }
    count::cell(parent.slot)?.add(Counter::BroadcastQueueFullFrames, frame.amount.frames);
    Some(())
}

/// What a sub-interface threw away because its parent has no carrier or is down (`noop_enqueue`).
#[inline(always)]
fn unsent(skb: u64, device: DeviceEntry) -> Option<()> {
    if UNSENT_UNCOUNTED.load() == 0 {
        return None;
    }
    // Without reasons the same function frees the pieces of frames that were received well.
    if SAYS_REASON.load() == 0 && device.flags & DEVICE_NO_CARRIER == 0 {
        return None;
    }
    count::cell(device.slot)?.add(Counter::UnsentFrames, skb::frames_of(skb));
    Some(())
}

/// A frame that was counted as an attempt at the parent's egress, and dropped behind it: it is told as one that could
/// not be sent.
#[inline(always)]
fn attempt_failed(frame: &Handled, parent: Parent) -> Option<()> {
    let total = count::cell(parent.slot)?;
    if frame.header.source == parent.mac {
        let addressee = count::sub_interface(SubInterfaceKey::of(frame.parent, frame.header.destination));
        if !frame.header.is_multicast() && addressee.is_known() {
            unsent_attempt(count::cell(addressee.slot)?, total, Direction::ParentToChild, frame);
        }
        return Some(());
    }
    let source = count::sub_interface(SubInterfaceKey::of(frame.parent, frame.header.source));
    let tally = count::cell(source.slot)?;
    if frame.header.is_multicast() {
        return unsent_ask(frame, tally, total, source);
    }
    if frame.header.destination == parent.mac {
        unsent_attempt(tally, total, Direction::ChildToParent, frame);
        return Some(());
    }
    let addressee = count::sub_interface(SubInterfaceKey::of(frame.parent, frame.header.destination));
    if addressee.is_known() && !bridged(source.mode, addressee.mode) {
        unsent_attempt(tally, total, Direction::Sibling, frame);
    }
    Some(())
}

#[inline(always)]
fn unsent_attempt(tally: Tally, total: Tally, direction: Direction, frame: &Handled) {
    tally.unsent_attempt(direction, false, frame.amount.frames);
    total.unsent_attempt(direction, false, frame.amount.frames);
}

/// The same of an ARP request or a neighbour solicitation of a sub-interface.
#[inline(always)]
fn unsent_ask(frame: &Handled, tally: Tally, total: Tally, source: SlotEntry) -> Option<()> {
    let resolution = frame.resolution();
    if resolution.says != Says::Asks {
        return None;
    }
    let direction = parent_egress::asked_of(&frame.header, frame.parent, source, resolution.address)?;
    tally.unsent_attempt(direction, true, 1);
    total.unsent_attempt(direction, true, 1);
    Some(())
}

/// `tap_handle_frame`: it was counted as delivered, and then the queue of the character device was full.
#[inline(always)]
fn tap_queue_full(skb: u64, device: DeviceEntry, windows: &mut Windows) -> Option<()> {
    if device.flags & DEVICE_TAP == 0 {
        return None;
    }
    let tally = count::cell(device.slot)?;
    tally.add(Counter::QueueFullSkbs, 1);
    // Its device is the macvtap by now, and the Ethernet header is part of it again.
    let frame = Handled::pushed(skb, windows)?;
    if frame.header.is_multicast() {
        return Some(());
    }
    let source = count::sub_interface(SubInterfaceKey::of(device.parent, frame.header.source));
    let own = count::sub_interface(SubInterfaceKey::of(device.parent, frame.header.destination));
    let first = if source.slot != NO_SLOT && bridged(source.mode, own.mode) {
        Counter::QueueFullSiblingFrames
    } else {
        Counter::QueueFullExternalFrames
    };
    tally.add(first, frame.amount.frames);
    tally.add_at(first, 1, frame.amount.bytes);
    Some(())
}

/// A frame between siblings that is longer than the parent takes: the parent's `rx_dropped` counts it
/// (`____dev_forward_skb`), its device is still the sender.
#[inline(always)]
fn not_forwarded(skb: u64, device: DeviceEntry, windows: &mut Windows) -> Option<()> {
    let frame = Handled::of(skb, windows)?;
    if frame.header.is_multicast() {
        return None;
    }
    let parent = count::parent(device.parent)?;
    count::cell(parent.slot)?.add(Counter::OtherwiseDroppedSkbs, 1);
    Some(())
}
