//! Who owns which slot: it gives them, and brings the kernel's maps to what `tables` says that they should hold.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use hashbrown::{HashMap, HashSet};
use macvlan_agent_ebpf::{
    abi::{Cell, Change, Counter, Direction, ParentEntry, ParentKey, SubInterfaceKey, Table, limits},
    pending,
};

use super::{
    claims::Difference,
    counts::{Counts, Totals},
    credits::{Credits, Whose},
    fronts::Fronts,
    load::{ChangeError, Kernel, LoadError},
    room::Room,
    tables::{Moved, Tables, Wanted},
};
use crate::differences::differences;

/// A slot that lost its owner waits this long, so that no program still writes it when it is emptied.
const QUARANTINE: Duration = Duration::from_secs(2);

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

impl Owner {
    fn of(slot: u32) -> Self {
        Self {
            slot,
            ..Self::default()
        }
    }
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
    /// As they were last written.
    written_parents: BTreeMap<ParentKey, ParentEntry>,
    /// Those without a slot: who is to have none, and who would have one if there was room.
    uncounted: HashSet<u64>,
    waiting: BTreeSet<u64>,
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
            written_parents: BTreeMap::new(),
            uncounted: HashSet::new(),
            waiting: BTreeSet::new(),
            credits: Credits::default(),
            fronts,
        })
    }

    /// Sub-interfaces that have no slot because there are too many.
    #[must_use]
    pub fn over_limit(&self) -> usize {
        self.uncounted.len() + self.waiting.len()
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
            ("parents", self.written_parents.len(), limits::PARENTS),
            ("addresses", self.tables.addresses.len(), self.room.addresses()),
        ]
    }

    /// Brings slots and maps to what is wanted. Those who are away keep their slots: they may come back.
    pub fn apply(&mut self, kernel: &Kernel, wanted: Wanted, away: impl Fn(u64) -> bool) -> Result<(), DirectoryError> {
        let given = self.assign(&wanted, away);
        for (id, sub_interface) in wanted.sub_interfaces {
            let slot = self.sub_interfaces.get(&id).map(|owner| owner.slot);
            self.tables.set(id, sub_interface.map(|wanted| (wanted, slot)));
        }
        for (id, slot) in given {
            self.tables.give_slot(id, slot);
        }
        let parents = &self.parents;
        let moved = self.tables.set_parents(&wanted.parents, &wanted.host_ipv4, |key| {
            parents.get(key).map(|owner| owner.slot)
        });
        self.write(kernel, &moved)
    }

    /// Gives slots to who is new, takes them from who is gone; tells who got one. A parent keeps its own: its totals go on
    /// when its next sub-interface comes.
    fn assign(&mut self, wanted: &Wanted, away: impl Fn(u64) -> bool) -> Vec<(u64, u32)> {
        for (id, sub_interface) in &wanted.sub_interfaces {
            self.uncounted.remove(id);
            self.waiting.remove(id);
            let counted = sub_interface.as_ref().map(|wanted| wanted.counted);
            if counted != Some(true)
                && !away(*id)
                && let Some(owner) = self.sub_interfaces.remove(id)
            {
                self.retired.push_back((Instant::now() + QUARANTINE, owner.slot));
            }
            match counted {
                Some(true) if !self.sub_interfaces.contains_key(id) => {
                    self.waiting.insert(*id);
                }
                Some(false) => {
                    self.uncounted.insert(*id);
                }
                _ => {}
            }
        }
        for parent in &wanted.parents {
            if !self.parents.contains_key(&parent.key)
                && self.parents.len() < limits::PARENTS as usize
                && let Some(slot) = self.take_slot()
            {
                self.parents.insert(parent.key, Owner::of(slot));
            }
        }
        let mut given = Vec::new();
        while self.sub_interfaces.len() < self.room.sub_interfaces() as usize
            && let Some(&id) = self.waiting.first()
            && let Some(slot) = self.take_slot()
        {
            self.waiting.remove(&id);
            self.sub_interfaces.insert(id, Owner::of(slot));
            given.push((id, slot));
        }
        given
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

    /// Writes the differences. Where a map refuses one, all are tried again with the next change.
    fn write(&mut self, kernel: &Kernel, moved: &[Moved]) -> Result<(), DirectoryError> {
        // First, since it cannot fail: what a map refuses then is at least found in front, and what is gone is not.
        self.fronts.follow(&self.tables, moved);
        self.counts.tables_changed();
        let tables = &mut self.tables;
        send(
            kernel,
            (Table::Addresses, "ADDRESSES"),
            changed(tables.addresses.differences()),
        )?;
        tables.addresses.written();
        send(
            kernel,
            (Table::Devices, "DEVICES"),
            changed(tables.devices.differences()),
        )?;
        tables.devices.written();
        let parents = differences(&self.written_parents, &tables.parents);
        send(
            kernel,
            (Table::Parents, "PARENTS"),
            parents.map(|(key, entry)| (*key, entry.copied())),
        )?;
        let fresh = tables
            .parents
            .keys()
            .filter(|key| !self.written_parents.contains_key(key));
        // Counts may have waited under a key that leads to a slot only now.
        let fresh = fresh.map(|key| (Whose::Parent(*key), SubInterfaceKey::of_parent(*key)));
        self.credits.expect(fresh);
        self.written_parents.clone_from(&tables.parents);
        let subs = (Table::SubInterfaces, "SUB_INTERFACES");
        send(kernel, subs, changed(tables.sub_interfaces.differences()))?;
        let fresh = tables.sub_interfaces.differences().filter_map(|each| {
            let (id, entry) = each.after?;
            let is_known = each.before.is_some_and(|before| before.slot == entry.slot);
            (!is_known).then_some((Whose::SubInterface(id), each.key))
        });
        self.credits.expect(fresh);
        tables.sub_interfaces.written();
        Ok(())
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

/// What is to be written, by key.
fn changed<K, C, V>(differences: impl Iterator<Item = Difference<K, C, V>>) -> impl Iterator<Item = (K, Option<V>)> {
    differences.map(|each| (each.key, each.after.map(|(_, value)| value)))
}

/// Changes a table.
fn send<K: aya::Pod, V: aya::Pod>(
    kernel: &Kernel,
    (table, name): (Table, &'static str),
    changes: impl Iterator<Item = (K, Option<V>)>,
) -> Result<(), DirectoryError> {
    let (gone, new): (Vec<_>, Vec<_>) = changes
        .map(|(key, value)| Change::new(table, &key, value.as_ref()))
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

    #[test]
    fn an_answer_without_an_attempt_hides_no_later_loss() {
        let mut settled = Settled::default();
        assert_eq!(settled.settle(0, 0, 100), 0);
        assert_eq!(settled.settle(30, 30, 100), 0, "pending");
        assert_eq!(settled.settle(30, 0, 100), 30);
        assert_eq!(settled.settle(40, 0, 110), 30, "ten more, and all answered");
    }
}
