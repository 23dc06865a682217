//! `macvlan-measure`: what the agent costs in time and memory, beside what else does the same or nothing.
//!
//! Times scatter from machine to machine and from minute to minute, so what is told is a ratio or a difference inside
//! one run, whose sides took turns.

mod frames;
mod manage;
mod report;
mod scrape;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::Parser;

/// Measures what the agent costs in time and memory
#[derive(Debug, Parser)]
#[command(name = "macvlan-measure", version)]
struct Options {
    /// The macvlan-agent program
    #[arg(long, value_name = "PATH")]
    agent: PathBuf,
    /// The prometheus-node-exporter program to compare with
    #[arg(long, value_name = "PATH")]
    node_exporter: PathBuf,
    /// How far what is the same on two sides may differ before frames are measured anew
    #[arg(long, value_name = "RATIO", default_value_t = 0.02)]
    control: f64,
    /// What to measure
    #[arg(long, value_delimiter = ',', default_value = "frames,scrape,manage")]
    parts: Vec<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Frames: what they cost beside no program and an empty one.
    Frames,
    /// Scrapes, start, memory.
    Scrape,
    /// Sub-interfaces made, removed, and seen.
    Manage,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "macvlan-measure: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    for part in &options.parts {
        match part {
            Part::Frames => frames::measure(options).context("frames"),
            Part::Scrape => scrape::measure(options).context("scrape"),
            Part::Manage => manage::measure(options).context("manage"),
        }?;
    }
    Ok(())
}
