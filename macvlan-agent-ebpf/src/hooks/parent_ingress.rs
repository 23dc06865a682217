//! TC ingress of a parent: frames from the wire, frames that macvlan loops between siblings in bridge mode, and
//! whatever the switch sends back.
//!
//! `__netif_receive_skb_core` (`net/core/dev.c`, 5.10 to 7.1) runs it before the rx handler.

use core::hint::black_box;

use aya_ebpf::{EbpfContext as _, bindings::__sk_buff, macros::classifier, programs::TcContext};
use macvlan_agent_ebpf::{
    abi::{Counter, Direction, HANDLER_ATTACHED, Mode, SlotEntry, key::PARENT_PASSTHRU, label::Reflection},
    flow::{self, Cells, Flow, Likeness},
    frame::{Mac, Says},
    front::{Parent, Whose},
    verdict::{bridged, keeps_own_multicast},
};

use crate::{
    count::{self, Amount, Tally},
    entry,
    skb::{self, Frame},
};

/// `TCX_NEXT`, `TC_ACT_UNSPEC`: whoever comes next decides.
pub(crate) const NEXT: i32 = -1;

#[classifier]
pub(crate) fn parent_ingress(context: TcContext) -> i32 {
    if common(&context).is_none() {
        any(context.as_ptr().cast(), count::state() & HANDLER_ATTACHED);
    }
    NEXT
}

/// What nearly all frames are: one frame, unicast, not about addresses, from outside or looped inside, for the parent or
/// for a sub-interface that is up. None for all else, and for the first one of a flow: nothing was done with it.
#[inline(always)]
fn common(context: &TcContext) -> Option<()> {
    let cpu = count::cpu();
    let (first, last) = skb::plain(context)?;
    let flow = count::flow(first, last, cpu);
    if !flow.is_of(first, last) || flow.of.parent != skb::received_by(context) {
        learn(context.as_ptr().cast(), cpu);
        return None;
    }
    let kind = flow.kind(count::state());
    if !kind.is(0) {
        // Else the compiler asks for both kinds at once, before this.
        let kind = black_box(kind);
        if kind.is(flow::HANDED) {
            hand_over_flow(context, cpu, flow);
            return Some(());
        }
        if !kind.is_known() || kind.has(flow::EGRESS) {
            learn(context.as_ptr().cast(), cpu);
            return None;
        }
        if kind.has(flow::LOOKALIKE) && skb::is_loopback(context) || kind.has(flow::IPV6) && skb::may_be_icmpv6(context)
        {
            return None;
        }
        if kind.has(flow::HANDED) {
            hand_over_flow(context, cpu, flow);
            return Some(());
        }
        if kind.has(flow::UNCOUNTED) {
            return (flow.cells.owner != flow::EACH).then_some(());
        }
        if kind.has(flow::SIBLING) {
            looped(flow.cells, skb::amount(context));
            return Some(());
        }
    }
    // What nobody saw being delivered is inferred: it is for a sub-interface that is up.
    count::cells()
        .few(flow.cells.owner)?
        .delivered(false, skb::amount(context));
    Some(())
}

/// From a sibling.
#[inline(always)]
fn looped(cells: Cells, amount: Amount) {
    if let Some(few) = count::cells().few(cells.owner) {
        few.delivered(true, amount);
    }
    if let Some(few) = count::cells().few(cells.sibling) {
        few.pair(Counter::TransmittedSiblingFrames, amount);
    }
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
        parent: skb::received_by(context),
        state: count::state(),
    };
    count::learnt(cpu, found(&of).unwrap_or(Flow::of_each(of)));
}

/// None where they are to be looked at one by one.
#[inline(always)]
fn found(of: &Likeness) -> Option<Flow> {
    let header = of.header();
    if header.is_multicast() || header.is_arp() {
        return None;
    }
    let place = count::parent_place(of.parent())?;
    let parent = Parent::of_place(place);
    if parent.flags & PARENT_PASSTHRU != 0 || header.source == parent.mac {
        return None;
    }
    let destination = count::in_front(parent.slot, header.destination)?;
    let source = count::in_front(parent.slot, header.source)?;
    if source.is_known() && !source.is_bridged_with(destination) {
        return None;
    }
    if destination.is_known() {
        if !destination.is_up() || destination.is_in(Mode::Source) {
            return None;
        }
    } else if header.destination != parent.mac {
        return None;
    }
    let cpu = count::cpu();
    let cells = Cells {
        owner: count::place_or_nothing(destination, cpu),
        sibling: count::place_or_nothing(source, cpu),
    };
    let what = if of.state & HANDLER_ATTACHED != 0 {
        flow::HANDED
    } else if !destination.is_known() {
        flow::UNCOUNTED
    } else if source.is_known() {
        flow::SIBLING
    } else {
        0
    };
    Some(
        Flow {
            of: *of,
            cells,
            total: count::place_of(parent.slot, cpu),
            source: source.packed(),
            destination: destination.packed(),
            place: 0,
            parent: place,
        }
        .of_kind(what),
    )
}

/// Any frame at all. It is a function of its own, so that the kernel's verifier follows it once, however it comes there.
#[inline(never)]
fn any(skb: *mut __sk_buff, handled: u64) {
    let context = &TcContext::new(skb);
    let handled = handled != 0;
    let counted = Frame::of(context).and_then(|frame| count_frame(context, &frame, handled));
    if handled && counted.is_none() {
        forget();
    }
}

/// What is left of a frame that never reached the handler is not the next one's.
#[inline(always)]
fn forget() {
    let (_, entry) = entry::mine();
    if entry.stage == entry::READ {
        entry.stage = entry::NONE;
    }
}

/// Hands a frame of a flow to [`super::handle_frame`].
#[inline(always)]
fn hand_over_flow(context: &TcContext, cpu: u64, flow: &Flow) {
    // A frame whose return was missed is left to the next entry. Where there are flows no thread interrupts another.
    let entry = entry::only(cpu);
    if entry.stage != entry::ENTERED {
        entry.take(skb::address(context), flow, skb::amount(context).bytes);
    }
}

/// Hands any frame to it.
#[inline(always)]
fn hand_over(context: &TcContext, frame: &Frame, parent: Parent, source: Whose, destination: Whose) {
    let (_, entry) = entry::mine();
    // A frame whose return was missed is left to the next entry.
    if entry.stage == entry::ENTERED {
        return;
    }
    // The tag may bring it to another device first.
    if frame.tagged {
        entry.stage = entry::NONE;
        return;
    }
    entry.stage = entry::READ;
    entry.skb = skb::address(context);
    entry.flow = 0;
    entry.frame = frame.handed(context);
    entry.parent = parent;
    entry.source = source;
    entry.destination = destination;
    entry.held = u64::from(frame.header.is_multicast() && frame.is_early_fragment(context));
}

/// Gives None where the frame was not handed over.
#[inline(always)]
fn count_frame(context: &TcContext, frame: &Frame, handled: bool) -> Option<()> {
    let parent = count::parent(frame.parent)?;
    if parent.flags & PARENT_PASSTHRU != 0 {
        let addressee = count::addressed(parent.slot, frame.parent, Mac::default());
        if handled {
            hand_over(context, frame, parent, Whose::NOBODY, addressee);
        } else {
            let _ = passthru(frame, parent, addressee.entry());
        }
        return Some(());
    }
    let source = count::addressed(parent.slot, frame.parent, frame.header.source);
    if frame.header.is_multicast() {
        if handled {
            hand_over(context, frame, parent, source, Whose::NOBODY);
        }
        let _ = multicast(context, frame, parent, source.entry(), handled);
        return Some(());
    }
    let destination = count::addressed(parent.slot, frame.parent, frame.header.destination);
    if handled {
        hand_over(context, frame, parent, source, destination);
    }
    let (source, destination) = (source.entry(), destination.entry());
    let resolution = frame.resolution(context);
    if resolution.says == Says::Answers {
        count::answered(frame.parent, frame.header.destination, resolution.address, parent.slot);
    }
    // One that is down is not found inside: what comes for it was sent out and returned by the switch.
    let siblings = bridged(source.mode, destination.mode);
    let looped = siblings && destination.up != 0;
    if looped {
        if !handled && let Some(tally) = count::cell(source.slot) {
            tally.pair(Counter::TransmittedSiblingFrames, frame.amount);
        }
    } else {
        reflected_unicast(frame, parent, source, destination);
    }
    if !handled
        && inferred(frame, parent, destination)
        && let Some(tally) = count::owner(destination.slot, frame.parent, frame.header.destination)
    {
        if destination.is_known() && destination.up == 0 {
            // What a sibling sent was counted when it was sent out.
            if !siblings {
                down(tally, frame);
            }
        } else {
            tally.delivered(looped, frame.amount, frame.kernel_bytes);
        }
    }
    Some(())
}

/// For one that is down as far as user space knows; it asks the kernel whether that was so when it tells the count.
#[inline(always)]
fn down(tally: Tally, frame: &Frame) {
    tally.rare_pair(Counter::ApparentlyDownFrames, frame.amount);
    tally.add(Counter::ApparentlyDownSkbs, 1);
}

/// Whether a frame is a sub-interface's by its destination: not the parent's own, and not one in mode source, which gets
/// copies by the sender's MAC.
#[inline(always)]
fn inferred(frame: &Frame, parent: Parent, destination: SlotEntry) -> bool {
    if destination.is_known() {
        destination.mode != Mode::Source as u8
    } else {
        frame.header.destination != parent.mac
    }
}

/// Every unicast frame goes to the one sub-interface; its MAC is the parent's, so nothing tells a reflection.
#[inline(always)]
fn passthru(frame: &Frame, parent: Parent, addressee: SlotEntry) -> Option<()> {
    let tally = count::cell(addressee.slot)?;
    if frame.header.is_multicast() {
        if addressee.up != 0 && frame.header.source == parent.mac {
            tally.add(Counter::ReturnedSkbs, 1);
        }
        return Some(());
    }
    if addressee.up == 0 {
        down(tally, frame);
    } else {
        tally.delivered(false, frame.amount, frame.kernel_bytes);
    }
    Some(())
}

/// Multicast of our own that came back; bridge mode copies to siblings without passing here.
#[inline(always)]
fn multicast(context: &TcContext, frame: &Frame, parent: Parent, sender: SlotEntry, handled: bool) -> Option<()> {
    let from_parent = frame.header.source == parent.mac;
    if sender.is_known() {
        let tally = count::cell(sender.slot)?;
        tally.add_at(Counter::Reflected, Reflection::Multicast.index(), frame.amount.frames);
        if keeps_own_multicast(sender.mode) {
            if !handled {
                tally.add(Counter::ReturnedSkbs, 1);
            }
            return None;
        }
    } else if !from_parent {
        return None;
    }
    let resolution = frame.resolution(context);
    if resolution.says == Says::Asks {
        count::answered(frame.parent, frame.header.source, resolution.address, parent.slot);
    }
    Some(())
}

/// A unicast frame of ours that the switch sent back: one pending attempt less.
#[inline(always)]
fn reflected_unicast(frame: &Frame, parent: Parent, sender: SlotEntry, addressee: SlotEntry) {
    let (direction, reflection, slot) = if sender.is_known() {
        if frame.header.destination == parent.mac {
            (Direction::ChildToParent, Reflection::ChildToParent, sender.slot)
        } else if addressee.is_known() {
            (Direction::Sibling, Reflection::Sibling, sender.slot)
        } else {
            return;
        }
    } else if frame.header.source == parent.mac && addressee.is_known() {
        (Direction::ParentToChild, Reflection::ParentToChild, addressee.slot)
    } else {
        return;
    };
    let answers = count::is_pending(slot, direction);
    if let Some(tally) = count::cell(slot) {
        tally.add_at(Counter::Reflected, reflection.index(), frame.amount.frames);
        if answers {
            tally.cancelled(direction, false, frame.amount.frames);
        }
    }
    if answers && let Some(tally) = count::cell(parent.slot) {
        tally.cancelled(direction, false, frame.amount.frames);
    }
}
