//! What is to be there, worked out from what was asked for: ids, marks, MACs, normalized options. Pure, but for the
//! machine's id.

use std::{collections::BTreeSet, fs, net::IpAddr};

use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use super::record::{Origin, Record, Spec};
use crate::{
    config::{
        file::{Shim, ShimRoutes, SubInterface},
        values::{InterfaceName, Kind, Mode, NetnsRef},
    },
    topology::inventory::Inventory,
};

/// Begins the alias of every link that is ours.
pub const MARK: &str = "macvlan-agent:";

/// Linux gives IPv6 routes this metric when none is said.
const METRIC_OF_IPV6: u32 = 1024;

/// A sub-interface or shim as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its id: it stays the same while namespace and name do.
    pub id: String,
    /// What people call it: `macv1`, `net1/macv1`.
    pub label: String,
    /// Who asked for it.
    pub origin: Origin,
    /// What was asked for.
    pub spec: Spec,
    /// The inode of its namespace; or why that cannot be had, now or at all.
    pub place: Result<u32, Absence>,
    /// Its name.
    pub name: String,
    /// Its parent's name.
    pub parent: String,
    /// Macvlan or macvtap.
    pub kind: Kind,
    /// Its mode.
    pub mode: Mode,
    /// Its MAC; none where it has its parent's.
    pub mac: Option<[u8; 6]>,
    /// Its MTU, if one was asked for.
    pub mtu: Option<u32>,
    /// Its flags.
    pub flags: u16,
    /// Its source MACs, in order.
    pub source_macs: Vec<[u8; 6]>,
    /// The length of the broadcast queue, if one was asked for.
    pub queue: Option<u32>,
    /// The cut-off of the broadcast queue, if one was asked for.
    pub cutoff: Option<i32>,
    /// Its whole alias.
    pub alias: String,
    /// Whether it is to be up.
    pub up: bool,
    /// Its addresses.
    pub addresses: Vec<WantedAddress>,
    /// Its routes.
    pub routes: BTreeSet<WantedRoute>,
}

/// Why a namespace cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absence {
    /// It is not there; it may come.
    NotYet(String),
    /// It never will, as it was asked for.
    Never(String),
}

/// An address as it is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WantedAddress {
    /// The address and its network.
    pub address: IpNet,
    /// The host has it already, on another link: no detection of duplicates.
    pub shared: bool,
}

/// A route as it is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WantedRoute {
    /// Where it leads.
    pub to: IpNet,
    /// By way of which neighbour.
    pub via: Option<IpAddr>,
    /// Its metric, as the kernel tells it.
    pub metric: u32,
}

impl WantedRoute {
    fn new(to: IpNet, via: Option<IpAddr>, metric: Option<u32>) -> Self {
        let usual = if to.addr().is_ipv6() { METRIC_OF_IPV6 } else { 0 };
        Self {
            to,
            via,
            // Linux takes 0 for "the usual one" with IPv6.
            metric: metric.filter(|metric| *metric > 0).unwrap_or(usual),
        }
    }
}

/// The mark of something with this id.
#[must_use]
pub fn mark(id: &str) -> String {
    format!("{MARK}{id}")
}

/// Whether an alias is the mark of `id`, with or without text of the user's behind it.
#[must_use]
pub fn is_marked(alias: Option<&str>, id: &str) -> bool {
    let rest = alias
        .and_then(|alias| alias.strip_prefix(MARK))
        .and_then(|rest| rest.strip_prefix(id));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
}

/// What people call an interface in a namespace.
#[must_use]
pub fn label(netns: Option<&NetnsRef>, name: &InterfaceName) -> String {
    match netns {
        Some(netns) => format!("{netns}/{name}"),
        None => name.to_string(),
    }
}

/// The id of a sub-interface or shim.
#[must_use]
pub fn id(netns: Option<&NetnsRef>, name: &InterfaceName) -> String {
    let digest = digest(&["id", &label(netns, name)]);
    digest[..6].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The id of a VLAN device.
#[must_use]
pub fn parent_id(name: &str) -> String {
    let digest = digest(&["parent", name]);
    digest[..6].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn digest(parts: &[&str]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.finalize().into()
}

/// What MACs are derived from beside namespace and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine(String);

impl Machine {
    /// The machine's id; where it has none, a random number of the record's.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        let id = fs::read_to_string("/etc/machine-id").unwrap_or_default();
        let id = id.trim();
        Self(if id.is_empty() {
            format!("seed {}", record.seed)
        } else {
            id.to_owned()
        })
    }

    /// A MAC that is always the same for the same namespace and name.
    fn mac(&self, label: &str) -> [u8; 6] {
        let digest = digest(&["mac", &self.0, label]);
        // Administered locally, unicast.
        [
            digest[0] & 0xfc | 2,
            digest[1],
            digest[2],
            digest[3],
            digest[4],
            digest[5],
        ]
    }
}

/// A sub-interface as it is to be.
#[must_use]
pub fn sub_interface(machine: &Machine, origin: Origin, spec: &SubInterface, place: Result<u32, Absence>) -> Wanted {
    let netns = spec.netns.as_ref();
    let (id, label) = (id(netns, &spec.name), label(netns, &spec.name));
    let mac = spec.mac.map_or_else(|| machine.mac(&label), |mac| mac.0);
    let mut source_macs: Vec<_> = spec.source_macs.iter().map(|mac| mac.0).collect();
    source_macs.sort_unstable();
    source_macs.dedup();
    let alias = match &spec.alias {
        Some(text) => format!("{} {text}", mark(&id)),
        None => mark(&id),
    };
    let gateways = spec.gateway.0.iter().map(|gateway| {
        let any = if gateway.is_ipv4() {
            IpNet::V4(ipnet::Ipv4Net::default())
        } else {
            IpNet::V6(ipnet::Ipv6Net::default())
        };
        WantedRoute::new(any, Some(*gateway), None)
    });
    let routes = spec.routes.iter();
    let routes = routes.map(|route| WantedRoute::new(route.to.0, route.via, route.metric));
    Wanted {
        label,
        origin,
        spec: Spec::SubInterface(spec.clone()),
        place,
        name: spec.name.to_string(),
        parent: spec.parent.to_string(),
        kind: spec.kind,
        mode: spec.mode,
        mac: (spec.mode != Mode::Passthru).then_some(mac),
        mtu: spec.mtu,
        flags: spec.flags.iter().fold(0, |flags, flag| flags | flag.bit()),
        source_macs,
        queue: spec.bc_queue_len,
        cutoff: spec.bc_cutoff,
        alias,
        up: spec.up,
        addresses: spec
            .addresses
            .iter()
            .map(|address| WantedAddress {
                address: address.0,
                shared: false,
            })
            .collect(),
        routes: gateways.chain(routes).collect(),
        id,
    }
}

/// A shim as it is to be: `own` is the inode of the agent's namespace, `parent_addresses` those of its parent.
#[must_use]
pub fn shim(
    machine: &Machine,
    origin: Origin,
    spec: &Shim,
    own: u32,
    parent_addresses: &[IpAddr],
    inventory: &Inventory,
) -> Wanted {
    let id = id(None, &spec.name);
    let targets: BTreeSet<IpNet> = match &spec.routes {
        ShimRoutes::To(networks) => networks.iter().map(|network| network.0).collect(),
        ShimRoutes::Auto => behind(inventory, own, spec.parent.as_str())
            .into_iter()
            .filter(|ip| !parent_addresses.contains(ip) && spec.address.is_none_or(|own| own.0.addr() != *ip))
            .map(IpNet::from)
            .collect(),
    };
    let mut addresses: Vec<WantedAddress> = spec
        .address
        .iter()
        .map(|address| WantedAddress {
            address: address.0,
            shared: false,
        })
        .collect();
    // For a family without an address of its own the shim answers for the parent's.
    for ip in parent_addresses.iter().filter(|ip| !link_local(ip)) {
        let own = spec
            .address
            .is_some_and(|address| address.0.addr().is_ipv4() == ip.is_ipv4());
        let needed = targets.iter().any(|target| target.addr().is_ipv4() == ip.is_ipv4());
        let first = !addresses
            .iter()
            .any(|address| address.address.addr().is_ipv4() == ip.is_ipv4());
        if !own && (needed || spec.address.is_none() && ip.is_ipv4()) && first {
            addresses.push(WantedAddress {
                address: IpNet::from(*ip),
                shared: true,
            });
        }
    }
    // A route needs an address to send from.
    let sendable = |to: &IpNet| {
        addresses
            .iter()
            .any(|own| own.address.addr().is_ipv4() == to.addr().is_ipv4())
    };
    Wanted {
        label: spec.name.to_string(),
        origin,
        spec: Spec::Shim(spec.clone()),
        place: Ok(own),
        name: spec.name.to_string(),
        parent: spec.parent.to_string(),
        kind: Kind::Macvlan,
        mode: Mode::Bridge,
        mac: Some(machine.mac(spec.name.as_str())),
        mtu: None,
        flags: 0,
        source_macs: Vec::new(),
        queue: None,
        cutoff: None,
        alias: mark(&id),
        up: true,
        routes: targets
            .into_iter()
            .filter(sendable)
            .map(|to| WantedRoute::new(to, None, None))
            .collect(),
        addresses,
        id,
    }
}

/// The addresses of the sub-interfaces of a parent in other namespaces than its own.
pub(super) fn behind(inventory: &Inventory, own: u32, parent: &str) -> BTreeSet<IpAddr> {
    let on_parent = |key| {
        let parent_there = inventory.parents.get(key);
        parent_there.is_some_and(|there| there.key.netns == own && there.name == parent)
    };
    let subs = inventory.sub_interfaces.values();
    subs.filter(|sub| sub.key.netns != own && sub.up && on_parent(&sub.parent))
        .flat_map(|sub| sub.addresses.iter().copied())
        .filter(|ip| !link_local(ip))
        .collect()
}

fn link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> SubInterface {
        serde_saphyr::from_str(text).expect("valid")
    }

    #[test]
    fn ids_and_macs_are_stable_and_differ_by_namespace_and_name() {
        let machine = Machine("m".to_owned());
        let make = |text: &str| sub_interface(&machine, Origin::Config, &spec(text), Ok(1));
        let one = make("{name: macv1, parent: eth0, mode: bridge, netns: net1}");
        let same = make("{name: macv1, parent: eth1, mode: vepa, netns: net1, mtu: 1400}");
        let other = make("{name: macv1, parent: eth0, mode: bridge}");
        assert_eq!((&one.id, one.mac), (&same.id, same.mac));
        assert_ne!(one.id, other.id);
        assert_ne!(one.mac, other.mac);
        assert_eq!(one.mac.map(|mac| mac[0] & 3), Some(2));
        assert_eq!(one.label, "net1/macv1");
        assert_eq!(make("{name: p, parent: eth0, mode: passthru}").mac, None);
    }

    #[test]
    fn a_mark_is_whole_or_followed_by_the_users_text() {
        assert!(is_marked(Some("macvlan-agent:abc"), "abc"));
        assert!(is_marked(Some("macvlan-agent:abc the web server's"), "abc"));
        for alias in [None, Some("macvlan-agent:abcd"), Some("abc"), Some("macvlan-agent:")] {
            assert!(!is_marked(alias, "abc"), "{alias:?}");
        }
    }

    #[test]
    fn a_gateway_is_a_default_route_with_the_kernels_metric() {
        let text = "{name: a, parent: eth0, mode: bridge, addresses: [198.51.100.9/24, \"2001:db8::9/64\"], \
                    gateway: [198.51.100.1, \"2001:db8::1\"]}";
        let wanted = sub_interface(&Machine("m".to_owned()), Origin::Config, &spec(text), Ok(1));
        let routes: Vec<_> = wanted
            .routes
            .iter()
            .map(|route| (route.to.to_string(), route.metric))
            .collect();
        assert_eq!(routes, [("0.0.0.0/0".to_owned(), 0), ("::/0".to_owned(), 1024)]);
    }
}
