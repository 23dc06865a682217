//! Links come, move, change and go while the agent runs.

use std::{
    fs,
    time::{Duration, Instant},
};

use macvlan_agent_tests::{
    agent::Agent,
    exposition::{Sample, Scrape, whole},
    lab::{self, Arrival, Lab, Mac, Mode, Place, SubInterface, Upstream},
    surroundings::{eventually, long, patience},
    traffic::frame,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const STRANGER: Mac = Mac([0x02, 0x77, 0, 0, 0, 1]);

/// What a scrape says was delivered to one from the wire; none when it has no series.
fn delivered(scrape: &Scrape, sub: &SubInterface) -> Option<u64> {
    let labels = sub.labels();
    let [parent, interface, netns] = labels.each_ref().map(|(name, value)| (*name, value.as_str()));
    let all = [parent, interface, netns, ("cast", "unicast"), ("path", "external")];
    scrape.samples("macvlan_delivered_frames_total", &all).next()?;
    Some(scrape.count("macvlan_delivered_frames_total", &all))
}

/// What a scrape says was dropped of one, for any reason.
fn dropped(scrape: &Scrape, sub: &SubInterface) -> u64 {
    let labels = sub.labels();
    let labels = labels.each_ref().map(|(name, value)| (*name, value.as_str()));
    whole(scrape.sum("macvlan_dropped_frames_total", &labels))
}

fn await_delivered(agent: &Agent, sub: &SubInterface, expected: u64) {
    eventually(patience(Duration::from_secs(2)), || {
        let scrape = agent.scrape();
        match delivered(&scrape, sub) {
            Some(count) if count == expected => Ok(()),
            other => Err(format!(
                "delivered to {}: {other:?}, not {expected}; all that it has:\n{}",
                sub.link.name,
                everything_of(&scrape, sub)
            )),
        }
    });
}

/// The counters of one that are not zero.
fn everything_of(scrape: &Scrape, sub: &SubInterface) -> String {
    let labels = sub.labels();
    let of_it = |sample: &&Sample| labels.iter().all(|(name, value)| sample.label(name) == value);
    let moved = scrape.samples.iter().filter(of_it).filter(|sample| sample.value > 0.0);
    moved.map(|sample| format!("  {sample}\n")).collect()
}

/// No series of it is left, of any metric.
fn await_gone(agent: &Agent, sub: &SubInterface) {
    let labels = sub.labels();
    eventually(patience(Duration::from_secs(1)), || {
        let scrape = agent.scrape();
        let left = scrape
            .samples
            .iter()
            .find(|sample| labels.iter().all(|(name, value)| sample.label(name) == value));
        left.map_or(Ok(()), |left| Err(format!("still there: {left}")))
    });
}

fn send(lab: &Lab, to: Mac, count: u32) {
    lab.station.send(&frame(to, STRANGER, 100), count);
}

#[test]
fn one_that_comes_later_counts_from_its_first_frame_and_is_named_within_a_second() {
    for place in [Place::Own, Place::Named] {
        let lab = Lab::new(place, Upstream::Wire);
        let resident = lab.add("resident", Mode::Bridge);
        let agent = Agent::start();
        agent.await_known(&[&resident]);
        for (number, arrival) in [Arrival::Directly, Arrival::Moved]
            .into_iter()
            .cycle()
            .take(if long() { 100 } else { 8 })
            .enumerate()
        {
            let name = format!("later{number}");
            let sub = lab.add_in(&lab.namespace(&name), &name, Mode::Bridge, lab.mac(), arrival);
            let up = Instant::now();
            send(&lab, sub.mac(), 100);
            eventually(patience(Duration::from_secs(1)), || agent.knows(&sub));
            let named = up.elapsed();
            assert!(named < patience(Duration::from_secs(1)), "named after {named:?}");
            await_delivered(&agent, &sub, 100);
            // It was down when the agent first heard of it: that is not what became of these frames.
            assert_eq!(
                dropped(&agent.scrape(), &sub),
                0,
                "{}",
                everything_of(&agent.scrape(), &sub)
            );
        }
        assert_eq!(delivered(&agent.scrape(), &resident), Some(0));
    }
}

#[test]
fn the_first_one_on_a_parent_is_counted_once_it_is_named() {
    let lab = Lab::new(Place::Named, Upstream::Wire);
    let agent = Agent::start();
    let sub = lab.add("first", Mode::Bridge);
    eventually(patience(Duration::from_secs(1)), || agent.knows(&sub));
    send(&lab, sub.mac(), 100);
    await_delivered(&agent, &sub, 100);
}

#[test]
fn a_removed_one_is_gone_and_a_new_one_in_its_place_starts_at_zero() {
    let lab = Lab::new(Place::Named, Upstream::Wire);
    let resident = lab.add("resident", Mode::Bridge);
    let namespace = lab.namespace("macv1");
    let mac = lab.mac();
    let first = lab.add_in(&namespace, "macv1", Mode::Bridge, mac, Arrival::Directly);
    let agent = Agent::start();
    agent.await_known(&[&resident, &first]);
    send(&lab, mac, 50);
    await_delivered(&agent, &first, 50);

    first.link.delete().unwrap();
    await_gone(&agent, &first);
    assert_eq!(
        delivered(&agent.scrape(), &resident),
        Some(0),
        "the other one is still there"
    );

    // At once, so that the agent may see both changes together.
    let second = lab.add_in(&namespace, "macv1", Mode::Bridge, mac, Arrival::Directly);
    agent.await_known(&[&second]);
    assert_eq!(delivered(&agent.scrape(), &second), Some(0));
    send(&lab, mac, 7);
    await_delivered(&agent, &second, 7);

    second.link.delete().unwrap();
    let third = lab.add_in(&namespace, "macv1", Mode::Bridge, mac, Arrival::Directly);
    eventually(patience(Duration::from_secs(2)), || {
        match delivered(&agent.scrape(), &third) {
            Some(0) => Ok(()),
            other => Err(format!("delivered to the third: {other:?}")),
        }
    });
}

#[test]
fn a_new_name_a_new_mac_and_a_new_namespace_keep_the_counts() {
    let lab = Lab::new(Place::Named, Upstream::Wire);
    let mut sub = lab.add("old", Mode::Bridge);
    let agent = Agent::start();
    agent.await_known(&[&sub]);
    send(&lab, sub.mac(), 10);
    await_delivered(&agent, &sub, 10);

    let before = sub.clone();
    sub.link.set_up(false).unwrap();
    sub.link.rename("new").unwrap();
    sub.link.set_up(true).unwrap();
    agent.await_known(&[&sub]);
    await_gone(&agent, &before);
    await_delivered(&agent, &sub, 10);

    let (old_mac, new_mac) = (sub.mac(), lab.mac());
    sub.link.set_mac(new_mac).unwrap();
    send(&lab, new_mac, 5);
    agent.await_known(&[&sub]);
    await_delivered(&agent, &sub, 15);
    send(&lab, old_mac, 3);
    send(&lab, new_mac, 1);
    await_delivered(&agent, &sub, 16);

    let before = sub.clone();
    let elsewhere = lab.namespace("elsewhere");
    sub.link.move_to(&elsewhere).unwrap();
    sub.link.set_up(true).unwrap();
    agent.await_known(&[&sub]);
    await_gone(&agent, &before);
    send(&lab, new_mac, 4);
    await_delivered(&agent, &sub, 20);
}

#[test]
fn a_namespace_that_is_deleted_takes_its_series_along() {
    let lab = Lab::new(Place::Named, Upstream::Wire);
    let resident = lab.add("resident", Mode::Bridge);
    let namespace = lab.namespace("doomed");
    let doomed = lab.add_in(&namespace, "macv1", Mode::Bridge, lab.mac(), Arrival::Directly);
    let agent = Agent::start();
    agent.await_known(&[&resident, &doomed]);
    send(&lab, doomed.mac(), 5);
    await_delivered(&agent, &doomed, 5);
    namespace.remove().unwrap();
    // The kernel takes namespaces down in its own time.
    eventually(patience(Duration::from_secs(5)), || {
        let scrape = agent.scrape();
        delivered(&scrape, &doomed).map_or(Ok(()), |_| Err("its series are still there".into()))
    });
    send(&lab, resident.mac(), 5);
    await_delivered(&agent, &resident, 5);
}

#[test]
fn a_parent_that_goes_and_comes_back_is_watched_again() {
    for place in [Place::Own, Place::Named] {
        let mut lab = Lab::new(place, Upstream::Wire);
        let namespace = lab.namespace("macv1");
        let sub = lab.add_in(&namespace, "macv1", Mode::Bridge, lab.mac(), Arrival::Directly);
        let agent = Agent::start();
        agent.await_known(&[&sub]);
        send(&lab, sub.mac(), 20);
        await_delivered(&agent, &sub, 20);

        lab.parent.delete().unwrap();
        await_gone(&agent, &sub);
        let parent = lab.parent_label();
        eventually(patience(Duration::from_secs(1)), || {
            let scrape = agent.scrape();
            let attached = [("hook", "parent_ingress"), ("parent", parent.as_str())];
            match scrape
                .samples("macvlan_agent_hook_attached", &attached)
                .find(|sample| sample.value > 0.0)
            {
                Some(sample) => Err(format!("still there: {sample}")),
                None => Ok(()),
            }
        });

        let (near, far) = (lab.parent.clone(), lab.station.clone());
        (lab.parent, lab.station) = lab::veth(&near.namespace, &near.name, &far.namespace, &far.name).unwrap();
        let again = lab.add_in(&namespace, "macv1", Mode::Bridge, lab.mac(), Arrival::Directly);
        agent.await_known(&[&again]);
        assert_eq!(delivered(&agent.scrape(), &again), Some(0));
        send(&lab, again.mac(), 30);
        await_delivered(&agent, &again, 30);
    }
}

#[test]
fn series_of_a_sub_interface_are_there_from_the_start_with_zeroes() {
    let lab = Lab::new(Place::Named, Upstream::Wire);
    let sub = lab.add("macv1", Mode::Bridge);
    let agent = Agent::start();
    agent.await_known(&[&sub]);
    let scrape = agent.scrape();
    let labels = sub.labels();
    let labels = labels.each_ref().map(|(name, value)| (*name, value.as_str()));
    for (metric, extra) in [
        (
            "macvlan_delivered_frames_total",
            vec![("cast", "unicast"), ("path", "external")],
        ),
        (
            "macvlan_delivered_bytes_total",
            vec![("cast", "unicast"), ("path", "sibling")],
        ),
        ("macvlan_transmitted_frames_total", vec![("path", "external")]),
        ("macvlan_transmitted_bytes_total", vec![("path", "sibling")]),
        ("macvlan_dropped_frames_total", vec![("reason", "child_to_parent")]),
        (
            "macvlan_isolation_attempts_total",
            vec![("direction", "child_to_parent"), ("kind", "arp")],
        ),
    ] {
        assert_eq!(
            scrape.count(metric, &[labels.as_slice(), &extra].concat()),
            0,
            "{metric} {extra:?}"
        );
    }
}

/// The patterns and limits of a configuration, at the start and when it is read anew.
#[test]
fn what_is_observed_and_how_many_are_counted_is_what_the_configuration_says() {
    let (lab, other) = (
        Lab::new(Place::Named, Upstream::Wire),
        Lab::new(Place::Named, Upstream::Wire),
    );
    let (_first, _second) = (lab.add("one", Mode::Bridge), lab.add("two", Mode::Bridge));
    let _stranger = other.add("three", Mode::Bridge);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.yaml");
    let configure = |parent: &str, limit: u32| {
        let text =
            format!("observe: {{ parents: {{ include: [\"{parent}\"] }} }}\nlimits: {{ sub_interfaces: {limit} }}\n");
        fs::write(&file, text).unwrap();
    };
    let (ours, theirs) = (lab.parent_label(), other.parent_label());
    configure(&ours, 1);
    let agent = Agent::start_with(&[&format!("--config.file={}", file.display())]);
    let tells = |parent: &str, known: usize, counted: usize, over: u64| {
        eventually(patience(Duration::from_secs(5)), || {
            let scrape = agent.scrape();
            let of = |metric: &str| scrape.samples(metric, &[("parent", parent)]).count();
            let found = (
                of("macvlan_interface_info"),
                of("macvlan_isolation_attempts_total") / 9,
                scrape.count("macvlan_agent_interfaces_over_limit", &[]),
            );
            (found == (known, counted, over))
                .then_some(())
                .ok_or_else(|| format!("{found:?}"))
        });
    };
    tells(&ours, 2, 1, 1);
    tells(&theirs, 0, 0, 1);
    configure(&theirs, 4_096);
    kill(Pid::from_raw(i32::try_from(agent.pid()).unwrap()), Signal::SIGHUP).unwrap();
    tells(&theirs, 1, 1, 0);
    tells(&ours, 0, 0, 0);
    // The tables were made when it started.
    configure(&ours, 4_097);
    kill(Pid::from_raw(i32::try_from(agent.pid()).unwrap()), Signal::SIGHUP).unwrap();
    eventually(patience(Duration::from_secs(5)), || {
        let said = agent.log();
        said.contains("4097 is more than the 4096").then_some(()).ok_or(said)
    });
    tells(&theirs, 1, 1, 0);
}
