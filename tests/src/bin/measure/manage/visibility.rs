//! Goal 17: how long after the kernel's acknowledgement somebody else's sub-interface is in `/metrics`, with the frame
//! that was sent to it at once.

use std::{
    os::fd::AsRawFd as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use macvlan_agent_tests::{
    agent::Agent,
    connection::Connection,
    lab::{Lab, Link, Mac},
    maker::Maker,
    netns::Namespace,
    traffic::{frame, open},
};
use nix::sys::socket::{MsgFlags, send};

use super::tools::{mac, name, parent};
use crate::{
    Options,
    report::{self, Quartiles},
};

const TIMES: u32 = 200;
/// So many are there at a time: what a scrape takes by itself is to stay small.
const ALIVE: usize = 10;
/// One that is not seen by then is not going to be.
const PATIENCE: Duration = Duration::from_secs(5);
/// Long enough for the agent to be at rest.
const REST: Duration = Duration::from_millis(30);

/// How long one took.
struct Seen {
    visible: Duration,
    /// None: its frame was lost.
    counted: Option<Duration>,
}

pub(super) fn measure(options: &Options) -> Result<()> {
    let lab = parent();
    let other = lab.namespace("other");
    let flags = ["--web.listen-address=127.0.0.1:0".into()];
    let agent = Agent::launch(&options.agent, &flags, &|| Ok(()))?;
    let mut connection = Connection::open(agent.address())?;
    let seen = see_all(&lab, &[Namespace::own(), other], &mut connection)?;
    report_scrape(&mut connection)?;

    let milliseconds = |took: Duration| took.as_secs_f64() * 1e3;
    let visible: Vec<f64> = seen.iter().map(|each| milliseconds(each.visible)).collect();
    let mut counted: Vec<f64> = seen.iter().filter_map(|each| each.counted).map(milliseconds).collect();
    let lost = seen.len() - counted.len();
    report::side("17.p50", "visible_ms", Quartiles::of(visible)?)?;
    let quartiles = Quartiles::of(counted.clone())?;
    report::side("17.p50", "counted_ms", quartiles)?;
    report::goal("17.p50", quartiles.median)?;
    counted.sort_by(f64::total_cmp);
    report::goal("17.p99", counted[(counted.len() - 1) * 99 / 100])?;
    report::note(
        "17.p50",
        &format!("{lost} of {TIMES} frames that were sent at once after the acknowledgement were lost"),
    )
}

fn see_all(lab: &Lab, places: &[Namespace], connection: &mut Connection) -> Result<Vec<Seen>> {
    let maker = Maker::on(&lab.parent)?;
    let station = &lab.station;
    let wire = station.namespace.run(|| open(&station.name))?;
    let files = places.iter().map(Namespace::open).collect::<Result<Vec<_>>>()?;
    // The programs come to a parent with its first sub-interface: that one's first frames may be before them.
    maker.make(&files[0], "first", mac(TIMES))?;
    thread::sleep(REST * 10);
    let (mut seen, mut alive) = (Vec::new(), Vec::new());
    for number in 0..TIMES {
        // At another moment of the agent's clock each time.
        thread::sleep(REST + Duration::from_micros(370) * (number % 17));
        let at = usize::try_from(number)? % places.len();
        let (name, mac) = (name(number), mac(number));
        let acknowledged = maker.make(&files[at], &name, mac)?;
        let frame = frame(mac, Mac([0x02, 0x6e, 0, 0, 0, 1]), 60);
        send(wire.as_raw_fd(), &frame, MsgFlags::empty()).context("could not send a frame")?;
        seen.push(see(connection, &name, places[at].label(), acknowledged)?);
        alive.push(Link {
            namespace: places[at].clone(),
            name,
            mac,
        });
        if alive.len() > ALIVE {
            alive.remove(0).delete()?;
        }
    }
    Ok(seen)
}

/// Asks until it is there with its frame.
fn see(connection: &mut Connection, name: &str, netns: &str, since: Instant) -> Result<Seen> {
    let labels = format!("interface=\"{name}\",netns=\"{netns}\",cast=\"unicast\"");
    let mut visible = None;
    loop {
        let text = connection.get("/metrics")?.body;
        let took = since.elapsed();
        let mut delivered = text
            .lines()
            .filter(|line| line.starts_with("macvlan_delivered_frames_total{") && line.contains(&labels))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .peekable();
        if delivered.peek().is_some() {
            visible.get_or_insert(took);
        }
        let counted = (delivered.sum::<f64>() >= 1.0).then_some(took);
        if let Some(visible) = visible.filter(|_| counted.is_some() || took > PATIENCE) {
            return Ok(Seen { visible, counted });
        }
        ensure!(took < PATIENCE * 2, "{name} did not come into /metrics");
    }
}

/// What asking costs by itself.
fn report_scrape(connection: &mut Connection) -> Result<()> {
    let mut took = Vec::new();
    for _ in 0..TIMES {
        let begun = Instant::now();
        connection.get("/metrics")?;
        took.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let median = Quartiles::of(took)?.median;
    report::note(
        "17.p50",
        &format!("asking takes {median:.2} ms by itself, over a connection that is kept"),
    )
}
