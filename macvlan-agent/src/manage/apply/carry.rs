//! Each sub-interface is made whole or not at all; what was changed of one is changed back when a later step is refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{RouteNetlinkMessage, link::LinkMessage};
use rtnetlink::{LinkUnspec, LinkVlan};

use super::{
    ApplyError, Look, Outcome, SETTLE, Work,
    request::{create, delete, index_of, perform},
};
use crate::{
    config::file::Parent,
    manage::{
        announce::Announcement,
        plan::{Actual, Removal, State, VlanStep},
        record::Made,
        sentence, state,
        step::Step,
        wanted::{Wanted, mark, parent_id},
        wire::{Refusal, Wire},
    },
};

impl Work<'_> {
    /// One pass. Tells whether anything was changed.
    pub(super) fn carry_out(
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
    pub(super) fn settle(&mut self, outcome: &mut Outcome, touched: &BTreeSet<String>) -> Result<(), ApplyError> {
        let addressed = |id: &String| {
            let entry = self.record.entries.get(id);
            entry.is_some_and(|entry| !entry.addresses.is_empty())
        };
        if !touched.iter().any(addressed) {
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
                } else if let (Some(mac), Some(place)) = (link.link.mac, self.places.get(at.netns))
                    && !mine.is_empty()
                {
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
