//! What frames are sent through: parents with sub-interfaces, once for each side, all alike.

use std::fs;

use anyhow::{Context, Result};
use aya::programs::{SchedClassifier, TcAttachType};
use macvlan_agent_tests::{
    lab::{Link, Mac, macvlans, veth},
    live,
    netns::Namespace,
    sink::Sink,
};

/// How many sub-interfaces on how many parents.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) parents: u8,
    /// On each of them.
    pub(super) each: u32,
}

impl Size {
    pub(super) fn sub_interfaces(self) -> u32 {
        u32::from(self.parents) * self.each
    }
}

/// Parents, whose wires end in a namespace of their own, and their sub-interfaces in another one.
pub(super) struct Stand {
    pub(super) size: Size,
    pub(super) parents: Vec<Parent>,
    pub(super) guests: Namespace,
    wire: Namespace,
    _sinks: [Sink; 2],
}

pub(super) struct Parent {
    pub(super) link: Link,
    pub(super) index: u32,
    /// The other end of its wire.
    pub(super) station: Link,
    number: u8,
}

impl Parent {
    /// As the label `parent` and patterns have it.
    pub(super) fn label(&self) -> String {
        format!("{}/{}", self.link.namespace.label(), self.link.name)
    }

    /// The MAC of its sub-interface number so many.
    pub(super) fn mac(&self, number: u32) -> Mac {
        live::mac([2, self.number], number)
    }

    /// The name of the same.
    pub(super) fn sub_interface(&self, number: u32) -> String {
        format!("m{}-{number}", self.number)
    }
}

impl Stand {
    fn new(host: &Namespace, prefix: &str, number: usize, size: Size) -> Result<Self> {
        let [wire, guests] = ["wire", "guests"].map(|role| Namespace::create(&format!("{prefix}-{role}{number}")));
        let (wire, guests) = (wire?, guests?);
        let parent = |parent_number: u8| {
            let name = format!("p{number}-{parent_number}");
            let (link, station) = veth(host, &name, &wire, &format!("w{number}-{parent_number}"))?;
            let parent = Parent {
                index: link.index()?,
                link,
                station,
                number: parent_number,
            };
            let all: Vec<_> = (0..size.each)
                .map(|sub| (parent.sub_interface(sub), parent.mac(sub)))
                .collect();
            macvlans(&parent.link, &guests, &all)?;
            Ok(parent)
        };
        Ok(Self {
            size,
            parents: (0..size.parents).map(parent).collect::<Result<_>>()?,
            _sinks: [Sink::throughout(&wire)?, Sink::throughout(&guests)?],
            guests,
            wire,
        })
    }

    /// How many programs are attached to its parents by tcx, whoever did that.
    pub(super) fn programs(&self) -> Result<usize> {
        let mut count = 0;
        for parent in &self.parents {
            for side in [TcAttachType::Ingress, TcAttachType::Egress] {
                let query = || Ok(SchedClassifier::query_tcx(&parent.link.name, side)?);
                let (_, programs) = parent.link.namespace.run(query)?;
                count += programs.len();
            }
        }
        Ok(count)
    }

    /// Frames that its sub-interfaces received, by the kernel's own count.
    pub(super) fn delivered(&self) -> Result<u64> {
        received(&self.guests)
    }

    /// Frames that arrived anywhere: at a sub-interface or at the other end of a wire.
    pub(super) fn arrived(&self) -> Result<u64> {
        Ok(self.delivered()? + received(&self.wire)?)
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        // Its namespaces would take them along, but later, while the next is measured.
        for parent in &self.parents {
            let _ = parent.link.delete();
        }
    }
}

/// Packets that all interfaces of a namespace received.
fn received(namespace: &Namespace) -> Result<u64> {
    let table =
        namespace.run(|| fs::read_to_string("/proc/thread-self/net/dev").context("there is no table of devices"))?;
    let columns = table
        .lines()
        .filter_map(|line| line.split_once(':')?.1.split_whitespace().nth(1));
    columns
        .map(|packets| packets.parse::<u64>().context("a counter that is no number"))
        .sum()
}

/// One for each side: without programs, with empty ones, with the agent's.
pub(super) struct Stands {
    /// Where the parents are.
    pub(super) host: Namespace,
    pub(super) all: [Stand; 3],
}

impl Stands {
    pub(super) fn new(size: Size) -> Result<Self> {
        let prefix = format!("mvm{}", std::process::id());
        let host = Namespace::create(&format!("{prefix}-host"))?;
        let stand = |number| Stand::new(&host, &prefix, number, size);
        Ok(Self {
            all: [stand(0)?, stand(1)?, stand(2)?],
            host,
        })
    }
}
