//! The one join: who there is, with what was counted, at one moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use macvlan_agent_ebpf::abi::{
    ParentKey,
    key::{DEVICE_NO_CARRIER, DEVICE_TAP},
    label::Lost,
};

use crate::{
    kernel::{
        directory::{Directory, Sample},
        hooks::{Hook, Outcome},
        load::Kernel,
        tables::{Wanted, WantedParent, WantedSubInterface},
    },
    kernel_counters::KernelCounts,
    owners::{Owner, Owners},
    topology::{
        inventory::{Inventory, Parent, SubInterface},
        link::{Kind, LinkKey, Mode},
    },
};

/// A hook's state, of one parent or of the whole host.
#[derive(Clone, Debug)]
pub struct HookState {
    /// Which.
    pub hook: Hook,
    /// The parent's name; empty for a hook that there is once.
    pub parent: String,
    /// Attached how, or why not.
    pub outcome: Outcome,
    /// Whether the agent is not ready without it.
    pub required: bool,
}

/// A sub-interface with its counts.
#[derive(Clone, Debug)]
pub struct SubInterfaceSample {
    /// The interface.
    pub link: Arc<SubInterface>,
    /// Its parent's name.
    pub parent: Arc<str>,
    /// Whose its namespace is, where that is known.
    pub owner: Option<Owner>,
    /// What the kernel itself has counted since the agent knows it; none where it cannot be asked.
    pub kernel: Option<KernelCounts>,
    /// How far our count of unicast is from the kernel's, in skbs; none where that cannot be told.
    pub error: Option<u64>,
    /// Its counts; none where there were too many sub-interfaces for it to have a slot.
    pub sample: Option<Sample>,
}

/// A parent with its totals.
#[derive(Clone, Debug)]
pub struct ParentSample {
    /// The interface.
    pub link: Parent,
    /// How many sub-interfaces it has now.
    pub sub_interfaces: usize,
    /// Its totals.
    pub sample: Option<Sample>,
    /// Frames that found its broadcast queue full; none where neither an event nor a counter shows them.
    pub queue_full: Option<u64>,
}

/// How reading one source went.
#[derive(Clone, Copy, Debug)]
pub struct Collected {
    /// Which.
    pub collector: &'static str,
    /// Whether it answered.
    pub success: bool,
    /// How long it took.
    pub seconds: f64,
}

/// Everything that a scrape tells, as it was at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Sub-interfaces, in order of their ids.
    pub sub_interfaces: Vec<SubInterfaceSample>,
    /// Parents.
    pub parents: Vec<ParentSample>,
    /// Hooks.
    pub hooks: Vec<HookState>,
    /// Whether each hook, in the order of the table, is required.
    pub required: Vec<bool>,
    /// Whether macvlan's verdicts are or were seen.
    pub verdicts_seen: bool,
    /// Entries that maps hold and can hold.
    pub maps: Vec<(&'static str, usize, u32)>,
    /// Counts lost, by where.
    pub lost: Vec<(&'static str, u64)>,
    /// Runs that a hook missed.
    pub missed: Vec<(Hook, u64)>,
    /// How reading each source went.
    pub collected: Vec<Collected>,
    /// Sub-interfaces without counts of their own.
    pub over_limit: usize,
    /// How often a namespace was read anew because events were lost.
    pub netlink_resyncs: u64,
    /// Whether every namespace has been read once.
    pub complete: bool,
    /// Namespaces that cannot be read, with the reason.
    pub unreadable: Vec<(String, String)>,
    /// What else is missing for seeing everything.
    pub problems: Vec<String>,
}

/// The key by which the programs know a parent.
#[must_use]
pub fn parent_key(key: LinkKey) -> ParentKey {
    ParentKey {
        netns: key.netns,
        ifindex: key.ifindex,
    }
}

fn device_flags(link: &SubInterface) -> u32 {
    let tap = if link.kind == Kind::Macvtap { DEVICE_TAP } else { 0 };
    let no_carrier = if link.no_carrier { DEVICE_NO_CARRIER } else { 0 };
    tap | no_carrier
}

/// What the kernel's tables should hold for an inventory, given which sub-interfaces are to be looked at, and for parents
/// that had a sub-interface until just now; `coming_up` says of whom to take that it is up already.
#[must_use]
pub fn wanted<'parent>(
    inventory: &'parent Inventory,
    touched: &BTreeSet<u64>,
    lingering: impl Iterator<Item = &'parent Parent>,
    coming_up: impl Fn(u64) -> bool,
) -> Wanted {
    let wanted = |link: &SubInterface| WantedSubInterface {
        parent: parent_key(link.parent),
        mac: link.mac,
        mode: link.mode.number(),
        // Of passthru the handler asks whether it was down when a frame was consumed.
        up: link.up || link.mode != Mode::Passthru && coming_up(link.id),
        device: parent_key(link.key),
        device_flags: device_flags(link),
        keeps_source: link.keeps_source,
        addresses: link.addresses.clone(),
        counted: !inventory.over_limit.contains(&link.id),
    };
    Wanted {
        sub_interfaces: touched
            .iter()
            .map(|id| (*id, inventory.sub_interfaces.get(id).map(|link| wanted(link))))
            .collect(),
        parents: inventory
            .parents
            .values()
            .chain(lingering)
            .map(|parent| WantedParent {
                key: parent_key(parent.key),
                mac: parent.mac,
                addresses: parent.addresses.clone(),
            })
            .collect(),
        host_ipv4: inventory
            .host_ipv4
            .iter()
            .flat_map(|(netns, addresses)| addresses.iter().map(|address| (*netns, *address)))
            .collect(),
    }
}

impl Snapshot {
    /// Joins an inventory, whose sub-interfaces are `subs`, with the counts of its directory.
    pub fn join(inventory: &Inventory, subs: &[Arc<SubInterface>], directory: &mut Directory, kernel: &Kernel) -> Self {
        let counts = kernel.counts();
        let names: BTreeMap<LinkKey, Arc<str>> = inventory
            .parents
            .iter()
            .map(|(key, parent)| (*key, parent.display.as_str().into()))
            .collect();
        let mut standing: BTreeMap<LinkKey, usize> = BTreeMap::new();
        for link in subs {
            *standing.entry(link.parent).or_default() += 1;
        }
        let sub_interfaces = subs
            .iter()
            .map(|link| SubInterfaceSample {
                parent: names.get(&link.parent).map_or_else(|| "".into(), Arc::clone),
                owner: None,
                kernel: None,
                error: None,
                sample: directory.sub_interface(kernel, link.id),
                link: Arc::clone(link),
            })
            .collect();
        let parents = inventory
            .parents
            .values()
            .map(|link| ParentSample {
                sub_interfaces: standing.get(&link.key).copied().unwrap_or(0),
                sample: directory.parent(kernel, parent_key(link.key)),
                queue_full: None,
                link: link.clone(),
            })
            .collect();
        Self {
            sub_interfaces,
            parents,
            maps: directory.fill().to_vec(),
            lost: Lost::ALL
                .iter()
                .filter(|what| !matches!(what, Lost::Entries | Lost::Returns))
                .map(|what| (what.label(), counts.lost(*what)))
                .collect(),
            over_limit: directory.over_limit(),
            netlink_resyncs: inventory.netlink_resyncs,
            complete: inventory.complete,
            unreadable: inventory.unreadable.clone(),
            problems: inventory.problems.clone(),
            ..Self::default()
        }
    }

    /// Says whose the sub-interfaces are.
    #[must_use]
    pub fn with_owners(mut self, owners: &Owners) -> Self {
        for each in &mut self.sub_interfaces {
            each.owner = owners.of(each.link.key.netns).cloned();
        }
        self.problems.extend(owners.problems.iter().cloned());
        self
    }

    /// Why the agent is not ready: nothing where it is.
    #[must_use]
    pub fn not_ready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if !self.complete {
            reasons.push("the namespaces have not all been read yet".to_owned());
        }
        reasons.extend(self.missing_hooks(true));
        reasons
    }

    /// What is missing although the agent is ready.
    #[must_use]
    pub fn degraded(&self) -> Vec<String> {
        let mut reasons: Vec<String> = self.missing_hooks(false).collect();
        reasons.extend(
            self.unreadable
                .iter()
                .map(|(label, reason)| format!("namespace {label}: {reason}")),
        );
        reasons.extend(self.problems.iter().cloned());
        if self.over_limit > 0 {
            reasons.push(format!(
                "{} sub-interfaces have no counts of their own",
                self.over_limit
            ));
        }
        reasons
    }

    fn missing_hooks(&self, required: bool) -> impl Iterator<Item = String> {
        self.hooks
            .iter()
            .filter(move |state| state.required == required)
            .filter_map(|state| {
                let missing = state.outcome.as_ref().err()?;
                let place = if state.parent.is_empty() {
                    String::new()
                } else {
                    format!(" on {}", state.parent)
                };
                Some(format!(
                    "{}{place} is not attached: {}: {}; {}",
                    state.hook.name(),
                    missing.reason.label(),
                    missing.detail,
                    state.hook.row().lost_without
                ))
            })
    }
}
