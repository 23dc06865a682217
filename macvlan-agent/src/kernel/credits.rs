//! What was counted for those whose slot was not known yet: it waits under their key, and is added when their entry is
//! there.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use aya::maps::{MapData, PerCpuHashMap};
use macvlan_agent_ebpf::abi::{Cell, Credit, ParentKey, SubInterfaceKey, limits};

use super::{
    counts::monotonic_nanoseconds,
    directory::typed,
    load::{Kernel, LoadError},
};

/// Counts that waited are added this long after the entry is there: by then every frame goes to the slot.
const DELAY: Duration = Duration::from_millis(40);

/// Whose credit is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Whose {
    SubInterface(u64),
    Parent(ParentKey),
}

/// A key under which counts may wait, and until when.
type Awaited = (Instant, SubInterfaceKey);

/// All of them.
pub(super) struct Credits {
    map: PerCpuHashMap<MapData, SubInterfaceKey, Credit>,
    awaited: HashMap<Whose, Vec<Awaited>>,
    /// Whether the map may be asked while frames are counted: see [`Credits::may_be_asked`].
    asked: bool,
}

impl Credits {
    pub(super) fn of(kernel: &mut Kernel) -> Result<Self, LoadError> {
        Ok(Self {
            map: typed(kernel, "CREDITS")?,
            awaited: HashMap::new(),
            asked: false,
        })
    }

    /// Says whether somebody who asks now is told what waits. While the system call for it is at work, the kernel runs no
    /// kprobe program on the same CPU (`bpf_disable_instrumentation`, `kernel/bpf/syscall.c`): frames of an interrupt
    /// would pass `handle_frame` unseen.
    pub(super) fn may_be_asked(&mut self, asked: bool) {
        self.asked = asked;
    }

    /// Each of these keys leads to its owner from now on.
    pub(super) fn expect(&mut self, fresh: impl IntoIterator<Item = (Whose, SubInterfaceKey)>) {
        let due = Instant::now() + DELAY;
        for (whose, key) in fresh {
            self.awaited.entry(whose).or_default().push((due, key));
        }
    }

    /// Whether counts may still be waiting.
    pub(super) fn awaits(&self, whose: Whose) -> bool {
        self.awaited.contains_key(&whose)
    }

    /// When the next are to be added.
    pub(super) fn next(&self) -> Option<Instant> {
        self.awaited.values().flatten().map(|(due, _)| *due).min()
    }

    /// What waits for somebody now. It may still grow, and never shrinks before it is taken.
    pub(super) fn waiting(&self, whose: Whose) -> Vec<Cell> {
        if !self.asked {
            return Vec::new();
        }
        let awaited = self.awaited.get(&whose).into_iter().flatten();
        awaited.flat_map(|awaited| self.read(awaited)).collect()
    }

    /// Takes what is due.
    pub(super) fn take_due(&mut self) -> Vec<(Whose, Vec<Cell>)> {
        let now = Instant::now();
        let mut due = Vec::new();
        self.awaited.retain(|whose, all| {
            due.extend(
                all.extract_if(.., |(at, _)| *at <= now)
                    .map(|awaited| (*whose, awaited)),
            );
            !all.is_empty()
        });
        due.into_iter()
            .filter_map(|(whose, awaited)| {
                // Whoever takes this processor from us in the middle of the system calls has no kprobe programs either, for
                // as long as it lasts: that is unlikely at the beginning of a time slice.
                std::thread::yield_now();
                let cells = self.read(&awaited);
                self.map.remove(&awaited.1).ok()?;
                Some((whose, cells))
            })
            .collect()
    }

    fn read(&self, (due, key): &Awaited) -> Vec<Cell> {
        let Ok(credits) = self.map.get(key, 0) else {
            return Vec::new();
        };
        // Before it was known: since then we may have been busy.
        let known = (Instant::now() + DELAY).saturating_duration_since(*due);
        let oldest = known + Duration::from_secs(u64::from(limits::CREDIT_SECONDS));
        let oldest = u64::try_from(oldest.as_nanos()).unwrap_or(u64::MAX);
        recent_cells(&credits, monotonic_nanoseconds().saturating_sub(oldest)).collect()
    }
}

/// The cells of a credit that began after `oldest`, of every CPU. Only the CPU whose frame made it says when that was;
/// on the others it is zero, whatever they counted.
fn recent_cells(credits: &[Credit], oldest: u64) -> impl Iterator<Item = Cell> {
    let begun = credits.iter().map(|credit| credit.since).max().unwrap_or(0);
    let recent = if begun >= oldest { credits } else { &[] };
    recent.iter().map(|credit| credit.cell)
}

#[cfg(test)]
mod tests {
    use macvlan_agent_ebpf::abi::Counter;

    use super::*;

    #[test]
    fn a_credit_is_that_of_all_cpus_and_as_old_as_its_first_frame() {
        let credit = |since, frames| {
            let cell = Cell::EMPTY.with(Counter::DeliveredExternalFrames, frames);
            Credit { since, cell }
        };
        let frames = |oldest| {
            recent_cells(&[credit(0, 50), credit(100, 50)], oldest)
                .map(|cell| cell.at(Counter::DeliveredExternalFrames, 0))
                .sum::<u64>()
        };
        assert_eq!(frames(90), 100, "the second CPU found what the first had made");
        assert_eq!(frames(101), 0, "too old");
    }
}
