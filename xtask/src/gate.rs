//! A list of steps done one after the other: a line for each with its time, what failed at the end, and the sum.

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::host;
use crate::libtest::Tally;

/// What a step has to say when it succeeded or when single tests of it failed.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Said beside the step's name.
    pub(crate) note: String,
    /// The single tests that were part of it.
    pub(crate) tests: Tally,
    /// Each fault, with what explains it.
    pub(crate) faults: Vec<String>,
}

impl Outcome {
    /// A success with something to say.
    pub(crate) fn note(note: String) -> Self {
        Self {
            note,
            ..Self::default()
        }
    }
}

/// The steps so far.
#[derive(Default)]
pub(crate) struct Gate {
    sum: Tally,
    failures: Vec<String>,
}

impl Gate {
    /// Does one step, and says how it went.
    pub(crate) fn step(&mut self, name: &str, work: impl FnOnce() -> Result<Outcome>) {
        let start = Instant::now();
        self.record(name, work(), start.elapsed());
    }

    /// Takes in a step that was done, and says how it went.
    pub(crate) fn record(&mut self, name: &str, outcome: Result<Outcome>, took: Duration) {
        let outcome = outcome.unwrap_or_else(|error| Outcome {
            faults: vec![format!("{error:#}")],
            ..Outcome::default()
        });
        let passed = outcome.faults.is_empty() && outcome.tests.failed == 0;
        self.sum.passed += outcome.tests.passed + usize::from(passed);
        self.sum.failed += outcome.tests.failed + usize::from(!passed);
        let verdict = if passed { "ok" } else { "FAILED" };
        let note = if outcome.note.is_empty() {
            String::new()
        } else {
            format!(" ({})", outcome.note)
        };
        println!("{verdict:<6} {:>6.1} s  {name}{note}", took.as_secs_f64());
        if !passed {
            self.failures
                .push(format!("---- {name}\n{}", outcome.faults.join("\n")));
        }
    }

    /// A step that is one command.
    pub(crate) fn command(&mut self, name: &str, command: Result<Command>) {
        self.step(name, || {
            host::read(&mut command?)?;
            Ok(Outcome::default())
        });
    }

    /// A step that is one command which runs test binaries.
    pub(crate) fn tests(&mut self, name: &str, command: Result<Command>) {
        self.step(name, || {
            let mut command = command?;
            let output = command
                .output()
                .with_context(|| format!("start {}", host::words(&command)))?;
            let text = host::printed(&output);
            let tests = Tally::read(&text);
            let failed = !output.status.success() || tests.summaries == 0;
            let faults = if failed { vec![text] } else { Vec::new() };
            Ok(Outcome {
                note: tests.to_string(),
                tests,
                faults,
            })
        });
    }

    /// Says what failed, then the table, then the sum.
    pub(crate) fn finish(self, table: &str) -> ExitCode {
        for failure in &self.failures {
            println!("\n{failure}");
        }
        println!("\n{table}{} passed, {} failed", self.sum.passed, self.sum.failed);
        if self.sum.failed > 0 {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        }
    }
}
