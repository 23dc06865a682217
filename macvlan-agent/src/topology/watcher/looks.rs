//! When to look for what nobody tells of: while something happens or somebody asks, and else hardly ever. Pure.

use std::time::{Duration, Instant};

use super::Look;

/// How often it is looked whether processes have come, while something happens or somebody asks. Who makes a
/// sub-interface in a namespace that nobody knows lets its parent tell of itself (`rtnetlink_event` of
/// `net/core/rtnetlink.c` on `NETDEV_CHANGEUPPER`, 5.10 to 7.3), so there is something to be heard.
const TICK: Duration = Duration::from_secs(1);

/// For so long after something was heard it is looked: what it announces may come a little later.
const RESTLESS: Duration = Duration::from_secs(15);

/// How often it is looked where nothing is heard and nobody asks: a parent of its own may be in a namespace that only a
/// process is in.
const QUIET: Duration = Duration::from_mins(5);

/// How often names are looked at though nothing was heard of them: a link to `/proc` may go stale in silence.
const NAMES: Duration = Duration::from_secs(5);

/// How often all processes are looked at: one may have joined a namespace of its own without any sign.
const ALL: Duration = Duration::from_secs(10);

/// How often namespaces that could not be read are tried again.
const RETRY: Duration = Duration::from_mins(1);

/// When was looked last, and until when it is looked by the clock.
#[derive(Copy, Clone, Debug)]
pub(super) struct Looks {
    tick: Instant,
    names: Instant,
    all: Instant,
    retried: Instant,
    restless_until: Instant,
    /// Somebody has asked since the last tick.
    asked: bool,
}

/// What is to be done at a tick.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) struct Due {
    /// To try again what could not be read.
    pub(super) retry: bool,
    /// To look at everything.
    pub(super) all: bool,
    /// To look at names.
    pub(super) names: bool,
}

impl Looks {
    /// As if everything had just been looked at.
    pub(super) fn begun(now: Instant) -> Self {
        Self {
            tick: now,
            names: now,
            all: now,
            retried: now,
            restless_until: now + RESTLESS,
            asked: false,
        }
    }

    /// Something was heard.
    pub(super) fn hear(&mut self, now: Instant) {
        self.restless_until = now + RESTLESS;
    }

    /// Somebody wants to know how things are.
    pub(super) fn ask(&mut self) {
        self.asked = true;
    }

    /// It was looked, at a tick or for another reason.
    pub(super) fn looked(&mut self, look: Look, now: Instant) {
        self.names = now;
        if look == Look::Everything {
            self.all = now;
        }
    }

    /// When the next tick is.
    pub(super) fn next(&self) -> Instant {
        let is_awake = self.asked || self.tick < self.restless_until;
        self.tick + if is_awake { TICK } else { QUIET }
    }

    /// It is now.
    pub(super) fn tick(&mut self, now: Instant) -> Due {
        let retry = now >= self.retried + RETRY;
        if retry {
            self.retried = now;
        }
        (self.tick, self.asked) = (now, false);
        Due {
            retry,
            all: now >= self.all + ALL,
            names: now >= self.names + NAMES,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ticks until so long after the beginning, each with what was due.
    fn ticks(looks: &mut Looks, until: Instant) -> Vec<Due> {
        let mut ticks = Vec::new();
        while looks.next() <= until {
            let now = looks.next();
            let due = looks.tick(now);
            if due.all {
                looks.looked(Look::Everything, now);
            } else if due.names {
                looks.looked(Look::Names, now);
            }
            ticks.push(due);
        }
        ticks
    }

    #[test]
    fn where_nothing_happens_and_nobody_asks_it_is_hardly_ever_looked() {
        let start = Instant::now();
        let mut looks = Looks::begun(start);
        let first = ticks(&mut looks, start + RESTLESS + TICK);
        assert_eq!(first.len(), 15, "{first:?}");
        assert_eq!(first.iter().filter(|due| due.all).count(), 1);
        assert_eq!(ticks(&mut looks, start + QUIET).len(), 0);
        let later = ticks(&mut looks, start + RESTLESS + QUIET);
        assert_eq!(
            later,
            [Due {
                retry: true,
                all: true,
                names: true
            }]
        );
    }

    #[test]
    fn who_asks_lets_it_be_looked_once_and_no_more_often_than_by_the_clock() {
        let start = Instant::now();
        let mut looks = Looks::begun(start);
        ticks(&mut looks, start + RESTLESS + TICK);
        let asked = start + Duration::from_mins(1);
        looks.ask();
        assert!(looks.next() < asked, "at once");
        assert!(looks.tick(asked).all);
        looks.looked(Look::Everything, asked);
        looks.ask();
        assert_eq!(looks.next(), asked + TICK);
        assert!(!looks.tick(asked + TICK).all);
        assert_eq!(looks.next(), asked + TICK + QUIET);
    }

    #[test]
    fn what_is_heard_keeps_it_awake_for_a_while() {
        let start = Instant::now();
        let mut looks = Looks::begun(start);
        ticks(&mut looks, start + RESTLESS + TICK);
        let heard = start + Duration::from_mins(1);
        looks.hear(heard);
        assert!(looks.next() < heard, "at once");
        looks.tick(heard);
        assert_eq!(ticks(&mut looks, heard + QUIET).len(), 15);
    }
}
