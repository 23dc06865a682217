//! The goals: what is held against which bound, in which unit. The one home of their numbers.

/// What a number must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    pub(super) fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }

    pub(super) fn text(self) -> String {
        match self {
            Self::AtMost(most) => format!("≤ {most}"),
            Self::AtLeast(least) => format!("≥ {least}"),
        }
    }
}

/// A row of the table.
pub(super) struct Goal {
    /// The goal's number, and after a point which of its numbers this is.
    pub(super) key: &'static str,
    pub(super) what: &'static str,
    pub(super) unit: &'static str,
    pub(super) goal: Bound,
    /// Where physics ends.
    pub(super) impossible: Bound,
}

const fn goal(
    key: &'static str,
    what: &'static str,
    unit: &'static str,
    goal: Bound,
    impossible: Bound,
) -> Goal {
    Goal {
        key,
        what,
        unit,
        goal,
        impossible,
    }
}

use Bound::{AtLeast, AtMost};

/// All of them. Goal 8, that counts are exact, is what the tests hold.
pub(super) const GOALS: &[Goal] = &[
    goal("1", "TC programs alone, per delivered frame over no program", "instructions", AtMost(260.0), AtMost(188.0)),
    goal("2", "TC programs and `handle_frame` by fexit, per delivered frame over no program", "instructions", AtMost(450.0), AtMost(188.0)),
    goal("3", "`handle_frame` alone: fexit over kprobe and kretprobe", "ratio", AtMost(0.22), AtMost(0.0)),
    goal("4", "time of a frame over an empty tcx program, 10 sub-interfaces", "ns", AtMost(15.0), AtMost(3.0)),
    goal("5", "the same with 10,000 sub-interfaces, random destinations", "ns", AtMost(200.0), AtMost(60.0)),
    goal("6.tcx", "frames a second with the agent over without it, a source in the kernel, 60 bytes, tcx", "ratio", AtLeast(0.86), AtLeast(0.885)),
    goal("6.clsact", "the same, clsact", "ratio", AtLeast(0.76), AtLeast(0.885)),
    goal("7.60", "the same, real senders, 60 bytes", "ratio", AtLeast(0.95), AtLeast(0.995)),
    goal("7.1514", "the same, real senders, 1,514 bytes", "ratio", AtLeast(0.96), AtLeast(0.995)),
    goal("9", "reading the counts of 10,000 sub-interfaces over the batch reader", "ratio", AtMost(0.1), AtMost(0.04)),
    goal("10", "writing 200,000 series: `prometheus-client`'s time over ours", "times", AtLeast(5.0), AtLeast(14.0)),
    goal("11.time", "a whole scrape of 10,000 sub-interfaces, as it is", "ms", AtMost(25.0), AtMost(7.0)),
    goal("11.line", "time of a line, node_exporter's over ours", "times", AtLeast(50.0), AtLeast(260.0)),
    goal("12", "a scrape compressed over one as it is", "ratio", AtMost(3.0), AtMost(1.2)),
    goal("13", "frames a second while scraped ten times a second over not scraped", "ratio", AtLeast(0.97), AtLeast(0.995)),
    goal("14.none", "memory without sub-interfaces, at most (maps not counted)", "MB", AtMost(8.0), AtMost(4.0)),
    goal("14.full", "memory with 10,000 sub-interfaces, at most (maps not counted)", "MB", AtMost(16.0), AtMost(8.0)),
    goal("15", "processor ticks and voluntary switches in 60 s without scrape or event", "count", AtMost(0.0), AtMost(0.0)),
    goal("16.none", "start to first right scrape, no sub-interfaces", "ms", AtMost(100.0), AtMost(50.0)),
    goal("16.full", "start to first right scrape, 10,000 sub-interfaces", "ms", AtMost(350.0), AtMost(150.0)),
    goal("17.p50", "a new sub-interface is visible and counted after the kernel's acknowledgement, median", "ms", AtMost(1.0), AtMost(0.05)),
    goal("17.p99", "the same, 99th percentile", "ms", AtMost(5.0), AtMost(0.05)),
    goal("18.1000", "creating 1,000 on one parent, `ip -batch`'s time over ours", "ratio", AtLeast(0.95), AtLeast(1.0)),
    goal("18.4000", "the same, 4,000", "ratio", AtLeast(0.95), AtLeast(1.0)),
    goal("19", "deleting managed ones, `ip -batch`'s time over ours", "times", AtLeast(40.0), AtLeast(90.0)),
    goal("20", "placing in namespaces, create-then-move's time over ours", "times", AtLeast(30.0), AtLeast(60.0)),
    goal("21.creator", "10,000 links made by `ip -batch`: time beside the agent over alone", "ratio", AtMost(1.03), AtMost(1.005)),
    goal("21.cpu", "the agent's processor time over the creator's", "ratio", AtMost(0.05), AtMost(0.005)),
    goal("21.overruns", "times that the agent's socket overran (`macvlan_agent_netlink_resyncs_total`)", "count", AtMost(0.0), AtMost(0.0)),
];
