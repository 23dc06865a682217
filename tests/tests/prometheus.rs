//! What Prometheus makes of the scrape: promtool and a real server on the host; in VMs, where there is neither, the
//! rules that they hold it to.

use std::{
    collections::BTreeSet,
    io::Write,
    process::{Command, Stdio},
    time::Duration,
};

use macvlan_agent_tests::{
    agent::Agent,
    exposition::{self, Scrape},
    lab::{Lab, Mac, Mode, Place, SubInterface, Upstream},
    moves::moved,
    prometheus::Prometheus,
    surroundings::{eventually, on_host, patience, prometheus_program},
    traffic::frame,
};

const STRANGER: Mac = Mac([0x02, 0x77, 0, 0, 0, 1]);

/// An agent with something to say, and the lab it watches.
fn bench() -> (Agent, Lab, [SubInterface; 3]) {
    let lab = Lab::new(Place::Named, Upstream::Wire);
    let subs = [("macv1", Mode::Bridge), ("macv2", Mode::Bridge), ("vepa1", Mode::Vepa)]
        .map(|(name, mode)| lab.add(name, mode));
    let agent = Agent::start();
    agent.await_known(&subs.each_ref());
    lab.station.send(&frame(subs[0].mac(), lab.station.mac, 200), 10);
    (agent, lab, subs)
}

#[test]
fn the_scrape_keeps_to_the_format_and_to_the_rules_of_naming() {
    let (agent, _lab, _subs) = bench();
    let scrape = agent.scrape();
    keeps_to_the_rules(&scrape);
    assert_eq!(scrape.samples("macvlan_agent_build_info", &[]).count(), 1);
    // Asked twice, answered alike: order and series do not change by themselves.
    let keys = |scrape: &Scrape| -> Vec<String> {
        let ours = scrape
            .samples
            .iter()
            .filter(|sample| sample.label("parent").starts_with("mvt"));
        ours.map(|sample| format!("{}{:?}", sample.name, sample.labels))
            .collect()
    };
    assert_eq!(keys(&scrape), keys(&agent.scrape()));
}

/// The rules of naming that promtool checks, and ours.
fn keeps_to_the_rules(scrape: &Scrape) {
    assert!(!scrape.samples.is_empty());
    for sample in &scrape.samples {
        let family = scrape
            .families
            .get(&sample.name)
            .unwrap_or_else(|| panic!("{sample} stands under no name"));
        assert!(
            !family.help.is_empty() && !family.kind.is_empty(),
            "{} has no help or no type",
            sample.name
        );
        assert_eq!(
            family.kind == "counter",
            sample.name.ends_with("_total"),
            "{} is a {}",
            sample.name,
            family.kind
        );
        assert!(sample.value.is_finite() && sample.value >= 0.0, "{sample}");
        for label in ["pod", "namespace", "container", "node", "job", "instance"] {
            assert!(
                !sample.labels.contains_key(label),
                "{sample}: Prometheus and Kubernetes set {label} themselves"
            );
        }
    }
    for name in scrape.families.keys() {
        let known = ["macvlan_", "process_"].iter().any(|prefix| name.starts_with(prefix));
        assert!(known, "{name} is none of ours");
    }
}

#[test]
fn promtool_finds_nothing_to_say() {
    let (agent, lab, _subs) = bench();
    let scrape = agent.scrape();
    if !on_host() {
        // There is no promtool in a VM, but kernels differ in what is in a scrape: with a second parent as well, the
        // rules that promtool holds it to.
        let other = Lab::new(Place::Own, Upstream::Wire);
        agent.await_known(&[&other.add("macv1", Mode::Private), &lab.add("macv9", Mode::Private)]);
        keeps_to_the_rules(&agent.scrape());
        return;
    }
    let mut promtool = Command::new(prometheus_program("promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(scrape.text.as_bytes())
        .unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert_eq!(String::from_utf8_lossy(&said), "");
    assert!(output.status.success());
}

#[test]
fn a_prometheus_scrapes_it_without_a_warning() {
    let (agent, lab, _subs) = bench();
    if !on_host() {
        // There is no Prometheus in a VM: ask as it does, again and again, while frames come.
        let mut before = agent.scrape();
        for _ in 0..5 {
            lab.station.send(&frame(STRANGER, lab.station.mac, 200), 10);
            let after = agent.scrape();
            let _ = moved(&lab, &before, &after);
            before = after;
        }
        return;
    }
    let prometheus = Prometheus::start(&[agent.address()], "");
    prometheus.await_value("up", "1");
    let parent = lab.parent_label();
    let delivered =
        format!("sum(macvlan_delivered_frames_total{{parent=\"{parent}\",cast=\"unicast\",path=\"external\"}})");
    prometheus.await_value(&delivered, "10");
    // The join that the documentation gives.
    prometheus.await_value(
        &format!(
            "count(macvlan_delivered_frames_total{{parent=\"{parent}\",cast=\"unicast\",path=\"external\"}} \
             * on (job, instance, parent, interface, netns) group_left (mode) macvlan_interface_info)"
        ),
        "3",
    );
    prometheus.await_value("max(scrape_samples_scraped) > bool 0", "1");
    let log = prometheus.log();
    for level in ["level=warn", "level=error"] {
        assert!(!log.contains(level), "{log}");
    }
}

#[test]
fn a_prometheus_prefers_openmetrics_and_stores_the_same_series() {
    let (agent, _lab, _subs) = bench();
    let open = [("Accept", "application/openmetrics-text;version=1.0.0")];
    // The last of all to be known: it takes a look at the parent's list of addresses.
    let text = eventually(patience(Duration::from_secs(5)), || {
        let scrape = agent.scrape();
        let whole = scrape.families.contains_key("macvlan_parent_unknown_macs");
        whole
            .then_some(scrape)
            .ok_or_else(|| "no macvlan_parent_unknown_macs yet".to_owned())
    });
    // A counter's family has another name there, and nothing else may differ but what stands in comments.
    let answer = exposition::get_with(agent.address(), "/metrics", &open).unwrap();
    let families: BTreeSet<_> = text
        .families
        .keys()
        .map(|name| name.trim_end_matches("_total"))
        .collect();
    let types: Vec<_> = answer
        .body
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .collect();
    let named: BTreeSet<_> = types.iter().filter_map(|line| Some(line.split_once(' ')?.0)).collect();
    assert_eq!(named, families);
    assert_eq!(types.len(), named.len());
    if !on_host() {
        // There is no Prometheus in a VM: that both formats have the same series there is what can be said.
        let series = |text: &str| -> BTreeSet<String> {
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            lines
                .filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned()))
                .collect()
        };
        assert_eq!(series(&text.text), series(&answer.body));
        return;
    }
    let prometheus = Prometheus::start(&[agent.address()], "");
    prometheus.await_value("up", "1");
    // Units are known from OpenMetrics alone.
    let metadata = prometheus.get("/api/v1/metadata?metric=macvlan_delivered_bytes");
    assert_eq!(
        metadata["data"]["macvlan_delivered_bytes"][0]["unit"], "bytes",
        "{metadata}"
    );
    let stored: BTreeSet<String> = prometheus.series("{job=\"macvlan\"}").into_iter().collect();
    let ours: BTreeSet<String> = text
        .samples
        .iter()
        .map(|sample| {
            // A label without a value is none to Prometheus.
            let labels = sample.labels.iter().filter(|(_, value)| !value.is_empty());
            format!(
                "{}{:?}",
                sample.name,
                labels.collect::<std::collections::BTreeMap<_, _>>()
            )
        })
        .collect();
    let of_the_scrape = |name: &String| name.starts_with("up{") || name.starts_with("scrape_");
    let stored: BTreeSet<String> = stored.into_iter().filter(|name| !of_the_scrape(name)).collect();
    assert_eq!(stored, ours);
}
