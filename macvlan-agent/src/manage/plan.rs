//! From what is wanted and what there is to what is to be done. Pure.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::Serialize;

use super::{
    record::{Entry, Made, Origin, Record, Spec},
    state::{LinkState, ROUTE_PROTOCOL, SpaceState},
    step::{Change, Step},
    wanted::{Absence, Wanted, WantedRoute, is_marked, parent_id},
};
use crate::{
    config::{
        file::Parent,
        values::{Kind, Mac, Mode},
    },
    topology::link,
};

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
    let items: Vec<Item> = wanted
        .iter()
        .enumerate()
        .map(|(number, each)| item(number, each, wanted, context))
        .collect();
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
        let known = |link: &&LinkState| marked(link) || half_made(link);
        if let Some(link) = space.links.iter().filter(same_mac).find(known) {
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

fn item(number: usize, wanted: &Wanted, all: &[Wanted], context: Context<'_>) -> Item {
    let entry = context.record.entries.get(&wanted.id);
    let mut item = Item {
        wanted: number,
        at: entry.and_then(|entry| find(&wanted.id, entry, context)),
        steps: Vec::new(),
        state: State::Ready,
        found: None,
    };
    let inode = match &wanted.place {
        Ok(inode) => *inode,
        Err(Absence::NotYet(reason)) => {
            item.state = State::Pending(reason.clone());
            return item;
        }
        Err(Absence::Never(reason)) => {
            item.state = State::Failed(reason.clone());
            return item;
        }
    };
    let Some(space) = context.actual.spaces.get(&inode) else {
        item.state = State::Pending(format!("the namespace of {} has not been read", wanted.label));
        return item;
    };
    let parent = match parent(wanted, context) {
        Ok(parent) => parent,
        Err(state) => {
            item.state = state;
            return item;
        }
    };
    if let Some(reason) = refusal(wanted, all, parent, item.at, context) {
        item.state = State::Failed(reason);
        return item;
    }
    let made_before = entry.is_some_and(|entry| entry.made.is_some());
    let link = item.at.and_then(|at| {
        let link = context.actual.spaces.get(&at.netns)?.link(at.ifindex)?;
        Some((at.netns, link))
    });
    match link {
        None => {
            if let Some(foreign) = space.named(&wanted.name) {
                item.state = State::Failed(occupied(wanted, foreign));
                return item;
            }
            item.found = made_before.then(|| "it was deleted".to_owned());
            item.steps.push(Step::Create);
        }
        Some((netns, link)) if netns != inode => {
            let there = context
                .actual
                .spaces
                .get(&netns)
                .map_or("another namespace", |space| space.label.as_str());
            if let Some(foreign) = space.named(&wanted.name) {
                item.state = State::Failed(occupied(wanted, foreign));
                return item;
            }
            item.found = Some(format!("it was moved to {there} as {}", link.link.name));
            item.steps = vec![Step::Delete(format!("it is in {there}")), Step::Create];
        }
        Some((_, link)) => {
            if let Some(because) = must_be_made_anew(wanted, link, space, parent) {
                item.steps = vec![Step::Delete(because), Step::Create];
            } else {
                if link.link.name != wanted.name && space.named(&wanted.name).is_some() {
                    let reason = format!("it is named {} now, and another interface has its name", link.link.name);
                    item.state = State::Failed(reason);
                    return item;
                }
                let own_addresses = entry.map(|entry| entry.addresses.as_slice()).unwrap_or_default();
                let ours: Vec<IpNet> = own_addresses.iter().map(|address| address.0).collect();
                item.steps = differences(wanted, link, space, &ours);
                if let Some(duplicate) = duplicate(wanted, link, space) {
                    item.state = State::Failed(duplicate);
                }
            }
            if !made_before && link.alias.is_none() {
                item.found = Some("its making was interrupted".to_owned());
            }
        }
    }
    item
}

fn occupied(wanted: &Wanted, foreign: &LinkState) -> String {
    let kind = foreign.link.kind.as_deref().unwrap_or("physical");
    let ours = foreign
        .alias
        .as_deref()
        .is_some_and(|alias| alias.starts_with(super::wanted::MARK));
    let mark = if ours {
        "; it has an agent's mark, but this agent has no record of having made it"
    } else {
        ""
    };
    format!(
        "there is an interface named {} already ({kind}) that is not this agent's{mark}: give one of them another name",
        wanted.name
    )
}

/// An address of it that somebody else has.
fn duplicate(wanted: &Wanted, link: &LinkState, space: &SpaceState) -> Option<String> {
    let failed = space.addresses.iter().find(|address| {
        let asked = wanted
            .addresses
            .iter()
            .any(|wanted| wanted.address.addr() == address.address.addr());
        address.ifindex == link.index() && asked && address.duplicate()
    })?;
    Some(format!(
        "another station has the address {} (duplicate address detection failed): give it another, or free that one \
         there and set the interface down and up",
        failed.address.addr()
    ))
}

/// The index of the link that the kernel will put it on; none where the parent is yet to be made.
fn parent<'a>(wanted: &Wanted, context: Context<'a>) -> Result<Option<&'a LinkState>, State> {
    let own = context.actual.own();
    let name = &wanted.parent;
    if let Some(link) = own.and_then(|own| own.named(name)) {
        let declared = context.parents.iter().find(|parent| parent.name.as_str() == name);
        if let Some(parent) = declared {
            let base = own.and_then(|own| own.named(parent.vlan.parent.as_str()));
            let right =
                link.vlan == Some(parent.vlan.id) && base.is_some_and(|base| link.link.link == Some(base.index()));
            if !right {
                let asked = format!("VLAN {} of {}", parent.vlan.id, parent.vlan.parent);
                let kind = link.link.kind.as_deref().unwrap_or("physical");
                let is = link.vlan.map_or_else(|| kind.to_owned(), |id| format!("VLAN {id}"));
                return Err(State::Failed(format!(
                    "its parent {name} is to be {asked}, and there is another interface with that name ({is}): give one \
                     of them another name"
                )));
            }
        }
        // On a macvlan the kernel goes through to what that one stands on.
        let lower = link.mode().and_then(|_| own?.link(link.link.link?));
        return Ok(Some(lower.unwrap_or(link)));
    }
    let declared = context.parents.iter().find(|parent| parent.name.as_str() == name);
    match declared {
        Some(parent) if own.and_then(|own| own.named(parent.vlan.parent.as_str())).is_some() => Ok(None),
        Some(parent) => Err(State::Pending(format!(
            "its parent {name} stands on {}, which is not there; it will be made when it comes",
            parent.vlan.parent
        ))),
        None => Err(State::Pending(format!(
            "its parent {name} is not there{}; it will be made when it comes",
            own.map(|own| alike(own, name)).unwrap_or_default()
        ))),
    }
}

/// Names that were perhaps meant.
fn alike(own: &SpaceState, name: &str) -> String {
    let near: Vec<_> = own
        .links
        .iter()
        .map(|link| link.link.name.as_str())
        .filter(|other| other.eq_ignore_ascii_case(name) || other.starts_with(name) || name.starts_with(other))
        .take(3)
        .collect();
    if near.is_empty() {
        String::new()
    } else {
        format!(" (there is {})", near.join(", "))
    }
}

/// Why the kernel would refuse it, in words that it does not have.
fn refusal(
    wanted: &Wanted,
    all: &[Wanted],
    parent: Option<&LinkState>,
    at: Option<Made>,
    context: Context<'_>,
) -> Option<String> {
    if wanted.queue.is_some() && !context.features.queue {
        return Some("this kernel's macvlan has no bc_queue_len (since Linux 5.11): leave it out".to_owned());
    }
    if wanted.cutoff.is_some() && !context.features.cutoff {
        return Some("this kernel's macvlan has no bc_cutoff (since Linux 6.5): leave it out".to_owned());
    }
    let parent = parent?;
    let name = &wanted.parent;
    if parent.link.hardware != ETHERNET {
        return Some(format!(
            "{name} is not an Ethernet interface, and macvlan needs one: name another parent"
        ));
    }
    if let Some(master) = parent.master {
        let own = context.actual.own();
        let master = own
            .and_then(|own| own.link(master))
            .map_or("its master", |link| link.link.name.as_str());
        return Some(format!(
            "{name} is a port of {master}, which takes all its frames: name {master} as the parent"
        ));
    }
    if let Some(mtu) = wanted.mtu.filter(|mtu| *mtu > parent.link.mtu) {
        return Some(format!(
            "mtu {mtu} is over that of {name}, {0}: expected at most {0}",
            parent.link.mtu
        ));
    }
    neighbours(wanted, all, parent, at, context)
}

/// What other sub-interfaces of the parent forbid.
fn neighbours(
    wanted: &Wanted,
    all: &[Wanted],
    parent: &LinkState,
    at: Option<Made>,
    context: Context<'_>,
) -> Option<String> {
    let first_of_name = all
        .iter()
        .find(|other| other.place == wanted.place && other.name == wanted.name);
    if let Some(first) = first_of_name.filter(|first| first.id != wanted.id) {
        let text = format!("{} is the same interface by another name of its namespace", first.label);
        return Some(format!("{text}: leave one of them out"));
    }
    let going = |inode: u32, link: &LinkState| {
        // Ours that is to go or to be made anew does not count.
        context.record.entries.iter().any(|(id, entry)| {
            entry.made
                == Some(Made {
                    netns: inode,
                    ifindex: link.index(),
                })
                && !all.iter().any(|other| other.id == *id)
        })
    };
    for (inode, space) in &context.actual.spaces {
        let on_parent = space
            .links
            .iter()
            .filter(|link| link.mode().is_some() && space.stands_on(link, parent.index()));
        for link in on_parent {
            let here = Made {
                netns: *inode,
                ifindex: link.index(),
            };
            if at == Some(here) {
                continue;
            }
            let passthru = link.mode() == Some(link::Mode::Passthru);
            let alone = passthru || wanted.mode == Mode::Passthru;
            let same_mac = wanted.mac.is_some() && link.link.mac == wanted.mac && link.link.up && wanted.up;
            // Few are in the way, so only of those is asked whether they go.
            if !(alone || same_mac) || going(*inode, link) {
                continue;
            }
            let other = format!("{}/{}", space.label, link.link.name);
            if alone {
                let which = if passthru {
                    "takes it alone in mode passthru"
                } else {
                    "is on it, and passthru takes it alone"
                };
                return Some(format!(
                    "{other} {which}: name another parent than {}, or another mode",
                    wanted.parent
                ));
            }
            let mac = wanted.mac.map(|mac| Mac(mac).to_string()).unwrap_or_default();
            return Some(format!("its MAC {mac} is in use by {other}: give one of them another"));
        }
    }
    if wanted.mac.is_some() && wanted.mac == parent.link.mac {
        return Some(format!(
            "its MAC is that of its parent {}: give it another",
            wanted.parent
        ));
    }
    None
}

/// Why a link cannot become what is wanted by changing it.
fn must_be_made_anew(
    wanted: &Wanted,
    link: &LinkState,
    space: &SpaceState,
    parent: Option<&LinkState>,
) -> Option<String> {
    let kind = match link.link.macvlan.as_ref()?.kind {
        link::Kind::Macvlan => Kind::Macvlan,
        link::Kind::Macvtap => Kind::Macvtap,
    };
    if kind != wanted.kind {
        return Some(format!("it is a {kind}, and no change makes it a {}", wanted.kind));
    }
    let mode = link.mode()?;
    if mode != wanted.mode.into() && (mode == link::Mode::Passthru || wanted.mode == Mode::Passthru) {
        return Some(format!(
            "it is in mode {mode}, and no change leads from there to {}",
            wanted.mode
        ));
    }
    match parent {
        Some(parent) if space.stands_on(link, parent.index()) => None,
        _ => Some(format!("it stands on another interface than {}", wanted.parent)),
    }
}

/// The steps from a link to what is wanted, in an order that the kernel takes.
fn differences(wanted: &Wanted, link: &LinkState, space: &SpaceState, ours: &[IpNet]) -> Vec<Step> {
    let mut steps = options(wanted, link);
    let here: Vec<IpNet> = space
        .addresses
        .iter()
        .filter(|address| address.ifindex == link.index())
        .map(|address| address.address)
        .collect();
    for old in ours.iter().filter(|old| here.contains(old)) {
        if !wanted.addresses.iter().any(|wanted| wanted.address == *old) {
            steps.push(Step::RemoveAddress(*old));
        }
    }
    for new in wanted.addresses.iter().filter(|new| !here.contains(&new.address)) {
        steps.push(Step::AddAddress(new.address, new.shared));
    }
    if link.alias.as_deref() != Some(&wanted.alias) {
        let from = link.alias.clone().unwrap_or_default();
        steps.push(Step::Alias(Change::new(from, wanted.alias.clone())));
    }
    match (link.link.up, wanted.up) {
        (false, true) => steps.push(Step::Up),
        (true, false) => steps.push(Step::Down),
        _ => {}
    }
    steps.extend(routes(wanted, link, space));
    steps
}

fn options(wanted: &Wanted, link: &LinkState) -> Vec<Step> {
    let mut steps = Vec::new();
    if link.link.name != wanted.name {
        steps.push(Step::Rename(Change::new(link.link.name.clone(), wanted.name.clone())));
    }
    if let Some(mode) = link.mode()
        && mode != wanted.mode.into()
    {
        steps.push(Step::Mode(Change::new(mode.to_string(), wanted.mode.to_string())));
    }
    if let Some(mac) = wanted.mac.filter(|mac| link.link.mac != Some(*mac)) {
        steps.push(Step::Mac(Change::new(Mac(link.link.mac.unwrap_or_default()), Mac(mac))));
    }
    if let Some(mtu) = wanted.mtu.filter(|mtu| link.link.mtu != *mtu) {
        steps.push(Step::Mtu(Change::new(link.link.mtu, mtu)));
    }
    if link.flags != wanted.flags {
        steps.push(Step::Flags(Change::new(link.flags, wanted.flags)));
    }
    if wanted.mode == Mode::Source && link.source_macs != wanted.source_macs {
        steps.push(Step::SourceMacs(Change::new(
            link.source_macs.clone(),
            wanted.source_macs.clone(),
        )));
    }
    let queue = link.link.macvlan.as_ref().and_then(|macvlan| macvlan.queue_asked);
    if let Some(length) = wanted.queue.filter(|length| queue != Some(*length)) {
        steps.push(Step::BcQueueLen(Change::new(queue.unwrap_or_default(), length)));
    }
    if let Some(cutoff) = wanted.cutoff.filter(|cutoff| link.cutoff != *cutoff) {
        steps.push(Step::BcCutoff(Change::new(link.cutoff, cutoff)));
    }
    steps
}

fn routes(wanted: &Wanted, link: &LinkState, space: &SpaceState) -> Vec<Step> {
    let here: BTreeSet<WantedRoute> = space
        .routes
        .iter()
        .filter(|route| route.ifindex == link.index() && route.protocol == ROUTE_PROTOCOL)
        .map(|route| WantedRoute {
            to: route.to,
            via: route.via,
            metric: route.metric,
        })
        .collect();
    let old = here.difference(&wanted.routes).map(|route| Step::RemoveRoute(*route));
    let new = wanted.routes.difference(&here).map(|route| Step::AddRoute(*route));
    old.chain(new).collect()
}

/// VLAN devices are made with their first user and go with their last.
fn vlans(wanted: &[Wanted], context: Context<'_>, prune: bool) -> Vec<VlanStep> {
    let own = context.actual.own();
    let named = |name: &str| own.and_then(|own| own.named(name));
    let used = |name: &str| wanted.iter().any(|each| each.parent == name);
    let kept = |name: &str| {
        // What stays although nobody asks for it still needs its parent.
        !prune
            && context
                .record
                .entries
                .values()
                .any(|entry| entry.origin == Origin::Config && parent_of(&entry.spec) == name)
    };
    let mut steps = Vec::new();
    for parent in context.parents.iter().filter(|parent| used(parent.name.as_str())) {
        let entry = context.record.parents.get(parent.name.as_str());
        match (named(parent.name.as_str()), named(parent.vlan.parent.as_str())) {
            (None, Some(base)) => steps.push(VlanStep::Create(parent.clone(), base.index())),
            (Some(link), _) if entry.is_some_and(|entry| unfinished(entry.made, link, parent, context.record)) => {
                steps.push(VlanStep::Finish(parent.clone(), link.index()));
            }
            _ => {}
        }
    }
    for (name, entry) in &context.record.parents {
        if used(name) || kept(name) {
            continue;
        }
        let link = named(name).filter(|link| {
            let marked = is_marked(link.alias.as_deref(), &parent_id(name))
                && entry.made.is_none_or(|made| made == link.index());
            marked || unfinished(entry.made, link, &entry.spec, context.record) && link.alias.is_none()
        });
        steps.push(match link {
            Some(link) => VlanStep::Delete(name.clone(), link.index()),
            None => VlanStep::Forget(name.clone()),
        });
    }
    steps
}

/// Whether a VLAN device is ours and was not made to the end.
fn unfinished(made: Option<u32>, link: &LinkState, parent: &Parent, record: &Record) -> bool {
    let marked = is_marked(link.alias.as_deref(), &parent_id(parent.name.as_str()));
    let half_made =
        made.is_none() && link.alias.is_none() && link.group == record.group && link.vlan == Some(parent.vlan.id);
    half_made || marked && (made.is_none() || made == Some(link.index()) && !link.link.up)
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
