//! Parents by the dozen, each with its wire and its sub-interfaces, in a few namespaces: made in one go, because an
//! emulated machine takes its time for each connection and each namespace.

use std::{
    collections::HashMap,
    fs,
    net::Ipv4Addr,
    os::fd::{AsRawFd, RawFd},
};

use anyhow::{Context, Result, anyhow, ensure};
use futures_util::TryStreamExt;
use netlink_packet_route::link::{
    InfoBridge, InfoData, InfoKind, InfoMacVlan, InfoMacVtap, InfoVeth, InfoVlan, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage, MacVlanMacAddressMode,
};
use rtnetlink::{Handle, LinkBridgePort, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};

use crate::{
    lab::{Link, Mac, Mode, netlink},
    netns::Namespace,
    surroundings::on_host,
};

/// What a parent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One end of a veth pair.
    Veth,
    /// A dummy: it has no wire.
    Dummy,
    /// A bond over one end of a veth pair.
    Bond,
    /// A VLAN device on one end of a veth pair.
    Vlan,
    /// A bridge with one end of a veth pair as its port.
    Bridge,
    /// A network card: the first of the virtual machine's two, which are wired to each other.
    Virtio,
}

impl Kind {
    /// All that are made, and not only found.
    pub const MADE: [Self; 5] = [Self::Veth, Self::Dummy, Self::Bond, Self::Vlan, Self::Bridge];

    /// What the table of kernels calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Dummy => "dummy",
            Self::Bond => "bond",
            Self::Vlan => "vlan",
            Self::Bridge => "bridge",
            Self::Virtio => "virtio",
        }
    }
}

/// A parent that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What it is.
    pub kind: Kind,
    /// Whether its sub-interfaces are macvtap.
    pub tap: bool,
    /// The mode of its sub-interfaces: two, or in mode passthru the one that there can be.
    pub mode: Mode,
    /// Whether the switch behind the wire returns frames.
    pub hairpin: bool,
    /// A third sub-interface, in mode bridge, in the parent's own namespace.
    pub shim: Option<Shim>,
    /// The MAC that those in mode source listen to; the first one alone.
    pub listens_to: Mac,
}

/// The host's own sub-interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shim {
    /// The host reaches the first sub-interface through it.
    WithRoute,
    /// It does not.
    WithoutRoute,
}

/// A parent that was made.
#[derive(Clone, Debug)]
pub struct Site {
    /// The parent.
    pub parent: Link,
    /// Where frames from the wire are sent from.
    pub station: Link,
    /// The sub-interfaces: two and the shim, or the one in mode passthru.
    pub children: Vec<Link>,
    /// The parent's address; the sub-interface's is the next.
    pub address: Ipv4Addr,
}

impl Site {
    /// What the label `parent` says.
    #[must_use]
    pub fn parent_label(&self) -> String {
        format!("{}/{}", self.parent.namespace.label(), self.parent.name)
    }

    /// The first sub-interface's address.
    #[must_use]
    pub fn child_address(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.address) + 1)
    }
}

/// Namespaces of parents, of wires, of the sub-interfaces by their place, and what is in them.
#[derive(Debug)]
pub struct Rig {
    /// In the order of the plans.
    pub sites: Vec<Site>,
    /// Where the parents are.
    pub hosts: Namespace,
    /// Where the first sub-interfaces are.
    pub homes: Namespace,
}

impl Rig {
    /// Builds what is planned; everything is up.
    pub fn build(prefix: &str, plans: &[Plan]) -> Result<Self> {
        let [hosts, wires, homes, neighbours] =
            ["hosts", "wires", "homes", "others"].map(|role| Namespace::create(&format!("{prefix}-{role}")));
        let (hosts, wires, homes, neighbours) = (hosts?, wires?, homes?, neighbours?);
        for namespace in [&hosts, &wires, &homes, &neighbours] {
            namespace.run(accept_any_source)?;
        }
        let sites: Vec<_> = plans
            .iter()
            .enumerate()
            .map(|(number, plan)| Site::plan(number, plan, &hosts, &wires, [&homes, &neighbours]))
            .collect::<Result<_>>()?;
        let rig = Self { sites, hosts, homes };
        rig.make(plans, &wires)?;
        Ok(rig)
    }

    fn make(&self, plans: &[Plan], wires: &Namespace) -> Result<()> {
        let both: Vec<_> = plans.iter().zip(&self.sites).collect();
        let there = wires.open()?;
        for (_, site) in both.iter().filter(|(plan, _)| plan.kind == Kind::Virtio) {
            plug(site)?;
        }
        netlink(&self.hosts, async |handle| {
            for (number, (plan, site)) in both.iter().enumerate() {
                parent(&handle, number, plan, site, there.as_raw_fd())
                    .await
                    .with_context(|| format!("{plan:?}"))?;
            }
            let indexes = indexes(&handle).await?;
            for (plan, site) in &both {
                let parent = index(&indexes, &site.parent.name)?;
                handle.address().add(parent, site.address.into(), 24).execute().await?;
                for (place, child) in site.children.iter().enumerate() {
                    let namespace = child.namespace.open()?;
                    let message = macvlan(plan, place, child, parent, namespace.as_raw_fd());
                    add(&handle, message).await.with_context(|| format!("{plan:?}"))?;
                }
            }
            Ok(())
        })?;
        netlink(wires, async |handle| upstream(&handle, &both).await)?;
        netlink(&self.homes, async |handle| {
            let indexes = indexes(&handle).await?;
            for site in &self.sites {
                let child = index(&indexes, &site.children[0].name)?;
                handle
                    .address()
                    .add(child, site.child_address().into(), 24)
                    .execute()
                    .await?;
            }
            Ok(())
        })?;
        self.routes(&both)
    }

    /// Routes through the shims that have them.
    fn routes(&self, both: &[(&Plan, &Site)]) -> Result<()> {
        netlink(&self.hosts, async |handle| {
            let indexes = indexes(&handle).await?;
            for (_, site) in both.iter().filter(|(plan, _)| plan.shim == Some(Shim::WithRoute)) {
                let shim = site.children.last().context("a shim")?;
                let route = RouteMessageBuilder::<Ipv4Addr>::new()
                    .destination_prefix(site.child_address(), 32)
                    .output_interface(index(&indexes, &shim.name)?)
                    .pref_source(site.address)
                    .build();
                handle.route().add(route).execute().await?;
            }
            Ok(())
        })
    }

    /// Sets links up or down, all at once.
    pub fn set_up(namespace: &Namespace, links: &[&Link], up: bool) -> Result<()> {
        netlink(namespace, async |handle| {
            let indexes = indexes(&handle).await?;
            for link in links {
                let message = change(index(&indexes, &link.name)?);
                let message = if up { message.up() } else { message.down() };
                handle.link().set(message.build()).execute().await?;
            }
            Ok(())
        })
    }
}

impl Site {
    fn plan(number: usize, plan: &Plan, hosts: &Namespace, wires: &Namespace, homes: [&Namespace; 2]) -> Result<Self> {
        let [high, low] = u16::try_from(number)?.to_be_bytes();
        let link = |namespace: &Namespace, name: &str, kind: u8| Link {
            namespace: namespace.clone(),
            name: format!("{name}{number}"),
            mac: Mac([2, kind, 0, 0, high, low]),
        };
        let parent = link(hosts, "parent", 0xa0);
        let mut children = vec![link(homes[0], "it", 0xb1), link(homes[1], "other", 0xb2)];
        if plan.mode == Mode::Passthru {
            children.truncate(1);
            children[0].mac = parent.mac;
        }
        if plan.shim.is_some() {
            children.push(link(hosts, "shim", 0xb3));
        }
        Ok(Self {
            parent,
            station: link(wires, "station", 0xc0),
            children,
            address: Ipv4Addr::new(10, high, low, 1),
        })
    }
}

/// Takes packets whose answers would not leave by the same link.
fn accept_any_source() -> Result<()> {
    for scope in ["all", "default"] {
        let path = format!("/proc/sys/net/ipv4/conf/{scope}/rp_filter");
        fs::write(&path, "0").with_context(|| format!("could not write {path}"))?;
    }
    Ok(())
}

/// The far end of a veth pair that is not the station itself.
fn port(number: usize) -> String {
    format!("port{number}")
}

/// The near end of a veth pair that is not the parent itself.
fn lower(number: usize) -> String {
    format!("lower{number}")
}

/// The tag of the parents that are VLAN devices.
const VLAN: u16 = 10;

/// Makes one parent and its wire.
async fn parent(handle: &Handle, number: usize, plan: &Plan, site: &Site, there: RawFd) -> Result<()> {
    let Site { parent, station, .. } = site;
    let mac = Some(parent.mac);
    let far = if plan.hairpin || plan.kind == Kind::Vlan {
        port(number)
    } else {
        station.name.clone()
    };
    let (kind, data) = match plan.kind {
        Kind::Virtio => return Ok(()),
        Kind::Veth => return add(handle, veth(&parent.name, mac, &far, station, there)).await,
        Kind::Dummy => return add(handle, link(&parent.name, mac, InfoKind::Dummy, None)).await,
        Kind::Bond => (InfoKind::Bond, None),
        Kind::Bridge => (
            InfoKind::Bridge,
            Some(InfoData::Bridge(vec![InfoBridge::MulticastSnooping(false)])),
        ),
        Kind::Vlan => (InfoKind::Vlan, Some(InfoData::Vlan(vec![InfoVlan::Id(VLAN)]))),
    };
    let mut wire = veth(&lower(number), None, &far, station, there);
    // A bond takes only what is down.
    wire.header.flags = LinkFlags::empty();
    add(handle, wire).await?;
    let lower = index(&indexes(handle).await?, &lower(number))?;
    let mut message = link(&parent.name, mac, kind, data);
    if plan.kind == Kind::Vlan {
        handle.link().set(change(lower).up().build()).execute().await?;
        message.attributes.push(LinkAttribute::Link(lower));
        return add(handle, message).await;
    }
    add(handle, message).await?;
    let above = index(&indexes(handle).await?, &parent.name)?;
    handle
        .link()
        .set(change(lower).controller(above).build())
        .execute()
        .await?;
    handle.link().set(change(lower).up().build()).execute().await?;
    Ok(())
}

/// The names of a virtual machine's two network cards, which are wired to each other.
pub fn cards() -> Result<[String; 2]> {
    let mut cards = Vec::new();
    for entry in fs::read_dir("/sys/class/net")? {
        let path = entry?.path();
        let driver = fs::read_link(path.join("device/driver")).unwrap_or_default();
        let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        cards.extend(name.filter(|_| driver.ends_with("virtio_net")));
    }
    cards.sort();
    ensure!(!on_host(), "only a virtual machine's are wired so");
    let count = cards.len();
    <[String; 2]>::try_from(cards)
        .map_err(|cards| anyhow!("this machine has {count} network cards and not two: {cards:?}"))
}

/// Puts the cards where they are wanted; they come back when their namespaces go.
fn plug(site: &Site) -> Result<()> {
    let [near, far] = cards()?;
    for (name, link) in [(near, &site.parent), (far, &site.station)] {
        let mut card = Link {
            namespace: Namespace::own(),
            name,
            mac: link.mac,
        };
        card.move_to(&link.namespace)?;
        card.rename(&link.name)?;
        card.set_mac(link.mac)?;
        card.set_up(true)?;
    }
    Ok(())
}

/// A link that is up from the start.
fn link(name: &str, mac: Option<Mac>, kind: InfoKind, data: Option<InfoData>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes.push(LinkAttribute::IfName(name.into()));
    if let Some(mac) = mac {
        message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
    }
    let mut info = vec![LinkInfo::Kind(kind)];
    info.extend(data.map(LinkInfo::Data));
    message.attributes.push(LinkAttribute::LinkInfo(info));
    message
}

fn veth(near: &str, mac: Option<Mac>, far: &str, station: &Link, there: RawFd) -> LinkMessage {
    // Not up from the start: the kernel makes it before the two know each other.
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(far.into()),
        LinkAttribute::Address(station.mac.0.to_vec()),
        LinkAttribute::NetNsFd(there),
    ];
    let data = InfoData::Veth(InfoVeth::Peer(peer));
    link(near, mac, InfoKind::Veth, Some(data))
}

fn macvlan(plan: &Plan, place: usize, child: &Link, parent: u32, there: RawFd) -> LinkMessage {
    let is_shim = plan.shim.is_some() && child.name.starts_with("shim");
    let mode = if is_shim { Mode::Bridge } else { plan.mode };
    let mut data = vec![InfoMacVlan::Mode(mode.kernels())];
    if mode == Mode::Source && place == 0 {
        data.push(InfoMacVlan::MacAddrMode(MacVlanMacAddressMode::Add));
        data.push(InfoMacVlan::MacAddr(plan.listens_to.0));
    }
    let mac = (mode != Mode::Passthru).then_some(child.mac);
    let (kind, data) = if plan.tap {
        let same = data.into_iter().map(|info| match info {
            InfoMacVlan::MacAddrMode(mode) => InfoMacVtap::MacAddrMode(mode),
            InfoMacVlan::MacAddr(mac) => InfoMacVtap::MacAddr(mac),
            _ => InfoMacVtap::Mode(mode.kernels()),
        });
        (InfoKind::MacVtap, InfoData::MacVtap(same.collect()))
    } else {
        (InfoKind::MacVlan, InfoData::MacVlan(data))
    };
    let mut message = link(&child.name, mac, kind, Some(data));
    message.attributes.push(LinkAttribute::Link(parent));
    message.attributes.push(LinkAttribute::NetNsFd(there));
    message
}

/// What the wires end in: a switch where frames are to come back, and it is the station itself; a VLAN device where the
/// parent is one; else a station that has only to be set up.
async fn upstream(handle: &Handle, both: &[(&Plan, &Site)]) -> Result<()> {
    for (_, site) in both.iter().filter(|(plan, _)| plan.hairpin) {
        let data = InfoData::Bridge(vec![InfoBridge::MulticastSnooping(false)]);
        add(handle, link(&site.station.name, None, InfoKind::Bridge, Some(data))).await?;
    }
    let mut indexes = indexes(handle).await?;
    for (number, (plan, site)) in both.iter().enumerate() {
        if matches!(plan.kind, Kind::Dummy | Kind::Virtio) {
            continue;
        }
        if plan.kind == Kind::Vlan {
            let port = index(&indexes, &port(number))?;
            handle.link().set(change(port).up().build()).execute().await?;
            let data = InfoData::Vlan(vec![InfoVlan::Id(VLAN)]);
            let mut message = link(&site.station.name, None, InfoKind::Vlan, Some(data));
            message.attributes.push(LinkAttribute::Link(port));
            add(handle, message).await?;
            indexes = self::indexes(handle).await?;
        }
        let station = index(&indexes, &site.station.name)?;
        if plan.hairpin {
            let port = index(&indexes, &port(number))?;
            handle
                .link()
                .set(change(port).controller(station).up().build())
                .execute()
                .await?;
            let message = LinkBridgePort::new(port).hairpin(true).build();
            handle.link().set_port(message).execute().await?;
        } else {
            handle.link().set(change(station).up().build()).execute().await?;
        }
    }
    Ok(())
}

fn change(index: u32) -> LinkMessageBuilder<LinkUnspec> {
    LinkUnspec::new_with_index(index)
}

async fn add(handle: &Handle, message: LinkMessage) -> Result<()> {
    let name = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    let made = handle.link().add(message).execute().await;
    made.with_context(|| format!("could not make {}", name.unwrap_or_default()))
}

async fn indexes(handle: &Handle) -> Result<HashMap<String, u32>> {
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
    let named = links.into_iter().filter_map(|link| {
        let index = link.header.index;
        link.attributes.into_iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some((name, index)),
            _ => None,
        })
    });
    Ok(named.collect())
}

fn index(indexes: &HashMap<String, u32>, name: &str) -> Result<u32> {
    indexes
        .get(name)
        .copied()
        .with_context(|| format!("there is no {name}"))
}
