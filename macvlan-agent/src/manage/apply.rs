//! Carries a plan out. Each sub-interface is made whole or not at all; what was changed of one is changed back when a
//! later step is refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

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
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVlan, RouteMessageBuilder};

use super::{
    announce::{self, Announcement},
    places::{Places, PlacesError},
    plan::{Actual, Context, Features, Plan, Removal, State, VlanStep, plan},
    record::{Made, Origin, ParentEntry, Record, RecordError, Spec, Store},
    sentence,
    state::{self, LinkState, ROUTE_PROTOCOL},
    step::Step,
    wanted::{self, Machine, Wanted, WantedAddress, WantedRoute, mark, parent_id},
    wire::{Refusal, Wire},
};
use crate::{
    config::{
        file::Parent,
        values::{Address, Kind, Mode},
    },
    resolve::ContainerPlace,
    topology::inventory::Inventory,
};

/// Changes may make further ones necessary: setting a link down takes its IPv6 addresses. So often is looked again.
const PASSES: u32 = 4;

/// How long the detection of duplicate addresses is waited for.
const SETTLE: Duration = Duration::from_secs(5);

/// Why nothing could be done at all.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The record cannot be used.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The namespaces cannot be read.
    #[error(transparent)]
    Places(#[from] PlacesError),
    /// The kernel does not say what it can.
    #[error("cannot find out what the kernel's macvlan knows: {0}")]
    Features(Refusal),
}

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// VLAN devices that may be made.
    pub parents: Vec<Parent>,
    /// Sub-interfaces and shims, and who asked for each.
    pub specs: Vec<(Origin, Spec)>,
    /// What the configuration no longer asks for goes.
    pub prune: bool,
}

impl Desired {
    /// What the record keeps of former commands, beside `self`.
    #[must_use]
    pub fn with_commands(mut self, record: &Record) -> Self {
        let ids: BTreeSet<String> = self.specs.iter().map(|(_, spec)| id_of(spec)).collect();
        for (id, entry) in &record.entries {
            let expired = entry.confirm_by.is_some_and(|by| by < super::operation::now());
            if entry.origin == Origin::Command && !ids.contains(id) && !expired {
                self.specs.push((Origin::Command, entry.spec.clone()));
            }
        }
        for entry in record.parents.values() {
            if !self.parents.iter().any(|parent| parent.name == entry.spec.name) {
                self.parents.push(entry.spec.clone());
            }
        }
        self
    }
}

/// The id of what was asked for.
#[must_use]
pub fn id_of(spec: &Spec) -> String {
    match spec {
        Spec::SubInterface(spec) => wanted::id(spec.netns.as_ref(), &spec.name),
        Spec::Shim(spec) => wanted::id(None, &spec.name),
    }
}

/// What became of one.
#[derive(Clone, Debug)]
pub struct Done {
    /// Its id.
    pub id: String,
    /// What people call it.
    pub label: String,
    /// What was asked for.
    pub spec: Spec,
    /// How it is.
    pub state: State,
    /// What had happened to it before.
    pub found: Option<String>,
    /// What was done, or is to be.
    pub steps: Vec<Step>,
    /// Where it is.
    pub at: Option<Made>,
}

/// What became of all.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Each that was asked for.
    pub items: Vec<Done>,
    /// Each that was or is to be removed, and why.
    pub removed: Vec<(String, String)>,
    /// VLAN devices that were or are to be made or removed.
    pub parents: Vec<String>,
    /// What could not be removed, or not made, beside the items.
    pub failures: Vec<String>,
    announcements: Vec<Announcement>,
}

impl Outcome {
    /// Whether anything was or is to be changed.
    #[must_use]
    pub fn changes(&self) -> bool {
        !self.removed.is_empty() || !self.parents.is_empty() || self.items.iter().any(|item| !item.steps.is_empty())
    }

    /// Whether something could not be done.
    #[must_use]
    pub fn failed(&self) -> bool {
        !self.failures.is_empty() || self.items.iter().any(|item| matches!(item.state, State::Failed(_)))
    }

    /// Tells the neighbours of what is new; takes most of a second.
    pub fn announce(&self) {
        announce::announce(&self.announcements);
    }
}

/// Knows the whole host. Asked on threads that may block.
pub trait Survey {
    /// Who there is in all namespaces; for shims.
    fn inventory(&self) -> Inventory;
    /// The containers and where their namespaces are; or why that is not known.
    fn containers(&self) -> Result<Vec<ContainerPlace>, String>;
}

/// The workshop: open namespaces, the record, what was asked for.
struct Work<'a> {
    places: Places<'a>,
    record: Record,
    desired: &'a Desired,
    survey: &'a dyn Survey,
    machine: Machine,
    features: Option<Features>,
}

/// What is to be done and why.
struct Look {
    wanted: Vec<Wanted>,
    actual: Actual,
    plan: Plan,
}

impl<'a> Work<'a> {
    fn new(record: Record, desired: &'a Desired, survey: &'a dyn Survey) -> Result<Self, ApplyError> {
        Ok(Self {
            places: Places::open(survey)?,
            machine: Machine::of(&record),
            record,
            desired,
            survey,
            features: None,
        })
    }

    /// Reads everything and makes a plan.
    fn look(&mut self) -> Result<Look, ApplyError> {
        let places: Vec<_> = self
            .desired
            .specs
            .iter()
            .map(|(_, spec)| match spec {
                Spec::SubInterface(spec) => self.places.resolve(spec.netns.as_ref()),
                Spec::Shim(_) => Ok(self.places.own),
            })
            .collect();
        // What is to go may be where nothing is wanted any more.
        for entry in self.record.entries.values() {
            if let Spec::SubInterface(spec) = &entry.spec {
                let _ = self.places.resolve(spec.netns.as_ref());
            }
        }
        let features = self.features()?;
        let mut actual = self.places.read()?;
        let wanted = self.wanted(&places, &actual);
        let mut plan = self.plan(&wanted, &actual, features);
        if plan.misses_something(&wanted, &self.record) {
            self.places.take_all_named();
            actual = self.places.read()?;
            plan = self.plan(&wanted, &actual, features);
        }
        Ok(Look { wanted, actual, plan })
    }

    fn plan(&self, wanted: &[Wanted], actual: &Actual, features: Features) -> Plan {
        let context = Context {
            parents: &self.desired.parents,
            record: &self.record,
            actual,
            features,
        };
        plan(wanted, context, self.desired.prune)
    }

    fn wanted(&self, places: &[Result<u32, wanted::Absence>], actual: &Actual) -> Vec<Wanted> {
        let shims = self.desired.specs.iter().any(|(_, spec)| matches!(spec, Spec::Shim(_)));
        let inventory = if shims {
            self.survey.inventory()
        } else {
            Inventory::default()
        };
        self.desired
            .specs
            .iter()
            .zip(places)
            .map(|((origin, spec), place)| match spec {
                Spec::SubInterface(spec) => wanted::sub_interface(&self.machine, *origin, spec, place.clone()),
                Spec::Shim(spec) => {
                    let addresses = addresses_of(actual, spec.parent.as_str());
                    wanted::shim(&self.machine, *origin, spec, self.places.own, &addresses, &inventory)
                }
            })
            .collect()
    }

    /// Asks the kernel only for what somebody wants: asking loads its module.
    fn features(&mut self) -> Result<Features, ApplyError> {
        const BC_QUEUE_LEN: u16 = 7;
        const BC_CUTOFF: u16 = 9;
        if let Some(features) = self.features {
            return Ok(features);
        }
        let asked = |wish: fn(&crate::config::file::SubInterface) -> bool| {
            self.desired
                .specs
                .iter()
                .any(|(_, spec)| matches!(spec, Spec::SubInterface(spec) if wish(spec)))
        };
        let (queue, cutoff) = (
            asked(|spec| spec.bc_queue_len.is_some()),
            asked(|spec| spec.bc_cutoff.is_some()),
        );
        let own = self.places.own;
        let mut knows = |asked: bool, attribute| match self.places.get(own) {
            Some(place) if asked => match place.wire.macvlan_knows(attribute) {
                // No macvlan at all: making one will say so.
                Err(refusal) if refusal.errno == libc::EOPNOTSUPP => Ok(true),
                other => other.map_err(ApplyError::Features),
            },
            _ => Ok(true),
        };
        let features = Features {
            queue: knows(queue, BC_QUEUE_LEN)?,
            cutoff: knows(cutoff, BC_CUTOFF)?,
        };
        self.features = Some(features);
        Ok(features)
    }
}

fn addresses_of(actual: &Actual, parent: &str) -> Vec<IpAddr> {
    let Some(own) = actual.spaces.get(&actual.own) else {
        return Vec::new();
    };
    let index = own.named(parent).map(LinkState::index);
    let here = own.addresses.iter().filter(|address| Some(address.ifindex) == index);
    here.map(|address| address.address.addr()).collect()
}

/// What would be done; changes nothing.
pub fn preview(record: Record, desired: &Desired, survey: &dyn Survey) -> Result<Outcome, ApplyError> {
    let mut work = Work::new(record, desired, survey)?;
    // As the first pass of `reconcile` notes it, so that both see the same.
    let look = work.look()?;
    let mut outcome = Outcome::default();
    outcome.note_plan(&look, false);
    Ok(outcome)
}

/// Makes it so.
pub fn reconcile(store: &mut Store, desired: &Desired, survey: &dyn Survey) -> Result<Outcome, ApplyError> {
    let mut work = Work::new(store.record.clone(), desired, survey)?;
    let mut outcome = Outcome::default();
    let mut touched: BTreeSet<String> = BTreeSet::new();
    let mut refused: BTreeMap<String, String> = BTreeMap::new();
    for pass in 0..PASSES {
        let look = work.look()?;
        note_wanted(&mut work.record, &look);
        outcome.note_plan(&look, pass > 0);
        if look.plan.is_empty() {
            finish(&mut work.record, &look, true);
            break;
        }
        // Written down before the kernel hears of it.
        note_intentions(&mut work.record, &look);
        save(store, &work.record)?;
        let todo: Vec<usize> = (0..look.plan.items.len())
            .filter(|number| !refused.contains_key(&look.wanted[look.plan.items[*number].wanted].id))
            .collect();
        let progress = work.carry_out(&look, &todo, &mut outcome, &mut touched, &mut refused);
        finish(&mut work.record, &look, false);
        if !progress {
            break;
        }
    }
    for item in &mut outcome.items {
        if let Some(reason) = refused.get(&item.id) {
            item.state = State::Failed(reason.clone());
        }
    }
    work.settle(&mut outcome, &touched)?;
    work.places.be_told();
    save(store, &work.record)?;
    Ok(outcome)
}

fn save(store: &mut Store, record: &Record) -> Result<(), RecordError> {
    store.record = record.clone();
    store.save()
}

/// Everything that is wanted has an entry.
fn note_wanted(record: &mut Record, look: &Look) {
    for (item, wanted) in look.plan.items.iter().zip(&look.wanted) {
        let entry = record
            .entries
            .entry(wanted.id.clone())
            .or_insert_with(|| super::record::Entry {
                origin: wanted.origin,
                spec: wanted.spec.clone(),
                intended: None,
                mac: wanted.mac,
                made: None,
                addresses: Vec::new(),
                confirm_by: None,
            });
        entry.origin = wanted.origin;
        entry.spec = wanted.spec.clone();
        if let Ok(inode) = wanted.place {
            entry.intended = Some(inode);
        }
        if item.at.is_some() {
            entry.made = item.at;
        }
    }
}

/// What is about to be made is ours from now on.
fn note_intentions(record: &mut Record, look: &Look) {
    for (item, wanted) in look.plan.items.iter().zip(&look.wanted) {
        let Some(entry) = record.entries.get_mut(&wanted.id) else {
            continue;
        };
        if item.steps.contains(&Step::Create) {
            if item.at.is_none() {
                entry.made = None;
            }
            entry.mac = wanted.mac;
        }
        for address in &wanted.addresses {
            let address = Address(address.address);
            let to_add = item.steps.iter().any(|step| match step {
                Step::Create => true,
                Step::AddAddress(added, _) => *added == address.0,
                _ => false,
            });
            if to_add && !entry.addresses.contains(&address) {
                entry.addresses.push(address);
            }
        }
    }
    for step in &look.plan.vlans {
        if let VlanStep::Create(parent, _) = step {
            let name = parent.name.to_string();
            record.parents.insert(
                name,
                ParentEntry {
                    spec: parent.clone(),
                    made: None,
                },
            );
        }
    }
}

/// What is settled: `whole` where nothing is left to be done.
fn finish(record: &mut Record, look: &Look, whole: bool) {
    if !whole {
        return;
    }
    for (item, wanted) in look.plan.items.iter().zip(&look.wanted) {
        if let Some(entry) = record.entries.get_mut(&wanted.id)
            && item.at.is_some()
        {
            entry.mac = wanted.mac;
            entry.addresses = wanted
                .addresses
                .iter()
                .map(|address| Address(address.address))
                .collect();
        }
    }
    let own = look.actual.spaces.get(&look.actual.own);
    for (name, entry) in &mut record.parents {
        let link = own.and_then(|own| own.named(name));
        let ours = link.filter(|link| wanted::is_marked(link.alias.as_deref(), &parent_id(name)));
        if let Some(link) = ours {
            entry.made = Some(link.index());
        }
    }
}

impl Outcome {
    /// Takes in what a pass plans; `again` where an earlier one was carried out.
    fn note_plan(&mut self, look: &Look, again: bool) {
        if !again {
            self.items = look
                .plan
                .items
                .iter()
                .zip(&look.wanted)
                .map(|(item, wanted)| Done {
                    id: wanted.id.clone(),
                    label: wanted.label.clone(),
                    spec: wanted.spec.clone(),
                    state: item.state.clone(),
                    found: item.found.clone(),
                    steps: item.steps.clone(),
                    at: item.at,
                })
                .collect();
            self.removed = look
                .plan
                .removals
                .iter()
                .filter(|removal| removal.at.is_some())
                .map(|removal| (removal.label.clone(), removal.because.clone()))
                .collect();
            self.parents = look.plan.vlans.iter().filter_map(said).collect();
            return;
        }
        for (done, item) in self.items.iter_mut().zip(&look.plan.items) {
            done.state = item.state.clone();
            done.at = item.at;
            let more = item.steps.iter().filter(|step| !done.steps.contains(step));
            let more: Vec<_> = more.cloned().collect();
            done.steps.extend(more);
        }
        for line in look.plan.vlans.iter().filter_map(said) {
            if !self.parents.contains(&line) {
                self.parents.push(line);
            }
        }
    }
}

/// A step about a VLAN device as people read it.
fn said(step: &VlanStep) -> Option<String> {
    match step {
        VlanStep::Create(parent, _) => Some(format!(
            "+ {}: VLAN {} of {}",
            parent.name, parent.vlan.id, parent.vlan.parent
        )),
        VlanStep::Finish(parent, _) => Some(format!("~ {}: its making was interrupted", parent.name)),
        VlanStep::Delete(name, _) => Some(format!("- {name}: nothing stands on it any more")),
        VlanStep::Forget(_) => None,
    }
}

impl Work<'_> {
    /// One pass. Tells whether anything was changed.
    fn carry_out(
        &mut self,
        look: &Look,
        todo: &[usize],
        outcome: &mut Outcome,
        touched: &mut BTreeSet<String>,
        refused: &mut BTreeMap<String, String>,
    ) -> bool {
        let mut progress = self.remove(&look.plan.removals, &look.actual, outcome);
        for step in &look.plan.vlans {
            if let VlanStep::Create(parent, base) = step {
                match self.make_vlan(parent, *base) {
                    Ok(()) => progress = true,
                    Err(reason) => {
                        let name = parent.name.as_str();
                        let users = look.wanted.iter().filter(|wanted| wanted.parent == name);
                        refused.extend(users.map(|wanted| (wanted.id.clone(), reason.clone())));
                        self.record.parents.remove(name);
                    }
                }
            }
            if let VlanStep::Finish(parent, index) = step {
                progress |= self.finish_vlan(parent, *index).is_ok();
            }
        }
        let parents = self.parent_indexes();
        for number in todo {
            let item = &look.plan.items[*number];
            let wanted = &look.wanted[item.wanted];
            if item.steps.is_empty() || refused.contains_key(&wanted.id) {
                continue;
            }
            match self.change(wanted, item.at, &item.steps, &parents, look) {
                Ok(()) => {
                    progress = true;
                    touched.insert(wanted.id.clone());
                }
                Err(reason) => {
                    // Deleted to be made anew, and not made: it is not there.
                    refused.insert(wanted.id.clone(), reason);
                }
            }
        }
        for step in &look.plan.vlans {
            match step {
                VlanStep::Delete(name, index) => {
                    let mut message = LinkMessage::default();
                    message.header.index = *index;
                    match self
                        .own_wire()
                        .map(|wire| wire.change(RouteNetlinkMessage::DelLink(message), 0))
                    {
                        Some(Err(refusal)) if refusal.errno != libc::ENODEV => {
                            outcome
                                .failures
                                .push(format!("cannot delete the VLAN device {name}: {refusal}"));
                        }
                        _ => {
                            self.record.parents.remove(name);
                            progress = true;
                        }
                    }
                }
                VlanStep::Forget(name) => {
                    self.record.parents.remove(name);
                    progress = true;
                }
                _ => {}
            }
        }
        progress
    }

    fn own_wire(&mut self) -> Option<&mut Wire> {
        let own = self.places.own;
        self.places.get(own).map(|place| &mut place.wire)
    }

    /// The indexes of the links that may be parents, VLAN devices that were just made among them.
    fn parent_indexes(&mut self) -> BTreeMap<String, u32> {
        let links = self
            .own_wire()
            .map(state::links)
            .and_then(Result::ok)
            .unwrap_or_default();
        links
            .iter()
            .map(|link| (link.link.name.clone(), link.index()))
            .collect()
    }

    /// Removes what nobody asks for. Many in one namespace go by one request, as a group: one by one each would wait
    /// for all processors.
    fn remove(&mut self, removals: &[Removal], actual: &Actual, outcome: &mut Outcome) -> bool {
        let mut progress = false;
        let mut by_space: BTreeMap<u32, Vec<&Removal>> = BTreeMap::new();
        for removal in removals {
            if let Some(at) = removal.at {
                by_space.entry(at.netns).or_default().push(removal);
            } else {
                self.record.entries.remove(&removal.id);
                progress = true;
            }
        }
        for (inode, list) in by_space {
            let Some(place) = self.places.get(inode) else { continue };
            let indexes: Vec<u32> = list
                .iter()
                .filter_map(|removal| removal.at)
                .map(|at| at.ifindex)
                .collect();
            let taken: BTreeSet<u32> = actual
                .spaces
                .get(&inode)
                .map(|space| space.links.iter().map(|link| link.group).collect())
                .unwrap_or_default();
            let mut free = (self.record.group..=u32::MAX)
                .skip(1)
                .filter(|group| !taken.contains(group));
            let group = free.next().unwrap_or(1);
            match delete(&mut place.wire, &indexes, group) {
                Ok(()) => {
                    for removal in list {
                        self.record.entries.remove(&removal.id);
                    }
                    progress = true;
                }
                Err(refusal) => {
                    let labels: Vec<_> = list.iter().map(|removal| removal.label.as_str()).collect();
                    outcome
                        .failures
                        .push(format!("cannot delete {}: {refusal}", labels.join(", ")));
                }
            }
        }
        progress
    }

    fn make_vlan(&mut self, parent: &Parent, base: u32) -> Result<(), String> {
        let group = self.record.group;
        let name = parent.name.as_str();
        let wire = self.own_wire().ok_or("the own namespace is not open")?;
        let message = LinkVlan::new(name, base, parent.vlan.id).link_group(group).build();
        let made = wire
            .change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
            .and_then(|()| index_of(wire, name));
        let said = |refusal: Refusal| sentence::of_vlan(name, parent.vlan.parent.as_str(), &refusal);
        let index = made.map_err(said)?;
        self.finish_vlan(parent, index).map_err(|refusal| {
            // What was made goes again: whole or not at all.
            let _ = self.own_wire().map(|wire| delete(wire, &[index], 0));
            said(refusal)
        })
    }

    fn finish_vlan(&mut self, parent: &Parent, index: u32) -> Result<(), Refusal> {
        let alias = mark(&parent_id(parent.name.as_str()));
        let message = LinkUnspec::new_with_index(index).alias(alias).up().build();
        match self.own_wire() {
            Some(wire) => wire.change(RouteNetlinkMessage::NewLink(message), 0),
            None => Ok(()),
        }
    }

    /// The steps of one, with those done undone when one is refused.
    fn change(
        &mut self,
        wanted: &Wanted,
        at: Option<Made>,
        steps: &[Step],
        parents: &BTreeMap<String, u32>,
        look: &Look,
    ) -> Result<(), String> {
        let own = self.places.own;
        let group = self.record.group;
        let mut at = at;
        let mut undo: Vec<Step> = Vec::new();
        for step in steps {
            let inode = match (step, at) {
                (Step::Create, _) | (_, None) => wanted.place.clone().unwrap_or(own),
                (_, Some(at)) => at.netns,
            };
            let result = match self.places.get(inode) {
                None => Err(Refusal {
                    errno: libc::ENOENT,
                    text: Some("the namespace has gone".to_owned()),
                }),
                Some(place) => match step {
                    Step::Create => {
                        let parent = parents.get(&wanted.parent).copied();
                        match create(&mut place.wire, place.host_nsid, wanted, parent, group) {
                            Ok(()) => {
                                at = None;
                                Ok(())
                            }
                            Err((step, refusal)) => {
                                let holder = holder(wanted, look);
                                return Err(sentence::of_step(&step, &refusal, wanted, holder.as_deref()));
                            }
                        }
                    }
                    other => match at {
                        Some(at) => perform(&mut place.wire, at.ifindex, other, wanted.kind),
                        None => Ok(()),
                    },
                },
            };
            match result {
                Ok(()) => undo.extend(step.inverse()),
                // It is as it should be already.
                Err(refusal) if matches!(step, Step::RemoveAddress(_) | Step::RemoveRoute(_)) && gone(&refusal) => {}
                Err(refusal) => {
                    if let Some(at) = at
                        && let Some(place) = self.places.get(at.netns)
                    {
                        for step in undo.iter().rev() {
                            let _ = perform(&mut place.wire, at.ifindex, step, wanted.kind);
                        }
                    }
                    let holder = holder(wanted, look);
                    return Err(sentence::of_step(step, &refusal, wanted, holder.as_deref()));
                }
            }
        }
        Ok(())
    }

    /// Waits until addresses have been found to be nobody else's, and notes whom the neighbours should hear of.
    fn settle(&mut self, outcome: &mut Outcome, touched: &BTreeSet<String>) -> Result<(), ApplyError> {
        if touched.is_empty() {
            return Ok(());
        }
        let deadline = Instant::now() + SETTLE;
        loop {
            let actual = self.places.read()?;
            let mut waiting = false;
            outcome.announcements.clear();
            for done in outcome
                .items
                .iter_mut()
                .filter(|done| touched.contains(&done.id) && done.state == State::Ready)
            {
                let Some((at, space)) = done.at.and_then(|at| Some((at, actual.spaces.get(&at.netns)?))) else {
                    continue;
                };
                let Some(link) = space.link(at.ifindex).filter(|link| link.link.up) else {
                    continue;
                };
                let entry = self.record.entries.get(&done.id);
                let ours = |ip: &IpAddr| entry.is_some_and(|entry| entry.addresses.iter().any(|a| a.0.addr() == *ip));
                let mine = space.addresses.iter().filter(|address| address.ifindex == at.ifindex);
                let mine: Vec<_> = mine.filter(|address| ours(&address.address.addr())).collect();
                waiting |= mine.iter().any(|address| address.tentative());
                if let Some(taken) = mine.iter().find(|address| address.duplicate()) {
                    done.state = State::Failed(format!(
                        "another station has the address {} (duplicate address detection failed)",
                        taken.address.addr()
                    ));
                } else if let (Some(mac), Some(place)) = (link.link.mac, self.places.get(at.netns)) {
                    outcome.announcements.push(Announcement {
                        netns: Arc::clone(&place.netns),
                        ifindex: at.ifindex,
                        mac,
                        addresses: mine.iter().map(|address| address.address.addr()).collect(),
                    });
                }
            }
            if !waiting || Instant::now() > deadline {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn gone(refusal: &Refusal) -> bool {
    [libc::EADDRNOTAVAIL, libc::ESRCH, libc::ENODEV].contains(&refusal.errno)
}

/// Who has the MAC that is wanted.
fn holder(wanted: &Wanted, look: &Look) -> Option<String> {
    let mac = wanted.mac?;
    look.actual.spaces.values().find_map(|space| {
        let link = space
            .links
            .iter()
            .find(|link| link.link.mac == Some(mac) && link.link.up)?;
        Some(format!("{}/{}", space.label, link.link.name))
    })
}

/// The index of the link with a name.
fn index_of(wire: &mut Wire, name: &str) -> Result<u32, Refusal> {
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
fn delete(wire: &mut Wire, indexes: &[u32], group: u32) -> Result<(), Refusal> {
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
fn create(
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
    let finish = |wire: &mut Wire, index: u32| -> Result<(), (Step, Refusal)> {
        if matches!(wanted.spec, Spec::Shim(_)) {
            keep_quiet(&wanted.name).map_err(|error| (Step::Create, error.into()))?;
        }
        for address in &wanted.addresses {
            let step = Step::AddAddress(address.address, address.shared);
            perform(wire, index, &step, wanted.kind).map_err(fail(step))?;
        }
        let mut message: LinkMessageBuilder<LinkUnspec> = LinkUnspec::new_with_index(index).alias(&wanted.alias);
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
    let index = index_of(wire, &wanted.name).map_err(fail(Step::Create))?;
    finish(wire, index).inspect_err(|_| {
        let _ = delete(wire, &[index], 0);
    })
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
fn perform(wire: &mut Wire, index: u32, step: &Step, kind: Kind) -> Result<(), Refusal> {
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
