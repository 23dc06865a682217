//! Flows: what was found out about a frame, kept on its CPU for the next one with the same two MACs on the same parent.
//!
//! To find out whose a frame is takes three tables and a dozen questions; to see that it is as the last one takes four
//! comparisons. A flow holds good for as long as nothing has changed in the tables: it has the number that stood in
//! [`Settings::state`](crate::abi::Settings) before they were read, and user space raises that after each change.

use crate::{abi::ParentKey, frame::Header, front::Packed};

/// An odd number that spreads what differs in the last bytes of a MAC, the upper ones of each word, over all upper bits.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// What must be the same for two frames to be of one flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Likeness {
    /// The first eight bytes of the Ethernet header, the first byte lowest.
    pub first: u64,
    /// The last eight of its fourteen.
    pub last: u64,
    /// The parent's interface index, and above it its namespace.
    pub parent: u64,
    /// The state of the tables; that of a [`Flow`] has its kind in the bits above.
    pub state: u64,
}

/// Bits of a place.
const PLACE_BITS: u32 = 16;

impl Likeness {
    /// The Ethernet header.
    #[inline(always)]
    #[must_use]
    pub const fn header(&self) -> Header {
        Header::of_words(self.first, self.last)
    }

    /// The parent.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
    pub const fn parent(&self) -> ParentKey {
        ParentKey {
            netns: (self.parent >> 32) as u32,
            ifindex: self.parent as u32,
        }
    }
}

/// The kinds that a flow is of, if the tables are in the state that it was learnt in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind(u64);

impl Kind {
    /// Whether the tables are in that state.
    #[inline(always)]
    #[must_use]
    pub const fn is_known(self) -> bool {
        self.0 << (u64::BITS - STATE_BITS) == 0
    }

    /// Whether it is of these kinds and of no other, and the tables are in that state.
    #[inline(always)]
    #[must_use]
    pub const fn is(self, kinds: u64) -> bool {
        self.0 == kinds << STATE_BITS
    }

    /// Whether it is of one of these kinds.
    #[inline(always)]
    #[must_use]
    pub const fn has(self, kinds: u64) -> bool {
        self.0 >> STATE_BITS & kinds != 0
    }
}

/// Where the flow of frames with these words at their head is, in a table of as many places as one likes, a power of two up
/// to 2¹⁶: by the lower bits.
#[inline(always)]
#[must_use]
pub const fn place(first: u64, last: u64) -> u64 {
    // The shift parts the two MACs, whose last bytes stand at the same bits.
    first.wrapping_add(last << 7).wrapping_mul(SPREAD) >> (u64::BITS - PLACE_BITS)
}

/// Says instead of a cell that there is nothing to count.
pub const NOTHING: u32 = u32::MAX;

/// Says instead of a cell that such frames must be looked at one by one.
pub const EACH: u32 = u32::MAX - 1;

/// The cells that a frame is counted in, by their places on this CPU.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cells {
    /// That of whom it is for, at egress of whom it is from; [`NOTHING`] or [`EACH`].
    pub owner: u32,
    /// That of the sibling it is from; [`NOTHING`] where it is from elsewhere.
    pub sibling: u32,
}

/// Bits of a state. Nobody changes tables so often that one has more.
const STATE_BITS: u32 = 56;

/// A kind of flows: they must be told from neighbour discovery still, since they are IPv6.
pub const IPV6: u64 = 1;

/// They are from a sibling.
pub const SIBLING: u64 = 2;

/// Their frames are handed to `handle_frame`, which counts them.
pub const HANDED: u64 = 4;

/// They are attempts of a sub-interface to reach its parent.
pub const ATTEMPT: u64 = 8;

/// There is nothing to count, or they must be looked at frame by frame.
pub const UNCOUNTED: u64 = 16;

/// They must be told still from packets of IPv6 that have no Ethernet header (`PACKET_LOOPBACK`), which begin alike.
pub const LOOKALIKE: u64 = 32;

/// They leave the parent.
pub const EGRESS: u64 = 128;

/// A flow: one cache line.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Of which frames.
    pub of: Likeness,
    /// Where they are counted.
    pub cells: Cells,
    /// The cell of the parent.
    pub total: u32,
    /// Whose the source is.
    pub source: Packed,
    /// Whose the destination is.
    pub destination: Packed,
    /// Where it is itself.
    pub place: u32,
    /// The parent as it stands in its place.
    pub parent: u64,
}

const _: () = assert!(size_of::<Flow>() == 64, "one cache line");

impl Likeness {
    /// What there is to say of all frames that are like this.
    #[inline(always)]
    #[must_use]
    pub const fn kind(&self) -> u64 {
        let begins_like_ipv6 = self.first & 0xf0 == 0x60;
        let (ipv6, lookalike) = (self.header().is_ipv6(), begins_like_ipv6);
        (if ipv6 { IPV6 } else { 0 }) | (if lookalike { LOOKALIKE } else { 0 })
    }
}

impl Flow {
    /// Its kind as far as the tables are in this state: 0 where its frames have come in and are counted on its owner, and
    /// that is all. No kind, [`Kind::is_known`], where they are not.
    #[inline(always)]
    #[must_use]
    pub const fn kind(&self, state: u64) -> Kind {
        Kind(self.of.state ^ state)
    }

    /// It with this kind beside what its frames say.
    #[inline(always)]
    #[must_use]
    pub const fn of_kind(mut self, kind: u64) -> Self {
        self.of.state |= (kind | self.of.kind()) << STATE_BITS;
        self
    }

    /// Whether it is one of frames with these words at their head.
    #[inline(always)]
    #[must_use]
    pub const fn is_of(&self, first: u64, last: u64) -> bool {
        self.of.first == first && self.of.last == last
    }

    /// That of frames that are looked at one by one.
    #[inline(always)]
    #[must_use]
    pub const fn of_each(of: Likeness) -> Self {
        Self {
            of,
            cells: Cells {
                owner: EACH,
                sibling: NOTHING,
            },
            total: NOTHING,
            source: Packed::NOBODY,
            destination: Packed::NOBODY,
            place: 0,
            parent: 0,
        }
        .of_kind(UNCOUNTED)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::frame::Mac;

    fn likeness(destination: [u8; 6], source: [u8; 6]) -> Likeness {
        let mut header = [0; 16];
        header[..6].copy_from_slice(&destination);
        header[6..12].copy_from_slice(&source);
        header[12] = 8;
        let word = |at: usize| header[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
        Likeness {
            first: word(0),
            last: word(6),
            parent: 0xf000_0000 << 32 | 3,
            state: 2,
        }
    }

    #[test]
    fn a_likeness_has_all_of_the_header_and_of_the_parent() {
        let one = likeness([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let header = one.header();
        assert_eq!(header.destination, Mac::of([2, 0, 0, 0, 0, 1]));
        assert_eq!(header.source, Mac::of([2, 0, 0, 0, 0, 2]));
        assert!(header.is_ipv4());
        assert_eq!((one.parent().netns, one.parent().ifindex), (0xf000_0000, 3));
    }

    #[test]
    fn a_flow_is_of_its_kinds_for_as_long_as_the_tables_stay() {
        let of = likeness([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let flow = Flow::of_each(of);
        assert!(flow.kind(of.state).is_known() && flow.kind(of.state).is(UNCOUNTED));
        assert!(flow.kind(of.state).has(UNCOUNTED) && !flow.kind(of.state).has(EGRESS | HANDED));
        assert!(!flow.kind(of.state + 2).is_known() && !flow.kind(of.state + 2).is(UNCOUNTED));
        let plain = Flow { of, ..flow };
        assert!(plain.kind(of.state).is(0) && !plain.kind(of.state + 2).is(0));
        assert!(plain.of_kind(EGRESS).kind(of.state).is(EGRESS));
    }

    #[test]
    fn what_begins_like_ipv6_is_looked_at_again() {
        assert_eq!(likeness([0x6c, 0, 0, 0, 0, 1], [2; 6]).kind(), LOOKALIKE);
        assert_eq!(likeness([0x46, 0, 0, 0, 0, 1], [2; 6]).kind(), 0);
    }

    #[test]
    fn flows_of_neighbours_do_not_meet() {
        let mut taken = HashMap::<u64, u32>::new();
        for (sender, addressee) in (0..64).flat_map(|sender| (0..64).map(move |addressee| (sender, addressee))) {
            let flow = likeness([2, 0x42, 0xac, 0x11, 0, addressee], [2, 0x42, 0xac, 0x11, 0, sender]);
            *taken.entry(place(flow.first, flow.last) & 8_191).or_default() += 1;
        }
        let met: u32 = taken.values().filter(|count| **count > 1).sum();
        // As many as by lot: of 4,096 in 8,192 places four in ten.
        assert!(met < 2_000, "{met} of 4096 meet another");
    }
}
