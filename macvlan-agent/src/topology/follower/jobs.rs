//! What the follower has to ask the kernel for: one thing at a time, since a socket takes one dump at a time. Pure but for
//! the clock.

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    path::PathBuf,
    time::{Duration, Instant},
};

use super::DEAF;
use crate::topology::netns::OWN;

/// How long to wait before a dump that was interrupted is asked for again: from this, doubled up to that.
const RETRY: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// An answer that has not come in this time was lost.
const ANSWER: Duration = Duration::from_secs(3);

/// Something to be done.
#[derive(Debug)]
pub(super) enum Job {
    /// Give the namespace with this inode an id, then dump it.
    Follow(u32, PathBuf),
    /// Dump it.
    Dump(u32),
}

/// Where the job in hand stands: what the next answer is to.
#[derive(Debug)]
pub(super) enum Step {
    /// An id was asked for.
    Name(File),
    /// It was asked which id that is.
    Ask(File),
    /// Links are being dumped.
    Links,
    /// Addresses are being dumped.
    Addresses,
}

/// A namespace that is followed.
#[derive(Debug, Default)]
struct Space {
    /// Its id; the own namespace needs none.
    nsid: Option<i32>,
    /// How many dumps in a row were not sound.
    failures: u32,
    /// When to dump it again.
    again: Option<Instant>,
}

#[derive(Debug)]
struct Current {
    inode: u32,
    path: Option<PathBuf>,
    step: Option<Step>,
    sequence: u32,
    /// The dump cannot be trusted to be whole.
    unsound: bool,
    heard: Instant,
}

/// What follows from an id.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bound {
    /// Whose it is.
    pub(super) inode: u32,
    /// Whose it was, who is no more.
    pub(super) ended: Option<u32>,
}

#[derive(Debug)]
pub(super) struct Jobs {
    own: u32,
    deaf: bool,
    spaces: HashMap<u32, Space>,
    ids: HashMap<i32, u32>,
    waiting: VecDeque<Job>,
    current: Option<Current>,
    sequence: u32,
}

impl Jobs {
    pub(super) fn new(own: u32, deaf: bool) -> Self {
        Self {
            own,
            deaf,
            spaces: HashMap::from([(own, Space::default())]),
            ids: HashMap::new(),
            waiting: VecDeque::from([Job::Follow(own, OWN.into())]),
            current: None,
            sequence: 0,
        }
    }

    pub(super) fn push(&mut self, job: Job) {
        self.waiting.push_back(job);
    }

    /// The next job, unless one is in hand. It is in hand from now on.
    pub(super) fn next(&mut self) -> Option<Job> {
        while self.current.is_none() {
            let job = self.waiting.pop_front()?;
            let (inode, path) = match &job {
                Job::Follow(inode, path) => (*inode, Some(path.clone())),
                Job::Dump(inode) if self.spaces.contains_key(inode) => (*inode, None),
                Job::Dump(_) => continue,
            };
            self.current = Some(Current {
                inode,
                path,
                step: None,
                sequence: 0,
                unsound: false,
                heard: Instant::now(),
            });
            return Some(job);
        }
        None
    }

    /// The number of the next request.
    pub(super) fn sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    /// What was just asked, or is asked still.
    pub(super) fn step(&mut self, step: Step) {
        if let Some(current) = &mut self.current {
            current.step = Some(step);
            current.sequence = self.sequence;
        }
    }

    pub(super) fn take_step(&mut self) -> Option<Step> {
        self.current.as_mut()?.step.take()
    }

    /// Whether a job is in hand.
    pub(super) fn is_busy(&self) -> bool {
        self.current.is_some()
    }

    /// Whether the job in hand has come as far as dumping.
    pub(super) fn dumps(&self) -> bool {
        self.current
            .as_ref()
            .is_some_and(|current| self.spaces.contains_key(&current.inode))
    }

    pub(super) fn is_answer(&self, sequence: u32) -> bool {
        let current = self.current.as_ref();
        sequence != 0 && current.is_some_and(|current| current.sequence == sequence && current.step.is_some())
    }

    /// Notes that an answer came.
    pub(super) fn hears(&mut self, unsound: bool) {
        if let Some(current) = &mut self.current {
            current.heard = Instant::now();
            current.unsound |= unsound;
        }
    }

    /// The namespace of the job in hand.
    pub(super) fn inode(&self) -> Option<u32> {
        self.current.as_ref().map(|current| current.inode)
    }

    /// Its id.
    pub(super) fn target(&self) -> Option<i32> {
        self.spaces.get(&self.inode()?)?.nsid
    }

    /// Which namespace is meant by an id that came with a message.
    pub(super) fn inode_of(&self, nsid: Option<i32>) -> Option<u32> {
        nsid.map_or(Some(self.own), |nsid| self.ids.get(&nsid).copied())
    }

    /// The namespace in hand has this id. Another one that had it before is no more: the kernel frees an id first and tells
    /// of its end then (`unhash_nsid`, `net/core/net_namespace.c`), so this one's may be told when the id is ours.
    pub(super) fn bind(&mut self, nsid: i32) -> Option<Bound> {
        let current = self.current.as_mut()?;
        current.path = None;
        let inode = current.inode;
        let before = self.ids.insert(nsid, inode);
        let ended = before.filter(|before| *before != inode && *before != self.own);
        if let Some(ended) = ended {
            self.forget(ended);
        }
        if inode != self.own {
            let space = self.spaces.entry(inode).or_default();
            space.nsid = Some(nsid);
        }
        Some(Bound { inode, ended })
    }

    /// An id is not valid any more: its namespace is no more.
    pub(super) fn ended(&mut self, nsid: i32) -> Option<u32> {
        let inode = self.ids.remove(&nsid)?;
        self.forget(inode);
        if self.current.as_ref().is_some_and(|current| current.inode == inode) {
            self.current = None;
        }
        Some(inode)
    }

    pub(super) fn forget(&mut self, inode: u32) {
        if inode == self.own {
            return;
        }
        if let Some(nsid) = self.spaces.remove(&inode).and_then(|space| space.nsid)
            && self.ids.get(&nsid) == Some(&inode)
        {
            self.ids.remove(&nsid);
        }
    }

    /// The job in hand is over.
    pub(super) fn done(&mut self) {
        self.current = None;
    }

    /// The dump in hand has ended: of which namespace, and whether it is sound. One that is not is repeated.
    pub(super) fn dumped(&mut self, now: Instant) -> Option<(u32, bool)> {
        let Current { inode, unsound, .. } = self.current.take()?;
        let space = self.spaces.get_mut(&inode)?;
        space.again = None;
        if unsound {
            let wait = RETRY.0.saturating_mul(1 << space.failures.min(10)).min(RETRY.1);
            space.failures += 1;
            space.again = Some(now + wait);
        } else {
            space.failures = 0;
            if self.deaf && inode != self.own {
                space.again = Some(now + DEAF);
            }
        }
        Some((inode, !unsound))
    }

    /// When [`Self::wake`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        let answer = self.current.as_ref().map(|current| current.heard + ANSWER);
        self.spaces.values().filter_map(|space| space.again).chain(answer).min()
    }

    /// Queues what is due, and begins anew what was not answered.
    pub(super) fn wake(&mut self, now: Instant) {
        for (inode, space) in &mut self.spaces {
            if space.again.is_some_and(|again| again <= now) {
                space.again = None;
                self.waiting.push_back(Job::Dump(*inode));
            }
        }
        if self
            .current
            .as_ref()
            .is_some_and(|current| current.heard + ANSWER <= now)
        {
            self.restart();
        }
    }

    fn restart(&mut self) {
        let Some(Current { inode, path, .. }) = self.current.take() else {
            return;
        };
        self.waiting.push_front(match path {
            Some(path) => Job::Follow(inode, path),
            None => Job::Dump(inode),
        });
    }

    /// Messages were lost, answers perhaps among them. Which ids mean whom has to be asked again; gives the namespaces
    /// that were followed.
    pub(super) fn overrun(&mut self) -> impl Iterator<Item = u32> + use<> {
        self.restart();
        self.ids.clear();
        let all: Vec<u32> = self.spaces.keys().copied().collect();
        self.spaces.retain(|inode, _| *inode == self.own);
        self.waiting.push_back(Job::Follow(self.own, OWN.into()));
        all.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: u32 = 1;

    /// Jobs of which the own namespace's first dump is done, and one namespace is followed.
    fn jobs() -> Jobs {
        let mut jobs = Jobs::new(OWN, false);
        assert!(matches!(jobs.next(), Some(Job::Follow(OWN, _))));
        assert_eq!(jobs.dumped(Instant::now()), Some((OWN, true)));
        jobs.push(Job::Follow(7, "/run/netns/a".into()));
        assert!(matches!(jobs.next(), Some(Job::Follow(7, _))));
        let bound = Bound { inode: 7, ended: None };
        assert_eq!(jobs.bind(0), Some(bound));
        jobs
    }

    #[test]
    fn one_thing_is_asked_at_a_time() {
        let mut jobs = jobs();
        jobs.push(Job::Dump(7));
        assert!(jobs.next().is_none());
        assert_eq!(jobs.dumped(Instant::now()), Some((7, true)));
        assert!(matches!(jobs.next(), Some(Job::Dump(7))));
    }

    #[test]
    fn an_id_that_ended_means_nobody_and_ends_the_dump() {
        let mut jobs = jobs();
        assert_eq!(jobs.inode_of(Some(0)), Some(7));
        assert_eq!(jobs.ended(0), Some(7));
        assert_eq!(jobs.inode_of(Some(0)), None);
        assert_eq!(jobs.dumped(Instant::now()), None);
        jobs.push(Job::Dump(7));
        assert!(jobs.next().is_none(), "it is not followed any more");
    }

    #[test]
    fn an_id_that_another_one_gets_has_ended_for_the_first() {
        let mut jobs = jobs();
        assert_eq!(jobs.dumped(Instant::now()), Some((7, true)));
        jobs.push(Job::Follow(8, "/run/netns/b".into()));
        assert!(matches!(jobs.next(), Some(Job::Follow(8, _))));
        let bound = Bound {
            inode: 8,
            ended: Some(7),
        };
        assert_eq!(jobs.bind(0), Some(bound));
        assert_eq!((jobs.inode_of(Some(0)), jobs.target()), (Some(8), Some(0)));
        assert_eq!(jobs.dumped(Instant::now()), Some((8, true)));
        jobs.push(Job::Dump(7));
        assert!(jobs.next().is_none(), "the first is not followed any more");
        // Now its end is told, under an id that is another's.
        assert_eq!(jobs.ended(0), Some(8), "whoever hears this asks whether it is so");
    }

    #[test]
    fn an_interrupted_dump_is_repeated_later_and_later() {
        let mut jobs = jobs();
        let now = Instant::now();
        let mut last = Duration::ZERO;
        for _ in 0..3 {
            jobs.hears(true);
            assert_eq!(jobs.dumped(now), Some((7, false)));
            let wait = jobs.due().unwrap() - now;
            assert!(wait > last);
            last = wait;
            jobs.wake(now + wait);
            assert!(matches!(jobs.next(), Some(Job::Dump(7))));
        }
    }

    #[test]
    fn an_answer_that_was_lost_is_asked_for_again() {
        let mut jobs = jobs();
        jobs.sequence();
        jobs.step(Step::Links);
        jobs.wake(Instant::now() + ANSWER);
        assert!(matches!(jobs.next(), Some(Job::Dump(7))));
        assert!(!jobs.is_answer(1), "too late");
    }

    #[test]
    fn after_an_overrun_only_the_own_namespace_is_certain() {
        let mut jobs = jobs();
        let mut lost: Vec<u32> = jobs.overrun().collect();
        lost.sort_unstable();
        assert_eq!(lost, [OWN, 7]);
        assert_eq!((jobs.inode_of(Some(0)), jobs.inode_of(None)), (None, Some(OWN)));
        assert!(matches!(jobs.next(), Some(Job::Follow(OWN, _))));
    }

    #[test]
    fn where_events_are_not_heard_others_are_dumped_again_and_again() {
        let mut jobs = Jobs::new(OWN, true);
        jobs.next();
        jobs.dumped(Instant::now());
        assert_eq!(jobs.due(), None);
        jobs.push(Job::Follow(7, "/run/netns/a".into()));
        jobs.next();
        jobs.bind(0);
        jobs.dumped(Instant::now());
        assert!(jobs.due().is_some());
    }
}
