//! What there is, as facts: parents, sub-interfaces, addresses. Pure values; `tracker` makes them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    ops::Deref,
    sync::Arc,
};

use imbl::{OrdMap, ordmap::DiffItem};

use super::link::{Kind, LinkKey, Mode};

/// A link that at least one known sub-interface stands on.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Parent {
    /// Where it is.
    pub key: LinkKey,
    /// Its name there.
    pub name: String,
    /// The label of its namespace.
    pub netns: String,
    /// Its name when it is in the agent's own namespace, else `LABEL/NAME`.
    pub display: String,
    /// Its MAC.
    pub mac: [u8; 6],
    /// Set up by an administrator (`IFF_UP`).
    pub up: bool,
    /// Its MTU.
    pub mtu: u32,
    /// How many ask it to be promiscuous. The kernel tells when this becomes 0 or ceases to be, not other changes.
    pub promiscuity: u32,
    /// What `ip link` calls its type: `veth`, `bond`, `vlan`, `bridge`, `dummy`; `physical` when it has none.
    pub kind: String,
    /// The length of the broadcast queue in use, as its sub-interfaces tell it; since Linux 5.11.
    pub broadcast_queue_limit: Option<u32>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// How many MACs it receives frames for that no known link has; none where that cannot be asked.
    pub unknown_macs: Option<usize>,
}

/// A macvlan or macvtap device.
#[derive(Clone, Eq, PartialEq, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts that netlink tells")]
pub struct SubInterface {
    /// Which incarnation this is. Kept over a new name, MAC, mode or namespace; a link that is created again has another.
    pub id: u64,
    /// Where it is.
    pub key: LinkKey,
    /// Its parent, which is always among the parents of the same inventory.
    pub parent: LinkKey,
    /// Its name there.
    pub name: String,
    /// The label of its namespace.
    pub netns: String,
    /// Its MAC.
    pub mac: [u8; 6],
    /// Its mode.
    pub mode: Mode,
    /// Macvlan or macvtap.
    pub kind: Kind,
    /// Set up by an administrator (`IFF_UP`).
    pub up: bool,
    /// Whether its parent is down or has no carrier (`IFLA_OPERSTATE`).
    pub no_carrier: bool,
    /// Whether, in mode source, the parent does not see what it takes.
    pub keeps_source: bool,
    /// Its MTU.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it was made while its namespace was followed: then the kernel's counters of it began with it.
    pub born: bool,
}

/// Sub-interfaces, by their id. What one state of them has like the one before, the two share: with thousands of them a
/// change costs what has changed.
#[derive(Clone, Default, Eq, PartialEq, Debug)]
pub struct SubInterfaces {
    by_id: OrdMap<u64, Arc<SubInterface>>,
    in_netns: OrdMap<u32, usize>,
}

impl SubInterfaces {
    /// There is this one, or it is so now.
    pub fn insert(&mut self, sub: SubInterface) {
        let netns = sub.key.netns;
        self.remove(sub.id);
        *self.in_netns.entry(netns).or_insert(0) += 1;
        self.by_id.insert(sub.id, Arc::new(sub));
    }

    /// There is this one no more.
    pub fn remove(&mut self, id: u64) -> Option<Arc<SubInterface>> {
        let sub = self.by_id.remove(&id)?;
        if let Some(count) = self.in_netns.get_mut(&sub.key.netns) {
            *count -= 1;
            if *count == 0 {
                self.in_netns.remove(&sub.key.netns);
            }
        }
        Some(sub)
    }

    /// The namespaces (by inode) that they are in, and how many are in each.
    pub fn namespaces(&self) -> impl Iterator<Item = (u32, usize)> {
        self.in_netns.iter().map(|(netns, count)| (*netns, *count))
    }

    /// Each that `after` has otherwise, in order of their ids, as it is there: none where it is gone.
    pub fn differences<'subs>(
        &'subs self,
        after: &'subs Self,
    ) -> impl Iterator<Item = (u64, Option<&'subs SubInterface>)> {
        self.by_id.diff(&after.by_id).map(|difference| match difference {
            DiffItem::Add(id, sub) | DiffItem::Update { new: (id, sub), .. } => (*id, Some(&**sub)),
            DiffItem::Remove(id, _) => (*id, None),
        })
    }
}

impl Deref for SubInterfaces {
    type Target = OrdMap<u64, Arc<SubInterface>>;

    fn deref(&self) -> &Self::Target {
        &self.by_id
    }
}

impl FromIterator<SubInterface> for SubInterfaces {
    fn from_iter<I: IntoIterator<Item = SubInterface>>(subs: I) -> Self {
        let mut all = Self::default();
        for sub in subs {
            all.insert(sub);
        }
        all
    }
}

/// What is known at one time.
#[derive(Clone, Default, Eq, PartialEq, Debug)]
pub struct Inventory {
    /// The agent's own namespace (by inode), where no limit of a namespace holds.
    pub own: u32,
    /// The parents.
    pub parents: BTreeMap<LinkKey, Parent>,
    /// The sub-interfaces.
    pub sub_interfaces: SubInterfaces,
    /// Of each namespace (by inode) that holds a parent, all its IPv4 addresses, whichever link they are on: Linux
    /// answers for any of them on every link. Without 127.0.0.0/8.
    pub host_ipv4: BTreeMap<u32, BTreeSet<Ipv4Addr>>,
    /// Which sub-interfaces get no counts of their own, since the configuration limits how many do.
    pub over_limit: BTreeSet<u64>,
    /// How many sub-interfaces went or moved until now.
    pub departures: u64,
    /// How many times a namespace was dumped anew because something had been lost.
    pub netlink_resyncs: u64,
    /// All namespaces that there were at the start have been read (or are unreadable).
    pub complete: bool,
    /// The namespaces that could not be read: label and reason.
    pub unreadable: Vec<(String, String)>,
    /// The namespaces (by inode) that a file keeps alive: to hold one of the others open would keep it from ending.
    pub mounted: BTreeSet<u32>,
    /// What is missing for seeing everything at once.
    pub problems: Vec<String>,
}

#[cfg(test)]
impl SubInterface {
    /// One that there is nothing special about.
    pub(crate) fn example(id: u64, key: LinkKey, parent: LinkKey) -> Self {
        Self {
            id,
            key,
            parent,
            name: "macv1".to_owned(),
            netns: "host".to_owned(),
            mac: [2, 0, 0, 0, 0, 1],
            mode: Mode::Bridge,
            kind: Kind::Macvlan,
            up: true,
            no_carrier: false,
            keeps_source: false,
            mtu: 1500,
            addresses: Vec::new(),
            born: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lot::Lot;

    fn sub(id: u64, netns: u32, up: bool) -> SubInterface {
        let key = LinkKey { netns, ifindex: 2 };
        SubInterface {
            up,
            ..SubInterface::example(id, key, key)
        }
    }

    #[test]
    fn each_namespace_has_as_many_as_are_in_it() {
        let mut subs: SubInterfaces = [sub(1, 7, true), sub(2, 7, true), sub(3, 8, true)]
            .into_iter()
            .collect();
        let counts = |subs: &SubInterfaces| subs.namespaces().collect::<Vec<_>>();
        assert_eq!(counts(&subs), [(7, 2), (8, 1)]);
        subs.insert(sub(2, 8, true));
        assert_eq!(counts(&subs), [(7, 1), (8, 2)], "it moved");
        assert!(subs.remove(1).is_some() && subs.remove(1).is_none());
        assert_eq!((counts(&subs), subs.len()), (vec![(8, 2)], 2));
    }

    /// Many changes of many, each state sharing most with the one before.
    #[test]
    fn what_is_otherwise_is_told_and_nothing_else() {
        let mut lot = Lot::new();
        let mut before: SubInterfaces = (0..500).map(|id| sub(id, 7, true)).collect();
        for _ in 0..500 {
            let mut after = before.clone();
            for _ in 0..lot.draw(40) {
                let id = lot.draw(1000);
                if lot.draw(3) == 0 {
                    after.remove(id);
                } else {
                    after.insert(sub(id, 7, lot.draw(2) == 0));
                }
            }
            let ids: BTreeSet<u64> = before.keys().chain(after.keys()).copied().collect();
            let expected = ids.into_iter().filter(|id| before.get(id) != after.get(id));
            let expected: Vec<_> = expected.map(|id| (id, after.get(&id).map(AsRef::as_ref))).collect();
            assert_eq!(before.differences(&after).collect::<Vec<_>>(), expected);
            assert_eq!(before == after, expected.is_empty());
            before = after;
        }
        assert!(before.len() > 100, "most are there");
    }
}
