//! From what happens to what there is: events of all namespaces in, an inventory out.
//!
//! Pure: it asks nobody and knows no time but what it is told. What it would have to ask the kernel for (which namespace
//! an id stands for) it says in [`Tracker::wanted`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
    time::Instant,
};

use super::{
    address::Address,
    follower::Event,
    inventory::SubInterfaces,
    link::{LinkKey, LinkMessage},
    moves::{Half, Moves, Traits},
};

mod facts;

/// After so many dumps that were not sound, what we have is called complete: somebody makes links all the time there.
const PATIENCE: u32 = 5;

#[derive(Debug)]
struct Link {
    facts: LinkMessage,
    id: Option<u64>,
    round: u64,
    /// Made while we followed its namespace: nothing was counted for it before.
    born: bool,
}

#[derive(Default, Debug)]
struct Space {
    label: String,
    links: BTreeMap<u32, Link>,
    /// By the index of their link, each with the round of dumps in which it was last heard of.
    addresses: BTreeMap<u32, BTreeMap<Address, u64>>,
    /// Of those the IPv4 addresses, until one of them changes.
    ipv4: Option<BTreeSet<Ipv4Addr>>,
    round: u64,
    unsound: u32,
    read: bool,
}

/// Links of which an inventory may say something else than before.
#[derive(Debug)]
enum Touched {
    All,
    Some(BTreeSet<u32>),
}

/// All that is known of all namespaces.
#[derive(Default, Debug)]
pub(super) struct Tracker {
    own: u32,
    spaces: BTreeMap<u32, Space>,
    /// (namespace, id there) to the namespace meant; None when that is not one that we know.
    nsids: HashMap<(u32, i32), Option<u32>>,
    wanted: BTreeSet<(u32, i32)>,
    restless: BTreeSet<u32>,
    moves: Moves,
    /// The broadcast queue's length in use, as last heard from a sub-interface of the parent.
    queues: HashMap<LinkKey, u32>,
    ids: u64,
    resyncs: u64,
    /// How many sub-interfaces went or moved.
    departures: u64,
    /// By namespace.
    touched: BTreeMap<u32, Touched>,
    /// Sub-interfaces as they stand in an inventory.
    made: SubInterfaces,
    /// Which of them stand on one parent.
    standing: BTreeMap<LinkKey, BTreeSet<u64>>,
}

impl Tracker {
    pub(super) fn new(own: u32) -> Self {
        Self { own, ..Self::default() }
    }

    pub(super) fn add(&mut self, netns: u32, label: &str) {
        self.spaces.insert(
            netns,
            Space {
                label: label.to_owned(),
                ..Space::default()
            },
        );
    }

    pub(super) fn remove(&mut self, netns: u32) {
        let links = self.spaces.remove(&netns).map(|space| space.links);
        for (ifindex, link) in links.into_iter().flatten() {
            self.moves.forget(LinkKey { netns, ifindex });
            if let Some(id) = link.id {
                self.unmake(id);
            }
        }
        self.nsids.retain(|&(asked, _), _| asked != netns);
        for target in self.nsids.values_mut().filter(|target| **target == Some(netns)) {
            *target = None;
        }
        self.wanted.retain(|&(asked, _)| asked != netns);
        self.queues.retain(|parent, _| parent.netns != netns);
        self.touch_everything();
    }

    /// Another namespace may be meant by an id now.
    fn touch_everything(&mut self) {
        self.touched = self.spaces.keys().map(|netns| (*netns, Touched::All)).collect();
    }

    /// What an inventory says of this link may not hold any more.
    fn touch(&mut self, netns: u32, ifindex: u32) {
        let touched = self
            .touched
            .entry(netns)
            .or_insert_with(|| Touched::Some(BTreeSet::new()));
        if let Touched::Some(ifindexes) = touched {
            ifindexes.insert(ifindex);
        }
    }

    /// Has this namespace been read as a whole?
    pub(super) fn is_read(&self, netns: u32) -> bool {
        self.spaces.get(&netns).is_some_and(|space| space.read)
    }

    pub(super) fn apply(&mut self, netns: u32, event: Event, now: Instant) {
        let Some(space) = self.spaces.get_mut(&netns) else {
            return;
        };
        match event {
            Event::DumpBegins => space.round += 1,
            Event::DumpEnds { sound } => self.dump_ends(netns, sound, now),
            Event::Resync => {
                self.resyncs += 1;
                // That an id was given to another namespace may be among what was lost.
                self.wanted
                    .extend(self.nsids.keys().filter(|&&(asked, _)| asked == netns));
            }
            Event::Link(message) => self.link(netns, message, now),
            Event::LinkGone(message) => self.gone(
                LinkKey {
                    netns,
                    ifindex: message.ifindex,
                },
                Some(&message),
                now,
            ),
            Event::Address(address) => {
                let ifindex = address.ifindex;
                space.address_changes(&address);
                space.addresses.entry(ifindex).or_default().insert(address, space.round);
                self.touch(netns, ifindex);
            }
            Event::AddressGone(address) => {
                space.address_changes(&address);
                if let Some(addresses) = space.addresses.get_mut(&address.ifindex) {
                    addresses.remove(&address);
                }
                self.touch(netns, address.ifindex);
            }
            Event::NsidGone(nsid) => {
                self.nsids.remove(&(netns, nsid));
                self.touch_everything();
            }
        }
    }

    /// Ids of namespaces whose meaning has to be asked for: (in which namespace, which id). Each is given once.
    pub(super) fn wanted(&mut self) -> BTreeSet<(u32, i32)> {
        std::mem::take(&mut self.wanted)
    }

    /// Ids that stood for none of the namespaces known when it was asked.
    pub(super) fn unresolved(&self) -> Vec<(u32, i32)> {
        self.nsids
            .iter()
            .filter(|(_, target)| target.is_none())
            .map(|(&asked, _)| asked)
            .collect()
    }

    /// What was asked for.
    pub(super) fn resolved(&mut self, netns: u32, nsid: i32, target: Option<u32>, now: Instant) {
        self.nsids.insert((netns, nsid), target);
        self.touch_everything();
        if target.is_none() {
            return;
        }
        let mut links = Vec::new();
        for (&home, space) in &self.spaces {
            let meant =
                |link: &&Link| link.facts.macvlan.is_some() && self.nsid_of(home, &link.facts) == Some((netns, nsid));
            links.extend(space.links.values().filter(meant).map(|link| LinkKey {
                netns: home,
                ifindex: link.facts.ifindex,
            }));
        }
        for link in links {
            self.settle(link, now);
        }
    }

    /// The id of the namespace that a link's parent is in, and in which namespace it is valid.
    fn nsid_of(&self, netns: u32, facts: &LinkMessage) -> Option<(u32, i32)> {
        let asked = if facts.nsid_is_askers { self.own } else { netns };
        facts.link_nsid.map(|nsid| (asked, nsid))
    }

    /// How many sub-interfaces went or moved until now.
    pub(super) fn departures(&self) -> u64 {
        self.departures
    }

    /// Namespaces that have to be dumped anew: a parent moved, of which the kernel does not tell its sub-interfaces'
    /// namespaces. Each is given once.
    pub(super) fn restless(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.restless)
    }

    fn dump_ends(&mut self, netns: u32, sound: bool, now: Instant) {
        let Some(space) = self.spaces.get_mut(&netns) else {
            return;
        };
        let round = space.round;
        space.unsound = if sound { 0 } else { space.unsound + 1 };
        space.read |= sound || space.unsound >= PATIENCE;
        if !sound {
            return;
        }
        for addresses in space.addresses.values_mut() {
            addresses.retain(|_, heard| *heard >= round);
        }
        space.addresses.retain(|_, addresses| !addresses.is_empty());
        space.ipv4 = None;
        self.touched.insert(netns, Touched::All);
        let gone: Vec<u32> = space
            .links
            .iter()
            .filter(|(_, link)| link.round < round)
            .map(|(&i, _)| i)
            .collect();
        for ifindex in gone {
            self.gone(LinkKey { netns, ifindex }, None, now);
        }
    }

    fn link(&mut self, netns: u32, facts: LinkMessage, now: Instant) {
        let key = LinkKey {
            netns,
            ifindex: facts.ifindex,
        };
        let Some(space) = self.spaces.get(&netns) else { return };
        if space
            .links
            .get(&key.ifindex)
            .is_some_and(|link| !same(&link.facts, &facts))
        {
            // Its end was lost in an overrun, and another one has its index.
            self.gone(key, None, now);
        }
        let Some(space) = self.spaces.get_mut(&netns) else {
            return;
        };
        let known = space.links.get(&key.ifindex);
        let (id, born) = known.map_or((None, space.read), |link| (link.id, link.born));
        space.links.insert(
            key.ifindex,
            Link {
                facts,
                id,
                round: space.round,
                born,
            },
        );
        self.touch(netns, key.ifindex);
        self.settle(key, now);
    }

    /// Gives a sub-interface its id as soon as its parent is known, and takes from it what it tells of that.
    fn settle(&mut self, key: LinkKey, now: Instant) {
        let Some(link) = self
            .spaces
            .get(&key.netns)
            .and_then(|space| space.links.get(&key.ifindex))
        else {
            return;
        };
        let Some(macvlan) = &link.facts.macvlan else { return };
        if let Some((asked, nsid)) = self.nsid_of(key.netns, &link.facts).filter(|&(_, nsid)| nsid >= 0)
            && !self.nsids.contains_key(&(asked, nsid))
        {
            self.wanted.insert((asked, nsid));
        }
        let Some(parent) = self.parent_of(key.netns, &link.facts) else {
            return;
        };
        if let Some(used) = macvlan.queue_used {
            self.queues.insert(parent, used);
        }
        if link.id.is_some() {
            return;
        }
        let Some(traits) = self.traits(key) else { return };
        self.ids += 1;
        let half = Half {
            id: self.ids,
            key,
            new_ifindex: None,
            traits,
            at: now,
        };
        let id = self.moves.arrives(half).unwrap_or(self.ids);
        self.set_id(key, id);
    }

    /// A link ended or moved: `message` says which; without one it is found missing, which may be either.
    fn gone(&mut self, key: LinkKey, message: Option<&LinkMessage>, now: Instant) {
        let traits = self.traits(key);
        let Some(space) = self.spaces.get_mut(&key.netns) else {
            return;
        };
        if space.addresses.remove(&key.ifindex).is_some() {
            space.ipv4 = None;
        }
        let Some(link) = space.links.remove(&key.ifindex) else {
            return;
        };
        if let Some(id) = link.id {
            self.unmake(id);
        }
        self.moves.forget(key);
        let moved = message.is_none_or(|message| message.new_netns);
        if link.facts.macvlan.is_none() {
            if moved {
                self.parent_moved(key);
            }
            return;
        }
        let Some((traits, id)) = traits.zip(link.id) else {
            return;
        };
        self.queues.remove(&traits.parent);
        self.departures += 1;
        if moved {
            let new_ifindex = message.and_then(|message| message.new_ifindex);
            if let Some(arrived) = self.moves.departs(Half {
                id,
                key,
                new_ifindex,
                traits,
                at: now,
            }) {
                self.set_id(arrived, id);
            }
        }
    }

    fn parent_moved(&mut self, parent: LinkKey) {
        for (&netns, space) in &self.spaces {
            let stands = |link: &Link| self.parent_of(netns, &link.facts) == Some(parent);
            if space
                .links
                .values()
                .any(|link| link.facts.macvlan.is_some() && stands(link))
            {
                self.restless.insert(netns);
            }
        }
    }

    fn set_id(&mut self, key: LinkKey, id: u64) {
        if let Some(link) = self
            .spaces
            .get_mut(&key.netns)
            .and_then(|space| space.links.get_mut(&key.ifindex))
        {
            let before = link.id.replace(id);
            if let Some(before) = before {
                self.unmake(before);
            }
            self.touch(key.netns, key.ifindex);
        }
    }

    fn traits(&self, key: LinkKey) -> Option<Traits> {
        let facts = &self.spaces.get(&key.netns)?.links.get(&key.ifindex)?.facts;
        let parent = self.parent_of(key.netns, facts)?;
        let kind = facts.macvlan.as_ref()?.kind;
        Some(Traits {
            parent,
            kind,
            mac: facts.mac.unwrap_or_default(),
            name: facts.name.clone(),
        })
    }

    /// Where the link is that this one stands on. The kernel may leave `IFLA_LINK` out when it is this one's own index.
    fn parent_of(&self, netns: u32, facts: &LinkMessage) -> Option<LinkKey> {
        let Some(asked) = self.nsid_of(netns, facts) else {
            return facts.link.map(|ifindex| LinkKey { netns, ifindex });
        };
        let netns = (*self.nsids.get(&asked)?)?;
        Some(LinkKey {
            netns,
            ifindex: facts.link.unwrap_or(facts.ifindex),
        })
    }
}

impl Space {
    /// An address comes or goes.
    fn address_changes(&mut self, address: &Address) {
        if address.ip.is_ipv4() {
            self.ipv4 = None;
        }
    }
}

/// Can these two describe one link? A name and a MAC change one at a time, the kind never.
fn same(before: &LinkMessage, after: &LinkMessage) -> bool {
    before.kind == after.kind && (before.name == after.name || before.mac == after.mac)
}

#[cfg(test)]
mod tests;
