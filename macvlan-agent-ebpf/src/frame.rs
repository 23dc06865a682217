//! An Ethernet frame's first bytes: who sent it, to whom, and what it asks.

/// Length of the Ethernet header.
pub const ETHERNET: usize = 14;
/// Where the last eight bytes of the Ethernet header begin.
pub const LAST: usize = ETHERNET - 8;
/// Length of an ARP packet for IPv4 over Ethernet, with its Ethernet header.
pub const ARP: usize = ETHERNET + 28;
/// Up to the end of the target address of a neighbour solicitation or advertisement without IPv6 extension headers.
pub const NEIGHBOUR: usize = ETHERNET + 40 + 24;

/// Where the flags and the first bits of the offset of an IPv4 fragment are.
pub const FRAGMENT: u32 = 14 + 6;

const TYPE_ARP: u16 = 0x0806_u16.to_be();
const TYPE_IPV4: u16 = 0x0800_u16.to_be();
const TYPE_IPV6: u16 = 0x86dd_u16.to_be();
/// What ICMP for IPv6 is called in the header before it.
pub const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const TCP: u8 = 6;

/// A MAC as one number, its first byte lowest: compared and looked up by one instruction, not by six.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mac(u64);

impl Mac {
    /// That of these bytes.
    #[inline(always)]
    #[must_use]
    pub const fn of(bytes: [u8; 6]) -> Self {
        Self(u64::from_le_bytes([
            bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], 0, 0,
        ]))
    }

    /// That in the lower 48 bits of a number.
    #[inline(always)]
    #[must_use]
    pub const fn low(number: u64) -> Self {
        Self(number & 0xffff_ffff_ffff)
    }

    /// Its bytes.
    #[inline(always)]
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        let bytes = self.0.to_le_bytes();
        [bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5]]
    }

    /// It as a number below 2⁴⁸.
    #[inline(always)]
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// Destination, source and type of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Destination MAC.
    pub destination: Mac,
    /// Source MAC.
    pub source: Mac,
    /// `EtherType`, network order.
    pub kind: u16,
}

impl Header {
    /// The header as two numbers, the first byte lowest: the first eight of its bytes, and the last eight.
    #[inline(always)]
    #[must_use]
    pub const fn of_words(first: u64, last: u64) -> Self {
        Self {
            destination: Mac::low(first),
            source: Mac::low(last),
            kind: ((last >> 48) as u16).to_le(),
        }
    }

    /// Whether it goes to a group, broadcast included.
    #[inline(always)]
    #[must_use]
    pub const fn is_multicast(&self) -> bool {
        self.destination.0 & 1 == 1
    }

    /// Whether it may be ARP.
    #[inline(always)]
    #[must_use]
    pub const fn is_arp(&self) -> bool {
        self.kind == TYPE_ARP
    }

    /// Whether it may be neighbour discovery.
    #[inline(always)]
    #[must_use]
    pub const fn is_ipv6(&self) -> bool {
        self.kind == TYPE_IPV6
    }

    /// Whether it is IPv4.
    #[inline(always)]
    #[must_use]
    pub const fn is_ipv4(&self) -> bool {
        self.kind == TYPE_IPV4
    }
}

/// What a frame of address resolution says.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    /// Nothing of use: probes of one's own address, duplicate address detection, other frames.
    Nothing = 0,
    /// Who has this address?
    Asks = 1,
    /// I have this address.
    Answers = 2,
}

/// A frame of address resolution: what it says, and of which address. Every field always has a value (see
/// [`crate::abi::SlotEntry::NONE`]).
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// Of which address.
    pub address: [u8; 16],
    /// What it says.
    pub says: Says,
}

impl Resolution {
    /// Not one.
    pub const NONE: Self = Self {
        says: Says::Nothing,
        address: [0; 16],
    };
}

/// IPv4 mapped into IPv6.
#[inline(always)]
#[must_use]
pub const fn mapped(ipv4: [u8; 4]) -> [u8; 16] {
    [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, ipv4[0], ipv4[1], ipv4[2], ipv4[3],
    ]
}

/// Reads an ARP packet. Nothing for probes (sender 0.0.0.0), announcements (sender asks for itself), and what is not
/// ARP for IPv4 over Ethernet.
#[inline(always)]
#[must_use]
pub fn arp(frame: &[u8; ARP]) -> Resolution {
    if frame[14] != 0 || frame[15] != 1 || frame[16] != 8 || frame[17] != 0 || frame[18] != 6 || frame[19] != 4 {
        return Resolution::NONE;
    }
    let sender = [frame[28], frame[29], frame[30], frame[31]];
    let target = [frame[38], frame[39], frame[40], frame[41]];
    let sender_number = u32::from_ne_bytes(sender);
    if sender_number == 0 || frame[20] != 0 {
        return Resolution::NONE;
    }
    if frame[21] == 1 && sender_number != u32::from_ne_bytes(target) {
        Resolution {
            says: Says::Asks,
            address: mapped(target),
        }
    } else if frame[21] == 2 {
        Resolution {
            says: Says::Answers,
            address: mapped(sender),
        }
    } else {
        Resolution::NONE
    }
}

/// Reads a neighbour solicitation or advertisement. Nothing for duplicate address detection (source ::), and for all
/// else.
#[inline(always)]
#[must_use]
pub fn neighbour(frame: &[u8; NEIGHBOUR]) -> Resolution {
    if frame[20] != ICMPV6 {
        return Resolution::NONE;
    }
    let mut address = [0; 16];
    let mut unspecified = 0;
    let mut byte = 0;
    while byte < 16 {
        unspecified |= frame[22 + byte];
        address[byte] = frame[62 + byte];
        byte += 1;
    }
    if frame[54] == SOLICITATION && unspecified != 0 {
        Resolution {
            says: Says::Asks,
            address,
        }
    } else if frame[54] == ADVERTISEMENT {
        Resolution {
            says: Says::Answers,
            address,
        }
    } else {
        Resolution::NONE
    }
}

/// Whether more fragments follow, by the byte at [`FRAGMENT`].
#[inline(always)]
#[must_use]
pub const fn has_more_fragments(flags: u8) -> bool {
    flags & 0x20 != 0
}

/// How many frames an skb stands for: its segments; where the sender did not say how many (`SKB_GSO_DODGY`, virtio), as
/// many as its payload needs.
#[inline(always)]
#[must_use]
pub const fn frames_of(segments: u32, segment_size: u32, bytes: u64, headers: u64) -> u64 {
    if segments > 0 {
        return segments as u64;
    }
    if segment_size == 0 || bytes <= headers {
        return 1;
    }
    (bytes - headers).div_ceil(segment_size as u64)
}

/// Bytes on the wire of an skb that stands for several frames: each segment repeats the headers.
#[inline(always)]
#[must_use]
pub const fn wire_bytes(bytes: u64, frames: u64, headers: u64) -> u64 {
    if frames > 1 {
        bytes + (frames - 1) * headers
    } else {
        bytes
    }
}

/// Length of the headers that each segment repeats: Ethernet, IP, and TCP (`tcp_offset` is its data offset byte) or
/// UDP. `ip` are the first bytes of the IP header.
#[inline(always)]
#[must_use]
pub const fn segment_headers(is_ipv6: bool, version_byte: u8, protocol: u8, tcp_offset: u8) -> u64 {
    let ip = if is_ipv6 { 40 } else { (version_byte & 0x0f) as u64 * 4 };
    let transport = if protocol == TCP {
        (tcp_offset >> 4) as u64 * 4
    } else {
        8
    };
    ETHERNET as u64 + ip + transport
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arp_frame(operation: u8, sender: [u8; 4], target: [u8; 4]) -> [u8; ARP] {
        let mut frame = [0; ARP];
        frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, operation]);
        frame[28..32].copy_from_slice(&sender);
        frame[38..42].copy_from_slice(&target);
        frame
    }

    #[test]
    fn a_header_is_read_from_words() {
        let first = u64::from_le_bytes([1, 2, 3, 4, 5, 6, 0x12, 0x13]);
        let last = u64::from_le_bytes([0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x08, 0x06]);
        let header = Header::of_words(first, last);
        assert_eq!(header.destination.bytes(), [1, 2, 3, 4, 5, 6]);
        assert_eq!(header.source, Mac::of([0x12, 0x13, 0x14, 0x15, 0x16, 0x17]));
        assert!(header.is_arp() && header.is_multicast());
        assert!(!header.is_ipv4() && !header.is_ipv6());
    }

    #[test]
    fn arp_requests_ask_and_replies_answer() {
        let (one, two) = ([198, 51, 100, 151], [198, 51, 100, 1]);
        assert_eq!(
            arp(&arp_frame(1, one, two)),
            Resolution {
                says: Says::Asks,
                address: mapped(two)
            }
        );
        assert_eq!(
            arp(&arp_frame(2, two, one)),
            Resolution {
                says: Says::Answers,
                address: mapped(two)
            }
        );
    }

    #[test]
    fn arp_probes_and_announcements_are_neither() {
        let own = [198, 51, 100, 151];
        assert_eq!(arp(&arp_frame(1, [0; 4], own)), Resolution::NONE, "probe (RFC 5227)");
        assert_eq!(arp(&arp_frame(1, own, own)), Resolution::NONE, "gratuitous");
        let mut other = arp_frame(1, own, [198, 51, 100, 1]);
        other[19] = 16;
        assert_eq!(arp(&other), Resolution::NONE, "not for IPv4");
    }

    fn neighbour_frame(kind: u8, source: u8, target: u8) -> [u8; NEIGHBOUR] {
        let mut frame = [0; NEIGHBOUR];
        frame[20] = ICMPV6;
        frame[37] = source;
        frame[54] = kind;
        frame[77] = target;
        frame
    }

    #[test]
    fn solicitations_ask_unless_they_detect_duplicates() {
        let mut target = [0; 16];
        target[15] = 9;
        assert_eq!(
            neighbour(&neighbour_frame(135, 1, 9)),
            Resolution {
                says: Says::Asks,
                address: target
            }
        );
        assert_eq!(neighbour(&neighbour_frame(135, 0, 9)), Resolution::NONE);
        assert_eq!(
            neighbour(&neighbour_frame(136, 1, 9)),
            Resolution {
                says: Says::Answers,
                address: target
            }
        );
        assert_eq!(
            neighbour(&neighbour_frame(134, 1, 9)),
            Resolution::NONE,
            "router advertisement"
        );
    }

    #[test]
    fn each_segment_repeats_the_headers() {
        assert_eq!(segment_headers(false, 0x45, 6, 0x80), 14 + 20 + 32);
        assert_eq!(segment_headers(true, 0x60, 17, 0), 14 + 40 + 8);
        assert_eq!(wire_bytes(2_962, 2, 66), 3_028);
        assert_eq!(wire_bytes(1_514, 1, 66), 1_514);
    }

    #[test]
    fn an_skb_is_as_many_frames_as_it_has_segments() {
        assert_eq!(frames_of(0, 0, 60, 0), 1, "no GSO");
        assert_eq!(frames_of(45, 1_448, 65_212, 66), 45);
        assert_eq!(frames_of(0, 1_448, 66 + 1_448 * 2 + 1, 66), 3, "virtio without a count");
    }
}
