//! Without `handle_frame`: was a sub-interface down when a frame came for it?
//!
//! The TC programs know its state as user space last told them, and user space hears of a change some milliseconds
//! late. The kernel's own counters know what was delivered: what they have and we do not was counted as for one that
//! is down, and is taken from there. Pure.

use macvlan_agent_ebpf::abi::Counter;

use crate::{kernel::directory::Sample, kernel_counters::KernelCounts};

/// What was counted as for one that is down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ApparentlyDown {
    frames: u64,
    bytes: u64,
    skbs: u64,
}

impl ApparentlyDown {
    /// The counters that it is made of.
    pub const COUNTERS: [Counter; 3] = [
        Counter::ApparentlyDownFrames,
        Counter::ApparentlyDownBytes,
        Counter::ApparentlyDownSkbs,
    ];

    /// By what was counted in them.
    #[must_use]
    pub fn of([frames, bytes, skbs]: [u64; 3]) -> Self {
        Self { frames, bytes, skbs }
    }
}

/// What is known of one sub-interface.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inference {
    /// Skbs that turned out to have been delivered.
    delivered: u64,
    /// Frames that have been told to be dropped: a counter never goes back.
    told: u64,
}

impl Inference {
    /// Moves what was delivered after all. `early` is from the sample as it was before the kernel's counters were read, so
    /// that every frame in it had its chance to be in those.
    pub fn settle(&mut self, early: ApparentlyDown, sample: &mut Sample, kernel: &KernelCounts) {
        let ApparentlyDown { frames, bytes, skbs } = early;
        self.delivered = kernel.uncounted.min(skbs).max(self.delivered);
        let share = |of: u64| part(of, self.delivered, skbs);
        self.told = self.told.max(frames - share(frames));
        let totals = &mut sample.totals;
        totals.set(Counter::ApparentlyDownFrames, self.told);
        totals.raise(Counter::DeliveredExternalFrames, share(frames));
        totals.raise(Counter::DeliveredExternalBytes, share(bytes));
        totals.raise(Counter::MergedFrames, share(frames).saturating_sub(self.delivered));
    }
}

/// `some` of `all` of an amount.
fn part(amount: u64, some: u64, all: u64) -> u64 {
    if some >= all {
        return amount;
    }
    let share = u128::from(amount) * u128::from(some) / u128::from(all.max(1));
    u64::try_from(share).unwrap_or(amount)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::counts::Totals;

    fn sample(delivered: u64, down: u64) -> Sample {
        let mut totals = Totals::ZERO;
        totals.raise(Counter::DeliveredExternalFrames, delivered);
        totals.raise(Counter::ApparentlyDownFrames, down);
        totals.raise(Counter::ApparentlyDownBytes, down * 100);
        totals.raise(Counter::ApparentlyDownSkbs, down);
        Sample { totals, lost: [0; 3] }
    }

    fn settle(inference: &mut Inference, delivered: u64, down: u64, by_kernel: u64) -> (u64, u64, u64) {
        let mut sample = sample(delivered, down);
        let early = ApparentlyDown::of(ApparentlyDown::COUNTERS.map(|counter| sample.totals.at(counter, 0)));
        let kernel = KernelCounts {
            uncounted: by_kernel.saturating_sub(delivered),
            ..KernelCounts::default()
        };
        inference.settle(early, &mut sample, &kernel);
        let at = |counter| sample.totals.at(counter, 0);
        (
            at(Counter::DeliveredExternalFrames),
            at(Counter::DeliveredExternalBytes),
            at(Counter::ApparentlyDownFrames),
        )
    }

    #[test]
    fn frames_that_the_kernel_delivered_were_not_for_one_that_is_down() {
        let mut inference = Inference::default();
        assert_eq!(settle(&mut inference, 50, 50, 100), (100, 5_000, 0));
        assert_eq!(settle(&mut inference, 80, 50, 130), (130, 5_000, 0), "and stays so");
        assert_eq!(settle(&mut inference, 80, 60, 130), (130, 5_000, 10), "now it is down");
    }

    #[test]
    fn frames_for_one_that_is_down_are_dropped() {
        let mut inference = Inference::default();
        assert_eq!(settle(&mut inference, 10, 0, 10), (10, 0, 0));
        assert_eq!(settle(&mut inference, 10, 30, 10), (10, 0, 30));
        assert_eq!(settle(&mut inference, 40, 30, 40), (40, 0, 30), "up again");
    }
}
