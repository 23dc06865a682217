//! Memory that the programs address as it is, without a lookup: maps of one value each, which user space makes.
//!
//! Such an address costs two instructions where a lookup costs fourteen, but the loader knows it only of data that the
//! object contains. So the programs have marks where the addresses of these maps will stand, and user space puts the maps
//! there before it loads the object. So it does with a function of the kernel's.

/// A map of one value.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direct {
    /// [`super::Settings`]
    Settings = 0,
    /// [`crate::flow::Flow`], `[place][CPU]`
    Flows = 1,
    /// The frames that are being handed to macvlan, `[CPU][thread]`, [`super::limits::ENTRY`] bytes each.
    Entries = 2,
    /// [`super::Common`], `[slot][CPU]`, where the kernel takes a value as large as that
    Common = 3,
    /// [`super::Rare`], the same
    Rare = 4,
}

/// The upper half of the first mark.
const MARK: u32 = 0x6d61_6300;

/// The lower half of every mark. Its bits are set so that the compiler adds to an address: where it knows them to be clear
/// it may as well take their union with what is added, which the kernel's verifier lets nobody do.
const ALL_SET: u32 = u32::MAX << 3;

/// How far an offset reaches.
const REACH: u64 = 1 << 32;

/// The number of a helper that stands in the programs instead of `bpf_rdonly_cast` (`kernel/bpf/helpers.c`, 6.2 and
/// newer), a function of the kernel's that the loader knows nothing of.
pub const CAST: u32 = MARK | 0xff;

impl Direct {
    /// All of them, in order of their numbers.
    pub const ALL: [Self; 5] = [Self::Settings, Self::Flows, Self::Entries, Self::Common, Self::Rare];

    /// What stands in the programs instead of its address.
    #[inline(always)]
    #[must_use]
    pub const fn mark(self) -> u64 {
        ((MARK + 2 * self as u32) as u64) << 32 | ALL_SET as u64
    }

    /// Whose mark it is, and how far behind its beginning; None of any other number.
    #[must_use]
    pub fn of_mark(number: u64) -> Option<(Self, u32)> {
        let offset = |map: Self| number.checked_sub(map.mark()).filter(|offset| *offset < REACH);
        Self::ALL
            .into_iter()
            .find_map(|map| Some((map, u32::try_from(offset(map)?).ok()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_says_whose_it_is() {
        for map in Direct::ALL {
            assert_eq!(Direct::of_mark(map.mark()), Some((map, 0)));
            assert_eq!(Direct::of_mark(map.mark() + 24), Some((map, 24)));
            assert!(map.mark().is_multiple_of(8), "aligned as what is there");
        }
        assert_eq!(Direct::of_mark(0), None);
        assert_eq!(Direct::of_mark(u64::MAX), None);
        assert_eq!(Direct::of_mark(Direct::Settings.mark() - 1), None);
    }
}
