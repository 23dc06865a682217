//! Goal 10: one exposition by the agent's writer and by `prometheus-client`, in one process and into memory that is there:
//! both hand it over in parts, as the agent does.

use std::{
    collections::VecDeque,
    fmt::{self, Write},
    hint::black_box,
    mem,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use macvlan_agent::{
    kernel::{
        counts::Totals,
        directory::Sample,
        hooks::{Hook, Mechanism},
    },
    kernel_counters::KernelCounts,
    metrics::text::{self, Format},
    snapshot::{HookState, Snapshot, SubInterfaceSample},
    topology::{
        inventory::SubInterface,
        link::{Kind, LinkKey, Mode},
    },
};
use macvlan_agent_ebpf::abi::counts::COUNTERS;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, text::encode},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use crate::report::{self, Quartiles};

/// How many lines are written.
const LINES: usize = 200_000;

const ROUNDS: usize = 31;

/// Parts of the agent's that are under way at most: what waits for the connection, and what it sends.
const UNDER_WAY: usize = 6;

pub(super) fn measure() -> Result<()> {
    let text_of = |count| -> Result<String> {
        let mut all = String::new();
        text::write(&snapshot(count)?, &[], Format::OpenMetrics, &mut |part| {
            all.push_str(part);
            part.clear();
            Ok(())
        })?;
        Ok(all)
    };
    let more = samples(&text_of(2)?).count() - samples(&text_of(1)?).count();
    let ours = text_of(LINES.div_ceil(more))?;
    let snapshot = snapshot(LINES.div_ceil(more))?;
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Prepared::of(&ours)?));
    let mut theirs = String::new();
    encode(&mut theirs, &registry)?;
    if let Some((one, other)) = samples(&ours).zip(samples(&theirs)).find(|(one, other)| one != other) {
        bail!("the two do not write the same: {one:?}, {other:?}");
    }
    ensure!(samples(&ours).count() == samples(&theirs).count(), "one writes less");
    let (mut our_times, mut their_times) = (Vec::new(), Vec::new());
    let mut parts = Parts::default();
    let mut streamed = Streamed::default();
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        text::write(black_box(&snapshot), &[], Format::OpenMetrics, &mut |part| {
            parts.hand_over(part);
            Ok(())
        })?;
        our_times.push(begun.elapsed().as_secs_f64() * 1e3);
        let begun = Instant::now();
        encode(&mut streamed, black_box(&registry))?;
        their_times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let (our_side, their_side) = (Quartiles::of(our_times)?, Quartiles::of(their_times)?);
    let lines = samples(&ours).count();
    report::side("10", "macvlan-agent", our_side)?;
    report::side("10", "prometheus-client", their_side)?;
    let text = format!(
        "{lines} lines, {} bytes; ours {:.1} ns a line; prometheus-client's Collector has names, labels and values ready",
        ours.len(),
        our_side.median * 1e6 / super::float(lines)?
    );
    report::note("10", &text)?;
    report::goal("10", their_side.median / our_side.median)
}

/// Parts of an exposition that are under way: the client takes one while the next are written, so that there are never more
/// than some of them.
#[derive(Default)]
struct Parts(VecDeque<String>);

impl Parts {
    /// Takes a part, and leaves the memory of one that has arrived.
    fn hand_over(&mut self, part: &mut String) {
        let mut empty = if self.0.len() < UNDER_WAY {
            String::with_capacity(part.capacity())
        } else {
            self.0.pop_front().unwrap_or_default()
        };
        empty.clear();
        self.0.push_back(mem::replace(part, empty));
    }
}

/// Hands over in parts what somebody writes who does not do so himself.
#[derive(Default)]
struct Streamed {
    part: String,
    parts: Parts,
}

impl Write for Streamed {
    fn write_str(&mut self, some: &str) -> fmt::Result {
        self.part.push_str(some);
        if self.part.len() >= text::CHUNK {
            self.parts.hand_over(&mut self.part);
        }
        Ok(())
    }
}

/// Lines that are samples.
fn samples(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.starts_with('#'))
}

fn snapshot(count: usize) -> Result<Snapshot> {
    let attached = HookState {
        hook: Hook::FrameFree,
        parent: String::new(),
        outcome: Ok(Mechanism::RawTracepoint),
        required: true,
    };
    Ok(Snapshot {
        sub_interfaces: (0..count).map(sub_interface).collect::<Result<_>>()?,
        hooks: vec![attached],
        ..Snapshot::default()
    })
}

/// One whose counters are all different, and of all lengths.
fn sub_interface(number: usize) -> Result<SubInterfaceSample> {
    let id = u32::try_from(number)?;
    let mut next = u64::from(id) + 1;
    let mut value = || {
        // As good as drawn by lot (`splitmix64`), short numbers as often as long ones, and exact as floating point.
        next = next.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (next ^ next >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed >> (14 + mixed % 50)
    };
    let mut totals = Totals::ZERO;
    for place in 0..COUNTERS {
        totals.set_at(place, value());
    }
    let [.., high, low] = id.to_be_bytes();
    let link = SubInterface {
        id: id.into(),
        key: LinkKey {
            netns: 4_026_531_840,
            ifindex: id,
        },
        parent: LinkKey {
            netns: 4_026_531_840,
            ifindex: id % 10,
        },
        name: format!("macv{id}"),
        netns: "host".to_owned(),
        mac: [2, 0x6d, 0x76, 0, high, low],
        mode: Mode::Bridge,
        kind: Kind::Macvlan,
        up: true,
        no_carrier: false,
        keeps_source: false,
        mtu: 1500,
        addresses: Vec::new(),
        born: true,
    };
    Ok(SubInterfaceSample {
        parent: format!("parent{}", id % 10).into(),
        link: link.into(),
        owner: None,
        kernel: Some(KernelCounts {
            multicast_packets: value(),
            multicast_bytes: value(),
            not_delivered: value(),
            not_sent: value(),
            ..KernelCounts::default()
        }),
        error: Some(0),
        sample: Some(Sample {
            totals,
            lost: [value(), value(), value()],
        }),
    })
}

/// All that is to be written, ready.
#[derive(Debug)]
struct Prepared(Vec<Family>);

#[derive(Debug)]
struct Family {
    name: String,
    help: String,
    is_counter: bool,
    samples: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    labels: Vec<(String, String)>,
    value: u64,
}

impl Prepared {
    /// What an exposition says, of which no label has anything to escape.
    fn of(text: &str) -> Result<Self> {
        let mut families: Vec<Family> = Vec::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').context("no help")?;
                families.push(Family {
                    name: name.to_owned(),
                    // The other writer adds the stop.
                    help: help.trim_end_matches('.').to_owned(),
                    is_counter: false,
                    samples: Vec::new(),
                });
                continue;
            }
            if line == "# EOF" {
                break;
            }
            let family = families.last_mut().context("no family")?;
            if line.starts_with('#') {
                family.is_counter |= line.ends_with(" counter");
            } else {
                family.samples.push(Line::of(line)?);
            }
        }
        Ok(Self(families))
    }
}

impl Line {
    fn of(line: &str) -> Result<Self> {
        let (head, value) = line.rsplit_once(' ').context("no value")?;
        let labels = head.split_once('{').map_or("", |(_, labels)| labels);
        let labels = labels.trim_end_matches('}').split_terminator(',').map(|label| {
            let (name, value) = label.split_once('=').context("no label")?;
            Ok((name.to_owned(), value.trim_matches('"').to_owned()))
        });
        Ok(Self {
            labels: labels.collect::<Result<_>>()?,
            value: value.parse()?,
        })
    }
}

impl Family {
    fn encode(&self, line: &Line, encoder: MetricEncoder<'_>) -> fmt::Result {
        if self.is_counter {
            ConstCounter::new(line.value).encode(encoder)
        } else {
            ConstGauge::new(line.value).encode(encoder)
        }
    }
}

impl Collector for Prepared {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in &self.0 {
            let kind = if family.is_counter {
                MetricType::Counter
            } else {
                MetricType::Gauge
            };
            let mut metric = encoder.encode_descriptor(&family.name, &family.help, None, kind)?;
            match &family.samples[..] {
                [only] if only.labels.is_empty() => family.encode(only, metric)?,
                all => {
                    for line in all {
                        family.encode(line, metric.encode_family(&line.labels)?)?;
                    }
                }
            }
        }
        Ok(())
    }
}
