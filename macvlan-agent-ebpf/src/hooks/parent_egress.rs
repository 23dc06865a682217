//! TC egress of a parent: what its sub-interfaces and its own stack send to the wire. The only place where a frame
//! between the two shows: the kernel sends it out as a success and nothing returns it (`drivers/net/macvlan.c`,
//! `macvlan_queue_xmit`, label `xmit_world`, 5.10 to 7.1).

use aya_ebpf::{EbpfContext as _, bindings::__sk_buff, macros::classifier, programs::TcContext};
use macvlan_agent_ebpf::{
    abi::{AddressKey, AddressOwner, AskKind, Counter, Direction, NO_SLOT, ParentKey, SlotEntry, key::PARENT_PASSTHRU},
    flow::{self, Cells, Flow, Kind, Likeness},
    frame::{Header, Says},
    front::{Parent, Whose},
    verdict::bridged,
};

use super::parent_ingress::NEXT;
use crate::{
    count::{self, Tally},
    maps::ADDRESSES,
    skb::{self, Frame},
};

#[classifier]
pub(crate) fn parent_egress(context: TcContext) -> i32 {
    if common(&context).is_none() {
        any(context.as_ptr().cast());
    }
    NEXT
}

/// Any frame at all, as at ingress.
#[inline(never)]
fn any(skb: *mut __sk_buff) {
    let context = &TcContext::new(skb);
    if let Some(frame) = Frame::of(context) {
        let _ = count_frame(context, &frame);
    }
}

/// What nearly all frames are: one frame, unicast, to the world outside, and what goes wrong most often, to the parent.
/// None for all else, and for the first one of a flow: nothing was done with it.
#[inline(always)]
fn common(context: &TcContext) -> Option<()> {
    let cpu = count::cpu();
    let (first, last) = skb::plain(context)?;
    let flow = count::flow(first, last, cpu);
    if flow.is_of(first, last) && flow.of.parent == skb::sent_by(context) {
        let kind = flow.kind(count::state());
        if kind.is(flow::EGRESS) {
            let few = count::cells().few(flow.cells.owner)?;
            few.pair(Counter::TransmittedExternalFrames, skb::amount(context));
            return Some(());
        }
        if kind.is_known() && kind.has(flow::EGRESS) {
            return special(context, flow, kind);
        }
    }
    learn(context.as_ptr().cast(), cpu);
    None
}

/// What is a little more than to count on its owner.
#[inline(always)]
fn special(context: &TcContext, flow: &Flow, kind: Kind) -> Option<()> {
    if kind.has(flow::LOOKALIKE) && skb::is_loopback(context) {
        return None;
    }
    let owner = flow.cells.owner;
    if kind.has(flow::UNCOUNTED) {
        return (owner != flow::EACH).then_some(());
    }
    let cells = count::cells();
    let few = cells.few(owner)?;
    few.pair(Counter::TransmittedExternalFrames, skb::amount(context));
    if kind.has(flow::ATTEMPT) {
        let (direction, now) = (Direction::ChildToParent, count::now());
        count::attempted(flow.source.whose().slot(), direction);
        few.marks_rest();
        for place in [owner, flow.total] {
            if let Some(rest) = cells.rest(place) {
                rest.attempt(direction, AskKind::Unicast, 1, now);
            }
        }
    }
    Some(())
}

/// Finds out what frames are that are like this one.
#[inline(never)]
fn learn(skb: *mut __sk_buff, cpu: u64) {
    let context = &TcContext::new(skb);
    let Some((first, last)) = skb::plain(context) else {
        return;
    };
    let of = Likeness {
        first,
        last,
        parent: skb::sent_by(context),
        state: count::state(),
    };
    count::learnt(cpu, found(&of).unwrap_or(Flow::of_each(of)).of_kind(flow::EGRESS));
}

/// None where they are to be looked at one by one.
#[inline(always)]
fn found(of: &Likeness) -> Option<Flow> {
    let header = of.header();
    let place = count::parent_place(of.parent())?;
    let parent = Parent::of_place(place);
    if header.is_multicast() || parent.flags & PARENT_PASSTHRU != 0 {
        return None;
    }
    let destination = count::in_front(parent.slot, header.destination)?;
    // What the parent's own stack sends to the world is not counted here.
    let from_parent = header.source == parent.mac;
    let is_attempt = !from_parent && header.destination == parent.mac;
    let source = if from_parent {
        Whose::NOBODY
    } else {
        count::in_front(parent.slot, header.source)?
    };
    // Whom the parent's MAC belongs to as well is not asked.
    if destination.is_known() && !is_attempt || !from_parent && !source.is_known() {
        return None;
    }
    let cpu = count::cpu();
    Some(
        Flow {
            of: *of,
            cells: Cells {
                owner: count::place_or_nothing(source, cpu),
                sibling: flow::NOTHING,
            },
            total: count::place_of(parent.slot, cpu),
            source: source.packed(),
            destination: destination.packed(),
            place: 0,
            parent: place,
        }
        .of_kind(if is_attempt {
            flow::ATTEMPT
        } else if from_parent {
            flow::UNCOUNTED
        } else {
            0
        }),
    )
}

#[inline(always)]
fn count_frame(context: &TcContext, frame: &Frame) -> Option<()> {
    let parent = count::parent(frame.parent)?;
    // One MAC for both: what the sub-interface sent and what the parent's own stack did looks alike.
    if parent.flags & PARENT_PASSTHRU != 0 {
        return None;
    }
    if frame.header.source == parent.mac {
        return from_parent(context, frame, parent);
    }
    let source = count::addressed(parent.slot, frame.parent, frame.header.source).entry();
    let tally = count::owner(source.slot, frame.parent, frame.header.source)?;
    tally.pair(Counter::TransmittedExternalFrames, frame.amount);
    if frame.header.is_multicast() {
        return asked(context, frame, parent, source, tally);
    }
    if frame.header.destination == parent.mac {
        count::attempted(source.slot, Direction::ChildToParent);
        attempt(
            tally,
            parent,
            Direction::ChildToParent,
            AskKind::Unicast,
            frame.amount.frames,
        );
        return Some(());
    }
    let addressee = count::addressed(parent.slot, frame.parent, frame.header.destination).entry();
    if !addressee.is_known() {
        return None;
    }
    if bridged(source.mode, addressee.mode) {
        // Sent out because the kernel forgets a sub-interface that is down, not because of the modes.
        count::sent_out(addressee.slot);
        count::cell(addressee.slot)?.add(Counter::InterfaceDownFrames, frame.amount.frames);
    } else {
        count::attempted(source.slot, Direction::Sibling);
        attempt(tally, parent, Direction::Sibling, AskKind::Unicast, frame.amount.frames);
    }
    Some(())
}

/// Counts an attempt on its sub-interface and on the parent.
#[inline(always)]
fn attempt(tally: Tally, parent: Parent, direction: Direction, kind: AskKind, frames: u64) {
    let now = count::now();
    tally.attempt(direction, kind, frames, now);
    if let Some(total) = count::cell(parent.slot) {
        total.attempt(direction, kind, frames, now);
    }
}

#[inline(always)]
fn address(netns: u32, parent: u32, address: [u8; 16]) -> Option<&'static AddressOwner> {
    // SAFETY: the entry stays readable for as long as the program runs; user space replaces it whole.
    unsafe { ADDRESSES.get(AddressKey { netns, parent, address }) }
}

#[inline(always)]
fn kind(frame: &Frame) -> AskKind {
    if frame.header.is_arp() {
        AskKind::Arp
    } else {
        AskKind::Ndp
    }
}

/// A sub-interface asks for an address: the host's, or a sibling's that it cannot reach inside.
#[inline(always)]
fn asked(context: &TcContext, frame: &Frame, parent: Parent, source: SlotEntry, tally: Tally) -> Option<()> {
    let resolution = frame.resolution(context);
    if resolution.says != Says::Asks {
        return None;
    }
    let target = resolution.address;
    let direction = asked_of(&frame.header, frame.parent, source, target)?;
    attempt(tally, parent, direction, kind(frame), 1);
    count::ask(
        frame.parent,
        frame.header.source,
        target,
        direction,
        NO_SLOT,
        count::now(),
    );
    Some(())
}

/// Whom `source` asks for `target`, where macvlan does not carry the answer: None for an address of a sibling that it
/// reaches inside, and for one that is nobody's here.
#[inline(always)]
pub(crate) fn asked_of(header: &Header, parent: ParentKey, source: SlotEntry, target: [u8; 16]) -> Option<Direction> {
    let host_scope = if header.is_arp() { 0 } else { parent.ifindex };
    let owner = address(parent.netns, parent.ifindex, target);
    if owner.is_some_and(|owner| owner.slot != NO_SLOT) {
        let owner = owner?;
        if owner.slot == source.slot || bridged(source.mode, owner.mode) {
            return None;
        }
        return Some(Direction::Sibling);
    }
    if owner.is_none() {
        address(parent.netns, host_scope, target)?;
    }
    Some(Direction::ChildToParent)
}

/// The parent's own stack: to a sub-interface's MAC, or asking for its address.
#[inline(always)]
fn from_parent(context: &TcContext, frame: &Frame, parent: Parent) -> Option<()> {
    if !frame.header.is_multicast() {
        let addressee = count::addressed(parent.slot, frame.parent, frame.header.destination).entry();
        count::attempted(addressee.slot, Direction::ParentToChild);
        attempt(
            count::cell(addressee.slot)?,
            parent,
            Direction::ParentToChild,
            AskKind::Unicast,
            frame.amount.frames,
        );
        return Some(());
    }
    let resolution = frame.resolution(context);
    if resolution.says != Says::Asks {
        return None;
    }
    let target = resolution.address;
    let owner = address(frame.parent.netns, frame.parent.ifindex, target)?;
    let tally = count::cell(owner.slot)?;
    attempt(tally, parent, Direction::ParentToChild, kind(frame), 1);
    count::ask(
        frame.parent,
        frame.header.source,
        target,
        Direction::ParentToChild,
        owner.slot,
        count::now(),
    );
    Some(())
}
