//! Who owns which slot, and the tables by which the programs find it.
//!
//! `Tables` is pure: what the maps should hold for what is wanted. `Directory` keeps slots, and brings the maps from
//! what they hold to what they should hold.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use hashbrown::{HashMap, HashSet};
use macvlan_agent_ebpf::{
    abi::{
        AddressKey, AddressOwner, Cell, Change, Counter, DeviceEntry, Direction, Mode, NO_SLOT, ParentEntry, ParentKey,
        SlotEntry, SubInterfaceKey, Table,
        key::{PARENT_KEEPS_SOURCE, PARENT_PASSTHRU},
        limits,
    },
    frame::mapped,
    pending,
};

use super::{
    counts::{Counts, Totals},
    credits::{Credits, Whose},
    fronts::{Fronts, Words},
    load::{ChangeError, Kernel, LoadError},
    room::Room,
};
use crate::differences::differences;

/// A slot that lost its owner waits this long, so that no program still writes it when it is emptied.
const QUARANTINE: Duration = Duration::from_secs(2);

/// A sub-interface as the tables need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedSubInterface {
    /// Its incarnation.
    pub id: u64,
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
    /// Sub-interfaces.
    pub sub_interfaces: Vec<WantedSubInterface>,
    /// Parents.
    pub parents: Vec<WantedParent>,
    /// IPv4 addresses of the parents' namespaces: a host answers for any of them on every interface.
    pub host_ipv4: Vec<(u32, Ipv4Addr)>,
}

/// What the maps hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tables {
    sub_interfaces: BTreeMap<SubInterfaceKey, SlotEntry>,
    parents: BTreeMap<ParentKey, ParentEntry>,
    addresses: BTreeMap<AddressKey, AddressOwner>,
    devices: BTreeMap<ParentKey, DeviceEntry>,
}

/// The tables while they are made: what is in no order yet is put into one at the end.
#[derive(Default)]
struct Draft {
    sub_interfaces: BTreeMap<SubInterfaceKey, SlotEntry>,
    parents: BTreeMap<ParentKey, ParentEntry>,
    addresses: Vec<(AddressKey, AddressOwner)>,
    devices: Vec<(ParentKey, DeviceEntry)>,
}

impl Tables {
    /// The tables for what is wanted, given everybody's slot.
    fn of(wanted: &Wanted, slots: &HashMap<u64, u32>, parent_slots: &HashMap<ParentKey, u32>) -> Self {
        let draft = Draft::of(wanted, slots, parent_slots);
        // Of several for one key the last holds.
        Self {
            sub_interfaces: draft.sub_interfaces,
            parents: draft.parents,
            addresses: draft.addresses.into_iter().collect(),
            devices: draft.devices.into_iter().collect(),
        }
    }
}

impl Draft {
    fn of(wanted: &Wanted, slots: &HashMap<u64, u32>, parent_slots: &HashMap<ParentKey, u32>) -> Self {
        let mut tables = Self::default();
        for (netns, address) in &wanted.host_ipv4 {
            let any = ParentKey {
                netns: *netns,
                ifindex: 0,
            };
            tables.own(any, IpAddr::V4(*address), NO_SLOT, 0);
        }
        for parent in &wanted.parents {
            let Some(&slot) = parent_slots.get(&parent.key) else {
                continue;
            };
            let entry = ParentEntry {
                slot,
                mac: parent.mac,
                ..ParentEntry::default()
            };
            tables.parents.insert(parent.key, entry);
            for address in parent.addresses.iter().filter(|address| address.is_ipv6()) {
                tables.own(parent.key, *address, NO_SLOT, 0);
            }
        }
        for sub_interface in &wanted.sub_interfaces {
            tables.add(sub_interface, slots.get(&sub_interface.id).copied());
        }
        tables
    }

    fn add(&mut self, sub_interface: &WantedSubInterface, slot: Option<u32>) {
        let passthru = sub_interface.mode == Mode::Passthru as u8;
        if passthru && let Some(parent) = self.parents.get_mut(&sub_interface.parent) {
            parent.flags |= PARENT_PASSTHRU;
        }
        if sub_interface.keeps_source
            && let Some(parent) = self.parents.get_mut(&sub_interface.parent)
        {
            parent.flags |= PARENT_KEEPS_SOURCE;
        }
        let Some(slot) = slot else { return };
        let device = DeviceEntry {
            slot,
            flags: sub_interface.device_flags,
            parent: sub_interface.parent,
        };
        self.devices.push((sub_interface.device, device));
        let mac = if passthru { [0; 6] } else { sub_interface.mac };
        let key = SubInterfaceKey::new(sub_interface.parent, mac);
        let entry = SlotEntry {
            slot,
            mode: sub_interface.mode,
            up: u8::from(sub_interface.up),
            pad: [0; 2],
        };
        // Two may have one MAC while one of them is down: frames are for the one that is up.
        let taken = self.sub_interfaces.get(&key).is_some_and(|other| other.up == 1);
        if !taken {
            self.sub_interfaces.insert(key, entry);
        }
        for address in &sub_interface.addresses {
            self.own(sub_interface.parent, *address, slot, sub_interface.mode);
        }
    }

    /// Notes whose an address is, for those who ask for it on `parent`.
    fn own(&mut self, parent: ParentKey, address: IpAddr, slot: u32, mode: u8) {
        let key = AddressKey {
            netns: parent.netns,
            parent: parent.ifindex,
            address: octets(address),
        };
        let owner = AddressOwner {
            slot,
            mode,
            pad: [0; 3],
        };
        self.addresses.push((key, owner));
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => mapped(address.octets()),
        IpAddr::V6(address) => address.octets(),
    }
}

/// What is known of the losses of one ring.
#[derive(Clone, Copy, Debug, Default)]
struct Settled {
    /// Told already: a counter never goes back.
    told: u64,
    /// Answers for which there was no attempt: they are for none of those to come.
    excess: u64,
}

impl Settled {
    /// The losses now. `answered` are attempts that were answered or returned.
    fn settle(&mut self, attempts: u64, pending: u64, answered: u64) -> u64 {
        self.excess = self.excess.max(answered.saturating_sub(attempts));
        self.told = self.told.max(pending::lost(attempts, pending, answered - self.excess));
        self.told
    }
}

/// An owner of a slot.
#[derive(Default)]
struct Owner {
    slot: u32,
    /// Cells of the time before the slot was found by its key.
    credits: Vec<Cell>,
    settled: [Settled; 6],
}

/// What was counted for one owner, with its losses.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Sums over all CPUs.
    pub totals: Totals,
    /// Settled losses by [`Direction`].
    pub lost: [u64; 3],
}

impl Sample {
    /// Of what `totals` reads by a slot and cells beside it; `waiting` counts as well, and is not the owner's yet.
    fn of(totals: impl FnOnce(u32, &[Cell]) -> Totals, owner: &mut Owner, waiting: &[Cell]) -> Self {
        let totals = if waiting.is_empty() {
            totals(owner.slot, &owner.credits)
        } else {
            totals(owner.slot, &[&owner.credits, waiting].concat())
        };
        let mut lost = [0; 3];
        for direction in Direction::ALL {
            for ask in [false, true] {
                let ring = direction.index() * 2 + usize::from(ask);
                // What was not even sent is told as such, and no loss here.
                let unsent = totals.at(Counter::UnsentAttempts, ring);
                let attempts = attempts(&totals, *direction, ask).saturating_sub(unsent);
                let answered = totals.at(Counter::Cancelled, ring);
                let pending = totals.pending(ring);
                if let Some(settled) = owner.settled.get_mut(ring) {
                    lost[direction.index()] += settled.settle(attempts, pending, answered);
                }
            }
        }
        Self { totals, lost }
    }
}

/// Attempts in one direction: unicast, or those that ask for an address.
fn attempts(totals: &Totals, direction: Direction, ask: bool) -> u64 {
    let first = direction.index() * 3;
    let at = |kind: usize| totals.at(Counter::Attempts, first + kind);
    if ask { at(1) + at(2) } else { at(0) }
}

/// A fault of the maps: counted, logged, and tried again with the next change.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// A map is missing.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A map does not take an entry.
    #[error("the map {map} refuses an entry")]
    Entry {
        /// Which.
        map: &'static str,
        /// Why.
        source: Box<ChangeError>,
    },
}

/// The slots and the maps that lead to them.
pub struct Directory {
    counts: Arc<Counts>,
    room: Room,
    sub_interfaces: HashMap<u64, Owner>,
    parents: HashMap<ParentKey, Owner>,
    free: Vec<u32>,
    retired: VecDeque<(Instant, u32)>,
    tables: Tables,
    over_limit: usize,
    credits: Credits,
    fronts: Fronts,
}

impl Directory {
    /// An empty directory over the kernel's maps.
    pub fn new(kernel: &mut Kernel) -> Result<Self, LoadError> {
        let counts = kernel.counts();
        let fronts = Fronts::of(kernel)?;
        let room = kernel.room();
        Ok(Self {
            counts,
            room,
            sub_interfaces: HashMap::new(),
            parents: HashMap::new(),
            free: (0..room.slots()).rev().collect(),
            retired: VecDeque::new(),
            tables: Tables::default(),
            over_limit: 0,
            credits: Credits::default(),
            fronts,
        })
    }

    /// Sub-interfaces that have no slot because there are too many.
    #[must_use]
    pub fn over_limit(&self) -> usize {
        self.over_limit
    }

    /// How many entries a map holds, and how many it can hold.
    #[must_use]
    pub fn fill(&self) -> [(&'static str, usize, u32); 3] {
        [
            (
                "sub_interfaces",
                self.tables.sub_interfaces.len(),
                self.room.sub_interfaces(),
            ),
            ("parents", self.tables.parents.len(), limits::PARENTS),
            ("addresses", self.tables.addresses.len(), self.room.addresses()),
        ]
    }

    /// Brings slots and maps to what is wanted. Those who are away keep their slots: they may come back.
    pub fn apply(
        &mut self,
        kernel: &Kernel,
        wanted: &Wanted,
        away: impl Fn(u64) -> bool,
    ) -> Result<(), DirectoryError> {
        self.assign(wanted, away);
        let slots = self
            .sub_interfaces
            .iter()
            .map(|(id, owner)| (*id, owner.slot))
            .collect();
        let parent_slots = self.parents.iter().map(|(key, owner)| (*key, owner.slot)).collect();
        let tables = Tables::of(wanted, &slots, &parent_slots);
        self.write(kernel, &tables)?;
        self.await_credits(&tables, &slots);
        self.tables = tables;
        Ok(())
    }

    /// Gives slots to who is new, takes them from who is gone. A parent keeps its own: its totals go on when its next
    /// sub-interface comes.
    fn assign(&mut self, wanted: &Wanted, away: impl Fn(u64) -> bool) {
        let gone: Vec<u64> = {
            let counted = wanted.sub_interfaces.iter().filter(|each| each.counted);
            let wanted: HashSet<u64> = counted.map(|each| each.id).collect();
            self.sub_interfaces
                .keys()
                .filter(|id| !wanted.contains(*id) && !away(**id))
                .copied()
                .collect()
        };
        for id in gone {
            if let Some(owner) = self.sub_interfaces.remove(&id) {
                self.retired.push_back((Instant::now() + QUARANTINE, owner.slot));
            }
        }
        for parent in &wanted.parents {
            if !self.parents.contains_key(&parent.key)
                && self.parents.len() < limits::PARENTS as usize
                && let Some(slot) = self.take_slot()
            {
                self.parents.insert(
                    parent.key,
                    Owner {
                        slot,
                        ..Owner::default()
                    },
                );
            }
        }
        self.over_limit = 0;
        for sub_interface in &wanted.sub_interfaces {
            if self.sub_interfaces.contains_key(&sub_interface.id) {
                continue;
            }
            let room = sub_interface.counted && self.sub_interfaces.len() < self.room.sub_interfaces() as usize;
            match room.then(|| self.take_slot()).flatten() {
                Some(slot) => {
                    self.sub_interfaces.insert(
                        sub_interface.id,
                        Owner {
                            slot,
                            ..Owner::default()
                        },
                    );
                }
                None => self.over_limit += 1,
            }
        }
    }

    /// Forgets the parents of namespaces that are gone: another namespace may get the number.
    pub fn retain_namespaces(&mut self, known: impl Fn(u32) -> bool) {
        let due = Instant::now() + QUARANTINE;
        for (_, owner) in self.parents.extract_if(|key, _| !known(key.netns)) {
            self.retired.push_back((due, owner.slot));
        }
    }

    /// An empty slot. The youngest retired one is not touched before its time is over.
    fn take_slot(&mut self) -> Option<u32> {
        let now = Instant::now();
        while let Some(&(due, slot)) = self.retired.front() {
            if due > now {
                break;
            }
            self.retired.pop_front();
            self.counts.clear(slot);
            self.free.push(slot);
        }
        self.free.pop()
    }

    /// Writes the differences.
    fn write(&mut self, kernel: &Kernel, tables: &Tables) -> Result<(), DirectoryError> {
        // First, since it cannot fail: what a map refuses then is at least found in front, and what is gone is not.
        self.fronts.write(Words::of(&tables.parents, &tables.sub_interfaces));
        self.counts.tables_changed();
        let before = &self.tables;
        let (addresses, devices) = ((Table::Addresses, "ADDRESSES"), (Table::Devices, "DEVICES"));
        sync(kernel, addresses, &before.addresses, &tables.addresses)?;
        sync(kernel, devices, &before.devices, &tables.devices)?;
        let (parents, subs) = ((Table::Parents, "PARENTS"), (Table::SubInterfaces, "SUB_INTERFACES"));
        sync(kernel, parents, &before.parents, &tables.parents)?;
        sync(kernel, subs, &before.sub_interfaces, &tables.sub_interfaces)
    }

    /// Notes whose counts may have waited under a key that leads to a slot only now.
    fn await_credits(&mut self, tables: &Tables, slots: &HashMap<u64, u32>) {
        let owners: HashMap<u32, u64> = slots.iter().map(|(id, slot)| (*slot, *id)).collect();
        let before = &self.tables;
        let sub_interfaces = differences(&before.sub_interfaces, &tables.sub_interfaces).filter_map(|(key, entry)| {
            let slot = entry?.slot;
            let known = before.sub_interfaces.get(key).is_some_and(|old| old.slot == slot);
            let id = owners.get(&slot).filter(|_| !known)?;
            Some((Whose::SubInterface(*id), *key))
        });
        let parents = tables.parents.keys().filter(|key| !before.parents.contains_key(key));
        let parents = parents.map(|key| (Whose::Parent(*key), SubInterfaceKey::of_parent(*key)));
        self.credits.expect(sub_interfaces.chain(parents));
    }

    /// Whether counts of a sub-interface may still be waiting under its key.
    #[must_use]
    pub fn awaits_credit(&self, id: u64) -> bool {
        self.credits.awaits(Whose::SubInterface(id))
    }

    /// When the next credit is due.
    #[must_use]
    pub fn next_credit(&self) -> Option<Instant> {
        self.credits.next()
    }

    /// Adds what was counted for sub-interfaces before they were known.
    pub fn collect_credits(&mut self, kernel: &Kernel) {
        for (whose, cells) in self.credits.take_due(kernel) {
            let owner = match whose {
                Whose::SubInterface(id) => self.sub_interfaces.get_mut(&id),
                Whose::Parent(key) => self.parents.get_mut(&key),
            };
            if let Some(owner) = owner {
                owner.credits.extend(cells);
            }
        }
    }

    /// What was counted for a sub-interface. None for one without a slot.
    pub fn sub_interface(&mut self, kernel: &Kernel, id: u64) -> Option<Sample> {
        let waiting = self.credits.waiting(kernel, Whose::SubInterface(id));
        self.sub_interfaces
            .get_mut(&id)
            .map(|owner| Sample::of(|slot, extra| self.counts.of_sub_interface(slot, extra), owner, &waiting))
    }

    /// Some counters of a sub-interface that are not common. None for one without a slot.
    #[must_use]
    pub fn rare<const N: usize>(&self, id: u64, counters: [Counter; N]) -> Option<[u64; N]> {
        let owner = self.sub_interfaces.get(&id)?;
        let mut sums = self.counts.rare(owner.slot, counters);
        for cell in &owner.credits {
            for (sum, counter) in sums.iter_mut().zip(counters) {
                *sum += cell.at(counter, 0);
            }
        }
        Some(sums)
    }

    /// What was counted for a parent.
    pub fn parent(&mut self, kernel: &Kernel, key: ParentKey) -> Option<Sample> {
        let waiting = self.credits.waiting(kernel, Whose::Parent(key));
        self.parents
            .get_mut(&key)
            .map(|owner| Sample::of(|slot, extra| self.counts.of_parent(slot, extra), owner, &waiting))
    }
}

/// Brings a table from what it holds to what it should hold.
fn sync<K: aya::Pod + Ord, V: aya::Pod + PartialEq>(
    kernel: &Kernel,
    (table, name): (Table, &'static str),
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
) -> Result<(), DirectoryError> {
    let (gone, new): (Vec<_>, Vec<_>) = differences(before, after)
        .map(|(key, value)| Change::new(table, key, value))
        .partition(|change| change.removes == 1);
    // What goes makes room first.
    kernel
        .change(&[gone, new].concat())
        .map_err(|source| DirectoryError::Entry {
            map: name,
            source: Box::new(source),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: ParentKey = ParentKey { netns: 7, ifindex: 2 };

    fn sub_interface(id: u64, mac: u8, mode: Mode, up: bool) -> WantedSubInterface {
        WantedSubInterface {
            id,
            parent: PARENT,
            mac: [2, 0, 0, 0, 0, mac],
            mode: mode as u8,
            up,
            device: ParentKey {
                netns: 8,
                ifindex: u32::from(mac),
            },
            device_flags: 0,
            keeps_source: mode == Mode::Source,
            addresses: vec![IpAddr::V4(Ipv4Addr::new(198, 51, 100, mac))],
            counted: true,
        }
    }

    fn tables(sub_interfaces: Vec<WantedSubInterface>) -> Tables {
        let slots = sub_interfaces
            .iter()
            .zip(10..)
            .map(|(each, slot)| (each.id, slot))
            .collect();
        let parent = WantedParent {
            key: PARENT,
            mac: [2, 0, 0, 0, 0, 1],
            addresses: vec![
                IpAddr::V4(Ipv4Addr::LOCALHOST),
                "2001:db8::1".parse().expect("an address"),
            ],
        };
        let host_ipv4 = vec![(7, Ipv4Addr::new(198, 51, 100, 1))];
        let wanted = Wanted {
            sub_interfaces,
            parents: vec![parent],
            host_ipv4,
        };
        Tables::of(&wanted, &slots, &HashMap::from([(PARENT, 3)]))
    }

    #[test]
    fn of_equal_macs_the_one_that_is_up_owns_the_key() {
        for order in [[false, true], [true, false]] {
            let tables = tables(vec![
                sub_interface(1, 0x11, Mode::Bridge, order[0]),
                sub_interface(2, 0x11, Mode::Bridge, order[1]),
            ]);
            let key = SubInterfaceKey::new(PARENT, [2, 0, 0, 0, 0, 0x11]);
            assert_eq!(tables.sub_interfaces[&key].slot, if order[0] { 10 } else { 11 });
            assert_eq!(tables.sub_interfaces.len(), 1);
        }
    }

    #[test]
    fn passthru_is_found_by_its_parent_alone() {
        let tables = tables(vec![sub_interface(1, 0x11, Mode::Passthru, true)]);
        assert_eq!(tables.parents[&PARENT].flags, PARENT_PASSTHRU);
        assert!(
            tables
                .sub_interfaces
                .contains_key(&SubInterfaceKey::new(PARENT, [0; 6]))
        );
    }

    #[test]
    fn a_device_is_found_by_its_own_place() {
        let tables = tables(vec![sub_interface(1, 0x11, Mode::Source, true)]);
        let own = ParentKey {
            netns: 8,
            ifindex: 0x11,
        };
        assert_eq!((tables.devices[&own].slot, tables.devices[&own].parent), (10, PARENT));
        assert_eq!(tables.parents[&PARENT].flags, PARENT_KEEPS_SOURCE);
    }

    #[test]
    fn an_answer_without_an_attempt_hides_no_later_loss() {
        let mut settled = Settled::default();
        assert_eq!(settled.settle(0, 0, 100), 0);
        assert_eq!(settled.settle(30, 30, 100), 0, "pending");
        assert_eq!(settled.settle(30, 0, 100), 30);
        assert_eq!(settled.settle(40, 0, 110), 30, "ten more, and all answered");
    }

    #[test]
    fn the_host_answers_for_ipv4_everywhere_and_for_ipv6_where_it_is() {
        let tables = tables(vec![sub_interface(1, 0x11, Mode::Bridge, true)]);
        let address = |parent, text: &str| AddressKey {
            netns: 7,
            parent,
            address: octets(text.parse().expect("an address")),
        };
        assert_eq!(tables.addresses[&address(0, "198.51.100.1")].slot, NO_SLOT);
        assert_eq!(tables.addresses[&address(2, "2001:db8::1")].slot, NO_SLOT);
        assert_eq!(tables.addresses[&address(2, "198.51.100.17")].slot, 10);
        assert!(
            !tables.addresses.contains_key(&address(2, "127.0.0.1")),
            "IPv4 of the parent is in the host's set"
        );
    }

    #[test]
    fn one_without_a_slot_is_in_no_table() {
        let wanted = Wanted {
            sub_interfaces: vec![sub_interface(9, 0x11, Mode::Bridge, true)],
            ..Wanted::default()
        };
        assert_eq!(Tables::of(&wanted, &HashMap::new(), &HashMap::new()), Tables::default());
    }
}
