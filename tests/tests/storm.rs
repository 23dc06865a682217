//! More broadcasts than macvlan's queue takes: the agent says as many were dropped as the kernel's counter of the parent.

use std::time::Duration;

use macvlan_agent_tests::{
    agent::Agent,
    exposition::whole,
    flood::flood,
    lab::{Lab, Mac, Mode, Place, Upstream},
    surroundings::{eventually, on_host, patience},
    traffic::{BROADCAST, frame},
};

const STRANGER: Mac = Mac([0x02, 0x77, 0, 0, 0, 1]);
/// Each gets a copy of each broadcast, so the queue of a thousand is filled faster than it is emptied.
const SUB_INTERFACES: usize = 20;

fn storm(flags: &[&str]) {
    let lab = Lab::new(Place::Named, Upstream::Wire);
    let subs = (0..SUB_INTERFACES).map(|number| lab.add(&format!("macv{number}"), Mode::Bridge));
    let subs: Vec<_> = subs.collect();
    let agent = Agent::start_with(flags);
    agent.await_known(&subs.iter().collect::<Vec<_>>());
    let parent = lab.parent_label();
    let full = [("parent", parent.as_str()), ("reason", "broadcast_queue_full")];
    let told = || whole(agent.scrape().value("macvlan_parent_dropped_frames_total", &full));
    assert_eq!(told(), 0);
    let (parent, wire) = (lab.parent.counters(), lab.station.counters());

    // They say that they are IPv4: what no protocol takes at all counts among what the parent drops as well.
    let mut broadcast = frame(BROADCAST, STRANGER, 60);
    broadcast[12..14].copy_from_slice(&[0x08, 0x00]);
    let count = if on_host() { 200_000 } else { 20_000 };
    flood(&lab.station.namespace, &lab.station.name, &[broadcast], count).unwrap_or_else(|error| panic!("{error:#}"));

    eventually(patience(Duration::from_secs(2)), || {
        // What found the CPU's backlog full counts at both ends of the wire, and never saw the queue.
        let late = lab.station.counters().since(wire).transmit_dropped;
        let dropped = lab.parent.counters().since(parent).receive_dropped - late;
        assert!(
            dropped > 100,
            "the queue was hardly ever full: {dropped} of {count} dropped"
        );
        match told() {
            ours if ours == dropped => Ok(()),
            ours => Err(format!(
                "the agent has {ours}, the kernel {dropped}; {late} came too fast for the parent"
            )),
        }
    });
}

#[test]
fn what_a_full_queue_drops_is_what_the_kernel_says() {
    storm(&[]);
}

/// Where the handler cannot be probed, a frame that is freed in it is known all the same.
#[test]
fn the_same_without_verdicts() {
    storm(&["--hook.handle_frame=off"]);
}
