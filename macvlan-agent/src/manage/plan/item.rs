//! What is to be done about one sub-interface, and why the kernel would refuse it.

use ipnet::IpNet;

use super::{
    Context, ETHERNET, Item, State,
    crowd::Crowd,
    find,
    steps::{differences, must_be_made_anew},
};
use crate::{
    config::values::{Mac, Mode},
    manage::{
        record::Made,
        state::{LinkState, SpaceState},
        step::Step,
        wanted::{self, Absence, Wanted},
    },
};

pub(super) fn item(number: usize, crowd: &Crowd<'_>, context: Context<'_>) -> Item {
    let wanted = &crowd.wanted[number];
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
    if let Some(reason) = refusal(wanted, crowd, parent, item.at, context) {
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
        .is_some_and(|alias| alias.starts_with(wanted::MARK));
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
    crowd: &Crowd<'_>,
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
    neighbours(wanted, crowd, parent, at, context)
}

/// What other sub-interfaces of the parent forbid.
fn neighbours(
    wanted: &Wanted,
    crowd: &Crowd<'_>,
    parent: &LinkState,
    at: Option<Made>,
    context: Context<'_>,
) -> Option<String> {
    let first_of_name = wanted
        .place
        .as_ref()
        .ok()
        .and_then(|inode| crowd.first(*inode, &wanted.name));
    if let Some(first) = first_of_name.filter(|first| first.id != wanted.id) {
        let text = format!("{} is the same interface by another name of its namespace", first.label);
        return Some(format!("{text}: leave one of them out"));
    }
    // Ours that is to go or to be made anew does not count.
    let going = |at: Made| {
        context
            .record
            .entries
            .iter()
            .any(|(id, entry)| entry.made == Some(at) && !crowd.wanted.iter().any(|other| other.id == *id))
    };
    for tenant in crowd.in_the_way(wanted, parent.index()) {
        if at == Some(tenant.at) || going(tenant.at) {
            continue;
        }
        let other = format!("{}/{}", tenant.space.label, tenant.link.link.name);
        if tenant.is_alone() || wanted.mode == Mode::Passthru {
            let which = if tenant.is_alone() {
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
    if wanted.mac.is_some() && wanted.mac == parent.link.mac {
        return Some(format!(
            "its MAC is that of its parent {}: give it another",
            wanted.parent
        ));
    }
    None
}
