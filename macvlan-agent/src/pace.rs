//! How often something is done that may be asked for all the time: at once, and then again when the processor time that
//! it takes is a small part of the time that has passed. It hurries where something has gone: until that is told, frames
//! for what was made in its place, with its MAC, count for it.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// What it may take, as a part of all time.
const PART: u32 = 16;

/// What takes longer, as with thousands of interfaces, may take as much less of all time as it takes longer.
const LITTLE: Duration = Duration::from_millis(4);

/// Nobody waits longer for it.
const LONGEST: Duration = Duration::from_millis(500);

/// Nor where it hurries; else as long as it took.
const HURRIED: Duration = Duration::from_millis(20);

/// The pace of one thing that is done over and over.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// When it was done, and what it took.
    last: Option<(Instant, Duration)>,
}

impl Pace {
    /// When it may be done again; none where that time has come.
    #[must_use]
    pub fn next(&self, hurries: bool) -> Option<Instant> {
        let (done, took) = self.last?;
        let rest = if hurries {
            took.min(HURRIED)
        } else {
            let took = took.min(LONGEST);
            let much = took.div_duration_f64(LITTLE).max(1.0);
            (took * PART).mul_f64(much).min(LONGEST)
        };
        Some(done + rest).filter(|next| *next > Instant::now())
    }

    /// It was done.
    pub fn done(&mut self, stint: &Stint) {
        self.took(processor_time().saturating_sub(stint.0));
    }

    fn took(&mut self, time: Duration) {
        self.last = Some((Instant::now(), time));
    }
}

/// A time of doing it, all on one thread.
#[derive(Debug)]
pub struct Stint(Duration);

impl Stint {
    /// It begins.
    #[must_use]
    pub fn begin() -> Self {
        Self(processor_time())
    }
}

/// That of this thread.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_long_is_done_rarely_and_not_too_rarely() {
        let wait = |took, hurries| {
            let mut pace = Pace::default();
            assert_eq!(pace.next(hurries), None);
            let before = Instant::now();
            pace.took(took);
            pace.next(hurries).map(|next| next - before)
        };
        let (little, some, much) = (LITTLE / 2, LITTLE * 2, Duration::from_secs(1));
        assert!(wait(little, false).is_some_and(|wait| wait >= little * PART && wait < some * PART));
        assert!(wait(some, false).is_some_and(|wait| wait >= 2 * some * PART));
        assert!(wait(much, false).is_some_and(|wait| wait >= LONGEST && wait < much));
        assert!(wait(some, true).is_some_and(|wait| wait >= some && wait < some * PART));
        assert!(wait(much, true).is_some_and(|wait| wait >= HURRIED && wait < LONGEST));
        let mut pace = Pace::default();
        pace.done(&Stint::begin());
        assert!(pace.next(false).is_none_or(|next| next < Instant::now() + LONGEST));
    }
}
