//! Where sub-interfaces and parents are found without a search: tables in front of the hash maps, of one word a place.
//!
//! A key is multiplied by an odd number, which no two keys survive alike; the upper bits of the product choose the place
//! and the word there holds the others. So a word that matches is that of the key and of no other, as if all of the key
//! had been compared. A word is written and read whole: whoever reads sees what was there before or what is there now,
//! never half of each, and needs no lock. What is in the way of another is said in the word as well, so that a key that
//! is not there is known to be nowhere without asking the map behind; only where two meet is that asked.

use crate::{
    abi::{ParentEntry, ParentKey, SlotEntry, limits},
    frame::Mac,
};

/// Bits of a slot; all of them set stand for no slot of ours, none set for nobody.
const SLOT_BITS: u32 = 13;
const MAC_BITS: u32 = 48;

/// A sub-interface's key is its parent's slot and its MAC.
const KEY_BITS: u32 = SLOT_BITS + MAC_BITS;
const PLACE_BITS: u32 = 15;
const REST_BITS: u32 = KEY_BITS - PLACE_BITS;

/// Places for sub-interfaces: eight for each that there may be, so that few meet.
pub const PLACES: u32 = 1 << PLACE_BITS;

const PARENT_PLACE_BITS: u32 = 13;
const PARENT_REST_BITS: u32 = 64 - PARENT_PLACE_BITS;

/// Places for parents.
pub const PARENT_PLACES: u32 = 1 << PARENT_PLACE_BITS;

/// 2⁶⁴ divided by the golden ratio: neighbours come to lie far apart.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

const UP: u64 = 1;
const MODE_SHIFT: u32 = 1;
const MODE_BITS: u32 = 3;
const SLOT_SHIFT: u32 = MODE_SHIFT + MODE_BITS;
const CROWDED: u64 = 1 << (SLOT_SHIFT + SLOT_BITS);
const REST_SHIFT: u32 = SLOT_SHIFT + SLOT_BITS + 1;

const _: () = assert!(REST_SHIFT + REST_BITS == u64::BITS, "all in one word");
const _: () = assert!(limits::SLOTS + 1 < 1 << SLOT_BITS, "every slot has a number");
const _: () = assert!(PLACES >= 4 * limits::SUB_INTERFACES, "few meet");
const _: () = assert!(PARENT_PLACES >= 4 * limits::PARENTS, "few meet");

const fn mask(bits: u32) -> u64 {
    (1 << bits) - 1
}

/// Where a key is looked for, and what the word there must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which place.
    pub index: u32,
    rest: u64,
}

/// What a place says of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It leads here; [`SlotEntry::NONE`] where it leads nowhere.
    Entry(SlotEntry),
    /// The map behind knows.
    Behind,
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the place has fewer bits")]
const fn place(product: u64, rest_bits: u32) -> Place {
    Place {
        index: (product >> rest_bits) as u32,
        rest: product & mask(rest_bits),
    }
}

/// The place of the sub-interface with `mac` on the parent with this slot, which must be one.
#[inline(always)]
#[must_use]
pub const fn of_sub_interface(parent_slot: u32, mac: Mac) -> Place {
    let key = (parent_slot as u64) << MAC_BITS | mac.number();
    place(key.wrapping_mul(SPREAD) & mask(KEY_BITS), REST_BITS)
}

/// The place of a parent.
#[inline(always)]
#[must_use]
pub const fn of_parent(key: ParentKey) -> Place {
    let key = (key.netns as u64) << 32 | key.ifindex as u64;
    place(key.wrapping_mul(SPREAD), PARENT_REST_BITS)
}

/// The word of a sub-interface; None where it must be looked for behind.
#[must_use]
pub fn sub_interface_word(place: Place, entry: SlotEntry) -> Option<u64> {
    let mode = match entry.mode {
        0 => 0,
        mode if mode.is_power_of_two() && mode <= 1 << (mask(MODE_BITS) - 1) => u64::from(mode.trailing_zeros()) + 1,
        _ => return None,
    };
    if entry.slot >= limits::SLOTS || entry.up > 1 {
        return None;
    }
    let slot = u64::from(entry.slot) + 1;
    Some(place.rest << REST_SHIFT | slot << SLOT_SHIFT | mode << MODE_SHIFT | u64::from(entry.up))
}

/// The same word where others have this place as well.
#[must_use]
pub const fn crowded(word: u64) -> u64 {
    word | CROWDED
}

/// What the word of a place says.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "the parts have fewer bits")]
pub const fn sub_interface(place: Place, word: u64) -> Found {
    let slot = (word >> SLOT_SHIFT & mask(SLOT_BITS)) as u32;
    if word >> REST_SHIFT == place.rest && slot != 0 {
        return Found::Entry(SlotEntry {
            slot: slot - 1,
            mode: (1_u32 << (word >> MODE_SHIFT & mask(MODE_BITS)) >> 1) as u8,
            up: (word & UP) as u8,
            pad: [0; 2],
        });
    }
    if word & CROWDED == 0 {
        Found::Entry(SlotEntry::NONE)
    } else {
        Found::Behind
    }
}

/// The word of a parent with this slot; None where it must be looked for behind.
#[must_use]
pub fn parent_word(place: Place, slot: u32) -> Option<u64> {
    (slot < limits::SLOTS).then(|| place.rest << SLOT_BITS | u64::from(slot + 1))
}

/// The parent's slot where the word is its own.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "a slot has fewer bits")]
pub const fn parent_slot(place: Place, word: u64) -> Option<u32> {
    let slot = (word & mask(SLOT_BITS)) as u32;
    if word >> SLOT_BITS == place.rest && slot != 0 {
        Some(slot - 1)
    } else {
        None
    }
}

/// What is to be known of a parent beside its slot, in one word.
#[must_use]
pub const fn traits_word(entry: &ParentEntry) -> u64 {
    (entry.flags as u64) << MAC_BITS | Mac::of(entry.mac).number()
}

/// A parent as the programs need it for each frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Index of its own totals.
    pub slot: u32,
    /// As in [`ParentEntry`].
    pub flags: u32,
    /// Its MAC.
    pub mac: Mac,
}

impl Parent {
    /// From its slot and its word.
    #[inline(always)]
    #[must_use]
    pub const fn of_word(slot: u32, traits: u64) -> Self {
        Self {
            slot,
            flags: (traits >> MAC_BITS) as u32,
            mac: Mac::low(traits),
        }
    }

    /// From its entry in the map behind.
    #[inline(always)]
    #[must_use]
    pub const fn of_entry(entry: &ParentEntry) -> Self {
        Self {
            slot: entry.slot,
            flags: entry.flags,
            mac: Mac::of(entry.mac),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::Mode;

    const MAC: Mac = Mac::of([2, 0, 0, 0xff, 0x80, 1]);

    fn entry(slot: u32, mode: u8, up: u8) -> SlotEntry {
        SlotEntry {
            slot,
            mode,
            up,
            pad: [0; 2],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for mode in [0, 1, 2, 4, 8, 16] {
            for (slot, up) in [(0, 0), (1, 1), (limits::SLOTS - 1, 1)] {
                let place = of_sub_interface(limits::SLOTS - 1, MAC);
                let entry = entry(slot, mode, up);
                let word = sub_interface_word(place, entry).expect("fits");
                assert!(place.index < PLACES);
                assert_eq!(sub_interface(place, word), Found::Entry(entry));
                assert_eq!(sub_interface(place, crowded(word)), Found::Entry(entry));
            }
        }
    }

    #[test]
    fn a_place_names_one_key_alone() {
        let place = of_sub_interface(7, MAC);
        let word = sub_interface_word(place, entry(3, Mode::Bridge as u8, 1)).expect("fits");
        let nobody = Found::Entry(SlotEntry::NONE);
        for bit in 0..48 {
            let other = of_sub_interface(7, Mac::low(MAC.number() ^ 1 << bit));
            assert!(
                other.index != place.index || sub_interface(other, word) == nobody,
                "bit {bit}"
            );
        }
        for slot in (0..limits::SLOTS).filter(|slot| *slot != 7) {
            let other = of_sub_interface(slot, MAC);
            assert!(
                other.index != place.index || sub_interface(other, word) == nobody,
                "slot {slot}"
            );
        }
        let stranger = Place {
            rest: place.rest ^ 1,
            ..place
        };
        assert_eq!(sub_interface(stranger, word), nobody);
        assert_eq!(sub_interface(stranger, crowded(word)), Found::Behind);
    }

    #[test]
    fn an_empty_place_is_nobodys_also_where_the_rest_is_zero() {
        let zero = Place { index: 0, rest: 0 };
        assert_eq!(sub_interface(zero, 0), Found::Entry(SlotEntry::NONE));
        assert_eq!(sub_interface(zero, crowded(0)), Found::Behind);
        assert_eq!(parent_slot(zero, 0), None);
    }

    #[test]
    fn what_does_not_fit_is_looked_for_behind() {
        let place = of_sub_interface(0, MAC);
        assert_eq!(sub_interface_word(place, entry(0, 3, 1)), None);
        assert_eq!(sub_interface_word(place, entry(0, 128, 1)), None);
        assert_eq!(sub_interface_word(place, entry(limits::SLOTS, 4, 1)), None);
    }

    #[test]
    fn a_parent_is_found_by_namespace_and_index() {
        let key = ParentKey {
            netns: 4_026_531_840,
            ifindex: 3,
        };
        let place = of_parent(key);
        let word = parent_word(place, 9).expect("fits");
        assert_eq!(parent_slot(place, word), Some(9));
        for other in [ParentKey { ifindex: 4, ..key }, ParentKey { netns: 5, ..key }] {
            let other = of_parent(other);
            assert!(other.index != place.index || parent_slot(other, word).is_none());
        }
        let entry = ParentEntry {
            slot: 9,
            flags: 3,
            mac: MAC.bytes(),
            ..ParentEntry::default()
        };
        assert_eq!(Parent::of_word(9, traits_word(&entry)), Parent::of_entry(&entry));
    }

    #[test]
    fn neighbours_do_not_meet() {
        let mut taken = std::collections::HashMap::new();
        for number in 0..limits::SUB_INTERFACES {
            let [.., high, low] = number.to_be_bytes();
            *taken
                .entry(of_sub_interface(1, Mac::of([2, 0x42, 0xac, 0x11, high, low])).index)
                .or_insert(0) += 1;
        }
        let met: u32 = taken.values().filter(|count| **count > 1).sum();
        assert!(met < limits::SUB_INTERFACES / 4, "{met} meet another");
    }
}
