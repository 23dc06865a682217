//! What is asked of the kernel for each step.

use std::{fs, io, net::IpAddr, path::Path};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{
        InfoData, InfoKind, InfoMacVlan, LinkAttribute, LinkInfo, LinkMessage, MacVlanFlags, MacVlanMacAddressMode,
        MacVlanMode,
    },
    route::{RouteMessage, RouteScope},
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};

use crate::{
    config::values::{Kind, Mode},
    manage::{
        record::Spec,
        state::{self, ROUTE_PROTOCOL},
        step::Step,
        wanted::{Wanted, WantedAddress, WantedRoute},
        wire::{Refusal, Wire},
    },
};

/// The index of the link with a name.
pub(super) fn index_of(wire: &mut Wire, name: &str) -> Result<u32, Refusal> {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    let answers = wire.get(RouteNetlinkMessage::GetLink(message))?;
    let link = answers.iter().find_map(|(_, payload)| state::parse_link(payload));
    link.map(|link| link.index()).ok_or(Refusal {
        errno: libc::ENODEV,
        text: None,
    })
}

/// Deletes links; more than one as a group of their own.
pub(super) fn delete(wire: &mut Wire, indexes: &[u32], group: u32) -> Result<(), Refusal> {
    let by_index = |index: u32| {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message
    };
    if let [index] = indexes {
        return match wire.change(RouteNetlinkMessage::DelLink(by_index(*index)), 0) {
            Err(refusal) if refusal.errno == libc::ENODEV => Ok(()),
            other => other,
        };
    }
    for index in indexes {
        let message = LinkUnspec::new_with_index(*index).link_group(group).build();
        match wire.change(RouteNetlinkMessage::NewLink(message), 0) {
            Err(refusal) if refusal.errno == libc::ENODEV => {}
            other => other?,
        }
    }
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::Group(group)];
    match wire.change(RouteNetlinkMessage::DelLink(message), 0) {
        Err(refusal) if refusal.errno == libc::ENODEV => Ok(()),
        other => other,
    }
}

/// Makes a sub-interface: down, with its addresses, then marked and set up at once, then its routes. Whatever is refused
/// takes the whole of it back.
pub(super) fn create(
    wire: &mut Wire,
    host_nsid: Option<i32>,
    wanted: &Wanted,
    parent: Option<u32>,
    group: u32,
) -> Result<(), (Step, Refusal)> {
    let fail = |step: Step| move |refusal: Refusal| (step, refusal);
    let parent = parent.ok_or(Refusal {
        errno: libc::ENODEV,
        text: None,
    });
    let message = new_link(wanted, parent.map_err(fail(Step::Create))?, host_nsid, group);
    wire.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
        .map_err(fail(Step::Create))?;
    let finish = |wire: &mut Wire| -> Result<(), (Step, Refusal)> {
        if matches!(wanted.spec, Spec::Shim(_)) {
            keep_quiet(&wanted.name).map_err(|error| (Step::Create, error.into()))?;
        }
        // Its index is asked for only where it has to be said.
        let by_index = !wanted.addresses.is_empty() || !wanted.routes.is_empty();
        let index = if by_index {
            index_of(wire, &wanted.name).map_err(fail(Step::Create))?
        } else {
            0
        };
        for address in &wanted.addresses {
            let step = Step::AddAddress(address.address, address.shared);
            perform(wire, index, &step, wanted.kind).map_err(fail(step))?;
        }
        let link = LinkUnspec::new_with_name(&wanted.name);
        let mut message: LinkMessageBuilder<LinkUnspec> = link.alias(&wanted.alias);
        if wanted.up {
            message = message.up();
        }
        let step = if wanted.up { Step::Up } else { Step::Create };
        wire.change(RouteNetlinkMessage::NewLink(message.build()), 0)
            .map_err(fail(step))?;
        for route in &wanted.routes {
            let step = Step::AddRoute(*route);
            perform(wire, index, &step, wanted.kind).map_err(fail(step))?;
        }
        Ok(())
    };
    let finished = finish(wire);
    if finished.is_err() {
        // Where it has gone already, all is well.
        let _ = index_of(wire, &wanted.name).and_then(|index| delete(wire, &[index], 0));
    }
    finished
}

/// A shim listens to no router: it would give the host addresses and routes that nobody asked for.
fn keep_quiet(name: &str) -> io::Result<()> {
    let path = format!("/proc/sys/net/ipv6/conf/{name}/accept_ra");
    if !Path::new(&path).exists() {
        return Ok(());
    }
    fs::write(path, "0")
}

fn new_link(wanted: &Wanted, parent: u32, host_nsid: Option<i32>, group: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    let attributes = &mut message.attributes;
    attributes.push(LinkAttribute::IfName(wanted.name.clone()));
    attributes.push(LinkAttribute::Link(parent));
    if let Some(id) = host_nsid {
        attributes.push(LinkAttribute::LinkNetNsId(id));
    }
    if let Some(mac) = wanted.mac {
        attributes.push(LinkAttribute::Address(mac.to_vec()));
    }
    if let Some(mtu) = wanted.mtu {
        attributes.push(LinkAttribute::Mtu(mtu));
    }
    attributes.push(LinkAttribute::Group(group));
    let mut data = vec![InfoMacVlan::Mode(kernel_mode(wanted.mode))];
    if wanted.flags != 0 {
        data.push(InfoMacVlan::Flags(MacVlanFlags::from_bits_retain(wanted.flags)));
    }
    if !wanted.source_macs.is_empty() {
        data.extend(source_macs(&wanted.source_macs));
    }
    data.extend(wanted.queue.map(InfoMacVlan::BcQueueLen));
    data.extend(wanted.cutoff.map(InfoMacVlan::BcCutoff));
    attributes.push(info(wanted.kind, data));
    message
}

fn info(kind: Kind, data: Vec<InfoMacVlan>) -> LinkAttribute {
    let kind = match kind {
        Kind::Macvlan => InfoKind::MacVlan,
        Kind::Macvtap => InfoKind::MacVtap,
    };
    // macvtap has macvlan's attributes.
    LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(InfoData::MacVlan(data))])
}

fn source_macs(macs: &[[u8; 6]]) -> [InfoMacVlan; 2] {
    [
        InfoMacVlan::MacAddrMode(MacVlanMacAddressMode::Set),
        InfoMacVlan::MacAddrData(macs.iter().map(|mac| InfoMacVlan::MacAddr(*mac)).collect()),
    ]
}

fn kernel_mode(mode: Mode) -> MacVlanMode {
    match mode {
        Mode::Private => MacVlanMode::Private,
        Mode::Vepa => MacVlanMode::Vepa,
        Mode::Bridge => MacVlanMode::Bridge,
        Mode::Passthru => MacVlanMode::Passthrough,
        Mode::Source => MacVlanMode::Source,
    }
}

/// One step on the link with an index.
pub(super) fn perform(wire: &mut Wire, index: u32, step: &Step, kind: Kind) -> Result<(), Refusal> {
    let link = || LinkUnspec::new_with_index(index);
    let options = |data: Vec<InfoMacVlan>| {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![info(kind, data)];
        message
    };
    let message = match step {
        Step::Create => return Ok(()),
        Step::Delete(_) => return delete(wire, &[index], 0),
        Step::Rename(change) => return rename(wire, index, &change.to),
        Step::Mode(change) => {
            let mode = change.to.parse().unwrap_or(Mode::Vepa);
            options(vec![InfoMacVlan::Mode(kernel_mode(mode))])
        }
        Step::Flags(change) => options(vec![InfoMacVlan::Flags(MacVlanFlags::from_bits_retain(change.to))]),
        Step::SourceMacs(change) => options(source_macs(&change.to).to_vec()),
        Step::BcQueueLen(change) => options(vec![InfoMacVlan::BcQueueLen(change.to)]),
        Step::BcCutoff(change) => options(vec![InfoMacVlan::BcCutoff(change.to)]),
        Step::Mac(change) => link().address(change.to.0.to_vec()).build(),
        Step::Mtu(change) => link().mtu(change.to).build(),
        Step::Alias(change) => link().alias(&change.to).build(),
        Step::Up => link().up().build(),
        Step::Down => link().down().build(),
        Step::AddAddress(address, shared) => {
            let wanted = WantedAddress {
                address: *address,
                shared: *shared,
            };
            let message = RouteNetlinkMessage::NewAddress(address_message(index, wanted));
            return wire.change(message, NLM_F_CREATE | NLM_F_REPLACE);
        }
        Step::RemoveAddress(address) => {
            let wanted = WantedAddress {
                address: *address,
                shared: false,
            };
            return wire.change(RouteNetlinkMessage::DelAddress(address_message(index, wanted)), 0);
        }
        Step::AddRoute(route) => {
            let message = RouteNetlinkMessage::NewRoute(route_message(index, *route));
            return wire.change(message, NLM_F_CREATE | NLM_F_EXCL);
        }
        Step::RemoveRoute(route) => {
            return wire.change(RouteNetlinkMessage::DelRoute(route_message(index, *route)), 0);
        }
    };
    wire.change(RouteNetlinkMessage::NewLink(message), 0)
}

/// Kernels before 6.2 rename no link that is up.
fn rename(wire: &mut Wire, index: u32, name: &str) -> Result<(), Refusal> {
    let link = || LinkUnspec::new_with_index(index);
    let renamed = RouteNetlinkMessage::NewLink(link().name(name).build());
    match wire.change(renamed.clone(), 0) {
        Err(refusal) if refusal.errno == libc::EBUSY => {
            wire.change(RouteNetlinkMessage::NewLink(link().down().build()), 0)?;
            let result = wire.change(renamed, 0);
            wire.change(RouteNetlinkMessage::NewLink(link().up().build()), 0)?;
            result
        }
        other => other,
    }
}

fn address_message(index: u32, wanted: WantedAddress) -> AddressMessage {
    let (ip, length) = (wanted.address.addr(), wanted.address.prefix_len());
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = length;
    message.header.scope = AddressScope::Universe;
    message.header.family = if ip.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    if let ipnet::IpNet::V4(network) = wanted.address
        && length < 31
    {
        message
            .attributes
            .push(AddressAttribute::Broadcast(network.broadcast()));
    }
    if wanted.shared && ip.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message
}

fn route_message(index: u32, route: WantedRoute) -> RouteMessage {
    let scope = if route.via.is_some() {
        RouteScope::Universe
    } else {
        RouteScope::Link
    };
    let protocol = ROUTE_PROTOCOL.into();
    let mut message = match (route.to, route.via) {
        (ipnet::IpNet::V4(to), via) => {
            let mut builder = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .destination_prefix(to.addr(), to.prefix_len())
                .output_interface(index)
                .protocol(protocol)
                .scope(scope);
            if let Some(IpAddr::V4(via)) = via {
                builder = builder.gateway(via);
            }
            builder.build()
        }
        (ipnet::IpNet::V6(to), via) => {
            let mut builder = RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .destination_prefix(to.addr(), to.prefix_len())
                .output_interface(index)
                .protocol(protocol);
            if let Some(IpAddr::V6(via)) = via {
                builder = builder.gateway(via);
            }
            builder.build()
        }
    };
    if route.metric > 0 {
        message
            .attributes
            .push(netlink_packet_route::route::RouteAttribute::Priority(route.metric));
    }
    message
}
