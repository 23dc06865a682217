//! What the tables should hold by which the programs find slots, kept in step with what is wanted. Pure. What has not
//! changed is not looked at: with thousands of sub-interfaces a change costs what has changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use hashbrown::HashMap;
use macvlan_agent_ebpf::{
    abi::{
        AddressKey, AddressOwner, DeviceEntry, Mode, NO_SLOT, ParentEntry, ParentKey, SlotEntry, SubInterfaceKey,
        key::{PARENT_KEEPS_SOURCE, PARENT_PASSTHRU},
    },
    frame::mapped,
};

use super::claims::Claims;

/// A sub-interface as the tables need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedSubInterface {
    /// Its parent.
    pub parent: ParentKey,
    /// Its MAC.
    pub mac: [u8; 6],
    /// Its mode, as the kernel numbers it.
    pub mode: u8,
    /// Whether it is up.
    pub up: bool,
    /// Its own namespace and interface index.
    pub device: ParentKey,
    /// `DEVICE_TAP` and `DEVICE_NO_CARRIER` of the shared keys.
    pub device_flags: u32,
    /// Whether the parent does not see what it takes.
    pub keeps_source: bool,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it gets counts of its own.
    pub counted: bool,
}

impl WantedSubInterface {
    fn is_passthru(&self) -> bool {
        self.mode == Mode::Passthru as u8
    }

    fn key(&self) -> SubInterfaceKey {
        SubInterfaceKey::new(self.parent, if self.is_passthru() { [0; 6] } else { self.mac })
    }
}

/// A parent as the tables need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedParent {
    /// Which.
    pub key: ParentKey,
    /// Its MAC.
    pub mac: [u8; 6],
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
}

/// All that the tables are made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Sub-interfaces that may be wanted otherwise than before, by their incarnation; none for one that is gone.
    pub sub_interfaces: BTreeMap<u64, Option<WantedSubInterface>>,
    /// All parents.
    pub parents: Vec<WantedParent>,
    /// IPv4 addresses of the parents' namespaces: a host answers for any of them on every interface.
    pub host_ipv4: Vec<(u32, Ipv4Addr)>,
}

/// Who claims an address; the last of several has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Claimant {
    /// A parent, or the host that it is in.
    Parent,
    /// The sub-interface of this incarnation.
    SubInterface(u64),
}

/// A sub-interface with its slot, where it has one.
type Slotted = (WantedSubInterface, Option<u32>);

/// How many sub-interfaces of one parent need a flag of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Needs {
    passthru: usize,
    keeps_source: usize,
}

impl Needs {
    fn of(wanted: &WantedSubInterface) -> Self {
        Self {
            passthru: wanted.is_passthru().into(),
            keeps_source: wanted.keeps_source.into(),
        }
    }

    fn flags(self) -> u32 {
        let flag = |flag, needed: usize| if needed > 0 { flag } else { 0 };
        flag(PARENT_PASSTHRU, self.passthru) | flag(PARENT_KEEPS_SOURCE, self.keeps_source)
    }
}

/// A parent whose slot is another than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) parent: ParentKey,
    /// The slot until now.
    pub(super) before: Option<u32>,
}

/// What the maps should hold.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) sub_interfaces: Claims<SubInterfaceKey, u64, SlotEntry>,
    pub(super) addresses: Claims<AddressKey, Claimant, AddressOwner>,
    pub(super) devices: Claims<ParentKey, u64, DeviceEntry>,
    pub(super) parents: BTreeMap<ParentKey, ParentEntry>,
    wanted: HashMap<u64, Slotted>,
    needs: HashMap<ParentKey, Needs>,
    parents_addresses: BTreeSet<AddressKey>,
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            // Two may have one MAC while one of them is down: frames are for the one that is up.
            sub_interfaces: Claims::new(|claims| claims.iter().find(|(_, entry)| entry.up == 1).or(claims.last())),
            addresses: Claims::new(<[_]>::last),
            devices: Claims::new(<[_]>::last),
            parents: BTreeMap::new(),
            wanted: HashMap::new(),
            needs: HashMap::new(),
            parents_addresses: BTreeSet::new(),
        }
    }
}

impl Tables {
    /// This sub-interface is wanted so, and has this slot; none where it is gone.
    pub(super) fn set(&mut self, id: u64, slotted: Option<Slotted>) {
        if self.wanted.get(&id) == slotted.as_ref() {
            return;
        }
        if let Some((wanted, slot)) = self.wanted.remove(&id) {
            self.need(&wanted, |all, one| *all -= one);
            if slot.is_some() {
                self.withdraw(id, &wanted);
            }
        }
        if let Some((wanted, slot)) = slotted {
            self.need(&wanted, |all, one| *all += one);
            if let Some(slot) = slot {
                self.claim(id, &wanted, slot);
            }
            self.wanted.insert(id, (wanted, slot));
        }
    }

    /// A sub-interface that had to wait for a slot has got one.
    pub(super) fn give_slot(&mut self, id: u64, slot: u32) {
        if let Some((wanted, _)) = self.wanted.get(&id) {
            self.set(id, Some((wanted.clone(), Some(slot))));
        }
    }

    fn need(&mut self, wanted: &WantedSubInterface, change: impl Fn(&mut usize, usize)) {
        let one = Needs::of(wanted);
        if one == Needs::default() {
            return;
        }
        let needs = self.needs.entry(wanted.parent).or_default();
        change(&mut needs.passthru, one.passthru);
        change(&mut needs.keeps_source, one.keeps_source);
        if *needs == Needs::default() {
            self.needs.remove(&wanted.parent);
        }
    }

    fn claim(&mut self, id: u64, wanted: &WantedSubInterface, slot: u32) {
        let entry = SlotEntry {
            slot,
            mode: wanted.mode,
            up: u8::from(wanted.up),
            pad: [0; 2],
        };
        self.sub_interfaces.claim(wanted.key(), id, entry);
        let device = DeviceEntry {
            slot,
            flags: wanted.device_flags,
            parent: wanted.parent,
        };
        self.devices.claim(wanted.device, id, device);
        let owner = AddressOwner {
            slot,
            mode: wanted.mode,
            pad: [0; 3],
        };
        for address in &wanted.addresses {
            let key = address_key(wanted.parent, *address);
            self.addresses.claim(key, Claimant::SubInterface(id), owner);
        }
    }

    fn withdraw(&mut self, id: u64, wanted: &WantedSubInterface) {
        self.sub_interfaces.withdraw(wanted.key(), &id);
        self.devices.withdraw(wanted.device, &id);
        for address in &wanted.addresses {
            let key = address_key(wanted.parent, *address);
            self.addresses.withdraw(key, &Claimant::SubInterface(id));
        }
    }

    /// These are the parents, with their slots as `slot` knows them. Tells whose slot is another than before.
    pub(super) fn set_parents(
        &mut self,
        parents: &[WantedParent],
        host_ipv4: &[(u32, Ipv4Addr)],
        slot: impl Fn(&ParentKey) -> Option<u32>,
    ) -> Vec<Moved> {
        let slotted = parents.iter().filter_map(|parent| Some((parent, slot(&parent.key)?)));
        let host = host_ipv4.iter().map(|&(netns, address)| {
            let any = ParentKey { netns, ifindex: 0 };
            address_key(any, address.into())
        });
        let ipv6 = slotted.clone().flat_map(|(parent, _)| {
            let addresses = parent.addresses.iter().filter(|address| address.is_ipv6());
            addresses.map(|address| address_key(parent.key, *address))
        });
        self.set_parents_addresses(host.chain(ipv6).collect());
        let entries: BTreeMap<ParentKey, ParentEntry> = slotted
            .map(|(parent, slot)| {
                let entry = ParentEntry {
                    slot,
                    mac: parent.mac,
                    flags: self.needs.get(&parent.key).copied().unwrap_or_default().flags(),
                    ..ParentEntry::default()
                };
                (parent.key, entry)
            })
            .collect();
        let before = std::mem::replace(&mut self.parents, entries);
        let slot_in = |parents: &BTreeMap<ParentKey, ParentEntry>, key| parents.get(&key).map(|entry| entry.slot);
        let keys: BTreeSet<ParentKey> = before.keys().chain(self.parents.keys()).copied().collect();
        keys.into_iter()
            .map(|parent| Moved {
                parent,
                before: slot_in(&before, parent),
            })
            .filter(|moved| moved.before != slot_in(&self.parents, moved.parent))
            .collect()
    }

    fn set_parents_addresses(&mut self, addresses: BTreeSet<AddressKey>) {
        let owner = AddressOwner {
            slot: NO_SLOT,
            mode: 0,
            pad: [0; 3],
        };
        for key in self.parents_addresses.difference(&addresses) {
            self.addresses.withdraw(*key, &Claimant::Parent);
        }
        for key in addresses.difference(&self.parents_addresses) {
            self.addresses.claim(*key, Claimant::Parent, owner);
        }
        self.parents_addresses = addresses;
    }

    /// The keys of those that stand on a parent.
    pub(super) fn on(&self, parent: ParentKey) -> impl Iterator<Item = SubInterfaceKey> {
        let first = SubInterfaceKey::new(parent, [0; 6]);
        self.sub_interfaces
            .keys_from(first)
            .take_while(move |key| is_on(key, parent))
    }
}

/// Whether this is the key of one that stands on `parent`.
pub(super) fn is_on(key: &SubInterfaceKey, parent: ParentKey) -> bool {
    (key.netns, key.parent) == (parent.netns, parent.ifindex)
}

/// An address as those ask for it who are on `parent`.
fn address_key(parent: ParentKey, address: IpAddr) -> AddressKey {
    AddressKey {
        netns: parent.netns,
        parent: parent.ifindex,
        address: match address {
            IpAddr::V4(address) => mapped(address.octets()),
            IpAddr::V6(address) => address.octets(),
        },
    }
}

#[cfg(test)]
mod tests;
