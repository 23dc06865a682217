//! Attempts that may still be answered: one rule for the kernel, which counts them, and for user space, which settles
//! them.
//!
//! An attempt is pending for three seconds. It is counted at once, and again in the column of its second; what the
//! columns of the last seconds hold has not been lost yet, what they no longer hold has. So nothing has to happen when
//! an attempt comes of age, and whoever reads the counts sees it settled.

use crate::abi::counts::{RECENT_SECONDS, Recent};

/// How many whole seconds an attempt stays pending: at least 3 s, at most 4 s.
pub const PENDING_SECONDS: u32 = 3;

/// Nanoseconds of the monotonic clock to its seconds.
#[inline(always)]
#[must_use]
pub const fn second_of(nanoseconds: u64) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "seconds since boot fit 32 bits for 136 years"
    )]
    let second = (nanoseconds / 1_000_000_000) as u32;
    second
}

/// Counts `attempts` of `ring` in second `now`.
#[inline(always)]
pub fn add<const RINGS: usize>(recent: &mut Recent<RINGS>, ring: usize, attempts: u32, now: u32) {
    let column = now as usize % RECENT_SECONDS;
    if recent.seconds[column] != now {
        recent.seconds[column] = now;
        let mut each = 0;
        while each < RINGS {
            recent.counts[each][column] = 0;
            each += 1;
        }
    }
    if ring < RINGS {
        recent.counts[ring][column] = recent.counts[ring][column].wrapping_add(attempts);
    }
}

/// Whether an attempt of second `since` is pending in second `now`.
#[inline(always)]
#[must_use]
pub const fn is_pending(since: u32, now: u32) -> bool {
    since.wrapping_add(PENDING_SECONDS) >= now
}

/// How many attempts of `ring` are pending in second `now`.
#[inline(always)]
#[must_use]
pub fn pending<const RINGS: usize>(recent: &Recent<RINGS>, ring: usize, now: u32) -> u64 {
    let mut sum = 0;
    let mut column = 0;
    while column < RECENT_SECONDS {
        if ring < RINGS && is_pending(recent.seconds[column], now) {
            sum += u64::from(recent.counts[ring][column]);
        }
        column += 1;
    }
    sum
}

/// What is lost for certain: attempts that were sent, less those still pending, less those answered. Answers to attempts
/// that are pending still are taken off as well, so the result may be late but is never too high.
#[must_use]
pub const fn lost(attempts: u64, pending: u64, cancelled: u64) -> u64 {
    attempts.saturating_sub(pending).saturating_sub(cancelled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_pending_for_three_seconds_and_less_than_four() {
        let mut recent = Recent::<2>::default();
        add(&mut recent, 1, 1, 100);
        for now in 100..=103 {
            assert_eq!(pending(&recent, 1, now), 1, "second {now}");
        }
        assert_eq!(pending(&recent, 1, 104), 0);
        assert_eq!(pending(&recent, 0, 100), 0, "another ring is not touched");
    }

    #[test]
    fn a_column_is_emptied_when_its_second_comes_round() {
        let mut recent = Recent::<1>::default();
        for _ in 0..5 {
            add(&mut recent, 0, 1, 7);
        }
        add(&mut recent, 0, 1, 11);
        assert_eq!(pending(&recent, 0, 11), 1, "second 7 shares the column of second 11");
    }

    #[test]
    fn a_fresh_ring_has_nothing_pending_soon_after_boot() {
        assert_eq!(pending(&Recent::<1>::default(), 0, 1), 0);
    }

    #[test]
    fn a_loss_is_settled_late_and_never_early() {
        assert_eq!(lost(10, 10, 0), 0, "all pending");
        assert_eq!(lost(10, 0, 0), 10, "none answered");
        assert_eq!(lost(10, 0, 10), 0, "all answered");
        assert_eq!(lost(10, 4, 8), 0, "answers to pending ones do not make a loss");
    }
}
