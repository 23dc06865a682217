//! What the kernel's error numbers mean here, and what to do about them. Its own words are passed on.

use super::{step::Step, wanted::Wanted, wire::Refusal};

/// A refused step as a sentence; `holder` is who has the MAC, where that is known.
pub(super) fn of_step(step: &Step, refusal: &Refusal, wanted: &Wanted, holder: Option<&str>) -> String {
    let (parent, name) = (&wanted.parent, &wanted.name);
    let what = match (step, refusal.errno) {
        (Step::Create | Step::Up | Step::Mac(_), libc::EADDRINUSE) | (Step::Up, libc::EBUSY) => {
            let holder = holder.unwrap_or("another sub-interface of the parent that is up, or the parent itself");
            format!("its MAC is in use by {holder}: give one of them another")
        }
        (Step::Create | Step::Mac(_), libc::EADDRNOTAVAIL) => {
            "the kernel does not take its MAC: it is not a unicast MAC".to_owned()
        }
        (Step::Create, libc::EBUSY) => format!(
            "{parent} has given its frames to another user (a bridge, bond, team, Open vSwitch or ipvlan): use that as \
             the parent"
        ),
        (Step::Create, libc::EEXIST) => format!("an interface named {name} was made there at the same moment"),
        (Step::Create, libc::ENODEV) => format!("{parent} has just gone"),
        (Step::Create, libc::EOPNOTSUPP) => format!(
            "this kernel has no {kind} (CONFIG_{upper}): load its module, or use a kernel that has it",
            kind = wanted.kind,
            upper = wanted.kind.to_string().to_uppercase()
        ),
        (Step::Create | Step::Mode(_), libc::EINVAL) => format!(
            "the kernel takes none like this on {parent}: a passthru sub-interface needs a parent without others, and a \
             parent must be Ethernet"
        ),
        (Step::Mtu(_), libc::EINVAL) => {
            format!("the kernel does not take this MTU: it may not be above that of {parent}")
        }
        (Step::AddAddress(address, _), libc::EACCES | libc::EPERM) if address.addr().is_ipv6() => format!(
            "IPv6 is off for it: leave out {address}, or set net.ipv6.conf.{name}.disable_ipv6=0 (and .default) in its \
             namespace"
        ),
        (Step::AddRoute(route), libc::EEXIST) => format!(
            "there is a route to {} already that is not this agent's: give this one a metric, or remove that one",
            route.to
        ),
        (Step::AddRoute(route), libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EINVAL) => {
            format!("the kernel does not take the route {route}: its neighbour is not on the link, or the link is down")
        }
        (_, libc::EPERM | libc::EACCES) => {
            "the kernel does not let this process do it: it needs CAP_NET_ADMIN".to_owned()
        }
        (_, libc::ENODEV) => "it has just gone".to_owned(),
        _ => "the kernel refuses".to_owned(),
    };
    format!("cannot {}: {what} ({refusal})", action(step))
}

/// A VLAN device that was refused.
pub(super) fn of_vlan(name: &str, base: &str, refusal: &Refusal) -> String {
    let what = match refusal.errno {
        libc::EOPNOTSUPP => "this kernel has no VLANs (CONFIG_VLAN_8021Q): load 8021q, or use a kernel that has it",
        libc::EEXIST => "there is one with this name or this VLAN already",
        libc::EPERM | libc::EACCES => "the kernel does not let this process do it: it needs CAP_NET_ADMIN",
        _ => "the kernel refuses",
    };
    format!("cannot make the VLAN device {name} on {base}: {what} ({refusal})")
}

fn action(step: &Step) -> String {
    match step {
        Step::Create => "make it".to_owned(),
        Step::Delete(_) => "delete it".to_owned(),
        Step::Up => "set it up".to_owned(),
        Step::Down => "set it down".to_owned(),
        Step::AddAddress(address, _) => format!("give it the address {address}"),
        Step::RemoveAddress(address) => format!("take the address {address}"),
        Step::AddRoute(route) => format!("add the route {route}"),
        Step::RemoveRoute(route) => format!("remove the route {route}"),
        other => format!("change {other}"),
    }
}
