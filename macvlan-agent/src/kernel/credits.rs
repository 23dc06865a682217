//! What was counted for those whose slot was not known yet: it waits under their key, and is added when their entry is
//! there.

use std::time::{Duration, Instant};

use hashbrown::HashMap;
use macvlan_agent_ebpf::abi::{Cell, Credit, ParentKey, SubInterfaceKey, limits};

use super::{
    counts::monotonic_nanoseconds,
    load::{Kernel, chain},
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
#[derive(Default)]
pub(super) struct Credits {
    awaited: HashMap<Whose, Vec<Awaited>>,
}

impl Credits {
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
    pub(super) fn waiting(&self, kernel: &Kernel, whose: Whose) -> Vec<Cell> {
        let awaited = self.awaited.get(&whose).into_iter().flatten();
        awaited.flat_map(|awaited| read(kernel, awaited, false)).collect()
    }

    /// Takes what is due.
    pub(super) fn take_due(&mut self, kernel: &Kernel) -> Vec<(Whose, Vec<Cell>)> {
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
            .map(|(whose, awaited)| (whose, read(kernel, &awaited, true)))
            .filter(|(_, cells)| !cells.is_empty())
            .collect()
    }
}

/// What waits under a key.
fn read(kernel: &Kernel, (due, key): &Awaited, removes: bool) -> Vec<Cell> {
    if !kernel.counts().has_credits() {
        return Vec::new();
    }
    let credits = kernel.credits(*key, removes).unwrap_or_else(|error| {
        tracing::error!(error = %chain(&error), "counts that wait for their sub-interface cannot be read");
        Vec::new()
    });
    // Before it was known: since then we may have been busy.
    let known = (Instant::now() + DELAY).saturating_duration_since(*due);
    let oldest = known + Duration::from_secs(u64::from(limits::CREDIT_SECONDS));
    let oldest = u64::try_from(oldest.as_nanos()).unwrap_or(u64::MAX);
    recent_cells(&credits, monotonic_nanoseconds().saturating_sub(oldest)).collect()
}

/// The cells of those that began after `oldest`.
fn recent_cells(credits: &[Credit], oldest: u64) -> impl Iterator<Item = Cell> {
    let recent = credits.iter().filter(move |credit| credit.since >= oldest);
    recent.map(|credit| credit.cell)
}

#[cfg(test)]
mod tests {
    use macvlan_agent_ebpf::abi::Counter;

    use super::*;

    #[test]
    fn what_one_cpu_began_too_long_ago_is_not_counted() {
        let credit = |since, frames| {
            let cell = Cell::EMPTY.with(Counter::DeliveredExternalFrames, frames);
            Credit { since, cell }
        };
        let frames = |oldest| {
            recent_cells(&[credit(90, 30), credit(100, 50)], oldest)
                .map(|cell| cell.at(Counter::DeliveredExternalFrames, 0))
                .sum::<u64>()
        };
        assert_eq!((frames(90), frames(91), frames(101)), (80, 50, 0));
    }
}
