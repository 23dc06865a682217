//! What it means that the kernel frees a frame: by the reason it gives, else by the function in which that happens.
//!
//! Numbers of reasons differ by version and configuration (`enum skb_drop_reason`), so their names come from the running
//! kernel. Pure but for [`Symbols::read`].

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader},
};

use macvlan_agent_ebpf::abi::{Location, Locations, Range, label::Cause, limits};

use super::{
    attach::HANDLER,
    btf::{Btf, BtfError},
};

/// Reasons that matter here. `NOT_SPECIFIED` says nothing, the function does.
const REASONS: &[(&str, Cause)] = &[
    ("NOT_SPECIFIED", Cause::ByLocation),
    ("NEIGH_FAILED", Cause::Neighbour),
    ("NEIGH_QUEUEFULL", Cause::Neighbour),
    ("TC_EGRESS", Cause::Transmit),
    ("QDISC_DROP", Cause::Transmit),
    ("CPU_BACKLOG", Cause::Backlog),
    ("DEV_READY", Cause::Backlog),
    ("FULL_RING", Cause::TapQueue),
    ("UNHANDLED_PROTO", Cause::Unhandled),
];

/// Since 7.1 a full broadcast queue frees nothing as a rule, and counts in the parent's `rx_dropped`: where the kernel
/// has this reason, what else counts there is told apart (`macvlan_broadcast_enqueue`).
const QUEUE_REASON: &str = "MACVLAN_BROADCAST_BACKLOG";

/// Functions in which frames are freed. Without reasons (before 5.17) all of them decide, with reasons those that still
/// give none. A function that ends in another frees as that one's caller.
const FUNCTIONS: &[(&str, Cause)] = &[
    ("neigh_invalidate", Cause::Neighbour),
    ("neigh_timer_handler", Cause::Neighbour),
    ("__neigh_event_send", Cause::Neighbour),
    ("arp_error_report", Cause::Neighbour),
    ("ndisc_error_report", Cause::Neighbour),
    ("enqueue_to_backlog", Cause::Backlog),
    ("kfree_skb_list", Cause::Transmit),
    ("__dev_queue_xmit", Cause::Transmit),
    ("tap_handle_frame", Cause::TapQueue),
    ("__dev_forward_skb", Cause::Forward),
    ("__dev_forward_skb2", Cause::Forward),
];

/// With reasons these give one, so that one without is none of ours.
const ONLY_WITHOUT_REASONS: [&str; 3] = ["kfree_skb_list", "__dev_queue_xmit", "tap_handle_frame"];

const _: () = assert!(
    FUNCTIONS.len() <= limits::LOCATIONS,
    "the program knows that many functions"
);

/// What the running kernel says when it frees a frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DropReasons {
    /// Whether it says a reason at all.
    pub says_reason: bool,
    /// Whether a full broadcast queue shows in the parent's `rx_dropped` alone.
    pub queue_is_silent: bool,
    /// Number and meaning of the reasons that matter.
    pub causes: BTreeMap<u32, Cause>,
}

impl DropReasons {
    /// Reads them from the kernel's types.
    pub fn resolve(btf: &Btf) -> Result<Self, BtfError> {
        let says_reason = btf.bytes("trace_event_raw_kfree_skb", &["reason"]).is_ok();
        let names = btf.values("skb_drop_reason")?;
        Ok(Self::of(says_reason, &names))
    }

    fn of(says_reason: bool, names: &[(String, u32)]) -> Self {
        let number = |word: &str| {
            let found = names
                .iter()
                .find(|(name, _)| name.strip_prefix("SKB_DROP_REASON_") == Some(word));
            found.map(|(_, number)| *number)
        };
        let queue_is_silent = number(QUEUE_REASON).is_some();
        let wanted = REASONS
            .iter()
            .filter(|(_, cause)| queue_is_silent || *cause != Cause::Unhandled);
        Self {
            says_reason,
            queue_is_silent,
            causes: wanted
                .filter_map(|(word, cause)| Some((number(word)?, *cause)))
                .chain(number(QUEUE_REASON).map(|number| (number, Cause::Handler)))
                .collect(),
        }
    }

    /// The functions that decide, at their places in this kernel.
    #[must_use]
    pub fn locations(&self, symbols: &Symbols) -> Locations {
        let mut locations = Locations::default();
        let deciding = FUNCTIONS
            .iter()
            .filter(|(name, _)| !(self.says_reason && ONLY_WITHOUT_REASONS.contains(name)));
        let found = deciding.filter_map(|(name, cause)| Some((symbols.range(name)?, *cause)));
        for (place, (range, cause)) in locations.functions.iter_mut().zip(found) {
            *place = Location {
                range,
                cause: cause as u32,
                pad: 0,
            };
        }
        locations
    }
}

/// Where functions of the kernel and its modules are.
#[derive(Debug, Default)]
pub struct Symbols {
    ranges: BTreeMap<&'static str, Range>,
}

impl Symbols {
    /// Looks the functions up that decide, and macvlan's handler. Where addresses are hidden (`kptr_restrict`) there are
    /// none. It takes the kernel some 30 ms to print all that it has.
    #[must_use]
    pub fn read() -> Self {
        let wanted: Vec<&str> = FUNCTIONS.iter().map(|(name, _)| *name).chain([HANDLER]).collect();
        File::open("/proc/kallsyms")
            .and_then(|file| Self::parse(BufReader::new(file), &wanted))
            .unwrap_or_else(|error| {
                tracing::debug!(%error, "the kernel's symbols cannot be read");
                Self::default()
            })
    }

    /// A function ends where the next symbol begins: `ADDRESS TYPE NAME [MODULE]` by line, in no order.
    fn parse(mut text: impl BufRead, wanted: &[&'static str]) -> io::Result<Self> {
        let (mut starts, mut addresses) = (Vec::new(), Vec::new());
        let mut line = Vec::new();
        while text.read_until(b'\n', &mut line)? > 0 {
            if let Some((address @ 1.., name)) = symbol(&line) {
                addresses.push(address);
                starts.extend(
                    wanted
                        .iter()
                        .filter(|wanted| wanted.as_bytes() == name)
                        .map(|name| (*name, address)),
                );
            }
            line.clear();
        }
        let end = |start: u64| addresses.iter().copied().filter(|address| *address > start).min();
        let range = |start| Range {
            start,
            end: end(start).unwrap_or(u64::MAX),
        };
        Ok(Self {
            ranges: starts.into_iter().map(|(name, start)| (name, range(start))).collect(),
        })
    }

    /// Whether macvlan's handler is among them.
    #[must_use]
    pub fn have_handler(&self) -> bool {
        self.range(HANDLER).is_some()
    }

    /// Where a function is.
    #[must_use]
    pub fn range(&self, name: &str) -> Option<Range> {
        self.ranges.get(name).copied()
    }
}

/// The address in a line, and the name.
fn symbol(line: &[u8]) -> Option<(u64, &[u8])> {
    let digits = line.iter().position(|byte| *byte == b' ')?;
    let digit = |byte: &u8| char::from(*byte).to_digit(16).map(u64::from);
    let address = line
        .iter()
        .take(digits)
        .try_fold(0, |address: u64, byte| Some(address << 4 | digit(byte)?))?;
    // A blank, the type, a blank.
    let rest = line.get(digits + 3..)?;
    let rest = rest.strip_suffix(b"\n").unwrap_or(rest);
    // The names of modules stand in brackets, behind a tab.
    let name = if rest.ends_with(b"]") {
        rest.split(|byte| *byte == b'\t').next()?
    } else {
        rest
    };
    Some((address, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(words: &[&str]) -> Vec<(String, u32)> {
        words
            .iter()
            .zip(2..)
            .map(|(word, number)| (format!("SKB_DROP_REASON_{word}"), number))
            .collect()
    }

    #[test]
    fn reasons_have_the_numbers_of_the_running_kernel() {
        let reasons = DropReasons::of(
            true,
            &names(&["NOT_SPECIFIED", "TCP_CSUM", "QDISC_DROP", "UNHANDLED_PROTO"]),
        );
        let expected = BTreeMap::from([(2, Cause::ByLocation), (4, Cause::Transmit)]);
        assert_eq!(
            reasons.causes, expected,
            "the kernel counts a full queue by an event of its own"
        );
        let newer = DropReasons::of(true, &names(&["UNHANDLED_PROTO", "MACVLAN_BROADCAST_BACKLOG"]));
        assert!(newer.queue_is_silent);
        assert_eq!(
            newer.causes,
            BTreeMap::from([(2, Cause::Unhandled), (3, Cause::Handler)])
        );
    }

    #[test]
    fn a_function_ends_where_the_next_symbol_begins() {
        let text = "ffff10 T neigh_invalidate\nffff40 t tap_handle_frame\t[tap]\nffff20 t tap_handle_frame_more\nffff18 t other\nffff44 d data\n";
        let symbols = Symbols::parse(text.as_bytes(), &["neigh_invalidate", "tap_handle_frame"]).expect("text");
        let range = |start, end| Some(Range { start, end });
        assert_eq!(symbols.range("neigh_invalidate"), range(0xff_ff10, 0xff_ff18));
        assert_eq!(symbols.range("tap_handle_frame"), range(0xff_ff40, 0xff_ff44));
        assert_eq!(symbols.range("other"), None);
        let hidden =
            Symbols::parse(&b"0000000000000000 T neigh_invalidate\n"[..], &["neigh_invalidate"]).expect("text");
        assert_eq!(hidden.range("neigh_invalidate"), None, "kptr_restrict");
    }

    #[test]
    fn functions_that_give_a_reason_are_not_judged_by_their_place() {
        let text = "10 T kfree_skb_list\n20 T neigh_invalidate\n30 T end\n";
        let symbols = Symbols::parse(text.as_bytes(), &["kfree_skb_list", "neigh_invalidate"]).expect("text");
        let causes = |says_reason| {
            let reasons = DropReasons {
                says_reason,
                ..DropReasons::default()
            };
            let locations = reasons.locations(&symbols).functions;
            let known = locations.into_iter().filter(|location| location.range.end != 0);
            known.map(|location| location.cause).collect::<Vec<_>>()
        };
        assert_eq!(causes(true), [Cause::Neighbour as u32]);
        assert_eq!(causes(false), [Cause::Neighbour as u32, Cause::Transmit as u32]);
    }
}
