//! The inventory that follows from what the tracker holds.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::{IpAddr, Ipv4Addr},
};

use super::{Link, Space, Touched, Tracker};
use crate::topology::{
    inventory::{Inventory, Parent, SubInterface},
    link::{LinkKey, LinkMessage},
};

/// `IF_OPER_DOWN` and `IF_OPER_LOWERLAYERDOWN` of `linux/if.h`.
const OPER_DOWN: u8 = 2;
const OPER_LOWER_LAYER_DOWN: u8 = 3;

impl Tracker {
    /// What there is now. `complete` and `unreadable` are the watcher's to say.
    pub(in crate::topology) fn inventory(&mut self) -> Inventory {
        self.make();
        let mut inventory = Inventory {
            own: self.own,
            departures: self.departures,
            netlink_resyncs: self.resyncs,
            sub_interfaces: self.made.clone(),
            ..Inventory::default()
        };
        for (&key, ids) in &self.standing {
            let home = self.spaces.get(&key.netns);
            let Some((home, link)) = home.and_then(|home| Some((home, home.links.get(&key.ifindex)?))) else {
                // Not heard of yet, or no more.
                for id in ids {
                    inventory.sub_interfaces.remove(*id);
                }
                continue;
            };
            let mut parent = self.parent(key, home, &link.facts);
            if parent.broadcast_queue_limit.is_none() {
                parent.broadcast_queue_limit = ids.iter().filter_map(|id| self.queue_asked(*id)).max();
            }
            inventory.parents.insert(key, parent);
        }
        for netns in inventory.parents.keys().map(|key| key.netns) {
            if let (Entry::Vacant(vacant), Some(home)) = (inventory.host_ipv4.entry(netns), self.spaces.get_mut(&netns))
            {
                vacant.insert(home.ipv4().clone());
            }
        }
        inventory
    }

    /// The length of the broadcast queue that a sub-interface asks for.
    fn queue_asked(&self, id: u64) -> Option<u32> {
        let LinkKey { netns, ifindex } = self.made.get(&id)?.key;
        let facts = &self.spaces.get(&netns)?.links.get(&ifindex)?.facts;
        facts.macvlan.as_ref()?.queue_asked
    }

    /// Makes those sub-interfaces that may have changed.
    fn make(&mut self) {
        for (netns, touched) in std::mem::take(&mut self.touched) {
            let Some(space) = self.spaces.get(&netns) else { continue };
            let ifindexes: Vec<u32> = match touched {
                Touched::Some(ifindexes) => ifindexes.into_iter().collect(),
                Touched::All => space.links.keys().copied().collect(),
            };
            let links = ifindexes.iter().filter_map(|ifindex| space.links.get(ifindex));
            let made: Vec<(u64, Option<SubInterface>)> = links
                .filter_map(|link| Some((link.id?, self.sub_interface(netns, space, link))))
                .collect();
            for (id, sub) in made {
                match sub {
                    Some(sub) => self.put(sub),
                    None => self.unmake(id),
                }
            }
        }
    }

    fn put(&mut self, sub: SubInterface) {
        let before = self.made.get(&sub.id);
        if before.is_some_and(|before| **before == sub) {
            return;
        }
        if let Some(before) = before
            && before.parent != sub.parent
        {
            leave(&mut self.standing, before.parent, sub.id);
        }
        self.standing.entry(sub.parent).or_default().insert(sub.id);
        self.made.insert(sub);
    }

    /// No sub-interface has this id any more.
    pub(super) fn unmake(&mut self, id: u64) {
        if let Some(sub) = self.made.remove(id) {
            leave(&mut self.standing, sub.parent, id);
        }
    }

    /// Of each of these links its MAC and those of all that stand on it.
    pub(in crate::topology) fn macs_on(
        &self,
        parents: impl Iterator<Item = LinkKey>,
    ) -> BTreeMap<LinkKey, BTreeSet<[u8; 6]>> {
        let mut macs: BTreeMap<_, _> = parents.map(|parent| (parent, BTreeSet::new())).collect();
        for (&netns, space) in &self.spaces {
            for link in space.links.values() {
                let Some(mac) = link.facts.mac else { continue };
                let own = LinkKey {
                    netns,
                    ifindex: link.facts.ifindex,
                };
                for key in [Some(own), self.parent_of(netns, &link.facts)].into_iter().flatten() {
                    if let Some(macs) = macs.get_mut(&key) {
                        macs.insert(mac);
                    }
                }
            }
        }
        macs
    }

    fn sub_interface(&self, netns: u32, space: &Space, link: &Link) -> Option<SubInterface> {
        let facts = &link.facts;
        let macvlan = facts.macvlan.as_ref()?;
        Some(SubInterface {
            id: link.id?,
            key: LinkKey {
                netns,
                ifindex: facts.ifindex,
            },
            parent: self.parent_of(netns, facts)?,
            name: facts.name.clone(),
            netns: space.label.clone(),
            mac: facts.mac.unwrap_or_default(),
            mode: macvlan.mode,
            kind: macvlan.kind,
            up: facts.up,
            no_carrier: facts.up && matches!(facts.oper_state, OPER_DOWN | OPER_LOWER_LAYER_DOWN),
            keeps_source: macvlan.keeps_source,
            mtu: facts.mtu,
            addresses: space.addresses_of(facts.ifindex),
            born: link.born,
        })
    }

    fn parent(&self, key: LinkKey, home: &Space, facts: &LinkMessage) -> Parent {
        let name = facts.name.clone();
        Parent {
            key,
            display: if key.netns == self.own {
                name.clone()
            } else {
                format!("{}/{name}", home.label)
            },
            name,
            netns: home.label.clone(),
            mac: facts.mac.unwrap_or_default(),
            up: facts.up,
            mtu: facts.mtu,
            promiscuity: facts.promiscuity,
            kind: facts.kind.clone().unwrap_or_else(|| "physical".to_owned()),
            broadcast_queue_limit: self.queues.get(&key).copied(),
            addresses: home.addresses_of(key.ifindex),
            unknown_macs: None,
        }
    }
}

impl Space {
    /// The IPv4 addresses of all its links, without 127.0.0.0/8.
    fn ipv4(&mut self) -> &BTreeSet<Ipv4Addr> {
        self.ipv4.get_or_insert_with(|| {
            let addresses = self.addresses.values().flat_map(BTreeMap::keys);
            let ips = addresses.filter_map(|address| match address.ip {
                IpAddr::V4(ip) if !ip.is_loopback() => Some(ip),
                _ => None,
            });
            ips.collect()
        })
    }

    fn addresses_of(&self, ifindex: u32) -> Vec<IpAddr> {
        let ips: BTreeSet<IpAddr> = self
            .addresses
            .get(&ifindex)
            .into_iter()
            .flatten()
            .map(|(address, _)| address.ip)
            .collect();
        ips.into_iter().collect()
    }
}

/// A sub-interface stands on this parent no more.
fn leave(standing: &mut BTreeMap<LinkKey, BTreeSet<u64>>, parent: LinkKey, id: u64) {
    if let Some(ids) = standing.get_mut(&parent) {
        ids.remove(&id);
        if ids.is_empty() {
            standing.remove(&parent);
        }
    }
}
