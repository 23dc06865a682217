//! The gate: what can be said of the sources, then the same test binaries on this kernel and on every kernel of the
//! table. It sets up all that it needs.

mod session;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::gate::{Gate, Outcome};
use crate::programs::{self, Built};
use crate::vm::initramfs::Program;
use crate::vm::kernel::{self, Freshness, Kernel};
use crate::vm::qemu::Clock;
use crate::{apt, bench, dashboards, ebpf, host, lint, vm};
use session::{Report, Script};

/// The tests wait more than they compute: two machines on two processors take little longer than one.
const MACHINES_AT_ONCE: usize = 2;

/// How much of the gate is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Without virtual machines, and without building the object anew.
    Fast,
    Usual,
    /// With the tests' slow variants.
    Long,
}

impl Extent {
    /// How long all test binaries may take on one kernel.
    fn limit(self) -> Duration {
        Duration::from_secs(if self == Self::Long { 5400 } else { 2100 })
    }
}

/// The programs under test.
struct Programs {
    agent: Built,
    lab: Built,
    cost: Built,
    tests: Vec<Built>,
}

/// Does everything.
pub(crate) fn run(extent: Extent) -> ExitCode {
    let mut gate = Gate::default();
    gate.step("set-up", || provision(extent).map(|()| Outcome::default()));
    lint::steps(&mut gate);
    source_tests(&mut gate);
    dashboards::steps(&mut gate);
    if extent != Extent::Fast {
        gate.step("eBPF object built anew", || ebpf::verify().map(Outcome::note));
    }
    let mut programs = None;
    gate.step("agent and test binaries", || {
        programs = Some(Programs::build()?);
        Ok(Outcome::default())
    });
    let mut table = String::new();
    if let Some(programs) = programs {
        gate.command("lab", lab(&programs));
        if extent != Extent::Fast {
            gate.step("cost of a frame", || {
                bench::check(&programs.agent.path, &programs.cost.path)
            });
        }
        table = on_kernels(&mut gate, &programs, extent);
    }
    gate.finish(&table)
}

fn provision(extent: Extent) -> Result<()> {
    lint::provision()?;
    dashboards::provision()?;
    vm::provision()?;
    other_programs()?;
    if extent != Extent::Fast {
        ebpf::provision()?;
    }
    Ok(())
}

/// What is tested without root.
fn source_tests(gate: &mut Gate) {
    gate.tests(
        "unit tests",
        host::cargo("test --workspace --exclude macvlan-agent-tests --locked"),
    );
    let documentation = host::cargo("doc --workspace --no-deps --locked").map(|mut cargo| {
        cargo.env("RUSTDOCFLAGS", "-D warnings");
        cargo
    });
    gate.command("documentation", documentation);
}

/// A directory of packages of Debian's that are only unpacked: installed, they would start as services.
pub(crate) fn unpacked(packages: &[&str], directory: &str) -> Result<PathBuf> {
    let _lock = host::lock_cache()?;
    let home = host::cache()?.join(packages.join("+"));
    if !home.exists() {
        apt::unpack(packages, &home)?;
    }
    Ok(home.join(directory))
}

/// What tests on this machine find in their environment: the variable, the packages it is from, and where in them.
const UNPACKED: [(&str, &[&str], &str); 3] = [
    ("MACVLAN_PROMETHEUS_DIR", &["prometheus"], "usr/bin"),
    ("MACVLAN_NODE_EXPORTER_DIR", &["prometheus-node-exporter"], "usr/bin"),
    (
        "MACVLAN_CONTAINERS_DIR",
        &[
            "docker.io",
            "containerd",
            "runc",
            "podman",
            "conmon",
            "netavark",
            // What podman is linked with, beyond what every Debian has.
            "libsubid4",
            "libgpgme11",
            "libassuan0",
            "containernetworking-plugins",
        ],
        "usr",
    ),
];

/// They, unpacked.
fn other_programs() -> Result<Vec<(&'static str, PathBuf)>> {
    UNPACKED
        .iter()
        .map(|(variable, packages, directory)| Ok((*variable, unpacked(packages, directory)?)))
        .collect()
}

/// The test binaries on each kernel of the table; gives the lines of the closing table.
fn on_kernels(gate: &mut Gate, programs: &Programs, extent: Extent) -> String {
    let rows = kernel::table().unwrap_or_else(|error| {
        gate.step("table of kernels", || Err(error));
        Vec::new()
    });
    let wanted = rows.iter().filter(|kernel| kernel.is_host() || extent != Extent::Fast);
    let (here, machines): (Vec<_>, Vec<_>) = wanted.partition(|kernel| kernel.is_host());
    let mut lines = BTreeMap::new();
    let mut take_in = |kernel: &Kernel, report: Result<Report>, took| {
        let line = report
            .as_ref()
            .map_or_else(|_| session::no_line(kernel), |report| report.line(kernel));
        lines.insert(rows.iter().position(|row| row.name == kernel.name), line);
        let outcome = report.map(|report| report.outcome(kernel));
        gate.record(&format!("tests on {}", kernel.name), outcome, took);
    };
    for kernel in here {
        let start = Instant::now();
        take_in(kernel, on_host(kernel, programs, extent), start.elapsed());
    }
    let queue = Mutex::new(machines.into_iter());
    thread::scope(|scope| {
        let (sender, reports) = mpsc::channel();
        for sender in vec![sender; MACHINES_AT_ONCE] {
            let queue = &queue;
            scope.spawn(move || {
                while let Some(kernel) = next(queue) {
                    let start = Instant::now();
                    let report = in_machine(kernel, programs, extent);
                    // The other end lives until every sender is gone.
                    let _ = sender.send((kernel, report, start.elapsed()));
                }
            });
        }
        for (kernel, report, took) in reports {
            take_in(kernel, report, took);
        }
    });
    session::TABLE_HEAD.to_owned() + &lines.into_values().collect::<String>() + "\n"
}

fn next<'rows>(queue: &Mutex<impl Iterator<Item = &'rows Kernel>>) -> Option<&'rows Kernel> {
    queue.lock().ok()?.next()
}

/// The experiment that `cargo xtask run --lab --once` shows to people.
fn lab(programs: &Programs) -> Result<Command> {
    let mut command = host::root_tool("timeout")?;
    command
        .args(["--foreground", "--kill-after=10", "120"])
        .arg(&programs.lab.path);
    command.arg("--once").arg("--agent").arg(&programs.agent.path);
    Ok(command)
}

fn on_host(kernel: &Kernel, programs: &Programs, extent: Extent) -> Result<Report> {
    let script = Script {
        kernel,
        agent: programs.agent.path.clone(),
        tests: programs
            .tests
            .iter()
            .map(|test| (test.name.clone(), test.path.clone()))
            .collect(),
        others: other_programs()?,
        long: extent == Extent::Long,
    };
    let mut shell = host::root_tool("timeout")?;
    let limit = extent.limit().as_secs().to_string();
    shell.args(["--foreground", "--kill-after=10", &limit, "sh", "-c", &script.text()]);
    let output = shell
        .current_dir(host::work_tree()?.join("tests"))
        .output()
        .context("start sh")?;
    Ok(Report::read(
        &String::from_utf8_lossy(&output.stdout),
        programs.tests.len(),
        Some(output.status.success()),
        "",
    ))
}

fn in_machine(kernel: &Kernel, programs: &Programs, extent: Extent) -> Result<Report> {
    let agent = Program::in_bin(&programs.agent.path)?;
    for name in &kernel.leaves {
        let there = programs.tests.iter().any(|test| test.name == *name);
        ensure!(there, "{} leaves out {name}, which is no test binary", kernel.name);
    }
    let started: Vec<_> = programs
        .tests
        .iter()
        .filter(|test| !kernel.leaves.contains(&test.name))
        .collect();
    let tests = started.iter().map(|test| Program::in_directory(&test.path, "tests"));
    let tests = tests.collect::<Result<Vec<_>>>()?;
    let names = started.iter().map(|test| test.name.clone());
    let script = Script {
        kernel,
        agent: agent.path(),
        tests: names.zip(tests.iter().map(Program::path)).collect(),
        others: Vec::new(),
        long: extent == Extent::Long,
    };
    let text = script.text();
    let mut contents = vec![agent];
    contents.extend(tests);
    let session = vm::run_script(
        kernel,
        Freshness::Newest,
        Clock::Time,
        contents,
        &text,
        extent.limit(),
        false,
    )?;
    Ok(Report::read(
        &session.output,
        started.len(),
        session.verdict,
        &session.end_of_kernel_log(),
    ))
}

impl Programs {
    fn build() -> Result<Self> {
        // The instructions of what sends and counts are part of the numbers on record, which the bench took.
        let mut release = programs::release(&["macvlan-agent", "macvlan-cost"], Stdio::piped())?;
        let agent = programs::take(&mut release, "macvlan-agent", false)?;
        let cost = programs::take(&mut release, "macvlan-cost", false)?;
        let mut tests = programs::tests(Stdio::piped())?;
        let lab = programs::take(&mut tests, "macvlan-lab", false)?;
        tests.retain(|program| program.is_test);
        Ok(Self {
            agent,
            lab,
            cost,
            tests,
        })
    }
}
