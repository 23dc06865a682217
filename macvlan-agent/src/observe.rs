//! Which parents are observed and how many sub-interfaces get counts of their own, as the configuration says. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use glob::Pattern;

use crate::{
    config::file::{Config, Limits},
    topology::inventory::{Inventory, SubInterface},
};

/// What is observed.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    include: Option<Vec<Pattern>>,
    exclude: Vec<Pattern>,
    limits: Limits,
    /// Namespaces and names of what the agent makes itself, which no limit holds for.
    managed: BTreeSet<(String, String)>,
}

impl Observed {
    /// What a configuration says.
    #[must_use]
    pub fn by(config: &Config) -> Self {
        // A pattern that is none was refused when the configuration was read.
        let patterns = |texts: &[String]| texts.iter().filter_map(|text| Pattern::new(text).ok()).collect();
        let managed = config.sub_interfaces.iter().map(|each| {
            let netns = each
                .netns
                .as_ref()
                .map_or_else(|| "host".to_owned(), ToString::to_string);
            (netns, each.name.to_string())
        });
        Self {
            include: Some(patterns(&config.observe.parents.include)),
            exclude: patterns(&config.observe.parents.exclude),
            limits: config.limits,
            managed: managed.collect(),
        }
    }

    fn observes(&self, parent: &str) -> bool {
        let included = self
            .include
            .as_ref()
            .is_none_or(|include| include.iter().any(|pattern| pattern.matches(parent)));
        included && !self.exclude.iter().any(|pattern| pattern.matches(parent))
    }

    /// An inventory without what is not observed, with a note of who gets no counts of their own.
    #[must_use]
    pub fn of(&self, inventory: &Arc<Inventory>) -> Arc<Inventory> {
        if inventory.parents.values().all(|parent| self.observes(&parent.display)) {
            let over_limit = self.over_limit(inventory);
            return if over_limit.is_empty() {
                Arc::clone(inventory)
            } else {
                Arc::new(Inventory {
                    over_limit,
                    ..Inventory::clone(inventory)
                })
            };
        }
        let mut observed = Inventory::clone(inventory);
        observed.parents.retain(|_, parent| self.observes(&parent.display));
        for sub in inventory.sub_interfaces.values() {
            if !observed.parents.contains_key(&sub.parent) {
                observed.sub_interfaces.remove(sub.id);
            }
        }
        let spaces: BTreeSet<u32> = observed.parents.keys().map(|key| key.netns).collect();
        observed.host_ipv4.retain(|netns, _| spaces.contains(netns));
        observed.over_limit = self.over_limit(&observed);
        Arc::new(observed)
    }

    fn is_managed(&self, sub: &SubInterface) -> bool {
        !self.managed.is_empty() && self.managed.contains(&(sub.netns.clone(), sub.name.clone()))
    }

    /// Who gets no counts of their own.
    fn over_limit(&self, observed: &Inventory) -> BTreeSet<u64> {
        let subs = &observed.sub_interfaces;
        let (in_all, per_namespace) = (self.limits.sub_interfaces as usize, self.limits.per_namespace as usize);
        // In order of their ids: who has counts keeps them.
        if !subs
            .namespaces()
            .any(|(netns, count)| netns != observed.own && count > per_namespace)
        {
            return subs.keys().skip(in_all).copied().collect();
        }
        let mut over_limit = BTreeSet::new();
        let mut in_netns: BTreeMap<u32, u32> = BTreeMap::new();
        let mut in_all = 0;
        for (id, sub) in subs.iter() {
            if in_all >= self.limits.sub_interfaces {
                over_limit.insert(*id);
                continue;
            }
            let limited = sub.netns != "host" && !self.is_managed(sub);
            let count = in_netns.entry(sub.key.netns).or_default();
            if limited && *count >= self.limits.per_namespace {
                over_limit.insert(*id);
            } else {
                in_all += 1;
                *count += u32::from(limited);
            }
        }
        over_limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::load::parse,
        topology::{inventory::Parent, link::LinkKey},
    };

    fn inventory(subs: &[(u64, u32, &str)]) -> Arc<Inventory> {
        let mut inventory = Inventory::default();
        for (number, name) in ["eth0", "bond0", "docker0"].iter().enumerate() {
            let key = LinkKey {
                netns: 1,
                ifindex: u32::try_from(number).expect("few"),
            };
            inventory.parents.insert(
                key,
                Parent {
                    key,
                    name: (*name).to_owned(),
                    netns: "host".to_owned(),
                    display: (*name).to_owned(),
                    mac: [2, 0, 0, 0, 0, 0],
                    up: true,
                    mtu: 1500,
                    promiscuity: 0,
                    kind: "physical".to_owned(),
                    broadcast_queue_limit: None,
                    addresses: Vec::new(),
                    unknown_macs: None,
                },
            );
        }
        for (id, parent, netns) in subs {
            let key = LinkKey {
                netns: if *netns == "host" { 1 } else { 2 },
                ifindex: u32::try_from(*id).expect("small"),
            };
            let parent = LinkKey {
                netns: 1,
                ifindex: *parent,
            };
            inventory.sub_interfaces.insert(SubInterface {
                name: format!("macv{id}"),
                netns: (*netns).to_owned(),
                ..SubInterface::example(*id, key, parent)
            });
        }
        Arc::new(inventory)
    }

    fn observed(text: &str) -> Observed {
        Observed::by(&parse(text, "c.yaml").expect("valid").config)
    }

    #[test]
    fn without_a_configuration_everything_is_observed() {
        let all = inventory(&[(1, 0, "host"), (2, 2, "net1")]);
        assert_eq!(Observed::default().of(&all), all);
        assert_eq!(observed("").of(&all), all);
    }

    #[test]
    fn patterns_choose_parents_with_their_sub_interfaces() {
        let all = inventory(&[(1, 0, "net1"), (2, 1, "net1"), (3, 2, "net1")]);
        let text = "observe: {parents: {include: [\"eth*\", \"*0\"], exclude: [\"docker*\"]}}";
        let left = observed(text).of(&all);
        assert_eq!(left.sub_interfaces.keys().collect::<Vec<_>>(), [&1, &2]);
        assert_eq!(left.parents.len(), 2);
    }

    #[test]
    fn limits_hold_for_strangers_in_a_namespace_and_for_all() {
        let all = inventory(&[
            (1, 0, "host"),
            (2, 0, "net1"),
            (3, 0, "net1"),
            (4, 0, "net1"),
            (5, 0, "host"),
        ]);
        let text =
            "limits: {per_namespace: 1}\nsub_interfaces:\n  - {name: macv4, parent: eth0, mode: bridge, netns: net1}";
        let over = observed(text).of(&all).over_limit.clone();
        assert_eq!(over.into_iter().collect::<Vec<_>>(), [3]);
        let over = observed("limits: {sub_interfaces: 3}").of(&all).over_limit.clone();
        assert_eq!(over.into_iter().collect::<Vec<_>>(), [4, 5]);
    }
}
