//! Numbers in the maps and the words that users see for them: the one place where both stand.

macro_rules! labels {
    ($(#[$meta:meta])* $name:ident { $($(#[$item:meta])* $variant:ident = $number:literal => $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$item])* $variant = $number),+ }

        impl $name {
            /// All of them, in order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word in labels, tables and JSON.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// Its place among all of them.
            #[must_use]
            pub const fn index(self) -> usize {
                self as usize
            }
        }
    };
}

labels! {
    /// What `macvlan_handle_frame` made of a frame.
    Verdict {
        /// `RX_HANDLER_ANOTHER`: it is the sub-interface's now.
        Delivered = 0 => "delivered",
        /// `RX_HANDLER_PASS`: left to the parent's own stack (multicast may have been delivered as well).
        Passed = 1 => "passed",
        /// `RX_HANDLER_CONSUMED`: kept, delivered by a copy, or dropped.
        Consumed = 2 => "consumed",
        /// The return was not seen.
        Unknown = 3 => "unknown",
    }
}

labels! {
    /// Between whom a frame is lost although the kernel counts it as sent.
    Direction {
        /// From a sub-interface to its parent.
        ChildToParent = 0 => "child_to_parent",
        /// From the parent to one of its sub-interfaces.
        ParentToChild = 1 => "parent_to_child",
        /// Between two sub-interfaces that are not both in bridge mode.
        Sibling = 2 => "sibling",
    }
}

labels! {
    /// What an attempt was.
    AskKind {
        /// A frame to the other's MAC.
        Unicast = 0 => "unicast",
        /// An ARP request for one of the other's addresses.
        Arp = 1 => "arp",
        /// A neighbour solicitation for one of the other's addresses.
        Ndp = 2 => "ndp",
    }
}

labels! {
    /// A frame that came back from upstream: whose, and to whom.
    Reflection {
        /// A sub-interface's frame to its parent.
        ChildToParent = 0 => "child_to_parent",
        /// The parent's frame to a sub-interface; counted on the addressee.
        ParentToChild = 1 => "parent_to_child",
        /// A sub-interface's frame to a sibling.
        Sibling = 2 => "sibling",
        /// A sub-interface's multicast or broadcast.
        Multicast = 3 => "multicast",
    }
}

labels! {
    /// Why a frame did not arrive. A closed set.
    DropReason {
        /// Sent to the parent: macvlan has no path there.
        ChildToParent = 0 => "child_to_parent",
        /// Sent by the parent: macvlan has no path from there.
        ParentToChild = 1 => "parent_to_child",
        /// Sent to the wire for a sibling and not returned by the switch.
        SiblingNotReflected = 2 => "sibling_not_reflected",
        /// The sub-interface is down.
        InterfaceDown = 3 => "interface_down",
        /// The kernel could not copy the frame.
        CloneFailed = 4 => "clone_failed",
        /// The kernel could not hand the frame over (`rx_errors`).
        DeliveryFailed = 5 => "delivery_failed",
        /// The parent did not take the frame, or the sub-interface had no carrier (`tx_dropped`).
        TransmitFailed = 6 => "transmit_failed",
    }
}

labels! {
    /// Why frames were dropped that cannot be told per sub-interface.
    ParentDropReason {
        /// Multicast or broadcast for the sub-interfaces found the parent's queue full.
        BroadcastQueueFull = 0 => "broadcast_queue_full",
        /// A frame between siblings found the CPU's backlog full.
        SiblingBacklogFull = 1 => "sibling_backlog_full",
    }
}

labels! {
    /// What a freed frame means to `frame_free`. Inside the program only.
    Cause {
        /// Nothing of ours.
        None = 0 => "none",
        /// The reason does not say: where it was freed does.
        ByLocation = 1 => "by_location",
        /// In macvlan's rx handler.
        Handler = 2 => "handler",
        /// The CPU's backlog did not take it.
        Backlog = 3 => "backlog",
        /// Its neighbour was not found.
        Neighbour = 4 => "neighbour",
        /// A queueing discipline or a TC program on the way out dropped it.
        Transmit = 5 => "transmit",
        /// Nobody took it: the parent's `rx_dropped` counts it.
        Unhandled = 6 => "unhandled",
        /// A macvtap device's queue was full.
        TapQueue = 7 => "tap_queue",
        /// It was longer than the device that it was forwarded to takes.
        Forward = 8 => "forward",
    }
}

labels! {
    /// Where counts can be lost: `macvlan_agent_lost_counts_total`, and of the handler's entries and returns
    /// `macvlan_agent_hook_missed_total`.
    Lost {
        /// More unknown MACs than a parent may have.
        Credits = 0 => "credits",
        /// More unanswered asks than the map holds.
        Asks = 1 => "asks",
        /// A slot without a cell.
        Counts = 2 => "counts",
        /// A return of the handler without its entry.
        Entries = 3 => "entries",
        /// A field of the kernel could not be read.
        Reads = 4 => "reads",
        /// An entry of the handler without its return.
        Returns = 5 => "returns",
    }
}

/// A sub-interface's mode, `enum macvlan_mode` of `include/uapi/linux/if_link.h`.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the kernel's own words")]
pub enum Mode {
    Private = 1,
    Vepa = 2,
    Bridge = 4,
    Passthru = 8,
    Source = 16,
}
