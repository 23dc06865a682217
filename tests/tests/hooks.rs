//! Every hook that must attach on this kernel is attached by its mechanism, and one that cannot be is said to be off,
//! with a reason, in every place that speaks of hooks.

use std::process::Output;

use macvlan_agent_tests::{
    agent::{Agent, run_to_end},
    exposition::whole,
    lab::{Lab, Mode, Place, Upstream},
    surroundings::{hooks, sees_verdicts},
    traffic::frame,
};
use serde_json::Value;

#[test]
fn each_hook_is_attached_as_it_must_be_here() {
    let labs = [Place::Own, Place::Named].map(|place| Lab::new(place, Upstream::Wire));
    let subs = labs.each_ref().map(|lab| lab.add("macv1", Mode::Bridge));
    let agent = Agent::start();
    agent.await_known(&[&subs[0], &subs[1]]);
    let scrape = agent.scrape();
    let parents = labs.each_ref().map(Lab::parent_label);
    let (parents, global) = (parents.each_ref().map(String::as_str), [""]);

    for hook in hooks() {
        let name = hook.name.as_str();
        let places: &[&str] = if name.starts_with("parent_") { &parents } else { &global };
        for &parent in places {
            let attached = scrape.value("macvlan_agent_hook_attached", &[("hook", name), ("parent", parent)]);
            let info = scrape.sample("macvlan_agent_hook_info", &[("hook", name), ("parent", parent)]);
            if let Some(mechanism) = &hook.mechanism {
                assert_eq!((whole(attached), info.label("reason")), (1, ""), "{info}");
                assert_eq!(info.label("mechanism"), mechanism, "{info}");
            } else {
                assert_eq!(whole(attached), 0, "{info}");
                assert_ne!(info.label("reason"), "", "{info}");
            }
        }
    }
}

#[test]
fn the_agent_is_ready_and_says_when_it_is_degraded() {
    let lab = Lab::new(Place::Named, Upstream::Wire);
    let sub = lab.add("macv1", Mode::Bridge);
    let agent = Agent::start();
    agent.await_known(&[&sub]);
    assert_eq!(agent.get("/-/healthy").status, 200);
    let ready = agent.get("/-/ready");
    assert_eq!(ready.status, 200);
    let degraded = hooks().iter().any(|hook| hook.mechanism.is_none());
    assert_eq!(
        ready.body.to_lowercase().contains("degraded"),
        degraded,
        "{}",
        ready.body
    );
    if degraded {
        assert!(
            ready.body.contains("handle_frame"),
            "it names what is missing: {}",
            ready.body
        );
    }
    assert_eq!(agent.get("/nothing-here").status, 404);
    let index = agent.get("/");
    assert_eq!(index.status, 200);
    assert!(index.body.contains("/metrics"), "{}", index.body);
}

#[test]
fn check_says_the_same_as_a_running_agent() {
    let lab = Lab::new(Place::Named, Upstream::Wire);
    let _sub = lab.add("macv1", Mode::Bridge);
    let output = run_to_end(&["check", "-o", "json"]);
    assert_eq!(
        output.status.code(),
        Some(if sees_verdicts() { 0 } else { 3 }),
        "{output:?}"
    );
    let report = json(&output);
    for hook in hooks() {
        let entry = find(&report, &hook.name).unwrap_or_else(|| panic!("{} is not in {report:#}", hook.name));
        let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        match hook.mechanism {
            Some(mechanism) => assert_eq!(
                (text("mechanism"), text("reason")),
                (mechanism, String::new()),
                "{entry:#}"
            ),
            None => assert_ne!(text("reason"), "", "{entry:#}"),
        }
    }
    let table = run_to_end(&["check"]);
    assert_eq!(table.status.code(), output.status.code());
    let table = String::from_utf8(table.stdout).unwrap();
    for hook in hooks() {
        assert!(table.contains(&hook.name), "{table}");
    }
}

#[test]
fn a_hook_that_is_switched_off_is_off_and_the_counts_go_on() {
    let lab = Lab::new(Place::Named, Upstream::Wire);
    let sub = lab.add("macv1", Mode::Bridge);
    let agent = Agent::start_with(&["--hook.handle_frame=off"]);
    agent.await_known(&[&sub]);
    let scrape = agent.scrape();
    assert_eq!(
        scrape.count("macvlan_agent_hook_attached", &[("hook", "handle_frame")]),
        0
    );
    assert_ne!(
        scrape
            .sample("macvlan_agent_hook_info", &[("hook", "handle_frame")])
            .label("reason"),
        ""
    );
    lab.station.send(&frame(sub.mac(), lab.station.mac, 200), 1000);
    let parent = lab.parent_label();
    macvlan_agent_tests::surroundings::eventually(std::time::Duration::from_secs(10), || {
        let labels = [("parent", parent.as_str()), ("cast", "unicast"), ("path", "external")];
        match agent.scrape().count("macvlan_delivered_frames_total", &labels) {
            1000 => Ok(()),
            other => Err(format!("{other} delivered")),
        }
    });
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stdout)))
}

/// The object that has `name` for one of its values, wherever it is.
fn find<'a>(report: &'a Value, name: &str) -> Option<&'a Value> {
    match report {
        Value::Object(fields) if fields.values().any(|value| value == name) => Some(report),
        Value::Object(fields) => fields.values().find_map(|value| find(value, name)),
        Value::Array(items) => items.iter().find_map(|value| find(value, name)),
        _ => None,
    }
}
