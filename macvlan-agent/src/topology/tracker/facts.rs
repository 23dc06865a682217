//! The inventory that follows from what the tracker holds.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{Link, Space, Tracker};
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
            departures: self.departures,
            netlink_resyncs: self.resyncs,
            ..Inventory::default()
        };
        let mut sub_interfaces = Vec::new();
        // Those of one parent stand together, as a rule.
        let mut same = None;
        for link in self.spaces.values().flat_map(|space| space.links.values()) {
            let Some(sub) = &link.made else { continue };
            if same != Some(sub.parent) {
                let Some(home) = self.spaces.get(&sub.parent.netns) else {
                    continue;
                };
                let Some(parent) = home.links.get(&sub.parent.ifindex) else {
                    continue;
                };
                let parent = inventory
                    .parents
                    .entry(sub.parent)
                    .or_insert_with_key(|&key| self.parent(key, home, &parent.facts));
                if self.queues.contains_key(&sub.parent) {
                    same = Some(sub.parent);
                } else {
                    let asked = link.facts.macvlan.as_ref().and_then(|macvlan| macvlan.queue_asked);
                    parent.broadcast_queue_limit = parent.broadcast_queue_limit.max(asked);
                }
            }
            sub_interfaces.push((sub.id, Arc::clone(sub)));
        }
        inventory.sub_interfaces = sub_interfaces.into_iter().collect();
        for netns in inventory.parents.keys().map(|key| key.netns) {
            inventory.host_ipv4.entry(netns).or_insert_with(|| {
                let addresses = self
                    .spaces
                    .get(&netns)
                    .into_iter()
                    .flat_map(|space| space.addresses.values());
                let ips = addresses
                    .flat_map(BTreeMap::keys)
                    .filter_map(|address| match address.ip {
                        IpAddr::V4(ip) if !ip.is_loopback() => Some(ip),
                        _ => None,
                    });
                ips.collect()
            });
        }
        inventory
    }

    /// Makes those sub-interfaces that have changed.
    fn make(&mut self) {
        let mut made = Vec::new();
        for (&netns, space) in &self.spaces {
            let unmade = space.links.values().filter(|link| link.made.is_none());
            made.extend(unmade.filter_map(|link| self.sub_interface(netns, space, link)));
        }
        for sub in made {
            let LinkKey { netns, ifindex } = sub.key;
            let space = self.spaces.get_mut(&netns);
            if let Some(link) = space.and_then(|space| space.links.get_mut(&ifindex)) {
                link.made = Some(Arc::new(sub));
            }
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
    /// What an inventory says of this link does not hold any more.
    pub(super) fn forget_made(&mut self, ifindex: u32) {
        if let Some(link) = self.links.get_mut(&ifindex) {
            link.made = None;
        }
    }

    /// What an inventory says of any of its links does not hold any more.
    pub(super) fn forget_all_made(&mut self) {
        for link in self.links.values_mut() {
            link.made = None;
        }
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
