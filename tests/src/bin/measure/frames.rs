//! What a frame costs in time: goals 4 to 7 and 13.

mod kernel_source;
mod observer;
mod processor;
mod scraped;
mod senders;
mod stand;
mod turns;

use std::{fs, process::Command};

use anyhow::{Context, Result};

use crate::{Options, report};
use stand::{Size, Stands};

/// Of the sub-interfaces that goal 5 is about each parent has so many: macvlan's own table has 256 places.
const ON_A_PARENT: u32 = 1_000;
const FULL_PARENTS: u8 = 10;

pub(crate) fn measure(options: &Options) -> Result<()> {
    let few = Stands::new(Size { parents: 1, each: 10 })?;
    kernel_source::few(options, &few)?;
    senders::measure(options, &few)?;
    drop(few);
    kernel_source::hundred(options, &Stands::new(Size { parents: 1, each: 100 })?)?;
    let parents = parents(options)?;
    let many = Stands::new(Size {
        parents,
        each: ON_A_PARENT,
    })?;
    kernel_source::many(options, &many)?;
    scraped::measure(options, &many)?;
    drop(many);
    let one = Size {
        parents: 1,
        each: u32::from(parents) * ON_A_PARENT,
    };
    kernel_source::one_parent(options, &Stands::new(one)?)
}

/// How many full parents this agent can count for.
fn parents(options: &Options) -> Result<u8> {
    for parents in (1..=FULL_PARENTS).rev() {
        let file = tempfile::NamedTempFile::new()?;
        let count = u32::from(parents) * ON_A_PARENT;
        fs::write(&file, format!("limits: {{ sub_interfaces: {count} }}\n"))?;
        let check = Command::new(&options.agent)
            .args(["config", "check", "--config.file"])
            .arg(file.path())
            .output();
        if check.context("could not start the agent")?.status.success() {
            if parents < FULL_PARENTS {
                report::note(
                    "5",
                    &format!("this agent counts for {count} sub-interfaces at most: measured with these"),
                )?;
            }
            return Ok(parents);
        }
    }
    anyhow::bail!("the agent takes no limit of sub-interfaces")
}
