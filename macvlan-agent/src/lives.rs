//! Who has just come, and who has just gone: what the inventory says a moment too early. Pure but for the clock.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::topology::inventory::Inventory;

/// One that leaves a namespace may appear in another this much later: it moved.
const AWAY: Duration = Duration::from_secs(3);

/// One that is made is down at first, and mostly up before user space hears of it. So much later it is taken to be what
/// it is said to be. Frames for it before that are rare: nobody knows its MAC.
const COMING_UP: Duration = Duration::from_secs(1);

/// The first and the last moments of sub-interfaces.
#[derive(Default)]
pub struct Lives {
    away: HashMap<u64, Instant>,
    coming_up: HashMap<u64, Instant>,
}

impl Lives {
    /// Notes what changed between two inventories.
    pub fn follow(&mut self, before: &Inventory, after: &Inventory) {
        let now = Instant::now();
        for id in before
            .sub_interfaces
            .keys()
            .filter(|id| !after.sub_interfaces.contains_key(id))
        {
            self.away.insert(*id, now + AWAY);
            self.coming_up.remove(id);
        }
        for link in after.sub_interfaces.values() {
            let known = before.sub_interfaces.contains_key(&link.id) || self.away.remove(&link.id).is_some();
            if link.up {
                self.coming_up.remove(&link.id);
            } else if !known && before.complete {
                self.coming_up.insert(link.id, now + COMING_UP);
            }
        }
        self.away.retain(|_, until| *until > now);
    }

    /// Whether one that is gone may come back.
    #[must_use]
    pub fn is_away(&self, id: u64) -> bool {
        self.away.contains_key(&id)
    }

    /// Whether one that is said to be down is likely to be up.
    #[must_use]
    pub fn is_coming_up(&self, id: u64) -> bool {
        self.coming_up.contains_key(&id)
    }

    /// Ends what is over; says whether anything is.
    pub fn settle(&mut self) -> bool {
        let now = Instant::now();
        let before = self.coming_up.len() + self.away.len();
        self.coming_up.retain(|_, until| *until > now);
        self.away.retain(|_, until| *until > now);
        self.coming_up.len() + self.away.len() < before
    }

    /// When something is over next.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.coming_up.values().chain(self.away.values()).min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{
        inventory::SubInterface,
        link::{Kind, LinkKey, Mode},
    };

    fn inventory(links: &[(u64, bool)]) -> Inventory {
        let key = LinkKey { netns: 1, ifindex: 2 };
        let link = |&(id, up): &(u64, bool)| SubInterface {
            id,
            key,
            parent: key,
            name: "macv1".to_owned(),
            netns: "host".to_owned(),
            mac: [2, 0, 0, 0, 0, 1],
            mode: Mode::Bridge,
            kind: Kind::Macvlan,
            up,
            no_carrier: false,
            keeps_source: false,
            mtu: 1500,
            addresses: Vec::new(),
            born: true,
        };
        let sub_interfaces = links.iter().map(|each| (each.0, link(each))).collect();
        Inventory {
            sub_interfaces,
            complete: true,
            ..Inventory::default()
        }
    }

    #[test]
    fn a_new_one_is_coming_up_until_it_is_up() {
        let mut lives = Lives::default();
        lives.follow(&inventory(&[]), &inventory(&[(1, false)]));
        assert!(lives.is_coming_up(1));
        lives.follow(&inventory(&[(1, false)]), &inventory(&[(1, true)]));
        assert!(!lives.is_coming_up(1));
        lives.follow(&inventory(&[(1, true)]), &inventory(&[(1, false)]));
        assert!(!lives.is_coming_up(1), "it was set down");
    }

    #[test]
    fn those_of_the_first_inventory_are_what_they_are() {
        let mut lives = Lives::default();
        lives.follow(&Inventory::default(), &inventory(&[(1, false)]));
        assert!(!lives.is_coming_up(1));
    }

    #[test]
    fn one_that_left_may_come_back() {
        let mut lives = Lives::default();
        lives.follow(&inventory(&[(1, true)]), &inventory(&[]));
        assert!(lives.is_away(1));
        lives.follow(&inventory(&[]), &inventory(&[(1, false)]));
        assert!(!lives.is_away(1));
        assert!(!lives.is_coming_up(1), "it is an old one");
    }
}
