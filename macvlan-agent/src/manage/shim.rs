//! Whether a shim does what it is for: the kernel is asked for the route to each sub-interface, and each for its MAC.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage},
    route::{RouteAddress, RouteAttribute, RouteMessage},
};
use serde::{Deserialize, Serialize};

use super::{
    state,
    wire::{Refusal, Wire},
};
use crate::topology::link::{attributes, number};

/// How long a sub-interface may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// So many are asked; with more, the first say enough.
const MOST: usize = 64;

/// What became of the way to one address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// The address.
    pub address: IpAddr,
    /// The kernel sends to it through the shim.
    pub routed: bool,
    /// It answered before there was a shim.
    pub answered_before: bool,
    /// It answers through the shim.
    pub answers: bool,
}

impl Reach {
    /// A line for people.
    #[must_use]
    pub fn text(&self) -> String {
        let ip = self.address;
        match (self.routed, self.answers) {
            (false, _) => format!(
                "{ip}: the kernel does not send to it through the shim: another route is preferred, or the parent has no \
                 address of its family"
            ),
            (true, true) => format!("{ip}: answers through the shim"),
            (true, false) => {
                format!("{ip}: does not answer through the shim (is its sub-interface up, and in mode bridge?)")
            }
        }
    }

    /// Whether the shim made it worse.
    #[must_use]
    pub fn is_worse(&self) -> bool {
        self.answered_before && !self.answers
    }
}

/// Out of which link the kernel sends to an address.
pub fn link_towards(wire: &mut Wire, ip: IpAddr) -> Result<Option<u32>, Refusal> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(ip);
    message.header.destination_prefix_length = if ip.is_ipv4() { 32 } else { 128 };
    message.attributes = vec![RouteAttribute::Destination(match ip {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    })];
    match wire.get(RouteNetlinkMessage::GetRoute(message)) {
        Ok(answers) => Ok(answers
            .iter()
            .find_map(|(_, payload)| state::parse_route(payload))
            .map(|route| route.ifindex)),
        Err(refusal) if [libc::ENETUNREACH, libc::EHOSTUNREACH].contains(&refusal.errno) => Ok(None),
        Err(refusal) => Err(refusal),
    }
}

/// Asks each address for its MAC on a link, by the kernel's own neighbour discovery; tells which answered.
pub fn ask(wire: &mut Wire, ifindex: u32, addresses: &[IpAddr]) -> Result<BTreeMap<IpAddr, bool>, Refusal> {
    let asked = &addresses[..addresses.len().min(MOST)];
    for ip in asked {
        let mut message = NeighbourMessage::default();
        message.header.family = family(*ip);
        message.header.ifindex = ifindex;
        message.header.flags = NeighbourFlags::Use;
        message.attributes = vec![NeighbourAttribute::Destination(match ip {
            IpAddr::V4(ip) => NeighbourAddress::Inet(*ip),
            IpAddr::V6(ip) => NeighbourAddress::Inet6(*ip),
        })];
        wire.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE)?;
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let states = neighbours(wire, ifindex)?;
        let answers: BTreeMap<IpAddr, bool> = asked
            .iter()
            .map(|ip| (*ip, states.get(ip).is_some_and(|state| state & ANSWERED != 0)))
            .collect();
        let open = asked
            .iter()
            .any(|ip| states.get(ip).is_some_and(|state| state & INCOMPLETE != 0));
        if !open || Instant::now() > deadline {
            return Ok(answers);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `NUD_INCOMPLETE`.
const INCOMPLETE: u16 = 0x01;

/// `NUD_REACHABLE`, `NUD_STALE`, `NUD_DELAY`, `NUD_PROBE`, `NUD_PERMANENT`.
const ANSWERED: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x80;

fn neighbours(wire: &mut Wire, ifindex: u32) -> Result<BTreeMap<IpAddr, u16>, Refusal> {
    const NDA_DST: u16 = 1;
    let answers = wire.dump(&RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()))?;
    Ok(answers
        .iter()
        .filter_map(|(_, payload)| {
            // struct ndmsg: family u8, pad u8 u16, ifindex i32, state u16, flags u8, type u8
            let (header, rest) = payload.split_at_checked(12)?;
            (number(&header[4..])? == ifindex).then_some(())?;
            let state = u16::from_ne_bytes([header[8], header[9]]);
            let (_, value) = attributes(rest).find(|(kind, _)| *kind == NDA_DST)?;
            let ip = match value.len() {
                4 => IpAddr::from(<[u8; 4]>::try_from(value).ok()?),
                16 => IpAddr::from(<[u8; 16]>::try_from(value).ok()?),
                _ => return None,
            };
            Some((ip, state))
        })
        .collect())
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}
