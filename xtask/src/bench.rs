//! What the agent costs. A frame: counted in instructions, in machines whose clock counts them, so the same on every
//! computer. All else: measured in time and memory on this one.

mod document;
mod goals;
mod measured;
mod picture;
mod times;

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::gate::Outcome;
use crate::programs;
use crate::suite;
use crate::vm::initramfs::Program;
use crate::vm::kernel::{self, Freshness, Kernel};
use crate::vm::qemu::Clock;
use crate::{host, vm};
use document::Page;
use measured::{Measured, Record};
use times::Times;

/// The kernels that are measured.
const KERNELS: [&str; 3] = ["6.1", "6.12", "7.3"];

/// The parts of `macvlan-measure`.
const PARTS: [&str; 3] = ["frames", "scrape", "manage"];

/// The kernel and the set-ups that the gate measures: enough for every program and every path.
const GATE_KERNEL: &str = "6.12";
const GATE_SETUPS: &str = "none,tc,kprobe";

/// The part that tells of memory, and what tells in a machine which part of that is the kernel's.
const MEMORY: &str = "scrape";
const PAGES: &str = include_str!("bench/pages.sh");

const LIMIT: Duration = Duration::from_mins(10);

const RECORD: &str = "tests/vm/costs.toml";
const TIMES: &str = "tests/times.toml";
const DOCUMENT: &str = "docs/PERFORMANCE.md";
const HISTORY: &str = "target/bench/results.jsonl";

/// Measures and prints; writes where everything was asked for.
pub(crate) fn run(names: &[String]) -> Result<()> {
    let unknown = names
        .iter()
        .find(|name| !KERNELS.contains(&name.as_str()) && !PARTS.contains(&name.as_str()));
    if let Some(name) = unknown {
        bail!(
            "{name} is neither a kernel ({}) nor a part ({})",
            KERNELS.join(", "),
            PARTS.join(", ")
        );
    }
    vm::provision()?;
    let built = programs::release(&["macvlan-agent", "macvlan-cost", "macvlan-measure"], Stdio::inherit())?;
    let [agent, cost, measure] = &built[..] else {
        bail!("cargo did not build all programs");
    };
    let wanted = |name: &&str| names.is_empty() || names.iter().any(|other| other == name);
    let mut record = Record::default();
    for name in KERNELS.iter().filter(|name| wanted(name)) {
        let measured = count(name, &agent.path, &cost.path, None)?;
        println!("{}", document::tables(name, &measured));
        record.kernels.insert((*name).to_owned(), measured);
    }
    let mut times = Times {
        machine: machine()?,
        ..Times::default()
    };
    for part in PARTS.iter().filter(|part| wanted(part)) {
        take_times(part, &agent.path, &measure.path, &mut times)?;
        if *part == MEMORY {
            let output = in_machine(
                &kernel::find(GATE_KERNEL)?,
                Clock::Time,
                vec![Program::in_bin(&agent.path)?],
                PAGES,
            )?;
            times.take_in(&output)?;
        }
    }
    println!("{}", document::goals(&record, &times));
    keep(&record, &times)?;
    if names.is_empty() {
        write(RECORD, &record.text()?)?;
        write(TIMES, &times.text()?)?;
        write_page()?;
    }
    let faults: Vec<_> = times
        .faults
        .iter()
        .map(|(part, fault)| format!("{part}: {fault}"))
        .collect();
    ensure!(faults.is_empty(), "not all was measured\n{}", faults.join("\n"));
    Ok(())
}

/// Runs a part; its failure is part of what is told.
fn take_times(part: &str, agent: &Path, measure: &Path, times: &mut Times) -> Result<()> {
    let node_exporter = suite::unpacked(&["prometheus-node-exporter"], "usr/bin")?.join("prometheus-node-exporter");
    let mut command = host::root_tool(measure)?;
    command
        .arg("--agent")
        .arg(agent)
        .arg("--node-exporter")
        .arg(node_exporter);
    let output = command
        .args(["--parts", part])
        .output()
        .with_context(|| format!("start {}", host::words(&command)))?;
    times.take_in(&String::from_utf8_lossy(&output.stdout))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        times.faults.insert(part.to_owned(), said);
    }
    Ok(())
}

/// What was measured on.
fn machine() -> Result<String> {
    let processors = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
    let names: Vec<_> = processors
        .lines()
        .filter_map(|line| line.strip_prefix("model name"))
        .map(|rest| rest.trim_start_matches([' ', '\t', ':']))
        .collect();
    let name = names.first().copied().unwrap_or("a processor without a name");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's release")?;
    Ok(format!("{} × {name}, Linux {}", names.len(), kernel.trim()))
}

/// Appends what was measured to the runs of this work tree.
fn keep(record: &Record, times: &Times) -> Result<()> {
    let path = host::work_tree()?.join(HISTORY);
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    }
    let line = serde_json::json!({ "frames": record, "times": times });
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    writeln!(file, "{line}").with_context(|| format!("write {}", path.display()))
}

/// Makes the page and its pictures anew from what is recorded.
pub(crate) fn write_page() -> Result<()> {
    for (path, text) in page()?.files {
        write(&path, &text)?;
    }
    Ok(())
}

fn page() -> Result<Page> {
    document::page(&recorded()?, &Times::read(&read(TIMES)?)?)
}

fn recorded() -> Result<Record> {
    Record::read(&read(RECORD)?)
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(host::work_tree()?.join(path)).with_context(|| format!("read {path}"))
}

/// Counts on one kernel, and says what costs more than is recorded.
pub(crate) fn check(agent: &Path, cost: &Path) -> Result<Outcome> {
    let record = recorded()?;
    let mut faults = Vec::new();
    for (path, text) in page()?.files {
        if read(&path).ok() != Some(text) {
            faults.push(format!("{path} is not what {RECORD} and {TIMES} give: {REMEDY} --page"));
        }
    }
    let recorded = record
        .kernels
        .get(GATE_KERNEL)
        .with_context(|| format!("{RECORD} has no {GATE_KERNEL}: {REMEDY}"))?;
    let measured = count(GATE_KERNEL, agent, cost, Some(GATE_SETUPS))?;
    let compared = measured.compare(recorded);
    faults.extend(compared.faults);
    Ok(Outcome {
        note: format!("{} numbers on {GATE_KERNEL}", compared.numbers),
        faults,
        ..Outcome::default()
    })
}

const REMEDY: &str = "run cargo xtask bench";

fn write(path: &str, text: &str) -> Result<()> {
    fs::write(host::work_tree()?.join(path), text).with_context(|| format!("write {path}"))
}

/// Boots a kernel and counts there.
fn count(name: &str, agent: &Path, cost: &Path, setups: Option<&str>) -> Result<Measured> {
    let kernel = kernel::find(name)?;
    let contents = vec![Program::in_bin(agent)?, Program::in_bin(cost)?];
    let tcx = kernel.hooks.values().any(|mechanism| mechanism == "tcx");
    let setups = setups.unwrap_or(if tcx {
        "none,tcx,clsact,empty_fexit,tc,kprobe,fexit"
    } else {
        "none,clsact,tc,kprobe,fexit"
    });
    let script = format!("macvlan-cost --agent /bin/macvlan-agent --setups {setups}");
    Measured::read(&in_machine(&kernel, Clock::Instructions, contents, &script)?)
}

/// Boots a kernel, runs a script there, and gives what it printed.
fn in_machine(kernel: &Kernel, clock: Clock, contents: Vec<Program>, script: &str) -> Result<String> {
    let session = vm::run_script(kernel, Freshness::Cached, clock, contents, script, LIMIT, false)?;
    if session.verdict != Some(true) {
        bail!("{}: {}\n{}", kernel.name, session.output, session.end_of_kernel_log());
    }
    Ok(session.output)
}
