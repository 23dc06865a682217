//! The steps from what there is to what is wanted.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{Context, VlanStep, parent_of};
use crate::{
    config::{
        file::Parent,
        values::{Kind, Mac, Mode},
    },
    manage::{
        record::{Origin, Record},
        state::{LinkState, ROUTE_PROTOCOL, SpaceState},
        step::{Change, Step},
        wanted::{Wanted, WantedRoute, is_marked, parent_id},
    },
    topology::link,
};

/// Why a link cannot become what is wanted by changing it.
pub(super) fn must_be_made_anew(
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
pub(super) fn differences(wanted: &Wanted, link: &LinkState, space: &SpaceState, ours: &[IpNet]) -> Vec<Step> {
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
pub(super) fn vlans(wanted: &[Wanted], context: Context<'_>, prune: bool) -> Vec<VlanStep> {
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
