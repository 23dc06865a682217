//! Every raw read of a frame: through the context of the TC programs, and of the kernel's own structures.

use core::{ffi::c_void, hint::black_box};

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_probe_read_kernel, generated},
    programs::TcContext,
};
use macvlan_agent_ebpf::{
    abi::{NO_FIELD, Offsets, ParentKey, Window, limits},
    frame::{self, Header, Resolution},
};

use crate::{
    count::Amount,
    maps::{NETNS, NETNS_ABOVE, OFFSETS},
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
    /// Whether a VLAN tag is kept beside it.
    pub(crate) tagged: bool,
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

/// The first and the last eight bytes of the Ethernet header where it lies in the frame's linear part.
#[inline(always)]
fn ethernet(context: &TcContext) -> Option<(u64, u64)> {
    let bytes = head::<{ frame::ETHERNET }>(context)?.as_ptr();
    // SAFETY: both lie inside the header, and need no alignment.
    Some(unsafe {
        (
            bytes.cast::<u64>().read_unaligned(),
            bytes.add(frame::LAST).cast::<u64>().read_unaligned(),
        )
    })
}

/// The first and the last eight bytes of the Ethernet header of a frame that is one alone, has no tag beside it, and its
/// header at hand; None of all others. Of a packet that has no such header ([`is_loopback`]) they are those of its IP
/// header: that of IPv4 begins like a group's address, which is no flow, and that of IPv6 is told apart where it matters.
#[inline(always)]
pub(crate) fn plain(context: &TcContext) -> Option<(u64, u64)> {
    // SAFETY: the context of a classifier is a `__sk_buff`, whose fields the kernel translates.
    let skb = unsafe { &*context.skb.skb };
    // Two instructions where the flag takes four. Where there is no tag there is no protocol of one since 6.2; before, that
    // of a tag that a VLAN's interface has taken off stands there still (`vlan_do_receive`, `net/8021q/vlan_core.c`).
    if skb.vlan_proto != 0 && skb.vlan_present != 0 || skb.gso_size != 0 {
        return None;
    }
    ethernet(context)
}

/// Whether it has no Ethernet header at all.
#[inline(always)]
pub(crate) fn is_loopback(context: &TcContext) -> bool {
    // SAFETY: as in `plain`.
    unsafe { (*context.skb.skb).pkt_type == LOOPBACK }
}

/// How much such a frame is.
#[inline(always)]
pub(crate) fn amount(context: &TcContext) -> Amount {
    // SAFETY: as in `plain`.
    let bytes = unsafe { (*context.skb.skb).len };
    Amount {
        frames: 1,
        bytes: u64::from(bytes),
    }
}

/// The parent that has received a frame, as a flow has it. The kernel has just noted it as the device that the frame came in
/// by (`__netif_receive_skb_core`, `net/core/dev.c`, 5.10 to 7.3), which takes one instruction to read where the device
/// itself takes four.
#[inline(always)]
pub(crate) fn received_by(context: &TcContext) -> u64 {
    // SAFETY: as in `plain`.
    parent(unsafe { (*context.skb.skb).ingress_ifindex })
}

/// The one that is sending it.
#[inline(always)]
pub(crate) fn sent_by(context: &TcContext) -> u64 {
    // SAFETY: as in `plain`.
    parent(unsafe { (*context.skb.skb).ifindex })
}

#[inline(always)]
fn parent(ifindex: u32) -> u64 {
    u64::from(ifindex) | NETNS_ABOVE.load()
}

/// Whether an IPv6 packet may be neighbour discovery.
#[inline(always)]
pub(crate) fn may_be_icmpv6(context: &TcContext) -> bool {
    const NEXT_HEADER: usize = frame::ETHERNET + 6;
    head::<{ NEXT_HEADER + 1 }>(context).is_none_or(|bytes| bytes[NEXT_HEADER] == frame::ICMPV6)
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
        let (first, last) = ethernet(context)?;
        let header = Header::of_words(first, last);
        let tagged = skb.vlan_present != 0;
        let tag = if tagged { 4 } else { 0 };
        let length = u64::from(skb.len) + tag;
        // Where the size is 0 the kernel takes it for one frame (`skb_is_gso`).
        let size = skb.gso_size;
        let amount = if size > 0 {
            let headers = tag + segment_headers(context, &header);
            let frames = frame::frames_of(skb.gso_segs, size, length, headers);
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
            tagged,
        })
    }

    /// The same as the handler will get it.
    #[inline(always)]
    pub(crate) fn handed(&self, context: &TcContext) -> Handled {
        Handled {
            parent: self.parent,
            header: self.header,
            amount: self.amount,
            kernel_bytes: self.kernel_bytes,
            ethernet: context.data() as u64,
        }
    }

    /// Whether the frame is a piece of an IPv4 packet, and not the last one.
    #[inline(always)]
    pub(crate) fn is_early_fragment(&self, context: &TcContext) -> bool {
        const FLAGS: usize = frame::FRAGMENT as usize;
        self.header.is_ipv4()
            && head::<{ FLAGS + 1 }>(context).is_some_and(|bytes| frame::has_more_fragments(bytes[FLAGS]))
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

/// The value of a field of [`OFFSETS`], without the others.
macro_rules! offset {
    ($($field:ident).+) => {{
        let offsets = (&raw const OFFSETS).cast::<Offsets>();
        // SAFETY: a `Global` is nothing but its value (`repr(transparent)`), which is always there; the read is volatile
        // because user space chooses the value after the compiler has seen one.
        unsafe { (&raw const (*offsets).$($field).+).read_volatile() }
    }};
}

/// A frame as `macvlan_handle_frame` gets it.
#[derive(Clone, Copy)]
pub(crate) struct Handled {
    pub(crate) parent: ParentKey,
    pub(crate) header: Header,
    pub(crate) amount: Amount,
    /// `skb->len` and the Ethernet header: what macvlan counts.
    pub(crate) kernel_bytes: u64,
    /// Where the Ethernet header is; 0 where there is none.
    pub(crate) ethernet: u64,
}

impl Handled {
    /// Whether it is one that has no Ethernet header.
    #[inline(always)]
    pub(crate) fn is_loopback(&self) -> bool {
        self.ethernet == 0
    }
}

/// Copies of what is read of the kernel's structures: each copy costs more than a hundred instructions, whatever its
/// length.
#[repr(C)]
pub(crate) struct Windows {
    skb: Copied,
    device: Copied,
}

/// A copy of a part of a structure.
#[repr(C, align(8))]
struct Copied([u8; WINDOW]);

const WINDOW: usize = limits::WINDOW as usize;

/// A structure of the kernel's: its address, and the part of it that was copied.
#[derive(Clone, Copy)]
struct Structure<'windows> {
    address: u64,
    copy: &'windows Copied,
    window: Window,
}

impl<'windows> Structure<'windows> {
    /// Copies the window of the structure at `address`.
    #[inline(always)]
    fn read(address: u64, copy: &'windows mut Copied, window: Window) -> Option<Self> {
        if window.length == 0 || window.length > limits::WINDOW {
            return Some(Self {
                address,
                copy,
                window: Window { start: 0, length: 0 },
            });
        }
        let from = (address + u64::from(window.start)) as *const c_void;
        // SAFETY: the length is at most that of the copy; the helper checks the address itself and fails where it is not
        // the kernel's.
        let failed = unsafe { generated::bpf_probe_read_kernel(copy.0.as_mut_ptr().cast(), window.length, from) };
        (failed == 0).then_some(Self { address, copy, window })
    }

    /// A field of it, out of the copy where it lies there.
    #[inline(always)]
    fn field<T: Copy>(&self, offset: u32) -> Option<T> {
        let at = offset.wrapping_sub(self.window.start);
        let end = u64::from(at) + size_of::<T>() as u64;
        if end > u64::from(self.window.length) || end > WINDOW as u64 {
            return field(self.address, offset);
        }
        // SAFETY: the field ends inside the copy, and is aligned there as it is in the structure, since the window begins
        // at a multiple of 8; any bytes are a valid value of the integers that are read.
        Some(unsafe { self.copy.0.as_ptr().add(at as usize).cast::<T>().read_volatile() })
    }

    /// The same, or `otherwise` where this kernel has no such field.
    #[inline(always)]
    fn field_or<T: Copy>(&self, offset: u32, otherwise: T) -> T {
        if offset == NO_FIELD {
            return otherwise;
        }
        self.field(offset).unwrap_or(otherwise)
    }
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
pub(crate) fn device_of(skb: u64, windows: &mut Windows) -> Option<ParentKey> {
    let address: u64 = field(skb, offset!(skb_dev))?;
    let device = Structure::read(address, &mut windows.device, offset!(dev_window))?;
    let ifindex: u32 = device.field(offset!(dev_ifindex))?;
    let net: u64 = device.field(offset!(dev_net))?;
    let netns: u32 = field(net, offset!(net_inum))?;
    Some(ParentKey { netns, ifindex })
}

/// How many packets a frame without an Ethernet header stands for.
#[inline(always)]
pub(crate) fn frames_of(skb: u64) -> u64 {
    let head: u64 = field_or(skb, offset!(skb_head), 0);
    let end: u32 = field_or(skb, offset!(skb_end), 0);
    let segments: u16 = field_or(head + u64::from(end), offset!(shared_gso_segs), 0);
    if segments > 1 { u64::from(segments) } else { 1 }
}

impl Handled {
    /// The frame that `skb` points to, its Ethernet header before its data; None where a field cannot be read.
    #[inline(always)]
    pub(crate) fn of(skb: u64, windows: &mut Windows) -> Option<Self> {
        Self::read(skb, frame::ETHERNET as u64, windows)
    }

    /// The same where the data begins with the Ethernet header.
    #[inline(always)]
    pub(crate) fn pushed(skb: u64, windows: &mut Windows) -> Option<Self> {
        Self::read(skb, 0, windows)
    }

    /// `before` bytes of the frame are not part of `skb->len`.
    #[inline(always)]
    fn read(address: u64, before: u64, windows: &mut Windows) -> Option<Self> {
        let parent = device_of(address, windows)?;
        let skb = Structure::read(address, &mut windows.skb, offset!(skb_window))?;
        let length: u32 = skb.field(offset!(skb_len))?;
        let kind: u8 = skb.field(offset!(skb_pkt_type))?;
        let kernel_bytes = u64::from(length) + before;
        if u32::from(kind & 7) == LOOPBACK {
            let amount = Amount {
                frames: 1,
                bytes: u64::from(length),
            };
            return Some(Self {
                parent,
                header: Header::default(),
                amount,
                kernel_bytes,
                ethernet: 0,
            });
        }
        let head: u64 = skb.field(offset!(skb_head))?;
        let mac_header: u16 = skb.field(offset!(skb_mac_header))?;
        let ethernet = head + u64::from(mac_header);
        // Two bytes more than the header: behind the frame's memory there is always that of its `skb_shared_info`.
        let words: [u64; 2] = field(ethernet, 0)?;
        // Else the compiler reads the last eight bytes at once, which the verifier allows in a frame and not on the stack.
        let [first, second] = black_box(words);
        let header = Header::of_words(first, black_box(first) >> 48 | second << 16);
        let end: u32 = skb.field(offset!(skb_end))?;
        let (segments, size) = gso(head + u64::from(end))?;
        let tag = if tagged(&skb) { 4 } else { 0 };
        let bytes = kernel_bytes + tag;
        let amount = if size > 0 {
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
            ethernet,
        })
    }

    /// What the frame asks or answers, where it is ARP or neighbour discovery.
    #[inline(always)]
    pub(crate) fn resolution(&self) -> Resolution {
        if self.is_loopback() {
            return Resolution::NONE;
        }
        if self.header.is_arp() {
            return frame::arp(&field_or(self.ethernet, 0, [0; frame::ARP]));
        }
        if self.header.is_ipv6() {
            return frame::neighbour(&field_or(self.ethernet, 0, [0; frame::NEIGHBOUR]));
        }
        Resolution::NONE
    }

    /// Whether the frame is a piece of an IPv4 packet, and not the last one.
    #[inline(always)]
    pub(crate) fn is_early_fragment(&self) -> bool {
        !self.is_loopback()
            && self.header.is_ipv4()
            && frame::has_more_fragments(field_or(self.ethernet, frame::FRAGMENT, 0))
    }
}

/// Segments and their size, which stand side by side in `skb_shared_info`.
#[inline(always)]
fn gso(shared: u64) -> Option<(u32, u32)> {
    let (size_at, segments_at) = (offset!(shared_gso_size), offset!(shared_gso_segs));
    let [size, segments]: [u16; 2] = if segments_at == size_at.wrapping_add(2) {
        field(shared, size_at)?
    } else {
        [field(shared, size_at)?, field(shared, segments_at)?]
    };
    Some((u32::from(segments), u32::from(size)))
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
fn tagged(skb: &Structure<'_>) -> bool {
    let present: u8 = skb.field_or(offset!(skb_vlan_present), 0);
    let all: u32 = skb.field_or(offset!(skb_vlan_all), 0);
    all != 0 || present >> (offset!(skb_vlan_present_bit) & 7) & 1 == 1
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
