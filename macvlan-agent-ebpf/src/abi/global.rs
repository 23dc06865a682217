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
    };
}

/// What changes while the programs run; one element of a mapped array.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// 1 while `handle_frame` is attached: it knows what was delivered, the TC programs only infer it.
    pub handler_attached: u32,
    /// Zero.
    pub pad: u32,
    /// Where `macvlan_handle_frame` is in memory: a module comes and goes. Both 0 while that is not known.
    pub handler: Range,
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
