//! Arguments, the log, one command, and the exit code of its error.

use std::process::ExitCode;

use clap::Parser as _;
use macvlan_agent::{
    agent, check,
    config::args::{Cli, Command, Format, Level, Log, MetricsOutput},
    list,
    manage::command as manage,
    metrics, output,
};
use tracing_subscriber::filter::LevelFilter;

fn main() -> ExitCode {
    give_memory_back();
    let cli = Cli::parse();
    let log = match &cli.command {
        Command::Run(run) => &run.log,
        _ => &Log {
            level: Level::Warn,
            format: Format::Text,
        },
    };
    start_log(log);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return failed(&anyhow::Error::new(error).context("cannot start threads")),
    };
    runtime
        .block_on(command(cli.command))
        .unwrap_or_else(|error| failed(&error))
}

/// Lets the allocator return what is large as soon as it is not used any more, and hold one heap instead of one for each
/// thread: an agent is busy for some milliseconds a minute. The end of the heap is let go where it is more than the parts
/// of a scrape that are under way, or each of them would be got anew.
fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_ARENA_MAX, 1),
        (libc::M_MMAP_THRESHOLD, 128 * 1024),
        (libc::M_TRIM_THRESHOLD, 1024 * 1024),
    ] {
        // SAFETY: called before there is another thread, with numbers that glibc documents; a refusal changes nothing.
        unsafe { libc::mallopt(parameter, value) };
    }
}

async fn command(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(run) => agent::start(*run).await?.wait().await?,
        Command::Check(arguments) => return check::run(&arguments).await,
        Command::List(arguments) => list::run(&arguments).await?,
        Command::Add(arguments) => manage::add(*arguments).await?,
        Command::Set(arguments) => manage::set(*arguments).await?,
        Command::Del(arguments) => manage::del(arguments).await?,
        Command::Shim(command) => manage::shim(command).await?,
        Command::Plan(arguments) => manage::plan(arguments).await?,
        Command::Apply(arguments) => return manage::apply(arguments).await,
        Command::Config(command) => manage::config(&command)?,
        Command::Metrics(arguments) => output::text(&match arguments.output {
            MetricsOutput::Markdown => metrics::reference::markdown(),
            MetricsOutput::Json => metrics::reference::json()?,
        })?,
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(
    clippy::print_stderr,
    reason = "the last word of a command that failed, whatever the log's level"
)]
fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("macvlan-agent: {error:#}");
    ExitCode::FAILURE
}

fn start_log(log: &Log) {
    let level = match log.level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(false);
    match log.format {
        Format::Text => builder.with_target(false).init(),
        Format::Json => builder.json().flatten_event(true).init(),
    }
}
