//! What is asked of the kernel. Pure: bytes.

use std::os::fd::AsRawFd as _;

use super::Peer;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;

/// A request. `flags` come on top of `NLM_F_REQUEST`.
#[must_use]
pub fn request(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut request = Vec::with_capacity(16 + payload.len());
    let length = u32::try_from(16 + payload.len()).unwrap_or(u32::MAX);
    request.extend(length.to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend((flags | NLM_F_REQUEST).to_ne_bytes());
    request.extend(sequence.to_ne_bytes());
    request.extend([0; 4]);
    request.extend(payload);
    request
}

/// Asks for all links of the namespace with the id `target`, or of the socket's own. Without `statistics` the answer leaves
/// those out, which would be a fifth of it.
#[must_use]
pub fn links_request(sequence: u32, target: Option<i32>, statistics: bool) -> Vec<u8> {
    const IFLA_EXT_MASK: u16 = 29;
    const IFLA_TARGET_NETNSID: u16 = 46;
    const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
    // struct ifinfomsg
    let mut payload = vec![0; 16];
    if !statistics {
        payload.extend(attribute(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS));
    }
    if let Some(target) = target {
        payload.extend(attribute(IFLA_TARGET_NETNSID, target.cast_unsigned()));
    }
    request(libc::RTM_GETLINK, NLM_F_DUMP, sequence, &payload)
}

/// Asks for all addresses of the namespace with the id `target`, or of the socket's own.
#[must_use]
pub fn addresses_request(sequence: u32, target: Option<i32>) -> Vec<u8> {
    const IFA_TARGET_NETNSID: u16 = 10;
    // struct ifaddrmsg
    let mut payload = vec![0; 8];
    if let Some(target) = target {
        payload.extend(attribute(IFA_TARGET_NETNSID, target.cast_unsigned()));
    }
    request(libc::RTM_GETADDR, NLM_F_DUMP, sequence, &payload)
}

/// Asks for the counters of all links (`IFLA_STATS_LINK_64`).
#[must_use]
pub fn statistics_request(sequence: u32) -> Vec<u8> {
    const LINK_64: u32 = 1;
    // struct if_stats_msg: family and padding, ifindex, filter_mask
    let mut payload = vec![0; 8];
    payload.extend(LINK_64.to_ne_bytes());
    request(libc::RTM_GETSTATS, NLM_F_DUMP, sequence, &payload)
}

/// Asks for the addresses that a link receives frames for (what `bridge fdb show dev` calls `self permanent`).
#[must_use]
pub fn unicast_request(sequence: u32, ifindex: u32) -> Vec<u8> {
    // struct ifinfomsg, in the place of ndmsg: the kernel tells them apart by their length.
    let mut payload = vec![0; 16];
    payload[0] = u8::try_from(libc::AF_BRIDGE).unwrap_or_default();
    payload[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    request(libc::RTM_GETNEIGH, NLM_F_DUMP, sequence, &payload)
}

/// Asks which id `peer` has in the namespace with the id `target`, or in the socket's own.
#[must_use]
pub fn nsid_request(sequence: u32, target: Option<i32>, peer: Peer<'_>) -> Vec<u8> {
    const NETNSA_TARGET_NSID: u16 = 4;
    let mut payload = nsid_payload(peer);
    if let Some(target) = target {
        payload.extend(attribute(NETNSA_TARGET_NSID, target.cast_unsigned()));
    }
    request(libc::RTM_GETNSID, 0, sequence, &payload)
}

/// Gives `peer` an id in the socket's namespace, whichever is free.
#[must_use]
pub fn assign_nsid_request(sequence: u32, peer: Peer<'_>) -> Vec<u8> {
    const NETNSA_NSID: u16 = 1;
    let mut payload = nsid_payload(peer);
    payload.extend(attribute(NETNSA_NSID, u32::MAX));
    request(libc::RTM_NEWNSID, NLM_F_ACK, sequence, &payload)
}

fn nsid_payload(peer: Peer<'_>) -> Vec<u8> {
    const NETNSA_NSID: u16 = 1;
    const NETNSA_FD: u16 = 3;
    // struct rtgenmsg and its padding
    let mut payload = vec![0; 4];
    match peer {
        Peer::File(file) => payload.extend(attribute(NETNSA_FD, file.as_raw_fd().cast_unsigned())),
        Peer::Id(id) => payload.extend(attribute(NETNSA_NSID, id.cast_unsigned())),
    }
    payload
}

fn attribute(kind: u16, value: u32) -> impl Iterator<Item = u8> {
    8_u16
        .to_ne_bytes()
        .into_iter()
        .chain(kind.to_ne_bytes())
        .chain(value.to_ne_bytes())
}
