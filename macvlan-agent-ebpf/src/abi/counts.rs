//! The cell: everything that is counted for one sub-interface, or for one parent, on one CPU.

/// Seconds that a pending attempt is told apart by: see [`crate::pending`].
pub const RECENT_SECONDS: usize = 4;

/// Rings of attempts in a cell: three directions, each for unicast frames and for asks (ARP, neighbour discovery).
pub const RECENT_RINGS: usize = 6;

/// One counter of a [`Cell`]. The first ones, [`COMMON`] of them, are all that most frames touch.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the names say it; each is explained where it becomes a metric"
)]
pub enum Counter {
    DeliveredExternalFrames,
    DeliveredExternalBytes,
    DeliveredSiblingFrames,
    DeliveredSiblingBytes,
    TransmittedExternalFrames,
    TransmittedExternalBytes,
    TransmittedSiblingFrames,
    TransmittedSiblingBytes,
    /// By how much the delivered frames are more than the skbs that they came in, the kernel's own unit
    /// (`macvlan_count_rx` counts skbs).
    MergedFrames,
    /// The same in bytes: the kernel counts skb->len and the Ethernet header.
    MergedBytes,
    /// For one that is down for certain.
    InterfaceDownFrames,
    /// For one that was down as far as user space knew, where no handler says so.
    ApparentlyDownFrames,
    ApparentlyDownBytes,
    ApparentlyDownSkbs,
    CloneFailedFrames,
    /// Multicast that came back to a private, passthru or source sub-interface that had sent it.
    ReturnedSkbs,
    /// Reflections, one counter per [`super::label::Reflection`].
    Reflected,
    ReflectedLast = Self::Reflected as u32 + 3,
    /// Attempts: direction × kind.
    Attempts,
    AttemptsLast = Self::Attempts as u32 + 8,
    /// Attempts that turned out answered: direction × (unicast, ask).
    Cancelled,
    CancelledLast = Self::Cancelled as u32 + 5,
    /// What the handler returned, frames: one counter per [`super::Verdict`]. Of parents only.
    HandledFrames,
    HandledFramesLast = Self::HandledFrames as u32 + 3,
    /// Packets that died waiting for a neighbour (`frame_free`).
    NeighbourFailedPackets,
    /// Attempts that something behind our hook dropped (`frame_free`): direction × (unicast, ask).
    UnsentAttempts,
    UnsentAttemptsLast = Self::UnsentAttempts as u32 + 5,
    /// Frames that a sub-interface without carrier threw away and no counter of the kernel's shows (`frame_free`).
    UnsentFrames,
    /// Delivered to a macvtap device whose queue was full, from outside (`frame_free`).
    QueueFullExternalFrames,
    QueueFullExternalBytes,
    /// The same from siblings.
    QueueFullSiblingFrames,
    QueueFullSiblingBytes,
    /// The same, skbs of any kind: the kernel counts each in `rx_errors`.
    QueueFullSkbs,
    /// Multicast that found the parent's broadcast queue full (`frame_free`). Of parents only.
    BroadcastQueueFullFrames,
    /// Frames between siblings that found the CPU's backlog full (`frame_free`). Of parents only.
    SiblingBacklogFullFrames,
    /// Skbs of the parent's `rx_dropped` that are not the broadcast queue's (`frame_free`). Of parents only.
    OtherwiseDroppedSkbs,
}

/// Number of counters in a cell.
pub const COUNTERS: usize = Counter::OtherwiseDroppedSkbs as usize + 1;

/// Counts per second of the last few seconds, for several things that share the seconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recent<const RINGS: usize> {
    /// The second that each column stands for; second `s` is in column `s % RECENT_SECONDS`.
    pub seconds: [u32; RECENT_SECONDS],
    /// Counts by ring and column.
    pub counts: [[u32; RECENT_SECONDS]; RINGS],
}

impl<const RINGS: usize> Default for Recent<RINGS> {
    fn default() -> Self {
        Self {
            seconds: [0; RECENT_SECONDS],
            counts: [[0; RECENT_SECONDS]; RINGS],
        }
    }
}

/// Number of those in [`Common`]: they fill a cache line.
pub const COMMON: usize = Counter::MergedFrames as usize;

/// What most frames are counted in. It lies apart from the rest, in a line of its own: many sub-interfaces then fit into
/// what a CPU keeps at hand.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Common {
    /// The first of [`Counter`].
    pub counters: [u64; COMMON],
}

const _: () = assert!(size_of::<Common>() == 64, "one cache line");

/// In the last of the counters of a [`Common`], whose value stays far below: set where a sub-interface has anything in
/// [`Rare`]. Else nobody needs to look there. Of parents, it says nothing.
pub const HAS_RARE: u64 = 1 << 63;

/// All other counts.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rare {
    /// By [`Counter`], less [`COMMON`].
    pub counters: [u64; COUNTERS - COMMON],
    /// Attempts that may still be answered, ring `direction * 2 + ask`.
    pub recent: Recent<RECENT_RINGS>,
    /// Fills it up to whole cache lines.
    pub pad: [u64; PAD],
}

/// Words of a [`Rare`] without what fills it up.
const USED: usize = COUNTERS - COMMON + size_of::<Recent<RECENT_RINGS>>() / 8;

const PAD: usize = USED.next_multiple_of(8) - USED;

const _: () = assert!(size_of::<Rare>().is_multiple_of(64), "whole cache lines");

impl Common {
    /// Nothing counted.
    pub const EMPTY: Self = Self { counters: [0; COMMON] };
}

impl Rare {
    /// Nothing counted.
    pub const EMPTY: Self = Self {
        counters: [0; COUNTERS - COMMON],
        recent: Recent {
            seconds: [0; RECENT_SECONDS],
            counts: [[0; RECENT_SECONDS]; RECENT_RINGS],
        },
        pad: [0; PAD],
    };
}

/// The counts of one owner on one CPU; only that CPU writes it.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// What is common.
    pub common: Common,
    /// What is rare.
    pub rare: Rare,
}

impl Cell {
    /// Nothing counted.
    pub const EMPTY: Self = Self {
        common: Common::EMPTY,
        rare: Rare::EMPTY,
    };

    /// The value of the counter `offset` places behind `first` (0 where there is none).
    #[must_use]
    pub fn at(&self, first: Counter, offset: usize) -> u64 {
        let place = first as usize + offset;
        let counter = match place.checked_sub(COMMON) {
            None => self.common.counters.get(place),
            Some(rare) => self.rare.counters.get(rare),
        };
        counter.copied().unwrap_or(0)
    }

    /// The same with this value.
    #[must_use]
    pub fn with(mut self, counter: Counter, value: u64) -> Self {
        let place = counter as usize;
        let counter = match place.checked_sub(COMMON) {
            None => self.common.counters.get_mut(place),
            Some(rare) => self.rare.counters.get_mut(rare),
        };
        if let Some(counter) = counter {
            *counter = value;
        }
        self
    }
}
