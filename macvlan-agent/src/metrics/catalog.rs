//! The table of metrics: names, types, labels and help have their one home here; the exposition, `docs/METRICS.md` and
//! the checks are made from it.

use macvlan_agent_ebpf::abi::{
    AskKind, Counter, Direction, Verdict,
    label::{DropReason, ParentDropReason, Reflection},
};

use crate::{
    kernel::{directory::Sample as Counts, hooks::Hook},
    kernel_counters::KernelCounts,
    owners::Owner,
    snapshot::{Snapshot, SubInterfaceSample},
    topology::link::Mode,
};

/// What kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Only grows while the agent runs.
    Counter,
    /// Goes up and down.
    Gauge,
}

impl Type {
    /// As expositions write it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }
}

/// Samples: their label values, in the order of the metric's labels, and their values. Those of a sub-interface begin with
/// what names it ([`identity`]), which is said by its place in the snapshot.
#[derive(Clone, Copy, Debug)]
pub enum Sample<'a> {
    /// One of no sub-interface.
    Of(&'a [&'a str], f64),
    /// Those of a sub-interface, with words of ours behind its name: whole numbers, as nearly all are.
    Lines(usize, &'a [(&'a [&'static str], u64)]),
    /// One of a sub-interface, with any text behind its name.
    Described(usize, &'a [&'a str], f64),
}

/// Receives samples.
pub type Sink<'a> = dyn FnMut(Sample<'_>) + 'a;

/// Where a metric's samples come from.
#[derive(Clone, Copy)]
pub enum Source {
    /// Made from the snapshot at each scrape.
    Snapshot(fn(&Snapshot, &mut Sink<'_>)),
    /// Kept in the registry of the agent's own metrics.
    Registry,
}

/// One metric.
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: Type,
    /// Its labels, in the order in which samples give their values.
    pub labels: &'static [&'static str],
    /// One sentence: what it is, and what it is made from.
    pub help: &'static str,
    /// The hooks that it relies on.
    pub hooks: &'static [Hook],
    /// Where its samples come from.
    pub source: Source,
}

/// The labels that name a sub-interface; they come first.
pub const SUB_INTERFACE: [&str; 3] = ["parent", "interface", "netns"];
const TC: &[Hook] = &[Hook::ParentIngress, Hook::ParentEgress];
const SENT: &[Hook] = &[Hook::ParentIngress, Hook::ParentEgress, Hook::KernelCounters];

/// All metrics of the agent, in the order of the exposition. `process_*` stand beside them.
pub const METRICS: &[Metric] = &[
    Metric {
        name: "macvlan_delivered_frames_total",
        kind: Type::Counter,
        labels: &["parent", "interface", "netns", "cast", "path"],
        help: "Frames that macvlan handed to the sub-interface; unicast by path (sibling = looped locally in bridge mode, external = all else) from what macvlan_handle_frame returned, or without handle_frame from what parent_ingress saw for a sub-interface that is up; path any, in skbs, from the kernel's own counters: multicast (broadcast included), and in mode source everything, which stands under unicast.",
        hooks: &[Hook::ParentIngress, Hook::HandleFrame, Hook::KernelCounters],
        source: Source::Snapshot(|snapshot, sink| {
            let counters = [Counter::DeliveredExternalFrames, Counter::DeliveredSiblingFrames];
            delivered(snapshot, counters, Counter::QueueFullExternalFrames, sink);
            by_kernel(
                snapshot,
                |kernel| {
                    (
                        kernel.packets.saturating_sub(kernel.multicast_packets),
                        kernel.multicast_packets,
                    )
                },
                sink,
            );
        }),
    },
    Metric {
        name: "macvlan_delivered_bytes_total",
        kind: Type::Counter,
        labels: &["parent", "interface", "netns", "cast", "path"],
        help: "Bytes of the frames in macvlan_delivered_frames_total as on the wire, Ethernet header included, frame check sequence not; multicast bytes are the kernel's received bytes less those of our unicast skbs (which counts the Ethernet header of a bridge-mode sibling's multicast twice), and in mode source all that the kernel counts.",
        hooks: &[Hook::ParentIngress, Hook::HandleFrame, Hook::KernelCounters],
        source: Source::Snapshot(|snapshot, sink| {
            let counters = [Counter::DeliveredExternalBytes, Counter::DeliveredSiblingBytes];
            delivered(snapshot, counters, Counter::QueueFullExternalBytes, sink);
            by_kernel(snapshot, |kernel| (kernel.bytes, kernel.multicast_bytes), sink);
        }),
    },
    Metric {
        name: "macvlan_transmitted_frames_total",
        kind: Type::Counter,
        labels: &["parent", "interface", "netns", "path"],
        help: "Frames that the sub-interface sent, by path: external = out of the parent, frames for the parent itself included, which never arrive; sibling = unicast looped locally in bridge mode; in mode passthru the kernel's own count, in skbs.",
        hooks: SENT,
        source: Source::Snapshot(|snapshot, sink| {
            transmitted(
                snapshot,
                [Counter::TransmittedExternalFrames, Counter::TransmittedSiblingFrames],
                |kernel| kernel.sent_packets,
                sink,
            );
        }),
    },
    Metric {
        name: "macvlan_transmitted_bytes_total",
        kind: Type::Counter,
        labels: &["parent", "interface", "netns", "path"],
        help: "Bytes of the frames in macvlan_transmitted_frames_total as on the wire, Ethernet header included, frame check sequence not; in mode passthru the kernel's own count.",
        hooks: SENT,
        source: Source::Snapshot(|snapshot, sink| {
            transmitted(
                snapshot,
                [Counter::TransmittedExternalBytes, Counter::TransmittedSiblingBytes],
                |kernel| kernel.sent_bytes,
                sink,
            );
        }),
    },
    Metric {
        name: "macvlan_dropped_frames_total",
        kind: Type::Counter,
        labels: &["parent", "interface", "netns", "reason"],
        help: "Frames that did not arrive, by reason; child_to_parent, parent_to_child and sibling_not_reflected are macvlan_isolation_attempts_total that nothing answered or sent back within 3 s, interface_down were for one that is down, clone_failed needs handle_frame, delivery_failed is the kernel's rx_errors without those (skbs; of a macvtap its full queue, taken off what was delivered where frame_free says which), transmit_failed is the kernel's tx_dropped (skbs) and before Linux 6.11, from frame_free, what was sent without carrier.",
        hooks: &[
            Hook::ParentIngress,
            Hook::ParentEgress,
            Hook::HandleFrame,
            Hook::KernelCounters,
            Hook::FrameFree,
        ],
        source: Source::Snapshot(dropped),
    },
    Metric {
        name: "macvlan_isolation_attempts_total",
        kind: Type::Counter,
        labels: &["parent", "interface", "netns", "direction", "kind"],
        help: "Frames sent out of the parent that macvlan itself never delivers: between the sub-interface and its parent, or to a sibling that is not bridged; by kind: unicast to the other's MAC, or an ARP request or neighbour solicitation for its address.",
        hooks: TC,
        source: Source::Snapshot(attempts),
    },
    Metric {
        name: "macvlan_reflected_frames_total",
        kind: Type::Counter,
        labels: &["parent", "interface", "netns", "direction"],
        help: "Frames of the sub-interface that came back from upstream (hairpin, VEPA); for parent_to_child the parent's frames to it.",
        hooks: &[Hook::ParentIngress],
        source: Source::Snapshot(reflected),
    },
    Metric {
        name: "macvlan_neighbour_failed_packets_total",
        kind: Type::Counter,
        labels: &SUB_INTERFACE,
        help: "Packets of the sub-interface that died waiting for a neighbour that did not answer; they never became frames, only their ARP requests and neighbour solicitations did.",
        hooks: &[Hook::FrameFree],
        source: Source::Snapshot(|snapshot, sink| {
            if freed_seen(snapshot) {
                counted(snapshot, |place, sample| {
                    let failed = sample.totals.at(Counter::NeighbourFailedPackets, 0);
                    sink(Sample::Lines(place, &[(&[], failed)]));
                });
            }
        }),
    },
    Metric {
        name: "macvlan_accounting_error_skbs",
        kind: Type::Gauge,
        labels: &SUB_INTERFACE,
        help: "How far our count of unicast skbs delivered is from what the kernel's rx_packets less multicast said before and after it was read, both since the agent came to know the sub-interface; 0 when all is accounted for, absent in mode source.",
        hooks: &[Hook::ParentIngress, Hook::HandleFrame, Hook::KernelCounters],
        source: Source::Snapshot(|snapshot, sink| {
            for (place, each) in snapshot.sub_interfaces.iter().enumerate() {
                if let Some(error) = each.error {
                    sink(Sample::Lines(place, &[(&[], error)]));
                }
            }
        }),
    },
    Metric {
        name: "macvlan_interface_info",
        kind: Type::Gauge,
        labels: &[
            "parent",
            "interface",
            "netns",
            "mode",
            "mac",
            "ifindex",
            "runtime",
            "container_name",
            "container_id",
            "pod_name",
            "pod_namespace",
        ],
        help: "1; what the sub-interface is, from netlink, and whose its namespace is: from cgroups, Docker's and podman's API and CNI's cache, empty where it is not known or shared, and late by up to two seconds.",
        hooks: &[],
        source: Source::Snapshot(|snapshot, sink| {
            for (place, each) in snapshot.sub_interfaces.iter().enumerate() {
                let link = &each.link;
                let (mac, mut index) = (mac(link.mac), itoa::Buffer::new());
                let nobody = Owner::default();
                let owner = each.owner.as_ref().unwrap_or(&nobody);
                let rest = [
                    link.mode.word(),
                    &mac,
                    index.format(link.key.ifindex),
                    &owner.runtime,
                    &owner.container_name,
                    &owner.container_id,
                    &owner.pod_name,
                    &owner.pod_namespace,
                ];
                sink(Sample::Described(place, &rest, 1.0));
            }
        }),
    },
    Metric {
        name: "macvlan_interface_up",
        kind: Type::Gauge,
        labels: &SUB_INTERFACE,
        help: "1 while the sub-interface is administratively up, from netlink.",
        hooks: &[],
        source: Source::Snapshot(|snapshot, sink| {
            for (place, each) in snapshot.sub_interfaces.iter().enumerate() {
                sink(Sample::Lines(place, &[(&[], u64::from(each.link.up))]));
            }
        }),
    },
    Metric {
        name: "macvlan_interface_mtu_bytes",
        kind: Type::Gauge,
        labels: &SUB_INTERFACE,
        help: "MTU of the sub-interface, from netlink.",
        hooks: &[],
        source: Source::Snapshot(|snapshot, sink| {
            for (place, each) in snapshot.sub_interfaces.iter().enumerate() {
                sink(Sample::Lines(place, &[(&[], u64::from(each.link.mtu))]));
            }
        }),
    },
    Metric {
        name: "macvlan_parent_info",
        kind: Type::Gauge,
        labels: &["parent", "kind", "mac"],
        help: "1; what the parent is, from netlink.",
        hooks: &[],
        source: Source::Snapshot(|snapshot, sink| {
            for each in &snapshot.parents {
                sink(Sample::Of(
                    &[&each.link.display, &each.link.kind, &mac(each.link.mac)],
                    1.0,
                ));
            }
        }),
    },
    Metric {
        name: "macvlan_parent_up",
        kind: Type::Gauge,
        labels: &["parent"],
        help: "1 while the parent is administratively up, from netlink.",
        hooks: &[],
        source: Source::Snapshot(|snapshot, sink| {
            for each in &snapshot.parents {
                sink(Sample::Of(&[&each.link.display], flag(each.link.up)));
            }
        }),
    },
    Metric {
        name: "macvlan_parent_interfaces",
        kind: Type::Gauge,
        labels: &["parent"],
        help: "Sub-interfaces that are known on the parent, from netlink.",
        hooks: &[],
        source: Source::Snapshot(|snapshot, sink| {
            for each in &snapshot.parents {
                sink(Sample::Of(&[&each.link.display], number(each.sub_interfaces as u64)));
            }
        }),
    },
    Metric {
        name: "macvlan_parent_promiscuity",
        kind: Type::Gauge,
        labels: &["parent"],
        help: "How many users have put the parent into promiscuous mode, from netlink (IFLA_PROMISCUITY).",
        hooks: &[],
        source: Source::Snapshot(|snapshot, sink| {
            for each in &snapshot.parents {
                sink(Sample::Of(&[&each.link.display], f64::from(each.link.promiscuity)));
            }
        }),
    },
    Metric {
        name: "macvlan_parent_broadcast_queue_limit",
        kind: Type::Gauge,
        labels: &["parent"],
        help: "Length of the parent's broadcast queue in use, in skbs, from netlink (IFLA_MACVLAN_BC_QUEUE_LEN_USED, Linux 5.12 and newer).",
        hooks: &[],
        source: Source::Snapshot(|snapshot, sink| {
            for each in &snapshot.parents {
                if let Some(limit) = each.link.broadcast_queue_limit {
                    sink(Sample::Of(&[&each.link.display], f64::from(limit)));
                }
            }
        }),
    },
    Metric {
        name: "macvlan_parent_unknown_macs",
        kind: Type::Gauge,
        labels: &["parent"],
        help: "MACs that the parent receives for (its unicast list, read after changes, and every 10 s while somebody asks) and that no known sub-interface nor anything else known on it has: a sub-interface in a namespace that was not found, or something like a VRRP address; absent where the list cannot be read.",
        hooks: &[],
        source: Source::Snapshot(|snapshot, sink| {
            for each in &snapshot.parents {
                if let Some(unknown) = each.link.unknown_macs {
                    sink(Sample::Of(&[&each.link.display], number(unknown as u64)));
                }
            }
        }),
    },
    Metric {
        name: "macvlan_parent_handled_frames_total",
        kind: Type::Counter,
        labels: &["parent", "verdict"],
        help: "Frames that macvlan_handle_frame was given, by what it returned: delivered (ANOTHER), passed (PASS, multicast may have been delivered as well), consumed (CONSUMED, not a drop by itself), unknown (return not seen); an skb counts as its segments, and without handle_frame the metric is absent.",
        hooks: &[Hook::HandleFrame],
        source: Source::Snapshot(|snapshot, sink| {
            if !snapshot.verdicts_seen {
                return;
            }
            for each in &snapshot.parents {
                let Some(sample) = &each.sample else { continue };
                for verdict in Verdict::ALL {
                    let frames = sample.totals.at(Counter::HandledFrames, verdict.index());
                    sink(Sample::Of(&[&each.link.display, verdict.label()], number(frames)));
                }
            }
        }),
    },
    Metric {
        name: "macvlan_parent_dropped_frames_total",
        kind: Type::Counter,
        labels: &["parent", "reason"],
        help: "Frames dropped on the parent that cannot be told per sub-interface: broadcast_queue_full = multicast and broadcast for the sub-interfaces that found the parent's queue full (since Linux 7.1 derived, in skbs: the parent's rx_dropped less what frame_free explains), sibling_backlog_full = frames between siblings that found the CPU's backlog full.",
        hooks: &[Hook::FrameFree, Hook::KernelCounters],
        source: Source::Snapshot(parent_dropped),
    },
    Metric {
        name: "macvlan_parent_isolation_lost_frames_total",
        kind: Type::Counter,
        labels: &["parent", "direction"],
        help: "Isolation attempts on the parent that nothing answered or sent back within 3 s, by direction; a counter of its own, which keeps what sub-interfaces lost that are gone.",
        hooks: TC,
        source: Source::Snapshot(|snapshot, sink| {
            for each in &snapshot.parents {
                let Some(sample) = &each.sample else { continue };
                for direction in Direction::ALL {
                    sink(Sample::Of(
                        &[&each.link.display, direction.label()],
                        number(lost(sample, *direction)),
                    ));
                }
            }
        }),
    },
    Metric {
        name: "macvlan_agent_hook_attached",
        kind: Type::Gauge,
        labels: &["hook", "parent"],
        help: "1 where the hook is attached; parent is empty for a hook that there is once.",
        hooks: &[],
        source: Source::Snapshot(|snapshot, sink| {
            for state in &snapshot.hooks {
                sink(Sample::Of(
                    &[state.hook.name(), &state.parent],
                    flag(state.outcome.is_ok()),
                ));
            }
        }),
    },
    Metric {
        name: "macvlan_agent_hook_required",
        kind: Type::Gauge,
        labels: &["hook"],
        help: "1 where the agent is not ready without the hook.",
        hooks: &[],
        source: Source::Snapshot(|snapshot, sink| {
            for row in crate::kernel::hooks::HOOKS {
                let required = snapshot
                    .required
                    .get(row.hook as usize)
                    .copied()
                    .unwrap_or(row.required);
                sink(Sample::Of(&[row.name], flag(required)));
            }
        }),
    },
    Metric {
        name: "macvlan_agent_hook_info",
        kind: Type::Gauge,
        labels: &["hook", "parent", "mechanism", "reason"],
        help: "1; how the hook is attached, or why it is not.",
        hooks: &[],
        source: Source::Snapshot(|snapshot, sink| {
            for state in &snapshot.hooks {
                let (mechanism, reason) = match &state.outcome {
                    Ok(mechanism) => (mechanism.label(), ""),
                    Err(missing) => ("", missing.reason.label()),
                };
                sink(Sample::Of(&[state.hook.name(), &state.parent, mechanism, reason], 1.0));
            }
        }),
    },
    Metric {
        name: "macvlan_agent_hook_missed_total",
        kind: Type::Counter,
        labels: &["hook"],
        help: "Runs that a hook missed: of handle_frame entries without a return and returns without an entry, or what the kernel says it left out if that is more; of frame_free what the kernel says it left out (5.12 and newer).",
        hooks: &[],
        source: Source::Snapshot(|snapshot, sink| {
            for (hook, missed) in &snapshot.missed {
                sink(Sample::Of(&[hook.name()], number(*missed)));
            }
        }),
    },
    Metric {
        name: "macvlan_scrape_collector_success",
        kind: Type::Gauge,
        labels: &["collector"],
        help: "1 where the source answered at this scrape: counts = the maps' pages, kernel_counters = netlink.",
        hooks: &[],
        source: Source::Snapshot(|snapshot, sink| {
            for each in &snapshot.collected {
                sink(Sample::Of(&[each.collector], flag(each.success)));
            }
        }),
    },
    Metric {
        name: "macvlan_scrape_collector_duration_seconds",
        kind: Type::Gauge,
        labels: &["collector"],
        help: "How long the source took at this scrape.",
        hooks: &[],
        source: Source::Snapshot(|snapshot, sink| {
            for each in &snapshot.collected {
                sink(Sample::Of(&[each.collector], each.seconds));
            }
        }),
    },
    Metric {
        name: "macvlan_agent_lost_counts_total",
        kind: Type::Counter,
        labels: &["map"],
        help: "Counts that found no place, or no owner, by where: credits = more unknown MACs than a parent may have, asks = more unanswered address requests than are kept, counts = a slot without a cell, reads = a field of the kernel that could not be read.",
        hooks: &[],
        source: Source::Snapshot(|snapshot, sink| {
            for (map, lost) in &snapshot.lost {
                sink(Sample::Of(&[map], number(*lost)));
            }
        }),
    },
    Metric {
        name: "macvlan_agent_map_entries",
        kind: Type::Gauge,
        labels: &["map"],
        help: "Entries that the agent keeps in the kernel's map.",
        hooks: &[],
        source: Source::Snapshot(|snapshot, sink| {
            for (map, entries, _) in &snapshot.maps {
                sink(Sample::Of(&[map], number(*entries as u64)));
            }
        }),
    },
    Metric {
        name: "macvlan_agent_map_max_entries",
        kind: Type::Gauge,
        labels: &["map"],
        help: "Entries that the kernel's map can hold.",
        hooks: &[],
        source: Source::Snapshot(|snapshot, sink| {
            for (map, _, limit) in &snapshot.maps {
                sink(Sample::Of(&[map], f64::from(*limit)));
            }
        }),
    },
    Metric {
        name: "macvlan_agent_interfaces_over_limit",
        kind: Type::Gauge,
        labels: &[],
        help: "Sub-interfaces without counts of their own because there are too many; they are in their parent's totals.",
        hooks: &[],
        source: Source::Snapshot(|snapshot, sink| sink(Sample::Of(&[], number(snapshot.over_limit as u64)))),
    },
    Metric {
        name: "macvlan_managed_interfaces",
        kind: Type::Gauge,
        labels: &["state"],
        help: "Sub-interfaces and shims that the agent keeps as they were asked for, by state: ready, pending (its parent or namespace is not there), failed (the log says why).",
        hooks: &[],
        source: Source::Registry,
    },
    Metric {
        name: "macvlan_agent_config_last_reload_successful",
        kind: Type::Gauge,
        labels: &[],
        help: "1 while the last attempt to read the configuration was a success; 0 while an older one holds.",
        hooks: &[],
        source: Source::Registry,
    },
    Metric {
        name: "macvlan_agent_config_last_reload_success_timestamp_seconds",
        kind: Type::Gauge,
        labels: &[],
        help: "When the configuration in force was read; without one, when the agent started.",
        hooks: &[],
        source: Source::Registry,
    },
    Metric {
        name: "macvlan_agent_netlink_resyncs_total",
        kind: Type::Counter,
        labels: &[],
        help: "How often a namespace's links were read anew because events were lost or a dump was interrupted.",
        hooks: &[],
        source: Source::Snapshot(|snapshot, sink| sink(Sample::Of(&[], number(snapshot.netlink_resyncs)))),
    },
    Metric {
        name: "macvlan_agent_build_info",
        kind: Type::Gauge,
        labels: &["version", "revision", "rustc"],
        help: "1; the agent's version and the commit and compiler that it was built from.",
        hooks: &[],
        source: Source::Registry,
    },
];

/// The row of a metric by its name.
#[must_use]
pub fn metric(name: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|metric| metric.name == name)
}

/// The values of [`SUB_INTERFACE`].
#[must_use]
pub fn identity(each: &SubInterfaceSample) -> [&str; 3] {
    [&each.parent, &each.link.name, &each.link.netns]
}

fn flag(set: bool) -> f64 {
    if set { 1.0 } else { 0.0 }
}

/// Prometheus knows only floating point; beyond 2^53 the last digits go.
#[expect(clippy::cast_precision_loss, reason = "the format has no integers")]
fn number(value: u64) -> f64 {
    value as f64
}

/// A MAC as `ip link` prints it.
#[must_use]
pub fn mac(mac: [u8; 6]) -> String {
    let mut text = String::with_capacity(3 * mac.len());
    for (number, byte) in mac.into_iter().enumerate() {
        if number > 0 {
            text.push(':');
        }
        let digits = [byte >> 4, byte & 0xf].map(|digit| char::from_digit(digit.into(), 16));
        text.extend(digits.into_iter().flatten());
    }
    text
}

/// Settled losses in one direction.
#[must_use]
pub fn lost(sample: &Counts, direction: Direction) -> u64 {
    sample.lost.get(direction.index()).copied().unwrap_or(0)
}

/// Frames dropped for a reason.
#[must_use]
pub fn dropped_for(sample: &Counts, kernel: Option<&KernelCounts>, reason: DropReason) -> u64 {
    let clone_failed = sample.totals.at(Counter::CloneFailedFrames, 0);
    match reason {
        DropReason::ChildToParent => lost(sample, Direction::ChildToParent),
        DropReason::ParentToChild => lost(sample, Direction::ParentToChild),
        DropReason::SiblingNotReflected => lost(sample, Direction::Sibling),
        DropReason::InterfaceDown => {
            sample.totals.at(Counter::InterfaceDownFrames, 0) + sample.totals.at(Counter::ApparentlyDownFrames, 0)
        }
        DropReason::CloneFailed => clone_failed,
        DropReason::DeliveryFailed => kernel.map_or(0, |kernel| kernel.not_delivered.saturating_sub(clone_failed)),
        DropReason::TransmitFailed => {
            kernel.map_or(0, |kernel| kernel.not_sent) + sample.totals.at(Counter::UnsentFrames, 0)
        }
    }
}

/// Whether `frame_free` is attached.
fn freed_seen(snapshot: &Snapshot) -> bool {
    snapshot
        .hooks
        .iter()
        .any(|state| state.hook == Hook::FrameFree && state.outcome.is_ok())
}

/// Calls `each` for the sub-interfaces that have counts.
fn counted(snapshot: &Snapshot, mut each: impl FnMut(usize, &Counts)) {
    for (place, sub_interface) in snapshot.sub_interfaces.iter().enumerate() {
        if let Some(sample) = &sub_interface.sample {
            each(place, sample);
        }
    }
}

/// What was delivered, less what a macvtap's full queue (`full`, external before sibling) lost after that.
fn delivered(snapshot: &Snapshot, [external, sibling]: [Counter; 2], full: Counter, sink: &mut Sink<'_>) {
    counted(snapshot, |place, sample| {
        let lines: [(&[&'static str], u64); 2] = [
            (&["unicast", "external"], arrived(sample, external, (full, 0))),
            (&["unicast", "sibling"], arrived(sample, sibling, (full, 2))),
        ];
        sink(Sample::Lines(place, &lines));
    });
}

/// What only the kernel's own counters know: (everything, which is told of mode source alone; multicast).
fn by_kernel(snapshot: &Snapshot, counts: fn(&KernelCounts) -> (u64, u64), sink: &mut Sink<'_>) {
    for (place, each) in snapshot.sub_interfaces.iter().enumerate() {
        let Some(kernel) = &each.kernel else { continue };
        let (others, multicast) = counts(kernel);
        if each.link.mode == Mode::Source {
            // Clones by the sender's MAC: the handler's verdict says nothing of them.
            sink(Sample::Lines(place, &[(&["unicast", "any"], others)]));
        } else {
            sink(Sample::Lines(place, &[(&["multicast", "any"], multicast)]));
        }
    }
}

/// What was delivered by `counter`, less what a macvtap's full queue lost after that.
#[must_use]
pub fn arrived(sample: &Counts, counter: Counter, (full, offset): (Counter, usize)) -> u64 {
    let totals = &sample.totals;
    totals.at(counter, 0).saturating_sub(totals.at(full, offset))
}

/// What was sent out of the parent by `counter`. In mode passthru the kernel's own counter says it: the parent's stack
/// sends with the same MAC.
#[must_use]
pub fn sent(each: &SubInterfaceSample, sample: &Counts, counter: Counter, by_kernel: fn(&KernelCounts) -> u64) -> u64 {
    match &each.kernel {
        Some(kernel) if each.link.mode == Mode::Passthru => by_kernel(kernel),
        _ => sample.totals.at(counter, 0),
    }
}

fn transmitted(
    snapshot: &Snapshot,
    [external, sibling]: [Counter; 2],
    by_kernel: fn(&KernelCounts) -> u64,
    sink: &mut Sink<'_>,
) {
    for (place, each) in snapshot.sub_interfaces.iter().enumerate() {
        let Some(sample) = &each.sample else { continue };
        let lines: [(&[&'static str], u64); 2] = [
            (&["external"], sent(each, sample, external, by_kernel)),
            (&["sibling"], sample.totals.at(sibling, 0)),
        ];
        sink(Sample::Lines(place, &lines));
    }
}

fn dropped(snapshot: &Snapshot, sink: &mut Sink<'_>) {
    let words: [_; DropReason::ALL.len()] = words(|place| [DropReason::ALL.get(place).map_or("", |each| each.label())]);
    for (place, each) in snapshot.sub_interfaces.iter().enumerate() {
        let Some(sample) = &each.sample else { continue };
        let frames = |reason: &DropReason| dropped_for(sample, each.kernel.as_ref(), *reason);
        lines(place, &words, DropReason::ALL.iter().map(frames), sink);
    }
}

/// The words behind the name of each line of a sub-interface.
fn words<const N: usize, const WORDS: usize>(
    of: impl FnMut(usize) -> [&'static str; WORDS],
) -> [[&'static str; WORDS]; N] {
    std::array::from_fn(of)
}

/// Those lines.
fn lines<const N: usize, const WORDS: usize>(
    place: usize,
    words: &[[&'static str; WORDS]; N],
    values: impl Iterator<Item = u64>,
    sink: &mut Sink<'_>,
) {
    let mut lines: [(&[&'static str], u64); N] = words.each_ref().map(|words| (&words[..], 0));
    for ((_, value), of) in lines.iter_mut().zip(values) {
        *value = of;
    }
    sink(Sample::Lines(place, &lines));
}

fn parent_dropped(snapshot: &Snapshot, sink: &mut Sink<'_>) {
    for each in &snapshot.parents {
        let (Some(full), Some(sample)) = (each.queue_full, &each.sample) else {
            continue;
        };
        for reason in ParentDropReason::ALL {
            let frames = match reason {
                ParentDropReason::BroadcastQueueFull => full,
                ParentDropReason::SiblingBacklogFull => sample.totals.at(Counter::SiblingBacklogFullFrames, 0),
            };
            sink(Sample::Of(&[&each.link.display, reason.label()], number(frames)));
        }
    }
}

fn attempts(snapshot: &Snapshot, sink: &mut Sink<'_>) {
    const KINDS: usize = AskKind::ALL.len();
    let words: [_; Direction::ALL.len() * KINDS] = words(|place| {
        let direction = Direction::ALL.get(place / KINDS).map_or("", |each| each.label());
        [
            direction,
            AskKind::ALL.get(place % KINDS).map_or("", |each| each.label()),
        ]
    });
    counted(snapshot, |place, sample| {
        let counts = (0..words.len()).map(|offset| sample.totals.at(Counter::Attempts, offset));
        lines(place, &words, counts, sink);
    });
}

fn reflected(snapshot: &Snapshot, sink: &mut Sink<'_>) {
    let words: [_; Reflection::ALL.len()] = words(|place| [Reflection::ALL.get(place).map_or("", |each| each.label())]);
    counted(snapshot, |place, sample| {
        let counts = (0..words.len()).map(|offset| sample.totals.at(Counter::Reflected, offset));
        lines(place, &words, counts, sink);
    });
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Labels that Prometheus or its operator put on targets, or that mean something else elsewhere (E1.1).
    const FORBIDDEN: &[&str] = &[
        "pod",
        "namespace",
        "container",
        "node",
        "job",
        "instance",
        "endpoint",
        "le",
        "quantile",
        "type",
    ];

    #[test]
    fn a_mac_has_two_digits_a_byte() {
        assert_eq!(mac([0x02, 0xff, 0x0a, 0xa0, 0, 1]), "02:ff:0a:a0:00:01");
    }

    #[test]
    fn names_are_unique_and_say_their_type() {
        let mut names = BTreeSet::new();
        for metric in METRICS {
            assert!(names.insert(metric.name), "{} stands twice", metric.name);
            assert!(metric.name.starts_with("macvlan_"), "{}", metric.name);
            assert_eq!(
                metric.name.ends_with("_total"),
                metric.kind == Type::Counter,
                "{}",
                metric.name
            );
            assert!(
                metric
                    .name
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
                "{}",
                metric.name
            );
            for unit in ["_ms", "_milliseconds", "_bits", "_mbits", "_kb", "_minutes"] {
                assert!(!metric.name.contains(unit), "{} is not in base units", metric.name);
            }
        }
    }

    #[test]
    fn help_is_one_sentence() {
        for metric in METRICS {
            assert!(metric.help.ends_with('.'), "{}", metric.name);
            assert!(
                !metric.help.contains('\n') && !metric.help.contains(". "),
                "{}",
                metric.name
            );
        }
    }

    #[test]
    fn labels_are_free_to_use() {
        for metric in METRICS {
            for label in metric.labels {
                assert!(!FORBIDDEN.contains(label), "{} has the label {label}", metric.name);
            }
            assert_eq!(
                metric.labels.len(),
                metric.labels.iter().collect::<BTreeSet<_>>().len(),
                "{}",
                metric.name
            );
        }
    }

    #[test]
    fn each_hook_is_relied_on() {
        for row in crate::kernel::hooks::HOOKS {
            assert!(
                METRICS.iter().any(|metric| metric.hooks.contains(&row.hook)),
                "{}",
                row.name
            );
        }
    }
}
