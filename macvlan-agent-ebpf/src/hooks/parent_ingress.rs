//! TC ingress of a parent: frames from the wire, frames that macvlan loops between siblings in bridge mode, and
//! whatever the switch sends back.
//!
//! `__netif_receive_skb_core` (`net/core/dev.c`, 5.10 to 7.1) runs it before the rx handler.

use aya_ebpf::{macros::classifier, programs::TcContext};
use macvlan_agent_ebpf::{
    abi::{Counter, Direction, Mode, SlotEntry, key::PARENT_PASSTHRU, label::Reflection},
    frame::{Mac, Says},
    front::Parent,
    verdict::{bridged, keeps_own_multicast},
};

use crate::{
    count::{self, Tally},
    maps::SETTINGS,
    skb::Frame,
};

/// `TCX_NEXT`, `TC_ACT_UNSPEC`: whoever comes next decides.
pub(crate) const NEXT: i32 = -1;

#[classifier]
pub(crate) fn parent_ingress(context: TcContext) -> i32 {
    if let Some(frame) = Frame::of(&context) {
        let _ = count_frame(&context, &frame);
    }
    NEXT
}

#[inline(always)]
fn handler_attached() -> bool {
    SETTINGS.get(0).is_some_and(|settings| settings.handler_attached != 0)
}

#[inline(always)]
fn count_frame(context: &TcContext, frame: &Frame) -> Option<()> {
    let parent = count::parent(frame.parent)?;
    if parent.flags & PARENT_PASSTHRU != 0 {
        return passthru(frame, parent);
    }
    let source = count::addressed(parent.slot, frame.parent, frame.header.source);
    if frame.header.is_multicast() {
        return multicast(context, frame, parent, source);
    }
    let destination = count::addressed(parent.slot, frame.parent, frame.header.destination);
    let resolution = frame.resolution(context);
    if resolution.says == Says::Answers {
        count::answered(frame.parent, frame.header.destination, resolution.address, parent.slot);
    }
    // One that is down is not found inside: what comes for it was sent out and returned by the switch.
    let siblings = bridged(source.mode, destination.mode);
    let looped = siblings && destination.up != 0;
    if looped {
        if !handler_attached() {
            count::cell(source.slot)?.pair(Counter::TransmittedSiblingFrames, frame.amount);
        }
    } else {
        reflected_unicast(frame, parent, source, destination);
    }
    if !handler_attached() && inferred(frame, parent, destination) {
        let tally = count::owner(destination, frame.parent, frame.header.destination)?;
        if destination.is_known() && destination.up == 0 {
            // What a sibling sent was counted when it was sent out.
            if !siblings {
                down(tally, frame);
            }
        } else {
            delivered(tally, frame, looped);
        }
    }
    Some(())
}

/// For one that is down as far as user space knows; it asks the kernel whether that was so when it tells the count.
#[inline(always)]
fn down(tally: Tally, frame: &Frame) {
    tally.pair(Counter::ApparentlyDownFrames, frame.amount);
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

/// What nobody saw being delivered is inferred: it is for a sub-interface that is up.
#[inline(always)]
fn delivered(tally: Tally, frame: &Frame, sibling: bool) {
    let first = if sibling {
        Counter::DeliveredSiblingFrames
    } else {
        Counter::DeliveredExternalFrames
    };
    tally.pair(first, frame.amount);
    tally.add(Counter::DeliveredSkbs, 1);
    tally.add(Counter::DeliveredSkbBytes, frame.kernel_bytes);
}

/// Every unicast frame goes to the one sub-interface; its MAC is the parent's, so nothing tells a reflection.
#[inline(always)]
fn passthru(frame: &Frame, parent: Parent) -> Option<()> {
    if handler_attached() {
        return None;
    }
    let addressee = count::addressed(parent.slot, frame.parent, Mac::default());
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
        delivered(tally, frame, false);
    }
    Some(())
}

/// Multicast of our own that came back; bridge mode copies to siblings without passing here.
#[inline(always)]
fn multicast(context: &TcContext, frame: &Frame, parent: Parent, sender: SlotEntry) -> Option<()> {
    let from_parent = frame.header.source == parent.mac;
    if sender.is_known() {
        let tally = count::cell(sender.slot)?;
        tally.add_at(Counter::Reflected, Reflection::Multicast.index(), frame.amount.frames);
        if keeps_own_multicast(sender.mode) {
            if !handler_attached() {
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
