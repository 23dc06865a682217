//! The project's tasks, one line each: `cargo xtask --help` lists them.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a task's result is what it prints"
)]

mod apt;
mod bench;
mod dashboards;
mod ebpf;
mod gate;
mod host;
mod libtest;
mod lint;
mod pictures;
mod programs;
mod python;
mod run;
mod suite;
mod vm;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;

use suite::Extent;
use vm::qemu::Clock;

#[derive(Parser)]
#[command(about, bin_name = "cargo xtask")]
enum Task {
    /// Build the agent and start it as root
    Run {
        /// Build the classic experiment around it: two containers on one parent, and the host they cannot reach
        #[arg(long)]
        lab: bool,
        /// End the lab after its table
        #[arg(long, requires = "lab")]
        once: bool,
        /// Flags of `macvlan-agent run`
        #[arg(last = true)]
        flags: Vec<String>,
    },
    /// The gate: lints, unit tests, and the tests on this kernel and on those of tests/vm/kernels.toml
    Test {
        /// Leave out the virtual machines and building the eBPF object anew
        #[arg(long)]
        fast: bool,
        /// Also the slow variants of the tests, by `MACVLAN_TEST_LONG=1`
        #[arg(long, conflicts_with = "fast")]
        long: bool,
    },
    /// Formatting, clippy, spelling, dependencies, and whether the eBPF object belongs to its sources
    Lint,
    /// Build the eBPF object and its sidecar
    Ebpf {
        /// Only say whether the sources and the object are those of the sidecar
        #[arg(long)]
        check: bool,
        /// Only say whether building anew gives what is committed
        #[arg(long, conflicts_with = "check")]
        verify: bool,
    },
    /// Make the dashboards anew from the table of metrics
    Dashboards {
        /// Only say whether they are what is committed, and what can be said of them, the rules and the alerts
        #[arg(long)]
        check: bool,
    },
    /// Make the pictures of the dashboards anew, with Grafana's own components from live data: some ten minutes
    Pictures,
    /// Count the instructions of a frame on each path, measure all else in time, and write docs/PERFORMANCE.md
    Bench {
        /// Only these kernels (6.1, 6.12, 7.3) and parts (frames, scrape, manage), and only print: nothing is written
        names: Vec<String>,
        /// Measure nothing: make docs/PERFORMANCE.md anew from tests/vm/costs.toml and tests/times.toml
        #[arg(long, conflicts_with = "names")]
        page: bool,
    },
    /// Boot a kernel of tests/vm/kernels.toml and run a shell command there as root
    Vm {
        /// The kernel's name in the table, such as 6.12
        kernel: String,
        /// A program to put into the machine's /bin; may be repeated
        #[arg(long = "bin", value_name = "PATH")]
        programs: Vec<PathBuf>,
        /// Let the machine's clock count instructions, on one processor: a nanosecond is one instruction
        #[arg(long)]
        instructions: bool,
        /// Seconds after which the machine is stopped
        #[arg(long, value_name = "SECONDS", default_value_t = 420)]
        limit: u64,
        /// What to run; several words make one command
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    perform(Task::parse()).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn perform(task: Task) -> Result<ExitCode> {
    match task {
        Task::Run { lab: true, once, flags } => run::lab(once, &flags)?,
        Task::Run { flags, .. } => run::agent(&flags)?,
        Task::Test { fast: true, .. } => return Ok(suite::run(Extent::Fast)),
        Task::Test { long: true, .. } => return Ok(suite::run(Extent::Long)),
        Task::Test { .. } => return Ok(suite::run(Extent::Usual)),
        Task::Lint => return lint::run(),
        Task::Ebpf { check: true, .. } => ebpf::check()?,
        Task::Ebpf { verify: true, .. } => println!("{}", ebpf::verify()?),
        Task::Ebpf { .. } => ebpf::write()?,
        Task::Dashboards { check: true } => {
            let mut gate = gate::Gate::default();
            dashboards::steps(&mut gate);
            return Ok(gate.finish(""));
        }
        Task::Dashboards { .. } => dashboards::write()?,
        Task::Pictures => pictures::write()?,
        Task::Bench { page: true, .. } => bench::write_page()?,
        Task::Bench { names, .. } => bench::run(&names)?,
        Task::Vm {
            kernel,
            programs,
            instructions,
            limit,
            command,
        } => {
            let clock = if instructions { Clock::Instructions } else { Clock::Time };
            vm::run_command(
                &kernel,
                clock,
                &programs,
                &command.join(" "),
                Duration::from_secs(limit),
            )?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
