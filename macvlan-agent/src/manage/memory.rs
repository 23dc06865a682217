//! What the container runtimes told last, so that they are not asked at every look: at once where a namespace has come or
//! a command wants to know, else less and less often.

use std::time::{Duration, Instant};

use crate::resolve::ContainerPlace;

/// How long an answer is good at first; doubled up to [`LONGEST`] while no namespace comes.
const SHORTEST: Duration = Duration::from_secs(1);

/// How long at most: a container may get another name without any sign.
const LONGEST: Duration = Duration::from_secs(30);

/// The containers and where they are, or why that is not known.
pub(super) type Told = Result<Vec<ContainerPlace>, String>;

/// The last answer.
#[derive(Debug, Default)]
pub(super) struct Memory(Option<Answer>);

#[derive(Debug)]
struct Answer {
    told: Told,
    at: Instant,
    good_for: Duration,
    /// How many namespaces there had been.
    spaces: u64,
}

impl Memory {
    /// What was told, where that is still good. `spaces`: how many namespaces there have been.
    pub(super) fn recall(&self, now: Instant, spaces: u64) -> Option<&Told> {
        let answer = self.0.as_ref()?;
        (answer.spaces == spaces && now < answer.at + answer.good_for).then_some(&answer.told)
    }

    /// Notes an answer. `spaces`: how many namespaces there had been when it was asked.
    pub(super) fn note(&mut self, now: Instant, spaces: u64, told: Told) {
        let before = self.0.as_ref().filter(|answer| answer.spaces == spaces);
        let good_for = before.map_or(SHORTEST, |answer| (answer.good_for * 2).min(LONGEST));
        self.0 = Some(Answer {
            told,
            at: now,
            good_for,
            spaces,
        });
    }

    /// What was told is not good any more.
    pub(super) fn forget(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After how many seconds is asked again, as often as that happens within `seconds`.
    fn waits(memory: &mut Memory, start: Instant, seconds: u64, spaces: u64) -> Vec<u64> {
        let mut last = 0;
        let mut waits = Vec::new();
        for second in 0..seconds {
            let now = start + Duration::from_secs(second);
            if memory.recall(now, spaces).is_none() {
                waits.push(second - last);
                last = second;
                memory.note(now, spaces, Err("not now".to_owned()));
            }
        }
        waits
    }

    #[test]
    fn who_knows_nothing_new_is_asked_less_and_less_often() {
        let (mut memory, start) = (Memory::default(), Instant::now());
        assert_eq!(waits(&mut memory, start, 100, 1), [0, 1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn a_new_namespace_or_a_command_is_reason_to_ask_at_once() {
        let (mut memory, start) = (Memory::default(), Instant::now());
        waits(&mut memory, start, 100, 1);
        let later = start + Duration::from_secs(100);
        assert_eq!(memory.recall(later, 1), Some(&Err("not now".to_owned())));
        assert_eq!(memory.recall(later, 2), None);
        assert_eq!(waits(&mut memory, later, 5, 2), [0, 1, 2]);
        memory.forget();
        assert_eq!(memory.recall(later, 2), None);
    }
}
