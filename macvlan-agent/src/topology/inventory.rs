//! What there is, as facts: parents, sub-interfaces, addresses. Pure values; `tracker` makes them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use super::link::{Kind, LinkKey, Mode};

/// A link that at least one known sub-interface stands on.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Parent {
    /// Where it is.
    pub key: LinkKey,
    /// Its name there.
    pub name: String,
    /// The label of its namespace.
    pub netns: String,
    /// Its name when it is in the agent's own namespace, else `LABEL/NAME`.
    pub display: String,
    /// Its MAC.
    pub mac: [u8; 6],
    /// Set up by an administrator (`IFF_UP`).
    pub up: bool,
    /// Its MTU.
    pub mtu: u32,
    /// How many ask it to be promiscuous. The kernel tells when this becomes 0 or ceases to be, not other changes.
    pub promiscuity: u32,
    /// What `ip link` calls its type: `veth`, `bond`, `vlan`, `bridge`, `dummy`; `physical` when it has none.
    pub kind: String,
    /// The length of the broadcast queue in use, as its sub-interfaces tell it; since Linux 5.11.
    pub broadcast_queue_limit: Option<u32>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// How many MACs it receives frames for that no known link has; none where that cannot be asked.
    pub unknown_macs: Option<usize>,
}

/// A macvlan or macvtap device.
#[derive(Clone, Eq, PartialEq, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts that netlink tells")]
pub struct SubInterface {
    /// Which incarnation this is. Kept over a new name, MAC, mode or namespace; a link that is created again has another.
    pub id: u64,
    /// Where it is.
    pub key: LinkKey,
    /// Its parent, which is always among the parents of the same inventory.
    pub parent: LinkKey,
    /// Its name there.
    pub name: String,
    /// The label of its namespace.
    pub netns: String,
    /// Its MAC.
    pub mac: [u8; 6],
    /// Its mode.
    pub mode: Mode,
    /// Macvlan or macvtap.
    pub kind: Kind,
    /// Set up by an administrator (`IFF_UP`).
    pub up: bool,
    /// Whether its parent is down or has no carrier (`IFLA_OPERSTATE`).
    pub no_carrier: bool,
    /// Whether, in mode source, the parent does not see what it takes.
    pub keeps_source: bool,
    /// Its MTU.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it was made while its namespace was followed: then the kernel's counters of it began with it.
    pub born: bool,
}

/// What is known at one time.
#[derive(Clone, Default, Eq, PartialEq, Debug)]
pub struct Inventory {
    /// The parents.
    pub parents: BTreeMap<LinkKey, Parent>,
    /// The sub-interfaces, by their id.
    pub sub_interfaces: BTreeMap<u64, Arc<SubInterface>>,
    /// Of each namespace (by inode) that holds a parent, all its IPv4 addresses, whichever link they are on: Linux
    /// answers for any of them on every link. Without 127.0.0.0/8.
    pub host_ipv4: BTreeMap<u32, BTreeSet<Ipv4Addr>>,
    /// Which sub-interfaces get no counts of their own, since the configuration limits how many do.
    pub over_limit: BTreeSet<u64>,
    /// How many sub-interfaces went or moved until now.
    pub departures: u64,
    /// How many times a namespace was dumped anew because something had been lost.
    pub netlink_resyncs: u64,
    /// All namespaces that there were at the start have been read (or are unreadable).
    pub complete: bool,
    /// The namespaces that could not be read: label and reason.
    pub unreadable: Vec<(String, String)>,
    /// The namespaces (by inode) that a file keeps alive: to hold one of the others open would keep it from ending.
    pub mounted: BTreeSet<u32>,
    /// What is missing for seeing everything at once.
    pub problems: Vec<String>,
}
