//! Fills the tables in front of the hash maps (`front` of the shared code).
//!
//! They hold what the maps hold, a little earlier or a little later: a key that is in one and not yet in the other is
//! found or not found as if the change had come a moment sooner or later, and what is not found waits as a credit. A word
//! is written whole, so no place ever leads elsewhere than it did before or does now. A slot is given away again only
//! when its last word has been gone for longer than any program runs (`QUARANTINE` in `directory`), and so is a
//! parent's, which is part of its sub-interfaces' keys.

use std::collections::BTreeMap;

use macvlan_agent_ebpf::{
    abi::{ParentEntry, ParentKey, SlotEntry, SubInterfaceKey},
    frame::Mac,
    front::{self, ParentPlace},
};

use super::{
    counts::Mapped,
    load::{Kernel, LoadError},
};
use crate::differences::differences;

/// The words of both tables, by place; what is not named is 0.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Words {
    parents: BTreeMap<u32, ParentPlace>,
    sub_interfaces: BTreeMap<u32, u64>,
}

impl Words {
    /// The words for what the hash maps should hold.
    pub(super) fn of(
        parents: &BTreeMap<ParentKey, ParentEntry>,
        sub_interfaces: &BTreeMap<SubInterfaceKey, SlotEntry>,
    ) -> Self {
        let mut words = Self::default();
        for (key, entry) in parents {
            let (index, product) = front::of_parent(*key);
            // Of two that meet the second is looked for behind: a place says only whom it holds.
            if let Some(place) = ParentPlace::of(product, entry) {
                words.parents.entry(index).or_insert(place);
            }
        }
        let places = sub_interfaces.iter().filter_map(|(key, entry)| {
            let parent = ParentKey {
                netns: key.netns,
                ifindex: key.parent,
            };
            let place = front::of_sub_interface(parents.get(&parent)?.slot, Mac::of(key.mac));
            let word = front::sub_interface_word(place, *entry);
            Some((place.index, word.unwrap_or(front::crowded(0))))
        });
        // Sorted at once: one after the other they would come in no order.
        let mut places: Vec<(u32, u64)> = places.collect();
        places.sort_by_key(|(index, _)| *index);
        // Of several that meet the first is found here, and all others behind.
        places.dedup_by(|(index, _), (first, word)| {
            let meets = index == first;
            if meets {
                *word = front::crowded(*word);
            }
            meets
        });
        words.sub_interfaces = places.into_iter().collect();
        words
    }
}

/// The tables, and what they hold.
pub(super) struct Fronts {
    /// Two words for each.
    parents: Mapped<u64>,
    sub_interfaces: Mapped<u64>,
    words: Words,
}

impl Fronts {
    /// Maps them; they are empty.
    pub(super) fn of(kernel: &Kernel) -> Result<Self, LoadError> {
        let mapped = |name, places: u32| {
            let map = kernel.map(name)?;
            Mapped::of(map, places as usize).map_err(LoadError::Pages)
        };
        Ok(Self {
            parents: mapped("PARENT_FRONT", 2 * front::PARENT_PLACES)?,
            sub_interfaces: mapped("FRONT", front::PLACES)?,
            words: Words::default(),
        })
    }

    /// Writes the differences.
    pub(super) fn write(&mut self, words: Words) {
        for (place, after) in differences(&self.words.parents, &words.parents) {
            let (place, ParentPlace { key, what }) = (*place as usize, after.copied().unwrap_or_default());
            // Nobody takes the old for the new in between (`ParentPlace`).
            self.parents.write(2 * place, 0);
            self.parents.write(2 * place + 1, what);
            self.parents.write(2 * place, key);
        }
        for (place, after) in differences(&self.words.sub_interfaces, &words.sub_interfaces) {
            self.sub_interfaces
                .write(*place as usize, after.copied().unwrap_or_default());
        }
        self.words = words;
    }
}

#[cfg(test)]
mod tests {
    use macvlan_agent_ebpf::front::{Found, Whose};

    use super::*;

    const PARENT: ParentKey = ParentKey { netns: 7, ifindex: 2 };

    fn parents(slot: u32) -> BTreeMap<ParentKey, ParentEntry> {
        let entry = ParentEntry {
            slot,
            ..ParentEntry::default()
        };
        BTreeMap::from([(PARENT, entry)])
    }

    /// So many that places are shared.
    fn crowd() -> BTreeMap<SubInterfaceKey, SlotEntry> {
        (0..4000_u32)
            .map(|slot| {
                // Neighbours would lie far apart; these are as good as drawn by lot (`splitmix64`).
                let number = (u64::from(slot) + 1).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                let [first, second, third, fourth, fifth, ..] = (number ^ number >> 31)
                    .wrapping_mul(0x94d0_49bb_1331_11eb)
                    .to_be_bytes();
                let mac = [2, first, second, third, fourth, fifth];
                let entry = SlotEntry {
                    slot,
                    mode: 4,
                    up: 1,
                    pad: [0; 2],
                };
                (SubInterfaceKey::new(PARENT, mac), entry)
            })
            .collect()
    }

    fn find(words: &Words, parent_slot: u32, mac: [u8; 6]) -> Found {
        let place = front::of_sub_interface(parent_slot, Mac::of(mac));
        front::sub_interface(place, words.sub_interfaces.get(&place.index).copied().unwrap_or(0))
    }

    #[test]
    fn everyone_is_found_in_front_or_behind_and_never_as_another() {
        let crowd = crowd();
        let words = Words::of(&parents(4200), &crowd);
        let mut behind = 0;
        for (key, entry) in &crowd {
            match find(&words, 4200, key.mac) {
                Found::Behind => behind += 1,
                found @ Found::Whose(_) => assert_eq!(found, Found::Whose(Whose::of(*entry))),
            }
        }
        assert!((1..400).contains(&behind), "{behind} meet another");
        for number in 0..=255 {
            let stranger = find(&words, 4200, [0x52, 0x54, 0, 1, 2, number]);
            assert!(matches!(stranger, Found::Behind | Found::Whose(Whose::NOBODY)));
        }
    }

    #[test]
    fn a_key_of_another_parent_is_nobodys() {
        let crowd = crowd();
        let words = Words::of(&parents(4200), &crowd);
        let found = crowd.keys().filter(|key| match find(&words, 4201, key.mac) {
            Found::Whose(whose) => whose.is_known(),
            Found::Behind => false,
        });
        assert_eq!(found.count(), 0);
        assert!(Words::of(&BTreeMap::new(), &crowd).sub_interfaces.is_empty());
    }
}
