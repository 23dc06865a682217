//! What counts are found by: who a frame belongs to.

use super::{Cell, Recent};
use crate::frame::Mac;

/// No slot: a count that has no owner among the known sub-interfaces.
pub const NO_SLOT: u32 = u32::MAX;

/// Says in [`ParentEntry::flags`] that the parent's sub-interface is in mode passthru: every unicast frame is its.
pub const PARENT_PASSTHRU: u32 = 1;

/// Says in [`ParentEntry::flags`] that a sub-interface in mode source keeps what it takes (`nodst`): the handler frees
/// the original, which is not a drop.
pub const PARENT_KEEPS_SOURCE: u32 = 2;

/// A parent: an interface index is unique only inside its namespace.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParentKey {
    /// Inode number of the parent's network namespace.
    pub netns: u32,
    /// Interface index of the parent there.
    pub ifindex: u32,
}

/// A sub-interface as its parent tells it apart: by its MAC. All zero in mode passthru, where the MAC is the parent's.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubInterfaceKey {
    /// The parent's namespace.
    pub netns: u32,
    /// The parent's interface index.
    pub parent: u32,
    /// The sub-interface's MAC.
    pub mac: [u8; 6],
    /// Zero, but see [`Self::on_cpu`].
    pub pad: [u8; 2],
}

impl SubInterfaceKey {
    /// The key of what a CPU has counted for it while user space does not know it yet.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the kernel has at most 8,192 CPUs")]
    pub const fn on_cpu(self, cpu: u32) -> Self {
        Self {
            pad: (cpu as u16).to_le_bytes(),
            ..self
        }
    }

    /// The key of the sub-interface with `mac` on `parent`.
    #[inline(always)]
    #[must_use]
    pub const fn new(parent: ParentKey, mac: [u8; 6]) -> Self {
        Self {
            netns: parent.netns,
            parent: parent.ifindex,
            mac,
            pad: [0; 2],
        }
    }

    /// The same of a MAC in a frame.
    #[inline(always)]
    #[must_use]
    pub const fn of(parent: ParentKey, mac: Mac) -> Self {
        Self::new(parent, mac.bytes())
    }

    /// The key of what a parent's own totals are credited under while user space does not know the parent yet.
    #[inline(always)]
    #[must_use]
    pub const fn of_parent(parent: ParentKey) -> Self {
        Self::new(parent, [0xff; 6])
    }
}

/// What a [`SubInterfaceKey`] leads to.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotEntry {
    /// Index of the sub-interface's counts.
    pub slot: u32,
    /// Its mode, as the kernel numbers it.
    pub mode: u8,
    /// 1 while it is administratively up.
    pub up: u8,
    /// Zero.
    pub pad: [u8; 2],
}

/// Says in [`DeviceEntry::flags`] that the device is a macvtap.
pub const DEVICE_TAP: u32 = 1;

/// Says in [`DeviceEntry::flags`] that the device has no carrier.
pub const DEVICE_NO_CARRIER: u32 = 2;

/// What a sub-interface's own namespace and interface index lead to.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceEntry {
    /// Index of its counts.
    pub slot: u32,
    /// See [`DEVICE_TAP`] and [`DEVICE_NO_CARRIER`].
    pub flags: u32,
    /// Its parent.
    pub parent: ParentKey,
}

/// What a [`ParentKey`] leads to.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParentEntry {
    /// Index of the parent's own totals.
    pub slot: u32,
    /// See [`PARENT_PASSTHRU`] and [`PARENT_KEEPS_SOURCE`].
    pub flags: u32,
    /// The second (monotonic clock) in which the current allowance of unknown MACs began.
    pub unknown_since: u32,
    /// How many unknown MACs got an entry since then.
    pub unknown_count: u32,
    /// The parent's MAC.
    pub mac: [u8; 6],
    /// Zero.
    pub pad: [u8; 2],
}

impl SlotEntry {
    /// Nobody's: every field has a value, because the kernel's verifier follows each of them even where the compiler
    /// would not look.
    pub const NONE: Self = Self {
        slot: NO_SLOT,
        mode: 0,
        up: 0,
        pad: [0; 2],
    };

    /// Whether it is somebody's.
    #[inline(always)]
    #[must_use]
    pub const fn is_known(&self) -> bool {
        self.slot != NO_SLOT
    }
}

/// An address that an ARP request or a neighbour solicitation may ask for.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AddressKey {
    /// The parent's namespace.
    pub netns: u32,
    /// The parent's interface index. 0 for the host's IPv4 addresses: it answers for any of them on every interface
    /// (weak host model, `arp_ignore` 0; `net/ipv4/arp.c`, `arp_process`), for IPv6 only on the interface that has the
    /// address (`net/ipv6/ndisc.c`, `ndisc_recv_ns`).
    pub parent: u32,
    /// IPv6, or IPv4 mapped into it.
    pub address: [u8; 16],
}

/// Whose address it is.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressOwner {
    /// Slot of the sub-interface; [`NO_SLOT`] for the host's own addresses.
    pub slot: u32,
    /// Mode of the sub-interface, 0 for the host.
    pub mode: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// When a slot's last unicast attempts were made.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempted {
    /// Seconds of the monotonic clock, by [`super::Direction`].
    pub seconds: [u32; 3],
    /// The same for frames that siblings in bridge mode sent to the wire for it, because the kernel did not find it.
    pub sent_out: u32,
}

/// An ARP request or neighbour solicitation that waits for its reply.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AskKey {
    /// The parent's namespace.
    pub netns: u32,
    /// The parent's interface index.
    pub parent: u32,
    /// The address asked for.
    pub target: [u8; 16],
    /// The MAC that asked.
    pub asker: [u8; 6],
    /// Zero.
    pub pad: [u8; 2],
}

/// How often it was asked lately.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// Slot of the addressee where the parent asks; [`NO_SLOT`] where a sub-interface asks: then the asker's MAC says.
    pub slot: u32,
    /// [`super::Direction`] as a number.
    pub direction: u32,
    /// Requests per second, ring 0 alone.
    pub recent: Recent<1>,
}

/// What one CPU has counted for a MAC that user space does not know yet. Added to its sub-interface when that becomes
/// known within [`super::limits::CREDIT_SECONDS`], forgotten otherwise.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// When the first frame came, in nanoseconds of the monotonic clock.
    pub since: u64,
    /// What was counted since.
    pub cell: Cell,
}

/// What user space asks for credits with: the first that there is under a key, from a CPU on. The answer is written behind
/// it.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreditRequest {
    /// The sub-interface, on no CPU.
    pub key: SubInterfaceKey,
    /// The first CPU; [`super::limits::CPUS_AT_ONCE`] of them are looked at.
    pub first: u32,
    /// 1 to take the credit out.
    pub removes: u32,
}

/// A request and its answer, as they lie in the packet that the program is run on.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreditExchange {
    /// What is asked.
    pub request: CreditRequest,
    /// What is answered.
    pub credit: Credit,
}

const _: () = assert!(
    size_of::<CreditExchange>() == size_of::<CreditRequest>() + size_of::<Credit>(),
    "one behind the other"
);

#[cfg(feature = "user")]
impl CreditExchange {
    /// Its bytes, to be read.
    #[must_use]
    pub const fn bytes(&self) -> &[u8] {
        // SAFETY: an exchange is integers alone, without padding; the bytes live as long as it does.
        unsafe { core::slice::from_raw_parts(core::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }

    /// Its bytes, to be written.
    #[must_use]
    pub const fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; any bytes are an exchange.
        unsafe { core::slice::from_raw_parts_mut(core::ptr::from_mut(self).cast(), size_of::<Self>()) }
    }
}
