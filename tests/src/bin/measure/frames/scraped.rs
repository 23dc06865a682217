//! Frames while the agent is scraped: goal 13.

use std::{
    io::{self, Write},
    net::{SocketAddr, TcpStream},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use macvlan_agent_tests::live::Source;

use super::{
    kernel_source::at_random,
    observer::{Mechanism, Observer},
    processor,
    stand::Stands,
    turns::{Side, Turns},
};
use crate::{
    Options,
    report::{self, Quartiles},
};

/// One scrape in each that has one.
const SLICE: Duration = Duration::from_millis(100);
const ROUNDS: usize = 102;

/// The source has a processor of its own; the agent and who asks it have the other.
pub(super) fn measure(options: &Options, stands: &Stands) -> Result<()> {
    let stand = &stands.all[0];
    let observer = Observer::start(&options.agent, stand, Mechanism::Tcx)?;
    let address = observer.agent.address();
    let random = Source::random(&stands.host, stand.size.each)?;
    let quantity = at_random(&random, stand.parents.len());
    let (ask, asked) = mpsc::channel::<()>();
    let (answer, answered) = mpsc::channel();
    let (turns, scrapes) = thread::scope(|scope| {
        scope.spawn(move || {
            for () in asked {
                let scraped = processor::stay_on(processor::OTHER).and_then(|()| scrape(address));
                if answer.send(scraped).is_err() {
                    break;
                }
            }
        });
        stands.host.run(move || {
            processor::stay_on(processor::FRAMES)?;
            let mut scrapes = Vec::new();
            let turns = Turns::take(ROUNDS, &[Side::None, Side::Control, Side::Agent], |side| {
                if side == Side::Agent {
                    ask.send(())?;
                }
                let time = for_a_slice(quantity.frames, || (quantity.slice)(stand))?;
                if side == Side::Agent {
                    scrapes.push(answered.recv()??);
                }
                Ok(time)
            })?;
            Ok((turns, Quartiles::of(scrapes)?))
        })
    })?;
    let scrape = scrapes.median;
    let count = stand.size.sub_interfaces();
    report::note(
        "13",
        &format!("{count} sub-interfaces; one scrape in every 100 ms, median {scrape:.1} ms"),
    )?;
    report::side("13", "not_scraped_again", turns.throughput(Side::Control)?)?;
    report::side("13", "scraped", turns.throughput(Side::Agent)?)?;
    report::goal("13", turns.throughput(Side::Agent)?.median)
}

/// Nanoseconds of a frame, by the wall's clock: what holds the source up counts.
fn for_a_slice(frames: u64, mut some: impl FnMut() -> Result<f64>) -> Result<f64> {
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < SLICE {
        some()?;
        count += frames;
    }
    #[expect(clippy::cast_precision_loss, reason = "some hundred thousand")]
    Ok(start.elapsed().as_secs_f64() * 1e9 / count as f64)
}

/// Reads a page to its end and keeps nothing; how long that took.
fn scrape(address: SocketAddr) -> Result<f64> {
    let start = Instant::now();
    let mut stream = TcpStream::connect(address).context("the agent does not listen")?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: agent.test\r\nConnection: close\r\n\r\n")?;
    let length = io::copy(&mut stream, &mut io::sink())?;
    ensure!(length > 10_000, "{length} bytes are no page");
    Ok(start.elapsed().as_secs_f64() * 1e3)
}
