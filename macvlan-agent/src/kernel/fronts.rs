//! Fills the tables in front of the hash maps (`front` of the shared code).
//!
//! They hold what the maps hold, a little earlier or a little later: a key that is in one and not yet in the other is
//! found or not found as if the change had come a moment sooner or later, and what is not found waits as a credit. A word
//! is written whole, so no place ever leads elsewhere than it did before or does now. A slot is given away again only
//! when its last word has been gone for longer than any program runs (`QUARANTINE` in `directory`), and so is a
//! parent's, which is part of its sub-interfaces' keys.

use std::collections::BTreeMap;

use macvlan_agent_ebpf::{
    abi::{ParentEntry, ParentKey, SubInterfaceKey},
    frame::Mac,
    front::{self, ParentPlace},
};

use super::{
    claims::Claims,
    counts::Mapped,
    load::{Kernel, LoadError},
    tables::{Moved, Tables, is_on},
};
use crate::differences::differences;

/// The words of both tables, by place; what is not named is 0.
#[derive(Debug)]
struct Words {
    parents: BTreeMap<u32, ParentPlace>,
    /// Of several that meet the first is found here, and all others behind.
    sub_interfaces: Claims<u32, SubInterfaceKey, u64>,
}

impl Default for Words {
    fn default() -> Self {
        Self {
            parents: BTreeMap::new(),
            sub_interfaces: Claims::new(<[_]>::first),
        }
    }
}

impl Words {
    /// The words of parents for what their hash map should hold.
    fn of_parents(parents: &BTreeMap<ParentKey, ParentEntry>) -> BTreeMap<u32, ParentPlace> {
        let mut words = BTreeMap::new();
        for (key, entry) in parents {
            let (index, product) = front::of_parent(*key);
            // Of two that meet the second is looked for behind: a place says only whom it holds.
            if let Some(place) = ParentPlace::of(product, entry) {
                words.entry(index).or_insert(place);
            }
        }
        words
    }

    /// Brings those of sub-interfaces to what the tables say now.
    fn follow(&mut self, tables: &Tables, moved: &[Moved]) {
        for Moved { parent, before } in moved {
            let gone = tables.sub_interfaces.touched().filter(|key| is_on(key, *parent));
            for key in tables.on(*parent).chain(gone) {
                if let Some(slot) = before {
                    let place = front::of_sub_interface(*slot, Mac::of(key.mac));
                    self.sub_interfaces.withdraw(place.index, &key);
                }
                self.place(tables, key);
            }
        }
        for key in tables.sub_interfaces.touched() {
            self.place(tables, key);
        }
    }

    fn place(&mut self, tables: &Tables, key: SubInterfaceKey) {
        let parent = ParentKey {
            netns: key.netns,
            ifindex: key.parent,
        };
        let Some(parent) = tables.parents.get(&parent) else {
            return;
        };
        let place = front::of_sub_interface(parent.slot, Mac::of(key.mac));
        match tables.sub_interfaces.holder(key) {
            Some((_, entry)) => {
                let word = front::sub_interface_word(place, entry);
                self.sub_interfaces
                    .claim(place.index, key, word.unwrap_or(front::crowded(0)));
            }
            None => self.sub_interfaces.withdraw(place.index, &key),
        }
    }

    /// The word of a place.
    fn sub_interface(&self, index: u32) -> u64 {
        match self.sub_interfaces.holder(index) {
            Some((_, word)) if self.sub_interfaces.is_disputed(index) => front::crowded(word),
            Some((_, word)) => word,
            None => 0,
        }
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

    /// Writes what the tables say otherwise than before.
    pub(super) fn follow(&mut self, tables: &Tables, moved: &[Moved]) {
        let parents = Words::of_parents(&tables.parents);
        for (place, after) in differences(&self.words.parents, &parents) {
            let (place, ParentPlace { key, what }) = (*place as usize, after.copied().unwrap_or_default());
            // Nobody takes the old for the new in between (`ParentPlace`).
            self.parents.write(2 * place, 0);
            self.parents.write(2 * place + 1, what);
            self.parents.write(2 * place, key);
        }
        self.words.parents = parents;
        self.words.follow(tables, moved);
        for place in self.words.sub_interfaces.touched() {
            // Whether or not it is another word: others may have come to its place.
            self.sub_interfaces
                .write(place as usize, self.words.sub_interface(place));
        }
        self.words.sub_interfaces.written();
    }
}

#[cfg(test)]
mod tests {
    use macvlan_agent_ebpf::front::{Found, Whose};

    use super::*;
    use crate::kernel::tables::{WantedParent, WantedSubInterface};

    const PARENT: ParentKey = ParentKey { netns: 7, ifindex: 2 };

    /// So many that places are shared.
    fn crowd() -> impl Iterator<Item = (u64, WantedSubInterface, u32)> {
        (0..4000_u32).map(|slot| {
            // Neighbours would lie far apart; these are as good as drawn by lot (`splitmix64`).
            let number = (u64::from(slot) + 1).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let [first, second, third, fourth, fifth, ..] = (number ^ number >> 31)
                .wrapping_mul(0x94d0_49bb_1331_11eb)
                .to_be_bytes();
            let wanted = WantedSubInterface {
                parent: PARENT,
                mac: [2, first, second, third, fourth, fifth],
                mode: 4,
                up: true,
                device: ParentKey {
                    netns: 8,
                    ifindex: slot,
                },
                device_flags: 0,
                keeps_source: false,
                addresses: Vec::new(),
                counted: true,
            };
            (u64::from(slot), wanted, slot)
        })
    }

    /// The tables and the words in front of them, step by step.
    #[derive(Default)]
    struct Both {
        tables: Tables,
        words: Words,
    }

    impl Both {
        fn crowded(parent_slot: u32) -> Self {
            let mut both = Self::default();
            both.follow(
                Some(parent_slot),
                crowd().map(|(id, wanted, slot)| (id, Some((wanted, slot)))),
            );
            both
        }

        fn follow(
            &mut self,
            parent_slot: Option<u32>,
            changes: impl Iterator<Item = (u64, Option<(WantedSubInterface, u32)>)>,
        ) {
            for (id, change) in changes {
                self.tables.set(id, change.map(|(wanted, slot)| (wanted, Some(slot))));
            }
            let parent = WantedParent {
                key: PARENT,
                mac: [2, 0, 0, 0, 0, 1],
                addresses: Vec::new(),
            };
            let moved = self.tables.set_parents(&[parent], &[], |_| parent_slot);
            self.words.follow(&self.tables, &moved);
            self.words.sub_interfaces.written();
            self.tables.sub_interfaces.written();
        }

        fn find(&self, parent_slot: u32, mac: [u8; 6]) -> Found {
            let place = front::of_sub_interface(parent_slot, Mac::of(mac));
            front::sub_interface(place, self.words.sub_interface(place.index))
        }

        /// Everyone is found in front or behind, and never as another; tells how many are behind.
        fn behind(&self, parent_slot: u32) -> usize {
            let mut behind = 0;
            for key in self.tables.on(PARENT) {
                let (_, entry) = self.tables.sub_interfaces.holder(key).expect("written");
                match self.find(parent_slot, key.mac) {
                    Found::Behind => behind += 1,
                    found @ Found::Whose(_) => assert_eq!(found, Found::Whose(Whose::of(entry))),
                }
            }
            behind
        }
    }

    fn is_nobodys(found: Found) -> bool {
        match found {
            Found::Whose(whose) => !whose.is_known(),
            Found::Behind => true,
        }
    }

    #[test]
    fn everyone_is_found_in_front_or_behind_and_never_as_another() {
        let both = Both::crowded(4200);
        let behind = both.behind(4200);
        assert!((1..400).contains(&behind), "{behind} meet another");
        for number in 0..=255 {
            assert!(is_nobodys(both.find(4200, [0x52, 0x54, 0, 1, 2, number])));
        }
    }

    #[test]
    fn a_key_of_another_parent_is_nobodys() {
        let both = Both::crowded(4200);
        assert!(crowd().all(|(_, wanted, _)| is_nobodys(both.find(4201, wanted.mac))));
        let mut unslotted = Both::default();
        unslotted.follow(None, crowd().map(|(id, wanted, slot)| (id, Some((wanted, slot)))));
        assert_eq!(unslotted.words.sub_interfaces.len(), 0);
    }

    #[test]
    fn step_by_step_the_words_are_what_they_would_be_at_once() {
        let mut both = Both::crowded(4200);
        let gone = |id: u64| id.is_multiple_of(3);
        both.follow(
            Some(4200),
            crowd().filter(|(id, ..)| gone(*id)).map(|(id, ..)| (id, None)),
        );
        assert!(
            crowd()
                .filter(|(id, ..)| gone(*id))
                .all(|(_, wanted, _)| is_nobodys(both.find(4200, wanted.mac)))
        );
        both.behind(4200);
        // Another slot for the parent leads all elsewhere.
        both.follow(Some(4300), std::iter::empty());
        both.behind(4300);
        assert!(crowd().all(|(_, wanted, _)| is_nobodys(both.find(4200, wanted.mac))));
        both.follow(Some(4200), crowd().map(|(id, wanted, slot)| (id, Some((wanted, slot)))));
        let at_once = Both::crowded(4200);
        let words = |both: &Both| -> Vec<(u32, u64)> {
            let places = both.words.sub_interfaces.keys_from(0);
            places.map(|place| (place, both.words.sub_interface(place))).collect()
        };
        assert_eq!(words(&both), words(&at_once));
        both.follow(None, std::iter::empty());
        assert_eq!(both.words.sub_interfaces.len(), 0, "without a slot it has no places");
    }
}
