//! Sub-interfaces made, placed, removed and seen: what that costs beside `ip`.

mod creation;
mod placement;
mod removal;
mod rounds;
mod storm;
mod tools;
mod visibility;

use anyhow::{Context as _, Result};
use macvlan_agent_tests::netns::apart;

use crate::Options;

pub(crate) fn measure(options: &Options) -> Result<()> {
    apart(|| {
        visibility::measure(options).context("visibility")?;
        creation::measure(options).context("creation")?;
        removal::measure(options).context("removal")?;
        placement::measure(options).context("placement")?;
        storm::measure(options).context("storm")
    })
}
