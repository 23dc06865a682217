//! The command line of what changes interfaces.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};

use super::{
    args::{ContainerArgs, DEFAULT_RUN_DIR},
    file::DEFAULT_PATH,
    values::{Address, Destination, Flag, InterfaceName, Kind, Mac, Mode, NetnsRef},
};
use crate::manage::record::DEFAULT_DIRECTORY;

/// Where things are.
#[derive(Clone, Debug, Args)]
pub struct Places {
    /// Directory of the record of what was made.
    #[arg(long = "state.dir", value_name = "DIRECTORY", default_value = DEFAULT_DIRECTORY)]
    pub state_dir: PathBuf,
    /// Run directory of the agent that is asked to do it, where one runs.
    #[arg(long = "run.dir", value_name = "DIRECTORY", default_value = DEFAULT_RUN_DIR)]
    pub run_dir: PathBuf,
    /// Its control socket; left out, control.sock in its run directory.
    #[arg(long = "control.socket", value_name = "PATH")]
    pub control_socket: Option<PathBuf>,
    /// How to write what was done.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub output: Output,
    /// Where names of containers come from when no agent runs.
    #[command(flatten)]
    pub containers: ContainerArgs,
}

impl Places {
    /// The control socket.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        control_socket(self.control_socket.as_ref(), &self.run_dir)
    }
}

/// The control socket of an agent with a run directory.
#[must_use]
pub fn control_socket(given: Option<&PathBuf>, run_dir: &std::path::Path) -> PathBuf {
    given.cloned().unwrap_or_else(|| run_dir.join("control.sock"))
}

/// Forms of what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// `plan` and `apply`.
#[derive(Debug, Args)]
pub struct Apply {
    /// The configuration.
    #[arg(long = "config.file", value_name = "FILE", default_value = DEFAULT_PATH)]
    pub config: PathBuf,
    /// Remove what an earlier configuration asked for and this one does not.
    #[arg(long)]
    pub prune: bool,
    /// Do not tell the neighbours of new addresses; saves most of a second.
    #[arg(long = "no-announce")]
    pub no_announce: bool,
    /// Where things are.
    #[command(flatten)]
    pub places: Places,
}

/// Which sub-interface.
#[derive(Debug, Args)]
pub struct Which {
    /// Its name: `macv1`, or `NETNS/macv1`, or its whole id.
    pub name: String,
    /// Its namespace: a name under /run/netns, a path, pid:NUMBER or container:NAME.
    #[arg(long, value_name = "NETNS", conflicts_with = "container")]
    pub netns: Option<NetnsRef>,
    /// The container that it is in.
    #[arg(long, value_name = "NAME")]
    pub container: Option<String>,
}

impl Which {
    /// The namespace that was named.
    #[must_use]
    pub fn netns(&self) -> Option<NetnsRef> {
        self.netns
            .clone()
            .or_else(|| self.container.clone().map(NetnsRef::Container))
    }
}

/// The options of a sub-interface that can be changed.
#[derive(Debug, Default, Args)]
pub struct Options {
    /// How siblings reach each other: private, vepa, bridge, passthru or source.
    #[arg(long, value_name = "MODE")]
    pub mode: Option<Mode>,
    /// Its MAC.
    #[arg(long, value_name = "MAC")]
    pub mac: Option<Mac>,
    /// An address of it, repeatable; with `set`, all it is to have.
    #[arg(long = "address", value_name = "ADDRESS/LENGTH")]
    pub addresses: Vec<Address>,
    /// Where its default route leads, repeatable for the other family.
    #[arg(long, value_name = "ADDRESS")]
    pub gateway: Vec<IpAddr>,
    /// Its MTU.
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u32>,
    /// A flag, repeatable: nopromisc or nodst.
    #[arg(long = "flag", value_name = "FLAG")]
    pub flags: Vec<Flag>,
    /// A source MAC that it takes frames of, repeatable; mode source.
    #[arg(long = "source-mac", value_name = "MAC")]
    pub source_macs: Vec<Mac>,
    /// How many broadcast frames may wait in the parent's queue.
    #[arg(long = "bc-queue-len", value_name = "N")]
    pub bc_queue_len: Option<u32>,
    /// Groups with at most so many listeners are not queued; -1 for none at all.
    #[arg(long = "bc-cutoff", value_name = "N", allow_negative_numbers = true)]
    pub bc_cutoff: Option<i32>,
    /// Text for its alias.
    #[arg(long, value_name = "TEXT")]
    pub alias: Option<String>,
}

/// `add`.
#[derive(Debug, Args)]
pub struct Add {
    /// Which.
    #[command(flatten)]
    pub which: Which,
    /// The interface it is to stand on; `eth0.10` is made as VLAN 10 of eth0 where it is not there.
    #[arg(long, value_name = "INTERFACE")]
    pub parent: InterfaceName,
    /// macvlan or macvtap.
    #[arg(long, value_name = "KIND", default_value = "macvlan")]
    pub kind: Kind,
    /// Leave it down.
    #[arg(long)]
    pub down: bool,
    /// How.
    #[command(flatten)]
    pub options: Options,
    /// Where things are.
    #[command(flatten)]
    pub places: Places,
}

/// `set`.
#[derive(Debug, Args)]
pub struct Set {
    /// Which.
    #[command(flatten)]
    pub which: Which,
    /// Set it up.
    #[arg(long, conflicts_with = "down")]
    pub up: bool,
    /// Set it down.
    #[arg(long)]
    pub down: bool,
    /// What of it.
    #[command(flatten)]
    pub options: Options,
    /// Where things are.
    #[command(flatten)]
    pub places: Places,
}

/// `del`.
#[derive(Debug, Args)]
pub struct Del {
    /// Which.
    #[command(flatten)]
    pub which: Which,
    /// Where things are.
    #[command(flatten)]
    pub places: Places,
}

/// `shim`.
#[derive(Debug, Subcommand)]
pub enum Shim {
    /// Let the host and the sub-interfaces of a parent reach each other.
    Add(ShimAdd),
    /// Take that back.
    Del(ShimWhich),
    /// Keep a shim that was added with --confirm-within.
    Confirm(ShimWhich),
    /// List them, with their routes and whether the sub-interfaces answer.
    List(ShimList),
}

/// `shim add`.
#[derive(Debug, Args)]
pub struct ShimAdd {
    /// The parent.
    pub parent: InterfaceName,
    /// The shim's name; left out, shim- and the parent's.
    #[arg(long, value_name = "NAME")]
    pub name: Option<InterfaceName>,
    /// An address that nobody else has, with /32 or /128; left out, the shim shares the parent's.
    #[arg(long, value_name = "ADDRESS/LENGTH")]
    pub address: Option<Address>,
    /// A network that covers the sub-interfaces, repeatable; left out, a route to each address, kept in step.
    #[arg(long = "route", value_name = "NETWORK")]
    pub routes: Vec<Destination>,
    /// Take it all back after this time unless it is confirmed: `60s`, `2m`.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub confirm_within: Option<Duration>,
    /// Where things are.
    #[command(flatten)]
    pub places: Places,
}

/// Which shim.
#[derive(Debug, Args)]
pub struct ShimWhich {
    /// Its name or that of its parent.
    pub name: String,
    /// Where things are.
    #[command(flatten)]
    pub places: Places,
}

/// `shim list`.
#[derive(Debug, Args)]
pub struct ShimList {
    /// Where things are.
    #[command(flatten)]
    pub places: Places,
}

/// `config`.
#[derive(Debug, Subcommand)]
pub enum Config {
    /// Print a configuration that has everything in it.
    Example,
    /// Print the JSON Schema of the configuration.
    Schema,
    /// Print the page on the configuration as Markdown.
    Reference,
    /// Say whether a configuration is valid; changes nothing.
    Check {
        /// The configuration.
        #[arg(long = "config.file", value_name = "FILE", default_value = DEFAULT_PATH)]
        config: PathBuf,
    },
}

/// A time as people write it.
fn duration(text: &str) -> Result<Duration, String> {
    let advice = || format!("{text:?} is no time; expected seconds or minutes, as in 60s or 2m");
    let (number, factor) = match text.strip_suffix('m') {
        Some(minutes) => (minutes, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    let seconds: u64 = number.parse().map_err(|_| advice())?;
    match seconds.checked_mul(factor) {
        Some(seconds) if (1..=86_400).contains(&seconds) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("{text:?} is not between 1s and 24 hours")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds_or_minutes() {
        assert_eq!(duration("61s"), Ok(Duration::from_secs(61)));
        assert_eq!(duration("61"), Ok(Duration::from_secs(61)));
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        for bad in ["", "s", "0s", "-1s", "1h", "9999m", "x"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
