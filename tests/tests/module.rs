//! macvlan's module is removed and comes back under the running agent.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use macvlan_agent_tests::{
    agent::Agent,
    exposition::{Scrape, whole},
    lab::{Arrival, Lab, Mac, Mode, Place, SubInterface, Upstream},
    module,
    surroundings::{eventually, has, long, patience},
    traffic::frame,
};

const STRANGER: Mac = Mac([0x02, 0x77, 0, 0, 0, 1]);
/// The handler is to be armed again this soon; held where nothing else runs beside.
const ARMED_WITHIN: Duration = Duration::from_secs(5);

fn delivered(scrape: &Scrape, sub: &SubInterface) -> u64 {
    let labels = sub.labels();
    let labels = labels.each_ref().map(|(name, value)| (*name, value.as_str()));
    whole(scrape.sum("macvlan_delivered_frames_total", &labels))
}

fn handled(scrape: &Scrape, lab: &Lab) -> u64 {
    let parent = lab.parent_label();
    whole(scrape.sum("macvlan_parent_handled_frames_total", &[("parent", parent.as_str())]))
}

fn await_delivered(agent: &Agent, sub: &SubInterface, expected: u64) {
    eventually(patience(Duration::from_secs(2)), || {
        match delivered(&agent.scrape(), sub) {
            count if count == expected => Ok(()),
            count => Err(format!("{count} delivered to {}, not {expected}", sub.link.name)),
        }
    });
}

fn await_armed(agent: &Agent, armed: bool) {
    eventually(patience(Duration::from_secs(5)), || {
        let scrape = agent.scrape();
        let value = scrape.sum("macvlan_agent_hook_attached", &[("hook", "handle_frame")]);
        if (value > 0.0) == armed {
            Ok(())
        } else {
            Err(format!(
                "handle_frame: {}",
                scrape.listing("macvlan_agent_hook_attached")
            ))
        }
    });
}

#[test]
fn the_module_goes_and_comes_back_and_nothing_is_lost() {
    if !has("module") {
        // What has no state of its own is not a module, or not loaded.
        assert!(!Path::new("/sys/module/macvlan/initstate").exists());
        return;
    }
    let lab = Lab::new(Place::Named, Upstream::Wire);
    let namespace = lab.namespace("inside");
    let mac = lab.mac();
    let make = || lab.add_in(&namespace, "macv1", Mode::Bridge, mac, Arrival::Directly);
    let send = |count| lab.station.send(&frame(mac, STRANGER, 100), count);
    let mut sub = make();
    let agent = Agent::start();
    agent.await_known(&[&sub]);
    await_armed(&agent, true);
    for round in 1..=3 {
        let before = handled(&agent.scrape(), &lab);
        send(100);
        await_delivered(&agent, &sub, 100);
        let counted = handled(&agent.scrape(), &lab);
        assert_eq!(counted, before + 100, "round {round}");

        module::unload();
        await_armed(&agent, false);
        module::load();
        let loaded = Instant::now();
        sub = make();
        send(50);
        await_delivered(&agent, &sub, 50);
        await_armed(&agent, true);
        let took = loaded.elapsed();
        assert!(!long() || took < ARMED_WITHIN, "armed again after {took:?}");
        let after = handled(&agent.scrape(), &lab);
        assert!(
            (counted..=counted + 50).contains(&after),
            "the parent's totals went from {counted} to {after}"
        );
        sub.link.delete().unwrap();
        sub = make();
        // It has the name and the MAC of the one before, which had 50.
        await_delivered(&agent, &sub, 0);
    }
}
