//! The kernel's own counters of sub-interfaces, as differences since the agent knows them: what no hook of ours sees,
//! and what our own counts are held against.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use hashbrown::HashMap;
use macvlan_agent_ebpf::abi::{Counter, ParentKey};

use crate::{
    kernel::{
        directory::{Directory, Sample},
        hooks::{Mechanism, NotAttached, Outcome, Reason, Wish},
        load::{Kernel, chain},
    },
    snapshot::parent_key,
    topology::{
        inventory::{Inventory, SubInterface},
        link::LinkKey,
        statistics::{Links, Reader, Statistics},
        watcher::Namespaces,
    },
};

/// What the kernel has counted for one sub-interface since the agent knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelCounts {
    /// All skbs received.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Multicast and broadcast skbs received.
    pub multicast_packets: u64,
    /// Bytes received that were not our unicast's.
    pub multicast_bytes: u64,
    /// Unicast skbs that the kernel delivered and we did not count.
    pub uncounted: u64,
    /// All skbs sent.
    pub sent_packets: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Skbs that could not be delivered (`rx_errors`).
    pub not_delivered: u64,
    /// Skbs that could not be sent (`tx_dropped`).
    pub not_sent: u64,
}

/// How often a baseline is read until nothing moves between its two readings.
const BASELINE_TRIES: usize = 5;

/// Our unicast in the kernel's own units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ours {
    skbs: u64,
    bytes: u64,
}

impl Ours {
    fn of(sample: &Sample) -> Self {
        let at = |counter| sample.totals.at(counter, 0);
        let frames = at(Counter::DeliveredExternalFrames) + at(Counter::DeliveredSiblingFrames);
        let bytes = at(Counter::DeliveredExternalBytes) + at(Counter::DeliveredSiblingBytes);
        Self {
            skbs: frames.saturating_sub(at(Counter::MergedFrames)) + at(Counter::ReturnedSkbs),
            bytes: bytes.saturating_sub(at(Counter::MergedBytes)),
        }
    }
}

/// Counters of the kernel's from one reading to the next.
#[derive(Clone, Copy, Debug, Default)]
struct Grown {
    last: Statistics,
    total: Statistics,
}

impl Grown {
    fn from(last: Statistics) -> Self {
        Self {
            last,
            total: Statistics::default(),
        }
    }

    fn grow(&mut self, now: Statistics) {
        self.total = self.total.plus(now.since(self.last));
        self.last = now;
    }
}

/// One sub-interface: the kernel's counters, and where ours stood when they began.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    kernel: Grown,
    /// The kernel's unicast skbs as they were before ours were read the last time.
    before: u64,
    ours: Ours,
    /// Multicast bytes as last told: a counter never goes back.
    told: u64,
}

/// A parent whose full broadcast queue shows in its `rx_dropped` alone.
#[derive(Clone, Copy, Debug, Default)]
struct Queue {
    kernel: Grown,
    otherwise: u64,
    told: u64,
}

/// The counters of all sub-interfaces.
pub struct KernelCounters {
    reader: Reader,
    known: HashMap<u64, Known>,
    /// Of parents, where the kernel says of a full queue nothing else.
    queues: HashMap<LinkKey, Queue>,
    queue_is_silent: bool,
    /// Sub-interfaces that have no beginning yet: ours are not whole, or the kernel's could not be read.
    awaited: BTreeSet<u64>,
    missing: Option<NotAttached>,
    off: bool,
}

impl KernelCounters {
    /// Nothing known. `queue_is_silent`: a full broadcast queue shows in its parent's `rx_dropped` alone.
    #[must_use]
    pub fn new(wish: Wish, queue_is_silent: bool) -> Self {
        let off = wish == Wish::Off;
        let missing = off.then(|| NotAttached::new(Reason::TurnedOff, "turned off by --hook.kernel_counters=off"));
        Self {
            reader: Reader::default(),
            known: HashMap::new(),
            queues: HashMap::new(),
            queue_is_silent,
            awaited: BTreeSet::new(),
            missing,
            off,
        }
    }

    /// What became of the hook.
    pub fn outcome(&self) -> Outcome {
        self.missing.clone().map_or(Ok(Mechanism::Netlink), Err)
    }

    /// Whether some sub-interfaces have no beginning yet: they are to be followed again.
    #[must_use]
    pub fn awaits(&self) -> bool {
        !self.awaited.is_empty()
    }

    /// Notes where the counts of new sub-interfaces stand, forgets those that are gone; `touched` are those that may be
    /// either. One that was made under our eyes began at 0; of another one ours must be whole first.
    pub fn follow(
        &mut self,
        (inventory, touched): (&Inventory, &BTreeSet<u64>),
        namespaces: &Namespaces,
        (kernel, directory): (&Kernel, &mut Directory),
        away: impl Fn(u64) -> bool,
    ) {
        if self.off {
            return;
        }
        self.reader.retain(|netns| is_lasting(namespaces, netns));
        for id in touched {
            match inventory.sub_interfaces.get(id) {
                Some(_) if self.known.contains_key(id) => {}
                Some(link) if link.born => drop(self.known.insert(*id, Known::default())),
                Some(_) => drop(self.awaited.insert(*id)),
                None if away(*id) => {}
                None => drop(self.known.remove(id)),
            }
        }
        let found: Vec<&SubInterface> = self
            .awaited
            .iter()
            .filter_map(|id| inventory.sub_interfaces.get(id).map(AsRef::as_ref))
            .collect();
        let whole = found.iter().filter(|link| !directory.awaits_credit(link.id));
        for (netns, links) in by_namespace(whole.copied()) {
            self.begin(netns, links, namespaces, (kernel, directory));
        }
        let known = &self.known;
        self.awaited
            .retain(|id| inventory.sub_interfaces.contains_key(id) && !known.contains_key(id));
        self.follow_queues(inventory, namespaces, (kernel, directory));
    }

    /// Baselines: the kernel's counters twice, ours in between, until the two agree. What still moves after some tries
    /// begins with the later reading.
    fn begin(
        &mut self,
        netns: u32,
        mut links: Vec<&SubInterface>,
        namespaces: &Namespaces,
        (kernel, directory): (&Kernel, &mut Directory),
    ) {
        for last in (0..BASELINE_TRIES).map(|number| number + 1 == BASELINE_TRIES) {
            let Some(before) = self.of_namespace(netns, namespaces) else {
                return;
            };
            let ours: HashMap<u64, Ours> = links
                .iter()
                .map(|link| {
                    let sample = directory.sub_interface(kernel, link.id);
                    (link.id, sample.map_or_else(Ours::default, |sample| Ours::of(&sample)))
                })
                .collect();
            let Some(after) = self.of_namespace(netns, namespaces) else {
                return;
            };
            links.retain(|link| {
                let (Some(before), Some(after)) = (before.get(link.key.ifindex), after.get(link.key.ifindex)) else {
                    return false;
                };
                let agree = last || before == after;
                if agree {
                    let known = Known {
                        kernel: Grown::from(*after),
                        ours: ours.get(&link.id).copied().unwrap_or_default(),
                        ..Known::default()
                    };
                    self.known.insert(link.id, known);
                }
                !agree
            });
            if links.is_empty() {
                return;
            }
        }
    }

    fn follow_queues(
        &mut self,
        inventory: &Inventory,
        namespaces: &Namespaces,
        (ours, directory): (&Kernel, &mut Directory),
    ) {
        if !self.queue_is_silent {
            return;
        }
        self.queues.retain(|key, _| inventory.parents.contains_key(key));
        let fresh: Vec<LinkKey> = inventory
            .parents
            .keys()
            .filter(|key| !self.queues.contains_key(*key))
            .copied()
            .collect();
        for key in fresh {
            let read = self.of_namespace(key.netns, namespaces).unwrap_or_default();
            let Some(kernel) = read.get(key.ifindex) else { continue };
            let queue = Queue {
                kernel: Grown::from(*kernel),
                otherwise: otherwise_dropped(ours, directory, parent_key(key)),
                told: 0,
            };
            self.queues.insert(key, queue);
        }
    }

    /// Reads the counters of all sub-interfaces, before ours are read.
    pub fn read(&mut self, subs: &[Arc<SubInterface>], namespaces: &Namespaces) {
        if self.off {
            return;
        }
        self.missing = None;
        self.read_all(subs, namespaces, |_| true);
        for known in self.known.values_mut() {
            known.before = unicast(known.kernel.total);
        }
    }

    /// Reads them once more, after ours were read (`samples`, by sub-interface): what the kernel counts lies in between
    /// then. Where ours are what the kernel had counted before, they are so already.
    pub fn read_again<'a>(
        &mut self,
        subs: &[Arc<SubInterface>],
        namespaces: &Namespaces,
        samples: impl Iterator<Item = (&'a SubInterface, &'a Sample)>,
    ) {
        if self.off {
            return;
        }
        let moved = samples.filter(|(link, sample)| self.error(link.id, sample).is_some_and(|error| error > 0));
        let moved: BTreeSet<u32> = moved.map(|(link, _)| link.key.netns).collect();
        if !moved.is_empty() || !self.queues.is_empty() {
            self.read_all(subs, namespaces, |netns| moved.contains(&netns));
        }
    }

    /// Reads those of sub-interfaces in the namespaces that are `wanted`, and of the parents with a silent queue.
    fn read_all(&mut self, subs: &[Arc<SubInterface>], namespaces: &Namespaces, wanted: impl Fn(u32) -> bool) {
        self.reader.retain(|netns| is_lasting(namespaces, netns));
        let subs = subs.iter().map(AsRef::as_ref);
        let mut links = by_namespace(subs.filter(|link: &&SubInterface| wanted(link.key.netns)));
        for key in self.queues.keys() {
            links.entry(key.netns).or_default();
        }
        for (netns, links) in links {
            let Some(read) = self.of_namespace(netns, namespaces) else {
                continue;
            };
            let mut next = read.in_turn();
            for link in links {
                if let (Some(known), Some(now)) = (self.known.get_mut(&link.id), next(link.key.ifindex)) {
                    known.kernel.grow(now);
                }
            }
            for (key, queue) in self.queues.iter_mut().filter(|(key, _)| key.netns == netns) {
                if let Some(now) = read.get(key.ifindex) {
                    queue.kernel.grow(*now);
                }
            }
        }
    }

    /// What was read of a sub-interface, given what we count of it.
    pub fn of(&mut self, id: u64, sample: &Sample) -> Option<KernelCounts> {
        let known = self.known.get_mut(&id)?;
        let counts = counts(known, Ours::of(sample));
        known.told = counts.multicast_bytes;
        Some(counts)
    }

    /// How far our count of a sub-interface is from what the kernel counted before and after it, in skbs.
    #[must_use]
    pub fn error(&self, id: u64, sample: &Sample) -> Option<u64> {
        let known = self.known.get(&id)?;
        let ours = Ours::of(sample).skbs.saturating_sub(known.ours.skbs);
        Some(distance(ours, known.before, unicast(known.kernel.total)))
    }

    /// Skbs that a parent's full broadcast queue dropped, where only its `rx_dropped` shows them; `otherwise` is what
    /// else was dropped there.
    pub fn queue_full(&mut self, key: LinkKey, otherwise: u64) -> Option<u64> {
        let queue = self.queues.get_mut(&key)?;
        let otherwise = otherwise.saturating_sub(queue.otherwise);
        queue.told = queue.told.max(queue.kernel.total.rx_dropped.saturating_sub(otherwise));
        Some(queue.told)
    }

    fn of_namespace(&mut self, netns: u32, namespaces: &Namespaces) -> Option<Links> {
        match self.reader.read(netns, namespaces) {
            Ok(read) => read,
            Err(error) => {
                let detail = chain(&error);
                tracing::debug!(netns, error = detail, "the kernel's counters are not read");
                self.missing = Some(NotAttached::new(Reason::NoAnswer, detail));
                None
            }
        }
    }
}

/// Whether a socket may stay open in a namespace: it would keep one alive that no file does.
fn is_lasting(namespaces: &Namespaces, netns: u32) -> bool {
    namespaces
        .get(netns)
        .is_some_and(|namespace| namespace.mounted || namespace.nsid.is_none())
}

fn otherwise_dropped(kernel: &Kernel, directory: &mut Directory, parent: ParentKey) -> u64 {
    directory
        .parent(kernel, parent)
        .map_or(0, |sample| sample.totals.at(Counter::OtherwiseDroppedSkbs, 0))
}

/// Skbs received that were not multicast, and those that came back to their own sender.
fn unicast(statistics: Statistics) -> u64 {
    statistics.rx_packets.saturating_sub(statistics.multicast)
}

/// How far a value is outside of an interval.
fn distance(value: u64, low: u64, high: u64) -> u64 {
    low.saturating_sub(value).max(value.saturating_sub(high))
}

fn counts(known: &Known, ours: Ours) -> KernelCounts {
    let since = known.kernel.total;
    let bytes = ours.bytes.saturating_sub(known.ours.bytes);
    let skbs = ours.skbs.saturating_sub(known.ours.skbs);
    KernelCounts {
        packets: since.rx_packets,
        bytes: since.rx_bytes,
        multicast_packets: since.multicast,
        multicast_bytes: since.rx_bytes.saturating_sub(bytes).max(known.told),
        uncounted: unicast(since).saturating_sub(skbs),
        sent_packets: since.tx_packets,
        sent_bytes: since.tx_bytes,
        not_delivered: since.rx_errors,
        not_sent: since.tx_dropped,
    }
}

fn by_namespace<'a>(links: impl Iterator<Item = &'a SubInterface>) -> BTreeMap<u32, Vec<&'a SubInterface>> {
    let mut namespaces: BTreeMap<u32, Vec<&SubInterface>> = BTreeMap::new();
    for link in links {
        namespaces.entry(link.key.netns).or_default().push(link);
    }
    namespaces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statistics(rx_packets: u64, rx_bytes: u64, multicast: u64) -> Statistics {
        Statistics {
            rx_packets,
            rx_bytes,
            multicast,
            ..Statistics::default()
        }
    }

    #[test]
    fn what_was_before_the_agent_is_not_counted_and_bytes_never_go_back() {
        let ours = |skbs, bytes| Ours { skbs, bytes };
        let mut known = Known {
            kernel: Grown::from(statistics(100, 10_000, 40)),
            ours: ours(5, 500),
            ..Known::default()
        };
        known.kernel.grow(statistics(102, 10_200, 40));
        known.kernel.grow(statistics(103, 10_300, 41));
        let expected = KernelCounts {
            packets: 3,
            bytes: 300,
            multicast_packets: 1,
            multicast_bytes: 100,
            ..KernelCounts::default()
        };
        assert_eq!(counts(&known, ours(7, 700)), expected);
        known.told = 100;
        assert_eq!(
            counts(&known, ours(8, 760)).multicast_bytes,
            100,
            "ours was read after the kernel's"
        );
        assert_eq!(counts(&known, ours(6, 600)).uncounted, 1);
    }

    #[test]
    fn the_error_is_how_far_ours_is_outside_of_the_kernels_two() {
        assert_eq!(distance(5, 5, 5), 0);
        assert_eq!(distance(6, 5, 9), 0);
        assert_eq!(distance(4, 5, 9), 1);
        assert_eq!(distance(12, 5, 9), 3);
    }
}
