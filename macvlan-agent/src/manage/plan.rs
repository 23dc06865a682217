//! From what is wanted and what there is to what is to be done. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{
    record::{Entry, Made, Origin, Record, Spec},
    state::{LinkState, SpaceState},
    step::Step,
    wanted::{Wanted, is_marked},
};
use crate::config::file::Parent;

mod crowd;
mod item;
mod steps;

use crowd::Crowd;
use item::item;
use steps::vlans;

/// `ARPHRD_ETHER`.
const ETHERNET: u16 = 1;

/// What there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actual {
    /// The inode of the agent's own namespace.
    pub own: u32,
    /// The namespaces that were read, by inode.
    pub spaces: BTreeMap<u32, SpaceState>,
}

impl Actual {
    fn own(&self) -> Option<&SpaceState> {
        self.spaces.get(&self.own)
    }
}

/// Which options of macvlan the kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// `bc_queue_len`, since Linux 5.11.
    pub queue: bool,
    /// `bc_cutoff`, since Linux 6.5.
    pub cutoff: bool,
}

/// How far something is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It is as it should be, or will be after the steps.
    Ready,
    /// Something is missing that may come.
    Pending(String),
    /// It cannot be done as it was asked for.
    Failed(String),
}

impl State {
    /// Its word.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Pending(_) => "pending",
            Self::Failed(_) => "failed",
        }
    }

    /// Why it is not ready.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Ready => None,
            Self::Pending(reason) | Self::Failed(reason) => Some(reason),
        }
    }
}

/// What is to be done about one sub-interface or shim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its place in the list of wanted ones.
    pub wanted: usize,
    /// Where it is now.
    pub at: Option<Made>,
    /// What is to be done, in this order.
    pub steps: Vec<Step>,
    /// How it will be after that.
    pub state: State,
    /// What had happened to it: `it was deleted`.
    pub found: Option<String>,
}

/// A link of ours that nobody asks for any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// The id of its entry.
    pub id: String,
    /// What people call it.
    pub label: String,
    /// Where it is; none where it has gone already.
    pub at: Option<Made>,
    /// Why.
    pub because: String,
}

/// What is to be done about a VLAN device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VlanStep {
    /// Make it on the link with this index.
    Create(Parent, u32),
    /// Finish the making of the link with this index.
    Finish(Parent, u32),
    /// Delete the link with this index.
    Delete(String, u32),
    /// It has gone by itself.
    Forget(String),
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// VLAN devices.
    pub vlans: Vec<VlanStep>,
    /// Sub-interfaces and shims.
    pub items: Vec<Item>,
    /// What goes.
    pub removals: Vec<Removal>,
}

impl Plan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.vlans.is_empty() && self.removals.is_empty() && self.items.iter().all(|item| item.steps.is_empty())
    }

    /// Whether something of ours is not where it was left: it may have been moved.
    #[must_use]
    pub fn misses_something(&self, wanted: &[Wanted], record: &Record) -> bool {
        self.items.iter().any(|item| {
            let made = record.entries.get(&wanted[item.wanted].id).and_then(|entry| entry.made);
            item.at.is_none() && made.is_some()
        })
    }
}

/// What is known beside what is wanted and what there is.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// VLAN devices that may be made.
    pub parents: &'a [Parent],
    /// What was made before.
    pub record: &'a Record,
    /// What there is.
    pub actual: &'a Actual,
    /// What the kernel has.
    pub features: Features,
}

/// Works out what is to be done. `prune`: what the configuration no longer asks for goes.
#[must_use]
pub fn plan(wanted: &[Wanted], context: Context<'_>, prune: bool) -> Plan {
    let crowd = Crowd::of(wanted, context.actual);
    let items: Vec<Item> = (0..wanted.len()).map(|number| item(number, &crowd, context)).collect();
    let ids: BTreeSet<&str> = wanted.iter().map(|each| each.id.as_str()).collect();
    let removals = context
        .record
        .entries
        .iter()
        .filter(|(id, entry)| !ids.contains(id.as_str()) && (prune || entry.origin == Origin::Command))
        .map(|(id, entry)| Removal {
            id: id.clone(),
            label: label_of(&entry.spec),
            at: find(id, entry, context),
            because: match entry.origin {
                Origin::Config => "it is no longer in the configuration".to_owned(),
                Origin::Command => "nobody asks for it any more".to_owned(),
            },
        })
        .collect();
    Plan {
        vlans: vlans(wanted, context, prune),
        items,
        removals,
    }
}

/// What people call what was asked for.
#[must_use]
pub fn label_of(spec: &Spec) -> String {
    match spec {
        Spec::SubInterface(spec) => super::wanted::label(spec.netns.as_ref(), &spec.name),
        Spec::Shim(spec) => spec.name.to_string(),
    }
}

fn name_of(spec: &Spec) -> &str {
    match spec {
        Spec::SubInterface(spec) => spec.name.as_str(),
        Spec::Shim(spec) => spec.name.as_str(),
    }
}

/// The link that an entry is about, wherever it is now.
fn find(id: &str, entry: &Entry, context: Context<'_>) -> Option<Made> {
    let marked = |link: &&LinkState| is_marked(link.alias.as_deref(), id) && link.mode().is_some();
    let spaces = &context.actual.spaces;
    let at = |netns: u32, link: &LinkState| Made {
        netns,
        ifindex: link.index(),
    };
    if let Some(made) = entry.made
        && let Some(link) = spaces
            .get(&made.netns)
            .and_then(|space| space.link(made.ifindex))
            .filter(marked)
    {
        return Some(at(made.netns, link));
    }
    let same_mac = |link: &&LinkState| entry.mac.is_none_or(|mac| link.link.mac == Some(mac));
    let intended = entry.intended.and_then(|inode| Some((inode, spaces.get(&inode)?)));
    if let Some((inode, space)) = intended {
        // Its making was interrupted: it has no mark yet, or the record does not know its index.
        let half_made = |link: &&LinkState| {
            entry.made.is_none()
                && link.alias.is_none()
                && link.mode().is_some()
                && link.group == context.record.group
                && link.link.name == name_of(&entry.spec)
        };
        let known = |link: &&LinkState| same_mac(link) && (marked(link) || half_made(link));
        // Mostly it has its name; who was renamed is looked for among all.
        let named = space.named(name_of(&entry.spec)).filter(known);
        if let Some(link) = named.or_else(|| space.links.iter().find(known)) {
            return Some(at(inode, link));
        }
    }
    entry.made?;
    let mut elsewhere = spaces
        .iter()
        .flat_map(|(inode, space)| space.links.iter().map(move |link| (inode, link)));
    let moved = elsewhere.find(|(_, link)| marked(link) && same_mac(link));
    moved.map(|(inode, link)| at(*inode, link))
}

/// The name of what a sub-interface or shim stands on.
#[must_use]
pub fn parent_of(spec: &Spec) -> &str {
    match spec {
        Spec::SubInterface(spec) => spec.parent.as_str(),
        Spec::Shim(spec) => spec.parent.as_str(),
    }
}

/// A number of each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// As they should be.
    pub ready: usize,
    /// Waiting for something.
    pub pending: usize,
    /// Not to be had.
    pub failed: usize,
}

impl Tally {
    /// Counts.
    #[must_use]
    pub fn of(states: &[&State]) -> Self {
        let mut tally = Self::default();
        for state in states.iter().copied() {
            match state {
                State::Ready => tally.ready += 1,
                State::Pending(_) => tally.pending += 1,
                State::Failed(_) => tally.failed += 1,
            }
        }
        tally
    }
}
