//! How often something is done that may be asked for all the time: at once, and then again when as much time has passed as
//! it took of a processor. No less often: until the tables are made anew, frames for an interface that was made in the
//! place of another, with its MAC, count for that.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// Nobody waits longer for it.
const LONGEST: Duration = Duration::from_millis(20);

/// The pace of one thing that is done over and over.
#[derive(Debug, Default)]
pub struct Pace {
    next: Option<Instant>,
}

impl Pace {
    /// When it may be done again; none where that time has come.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.next.filter(|next| *next > Instant::now())
    }

    /// It was done.
    pub fn done(&mut self, stint: &Stint) {
        self.took(processor_time().saturating_sub(stint.0));
    }

    fn took(&mut self, time: Duration) {
        self.next = Some(Instant::now() + time.min(LONGEST));
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
        let mut pace = Pace::default();
        assert_eq!(pace.next(), None);
        let wait = |pace: &mut Pace, took| {
            let before = Instant::now();
            pace.took(took);
            pace.next().map(|next| next - before)
        };
        let (little, much) = (Duration::from_millis(10), Duration::from_secs(1));
        assert!(wait(&mut pace, little).is_some_and(|wait| wait >= little));
        assert!(wait(&mut pace, much).is_some_and(|wait| wait >= LONGEST && wait < much));
        pace.done(&Stint::begin());
        assert!(pace.next().is_none_or(|next| next < Instant::now() + LONGEST));
    }
}
