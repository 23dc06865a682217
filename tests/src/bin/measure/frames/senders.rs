//! Frames that a program sends, a system call for 64: goal 7, on the three ways that frames go.

use std::time::Instant;

use anyhow::Result;
use macvlan_agent_tests::{flood::Flooder, netns::Namespace, traffic::frame};

use super::{
    observer::Mechanism,
    stand::{Stand, Stands},
    turns::{Experiment, Quantity, Side},
};
use crate::{Options, report};

/// Frames of a slice.
const FRAMES: u32 = 5_000;
/// Rounds of each of three blocks.
const ROUNDS: usize = 34;
const LENGTHS: [(&str, usize); 2] = [("7.60", 60), ("7.1514", 1_514)];

#[derive(Clone, Copy, Debug)]
enum Route {
    OutsideToChild,
    ChildToOutside,
    ChildToChild,
}

impl Route {
    const ALL: [Self; 3] = [Self::OutsideToChild, Self::ChildToOutside, Self::ChildToChild];

    fn word(self) -> &'static str {
        match self {
            Self::OutsideToChild => "outside_to_child",
            Self::ChildToOutside => "child_to_outside",
            Self::ChildToChild => "child_to_child",
        }
    }

    /// Who sends what.
    fn of(self, stand: &Stand, length: usize) -> (&Namespace, String, Vec<Vec<u8>>) {
        let parent = &stand.parents[0];
        let (station, child) = (&parent.station, parent.mac(0));
        let to_children = |from: u32, source| {
            let children = from..stand.size.each;
            children
                .map(|number| frame(parent.mac(number), source, length))
                .collect()
        };
        let from_child = |frames| (&stand.guests, parent.sub_interface(0), frames);
        match self {
            Self::OutsideToChild => (&station.namespace, station.name.clone(), to_children(0, station.mac)),
            Self::ChildToOutside => from_child(vec![frame(station.mac, child, length)]),
            Self::ChildToChild => from_child(to_children(1, child)),
        }
    }
}

pub(super) fn measure(options: &Options, stands: &Stands) -> Result<()> {
    let experiment = Experiment {
        options,
        stands,
        mechanism: Mechanism::Tcx,
        rounds: ROUNDS,
    };
    for (key, length) in LENGTHS {
        let quantities = Route::ALL.map(|route| quantity(route, length));
        let mut worst = f64::INFINITY;
        for (route, turns) in Route::ALL.iter().zip(experiment.measure(&quantities)?) {
            let ratio = turns.throughput(Side::Agent)?;
            report::side(key, route.word(), ratio)?;
            for side in [Side::Control, Side::Empty] {
                let name = format!("{}_{}", route.word(), side.word());
                report::side(key, &name, turns.throughput(side)?)?;
            }
            report::side(key, &format!("{}_none_ns", route.word()), turns.times(Side::None)?)?;
            worst = worst.min(ratio.median);
        }
        report::goal(key, worst)?;
    }
    Ok(())
}

fn quantity(route: Route, length: usize) -> Quantity<'static> {
    let slice = move |stand: &Stand| {
        let (namespace, interface, frames) = route.of(stand, length);
        let flooder = Flooder::at(namespace, &interface)?;
        let start = Instant::now();
        flooder.flood(&frames, FRAMES.into())?;
        Ok(start.elapsed().as_secs_f64() * 1e9 / f64::from(FRAMES))
    };
    Quantity {
        name: format!("a frame of {length} bytes {}", route.word()),
        frames: FRAMES.into(),
        slice: Box::new(slice),
    }
}
