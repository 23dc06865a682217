//! Where sub-interfaces and parents are found without a search: tables in front of the hash maps, of one word a place, and
//! of two for parents.
//!
//! A key is multiplied by an odd number, which no two keys survive alike; the upper bits of the product choose the place
//! and the word there holds the others. So a word that matches is that of the key and of no other, as if all of the key
//! had been compared. A word is written and read whole: whoever reads sees what was there before or what is there now,
//! never half of each, and needs no lock. What is in the way of another is said in the word as well, so that a key that
//! is not there is known to be nowhere without asking the map behind; only where two meet is that asked.

use core::hint::black_box;

use crate::{
    abi::{Mode, ParentEntry, ParentKey, SlotEntry, limits},
    frame::Mac,
};

/// Bits of a slot; all of them set stand for no slot of ours, none set for nobody.
const SLOT_BITS: u32 = 14;
const MAC_BITS: u32 = 48;

/// A sub-interface's key is its parent's slot and its MAC.
const KEY_BITS: u32 = SLOT_BITS + MAC_BITS;
const PLACE_BITS: u32 = 17;
const REST_BITS: u32 = KEY_BITS - PLACE_BITS;

/// Places for sub-interfaces: eight for each that there may be, so that few meet.
pub const PLACES: u32 = 1 << PLACE_BITS;

const PARENT_PLACE_BITS: u32 = 12;
const FLAG_BITS: u32 = 2;

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
const _: () = assert!(MAC_BITS + SLOT_BITS + FLAG_BITS == u64::BITS, "a parent in one word");
const _: () = assert!(limits::SLOTS + 1 < 1 << SLOT_BITS, "every slot has a number");
const _: () = assert!(PLACES >= 4 * limits::MOST_SUB_INTERFACES, "few meet");
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
    /// It is this one's, or nobody's.
    Whose(Whose),
    /// The map behind knows.
    Behind,
}

/// A sub-interface as it stands in a place, below all else: its slot, mode and state; 0 is nobody.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whose(u64);

impl Whose {
    /// Nobody's.
    pub const NOBODY: Self = Self(0);

    /// That of an entry of the map behind.
    #[inline(always)]
    #[must_use]
    pub const fn of(entry: SlotEntry) -> Self {
        // Without branches, which the kernel's verifier would follow one by one; one more than no slot is 0.
        let slot = entry.slot.wrapping_add(1) as u64 & mask(SLOT_BITS);
        Self(slot << SLOT_SHIFT | mode_code(entry.mode) << MODE_SHIFT | (entry.up & 1) as u64)
    }

    /// The same in half the room.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "it has fewer bits")]
    pub const fn packed(self) -> Packed {
        Packed(self.0 as u32)
    }

    /// Whether it is somebody's.
    #[inline(always)]
    #[must_use]
    pub const fn is_known(self) -> bool {
        self.0 != 0
    }

    /// Its slot; [`NO_SLOT`](crate::abi::NO_SLOT) where it is nobody's.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a slot has fewer bits")]
    pub const fn slot(self) -> u32 {
        ((self.0 >> SLOT_SHIFT) as u32).wrapping_sub(1)
    }

    /// Whether it is in this mode.
    #[inline(always)]
    #[must_use]
    pub const fn is_in(self, mode: Mode) -> bool {
        self.0 >> MODE_SHIFT & mask(MODE_BITS) == mode_code(mode as u8)
    }

    /// Whether macvlan hands a unicast frame between the two itself, as [`crate::verdict::bridged`] says it of modes.
    #[inline(always)]
    #[must_use]
    pub const fn is_bridged_with(self, other: Self) -> bool {
        self.is_in(Mode::Bridge) && other.is_in(Mode::Bridge)
    }

    /// Whether it is administratively up.
    #[inline(always)]
    #[must_use]
    pub const fn is_up(self) -> bool {
        self.0 & UP != 0
    }

    /// The same, by way of any number that the kernel's verifier does not know: else it follows nobody and somebody apart,
    /// through all that comes after.
    #[inline(always)]
    #[must_use]
    pub fn hidden(self, unknown: u64) -> Self {
        Self(self.0 ^ black_box(unknown) ^ unknown)
    }

    /// The entry of the map behind.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a mode is 16 at most")]
    pub const fn entry(self) -> SlotEntry {
        SlotEntry {
            slot: self.slot(),
            mode: (1_u32 << (self.0 >> MODE_SHIFT & mask(MODE_BITS)) >> 1) as u8,
            up: (self.0 & UP) as u8,
            pad: [0; 2],
        }
    }
}

/// A [`Whose`] in half the room.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed(u32);

const _: () = assert!(CROWDED <= 1 << u32::BITS, "what a place says of a sub-interface fits");

impl Packed {
    /// Nobody's.
    pub const NOBODY: Self = Whose::NOBODY.packed();

    /// The same as it is reckoned with.
    #[inline(always)]
    #[must_use]
    pub const fn whose(self) -> Whose {
        Whose(self.0 as u64)
    }
}

/// The modes 1, 2, 4, 8 and 16 as 1 to 5, three bits at three times the mode; others as 0.
const MODE_CODES: u64 = 1 << 3 | 2 << 6 | 3 << 12 | 4 << 24 | 5 << 48;

/// A mode in few bits.
#[inline(always)]
const fn mode_code(mode: u8) -> u64 {
    (MODE_CODES >> ((mode as u32 * 3) & 63)) & mask(MODE_BITS)
}

/// The place of the sub-interface with `mac` on the parent with this slot, which must be one.
#[inline(always)]
#[must_use]
pub const fn of_sub_interface(parent_slot: u32, mac: Mac) -> Place {
    let key = (parent_slot as u64) << MAC_BITS | mac.number();
    let product = key.wrapping_mul(SPREAD) & mask(KEY_BITS);
    Place {
        index: (product >> REST_BITS) as u32,
        rest: product & mask(REST_BITS),
    }
}

/// A parent's place, and its key as it stands there.
#[inline(always)]
#[must_use]
pub const fn of_parent(key: ParentKey) -> (u32, u64) {
    let product = ((key.ifindex as u64) << 32 | key.netns as u64).wrapping_mul(SPREAD);
    ((product >> (u64::BITS - PARENT_PLACE_BITS)) as u32, product)
}

/// The word of a sub-interface; None where it must be looked for behind.
#[must_use]
pub fn sub_interface_word(place: Place, entry: SlotEntry) -> Option<u64> {
    let whose = Whose::of(entry);
    (whose.is_known() && whose.entry() == entry).then_some(place.rest << REST_SHIFT | whose.0)
}

/// The same word where others have this place as well.
#[must_use]
pub const fn crowded(word: u64) -> u64 {
    word | CROWDED
}

/// What the word of a place says.
#[inline(always)]
#[must_use]
pub const fn sub_interface(place: Place, word: u64) -> Found {
    let whose = word & (CROWDED - 1);
    if word >> REST_SHIFT == place.rest && whose != 0 {
        return Found::Whose(Whose(whose));
    }
    if word & CROWDED == 0 {
        Found::Whose(Whose::NOBODY)
    } else {
        Found::Behind
    }
}

/// A place in the table of parents: whoever reads `what` between two reads of the same `key` has what belongs to it,
/// because `key` is 0 while `what` is changed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParentPlace {
    /// As [`of_parent`] gives it; 0 where nobody is.
    pub key: u64,
    /// Its MAC, slot and flags.
    pub what: u64,
}

impl ParentPlace {
    /// That of a parent; None where it must be looked for behind.
    #[must_use]
    pub const fn of(key: u64, entry: &ParentEntry) -> Option<Self> {
        if entry.slot >= limits::SLOTS || entry.flags >> FLAG_BITS != 0 {
            return None;
        }
        let flags = (entry.flags as u64) << (MAC_BITS + SLOT_BITS);
        let slot = (entry.slot as u64) << MAC_BITS;
        Some(Self {
            key,
            what: flags | slot | Mac::of(entry.mac).number(),
        })
    }
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
    /// From what stands in its place.
    #[inline(always)]
    #[must_use]
    pub const fn of_place(what: u64) -> Self {
        Self {
            slot: (what >> MAC_BITS & mask(SLOT_BITS)) as u32,
            flags: (what >> (MAC_BITS + SLOT_BITS)) as u32,
            mac: Mac::low(what),
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
    use crate::abi::NO_SLOT;

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
                assert_eq!(sub_interface(place, word), Found::Whose(Whose::of(entry)));
                assert_eq!(sub_interface(place, crowded(word)), Found::Whose(Whose::of(entry)));
                let whose = Whose::of(entry);
                assert_eq!(whose.packed().whose(), whose);
                assert_eq!((whose.entry(), whose.slot(), whose.is_up()), (entry, slot, up == 1));
                assert_eq!(whose.is_in(Mode::Bridge), mode == Mode::Bridge as u8);
            }
        }
    }

    #[test]
    fn two_are_bridged_as_their_modes_say() {
        let modes = [0, 1, 2, 4, 8, 16];
        for (one, other) in modes.iter().flat_map(|one| modes.map(|other| (*one, other))) {
            let of = |mode| Whose::of(entry(1, mode, 1));
            assert_eq!(
                of(one).is_bridged_with(of(other)),
                crate::verdict::bridged(one, other),
                "{one} and {other}"
            );
        }
    }

    #[test]
    fn a_place_names_one_key_alone() {
        let place = of_sub_interface(7, MAC);
        let word = sub_interface_word(place, entry(3, Mode::Bridge as u8, 1)).expect("fits");
        let nobody = Found::Whose(Whose::NOBODY);
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
        assert_eq!(sub_interface(zero, 0), Found::Whose(Whose::NOBODY));
        assert_eq!(sub_interface(zero, crowded(0)), Found::Behind);
        assert_eq!(
            (Whose::NOBODY.slot(), Whose::of(SlotEntry::NONE)),
            (NO_SLOT, Whose::NOBODY)
        );
    }

    #[test]
    fn what_does_not_fit_is_looked_for_behind() {
        let place = of_sub_interface(0, MAC);
        assert_eq!(sub_interface_word(place, entry(0, 3, 1)), None);
        assert_eq!(sub_interface_word(place, entry(0, 128, 1)), None);
        assert_eq!(sub_interface_word(place, entry(0x3fff, 4, 1)), None);
    }

    #[test]
    fn a_parent_is_found_by_namespace_and_index() {
        let key = ParentKey {
            netns: 4_026_531_840,
            ifindex: 3,
        };
        let (index, product) = of_parent(key);
        let entry = ParentEntry {
            slot: limits::SLOTS - 1,
            flags: 3,
            mac: MAC.bytes(),
            ..ParentEntry::default()
        };
        let place = ParentPlace::of(product, &entry).expect("fits");
        assert!(index < PARENT_PLACES);
        assert_eq!(Parent::of_place(place.what), Parent::of_entry(&entry));
        for other in [ParentKey { ifindex: 4, ..key }, ParentKey { netns: 5, ..key }] {
            assert_ne!(of_parent(other).1, place.key);
        }
        let unfit = ParentEntry { flags: 4, ..entry };
        assert_eq!(ParentPlace::of(product, &unfit), None);
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
