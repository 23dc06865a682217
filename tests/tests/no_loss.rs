//! What somebody answers is not lost, whoever it is, and what asks for nothing is no attempt: real stacks talk here, and
//! the first frame is an ARP request or a neighbour solicitation of the kernel's own.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use macvlan_agent_tests::{
    agent::Agent,
    exposition::{Scrape, whole},
    lab::{self, Lab, Link, Mode, Place, SubInterface, Upstream},
    moves::{Moves, moved_by_parent},
    surroundings::{patience, sleep_until},
    traffic::ping,
};

const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ONE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);
/// Losses are settled less than four seconds after the attempt.
const SETTLEMENT: Duration = Duration::from_secs(4);

/// The parent has an address, the sub-interface another one, and nobody has told them of each other.
fn lab(upstream: Upstream, mode: Mode) -> (Lab, SubInterface) {
    let lab = Lab::new(Place::Named, upstream);
    let one = lab.add("macv1", mode);
    let introduce = || -> Result<()> {
        lab.parent.add_address(HOST, 24)?;
        lab.parent.accept_any_source()?;
        one.link.add_address(ONE, 24)
    };
    introduce().unwrap_or_else(|error| panic!("{error:#}"));
    (lab, one)
}

fn assert_pings(from: &Link, to: Ipv4Addr) {
    let replies = ping(&from.namespace, to, 3, patience(Duration::from_secs(2)));
    let replies = replies.unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!(replies, 3, "{} reaches {to}", from.name);
}

/// What moved on each of these, after everything sent until now has become a loss if it is one.
fn settled(agent: &Agent, labs: &[&Lab], before: &Scrape) -> Vec<Moves> {
    sleep_until(Instant::now() + SETTLEMENT);
    let after = agent.scrape();
    let mut moved = moved_by_parent(before, &after);
    let labs = labs.iter().map(|lab| {
        let parent = lab.parent_label();
        for reason in ["child_to_parent", "parent_to_child", "sibling_not_reflected"] {
            let labels = [("parent", parent.as_str()), ("reason", reason)];
            let dropped = whole(after.sum("macvlan_dropped_frames_total", &labels));
            assert_eq!(dropped, 0, "{}", after.listing("macvlan_dropped_frames_total"));
        }
        moved.remove(&parent).unwrap_or_default()
    });
    labs.collect()
}

/// Something of that name moved: the case is what it claims to be.
fn assert_moved(moved: &Moves, counter: &str) {
    assert!(
        moved.keys().any(|key| key.starts_with(counter)),
        "no {counter} in {moved:#?}"
    );
}

#[test]
fn a_router_that_answers_for_the_host() {
    let (lab, one) = lab(Upstream::Wire, Mode::Bridge);
    // Behind the router somebody has the host's address; the router says so to whoever asks on the wire.
    let behind = lab.namespace("behind");
    let (inner, outer) = lab::veth(&lab.station.namespace, "inner", &behind, "outer").unwrap();
    outer.add_address(HOST, 32).unwrap();
    outer.add_route(ONE).unwrap();
    outer.set("ipv4/conf/LINK/proxy_arp", "1").unwrap();
    inner.add_route(HOST).unwrap();
    lab.station.add_route(ONE).unwrap();
    for link in [&inner, &lab.station] {
        link.accept_any_source().unwrap();
        link.set("ipv4/conf/LINK/proxy_arp", "1").unwrap();
        link.set("ipv4/conf/LINK/forwarding", "1").unwrap();
        link.set("ipv4/neigh/LINK/proxy_delay", "0").unwrap();
    }
    let agent = Agent::start();
    agent.await_known(&[&one]);
    let before = agent.scrape();

    assert_pings(&one.link, HOST);
    let moved = settled(&agent, &[&lab], &before);
    assert_moved(&moved[0], "isolation_attempts macv1 direction=child_to_parent kind=arp");
    assert_moved(&moved[0], "delivered_frames macv1 cast=unicast path=external");
}

#[test]
fn a_second_network_card_of_the_host_on_the_same_segment() {
    let labs = [Mode::Bridge, Mode::Vepa, Mode::Private].map(|mode| lab(Upstream::Switch, mode));
    for (lab, _) in &labs {
        let (card, port) = lab::veth(&lab.parent.namespace, "card2", &lab.station.namespace, "port2").unwrap();
        let switch = Link {
            name: "switch".into(),
            ..lab.station.clone()
        };
        port.join(&switch).unwrap();
        card.accept_any_source().unwrap();
        card.add_route_from(ONE, Some(HOST)).unwrap();
    }
    let agent = Agent::start();
    agent.await_known(&labs.each_ref().map(|(_, one)| one));
    let before = agent.scrape();
    for (_, one) in &labs {
        assert_pings(&one.link, HOST);
    }
    for moved in settled(&agent, &labs.each_ref().map(|(lab, _)| lab), &before) {
        assert_moved(&moved, "isolation_attempts macv1 direction=child_to_parent kind=arp");
        assert_moved(&moved, "delivered_frames macv1 cast=unicast path=external");
    }
}

#[test]
fn a_switch_that_returns_frames() {
    let labs = [Mode::Bridge, Mode::Vepa].map(|mode| lab(Upstream::Hairpin, mode));
    let agent = Agent::start();
    agent.await_known(&labs.each_ref().map(|(_, one)| one));
    let before = agent.scrape();
    for (lab, one) in &labs {
        assert_pings(&one.link, HOST);
        assert_pings(&lab.parent, ONE);
    }
    for moved in settled(&agent, &labs.each_ref().map(|(lab, _)| lab), &before) {
        assert_moved(
            &moved,
            "isolation_attempts macv1 direction=child_to_parent kind=unicast",
        );
        assert_moved(
            &moved,
            "isolation_attempts macv1 direction=parent_to_child kind=unicast",
        );
        assert_moved(&moved, "reflected_frames macv1 direction=child_to_parent");
    }
}

/// Detection of duplicate addresses, of addresses that the other side really has, and announcements of such addresses:
/// the kernel's own, over IPv6 and IPv4.
#[test]
fn whoever_looks_whether_an_address_is_free_or_tells_its_own_attempts_nothing() {
    let address = |last| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last);
    let (lab, one) = lab(Upstream::Switch, Mode::Bridge);
    let other = lab.add("macv2", Mode::Private);
    lab.parent.enable_ipv6().unwrap();
    lab.parent.add_address(address(1), 64).unwrap();
    other.link.enable_ipv6().unwrap();
    other.link.add_address(address(2), 64).unwrap();
    one.link.enable_ipv6().unwrap();
    let agent = Agent::start();
    agent.await_known(&[&one, &other]);
    // Both probes of those addresses are over.
    thread::sleep(Duration::from_secs(3));
    let before = agent.scrape();

    one.link.add_address(address(1), 64).unwrap();
    one.link.add_address(address(2), 64).unwrap();
    lab.parent.add_address(address(2), 64).unwrap();
    one.link.set("ipv4/conf/LINK/arp_notify", "1").unwrap();
    one.link.add_address(HOST, 24).unwrap();
    one.link.set_up(false).unwrap();
    one.link.set_up(true).unwrap();
    let moved = settled(&agent, &[&lab], &before);
    assert_moved(&moved[0], "transmitted_frames macv1 path=external");
    let attempts: Vec<_> = moved[0]
        .keys()
        .filter(|key| key.starts_with("isolation_attempts"))
        .collect();
    assert!(attempts.is_empty(), "{attempts:?}");
}
