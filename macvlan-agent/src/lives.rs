//! Who has just come, and who has just gone: what the inventory says a moment too early. Pure but for the clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use hashbrown::HashMap;

use crate::topology::{
    inventory::{Inventory, Parent},
    link::LinkKey,
};

/// One that leaves a namespace may appear in another this much later: it moved.
const AWAY: Duration = Duration::from_secs(3);

/// One that is made is down at first, and mostly up before user space hears of it. So much later it is taken to be what
/// it is said to be. Frames for it before that are rare: nobody knows its MAC.
const COMING_UP: Duration = Duration::from_secs(1);

/// A parent that has lost its last sub-interface keeps its programs this much longer: when macvlan's module is replaced,
/// or a container is started anew, the next one gets its first frames before user space hears of it.
const LINGER: Duration = Duration::from_secs(10);

/// What is over is told together with what is over so much later.
const TOGETHER: Duration = Duration::from_millis(250);

/// The first and the last moments of sub-interfaces, and the last of parents.
#[derive(Default)]
pub struct Lives {
    away: HashMap<u64, Instant>,
    coming_up: HashMap<u64, Instant>,
    lingering: BTreeMap<LinkKey, (Instant, Parent)>,
    /// Sub-interfaces of which something is over, until somebody asks.
    over: BTreeSet<u64>,
}

impl Lives {
    /// Notes what changed between two inventories.
    pub fn follow(&mut self, before: &Inventory, after: &Inventory) {
        let now = Instant::now();
        for (id, link) in before.sub_interfaces.differences(&after.sub_interfaces) {
            let Some(link) = link else {
                self.away.insert(id, now + AWAY);
                self.coming_up.remove(&id);
                continue;
            };
            let known = before.sub_interfaces.contains_key(&id) || self.away.remove(&id).is_some();
            if link.up {
                self.coming_up.remove(&id);
            } else if !known && before.complete {
                self.coming_up.insert(id, now + COMING_UP);
            }
        }
        self.over.extend(ended(&mut self.away, now));
        for (key, parent) in before
            .parents
            .iter()
            .filter(|(key, _)| !after.parents.contains_key(key))
        {
            self.lingering.insert(*key, (now + LINGER, parent.clone()));
        }
        self.lingering
            .retain(|key, (until, _)| *until > now && !after.parents.contains_key(key));
    }

    /// Ends the lingering of parents whose namespace is gone.
    pub fn retain_namespaces(&mut self, known: impl Fn(u32) -> bool) {
        self.lingering.retain(|key, _| known(key.netns));
    }

    /// Parents that have no sub-interface any more, and keep their programs for a while.
    pub fn lingering(&self) -> impl Iterator<Item = &Parent> {
        self.lingering.values().map(|(_, parent)| parent)
    }

    /// Whether a parent is one of those.
    #[must_use]
    pub fn lingers(&self, key: LinkKey) -> bool {
        self.lingering.contains_key(&key)
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
        let lingered = self.lingering.len();
        self.over.extend(ended(&mut self.coming_up, now));
        self.over.extend(ended(&mut self.away, now));
        self.lingering.retain(|_, (until, _)| *until > now);
        !self.over.is_empty() || self.lingering.len() < lingered
    }

    /// The sub-interfaces of which something was over since somebody asked last.
    pub fn take_over(&mut self) -> BTreeSet<u64> {
        std::mem::take(&mut self.over)
    }

    /// When something has been over for long enough to be told.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        let lingering = self.lingering.values().map(|(until, _)| until);
        self.coming_up
            .values()
            .chain(self.away.values())
            .chain(lingering)
            .min()
            .map(|until| *until + TOGETHER)
    }
}

/// Takes out those whose time is over.
fn ended(lives: &mut HashMap<u64, Instant>, now: Instant) -> impl Iterator<Item = u64> {
    lives.extract_if(move |_, until| *until <= now).map(|(id, _)| id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{inventory::SubInterface, link::LinkKey};

    fn inventory(links: &[(u64, bool)]) -> Inventory {
        let key = LinkKey { netns: 1, ifindex: 2 };
        let link = |&(id, up): &(u64, bool)| SubInterface {
            up,
            ..SubInterface::example(id, key, key)
        };
        let sub_interfaces = links.iter().map(link).collect();
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
    fn a_parent_lingers_when_its_last_sub_interface_goes_unless_its_namespace_goes_as_well() {
        let key = LinkKey { netns: 1, ifindex: 2 };
        let parent = Parent {
            key,
            name: "eth0".to_owned(),
            netns: "host".to_owned(),
            display: "eth0".to_owned(),
            mac: [2, 0, 0, 0, 0, 9],
            up: true,
            mtu: 1500,
            promiscuity: 0,
            kind: "physical".to_owned(),
            broadcast_queue_limit: None,
            addresses: Vec::new(),
            unknown_macs: None,
        };
        let mut with = inventory(&[(1, true)]);
        with.parents.insert(key, parent);
        let without = inventory(&[]);
        let mut lives = Lives::default();
        lives.follow(&with, &without);
        assert!(lives.lingers(key));
        lives.follow(&without, &with);
        assert!(!lives.lingers(key), "it has one again");
        lives.follow(&with, &without);
        lives.retain_namespaces(|netns| netns != 1);
        assert_eq!(lives.lingering().count(), 0);
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
