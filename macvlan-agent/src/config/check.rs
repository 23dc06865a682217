//! What a configuration must be beyond its types: each rule that the kernel would answer with "Invalid argument", or
//! not at all. Pure.

use std::collections::BTreeMap;

use glob::Pattern;
use macvlan_agent_ebpf::abi::limits::MOST_SUB_INTERFACES as MOST;

use super::{
    file::{Config, Parent, Shim, ShimRoutes, SubInterface},
    values::{Flag, Kind, Mode},
};

/// Something that is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The field, as in `sub_interfaces[0].mode`.
    pub field: String,
    /// What is wrong and what would be right.
    pub text: String,
}

/// Collects faults of one value.
struct Faults<'a> {
    list: &'a mut Vec<Fault>,
    at: String,
}

impl Faults<'_> {
    fn say(&mut self, field: &str, text: impl Into<String>) {
        let field = match (self.at.as_str(), field) {
            (at, "") => at.to_owned(),
            ("", field) => field.to_owned(),
            (at, field) => format!("{at}.{field}"),
        };
        self.list.push(Fault {
            field,
            text: text.into(),
        });
    }
}

/// All that is wrong with a configuration.
#[must_use]
pub fn faults(config: &Config) -> Vec<Fault> {
    let mut list = Vec::new();
    observe(config, &mut list);
    for (number, parent) in config.parents.iter().enumerate() {
        let at = format!("parents[{number}]");
        parent_alone(parent, &mut Faults { list: &mut list, at });
    }
    for (number, each) in config.sub_interfaces.iter().enumerate() {
        let at = format!("sub_interfaces[{number}]");
        alone(each, &mut Faults { list: &mut list, at });
    }
    for (number, shim) in config.shims.iter().enumerate() {
        let at = format!("shims[{number}]");
        shim_alone(shim, &mut Faults { list: &mut list, at });
    }
    names(config, &mut list);
    ports(config, &mut list);
    addresses(config, &mut list);
    list
}

/// What is wrong with a sub-interface by itself.
#[must_use]
pub fn sub_interface_faults(each: &SubInterface) -> Vec<Fault> {
    let mut list = Vec::new();
    let at = String::new();
    alone(each, &mut Faults { list: &mut list, at });
    list
}

/// What is wrong with a shim by itself.
#[must_use]
pub fn shim_faults(shim: &Shim) -> Vec<Fault> {
    let mut list = Vec::new();
    let at = String::new();
    shim_alone(shim, &mut Faults { list: &mut list, at });
    list
}

fn observe(config: &Config, list: &mut Vec<Fault>) {
    let patterns = &config.observe.parents;
    for (key, texts) in [("include", &patterns.include), ("exclude", &patterns.exclude)] {
        for (number, text) in texts.iter().enumerate() {
            if let Err(error) = Pattern::new(text) {
                let at = format!("observe.parents.{key}[{number}]");
                let text = format!(
                    "{text:?} is no shell pattern: {}; expected one like eth* or bond[01]",
                    error.msg
                );
                list.push(Fault { field: at, text });
            }
        }
    }
    let limits = config.limits;
    for (key, value) in [
        ("sub_interfaces", limits.sub_interfaces),
        ("per_namespace", limits.per_namespace),
    ] {
        if value > MOST {
            let at = format!("limits.{key}");
            let text =
                format!("{value} is more than the {MOST} that the agent's tables can hold; expected 0 to {MOST}");
            list.push(Fault { field: at, text });
        }
    }
}

fn parent_alone(parent: &Parent, faults: &mut Faults<'_>) {
    let id = parent.vlan.id;
    if !(1..=4094).contains(&id) {
        faults.say("vlan.id", format!("{id} is no VLAN; expected 1 to 4094"));
    }
    if parent.vlan.parent == parent.name {
        faults.say(
            "vlan.parent",
            "a VLAN device cannot stand on itself; expected the interface that carries it",
        );
    }
    if parent.vlan.parent.as_str() == "lo" {
        faults.say(
            "vlan.parent",
            "the loopback carries no VLANs; expected an Ethernet interface",
        );
    }
}

fn alone(each: &SubInterface, faults: &mut Faults<'_>) {
    options(each, faults);
    network(each, faults);
    if each.kind == Kind::Macvtap {
        let fields = [
            ("addresses", !each.addresses.is_empty()),
            ("gateway", !each.gateway.is_empty()),
            ("routes", !each.routes.is_empty()),
        ];
        for (field, _) in fields.iter().filter(|(_, used)| *used) {
            faults.say(
                field,
                "a macvtap gives its frames to its character device, so the host's stack has no use for this; leave it \
                 out, or say kind: macvlan",
            );
        }
    }
    let unfit = |alias: &String| alias.is_empty() || alias.len() > 200 || alias.chars().any(char::is_control);
    if each.alias.as_ref().is_some_and(unfit) {
        faults.say("alias", "expected 1 to 200 bytes of text without control characters");
    }
}

/// The options of macvlan itself.
fn options(each: &SubInterface, faults: &mut Faults<'_>) {
    if each.parent.as_str() == "lo" {
        faults.say(
            "parent",
            "the loopback cannot be a parent: macvlan needs Ethernet; expected an interface like eth0",
        );
    }
    if each.netns.is_none() && each.name == each.parent {
        faults.say(
            "name",
            "is the parent's own name; expected another one, or a netns to put it in",
        );
    }
    if !each.source_macs.is_empty() && each.mode != Mode::Source {
        let text = format!(
            "only mode source takes a list of source MACs, and this is mode {}",
            each.mode
        );
        faults.say("source_macs", format!("{text}; leave it out, or say mode: source"));
    }
    for (number, flag) in each.flags.iter().enumerate() {
        let needed = match flag {
            Flag::NoPromisc => Mode::Passthru,
            Flag::NoDst => Mode::Source,
        };
        if each.mode != needed {
            let text = format!(
                "{flag} means something in mode {needed} only, and this is mode {}",
                each.mode
            );
            faults.say(&format!("flags[{number}]"), format!("{text}; leave it out"));
        }
    }
    if each.mode == Mode::Passthru && each.mac.is_some() {
        faults.say(
            "mac",
            "in mode passthru the sub-interface has the parent's MAC, and giving it one would change the parent's; \
             leave it out",
        );
    }
    if each.bc_cutoff.is_some_and(|cutoff| cutoff < -1) {
        faults.say("bc_cutoff", "expected a number of listeners, or -1 for no queue at all");
    }
    if let Some(mtu) = each.mtu {
        let six = each.addresses.iter().any(|address| address.0.addr().is_ipv6());
        let least = if six { 1280 } else { 68 };
        if !(least..=65_535).contains(&mtu) {
            let why = if six { " with IPv6" } else { "" };
            faults.say(
                "mtu",
                format!("{mtu} is no MTU{why}; expected {least} to 65535, and at most the parent's"),
            );
        }
    }
}

fn network(each: &SubInterface, faults: &mut Faults<'_>) {
    for (number, address) in each.addresses.iter().enumerate() {
        if each.addresses[..number]
            .iter()
            .any(|other| other.0.addr() == address.0.addr())
        {
            let text = format!("{} is there twice; leave one out", address.0.addr());
            faults.say(&format!("addresses[{number}]"), text);
        }
    }
    let on_link = |ip: &std::net::IpAddr| {
        ip.to_string().starts_with("fe80:") || each.addresses.iter().any(|address| address.0.contains(ip))
    };
    let has = |ip: &std::net::IpAddr| each.addresses.iter().any(|address| address.0.addr() == *ip);
    let mut families = [false; 2];
    for (number, gateway) in each.gateway.0.iter().enumerate() {
        let field = if each.gateway.0.len() == 1 {
            "gateway".to_owned()
        } else {
            format!("gateway[{number}]")
        };
        if std::mem::replace(&mut families[usize::from(gateway.is_ipv6())], true) {
            faults.say(
                &field,
                "there is one of this family already; expected at most one of each",
            );
        }
        if has(gateway) {
            faults.say(
                &field,
                format!("{gateway} is the sub-interface's own address; expected a neighbour's"),
            );
        } else if !on_link(gateway) {
            let text = format!("{gateway} is in no network of this sub-interface");
            faults.say(
                &field,
                format!("{text}; expected a neighbour in the network of one of its addresses"),
            );
        }
    }
    for (number, route) in each.routes.iter().enumerate() {
        let at = format!("routes[{number}]");
        if let Some(via) = route.via {
            if via.is_ipv4() != route.to.0.addr().is_ipv4() {
                faults.say(
                    &format!("{at}.via"),
                    "is of another family than the route's destination",
                );
            } else if !on_link(&via) {
                let text = format!("{via} is in no network of this sub-interface");
                faults.say(&format!("{at}.via"), format!("{text}; expected a neighbour's address"));
            }
        }
        let same = |other: &&super::file::Route| other.to == route.to && other.metric == route.metric;
        if each.routes[..number].iter().any(|other| same(&other)) {
            let text = format!(
                "there is a route to {} already; expected another metric, or one route",
                route.to
            );
            faults.say(&format!("{at}.to"), text);
        }
        if route.to.0.prefix_len() == 0 && route.metric.is_none() && families[usize::from(!route.to.0.addr().is_ipv4())]
        {
            faults.say(
                &format!("{at}.to"),
                "gateway makes this route already; leave one of them out",
            );
        }
    }
    if !each.up && (!each.gateway.is_empty() || !each.routes.is_empty()) {
        faults.say(
            "up",
            "routes need an interface that is up; leave out gateway and routes, or say up: true",
        );
    }
}

fn shim_alone(shim: &Shim, faults: &mut Faults<'_>) {
    if shim.parent.as_str() == "lo" {
        faults.say(
            "parent",
            "the loopback cannot be a parent; expected an Ethernet interface",
        );
    }
    if shim.parent == shim.name {
        faults.say("name", "is the parent's own name; expected another one");
    }
    if let Some(address) = shim.address
        && address.0.prefix_len() != address.0.max_prefix_len()
    {
        let (ip, longest) = (address.0.addr(), address.0.max_prefix_len());
        let text =
            format!("a shim's network would compete with the parent's for the same route; expected {ip}/{longest}");
        faults.say("address", text);
    }
    if let ShimRoutes::To(networks) = &shim.routes {
        for (number, network) in networks.iter().enumerate() {
            if network.0.prefix_len() == 0 {
                let text =
                    "a default route through a shim would cut the host off; expected the sub-interfaces' networks";
                faults.say(&format!("routes[{number}]"), text);
            }
            if networks[..number].contains(network) {
                faults.say(&format!("routes[{number}]"), "is there twice; leave one out");
            }
        }
    }
}

/// No two things may have the same name in the same place.
fn names(config: &Config, list: &mut Vec<Fault>) {
    let mut taken: BTreeMap<(Option<String>, &str), String> = BTreeMap::new();
    let parents = config.parents.iter().enumerate();
    let parents = parents.map(|(number, parent)| (format!("parents[{number}].name"), None, parent.name.as_str()));
    let subs = config.sub_interfaces.iter().enumerate().map(|(number, each)| {
        let netns = each.netns.as_ref().map(ToString::to_string);
        (format!("sub_interfaces[{number}].name"), netns, each.name.as_str())
    });
    let shims = config.shims.iter().enumerate();
    let shims = shims.map(|(number, shim)| (format!("shims[{number}].name"), None, shim.name.as_str()));
    for (field, netns, name) in parents.chain(subs).chain(shims) {
        if let Some(first) = taken.get(&(netns.clone(), name)) {
            let place = netns.map_or_else(
                || "the host's namespace".to_owned(),
                |netns| format!("namespace {netns}"),
            );
            let text = format!("{first} has the name {name} in {place} already; expected another name or namespace");
            list.push(Fault { field, text });
        } else {
            taken.insert((netns, name), field);
        }
    }
}

/// What sub-interfaces of the same parent must agree on.
fn ports(config: &Config, list: &mut Vec<Fault>) {
    let mut first_cutoff: BTreeMap<&str, (String, i32)> = BTreeMap::new();
    let mut macs = BTreeMap::new();
    for (number, each) in config.sub_interfaces.iter().enumerate() {
        let at = format!("sub_interfaces[{number}]");
        let parent = each.parent.as_str();
        let siblings = |mode: &dyn Fn(Mode) -> bool| {
            let before = config.sub_interfaces[..number].iter().enumerate();
            before
                .filter(|(_, other)| other.parent == each.parent && mode(other.mode))
                .map(|(number, _)| format!("sub_interfaces[{number}]"))
                .next()
        };
        let conflict = if each.mode == Mode::Passthru {
            siblings(&|_| true)
        } else {
            siblings(&|mode| mode == Mode::Passthru)
        };
        if let Some(other) = conflict {
            let text = format!(
                "{other} is on {parent} too, and a passthru sub-interface takes its parent alone; expected another mode \
                 or parent"
            );
            list.push(Fault {
                field: format!("{at}.mode"),
                text,
            });
        }
        if let Some(cutoff) = each.bc_cutoff {
            match first_cutoff.get(parent) {
                Some((other, value)) if *value != cutoff => list.push(Fault {
                    field: format!("{at}.bc_cutoff"),
                    text: format!("{other} says {value} for the same parent, which has only one; expected the same"),
                }),
                Some(_) => {}
                None => drop(first_cutoff.insert(parent, (at.clone(), cutoff))),
            }
        }
        if let Some(mac) = each.mac
            && let Some(other) = macs.insert((parent, mac), at.clone())
        {
            let text =
                format!("{other} has this MAC on {parent} already; expected another one, or none for a derived one");
            list.push(Fault {
                field: format!("{at}.mac"),
                text,
            });
        }
    }
    let mut shims: BTreeMap<&str, usize> = BTreeMap::new();
    for (number, shim) in config.shims.iter().enumerate() {
        let field = format!("shims[{number}].parent");
        let parent = shim.parent.as_str();
        if let Some(other) = shims.insert(parent, number) {
            let text = format!("shims[{other}] is on {parent} already; expected one shim for each parent");
            list.push(Fault {
                field: field.clone(),
                text,
            });
        }
        let passthru = |each: &SubInterface| each.parent == shim.parent && each.mode == Mode::Passthru;
        if let Some(other) = config.sub_interfaces.iter().position(passthru) {
            let text = format!(
                "sub_interfaces[{other}] takes {parent} alone in mode passthru; expected another parent, or another mode \
                 there"
            );
            list.push(Fault { field, text });
        }
    }
}

/// No two interfaces of one parent may have the same address.
fn addresses(config: &Config, list: &mut Vec<Fault>) {
    let mut taken = BTreeMap::new();
    for (number, each) in config.sub_interfaces.iter().enumerate() {
        for (index, address) in each.addresses.iter().enumerate() {
            let field = format!("sub_interfaces[{number}].addresses[{index}]");
            let key = (each.parent.as_str(), address.0.addr());
            let (owner, first) = taken.entry(key).or_insert((number, field.clone()));
            if *owner != number {
                let text = format!("{first} is the same address on the same parent; expected another one");
                list.push(Fault { field, text });
            }
        }
    }
    for (number, shim) in config.shims.iter().enumerate() {
        let Some(address) = shim.address else { continue };
        if let Some((_, first)) = taken.get(&(shim.parent.as_str(), address.0.addr())) {
            list.push(Fault {
                field: format!("shims[{number}].address"),
                text: format!("{first} is the same address on the same parent; expected one that nobody has"),
            });
        }
    }
}

#[cfg(test)]
mod tests;
