//! What there is: the links, addresses and routes of a namespace, as far as managing them needs it.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use netlink_packet_core::Parseable as _;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::AddressMessage,
    link::LinkMessage as Link,
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage},
};

use super::wire::{Refusal, Wire};
use crate::topology::link::{self, LinkMessage, Mode, attributes, number};

/// The protocol number of the routes that are ours (`/etc/iproute2/rt_protos` gives it no name).
pub const ROUTE_PROTOCOL: u8 = 0x6d;

/// A link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkState {
    /// What every room knows of it.
    pub link: LinkMessage,
    /// `IFLA_IFALIAS`.
    pub alias: Option<String>,
    /// `IFLA_GROUP`.
    pub group: u32,
    /// `IFLA_MASTER`.
    pub master: Option<u32>,
    /// `IFLA_MACVLAN_FLAGS`.
    pub flags: u16,
    /// `IFLA_MACVLAN_MACADDR_DATA`, in order.
    pub source_macs: Vec<[u8; 6]>,
    /// `IFLA_MACVLAN_BC_CUTOFF`; the kernel tells it only when it is not 1.
    pub cutoff: i32,
    /// `IFLA_VLAN_ID`.
    pub vlan: Option<u16>,
}

impl LinkState {
    /// Its index.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.link.ifindex
    }

    /// Its mode, if it is a macvlan or macvtap.
    #[must_use]
    pub fn mode(&self) -> Option<Mode> {
        self.link.macvlan.as_ref().map(|macvlan| macvlan.mode)
    }
}

/// An address on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressState {
    /// The link.
    pub ifindex: u32,
    /// The address and its network.
    pub address: IpNet,
    /// `IFA_F_*`.
    pub flags: u32,
}

impl AddressState {
    /// Whether duplicate address detection is still under way.
    #[must_use]
    pub fn tentative(&self) -> bool {
        self.flags & libc::IFA_F_TENTATIVE != 0 && !self.duplicate()
    }

    /// Whether somebody else has it.
    #[must_use]
    pub fn duplicate(&self) -> bool {
        self.flags & libc::IFA_F_DADFAILED != 0
    }
}

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteState {
    /// Where it leads.
    pub to: IpNet,
    /// By way of which neighbour.
    pub via: Option<IpAddr>,
    /// Its metric.
    pub metric: u32,
    /// Out of which link.
    pub ifindex: u32,
    /// Who made it, `RTPROT_*`.
    pub protocol: u8,
}

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpaceState {
    /// What people call it.
    pub label: String,
    /// The id that the agent's own namespace has in it; none in that itself.
    pub host_nsid: Option<i32>,
    /// Its links.
    pub links: Vec<LinkState>,
    /// Their addresses.
    pub addresses: Vec<AddressState>,
    /// The routes in it that are ours.
    pub routes: Vec<RouteState>,
    /// The links' places in their list, by index and by name.
    by_index: HashMap<u32, usize>,
    by_name: HashMap<String, usize>,
}

impl SpaceState {
    /// Reads it all.
    pub fn read(wire: &mut Wire, label: String, host_nsid: Option<i32>) -> Result<Self, Refusal> {
        let links = links(wire)?;
        let places = || links.iter().enumerate();
        Ok(Self {
            label,
            host_nsid,
            by_index: places().map(|(place, link)| (link.index(), place)).collect(),
            by_name: places().map(|(place, link)| (link.link.name.clone(), place)).collect(),
            addresses: addresses(wire)?,
            routes: routes(wire)?,
            links,
        })
    }

    /// The link with an index.
    #[must_use]
    pub fn link(&self, index: u32) -> Option<&LinkState> {
        self.links.get(*self.by_index.get(&index)?)
    }

    /// The link with a name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&LinkState> {
        self.links.get(*self.by_name.get(name)?)
    }

    /// Whether a link of this namespace stands on the link `parent` of the agent's own.
    #[must_use]
    pub fn stands_on(&self, link: &LinkState, parent: u32) -> bool {
        link.link.link == Some(parent) && link.link.link_nsid == self.host_nsid
    }
}

/// All links.
pub fn links(wire: &mut Wire) -> Result<Vec<LinkState>, Refusal> {
    let answers = wire.dump(&RouteNetlinkMessage::GetLink(Link::default()))?;
    Ok(answers
        .iter()
        .filter(|(kind, _)| *kind == libc::RTM_NEWLINK)
        .filter_map(|(_, payload)| parse_link(payload))
        .collect())
}

/// All addresses.
pub fn addresses(wire: &mut Wire) -> Result<Vec<AddressState>, Refusal> {
    let answers = wire.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    Ok(answers
        .iter()
        .filter(|(kind, _)| *kind == libc::RTM_NEWADDR)
        .filter_map(|(_, payload)| parse_address(payload))
        .collect())
}

/// Our own routes of the main table, both families. The kernel leaves the others out: there may be a million of them.
pub fn routes(wire: &mut Wire) -> Result<Vec<RouteState>, Refusal> {
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = ROUTE_PROTOCOL.into();
        let answers = match wire.dump_of(&RouteNetlinkMessage::GetRoute(message)) {
            // The namespace has had no route yet, and so no such table.
            Err(refusal) if refusal.errno == libc::ENOENT => continue,
            other => other?,
        };
        let here = answers.iter().filter(|(kind, _)| *kind == libc::RTM_NEWROUTE);
        routes.extend(here.filter_map(|(_, payload)| parse_route(payload)));
    }
    Ok(routes)
}

/// `linux/if_link.h`.
mod ifla {
    pub(super) const MASTER: u16 = 10;
    pub(super) const LINKINFO: u16 = 18;
    pub(super) const IFALIAS: u16 = 20;
    pub(super) const GROUP: u16 = 27;
    pub(super) const INFO_DATA: u16 = 2;
    pub(super) const VLAN_ID: u16 = 1;
    pub(super) const MACVLAN_FLAGS: u16 = 2;
    pub(super) const MACVLAN_MACADDR_DATA: u16 = 5;
    pub(super) const MACVLAN_BC_CUTOFF: u16 = 9;
}

/// Reads the payload of an `RTM_NEWLINK`.
#[must_use]
pub fn parse_link(payload: &[u8]) -> Option<LinkState> {
    let mut state = LinkState {
        link: link::parse(payload)?,
        alias: None,
        group: 0,
        master: None,
        flags: 0,
        source_macs: Vec::new(),
        cutoff: 1,
        vlan: None,
    };
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            ifla::MASTER => state.master = number(value),
            ifla::IFALIAS => {
                state.alias = Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned());
            }
            ifla::GROUP => state.group = number(value)?,
            ifla::LINKINFO => {
                let data = attributes(value).find(|(kind, _)| *kind == ifla::INFO_DATA);
                let data = data.map(|(_, data)| data).unwrap_or_default();
                if state.link.macvlan.is_some() {
                    macvlan_options(&mut state, data);
                } else if state.link.kind.as_deref() == Some("vlan") {
                    let id = attributes(data).find(|(kind, _)| *kind == ifla::VLAN_ID);
                    state.vlan = id.and_then(|(_, value)| short(value));
                }
            }
            _ => {}
        }
    }
    Some(state)
}

fn macvlan_options(state: &mut LinkState, data: &[u8]) {
    for (kind, value) in attributes(data) {
        match kind {
            ifla::MACVLAN_FLAGS => state.flags = short(value).unwrap_or_default(),
            ifla::MACVLAN_MACADDR_DATA => {
                let macs = attributes(value).filter_map(|(_, mac)| <[u8; 6]>::try_from(mac).ok());
                state.source_macs = macs.collect();
                state.source_macs.sort_unstable();
            }
            ifla::MACVLAN_BC_CUTOFF => state.cutoff = number(value).map_or(1, u32::cast_signed),
            _ => {}
        }
    }
}

fn short(value: &[u8]) -> Option<u16> {
    value.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

fn parse_address(payload: &[u8]) -> Option<AddressState> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const IFA_FLAGS: u16 = 8;
    // struct ifaddrmsg: family u8, prefixlen u8, flags u8, scope u8, index u32
    let (header, rest) = payload.split_at_checked(8)?;
    let find = |wanted| {
        attributes(rest)
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, value)| value)
    };
    let value = find(IFA_LOCAL).or_else(|| find(IFA_ADDRESS))?;
    let ip = match i32::from(header[0]) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?)),
        libc::AF_INET6 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?)),
        _ => return None,
    };
    Some(AddressState {
        ifindex: number(&header[4..])?,
        address: IpNet::new(ip, header[1]).ok()?,
        flags: find(IFA_FLAGS).and_then(number).unwrap_or_else(|| header[2].into()),
    })
}

/// Reads a route; none for one of another table, kind or family.
pub(super) fn parse_route(payload: &[u8]) -> Option<RouteState> {
    let message = RouteMessage::parse(payload).ok()?;
    let mut table = u32::from(message.header.table);
    let (mut to, mut via, mut metric, mut ifindex) = (None, None, 0, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(address) => to = ip(address),
            RouteAttribute::Gateway(address) => via = ip(address),
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::Oif(number) => ifindex = *number,
            _ => {}
        }
    }
    let any: IpAddr = match u8::from(message.header.address_family) {
        family if i32::from(family) == libc::AF_INET => Ipv4Addr::UNSPECIFIED.into(),
        family if i32::from(family) == libc::AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let unicast = u8::from(message.header.kind) == libc::RTN_UNICAST;
    (table == u32::from(libc::RT_TABLE_MAIN) && unicast).then_some(())?;
    Some(RouteState {
        to: IpNet::new(to.unwrap_or(any), message.header.destination_prefix_length).ok()?,
        via,
        metric,
        ifindex,
        protocol: message.header.protocol.into(),
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
