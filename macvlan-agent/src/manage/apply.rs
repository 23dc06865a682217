//! Looks at what there is, has a plan made, and sees that it is carried out and written down.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use super::{
    announce::{self, Announcement},
    places::{Places, PlacesError},
    plan::{Actual, Context, Features, Plan, State, VlanStep, plan},
    record::{Made, Origin, ParentEntry, Record, RecordError, Spec, Store},
    state::LinkState,
    step::Step,
    wanted::{self, Machine, Wanted, parent_id},
    wire::Refusal,
};
use crate::{
    config::{file::Parent, values::Address},
    resolve::ContainerPlace,
    topology::inventory::Inventory,
};

mod carry;
mod request;

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
