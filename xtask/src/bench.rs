//! What a frame costs: counted in instructions, in machines whose clock counts them, so the same on every computer.

mod document;
mod measured;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::gate::Outcome;
use crate::programs;
use crate::vm::initramfs::Program;
use crate::vm::kernel::{self, Freshness};
use crate::vm::qemu::Clock;
use crate::{host, vm};
use measured::{Measured, Record};

/// The kernels that are measured.
const KERNELS: [&str; 3] = ["6.1", "6.12", "7.3"];

/// The kernel and the set-ups that the gate measures: enough for every program and every path.
const GATE_KERNEL: &str = "6.12";
const GATE_SETUPS: &str = "none,tc,kprobe";

const LIMIT: Duration = Duration::from_mins(10);

const RECORD: &str = "tests/vm/costs.toml";
const DOCUMENT: &str = "docs/PERFORMANCE.md";

/// Measures and prints; writes where all kernels were asked for.
pub(crate) fn run(names: &[String]) -> Result<()> {
    vm::provision()?;
    let built = programs::release(&["macvlan-agent", "macvlan-cost"], Stdio::inherit())?;
    let [agent, cost] = &built[..] else {
        bail!("cargo did not build both programs");
    };
    let chosen: Vec<&str> = if names.is_empty() {
        KERNELS.to_vec()
    } else {
        names.iter().map(String::as_str).collect()
    };
    let mut record = Record::default();
    for name in chosen {
        let measured = measure(name, &agent.path, &cost.path, None)?;
        println!("{}", document::tables(name, &measured));
        record.kernels.insert(name.to_owned(), measured);
    }
    if names.is_empty() {
        write(RECORD, &record.text()?)?;
        write(DOCUMENT, &document::text(&record))?;
    }
    Ok(())
}

/// Makes the page anew from what is recorded.
pub(crate) fn write_page() -> Result<()> {
    write(DOCUMENT, &document::text(&recorded()?))
}

fn recorded() -> Result<Record> {
    let text = fs::read_to_string(host::work_tree()?.join(RECORD)).with_context(|| format!("read {RECORD}"))?;
    Record::read(&text)
}

/// Counts on one kernel, and says what costs more than is recorded.
pub(crate) fn check(agent: &Path, cost: &Path) -> Result<Outcome> {
    let record = recorded()?;
    let page = fs::read_to_string(host::work_tree()?.join(DOCUMENT)).with_context(|| format!("read {DOCUMENT}"))?;
    let mut faults = Vec::new();
    if page != document::text(&record) {
        faults.push(format!("{DOCUMENT} is not what {RECORD} gives: {REMEDY}"));
    }
    let recorded = record
        .kernels
        .get(GATE_KERNEL)
        .with_context(|| format!("{RECORD} has no {GATE_KERNEL}: {REMEDY}"))?;
    let measured = measure(GATE_KERNEL, agent, cost, Some(GATE_SETUPS))?;
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
fn measure(name: &str, agent: &Path, cost: &Path, setups: Option<&str>) -> Result<Measured> {
    let kernel = kernel::find(name)?;
    let contents = vec![Program::in_bin(agent)?, Program::in_bin(cost)?];
    let tcx = kernel.hooks.values().any(|mechanism| mechanism == "tcx");
    let setups = setups.unwrap_or(if tcx {
        "none,tcx,clsact,tc,kprobe,fexit"
    } else {
        "none,clsact,tc,kprobe,fexit"
    });
    let script = format!("macvlan-cost --agent /bin/macvlan-agent --setups {setups}");
    let session = vm::run_script(
        &kernel,
        Freshness::Cached,
        Clock::Instructions,
        contents,
        &script,
        LIMIT,
        false,
    )?;
    if session.verdict != Some(true) {
        bail!("{name}: {}\n{}", session.output, session.end_of_kernel_log());
    }
    Measured::read(&session.output)
}
