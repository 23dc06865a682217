//! The rate limit: a bucket that gains one token each interval, up to a burst.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A bucket; without an interval it never runs empty.
#[derive(Debug)]
pub struct Bucket {
    interval: Duration,
    burst: u32,
    level: Mutex<Level>,
}

#[derive(Debug)]
struct Level {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    #[must_use]
    pub fn new(interval: Duration, burst: u32) -> Self {
        let level = Level {
            tokens: f64::from(burst),
            at: Instant::now(),
        };
        Self {
            interval,
            burst,
            level: Mutex::new(level),
        }
    }

    /// Takes a token, if there is one.
    #[must_use]
    pub fn allows(&self) -> bool {
        self.allows_at(Instant::now())
    }

    fn allows_at(&self, now: Instant) -> bool {
        if self.interval.is_zero() {
            return true;
        }
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        let gained = now.saturating_duration_since(level.at).div_duration_f64(self.interval);
        level.tokens = (level.tokens + gained).min(f64::from(self.burst));
        level.at = now.max(level.at);
        let allowed = level.tokens >= 1.0;
        if allowed {
            level.tokens -= 1.0;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_one_each_interval() {
        let bucket = Bucket::new(Duration::from_secs(1), 3);
        let start = Instant::now();
        let allowed = |milliseconds| bucket.allows_at(start + Duration::from_millis(milliseconds));
        assert_eq!([0, 0, 0, 0].map(allowed), [true, true, true, false]);
        assert_eq!([500, 1100, 1200].map(allowed), [false, true, false]);
        assert_eq!([60_000; 4].map(allowed), [true, true, true, false]);
    }

    #[test]
    fn without_an_interval_there_is_no_limit() {
        let bucket = Bucket::new(Duration::ZERO, 0);
        assert!((0..100).all(|_| bucket.allows()));
    }

    #[test]
    fn without_a_burst_nothing_is_allowed() {
        assert!(!Bucket::new(Duration::from_secs(1), 0).allows());
    }
}
