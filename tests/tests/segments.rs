//! The kernel hands over many frames as one packet (GSO, GRO); what counts is what goes over the wire.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::Result;
use macvlan_agent_tests::{
    agent::Agent,
    lab::{Lab, Link, Mode, Place, Upstream},
    moves::{Moves, moved_by_parent},
    surroundings::{eventually, patience},
    tcp::{End, Sent, transfer},
};

const AMOUNT: usize = 20_000_000;
const STATION: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ONE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 12);
/// Ethernet, IPv4, TCP, timestamps; the first segment of a connection has eight bytes more of options.
const HEADERS: u64 = 14 + 20 + 20 + 12;
const FIRST: u64 = 8;

/// Gives everyone an address and tells everyone of all others: no ARP among what is counted.
fn introduce(links: &[(&Link, Ipv4Addr)]) -> Result<()> {
    for (link, address) in links {
        link.add_address(*address, 24)?;
    }
    for (link, address) in links {
        for (other, other_address) in links.iter().filter(|(_, other)| other != address) {
            link.add_neighbour(*other_address, other.mac)?;
        }
    }
    Ok(())
}

fn end(link: &Link, address: Ipv4Addr) -> End<'_> {
    End {
        namespace: &link.namespace,
        address: IpAddr::V4(address),
    }
}

fn wire_bytes(sent: Sent) -> u64 {
    sent.payload + sent.segments * HEADERS + FIRST
}

#[test]
fn frames_are_counted_and_not_packets_of_the_kernel() {
    let lab = Lab::new(Place::Named, Upstream::Wire);
    let [one, other] = ["macv1", "macv2"].map(|name| lab.add(name, Mode::Bridge));
    introduce(&[(&lab.station, STATION), (&one.link, ONE), (&other.link, OTHER)]).unwrap();
    let agent = Agent::start();
    agent.await_known(&[&one, &other]);

    let station = end(&lab.station, STATION);
    let (first, second) = (end(&one.link, ONE), end(&other.link, OTHER));
    for (from, to, path, sender, receiver) in [
        (station, first, "external", None, Some("macv1")),
        (first, station, "external", Some("macv1"), None),
        (first, second, "sibling", Some("macv1"), Some("macv2")),
    ] {
        let (before, kernel) = (agent.scrape(), one.link.counters());
        let sent = transfer(from, to, AMOUNT).unwrap();
        assert!(sent.segments > 10_000, "{sent:?}");
        let packets = one.link.counters().since(kernel);
        assert!(
            packets.received + packets.transmitted < sent.segments,
            "{packets:?}: the kernel handed over every frame by itself, which proves nothing: {sent:?}"
        );
        let mut expected = Moves::new();
        for (by, bytes) in [("frames", sent.segments), ("bytes", wire_bytes(sent))] {
            expected.extend(sender.map(|name| (format!("transmitted_{by} {name} path={path}"), bytes)));
            expected.extend(receiver.map(|name| (format!("delivered_{by} {name} cast=unicast path={path}"), bytes)));
        }
        eventually(patience(Duration::from_secs(2)), || {
            let moved = moved_by_parent(&before, &agent.scrape()).remove(&lab.parent_label());
            let moved = moved.unwrap_or_default();
            let seen: Moves = expected
                .keys()
                .map(|counter| (counter.clone(), moved.get(counter).copied().unwrap_or(0)))
                .collect();
            if seen == expected {
                Ok(())
            } else {
                Err(format!("{path}: {sent:?}\nmoved: {moved:#?}\nexpected: {expected:#?}"))
            }
        });
    }
}
