//! Two sides that take turns.

use anyhow::Result;

use crate::report::{self, Quartiles};

/// What two sides took, round by round.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    theirs: Vec<f64>,
    ours: Vec<f64>,
}

impl Rounds {
    /// So many rounds; who begins changes from one to the next.
    pub(super) fn run(
        rounds: usize,
        mut theirs: impl FnMut() -> Result<f64>,
        mut ours: impl FnMut() -> Result<f64>,
    ) -> Result<Self> {
        let mut all = Self::default();
        for round in 0..rounds {
            if round % 2 == 0 {
                all.theirs.push(theirs()?);
                all.ours.push(ours()?);
            } else {
                all.ours.push(ours()?);
                all.theirs.push(theirs()?);
            }
        }
        Ok(all)
    }

    pub(super) fn theirs(&self) -> Result<Quartiles> {
        Quartiles::of(self.theirs.clone())
    }

    pub(super) fn ours(&self) -> Result<Quartiles> {
        Quartiles::of(self.ours.clone())
    }

    /// Prints a goal that is their time over ours, and both sides.
    pub(super) fn report(&self, key: &str, names: [&str; 2]) -> Result<()> {
        let (theirs, ours) = (self.theirs()?, self.ours()?);
        report::side(key, names[0], theirs)?;
        report::side(key, names[1], ours)?;
        report::goal(key, theirs.median / ours.median)
    }
}
