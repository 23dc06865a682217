//! What can be asked for: a configuration to be applied, one sub-interface or shim to be made, changed or removed. The
//! same for the commands and for the control socket.

use std::{
    net::IpAddr,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::{
    apply::{ApplyError, Desired, Outcome, Survey, id_of, preview, reconcile},
    plan::{State, label_of},
    record::{Origin, Record, RecordError, Spec, Store},
    shim::{self, Reach},
    state,
    view::OutcomeView,
    wanted,
    wire::{Refusal, Wire},
};
use crate::{
    config::{
        check::{Fault, shim_faults, sub_interface_faults},
        file::{Config, Parent, Shim, ShimRoutes, SubInterface, Vlan},
        load::{Complaints, Loaded},
        values::{Mode, NetnsRef},
    },
    topology::netns::{Netns, NetnsError},
};

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum OperationError {
    /// It cannot be done as it was asked for; nothing is changed.
    #[error("{0}")]
    Refused(String),
    /// The configuration asks for what this host cannot give; nothing is changed.
    #[error("{0}")]
    Configuration(Complaints),
    /// Nothing can be done at all.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The record cannot be used.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A shim cannot be looked at.
    #[error("cannot look at the shim: {0}")]
    Shim(#[from] Refusal),
    /// The agent's own namespace cannot be opened.
    #[error("cannot open the agent's own network namespace")]
    Own(#[from] NetnsError),
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// To what.
    pub outcome: OutcomeView,
    /// Of a shim: who can be reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reach: Vec<Reach>,
}

/// A report, and what is still to be said to the neighbours.
pub struct Finished {
    /// What was done.
    pub report: Report,
    /// See [`Outcome::announce`].
    pub outcome: Outcome,
}

impl Finished {
    fn of(outcome: Outcome) -> Self {
        Self {
            report: Report {
                outcome: OutcomeView::from(&outcome),
                reach: Vec::new(),
            },
            outcome,
        }
    }

    /// The same with the one item only that was asked about.
    fn only(mut self, id: &str) -> Self {
        self.report.outcome.items.retain(|item| item.id == id);
        self
    }
}

/// What a configuration asks for.
#[must_use]
pub fn desired(config: &Config, prune: bool) -> Desired {
    let subs = config.sub_interfaces.iter().cloned().map(Spec::SubInterface);
    let shims = config.shims.iter().cloned().map(Spec::Shim);
    Desired {
        parents: config.parents.clone(),
        specs: subs.chain(shims).map(|spec| (Origin::Config, spec)).collect(),
        prune,
    }
}

/// What applying a configuration would do; changes nothing.
pub fn plan(record: Record, loaded: &Loaded, prune: bool, survey: &dyn Survey) -> Result<Outcome, OperationError> {
    let desired = desired(&loaded.config, prune).with_commands(&record);
    Ok(preview(record, &desired, survey)?)
}

/// What a plan finds that cannot be done, with its place in the file.
#[must_use]
pub fn complaints(loaded: &Loaded, outcome: &Outcome) -> Option<Complaints> {
    let subs = loaded.config.sub_interfaces.len();
    let list: Vec<_> = outcome
        .items
        .iter()
        .enumerate()
        .take(subs + loaded.config.shims.len())
        .filter_map(|(number, item)| {
            let State::Failed(reason) = &item.state else {
                return None;
            };
            let at = if number < subs {
                format!("sub_interfaces[{number}]")
            } else {
                format!("shims[{}]", number - subs)
            };
            // The reason begins with the key that it is about, where it is about one.
            let key = ["mtu", "bc_queue_len", "bc_cutoff"]
                .into_iter()
                .find(|key| reason.starts_with(key) || reason.contains(&format!("no {key} ")));
            let field = key.map_or_else(|| at.clone(), |key| format!("{at}.{key}"));
            Some(loaded.complaint(Fault {
                field,
                text: format!("{}: {reason}", item.label),
            }))
        })
        .collect();
    (!list.is_empty()).then_some(Complaints(list))
}

/// Applies a configuration: all that can be done now, or nothing where something cannot be done at all.
pub fn apply(store: &mut Store, loaded: &Loaded, prune: bool, survey: &dyn Survey) -> Result<Finished, OperationError> {
    let outcome = plan(store.record.clone(), loaded, prune, survey)?;
    if let Some(complaints) = complaints(loaded, &outcome) {
        return Err(OperationError::Configuration(complaints));
    }
    let desired = desired(&loaded.config, prune).with_commands(&store.record);
    Ok(Finished::of(reconcile(store, &desired, survey)?))
}

/// How something is to be made.
#[derive(Clone, Debug, Default)]
pub struct How {
    /// It is there and is to be changed.
    pub replace: bool,
    /// What it was when the change was made up; where it is something else by now, nothing is changed.
    pub was: Option<Spec>,
    /// It goes again after this time unless it is confirmed.
    pub confirm_within: Option<Duration>,
}

/// Makes or changes a sub-interface or shim, beside what `base` asks for.
pub fn put(
    store: &mut Store,
    base: &Desired,
    spec: &Spec,
    how: &How,
    survey: &dyn Survey,
) -> Result<Finished, OperationError> {
    valid(spec)?;
    let (id, label) = (id_of(spec), label_of(spec));
    let before = store.record.entries.get(&id).cloned();
    match &before {
        Some(entry) if entry.origin == Origin::Config => {
            return Err(OperationError::Refused(format!(
                "{label} comes from the configuration: change it there, and apply that"
            )));
        }
        Some(entry) if entry.spec != *spec && !how.replace => {
            let text = format!("{label} is there already, made otherwise");
            return Err(OperationError::Refused(format!(
                "{text}: `macvlan-agent set` changes it, `del` removes it"
            )));
        }
        None if how.replace => return Err(unknown(&store.record, &label)),
        Some(entry) if how.was.as_ref().is_some_and(|was| *was != entry.spec) => {
            return Err(OperationError::Refused(format!(
                "{label} was changed by somebody else meanwhile: nothing is changed; look at it and say it again"
            )));
        }
        _ => {}
    }
    alone(&store.record, base, spec, &id)?;
    let asked_before = match spec {
        Spec::Shim(shim) if before.is_none() => answering(shim, survey)?,
        _ => Vec::new(),
    };
    let mut desired = base.clone().with_commands(&store.record);
    desired.specs.retain(|(_, other)| id_of(other) != id);
    desired.specs.push((Origin::Command, spec.clone()));
    desired.parents.extend(implied_parent(&desired, spec)?);
    let outcome = reconcile(store, &desired, survey)?;
    let done = outcome.items.iter().find(|item| item.id == id);
    if let Some(State::Failed(reason)) = done.map(|done| done.state.clone()) {
        // As if it had never been asked for.
        match before {
            Some(entry) => {
                let made = store.record.entries.get(&id).and_then(|entry| entry.made);
                let entry = super::record::Entry { made, ..entry };
                store.record.entries.insert(id, entry);
                store.save()?;
            }
            None => take_back(store, base, &id, survey)?,
        }
        return Err(OperationError::Refused(format!("{label}: {reason}")));
    }
    let mut finished = Finished::of(outcome).only(&id);
    if let Spec::Shim(spec) = spec {
        finished.report.reach = reach(store, &id, spec, &asked_before, survey)?;
        if let Some(worse) = finished.report.reach.iter().find(|reach| reach.is_worse()) {
            let ip = worse.address;
            take_back(store, base, &id, survey)?;
            return Err(OperationError::Refused(format!(
                "{label} was taken back: {ip} answered the host before (the switch sends frames back), and did not \
                 through the shim"
            )));
        }
        if let Some(entry) = store.record.entries.get_mut(&id) {
            entry.confirm_by = how.confirm_within.map(|within| now() + within.as_secs());
        }
        store.save()?;
    }
    Ok(finished)
}

fn take_back(store: &mut Store, base: &Desired, id: &str, survey: &dyn Survey) -> Result<(), OperationError> {
    let mut desired = base.clone().with_commands(&store.record);
    desired.specs.retain(|(_, other)| id_of(other) != id);
    reconcile(store, &desired, survey)?;
    Ok(())
}

/// What is asked for must be right by itself…
fn valid(spec: &Spec) -> Result<(), OperationError> {
    let faults = match spec {
        Spec::SubInterface(spec) => sub_interface_faults(spec),
        Spec::Shim(spec) => shim_faults(spec),
    };
    if faults.is_empty() {
        return Ok(());
    }
    let lines: Vec<_> = faults
        .iter()
        .map(|fault| format!("{}: {}", fault.field, fault.text))
        .collect();
    Err(OperationError::Refused(lines.join("\n")))
}

/// …and beside the others that are asked for: the rules of the configuration hold for both together.
fn alone(record: &Record, base: &Desired, spec: &Spec, id: &str) -> Result<(), OperationError> {
    let mut config = Config::default();
    let former = base.clone().with_commands(record).specs;
    let others = former
        .into_iter()
        .map(|(_, spec)| spec)
        .filter(|other| id_of(other) != id);
    for each in others.chain([spec.clone()]) {
        match each {
            Spec::SubInterface(each) => config.sub_interfaces.push(each),
            Spec::Shim(each) => config.shims.push(each),
        }
    }
    let labels = |text: &str| {
        let mut text = text.to_owned();
        for (number, each) in config.sub_interfaces.iter().enumerate().rev() {
            let label = wanted::label(each.netns.as_ref(), &each.name);
            text = text.replace(&format!("sub_interfaces[{number}]"), &label);
        }
        for (number, each) in config.shims.iter().enumerate().rev() {
            text = text.replace(&format!("shims[{number}]"), each.name.as_str());
        }
        text
    };
    match crate::config::check::faults(&config).first() {
        Some(fault) => Err(OperationError::Refused(labels(&format!(
            "{}: {}",
            fault.field, fault.text
        )))),
        None => Ok(()),
    }
}

/// The VLAN device that a name like `eth0.10` stands for, where it is not there and eth0 is.
fn implied_parent(desired: &Desired, spec: &Spec) -> Result<Option<Parent>, OperationError> {
    let parent = match spec {
        Spec::SubInterface(spec) => &spec.parent,
        Spec::Shim(spec) => &spec.parent,
    };
    if desired.parents.iter().any(|other| other.name == *parent) {
        return Ok(None);
    }
    let Some((base, id)) = parent.as_str().rsplit_once('.') else {
        return Ok(None);
    };
    let (Ok(base), Ok(id)) = (base.parse(), id.parse::<u16>()) else {
        return Ok(None);
    };
    let links = state::links(&mut own_wire()?)?;
    let there = |name: &str| links.iter().any(|link| link.link.name == name);
    if there(parent.as_str()) || !there(crate::config::values::InterfaceName::as_str(&base)) {
        return Ok(None);
    }
    if !(1..=4094).contains(&id) {
        let text = format!("parent: {parent} is not there, and {id} is no VLAN; expected 1 to 4094 behind the point");
        return Err(OperationError::Refused(text));
    }
    Ok(Some(Parent {
        name: parent.clone(),
        vlan: Vlan { parent: base, id },
    }))
}

/// Removes a sub-interface or shim that a command made, beside what `base` asks for.
pub fn remove(store: &mut Store, base: &Desired, id: &str, survey: &dyn Survey) -> Result<Finished, OperationError> {
    let Some(entry) = store.record.entries.get(id) else {
        return Err(unknown(&store.record, id));
    };
    if entry.origin == Origin::Config {
        return Err(OperationError::Refused(format!(
            "{} comes from the configuration: take it out there, and apply that with --prune",
            label_of(&entry.spec)
        )));
    }
    let mut desired = base.clone().with_commands(&store.record);
    desired.specs.retain(|(_, other)| id_of(other) != id);
    let outcome = reconcile(store, &desired, survey)?;
    if let Some(failure) = outcome.failures.first() {
        return Err(OperationError::Refused(failure.clone()));
    }
    let mut finished = Finished::of(outcome);
    finished.report.outcome.items.clear();
    Ok(finished)
}

/// Keeps a shim that is waiting to be confirmed.
pub fn confirm(store: &mut Store, id: &str) -> Result<(), OperationError> {
    match store.record.entries.get_mut(id) {
        Some(entry) if entry.confirm_by.is_some_and(|by| by >= now()) => {
            entry.confirm_by = None;
            Ok(store.save()?)
        }
        Some(entry) if entry.confirm_by.is_none() => Ok(()),
        _ => Err(OperationError::Refused(
            "it is too late: the shim was not confirmed in time and is taken back".to_owned(),
        )),
    }
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// The id of what `text` names among what is managed: a label, a whole id, or a name that only one has.
pub fn find(record: &Record, text: &str, netns: Option<&NetnsRef>, shims: bool) -> Result<String, OperationError> {
    let of_kind = record
        .entries
        .iter()
        .filter(|(_, entry)| matches!(entry.spec, Spec::Shim(_)) == shims);
    let label = netns.map_or_else(|| text.to_owned(), |netns| format!("{netns}/{text}"));
    let all: Vec<_> = of_kind
        .map(|(id, entry)| (id, label_of(&entry.spec), &entry.spec))
        .collect();
    if let Some((id, ..)) = all
        .iter()
        .find(|(id, other, _)| *other == label || netns.is_none() && *id == text)
    {
        return Ok((*id).clone());
    }
    let named = |spec: &Spec| match spec {
        Spec::SubInterface(spec) => netns.is_none() && spec.name.as_str() == text,
        Spec::Shim(spec) => spec.name.as_str() == text || spec.parent.as_str() == text,
    };
    let named: Vec<_> = all.iter().filter(|(.., spec)| named(spec)).collect();
    match named.as_slice() {
        [(id, ..)] => Ok((*id).clone()),
        [] => Err(unknown(record, &label)),
        several => {
            let labels: Vec<_> = several.iter().map(|(_, label, _)| label.as_str()).collect();
            let text = format!("{text} could be any of {}: say which", labels.join(", "));
            Err(OperationError::Refused(text))
        }
    }
}

fn unknown(record: &Record, label: &str) -> OperationError {
    let near: Vec<_> = record
        .entries
        .values()
        .map(|entry| label_of(&entry.spec))
        .filter(|other| other.contains(label) || label.contains(other.as_str()))
        .take(5)
        .collect();
    let near = if near.is_empty() {
        String::new()
    } else {
        format!("; it has {}", near.join(", "))
    };
    OperationError::Refused(format!(
        "this agent has made no {label}{near}. It changes and deletes only what it made: `ip link` does the rest"
    ))
}

fn own_wire() -> Result<Wire, OperationError> {
    let own = Netns::own()?;
    let wire = own.run(Wire::open)?;
    Ok(wire.map_err(Refusal::from)?)
}

/// The addresses behind a shim's parent, and which of them answer the host without a shim.
fn answering(spec: &Shim, survey: &dyn Survey) -> Result<Vec<IpAddr>, OperationError> {
    let mut wire = own_wire()?;
    let links = state::links(&mut wire)?;
    let Some(parent) = links.iter().find(|link| link.link.name == spec.parent.as_str()) else {
        return Ok(Vec::new());
    };
    let targets = targets(spec, survey)?;
    let answers = shim::ask(&mut wire, parent.index(), &targets)?;
    Ok(answers
        .into_iter()
        .filter(|(_, answered)| *answered)
        .map(|(ip, _)| ip)
        .collect())
}

fn targets(spec: &Shim, survey: &dyn Survey) -> Result<Vec<IpAddr>, OperationError> {
    let own = Netns::own()?.inode();
    let all = wanted::behind(&survey.inventory(), own, spec.parent.as_str());
    Ok(match &spec.routes {
        ShimRoutes::Auto => all.into_iter().collect(),
        ShimRoutes::To(networks) => all
            .into_iter()
            .filter(|ip| networks.iter().any(|network| network.0.contains(ip)))
            .collect(),
    })
}

/// Who can be reached through a shim.
pub fn reach(
    store: &Store,
    id: &str,
    spec: &Shim,
    before: &[IpAddr],
    survey: &dyn Survey,
) -> Result<Vec<Reach>, OperationError> {
    let Some(made) = store.record.entries.get(id).and_then(|entry| entry.made) else {
        return Ok(Vec::new());
    };
    let mut wire = own_wire()?;
    let targets = targets(spec, survey)?;
    let answers = shim::ask(&mut wire, made.ifindex, &targets)?;
    targets
        .into_iter()
        .map(|address| {
            Ok(Reach {
                address,
                routed: shim::link_towards(&mut wire, address)? == Some(made.ifindex),
                answered_before: before.contains(&address),
                answers: answers.get(&address).copied().unwrap_or(true),
            })
        })
        .collect()
}

/// A list that was given takes the place of the old one.
fn replace<T: Clone>(old: &mut Vec<T>, new: &[T]) {
    if !new.is_empty() {
        *old = new.to_vec();
    }
}

/// A sub-interface with the changes of `set` in it.
#[must_use]
pub fn changed(spec: &SubInterface, options: &crate::config::manage_args::Options, up: Option<bool>) -> SubInterface {
    let mut spec = spec.clone();
    if let Some(mode) = options.mode {
        spec.mode = mode;
        if mode != Mode::Source {
            spec.source_macs.clear();
        }
    }
    spec.mac = options.mac.or(spec.mac);
    spec.mtu = options.mtu.or(spec.mtu);
    spec.bc_queue_len = options.bc_queue_len.or(spec.bc_queue_len);
    spec.bc_cutoff = options.bc_cutoff.or(spec.bc_cutoff);
    spec.up = up.unwrap_or(spec.up);
    if let Some(alias) = &options.alias {
        spec.alias = Some(alias.clone());
    }
    replace(&mut spec.addresses, &options.addresses);
    replace(&mut spec.gateway.0, &options.gateway);
    replace(&mut spec.flags, &options.flags);
    replace(&mut spec.source_macs, &options.source_macs);
    spec
}

/// Reads the record of a directory without waiting for anybody.
pub fn peek(directory: &Path) -> Result<Record, OperationError> {
    Ok(Store::peek(directory)?)
}
