//! Flows: what was found out about a frame, kept on its CPU for the next one with the same two MACs on the same parent.
//!
//! To find out whose a frame is takes three tables and a dozen questions; to see that it is as the last one takes four
//! comparisons. A flow holds good for as long as nothing has changed in the tables: it has the number that stood in
//! [`Settings::state`](crate::abi::Settings) before they were read, and user space raises that after each change.

use crate::{abi::ParentKey, frame::Header, front::Packed};

/// Odd numbers that spread what differs in the last bytes of a MAC, the upper ones of each word, over all upper bits.
const SPREAD: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f];

/// What must be the same for two frames to be of one flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Likeness {
    /// The first eight bytes of the Ethernet header, the first byte lowest.
    pub first: u64,
    /// The last eight of its fourteen.
    pub last: u64,
    /// The parent's namespace, and above it the interface index.
    pub parent: u64,
    /// The state of the tables, as [`at_egress`] changes it for that side.
    pub state: u64,
}

/// The state of the tables as flows at egress have it.
#[inline(always)]
#[must_use]
pub const fn at_egress(state: u64) -> u64 {
    state | 1 << 63
}

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
            netns: self.parent as u32,
            ifindex: (self.parent >> 32) as u32,
        }
    }

    /// Where its flow is, in a table of as many places as one likes, a power of two: by the lower bits.
    #[inline(always)]
    #[must_use]
    pub const fn place(&self) -> u32 {
        let product = self
            .first
            .wrapping_mul(SPREAD[0])
            .wrapping_add(self.last.wrapping_mul(SPREAD[1]));
        (product >> 40) as u32
    }
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
    /// Whether it must be told from neighbour discovery still: 1 for IPv6.
    pub is_ipv6: u16,
    /// 1 for attempts of a sub-interface to reach its parent.
    pub is_attempt: u16,
    /// The parent as it stands in its place.
    pub parent: u64,
}

const _: () = assert!(size_of::<Flow>() == 64, "one cache line");

impl Flow {
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
            is_ipv6: of.header().is_ipv6() as u16,
            is_attempt: 0,
            parent: 0,
        }
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
            parent: 3 << 32 | 0xf000_0000,
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
        assert_ne!(at_egress(one.state), one.state);
    }

    #[test]
    fn flows_of_neighbours_do_not_meet() {
        let mut taken = HashMap::<u32, u32>::new();
        for (sender, addressee) in (0..64).flat_map(|sender| (0..64).map(move |addressee| (sender, addressee))) {
            let flow = likeness([2, 0x42, 0xac, 0x11, 0, addressee], [2, 0x42, 0xac, 0x11, 0, sender]);
            *taken.entry(flow.place() & 8_191).or_default() += 1;
        }
        let met: u32 = taken.values().filter(|count| **count > 1).sum();
        // As many as by lot: of 4,096 in 8,192 places four in ten.
        assert!(met < 2_000, "{met} of 4096 meet another");
    }
}
