//! Scrapes: how long they take, what they cost in memory, what the agent does while nobody asks, and how soon after its
//! start it answers rightly.

mod client;
mod field;
mod process;
mod readers;
mod ready;
mod writers;

use std::{thread, time::Duration};

use anyhow::{Context, Result};

use self::{client::Client, field::Field, process::Process};
use crate::{
    Options,
    report::{self, Quartiles},
};

/// Where the curves have points; the goals are for the last.
const SIZES: [usize; 4] = [100, 1_000, 4_000, 10_000];

/// Scrapes for a point of a curve, and for a goal.
const ROUNDS: usize = 7;
const MANY_ROUNDS: usize = 21;

/// Scrapes by `node_exporter` of all that `/sys` says: they take so long.
const FEW_ROUNDS: usize = 3;

/// Starts of the agent.
const STARTS: usize = 5;

/// Scrapes before memory is looked at.
const SCRAPES: usize = 10;

/// By then nothing of what happened has an echo.
const SETTLE: Duration = Duration::from_secs(20);

/// How long the agent is left alone.
const IDLE: Duration = Duration::from_mins(1);

const METRICS: &str = "/metrics";
const NETDEV: &str = "/metrics?collect[]=netdev";

pub(crate) fn measure(options: &Options) -> Result<()> {
    readers::measure().context("9")?;
    writers::measure().context("10")?;
    let mut field = Field::new()?;
    let mut client = Client::new(&field.namespace);
    start(options, &field, &mut client, "16.none")?;
    memory(options, &field, &mut client, "14.none")?;
    for size in SIZES {
        field.grow(size)?;
        let last = Some(&size) == SIZES.last();
        if last {
            start(options, &field, &mut client, "16.full")?;
            memory(options, &field, &mut client, "14.full")?;
        }
        let agent = Process::agent(&options.agent, &field.namespace)?;
        agent.await_right(&mut client, |body| is_right(body, &field))?;
        let node_exporter = Process::node_exporter(&options.node_exporter, &field.namespace)?;
        scrape(&field, &mut client, (&agent, &node_exporter), last)?;
        drop(node_exporter);
        if last {
            idle(&agent)?;
        }
    }
    Ok(())
}

/// Whether the agent knows everyone, counts everyone, and has its programs on every parent.
fn is_right(body: &str, field: &Field) -> bool {
    let with = |begin: &str, rest: &str| {
        let lines = body.lines().filter(|line| line.starts_with(begin));
        lines.filter(|line| line.contains(rest)).count()
    };
    let parents = if field.count() == 0 { 0 } else { field.parents() };
    with("macvlan_transmitted_frames_total{", "netns=\"host\",path=\"external\"") == field.count()
        && with("macvlan_accounting_error_skbs{", "netns=\"host\"") == field.count()
        && with(
            "macvlan_agent_hook_attached{hook=\"parent_ingress\",parent=\"parent",
            "} 1",
        ) == parents
        && with(
            "macvlan_agent_hook_attached{hook=\"parent_egress\",parent=\"parent",
            "} 1",
        ) == parents
}

fn start(options: &Options, field: &Field, client: &mut Client, key: &str) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let agent = Process::agent(&options.agent, &field.namespace)?;
        let took = agent.await_right(client, |body| is_right(body, field))?;
        times.push(took.as_secs_f64() * 1e3);
    }
    let times = Quartiles::of(times)?;
    report::side(key, "macvlan-agent", times)?;
    if field.count() > 0 {
        let attached = (0..STARTS).map(|_| field.attach_empty()).collect::<Result<_>>()?;
        report::side(key, "empty_programs_attached", Quartiles::of(attached)?)?;
    }
    report::goal(key, times.median)
}

fn memory(options: &Options, field: &Field, client: &mut Client, key: &str) -> Result<()> {
    let agent = Process::agent(&options.agent, &field.namespace)?;
    agent.await_right(client, |body| is_right(body, field))?;
    for _ in 0..SCRAPES {
        field.stir()?;
        client.get(agent.address, METRICS, false)?.read()?;
    }
    report::goal(key, agent.peak_memory()?)?;
    let (own, files) = agent.memory()?;
    let text = format!(
        "VmHWM after {SCRAPES} scrapes, less the Rss of anon_inode:bpf-map in smaps; after them {own:.1} MB are pages of its \
         own, and {files:.1} MB are mapped from the program's file and from libraries, which the page cache holds once for \
         all"
    );
    report::note(key, &text)
}

/// The agent and `node_exporter` in turn.
fn scrape(field: &Field, client: &mut Client, (agent, node_exporter): (&Process, &Process), last: bool) -> Result<()> {
    let (rounds, few) = if last { (MANY_ROUNDS, FEW_ROUNDS) } else { (ROUNDS, 1) };
    // Neither is asked for the first time.
    let lines = client.get(agent.address, METRICS, false)?.lines()?;
    let ready = if last {
        let body = client.get(agent.address, METRICS, false)?.read()?.body;
        Some(ready::serve(&field.namespace, body)?)
    } else {
        None
    };
    let netdev_lines = client.get(node_exporter.address, NETDEV, false)?.lines()?;
    let (mut sides, mut ready_times) = ([(); 4].map(|()| Vec::new()), Vec::new());
    for round in 0..rounds {
        field.stir()?;
        sides[0].push(client.get(agent.address, METRICS, false)?.milliseconds());
        sides[1].push(client.get(agent.address, METRICS, true)?.milliseconds());
        sides[2].push(client.get(node_exporter.address, NETDEV, false)?.milliseconds());
        if let Some(ready) = ready {
            ready_times.push(client.get(ready, METRICS, false)?.milliseconds());
        }
        if round < few {
            let answer = client.get(node_exporter.address, METRICS, false)?;
            sides[3].push(answer.milliseconds());
        }
    }
    let all_lines = client.get(node_exporter.address, METRICS, false)?.lines()?;
    let [plain, gzip, netdev, all] = sides.map(Quartiles::of);
    let [plain, gzip, netdev, all] = [plain?, gzip?, netdev?, all?];
    let x = float(field.count())?;
    for (series, side) in [
        ("macvlan-agent", plain),
        ("macvlan-agent,gzip", gzip),
        ("node_exporter,netdev", netdev),
        ("node_exporter,netdev+netclass", all),
    ] {
        report::point("scrape-ms", series, x, side.median)?;
    }
    report::point("memory-MB", "macvlan-agent", x, agent.peak_memory()?)?;
    report::point("memory-MB", "node_exporter", x, node_exporter.peak_memory()?)?;
    if !last {
        return Ok(());
    }
    let (ours, theirs) = (plain.median / float(lines)?, netdev.median / float(netdev_lines)?);
    report::side("11.time", "macvlan-agent", plain)?;
    report::side("11.time", "the_same_bytes_ready", Quartiles::of(ready_times)?)?;
    report::goal("11.time", plain.median)?;
    let each = float(lines)? / x;
    let text = format!(
        "{lines} lines, {each:.1} for each sub-interface where the goal reckons with 20; {:.1} ns a line, 20 lines each \
         would be {:.1} ms if all of it went into lines",
        ours * 1e6,
        ours * x * 20.0
    );
    report::note("11.time", &text)?;
    report::side("11.line", "node_exporter,netdev", netdev)?;
    report::side("11.line", "node_exporter,netdev+netclass", all)?;
    let text = format!(
        "netdev by netlink has {netdev_lines} lines of {:.0} ns, with netclass {all_lines} of {:.0} ns; the goal's number \
         is netdev's",
        theirs * 1e6,
        all.median / float(all_lines)? * 1e6
    );
    report::note("11.line", &text)?;
    report::goal("11.line", theirs / ours)?;
    report::side("12", "macvlan-agent,identity", plain)?;
    report::side("12", "macvlan-agent,gzip", gzip)?;
    report::goal("12", gzip.median / plain.median)
}

fn idle(agent: &Process) -> Result<()> {
    thread::sleep(SETTLE);
    let before = agent.activity()?;
    thread::sleep(IDLE);
    let (ticks, switches) = agent.activity()?.since(&before);
    report::note(
        "15",
        &format!("{ticks} ticks, {switches} voluntary switches, all threads"),
    )?;
    report::goal("15", f64::from(ticks + switches))
}

fn float(count: usize) -> Result<f64> {
    Ok(u32::try_from(count)?.into())
}
