//! What the return of `macvlan_handle_frame` says about a frame.

use crate::abi::{Mode, SlotEntry, Verdict};

/// `RX_HANDLER_CONSUMED`, `include/linux/netdevice.h`.
pub const CONSUMED: u64 = 0;
/// `RX_HANDLER_ANOTHER`.
pub const ANOTHER: u64 = 1;
/// `RX_HANDLER_PASS`. `RX_HANDLER_EXACT` (2) is never returned by macvlan.
pub const PASS: u64 = 3;

/// The verdict for the handler's return value.
#[inline(always)]
#[must_use]
pub const fn verdict_of(returned: u64) -> Verdict {
    match returned & 0xffff_ffff {
        CONSUMED => Verdict::Consumed,
        ANOTHER => Verdict::Delivered,
        PASS => Verdict::Passed,
        _ => Verdict::Unknown,
    }
}

/// What CONSUMED means for a unicast frame to a sub-interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consumed {
    /// It was down.
    InterfaceDown,
    /// The frame could not be copied.
    CloneFailed,
    /// Not a drop: a source-mode sub-interface got a copy.
    NotDropped,
}

/// Tells a consumed unicast frame apart by whom it was for (`drivers/net/macvlan.c`, `macvlan_handle_frame`, 5.10 to
/// 7.1: `!(dev->flags & IFF_UP)`, `skb_share_check`, and before both `macvlan_forward_source`).
#[inline(always)]
#[must_use]
pub const fn consumed_unicast(addressee: SlotEntry) -> Consumed {
    if !addressee.is_known() || addressee.mode == Mode::Source as u8 {
        Consumed::NotDropped
    } else if addressee.up == 0 {
        Consumed::InterfaceDown
    } else {
        Consumed::CloneFailed
    }
}

/// Whether multicast that comes back with this sub-interface as its source goes to it alone ("forward to original
/// port" in `macvlan_handle_frame`) and the parent's stack does not see it.
#[inline(always)]
#[must_use]
pub const fn keeps_own_multicast(mode: u8) -> bool {
    mode == Mode::Private as u8 || mode == Mode::Passthru as u8 || mode == Mode::Source as u8
}

/// Whether macvlan hands a unicast frame between the two itself.
#[inline(always)]
#[must_use]
pub const fn bridged(one: u8, other: u8) -> bool {
    one == Mode::Bridge as u8 && other == Mode::Bridge as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(mode: Mode, up: u8) -> SlotEntry {
        SlotEntry {
            slot: 1,
            mode: mode as u8,
            up,
            pad: [0; 2],
        }
    }

    #[test]
    fn returns_are_the_kernels_numbers() {
        assert_eq!(verdict_of(0), Verdict::Consumed);
        assert_eq!(verdict_of(1), Verdict::Delivered);
        assert_eq!(verdict_of(2), Verdict::Unknown);
        assert_eq!(verdict_of(3), Verdict::Passed);
        assert_eq!(
            verdict_of(0xdead_0000_0000_0001),
            Verdict::Delivered,
            "the upper half of the register is not ours"
        );
    }

    #[test]
    fn consumed_is_a_drop_only_for_a_known_addressee() {
        assert_eq!(consumed_unicast(entry(Mode::Passthru, 0)), Consumed::InterfaceDown);
        assert_eq!(consumed_unicast(entry(Mode::Bridge, 1)), Consumed::CloneFailed);
        assert_eq!(consumed_unicast(entry(Mode::Source, 1)), Consumed::NotDropped);
        assert_eq!(consumed_unicast(SlotEntry::NONE), Consumed::NotDropped);
    }

    #[test]
    fn only_two_in_bridge_mode_are_bridged() {
        assert!(bridged(Mode::Bridge as u8, Mode::Bridge as u8));
        assert!(!bridged(Mode::Bridge as u8, Mode::Vepa as u8));
        assert!(!bridged(Mode::Private as u8, Mode::Private as u8));
    }
}
