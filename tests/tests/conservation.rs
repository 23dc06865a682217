//! Nothing is lost and nothing is counted twice, as fast as frames go and whatever comes and goes meanwhile: the agent's
//! counts against the kernel's own.

use std::{
    fmt::Write as _,
    process,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use macvlan_agent_tests::{
    agent::Agent,
    exposition::{Scrape, whole},
    flood::{churn, flood},
    lab::{Lab, Link, Mac, Mode, Place, SubInterface, Upstream},
    surroundings::{eventually, long, on_host, patience, sees_verdicts},
    traffic::{BROADCAST, Counters, frame},
};

const STRANGER: Mac = Mac([0x02, 0x77, 0, 0, 0, 1]);
const NOBODY: Mac = Mac([0x02, 0x77, 0, 0, 0, 2]);
/// MACs of those that come and go.
const PASSERS_BY: [Mac; 3] = [
    Mac([0x02, 0x66, 0, 0, 0, 1]),
    Mac([0x02, 0x66, 0, 0, 0, 2]),
    Mac([0x02, 0x66, 0, 0, 0, 3]),
];
const CHANGES_PER_SECOND: u32 = 20;
/// It is made, moved, and deleted.
const CHANGES_OF_ONE: u32 = 3;

/// How many frames are sent.
fn amount() -> u64 {
    match (on_host(), long()) {
        (true, true) => 5_000_000,
        (true, false) => 1_000_000,
        (false, _) => 300_000,
    }
}

/// Whoever sends: what, and how much of the whole.
struct Sender<'a> {
    link: &'a Link,
    frames: Vec<Vec<u8>>,
    percent: u64,
}

/// Frames to these, of one length after the other. They say that they are IPv4, which they are not: what no protocol
/// takes at all would count among what the parent drops.
fn mixed(from: Mac, to: &[Mac]) -> Vec<Vec<u8>> {
    let lengths = [60, 200, 1514];
    let each = to.iter().zip(lengths.iter().cycle()).map(|(to, length)| {
        let mut frame = frame(*to, from, *length);
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        frame
    });
    each.collect()
}

/// So many frames to the same one may be under way at once: one as a rule, more where the kernel puts its softirqs off
/// (ksoftirqd) because the machine is busy.
const UNDER_WAY: u64 = 4;

/// Counts of the kernel that must agree with the agent's.
struct Kernel {
    parent: Counters,
    wire: Counters,
    children: Vec<Counters>,
}

impl Kernel {
    fn read(lab: &Lab, children: &[SubInterface]) -> Self {
        Self {
            parent: lab.parent.counters(),
            wire: lab.station.counters(),
            children: children.iter().map(|child| child.link.counters()).collect(),
        }
    }

    fn since(&self, before: &Self) -> Self {
        let children = self.children.iter().zip(&before.children);
        Self {
            parent: self.parent.since(before.parent),
            wire: self.wire.since(before.wire),
            children: children.map(|(now, then)| now.since(*then)).collect(),
        }
    }

    /// How often the handler should have been entered: for what came from the wire, and for what was looped between
    /// siblings, which is what they sent and the parent did not.
    fn entered(&self) -> u64 {
        let children = self.children.iter();
        let sent: u64 = children.map(|child| child.transmitted + child.transmit_dropped).sum();
        self.parent.received + sent - self.parent.transmitted - self.parent.transmit_dropped
    }
}

/// A parent under fire, and what was counted before.
struct Bench {
    lab: Lab,
    children: Vec<SubInterface>,
    kernel: Kernel,
    /// How many sub-interfaces of this parent went while frames were sent to them.
    removals: u64,
}

impl Bench {
    fn new(modes: &[(&str, Mode)]) -> Self {
        let lab = Lab::new(Place::Named, Upstream::Wire);
        let children: Vec<_> = modes.iter().map(|(name, mode)| lab.add(name, *mode)).collect();
        let kernel = Kernel::read(&lab, &children);
        Self {
            lab,
            children,
            kernel,
            removals: 0,
        }
    }

    /// Reads both sides until nothing moves any more, and compares.
    fn compare(&self, agent: &Agent, before: &Scrape) {
        let mut last = String::new();
        eventually(patience(Duration::from_secs(5)), || {
            let after = agent.scrape();
            let kernel = Kernel::read(&self.lab, &self.children).since(&self.kernel);
            let faults = self.faults(&kernel, before, &after);
            if faults.is_empty() || faults != last {
                last.clone_from(&faults);
                return if faults.is_empty() { Ok(()) } else { Err(faults) };
            }
            Err(faults)
        });
    }

    fn faults(&self, kernel: &Kernel, before: &Scrape, after: &Scrape) -> String {
        let parent = self.lab.parent_label();
        let of_parent = |metric: &str, label: (&str, &str)| {
            let labels = [("parent", parent.as_str()), label];
            increase(before, after, metric, &labels)
        };
        let mut faults = String::new();
        let mut same = |what: &str, ours: u64, theirs: u64| {
            if ours != theirs {
                let _ = writeln!(faults, "{parent} {what}: the agent has {ours}, the kernel {theirs}");
            }
        };
        // What the parent has dropped was for a full queue of broadcasts, or came from the wire too fast, or was looped
        // between siblings too fast: the last counts as sent all the same.
        let queue = of_parent(
            "macvlan_parent_dropped_frames_total",
            ("reason", "broadcast_queue_full"),
        );
        let looped_dropped = kernel.parent.receive_dropped - kernel.wire.transmit_dropped - queue;
        for (child, kernel) in self.children.iter().zip(&kernel.children) {
            let name = &child.link.name;
            let labels = child.labels();
            let labels = labels.each_ref().map(|(name, value)| (*name, value.as_str()));
            let of_child =
                |metric: &str, label: &[(&str, &str)]| increase(before, after, metric, &[&labels, label].concat());
            let delivered = |cast: &str| of_child("macvlan_delivered_frames_total", &[("cast", cast)]);
            same(
                &format!("{name} delivered"),
                delivered("unicast"),
                kernel.received - kernel.multicast,
            );
            same(&format!("{name} multicast"), delivered("multicast"), kernel.multicast);
            let transmitted = of_child("macvlan_transmitted_frames_total", &[]);
            let dropped = if child.mode == Mode::Bridge && kernel.transmitted > 0 {
                looped_dropped
            } else {
                0
            };
            let sent = kernel.transmitted + kernel.transmit_dropped;
            // A frame that was looped to one that went while the frame was under way, before the agent had heard of it
            // at all, looks like one that the switch has returned: one for each that went, or a few.
            let under_way = sent.saturating_sub(transmitted + dropped);
            let unproven = if child.mode == Mode::Bridge && under_way <= UNDER_WAY * self.removals {
                under_way
            } else {
                0
            };
            same(&format!("{name} transmitted"), transmitted + dropped + unproven, sent);
            let error = after.sum("macvlan_accounting_error_skbs", &labels);
            same(&format!("{name} accounting error"), whole(error), 0);
        }
        if sees_verdicts() {
            let handled = |label| of_parent("macvlan_parent_handled_frames_total", label);
            // Another user of kprobes may make the kernel leave some out; then the agent says so.
            let missed = increase(
                before,
                after,
                "macvlan_agent_hook_missed_total",
                &[("hook", "handle_frame")],
            );
            same("missed", missed, 0);
            same("unknown", handled(("verdict", "unknown")), 0);
            same(
                "handled",
                handled(("parent", &parent)) + looped_dropped,
                kernel.entered(),
            );
        }
        faults
    }
}

/// The increase of all series that have these labels.
fn increase(before: &Scrape, after: &Scrape, metric: &str, labels: &[(&str, &str)]) -> u64 {
    let [then, now] = [before, after].map(|scrape| whole(scrape.sum(metric, labels)));
    now - then
}

/// Sends everything at once; those that pass by come and go until the last frame is out.
///
/// Says how many went.
fn fire(senders: &[Sender<'_>], passing: &Lab) -> u64 {
    let end = AtomicBool::new(false);
    let total = amount();
    let changes = thread::scope(|scope| {
        let churner = scope.spawn(|| churn(passing, &PASSERS_BY, CHANGES_PER_SECOND, &end));
        let threads: Vec<_> = senders
            .iter()
            .map(|sender| {
                let count = total * sender.percent / 100;
                scope.spawn(move || flood(&sender.link.namespace, &sender.link.name, &sender.frames, count))
            })
            .collect();
        for thread in threads {
            let sent = thread.join().expect("a sender does not panic");
            sent.unwrap_or_else(|error| panic!("{error:#}"));
        }
        end.store(true, Ordering::Relaxed);
        churner.join().expect("the kernel takes the changes")
    });
    assert!(changes > 10, "only {changes} changes in {}", process::id());
    u64::from(changes / CHANGES_OF_ONE)
}

#[test]
fn counts_agree_with_the_kernels_under_fire() {
    let mut mixed_modes = Bench::new(&[
        ("bridge1", Mode::Bridge),
        ("bridge2", Mode::Bridge),
        ("bridge3", Mode::Bridge),
        ("vepa1", Mode::Vepa),
        ("private1", Mode::Private),
    ]);
    let passthru = Bench::new(&[("pass1", Mode::Passthru)]);
    let agent = Agent::start();
    for bench in [&mixed_modes, &passthru] {
        agent.await_known(&bench.children.iter().collect::<Vec<_>>());
    }
    let before = agent.scrape();

    let lab = &mixed_modes.lab;
    let macs: Vec<_> = mixed_modes.children.iter().map(SubInterface::mac).collect();
    let [one, other, third, vepa, private] = macs[..] else {
        panic!("five of them")
    };
    let from_wire = [
        macs.as_slice(),
        &[lab.parent.mac, NOBODY, one, other, BROADCAST],
        &PASSERS_BY,
    ]
    .concat();
    let mut from_bridge = vec![other, third, other, NOBODY, lab.parent.mac, vepa, BROADCAST];
    // Without verdicts nothing tells a frame to a sibling that is not known yet from one that the switch returned.
    if sees_verdicts() {
        from_bridge.extend(PASSERS_BY);
    }
    let senders = [
        Sender {
            link: &lab.station,
            frames: mixed(STRANGER, &from_wire),
            percent: 40,
        },
        Sender {
            link: &mixed_modes.children[0].link,
            frames: mixed(one, &from_bridge),
            percent: 30,
        },
        Sender {
            link: &mixed_modes.children[3].link,
            frames: mixed(vepa, &[NOBODY, private, lab.parent.mac]),
            percent: 10,
        },
        Sender {
            link: &passthru.lab.station,
            frames: mixed(STRANGER, &[passthru.lab.parent.mac, NOBODY, BROADCAST]),
            percent: 20,
        },
    ];
    let removals = fire(&senders, lab);
    drop(senders);
    if sees_verdicts() {
        mixed_modes.removals = removals;
    }
    for bench in [&mixed_modes, &passthru] {
        bench.compare(&agent, &before);
    }
}
