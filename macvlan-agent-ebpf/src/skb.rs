//! Every raw read of a frame: through the context of the TC programs, and of the kernel's own structures.

use aya_ebpf::{EbpfContext as _, helpers::bpf_probe_read_kernel, programs::TcContext};
use macvlan_agent_ebpf::{
    abi::{NO_FIELD, ParentKey},
    frame::{self, Header, Resolution},
};

use crate::{
    count::Amount,
    maps::{NETNS, OFFSETS},
};

/// `PACKET_LOOPBACK`: the parent's own looped multicast, without an Ethernet header.
pub(crate) const LOOPBACK: u32 = 5;

/// A frame at a TC hook of a parent.
pub(crate) struct Frame {
    pub(crate) parent: ParentKey,
    pub(crate) header: Header,
    pub(crate) amount: Amount,
    /// Bytes of the skb: what macvlan counts.
    pub(crate) kernel_bytes: u64,
}

/// Reads `N` bytes at the head of the frame where they lie in its linear part.
#[inline(always)]
fn head<const N: usize>(context: &TcContext) -> Option<&[u8; N]> {
    let start = context.data();
    if start + N > context.data_end() {
        return None;
    }
    // SAFETY: the kernel's verifier checks the same bound: all N bytes lie inside the packet, and a byte array has no
    // alignment.
    Some(unsafe { &*(start as *const [u8; N]) })
}

impl Frame {
    /// The frame in hand; None for what has no Ethernet header.
    #[inline(always)]
    pub(crate) fn of(context: &TcContext) -> Option<Self> {
        // SAFETY: the context of a classifier is a `__sk_buff`, whose fields the kernel translates.
        let skb = unsafe { &*context.skb.skb };
        if skb.pkt_type == LOOPBACK {
            return None;
        }
        let bytes = head::<{ frame::ETHERNET }>(context)?;
        let header = Header {
            destination: [bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5]],
            source: [bytes[6], bytes[7], bytes[8], bytes[9], bytes[10], bytes[11]],
            kind: [bytes[12], bytes[13]],
        };
        let tag = if skb.vlan_present != 0 { 4 } else { 0 };
        let length = u64::from(skb.len) + tag;
        let (segments, size) = (skb.gso_segs, skb.gso_size);
        let amount = if segments > 1 || size > 0 {
            let headers = tag + segment_headers(context, &header);
            let frames = frame::frames_of(segments, size, length, headers);
            Amount {
                frames,
                bytes: frame::wire_bytes(length, frames, headers),
            }
        } else {
            Amount {
                frames: 1,
                bytes: length,
            }
        };
        Some(Self {
            parent: ParentKey {
                netns: NETNS.load(),
                ifindex: skb.ifindex,
            },
            header,
            amount,
            kernel_bytes: u64::from(skb.len),
        })
    }

    /// What it asks or answers, where it is ARP or neighbour discovery.
    #[inline(always)]
    pub(crate) fn resolution(&self, context: &TcContext) -> Resolution {
        if self.header.is_arp() {
            if let Some(bytes) = head::<{ frame::ARP }>(context) {
                return frame::arp(bytes);
            }
            return match context.load::<[u8; frame::ARP]>(0) {
                Ok(bytes) => frame::arp(&bytes),
                Err(_) => Resolution::NONE,
            };
        }
        if self.header.is_ipv6() {
            if let Some(bytes) = head::<{ frame::NEIGHBOUR }>(context) {
                return frame::neighbour(bytes);
            }
        }
        Resolution::NONE
    }
}

#[inline(always)]
fn segment_headers(context: &TcContext, header: &Header) -> u64 {
    if header.is_ipv6() {
        return match head::<{ frame::ETHERNET + 54 }>(context) {
            Some(bytes) => frame::segment_headers(true, bytes[14], bytes[20], bytes[66]),
            None => 0,
        };
    }
    match head::<{ frame::ETHERNET + 34 }>(context) {
        // Options before the TCP header are rare enough to take its place without them.
        Some(bytes) if header.is_ipv4() => frame::segment_headers(false, bytes[14], bytes[23], bytes[46]),
        _ => 0,
    }
}

/// A frame as `macvlan_handle_frame` gets it.
#[derive(Clone, Copy)]
pub(crate) struct Handled {
    pub(crate) parent: ParentKey,
    pub(crate) header: Header,
    pub(crate) amount: Amount,
    /// `skb->len` and the Ethernet header: what macvlan counts.
    pub(crate) kernel_bytes: u64,
    pub(crate) loopback: bool,
}

/// Reads a `T` at `offset` behind `base`.
#[inline(always)]
fn field<T>(base: u64, offset: u32) -> Option<T> {
    if offset == NO_FIELD {
        return None;
    }
    // SAFETY: the helper checks the address itself and fails where it is not the kernel's.
    unsafe { bpf_probe_read_kernel((base + u64::from(offset)) as *const T) }.ok()
}

/// The namespace and the interface index of a frame's device; None where it has none.
#[inline(always)]
pub(crate) fn device_of(skb: u64) -> Option<ParentKey> {
    let offsets = OFFSETS.load();
    let device: u64 = field(skb, offsets.skb_dev)?;
    let ifindex: u32 = field(device, offsets.dev_ifindex)?;
    let net: u64 = field(device, offsets.dev_net)?;
    let netns: u32 = field(net, offsets.net_inum)?;
    Some(ParentKey { netns, ifindex })
}

/// How many packets a frame without an Ethernet header stands for.
#[inline(always)]
pub(crate) fn frames_of(skb: u64) -> u64 {
    let offsets = OFFSETS.load();
    let head: u64 = field_or(skb, offsets.skb_head, 0);
    let end: u32 = field_or(skb, offsets.skb_end, 0);
    let segments: u16 = field_or(head + u64::from(end), offsets.shared_gso_segs, 0);
    if segments > 1 { u64::from(segments) } else { 1 }
}

impl Handled {
    /// The frame that `skb` points to, its Ethernet header before its data; None where a field cannot be read.
    #[inline(always)]
    pub(crate) fn of(skb: u64) -> Option<Self> {
        Self::read(skb, frame::ETHERNET as u64)
    }

    /// The same where the data begins with the Ethernet header.
    #[inline(always)]
    pub(crate) fn pushed(skb: u64) -> Option<Self> {
        Self::read(skb, 0)
    }

    /// `before` bytes of the frame are not part of `skb->len`.
    #[inline(always)]
    fn read(skb: u64, before: u64) -> Option<Self> {
        let offsets = OFFSETS.load();
        let parent = device_of(skb)?;
        let length: u32 = field(skb, offsets.skb_len)?;
        let kind: u8 = field(skb, offsets.skb_pkt_type)?;
        let kernel_bytes = u64::from(length) + before;
        if u32::from(kind & 7) == LOOPBACK {
            let header = Header {
                destination: [0; 6],
                source: [0; 6],
                kind: [0; 2],
            };
            let amount = Amount {
                frames: 1,
                bytes: u64::from(length),
            };
            return Some(Self {
                parent,
                header,
                amount,
                kernel_bytes,
                loopback: true,
            });
        }
        let ethernet = ethernet_of(skb)?;
        let header: Header = field(ethernet, 0)?;
        let head: u64 = field(skb, offsets.skb_head)?;
        let end: u32 = field(skb, offsets.skb_end)?;
        let shared = head + u64::from(end);
        let segments = u32::from(field::<u16>(shared, offsets.shared_gso_segs)?);
        let size = u32::from(field::<u16>(shared, offsets.shared_gso_size)?);
        let tag = if tagged(skb) { 4 } else { 0 };
        let bytes = kernel_bytes + tag;
        let amount = if segments > 1 || size > 0 {
            let headers = tag + handled_headers(ethernet, &header);
            let frames = frame::frames_of(segments, size, bytes, headers);
            Amount {
                frames,
                bytes: frame::wire_bytes(bytes, frames, headers),
            }
        } else {
            Amount { frames: 1, bytes }
        };
        Some(Self {
            parent,
            header,
            amount,
            kernel_bytes,
            loopback: false,
        })
    }
}

/// What the frame asks or answers, where it is ARP or neighbour discovery.
#[inline(always)]
pub(crate) fn resolution_of(skb: u64, header: &Header) -> Resolution {
    let Some(ethernet) = ethernet_of(skb) else {
        return Resolution::NONE;
    };
    if header.is_arp() {
        return frame::arp(&field_or(ethernet, 0, [0; frame::ARP]));
    }
    if header.is_ipv6() {
        return frame::neighbour(&field_or(ethernet, 0, [0; frame::NEIGHBOUR]));
    }
    Resolution::NONE
}

/// Whether the frame is a piece of an IPv4 packet, and not the last one.
#[inline(always)]
pub(crate) fn is_early_fragment(skb: u64, header: &Header) -> bool {
    if !header.is_ipv4() {
        return false;
    }
    match ethernet_of(skb) {
        Some(ethernet) => frame::has_more_fragments(field_or(ethernet, frame::FRAGMENT, 0)),
        None => false,
    }
}

#[inline(always)]
fn ethernet_of(skb: u64) -> Option<u64> {
    let offsets = OFFSETS.load();
    let head: u64 = field(skb, offsets.skb_head)?;
    let mac_header: u16 = field(skb, offsets.skb_mac_header)?;
    Some(head + u64::from(mac_header))
}

/// Reads a `T`, or says `otherwise` where that cannot be: unlike an `Option`, the result has a value in every case.
#[inline(always)]
fn field_or<T>(base: u64, offset: u32, otherwise: T) -> T {
    if offset == NO_FIELD {
        return otherwise;
    }
    // SAFETY: as in `field`.
    unsafe { bpf_probe_read_kernel((base + u64::from(offset)) as *const T) }.unwrap_or(otherwise)
}

/// Whether a VLAN tag is kept beside the frame.
#[inline(always)]
fn tagged(skb: u64) -> bool {
    let offsets = OFFSETS.load();
    let present: u8 = field_or(skb, offsets.skb_vlan_present, 0);
    let all: u32 = field_or(skb, offsets.skb_vlan_all, 0);
    all != 0 || present >> (offsets.skb_vlan_present_bit & 7) & 1 == 1
}

#[inline(always)]
fn handled_headers(ethernet: u64, header: &Header) -> u64 {
    let (protocol_at, offset_at) = if header.is_ipv6() { (20, 66) } else { (23, 46) };
    if !header.is_ipv6() && !header.is_ipv4() {
        return 0;
    }
    let version: u8 = field_or(ethernet, 14, 0);
    let protocol: u8 = field_or(ethernet, protocol_at, 0);
    let offset: u8 = field_or(ethernet, offset_at, 0);
    frame::segment_headers(header.is_ipv6(), version, protocol, offset)
}

/// The address of the skb behind a TC context: the verifier calls it a context, the kernel passes the skb itself.
#[inline(always)]
pub(crate) fn address(context: &TcContext) -> u64 {
    context.as_ptr() as u64
}
