//! `macvlan-cost`: how many instructions a frame costs without programs, with empty ones, and with the agent's.
//!
//! It runs in a machine whose clock counts instructions (`cargo xtask bench` boots one): a nanosecond is one
//! instruction there. Elsewhere its numbers are times, and scatter.

use std::{
    ffi::OsString,
    fs,
    io::{self, Write},
    os::fd::AsRawFd,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use macvlan_agent_tests::{
    agent::Agent,
    empty::Empty,
    lab::{Lab, Link, Mac, Mode, Place, SubInterface, Upstream},
    load,
    sink::{Sink, Swallow},
    traffic::{frame, open, switch_on},
};
use nix::{
    sys::socket::{MsgFlags, send},
    time::{ClockId, clock_gettime},
};

/// Counts the instructions that a frame costs on each path
#[derive(Debug, Parser)]
#[command(name = "macvlan-cost", version)]
struct Options {
    /// The macvlan-agent program to start
    #[arg(long, value_name = "PATH")]
    agent: PathBuf,
    /// Set-ups to measure, in this order
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "none,tcx,clsact,empty_fexit,tc,kprobe,fexit"
    )]
    setups: Vec<Setup>,
}

/// What is attached while frames flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Setup {
    /// No program.
    None,
    /// A program that does nothing, by tcx.
    Tcx,
    /// The same by a queueing discipline.
    Clsact,
    /// The same by tcx, and at entry and return of macvlan's handler.
    #[value(name = "empty_fexit")]
    EmptyFexit,
    /// The agent without `handle_frame`.
    Tc,
    /// The agent with kprobe and kretprobe.
    Kprobe,
    /// The agent with fentry and fexit.
    Fexit,
}

impl Setup {
    fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
            Self::EmptyFexit => "empty_fexit",
            Self::Tc => "tc",
            Self::Kprobe => "kprobe",
            Self::Fexit => "fexit",
        }
    }
}

/// Frames of the shorter batch. The longer one takes some one millisecond: the timer's interrupts come every four.
const BATCH: u32 = 100;
/// The same of frames that are large: one costs as much as eight others.
const LARGE_BATCH: u32 = 12;
/// The least of so many batches is free of the timer's interrupts and of what else the kernel does now and then.
const ROUNDS: u32 = 24;
const LENGTH: usize = 60;
/// Of ten frames of TCP.
const PAYLOAD: u16 = 14_480;
/// How long an agent may take to be ready: where time is instructions, all that it does takes long.
const START: Duration = Duration::from_mins(5);

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "macvlan-cost: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    // Before 6.6 a sender that is not slowed down finds the queue between the ends of a veth full.
    fs::write("/proc/sys/net/core/netdev_max_backlog", "100000").context("could not lengthen the backlog")?;
    let lab = Lab::new(Place::Own, Upstream::Wire);
    let [one, other] = ["cost1", "cost2"].map(|name| lab.add(name, Mode::Bridge));
    let routes = routes(&lab, &one, &other);
    let mut out = io::stdout();
    for setup in &options.setups {
        let attached = Attached::of(*setup, options, &lab, [&one, &other])?;
        for route in &routes {
            let sinks = [&lab.station, &lab.parent, &one.link, &other.link].map(Sink::at);
            let sinks = sinks.into_iter().collect::<Result<Vec<_>>>()?;
            writeln!(out, "cost {} {} {}", route.name, setup.word(), route.cost()?)?;
            drop(sinks);
        }
        let swallow = Swallow::at(&one.link)?;
        writeln!(out, "cost merged {} {}", setup.word(), merged(&lab, &one).cost()?)?;
        drop(swallow);
        // Of a type that nobody listens for: delivered, and then given up.
        let unwanted = &routes[0];
        writeln!(out, "cost unwanted {} {}", setup.word(), unwanted.cost()?)?;
        attached.programs(&mut out)?;
    }
    Ok(())
}

/// Who sends what.
struct Route {
    name: &'static str,
    from: Link,
    frame: Vec<u8>,
    /// Whether a header of the socket's stands before it.
    offload: bool,
    /// Frames of the shorter batch.
    batch: u32,
}

fn routes(lab: &Lab, one: &SubInterface, other: &SubInterface) -> [Route; 4] {
    let route = |name, from: &Link, to: Mac| Route {
        name,
        from: from.clone(),
        frame: frame(to, from.mac, LENGTH),
        offload: false,
        batch: BATCH,
    };
    [
        route("external", &lab.station, one.mac()),
        route("transmitted", &one.link, lab.station.mac),
        route("sibling", &one.link, other.mac()),
        route("child_to_parent", &one.link, lab.parent.mac),
    ]
}

/// Ten frames that came as one skb, from the wire to a sub-interface.
fn merged(lab: &Lab, to: &SubInterface) -> Route {
    Route {
        name: "merged",
        from: lab.station.clone(),
        frame: load::merged(to.mac(), lab.station.mac, PAYLOAD),
        offload: true,
        batch: LARGE_BATCH,
    }
}

impl Route {
    /// What one frame costs: the difference between twice as many and as many.
    fn cost(&self) -> Result<u64> {
        self.from.namespace.run(|| {
            let socket = open(&self.from.name)?;
            switch_on(&socket, libc::PACKET_QDISC_BYPASS)?;
            if self.offload {
                switch_on(&socket, libc::PACKET_VNET_HDR)?;
            }
            let batch = |count: u32| {
                let start = nanoseconds()?;
                for _ in 0..count {
                    let length = send(socket.as_raw_fd(), &self.frame, MsgFlags::empty())
                        .with_context(|| format!("could not send from {}", self.from.name))?;
                    ensure!(length == self.frame.len(), "{length} bytes of a frame sent");
                }
                Ok(nanoseconds()? - start)
            };
            let (mut short, mut long) = (u64::MAX, u64::MAX);
            for _ in 0..ROUNDS {
                short = short.min(batch(self.batch)?);
                long = long.min(batch(2 * self.batch)?);
            }
            Ok((long - short + u64::from(self.batch / 2)) / u64::from(self.batch))
        })
    }
}

fn nanoseconds() -> Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).context("there is no clock")?;
    Ok(u64::try_from(time.tv_sec() * 1_000_000_000 + time.tv_nsec())?)
}

/// What is attached, for as long as it lives.
enum Attached {
    Nothing,
    Empty { _programs: Empty },
    Agent { _process: Agent },
}

impl Attached {
    fn of(setup: Setup, options: &Options, lab: &Lab, known: [&SubInterface; 2]) -> Result<Self> {
        let wish = match setup {
            Setup::None => return Ok(Self::Nothing),
            Setup::Tcx => {
                return Ok(Self::Empty {
                    _programs: Empty::tcx(&lab.parent)?,
                });
            }
            Setup::Clsact => {
                return Ok(Self::Empty {
                    _programs: Empty::clsact(&lab.parent)?,
                });
            }
            Setup::EmptyFexit => {
                return Ok(Self::Empty {
                    _programs: Empty::handler(&lab.parent)?,
                });
            }
            Setup::Tc => "off",
            Setup::Kprobe => "auto",
            Setup::Fexit => "fexit",
        };
        let flags = [
            "--web.listen-address=127.0.0.1:0".to_owned(),
            format!("--hook.handle_frame={wish}"),
        ];
        let process = Agent::launch_within(&options.agent, &flags.map(OsString::from), START, &|| Ok(()))?;
        process.await_known(&known);
        Ok(Self::Agent { _process: process })
    }

    /// What the kernel says of the agent's programs.
    fn programs(&self, out: &mut impl Write) -> Result<()> {
        if !matches!(self, Self::Agent { .. }) {
            return Ok(());
        }
        for program in aya::programs::loaded_programs() {
            let program = program.context("could not list the programs")?;
            writeln!(
                out,
                "program {} {} {}",
                program.name_as_str().unwrap_or("?"),
                program.verified_instruction_count().unwrap_or(0),
                program.size_jitted(),
            )?;
        }
        Ok(())
    }
}
