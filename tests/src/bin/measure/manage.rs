//! To be written.
use anyhow::Result;

use crate::Options;

pub(crate) fn measure(_options: &Options) -> Result<()> {
    Ok(())
}
