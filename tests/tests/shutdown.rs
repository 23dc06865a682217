//! SIGTERM leaves nothing of the agent's, and everything that is somebody else's.

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, Output},
    time::Duration,
};

use aya::programs::loaded_programs;
use macvlan_agent_tests::{
    agent::Agent,
    lab::{Lab, Link, Mode, Place, SubInterface, Upstream},
    surroundings::{eventually, mechanism, patience},
    traffic::frame,
};

/// A filter of somebody else's: one instruction of classic BPF, "no match". It needs no module that ours does not.
const FOREIGN: [&str; 3] = ["bpf", "bytecode", "1,6 0 0 0"];
const FOREIGN_PREFERENCE: &str = "7777";

fn tc(link: &Link, arguments: &[&str]) -> Output {
    link.namespace
        .run(|| Ok(Command::new("tc").args(arguments).output()?))
        .unwrap_or_else(|error| panic!("these tests want iproute2's tc: {error:#}"))
}

fn tc_ok(link: &Link, arguments: &[&str]) -> String {
    let output = tc(link, arguments);
    assert!(
        output.status.success(),
        "tc {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("tc prints text")
}

fn has_clsact(link: &Link) -> bool {
    tc_ok(link, &["qdisc", "show", "dev", &link.name]).contains("clsact")
}

/// The filters of both directions, as tc prints them.
fn filters(link: &Link) -> String {
    ["ingress", "egress"]
        .map(|side| tc_ok(link, &["filter", "show", "dev", &link.name, side]))
        .concat()
}

fn add_clsact(link: &Link) {
    tc_ok(link, &["qdisc", "add", "dev", &link.name, "clsact"]);
}

fn add_foreign_filter(link: &Link) {
    let start = [
        "filter",
        "add",
        "dev",
        &link.name,
        "ingress",
        "pref",
        FOREIGN_PREFERENCE,
        "protocol",
        "all",
    ];
    tc_ok(link, &[start.as_slice(), &FOREIGN].concat());
}

/// Whether the foreign filter is there, and whether it is alone.
fn foreign_filter(link: &Link) -> (bool, bool) {
    let all = filters(link);
    let foreign = format!("pref {FOREIGN_PREFERENCE} ");
    (
        all.contains(&foreign),
        all.lines()
            .filter(|line| line.starts_with("filter "))
            .all(|line| line.contains(&foreign)),
    )
}

/// The ids of the programs that a process holds.
fn programs_of(pid: u32) -> BTreeSet<u32> {
    let open = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("the agent runs");
    open.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
        .filter_map(|info| {
            info.lines()
                .find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok())
        })
        .collect()
}

fn still_loaded(programs: &BTreeSet<u32>) -> Vec<u32> {
    let all = loaded_programs().filter_map(Result::ok).map(|program| program.id());
    all.filter(|id| programs.contains(id)).collect()
}

/// An agent that has attached its hooks to the parent of `sub`, and counts.
fn working_agent(lab: &Lab, sub: &SubInterface) -> Agent {
    let agent = Agent::start();
    agent.await_known(&[sub]);
    lab.station.send(&frame(sub.mac(), lab.station.mac, 100), 10);
    let parent = lab.parent_label();
    let labels = [("parent", parent.as_str()), ("cast", "unicast"), ("path", "external")];
    eventually(patience(Duration::from_secs(2)), || {
        match agent.scrape().count("macvlan_delivered_frames_total", &labels) {
            10 => Ok(()),
            other => Err(format!("{other} of 10 frames counted")),
        }
    });
    agent
}

/// Whether programs are attached to a parent by the clsact qdisc here.
fn by_clsact() -> bool {
    mechanism("parent_ingress").as_deref() == Some("clsact")
}

fn stop(agent: Agent, lab: &Lab) {
    let programs = programs_of(agent.pid());
    assert!(programs.len() >= 2, "the agent holds programs: {programs:?}");
    let ended = agent.stop();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
    eventually(patience(Duration::from_secs(3)), || match still_loaded(&programs) {
        left if left.is_empty() => Ok(()),
        left => Err(format!(
            "the programs {left:?} of {programs:?} are still loaded; filters of the parent:\n{}; the agent said:\n{}",
            filters(&lab.parent),
            ended.log
        )),
    });
}

#[test]
fn nothing_is_left_on_a_parent_that_had_nothing() {
    for place in [Place::Own, Place::Named] {
        let lab = Lab::new(place, Upstream::Wire);
        let sub = lab.add("macv1", Mode::Bridge);
        let agent = working_agent(&lab, &sub);
        assert_eq!(has_clsact(&lab.parent), by_clsact(), "with tcx no qdisc is made");
        stop(agent, &lab);
        assert!(!has_clsact(&lab.parent));
        assert_eq!(filters(&lab.parent), "");
    }
}

#[test]
fn a_clsact_that_was_there_before_stays_with_its_filter() {
    let lab = Lab::new(Place::Named, Upstream::Wire);
    add_clsact(&lab.parent);
    add_foreign_filter(&lab.parent);
    let before = filters(&lab.parent);
    let sub = lab.add("macv1", Mode::Bridge);
    let agent = working_agent(&lab, &sub);
    assert_eq!(foreign_filter(&lab.parent), (true, !by_clsact()));
    stop(agent, &lab);
    assert!(has_clsact(&lab.parent));
    assert_eq!(filters(&lab.parent), before);
}

#[test]
fn a_clsact_that_was_there_before_stays_without_filters_too() {
    let lab = Lab::new(Place::Named, Upstream::Wire);
    add_clsact(&lab.parent);
    let sub = lab.add("macv1", Mode::Bridge);
    stop(working_agent(&lab, &sub), &lab);
    assert!(has_clsact(&lab.parent));
    assert_eq!(filters(&lab.parent), "");
}

#[test]
fn a_filter_that_somebody_added_meanwhile_keeps_its_clsact() {
    let lab = Lab::new(Place::Named, Upstream::Wire);
    let sub = lab.add("macv1", Mode::Bridge);
    let agent = working_agent(&lab, &sub);
    if !by_clsact() {
        // Nothing of ours to hang a filter on: they bring their own.
        assert!(!has_clsact(&lab.parent));
        add_clsact(&lab.parent);
    }
    add_foreign_filter(&lab.parent);
    stop(agent, &lab);
    assert!(has_clsact(&lab.parent));
    assert_eq!(foreign_filter(&lab.parent), (true, true), "{}", filters(&lab.parent));
}

#[test]
fn the_next_agent_finds_a_clean_parent() {
    let lab = Lab::new(Place::Named, Upstream::Wire);
    let sub = lab.add("macv1", Mode::Bridge);
    for _ in 0..3 {
        stop(working_agent(&lab, &sub), &lab);
    }
}

#[test]
fn ctrl_c_ends_it_as_well() {
    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };
    let agent = Agent::start();
    kill(Pid::from_raw(i32::try_from(agent.pid()).unwrap()), Signal::SIGINT).unwrap();
    let ended = agent.await_end();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
}
