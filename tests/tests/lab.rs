//! The lab itself, by the kernel's own counters and without an agent: where one of these fails, no other test here
//! means anything.

use std::{net::Ipv4Addr, path::Path, time::Duration};

use macvlan_agent_tests::{
    lab::{Arrival, Lab, Link, Mode, Place, Upstream},
    netns::{DIRECTORY, Namespace},
    surroundings::{eventually, patience},
    traffic::{self, arp_request, counters, frame},
};

fn received(link: &Link) -> u64 {
    link.namespace
        .run(|| Ok(counters(&link.name)?.received))
        .expect("it has counters")
}

fn await_received(link: &Link, expected: u64) {
    eventually(patience(Duration::from_secs(2)), || match received(link) {
        got if got == expected => Ok(()),
        got => Err(format!("{} received {got} frames, not {expected}", link.name)),
    });
}

#[test]
fn no_frame_is_lost_on_the_way() {
    for place in [Place::Own, Place::Named] {
        let lab = Lab::new(place, Upstream::Wire);
        let one = lab.add("macv1", Mode::Bridge);
        let other = lab.add_in(
            &lab.namespace("macv2"),
            "macv2",
            Mode::Bridge,
            lab.mac(),
            Arrival::Moved,
        );
        lab.station.send(&frame(one.mac(), lab.station.mac, 200), 1000);
        await_received(&one.link, 1000);
        one.link.send(&frame(other.mac(), one.mac(), 200), 1000);
        await_received(&other.link, 1000);
        assert_eq!(received(&one.link), 1000, "and nothing else came");
        assert_eq!(received(&lab.station), 0, "bridge mode keeps its frames off the wire");
    }
}

#[test]
fn a_hairpin_port_returns_each_frame_once() {
    let lab = Lab::new(Place::Named, Upstream::Hairpin);
    let one = lab.add("macv1", Mode::Vepa);
    let other = lab.add("macv2", Mode::Vepa);
    one.link.send(&frame(other.mac(), one.mac(), 200), 100);
    await_received(&other.link, 100);
    other.link.send(&frame(one.mac(), other.mac(), 200), 100);
    await_received(&one.link, 100);
    assert_eq!(received(&other.link), 100);
}

#[test]
fn a_plain_switch_returns_nothing() {
    let lab = Lab::new(Place::Named, Upstream::Switch);
    let one = lab.add("macv1", Mode::Vepa);
    let other = lab.add("macv2", Mode::Vepa);
    one.link.send(&frame(other.mac(), one.mac(), 200), 100);
    await_received(&lab.station, 100);
    assert_eq!(received(&other.link), 0);
}

#[test]
fn a_sibling_answers_a_ping_and_the_host_does_not() {
    let (host, to) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 12));
    let lab = Lab::new(Place::Named, Upstream::Switch);
    lab.parent.add_address(host, 24).unwrap();
    let one = lab.add("macv1", Mode::Bridge);
    let other = lab.add("macv2", Mode::Bridge);
    one.link.add_address(Ipv4Addr::new(192, 0, 2, 11), 24).unwrap();
    other.link.add_address(to, 24).unwrap();
    let timeout = patience(Duration::from_millis(500));
    assert_eq!(traffic::ping(&one.link.namespace, to, 3, timeout).unwrap(), 3);
    assert_eq!(
        traffic::ping(&one.link.namespace, host, 2, Duration::from_millis(500)).unwrap(),
        0
    );
}

#[test]
fn nobody_in_the_lab_speaks_unasked() {
    let lab = Lab::new(Place::Named, Upstream::Switch);
    lab.parent.add_address(Ipv4Addr::new(192, 0, 2, 1), 24).unwrap();
    let one = lab.add("macv1", Mode::Bridge);
    one.link.add_address(Ipv4Addr::new(192, 0, 2, 11), 24).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(received(&one.link), 0);
    assert_eq!(received(&lab.parent), 0);
    assert_eq!(received(&lab.station), 0);
    one.link.send(
        &arp_request(one.mac(), Ipv4Addr::new(192, 0, 2, 11), Ipv4Addr::new(192, 0, 2, 1)),
        1,
    );
    await_received(&lab.station, 1);
}

#[test]
fn everything_is_gone_afterwards_and_no_name_is_taken_over() {
    let mine = format!("mvt{}-taken", std::process::id());
    let namespace = Namespace::create(&mine).unwrap();
    assert!(
        Namespace::create(&mine)
            .unwrap_err()
            .to_string()
            .contains("exists already")
    );
    assert!(Path::new(DIRECTORY).join(&mine).exists(), "the refusal left it alone");
    drop(namespace);
    assert!(!Path::new(DIRECTORY).join(&mine).exists());

    let lab = Lab::new(Place::Own, Upstream::Switch);
    let (parent, wire) = (lab.parent.clone(), lab.station.namespace.label().to_owned());
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _in_scope = (lab.add("macv1", Mode::Bridge), lab);
        panic!("a test fails");
    }));
    assert!(panic.is_err());
    assert!(parent.index().is_err(), "{} is still there", parent.name);
    let left: Vec<_> = std::fs::read_dir(DIRECTORY)
        .unwrap()
        .filter_map(Result::ok)
        .map(|entry| entry.file_name())
        .collect();
    assert!(
        !left.iter().any(|name| name.to_string_lossy() == wire),
        "{wire} is still there"
    );
}
