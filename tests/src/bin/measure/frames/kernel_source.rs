//! Frames made in the kernel: goals 4 to 6, and how the time of a frame grows with the sub-interfaces.

use anyhow::Result;
use macvlan_agent_tests::{live::Source, traffic::frame};

use super::{
    observer::Mechanism,
    stand::{Stand, Stands},
    turns::{Experiment, Quantity, Side, Turns},
};
use crate::{Options, report};

/// Frames of one call into the kernel.
const CALL: u32 = 1_000;
/// Calls of a slice, at least: some ten milliseconds.
const CALLS: usize = 10;
const LENGTH: usize = 60;
/// Rounds of each of three blocks.
const ROUNDS: usize = 100;
const LONG_ROUNDS: usize = 34;

const PICTURE: &str = "frame_time";

/// With ten sub-interfaces.
pub(super) fn few(options: &Options, stands: &Stands) -> Result<()> {
    let (plain, random) = (
        Source::plain(&stands.host)?,
        Source::random(&stands.host, stands.all[0].size.each)?,
    );
    let mut experiment = Experiment {
        options,
        stands,
        mechanism: Mechanism::Tcx,
        rounds: ROUNDS,
    };
    let tcx = experiment.measure(&[each_in_turn(&plain), at_random(&random, 1)])?;
    tell_times("4", "", &tcx[0])?;
    report::side("4", "added", tcx[0].added(Side::Agent, Side::Empty)?)?;
    report::goal("4", tcx[0].added(Side::Agent, Side::Empty)?.median)?;
    tell_throughput("6.tcx", &tcx[0], &[Side::Control, Side::Empty, Side::Agent])?;
    tell_points("", stands, 1, &tcx[1])?;

    experiment.mechanism = Mechanism::Clsact;
    let clsact = experiment.measure(&[each_in_turn(&plain)])?;
    report::note(
        "6.clsact",
        "the agent is told by `uname` that the kernel is older than tcx (personality UNAME26)",
    )?;
    tell_throughput("6.clsact", &clsact[0], &[Side::Control, Side::Agent])
}

/// One more point.
pub(super) fn hundred(options: &Options, stands: &Stands) -> Result<()> {
    let random = Source::random(&stands.host, stands.all[0].size.each)?;
    let turns = long(options, stands).measure(&[at_random(&random, 1)])?;
    tell_points("", stands, 1, &turns[0])
}

/// With a thousand on each of ten parents: on one of them, on four, on all.
pub(super) fn many(options: &Options, stands: &Stands) -> Result<()> {
    let random = Source::random(&stands.host, stands.all[0].size.each)?;
    let all = stands.all[0].parents.len();
    let some = [1, 4].into_iter().filter(|parents| *parents < all);
    let parents: Vec<usize> = some.chain([all]).collect();
    let quantities: Vec<_> = parents.iter().map(|parents| at_random(&random, *parents)).collect();
    let turns = long(options, stands).measure(&quantities)?;
    for (parents, turns) in parents.iter().zip(&turns) {
        tell_points("", stands, *parents, turns)?;
    }
    let Some(turns) = turns.last() else { return Ok(()) };
    tell_times("5", "", turns)?;
    report::side("5", "added", turns.added(Side::Agent, Side::Empty)?)?;
    report::goal("5", turns.added(Side::Agent, Side::Empty)?.median)
}

/// With all on one parent.
pub(super) fn one_parent(options: &Options, stands: &Stands) -> Result<()> {
    let random = Source::random(&stands.host, stands.all[0].size.each)?;
    let turns = long(options, stands).measure(&[at_random(&random, 1)])?;
    tell_points("_one_parent", stands, 1, &turns[0])?;
    tell_times("5", "_one_parent", &turns[0])?;
    report::side("5", "added_one_parent", turns[0].added(Side::Agent, Side::Empty)?)
}

fn long<'a>(options: &'a Options, stands: &'a Stands) -> Experiment<'a> {
    Experiment {
        options,
        stands,
        mechanism: Mechanism::Tcx,
        rounds: LONG_ROUNDS,
    }
}

/// The sub-interfaces of one parent, one after the other.
fn each_in_turn(source: &Source) -> Quantity<'_> {
    let slice = move |stand: &Stand| {
        let parent = &stand.parents[0];
        let each = (0..stand.size.each).map(|number| {
            let frame = frame(parent.mac(number), parent.station.mac, LENGTH);
            source.arrive(parent.index, &frame, CALL)
        });
        mean(each)
    };
    Quantity {
        name: "a frame to ten sub-interfaces in turn".into(),
        frames: u64::from(CALL) * CALLS as u64,
        slice: Box::new(slice),
    }
}

/// Any sub-interface of so many parents, these one after the other.
pub(super) fn at_random(source: &Source, parents: usize) -> Quantity<'_> {
    let calls = CALLS.next_multiple_of(parents);
    let slice = move |stand: &Stand| {
        let parents = stand.parents[..parents].iter().cycle().take(calls);
        mean(parents.map(|parent| {
            let frame = frame(parent.mac(0), parent.station.mac, LENGTH);
            source.arrive(parent.index, &frame, CALL)
        }))
    };
    Quantity {
        name: format!("a frame to any sub-interface of {parents} parents"),
        frames: u64::from(CALL) * calls as u64,
        slice: Box::new(slice),
    }
}

fn mean(times: impl Iterator<Item = Result<u32>>) -> Result<f64> {
    let (mut sum, mut count) = (0.0, 0.0);
    for time in times {
        sum += f64::from(time?);
        count += 1.0;
    }
    Ok(sum / count)
}

fn tell_times(key: &str, what: &str, turns: &Turns) -> Result<()> {
    for side in Side::ALL {
        report::side(key, &format!("{}{what}", side.word()), turns.times(side)?)?;
    }
    Ok(())
}

fn tell_points(what: &str, stands: &Stands, parents: usize, turns: &Turns) -> Result<()> {
    #[expect(clippy::cast_precision_loss, reason = "few")]
    let sub_interfaces = parents as f64 * f64::from(stands.all[0].size.each);
    for side in [Side::None, Side::Empty, Side::Agent] {
        let series = format!("{}{what}", side.word());
        report::point(PICTURE, &series, sub_interfaces, turns.times(side)?.median)?;
    }
    Ok(())
}

fn tell_throughput(key: &str, turns: &Turns, sides: &[Side]) -> Result<()> {
    for side in sides {
        report::side(key, side.word(), turns.throughput(*side)?)?;
    }
    report::note(key, &format!("{} rounds", turns.rounds()))?;
    report::goal(key, turns.throughput(Side::Agent)?.median)
}
