//! Parents and sub-interfaces as `/api/v1` and `list` show them.

use macvlan_agent_ebpf::abi::{Counter, label::DropReason};
use serde::{Deserialize, Serialize};

use crate::{
    metrics::catalog::{arrived, dropped_for, mac, sent},
    owners::{Owner, Owners},
    snapshot::{ParentSample, Snapshot, SubInterfaceSample},
    topology::inventory::{Inventory, Parent, SubInterface},
};

/// A parent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ParentView {
    /// Its name, as in the label `parent`.
    pub parent: String,
    /// Kind of link.
    pub kind: String,
    /// Its MAC.
    pub mac: String,
    /// Whether it is up.
    pub up: bool,
    /// Bytes.
    pub mtu: u32,
    /// Its own addresses.
    pub addresses: Vec<String>,
    /// How many sub-interfaces it has.
    pub sub_interfaces: usize,
}

/// A sub-interface.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SubInterfaceView {
    /// Its parent's name.
    pub parent: String,
    /// Its name.
    pub interface: String,
    /// Its namespace, as in the label `netns`.
    pub netns: String,
    /// `macvlan` or `macvtap`.
    pub kind: String,
    /// Its mode.
    pub mode: String,
    /// Its MAC.
    pub mac: String,
    /// Interface index in its namespace.
    pub ifindex: u32,
    /// Whether it is up.
    pub up: bool,
    /// Bytes.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// Whose its namespace is, where that is known.
    #[serde(default)]
    pub owner: Option<Owner>,
    /// Its counts; none where no agent counts.
    pub counts: Option<CountsView>,
}

/// Counts of a sub-interface, frames.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CountsView {
    /// Unicast delivered from outside.
    pub delivered_external: u64,
    /// Unicast delivered from siblings.
    pub delivered_sibling: u64,
    /// Sent out of the parent.
    pub transmitted_external: u64,
    /// Sent to siblings inside.
    pub transmitted_sibling: u64,
    /// Attempts to reach the other side of the isolation.
    pub isolation_attempts: u64,
    /// Dropped, by reason; reasons that did not happen are left out.
    pub dropped: std::collections::BTreeMap<String, u64>,
}

/// Everything.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct HostView {
    /// Parents, by name.
    pub parents: Vec<ParentView>,
    /// Sub-interfaces, by parent, namespace and name.
    pub sub_interfaces: Vec<SubInterfaceView>,
}

impl HostView {
    /// With counts.
    #[must_use]
    pub fn of(snapshot: &Snapshot) -> Self {
        let parents = snapshot.parents.iter().map(ParentSample::view).collect();
        let sub_interfaces = snapshot.sub_interfaces.iter().map(SubInterfaceSample::view).collect();
        Self {
            parents,
            sub_interfaces,
        }
        .sorted()
    }

    /// Without.
    #[must_use]
    pub fn without_counts(inventory: &Inventory, owners: &Owners) -> Self {
        let parents = inventory
            .parents
            .values()
            .map(|link| {
                let count = inventory
                    .sub_interfaces
                    .values()
                    .filter(|each| each.parent == link.key)
                    .count();
                parent(link, count)
            })
            .collect();
        let sub_interfaces = inventory
            .sub_interfaces
            .values()
            .map(|link| {
                let name = inventory.parents.get(&link.parent).map_or("", |parent| &parent.display);
                sub_interface(link, name, owners.of(link.key.netns).cloned(), None)
            })
            .collect();
        Self {
            parents,
            sub_interfaces,
        }
        .sorted()
    }

    fn sorted(mut self) -> Self {
        self.parents.sort_by(|one, other| one.parent.cmp(&other.parent));
        self.sub_interfaces.sort_by(|one, other| {
            (&one.parent, &one.netns, &one.interface).cmp(&(&other.parent, &other.netns, &other.interface))
        });
        self
    }
}

impl ParentSample {
    fn view(&self) -> ParentView {
        parent(&self.link, self.sub_interfaces)
    }
}

impl SubInterfaceSample {
    fn view(&self) -> SubInterfaceView {
        let counts = self.sample.as_ref().map(|sample| {
            let at = |counter| sample.totals.at(counter, 0);
            let delivered = |counter, full| arrived(sample, counter, (Counter::QueueFullExternalFrames, full));
            CountsView {
                delivered_external: delivered(Counter::DeliveredExternalFrames, 0),
                delivered_sibling: delivered(Counter::DeliveredSiblingFrames, 2),
                transmitted_external: sent(self, sample, Counter::TransmittedExternalFrames, |kernel| {
                    kernel.sent_packets
                }),
                transmitted_sibling: at(Counter::TransmittedSiblingFrames),
                isolation_attempts: (0..9).map(|place| sample.totals.at(Counter::Attempts, place)).sum(),
                dropped: DropReason::ALL
                    .iter()
                    .map(|reason| {
                        (
                            reason.label().to_owned(),
                            dropped_for(sample, self.kernel.as_ref(), *reason),
                        )
                    })
                    .filter(|(_, frames)| *frames > 0)
                    .collect(),
            }
        });
        sub_interface(&self.link, &self.parent, self.owner.clone(), counts)
    }
}

fn parent(link: &Parent, sub_interfaces: usize) -> ParentView {
    ParentView {
        parent: link.display.clone(),
        kind: link.kind.clone(),
        mac: mac(link.mac),
        up: link.up,
        mtu: link.mtu,
        addresses: link.addresses.iter().map(ToString::to_string).collect(),
        sub_interfaces,
    }
}

fn sub_interface(
    link: &SubInterface,
    parent: &str,
    owner: Option<Owner>,
    counts: Option<CountsView>,
) -> SubInterfaceView {
    SubInterfaceView {
        parent: parent.to_owned(),
        interface: link.name.clone(),
        netns: link.netns.clone(),
        kind: link.kind.to_string(),
        mode: link.mode.to_string(),
        mac: mac(link.mac),
        ifindex: link.key.ifindex,
        up: link.up,
        mtu: link.mtu,
        addresses: link.addresses.iter().map(ToString::to_string).collect(),
        owner,
        counts,
    }
}
