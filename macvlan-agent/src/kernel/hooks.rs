//! The table of hooks: what each sees, what it needs, what is lost without it.

/// A kernel attach point and our program for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// TC ingress of each parent.
    ParentIngress,
    /// TC egress of each parent.
    ParentEgress,
    /// Entry and return of `macvlan_handle_frame`.
    HandleFrame,
    /// Frames that the kernel gives up, with its reason.
    FrameFree,
    /// The kernel's own counters, through netlink.
    KernelCounters,
}

/// What is written down about a hook.
pub struct Row {
    /// Which.
    pub hook: Hook,
    /// Its name in flags, labels and JSON.
    pub name: &'static str,
    /// Whether it is attached once per parent, or once.
    pub per_parent: bool,
    /// Whether the agent is of no use without it.
    pub required: bool,
    /// What it sees.
    pub sees: &'static str,
    /// What a user loses without it.
    pub lost_without: &'static str,
}

/// All hooks.
pub const HOOKS: &[Row] = &[
    Row {
        hook: Hook::ParentIngress,
        name: "parent_ingress",
        per_parent: true,
        required: true,
        sees: "frames to sub-interfaces from the wire and from siblings, reflections, replies",
        lost_without: "frames between siblings, reflections and replies are not seen, so nothing is told lost or answered",
    },
    Row {
        hook: Hook::ParentEgress,
        name: "parent_egress",
        per_parent: true,
        required: true,
        sees: "what sub-interfaces and the parent send to the wire",
        lost_without: "frames sent to the wire and every child-to-parent and parent-to-child loss are not seen",
    },
    Row {
        hook: Hook::HandleFrame,
        name: "handle_frame",
        per_parent: false,
        required: false,
        sees: "macvlan's own verdict on each frame",
        lost_without: "delivered frames are inferred from parent_ingress and the sub-interface's state instead of macvlan's own verdict; macvlan_parent_handled_frames_total stays away",
    },
    Row {
        hook: Hook::FrameFree,
        name: "frame_free",
        per_parent: false,
        required: false,
        sees: "frames that the kernel gives up for want of a neighbour, of a carrier, or of room in a queue",
        lost_without: "packets that wait for a neighbour in vain, full queues, and before Linux 6.11 frames sent without carrier are not counted",
    },
    Row {
        hook: Hook::KernelCounters,
        name: "kernel_counters",
        per_parent: false,
        required: true,
        sees: "multicast and broadcast delivered, all that is delivered in mode source, and failures to deliver and to send",
        lost_without: "multicast, broadcast and source-mode deliveries and failures to deliver and to send are not counted, and nothing cross-checks the counts",
    },
];

impl Hook {
    /// Its row.
    #[must_use]
    pub fn row(self) -> &'static Row {
        // One row per variant, in their order: a test holds that.
        &HOOKS[self as usize]
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().name
    }
}

/// How a hook is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mechanism {
    /// A link in the device's own list of programs, 6.6 and newer.
    Tcx,
    /// A filter of the clsact qdisc.
    Clsact,
    /// kprobe and kretprobe.
    Kprobe,
    /// fentry and fexit.
    Fexit,
    /// A raw tracepoint.
    #[serde(rename = "raw_tracepoint")]
    RawTracepoint,
    /// Counters read through netlink.
    Netlink,
}

impl Mechanism {
    /// The word in labels and JSON.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
            Self::Kprobe => "kprobe",
            Self::Fexit => "fexit",
            Self::RawTracepoint => "raw_tracepoint",
            Self::Netlink => "netlink",
        }
    }
}

/// Why a hook is not attached: a closed set, the label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// `--hook.NAME=off`.
    TurnedOff,
    /// The kernel is built without kprobes.
    NoKprobes,
    /// The macvlan module is not loaded.
    ModuleAbsent,
    /// The function is not in the kernel's symbols.
    NoSymbol,
    /// The kernel does not describe its types, or lacks a field.
    NoField,
    /// The self-test read something else than it was given.
    SelfTestFailed,
    /// The verifier refused the program.
    LoadRefused,
    /// The kernel refused the attachment.
    AttachRefused,
    /// A capability is missing.
    NotPermitted,
    /// The parent's namespace cannot be joined.
    NamespaceUnreadable,
    /// The kernel does not answer.
    NoAnswer,
}

impl Reason {
    /// The word in labels and JSON.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::TurnedOff => "turned_off",
            Self::NoKprobes => "no_kprobes",
            Self::ModuleAbsent => "module_absent",
            Self::NoSymbol => "no_symbol",
            Self::NoField => "no_field",
            Self::SelfTestFailed => "self_test_failed",
            Self::LoadRefused => "load_refused",
            Self::AttachRefused => "attach_refused",
            Self::NotPermitted => "not_permitted",
            Self::NamespaceUnreadable => "namespace_unreadable",
            Self::NoAnswer => "no_answer",
        }
    }
}

/// Why a hook is not attached, for people and for labels.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize)]
#[error("{detail}")]
pub struct NotAttached {
    /// The label.
    pub reason: Reason,
    /// The sentence.
    pub detail: String,
}

impl NotAttached {
    /// A reason with its sentence.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
        }
    }
}

/// What became of a hook.
pub type Outcome = Result<Mechanism, NotAttached>;

/// What the user wants of a hook: `--hook.NAME=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Wish {
    /// Attach where this kernel can.
    #[default]
    Auto,
    /// Leave it.
    Off,
    /// The agent is not ready without it.
    Required,
}

/// What the user wants of `handle_frame`: the same, or a mechanism that the module has to bear with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum HandlerWish {
    /// fentry and fexit where macvlan is built in, else kprobe and kretprobe.
    #[default]
    Auto,
    /// Leave it.
    Off,
    /// The agent is not ready without it.
    Required,
    /// fentry and fexit on the module as well, a fifth of the cost: `rmmod macvlan` fails while the agent runs.
    Fexit,
}

impl HandlerWish {
    /// The same as of any hook.
    #[must_use]
    pub const fn wish(self) -> Wish {
        match self {
            Self::Auto | Self::Fexit => Wish::Auto,
            Self::Off => Wish::Off,
            Self::Required => Wish::Required,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_hook_has_its_row() {
        for (index, row) in HOOKS.iter().enumerate() {
            assert_eq!(row.hook as usize, index);
        }
        assert_eq!(
            HOOKS.len(),
            HOOKS.iter().map(|row| row.name).collect::<BTreeSet<_>>().len()
        );
    }

    #[test]
    fn reasons_are_spelled_alike_in_labels_and_json() {
        for reason in [
            Reason::TurnedOff,
            Reason::NoKprobes,
            Reason::NamespaceUnreadable,
            Reason::SelfTestFailed,
        ] {
            let json = serde_json::to_string(&reason).expect("a word");
            assert_eq!(json, format!("\"{}\"", reason.label()));
        }
    }
}
