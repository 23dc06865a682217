//! What user space tells the programs when it loads them, and while they run.

/// A field that this kernel does not have.
pub const NO_FIELD: u32 = u32::MAX;

/// Where the kernel's fields are, in bytes, read from the running kernel's BTF: the compiler emits no relocations, and
/// the places differ by version and configuration.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offsets {
    /// `sk_buff.dev`
    pub skb_dev: u32,
    /// `sk_buff.len`
    pub skb_len: u32,
    /// `sk_buff.head`
    pub skb_head: u32,
    /// `sk_buff.end`
    pub skb_end: u32,
    /// `sk_buff.mac_header`
    pub skb_mac_header: u32,
    /// The byte of `sk_buff.pkt_type` (its three low bits).
    pub skb_pkt_type: u32,
    /// The byte of `sk_buff.vlan_present`; [`NO_FIELD`] where `vlan_all` says it.
    pub skb_vlan_present: u32,
    /// Its bit.
    pub skb_vlan_present_bit: u32,
    /// `sk_buff.vlan_all`; [`NO_FIELD`] before 6.2.
    pub skb_vlan_all: u32,
    /// `skb_shared_info.gso_size`
    pub shared_gso_size: u32,
    /// `skb_shared_info.gso_segs`
    pub shared_gso_segs: u32,
    /// `net_device.ifindex`
    pub dev_ifindex: u32,
    /// `net_device.nd_net`
    pub dev_net: u32,
    /// `net.ns.inum`
    pub net_inum: u32,
    /// The part of an `sk_buff` that is copied at once; fields outside are read one by one.
    pub skb_window: Window,
    /// The same of a `net_device`.
    pub dev_window: Window,
}

/// A part of a structure, at most [`super::limits::WINDOW`] bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Where it begins: a multiple of 8.
    pub start: u32,
    /// How long it is.
    pub length: u32,
}

impl Window {
    /// The window that holds these fields, each at most 8 bytes; an empty one where they lie too far apart.
    #[must_use]
    pub fn around(fields: &[u32]) -> Self {
        let known = || fields.iter().filter(|field| **field != NO_FIELD);
        let (Some(&first), Some(&last)) = (known().min(), known().max()) else {
            return Self::default();
        };
        let start = first & !7;
        let end = (last & !7) + 8;
        if end - start > super::limits::WINDOW {
            return Self::default();
        }
        Self {
            start,
            length: end - start,
        }
    }
}

impl Offsets {
    /// No field known.
    pub const NONE: Self = Self {
        skb_dev: NO_FIELD,
        skb_len: NO_FIELD,
        skb_head: NO_FIELD,
        skb_end: NO_FIELD,
        skb_mac_header: NO_FIELD,
        skb_pkt_type: NO_FIELD,
        skb_vlan_present: NO_FIELD,
        skb_vlan_present_bit: NO_FIELD,
        skb_vlan_all: NO_FIELD,
        shared_gso_size: NO_FIELD,
        shared_gso_segs: NO_FIELD,
        dev_ifindex: NO_FIELD,
        dev_net: NO_FIELD,
        net_inum: NO_FIELD,
        skb_window: Window { start: 0, length: 0 },
        dev_window: Window { start: 0, length: 0 },
    };
}

/// Says in [`Settings::state`] that `handle_frame` is attached: it knows what was delivered, the TC programs only infer
/// it.
pub const HANDLER_ATTACHED: u64 = 1;

/// What one change of the tables adds to [`Settings::state`].
pub const TABLES_CHANGED: u64 = 2;

/// What changes while the programs run; one element of a mapped array.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// [`HANDLER_ATTACHED`], and above it how often the tables that frames are looked up in were changed.
    pub state: u64,
    /// Where `macvlan_handle_frame` is in memory: a module comes and goes. Both 0 while that is not known.
    pub handler: Range,
    /// 1 as soon as there has been a credit.
    pub has_credits: u64,
}

/// Addresses, the last one not included.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// The first.
    pub start: u64,
    /// Behind the last.
    pub end: u64,
}

impl Range {
    /// Whether an address is in it.
    #[inline(always)]
    #[must_use]
    pub const fn contains(&self, address: u64) -> bool {
        self.start <= address && address < self.end
    }
}

/// A function of the kernel, and what it means when a frame is freed in it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Location {
    /// Where it is.
    pub range: Range,
    /// [`super::label::Cause`] as a number.
    pub cause: u32,
    /// Zero.
    pub pad: u32,
}

/// The functions that `frame_free` knows; one element of an array.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Locations {
    /// Those that are not there have an empty range.
    pub functions: [Location; super::limits::LOCATIONS],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_holds_its_fields_whole_or_none() {
        let around = |fields: &[u32]| Window::around(fields);
        assert_eq!(around(&[112, 200, 128, NO_FIELD]), Window { start: 112, length: 96 });
        assert_eq!(around(&[116, 118]), Window { start: 112, length: 8 });
        assert_eq!(around(&[224, 1200]), Window::default(), "too far apart");
        assert_eq!(around(&[NO_FIELD]), Window::default());
    }
}
