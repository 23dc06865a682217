//! Sides that take turns.
//!
//! Each side has a stand of its own, so that it changes with no program being attached or removed; and in three blocks
//! each stand serves each side, so that what is peculiar to one falls out. Frames end at a listener: given up unheard,
//! those of all sides would meet the agent's `frame_free`. That its programs run for its own side's frames alone is
//! shown by the kernel's count of runs in each block.

use anyhow::{Context, Result, bail, ensure};
use aya::sys::{Stats, enable_stats};
use macvlan_agent_tests::empty::Empty;

use super::{
    observer::{Mechanism, Observer},
    processor,
    stand::{Stand, Stands},
};
use crate::{Options, report::Quartiles};

/// What is attached to the parents that the frames pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Nothing.
    None,
    /// Nothing once more: it must cost the same.
    Control,
    /// Programs that do nothing.
    Empty,
    /// The agent's.
    Agent,
}

impl Side {
    /// In the order of their turns: the two that have one stand do not follow each other.
    pub(super) const ALL: [Self; 4] = [Self::None, Self::Empty, Self::Control, Self::Agent];

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Control => "none2",
            Self::Empty => "empty",
            Self::Agent => "agent",
        }
    }

    /// Which of the stands is its own in a block.
    fn stand(self, block: usize, stands: &Stands) -> &Stand {
        let role = match self {
            Self::None | Self::Control => 0,
            Self::Empty => 1,
            Self::Agent => 2,
        };
        &stands.all[(block + role) % stands.all.len()]
    }
}

/// How long a frame took, in nanoseconds, on each side in each round.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns([Vec<f64>; 4]);

impl Turns {
    /// So many rounds, each beginning with another side.
    pub(super) fn take(rounds: usize, sides: &[Side], mut slice: impl FnMut(Side) -> Result<f64>) -> Result<Self> {
        let mut turns = Self::default();
        for round in 0..rounds {
            for at in 0..sides.len() {
                let side = sides[(round + at) % sides.len()];
                turns.0[side as usize].push(slice(side)?);
            }
        }
        Ok(turns)
    }

    fn extend(&mut self, more: Self) {
        for (all, more) in self.0.iter_mut().zip(more.0) {
            all.extend(more);
        }
    }

    pub(super) fn rounds(&self) -> usize {
        self.0[Side::None as usize].len()
    }

    pub(super) fn times(&self, side: Side) -> Result<Quartiles> {
        Quartiles::of(self.0[side as usize].clone())
    }

    /// What one side takes longer than another.
    pub(super) fn added(&self, side: Side, over: Side) -> Result<Quartiles> {
        self.compare(side, over, |time, other| time - other)
    }

    /// Frames in the time that one without programs takes.
    pub(super) fn throughput(&self, side: Side) -> Result<Quartiles> {
        self.compare(side, Side::None, |time, none| none / time)
    }

    fn compare(&self, side: Side, other: Side, how: impl Fn(f64, f64) -> f64) -> Result<Quartiles> {
        let pairs = self.0[side as usize].iter().zip(&self.0[other as usize]);
        Quartiles::of(pairs.map(|(one, other)| how(*one, *other)).collect())
    }
}

/// Something that takes time, of which one slice is measured on a stand.
pub(super) struct Quantity<'a> {
    pub(super) name: String,
    /// Frames of a slice.
    pub(super) frames: u64,
    /// How many nanoseconds each took.
    pub(super) slice: Slice<'a>,
}

type Slice<'a> = Box<dyn Fn(&Stand) -> Result<f64> + Send + Sync + 'a>;

/// How often what is void is measured anew.
const TRIES: usize = 3;
/// How many runs of the agent's programs may be others' frames, which are freed all over the machine.
const STRAY: f64 = 0.05;
/// In how many slices it may be seen that there are no more.
const SLICES: usize = 20;

/// What is measured with what.
pub(super) struct Experiment<'a> {
    pub(super) options: &'a Options,
    pub(super) stands: &'a Stands,
    pub(super) mechanism: Mechanism,
    /// Of each of the three blocks.
    pub(super) rounds: usize,
}

impl Experiment<'_> {
    /// Measures each quantity, again where the control does not hold.
    pub(super) fn measure(&self, quantities: &[Quantity<'_>]) -> Result<Vec<Turns>> {
        let mut measured = self.blocks(&quantities.iter().collect::<Vec<_>>())?;
        for _ in 1..TRIES {
            let void = self.void(&measured)?;
            if void.is_empty() {
                break;
            }
            let again: Vec<_> = void.iter().map(|at| &quantities[*at]).collect();
            for (at, turns) in void.iter().zip(self.blocks(&again)?) {
                measured[*at] = turns;
            }
        }
        if let Some(at) = self.void(&measured)?.first() {
            let ratio = measured[*at].throughput(Side::Control)?.median;
            let name = &quantities[*at].name;
            bail!("void: {name} takes {ratio:.3} of its own time after {TRIES} attempts: this machine is not quiet");
        }
        Ok(measured)
    }

    /// Where two sides that are the same did not cost the same.
    fn void(&self, measured: &[Turns]) -> Result<Vec<usize>> {
        let mut void = Vec::new();
        for (at, turns) in measured.iter().enumerate() {
            let ratio = turns.throughput(Side::Control)?.median;
            if (ratio - 1.0).abs() > self.options.control {
                void.push(at);
            }
        }
        Ok(void)
    }

    fn blocks(&self, quantities: &[&Quantity<'_>]) -> Result<Vec<Turns>> {
        let mut all = vec![Turns::default(); quantities.len()];
        for block in 0..self.stands.all.len() {
            let turns = self.block(block, quantities)?;
            for (all, turns) in all.iter_mut().zip(turns) {
                all.extend(turns);
            }
        }
        Ok(all)
    }

    fn block(&self, block: usize, quantities: &[&Quantity<'_>]) -> Result<Vec<Turns>> {
        let stand = |side: Side| side.stand(block, self.stands);
        let empty = stand(Side::Empty).parents.iter().map(|parent| Empty::tcx(&parent.link));
        let empty = empty.collect::<Result<Vec<_>>>()?;
        let observer = Observer::start(&self.options.agent, stand(Side::Agent), self.mechanism)?;
        self.alone(block)?;
        let delivered = stand(Side::Agent).delivered()?;
        let arrived = self.arrived()?;
        let (turns, mut sent) = self.stands.host.run(|| {
            processor::stay_on(processor::FRAMES)?;
            let alone = |quantity: &&Quantity<'_>| self.attribute(block, quantity, &observer);
            let sent: u64 = quantities.iter().map(alone).sum::<Result<_>>()?;
            let turns = |quantity: &&Quantity<'_>| {
                Turns::take(self.rounds, &Side::ALL, |side| {
                    // The stand of the side before has the caches: what is measured is how frames go on.
                    (quantity.slice)(stand(side))?;
                    (quantity.slice)(stand(side))
                })
            };
            Ok((quantities.iter().map(turns).collect::<Result<Vec<_>>>()?, sent))
        })?;
        let slices = 2 * (self.rounds * Side::ALL.len()) as u64;
        sent += quantities.iter().map(|quantity| quantity.frames * slices).sum::<u64>();
        let arrived = self.arrived()? - arrived;
        ensure!(arrived == sent, "{arrived} of {sent} frames arrived");
        let delivered = stand(Side::Agent).delivered()? - delivered;
        let counted = observer.delivered()?;
        ensure!(
            counted == delivered,
            "the agent counted {counted} of {delivered} frames"
        );
        self.alone(block)?;
        drop(empty);
        Ok(turns)
    }

    /// Nobody else has attached programs: another agent on this machine would, to the parents of all sides.
    fn alone(&self, block: usize) -> Result<()> {
        for side in [Side::None, Side::Empty, Side::Agent] {
            let stand = side.stand(block, self.stands);
            let attached = match side {
                Side::Empty => true,
                Side::Agent => self.mechanism == Mechanism::Tcx,
                Side::None | Side::Control => false,
            };
            let (wanted, found) = (2 * stand.parents.len() * usize::from(attached), stand.programs()?);
            ensure!(
                found == wanted,
                "void: {found} programs stand at the parents of the side {}, not {wanted}: does another agent run?",
                side.word()
            );
        }
        Ok(())
    }

    /// Frames that arrived on the stands of all sides.
    fn arrived(&self) -> Result<u64> {
        self.stands.all.iter().map(Stand::arrived).sum()
    }

    /// The agent's programs run for its own side's frames and for no others; how many frames that took. What the machine
    /// frees elsewhere runs one of them as well, so the quietest of some slices tells.
    fn attribute(&self, block: usize, quantity: &Quantity<'_>, observer: &Observer) -> Result<u64> {
        let _counting = enable_stats(Stats::RunTime).context("the kernel does not count runs")?;
        let mut frames = 0;
        for side in Side::ALL {
            let wanted = if side == Side::Agent { 1.0 } else { 0.0 };
            let mut least = f64::INFINITY;
            for _ in 0..SLICES {
                let before = observer.runs()?;
                (quantity.slice)(side.stand(block, self.stands))?;
                frames += quantity.frames;
                #[expect(clippy::cast_precision_loss, reason = "few")]
                let runs = (observer.runs()? - before) as f64 / quantity.frames as f64;
                least = least.min(runs);
                if (least - wanted).abs() <= STRAY {
                    break;
                }
            }
            ensure!(
                (least - wanted).abs() <= STRAY,
                "{}: the agent's programs ran {least:.3} times for each frame on the side {}",
                quantity.name,
                side.word()
            );
        }
        Ok(frames)
    }
}
