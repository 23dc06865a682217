//! Links: a parent with a wire behind it, a switch at the end of the wire if asked for, and sub-interfaces of any mode
//! in namespaces of their own. All by netlink, none by a tool.

use std::{
    fmt, fs,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsRawFd,
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use netlink_packet_route::link::{InfoData, InfoKind, InfoMacVlan, LinkAttribute, LinkInfo, LinkMessage, MacVlanMode};
use nix::net::if_::if_nametoindex;
use rtnetlink::{
    Handle, LinkBridge, LinkBridgePort, LinkMacVlan, LinkUnspec, LinkVeth, RouteMessageBuilder, new_connection,
};

use crate::{
    netns::{Namespace, switch_ipv6},
    traffic,
};

/// A MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.map(|byte| format!("{byte:02x}"));
        f.write_str(&bytes.join(":"))
    }
}

/// The mode of a sub-interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the kernel's own words")]
pub enum Mode {
    Private,
    Vepa,
    Bridge,
    Passthru,
    Source,
}

impl Mode {
    /// As `ip link` prints it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::Vepa => "vepa",
            Self::Bridge => "bridge",
            Self::Passthru => "passthru",
            Self::Source => "source",
        }
    }

    pub(crate) fn kernels(self) -> MacVlanMode {
        match self {
            Self::Private => MacVlanMode::Private,
            Self::Vepa => MacVlanMode::Vepa,
            Self::Bridge => MacVlanMode::Bridge,
            Self::Passthru => MacVlanMode::Passthrough,
            Self::Source => MacVlanMode::Source,
        }
    }
}

/// A link somewhere.
#[derive(Clone, Debug)]
pub struct Link {
    /// Where it is.
    pub namespace: Namespace,
    /// Its name there.
    pub name: String,
    /// Its address.
    pub mac: Mac,
}

impl Link {
    /// Sends `count` copies of `frame` from it.
    ///
    /// # Panics
    /// When not all of them could be sent.
    pub fn send(&self, frame: &[u8], count: u32) {
        traffic::send(&self.namespace, &self.name, frame, count).unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// The kernel's own counts of it.
    ///
    /// # Panics
    /// When there is no such link.
    #[must_use]
    pub fn counters(&self) -> traffic::Counters {
        let counters = self.namespace.run(|| traffic::counters(&self.name));
        counters.unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Its index.
    pub fn index(&self) -> Result<u32> {
        self.namespace
            .run(|| if_nametoindex(self.name.as_str()).with_context(|| format!("there is no {}", self.name)))
    }

    /// Sets it up or down.
    pub fn set_up(&self, up: bool) -> Result<()> {
        self.change(|link| if up { link.up() } else { link.down() })
    }

    /// Gives it another name; it must be down on kernels before 6.2 or so.
    pub fn rename(&mut self, name: &str) -> Result<()> {
        self.change(|link| link.name(name))?;
        self.name = name.into();
        Ok(())
    }

    /// Gives it another MAC.
    pub fn set_mac(&mut self, mac: Mac) -> Result<()> {
        self.change(|link| link.address(mac.0.to_vec()))?;
        self.mac = mac;
        Ok(())
    }

    /// Puts it into another namespace, where it is down.
    pub fn move_to(&mut self, namespace: &Namespace) -> Result<()> {
        let file = namespace.open()?;
        self.change(|link| link.setns_by_fd(file.as_raw_fd()))?;
        self.namespace = namespace.clone();
        Ok(())
    }

    /// Gives it an address.
    pub fn add_address(&self, address: impl Into<IpAddr>, prefix: u8) -> Result<()> {
        let (index, address) = (self.index()?, address.into());
        netlink(&self.namespace, async |handle| {
            handle.address().add(index, address, prefix).execute().await?;
            Ok(())
        })
        .with_context(|| format!("could not give {} the address {address}/{prefix}", self.name))
    }

    /// Turns IPv6 on again for this link: from now on it sends frames of its own, multicast ones.
    pub fn enable_ipv6(&self) -> Result<()> {
        self.namespace.run(|| switch_ipv6(&self.name, true))
    }

    /// Takes packets whose answers would not leave by this link (`rp_filter` 0).
    pub fn accept_any_source(&self) -> Result<()> {
        self.set("ipv4/conf/all/rp_filter", "0")?;
        self.set("ipv4/conf/LINK/rp_filter", "0")
    }

    /// Writes a setting of its namespace, by its path below /proc/sys/net; LINK stands for its name.
    pub fn set(&self, setting: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{}", setting.replace("LINK", &self.name));
        self.namespace
            .run(|| fs::write(&path, value).with_context(|| format!("could not write {path}")))
    }

    /// Makes it a port of a switch.
    pub fn join(&self, switch: &Link) -> Result<()> {
        let index = switch.index()?;
        self.change(|link| link.controller(index))
    }

    /// Sets how many broadcasts may wait for a macvlan; before Linux 5.12 the kernel does not listen.
    pub fn set_broadcast_queue(&self, length: u32) -> Result<()> {
        let mut message = LinkUnspec::new_with_index(self.index()?).build();
        let data = InfoData::MacVlan(vec![InfoMacVlan::BcQueueLen(length)]);
        let info = vec![LinkInfo::Kind(InfoKind::MacVlan), LinkInfo::Data(data)];
        message.attributes.push(LinkAttribute::LinkInfo(info));
        netlink(&self.namespace, async |handle| {
            Ok(handle.link().set(message).execute().await?)
        })
        .with_context(|| format!("could not set the queue of {}", self.name))
    }

    /// Makes `address` a neighbour that is not asked for.
    pub fn add_neighbour(&self, address: Ipv4Addr, mac: Mac) -> Result<()> {
        let index = self.index()?;
        netlink(&self.namespace, async |handle| {
            let neighbours = handle.neighbours();
            neighbours
                .add(index, IpAddr::V4(address))
                .link_layer_address(&mac.0)
                .replace()
                .execute()
                .await?;
            Ok(())
        })
        .with_context(|| format!("could not make {address} a neighbour of {}", self.name))
    }

    /// Routes one address through it.
    pub fn add_route(&self, destination: Ipv4Addr) -> Result<()> {
        self.add_route_from(destination, None)
    }

    /// Routes one address through it, with an address to send from.
    pub fn add_route_from(&self, destination: Ipv4Addr, source: Option<Ipv4Addr>) -> Result<()> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(destination, 32);
        let mut route = route.output_interface(self.index()?);
        if let Some(source) = source {
            route = route.pref_source(source);
        }
        let route = route.build();
        netlink(&self.namespace, async |handle| {
            Ok(handle.route().add(route).execute().await?)
        })
        .with_context(|| format!("could not route {destination} through {}", self.name))
    }

    /// Deletes it.
    pub fn delete(&self) -> Result<()> {
        let index = self.index()?;
        netlink(&self.namespace, async |handle| {
            Ok(handle.link().del(index).execute().await?)
        })
        .with_context(|| format!("could not delete {}", self.name))
    }

    fn change(
        &self,
        how: impl FnOnce(rtnetlink::LinkMessageBuilder<LinkUnspec>) -> rtnetlink::LinkMessageBuilder<LinkUnspec>,
    ) -> Result<()> {
        let message = how(LinkUnspec::new_with_index(self.index()?)).build();
        netlink(&self.namespace, async |handle| {
            Ok(handle.link().set(message).execute().await?)
        })
        .with_context(|| format!("could not change {}", self.name))
    }
}

/// A sub-interface on a lab's parent.
#[derive(Clone, Debug)]
pub struct SubInterface {
    /// The device.
    pub link: Link,
    /// Its mode.
    pub mode: Mode,
    parent_label: String,
}

impl SubInterface {
    /// The labels of its series.
    #[must_use]
    pub fn labels(&self) -> [(&'static str, String); 3] {
        [
            ("parent", self.parent_label.clone()),
            ("interface", self.link.name.clone()),
            ("netns", self.link.namespace.label().into()),
        ]
    }

    /// Its MAC.
    #[must_use]
    pub fn mac(&self) -> Mac {
        self.link.mac
    }
}

/// Where the parent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the namespace of the process, which is the agent's.
    Own,
    /// In a named one.
    Named,
}

/// What the parent's wire ends in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// A station.
    Wire,
    /// A switch, with a station on another port.
    Switch,
    /// The same with a port that returns frames to where they came from (reflective relay).
    Hairpin,
}

/// How a sub-interface gets into its namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Created there.
    Directly,
    /// Created beside the parent, then moved.
    Moved,
}

/// A parent, what is behind its wire, and the namespaces of its sub-interfaces; all removed with it.
#[derive(Debug)]
pub struct Lab {
    /// The parent.
    pub parent: Link,
    /// Where frames "from the wire" are sent from: a station behind the parent's wire.
    pub station: Link,
    prefix: String,
    macs: AtomicU32,
}

static LABS: AtomicU32 = AtomicU32::new(0);

impl Lab {
    /// Builds one under names that no other test and no other process uses.
    ///
    /// # Panics
    /// When it cannot.
    #[must_use]
    pub fn new(place: Place, upstream: Upstream) -> Self {
        Self::try_new(place, upstream).unwrap_or_else(|error| panic!("no lab: {error:#}"))
    }

    fn try_new(place: Place, upstream: Upstream) -> Result<Self> {
        let prefix = format!("mvt{}-{}", process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        let inside = match place {
            Place::Own => Namespace::own(),
            Place::Named => Namespace::create(&format!("{prefix}-host"))?,
        };
        let wire = Namespace::create(&format!("{prefix}-wire"))?;
        let (near, far) = (prefix.replace('-', "p"), prefix.replace('-', "w"));
        let (parent, end) = veth(&inside, &near, &wire, &far)?;
        let station = match upstream {
            Upstream::Wire => end,
            Upstream::Switch | Upstream::Hairpin => {
                let (port, station) = veth(&wire, "port", &wire, "station")?;
                switch(&wire, "switch", &[&end, &port])?;
                if upstream == Upstream::Hairpin {
                    hairpin(&end)?;
                }
                station
            }
        };
        Ok(Self {
            parent,
            station,
            prefix,
            macs: AtomicU32::new(0),
        })
    }

    /// What the label `parent` says.
    #[must_use]
    pub fn parent_label(&self) -> String {
        match self.parent.namespace.name() {
            Some(namespace) => format!("{namespace}/{}", self.parent.name),
            None => self.parent.name.clone(),
        }
    }

    /// A namespace of this lab.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn namespace(&self, role: &str) -> Namespace {
        Namespace::create(&format!("{}-{role}", self.prefix)).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// A MAC that nothing in this lab has.
    ///
    /// # Panics
    /// When there are none left.
    #[must_use]
    pub fn mac(&self) -> Mac {
        let [.., high, low] = process::id().to_be_bytes();
        let number = u8::try_from(self.macs.fetch_add(1, Ordering::Relaxed)).expect("a lab has few MACs");
        Mac([0x02, 0x6d, 0x76, high, low, number])
    }

    /// A sub-interface that is up, in a new namespace.
    ///
    /// # Panics
    /// When the kernel does not take it.
    #[must_use]
    pub fn add(&self, name: &str, mode: Mode) -> SubInterface {
        self.add_in(&self.namespace(name), name, mode, self.mac(), Arrival::Directly)
    }

    /// A sub-interface that is up, in `namespace`.
    ///
    /// # Panics
    /// When the kernel does not take it.
    #[must_use]
    pub fn add_in(&self, namespace: &Namespace, name: &str, mode: Mode, mac: Mac, arrival: Arrival) -> SubInterface {
        let sub = self.add_down(namespace, name, mode, mac, arrival);
        sub.and_then(|sub| sub.link.set_up(true).map(|()| sub))
            .unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// A sub-interface that is down.
    pub fn add_down(
        &self,
        namespace: &Namespace,
        name: &str,
        mode: Mode,
        mac: Mac,
        arrival: Arrival,
    ) -> Result<SubInterface> {
        let mut link = match arrival {
            Arrival::Directly => macvlan(&self.parent, namespace, name, mode, mac)?,
            Arrival::Moved => macvlan(&self.parent, &self.parent.namespace, name, mode, mac)?,
        };
        if arrival == Arrival::Moved {
            link.move_to(namespace)?;
        }
        if namespace.name().is_none() {
            namespace.run(|| switch_ipv6(name, false))?;
        }
        if mode == Mode::Passthru {
            link.mac = self.parent.mac;
        }
        Ok(SubInterface {
            link,
            mode,
            parent_label: self.parent_label(),
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Its namespaces take their links along; the parent may be in the process's own.
        let _ = self.parent.delete();
    }
}

/// A veth pair, each end in its namespace, both up.
pub fn veth(near: &Namespace, near_name: &str, far: &Namespace, far_name: &str) -> Result<(Link, Link)> {
    netlink(near, async |handle| {
        Ok(handle
            .link()
            .add(LinkVeth::new(near_name, far_name).build())
            .execute()
            .await?)
    })
    .with_context(|| format!("could not make the veth pair {near_name}, {far_name}"))?;
    let mut ends = [(near, near_name), (near, far_name)].map(|(namespace, name)| Link {
        namespace: namespace.clone(),
        name: name.into(),
        mac: Mac([0; 6]),
    });
    if near.label() != far.label() {
        ends[1].move_to(far)?;
    }
    for end in &mut ends {
        end.namespace.run(|| switch_ipv6(&end.name, false))?;
        end.mac = mac_of(&end.namespace, &end.name)?;
        end.set_up(true)?;
    }
    let [near, far] = ends;
    Ok((near, far))
}

/// A bridge with these ports, up.
pub fn switch(namespace: &Namespace, name: &str, ports: &[&Link]) -> Result<Link> {
    // No snooping: it sends queries of its own when it may.
    netlink(namespace, async |handle| {
        Ok(handle
            .link()
            .add(LinkBridge::new(name).mcast_snooping(false).build())
            .execute()
            .await?)
    })
    .with_context(|| format!("could not make the bridge {name}"))?;
    let switch = Link {
        namespace: namespace.clone(),
        name: name.into(),
        mac: mac_of(namespace, name)?,
    };
    let index = switch.index()?;
    for port in ports {
        port.change(|link| link.controller(index))?;
    }
    switch.set_up(true)?;
    Ok(switch)
}

/// Lets a bridge's port return frames to where they came from.
pub fn hairpin(port: &Link) -> Result<()> {
    let index = port.index()?;
    netlink(&port.namespace, async |handle| {
        let message = LinkBridgePort::new(index).hairpin(true).build();
        Ok(handle.link().set_port(message).execute().await?)
    })
    .with_context(|| format!("could not turn hairpin on for {}", port.name))
}

/// A macvlan on `parent`, created in `namespace`; down.
pub fn macvlan(parent: &Link, namespace: &Namespace, name: &str, mode: Mode, mac: Mac) -> Result<Link> {
    let index = parent.index()?;
    let there = namespace.open()?;
    let mut link = LinkMacVlan::new(name, index, mode.kernels());
    if mode != Mode::Passthru {
        link = link.address(mac.0.to_vec());
    }
    let message = link.setns_by_fd(there.as_raw_fd()).build();
    netlink(&parent.namespace, async |handle| {
        Ok(handle.link().add(message).execute().await?)
    })
    .with_context(|| {
        format!(
            "could not make {name} on {} (does this kernel have macvlan?)",
            parent.name
        )
    })?;
    Ok(Link {
        namespace: namespace.clone(),
        name: name.into(),
        mac,
    })
}

/// Sub-interfaces in bridge mode on `parent`, created in `namespace` under these names, up.
pub fn macvlans(parent: &Link, namespace: &Namespace, all: &[(String, Mac)]) -> Result<()> {
    let index = parent.index()?;
    let there = namespace.open()?;
    netlink(&parent.namespace, async |handle| {
        for (name, mac) in all {
            let link = LinkMacVlan::new(name, index, MacVlanMode::Bridge).address(mac.0.to_vec());
            let message = link.up().setns_by_fd(there.as_raw_fd()).build();
            handle
                .link()
                .add(message)
                .execute()
                .await
                .with_context(|| format!("could not make {name} on {}", parent.name))?;
        }
        Ok(())
    })
}

/// Sets the loopback of the process's namespace up: a bare VM may not have.
pub fn loopback_up() -> Result<()> {
    let loopback = Link {
        namespace: Namespace::own(),
        name: "lo".into(),
        mac: Mac([0; 6]),
    };
    loopback.set_up(true)
}

/// The names of the links in a namespace, and whether they are up.
pub fn links(namespace: &Namespace) -> Result<Vec<(String, bool)>> {
    use netlink_packet_route::link::LinkFlags;
    netlink(namespace, async |handle| {
        let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
        Ok(links
            .iter()
            .map(|link| (name_of(link), link.header.flags.contains(LinkFlags::Up)))
            .collect())
    })
}

fn name_of(link: &LinkMessage) -> String {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    name.unwrap_or_default()
}

fn mac_of(namespace: &Namespace, name: &str) -> Result<Mac> {
    let link = netlink(namespace, async |handle| {
        handle
            .link()
            .get()
            .match_name(name)
            .execute()
            .try_next()
            .await?
            .with_context(|| format!("there is no {name}"))
    })?;
    let mac = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => bytes.as_slice().try_into().ok().map(Mac),
        _ => None,
    });
    mac.with_context(|| format!("{name} has no MAC"))
}

/// Asks the kernel in `namespace`, on a connection of its own.
pub(crate) fn netlink<T: Send>(namespace: &Namespace, ask: impl AsyncFnOnce(Handle) -> Result<T> + Send) -> Result<T> {
    namespace.run(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        runtime.block_on(async {
            let (connection, handle, _) = new_connection()?;
            let connection = tokio::spawn(connection);
            let answer = ask(handle).await;
            connection.abort();
            answer
        })
    })
}
