//! Every query of every panel, variable, rule and alert, on a real Prometheus that scrapes a real agent in a busy lab.
//! In VMs, where there is no Prometheus: that what the dashboards ask for is in a scrape of that kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use macvlan_agent_tests::{
    agent::{Agent, run_to_end},
    lab::{Lab, Mac, Mode, Place, SubInterface, Upstream},
    panels::{DASHBOARDS, Query, queries, with_variables},
    prometheus::{Prometheus, Sample, encode},
    surroundings::{eventually, on_host, patience, release},
    traffic::frame,
};
use serde_json::{Value, json};

/// The window of rates that Grafana would choose here.
const RATE_INTERVAL: &str = "10s";

/// The job's name, by which two alerts know it.
const JOB: &str = "macvlan-agent";

/// A lab in which something happens all the time.
struct Busy {
    lab: Lab,
    web: SubInterface,
    db: SubInterface,
    vepa: SubInterface,
    sent_to_parent: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    traffic: Option<JoinHandle<()>>,
}

impl Busy {
    fn new() -> Self {
        let lab = Lab::new(Place::Named, Upstream::Wire);
        let [web, db, vepa] =
            [("web", Mode::Bridge), ("db", Mode::Bridge), ("vepa", Mode::Vepa)].map(|(name, mode)| lab.add(name, mode));
        Self {
            lab,
            web,
            db,
            vepa,
            sent_to_parent: Arc::default(),
            stop: Arc::default(),
            traffic: None,
        }
    }

    /// Sends, some each quarter of a second, until told to stop.
    fn start(&mut self) {
        let (station, parent) = (self.lab.station.clone(), self.lab.parent.mac);
        let [web, db, vepa] = [&self.web, &self.db, &self.vepa].map(|sub| sub.link.clone());
        let (stop, sent) = (Arc::clone(&self.stop), Arc::clone(&self.sent_to_parent));
        self.traffic = Some(thread::spawn(move || {
            for turn in 0_u32.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                // A wave, so that a line is not a flat one.
                let wave = 20 + turn % 40;
                station.send(&frame(web.mac, station.mac, 600), wave);
                station.send(&frame(db.mac, station.mac, 200), 10);
                station.send(&frame(Mac([0xff; 6]), station.mac, 100), 2);
                web.send(&frame(db.mac, web.mac, 300), 15);
                web.send(&frame(station.mac, web.mac, 400), 12);
                // What macvlan never delivers: to the parent, and to a sibling in another mode.
                web.send(&frame(parent, web.mac, 100), 4);
                sent.fetch_add(4, Ordering::Relaxed);
                vepa.send(&frame(db.mac, vepa.mac, 100), 2);
                thread::sleep(Duration::from_millis(250));
            }
        }));
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(traffic) = self.traffic.take() {
            traffic.join().expect("the traffic ends");
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The variables of a dashboard with the values that each may have, as Grafana finds them out.
fn variables(prometheus: &Prometheus, text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let page: Value = serde_json::from_str(text).expect("a dashboard is JSON");
    let mut chosen = BTreeMap::new();
    for variable in page["templating"]["list"].as_array().expect("variables") {
        let Some(query) = variable["query"].as_str().filter(|_| variable["type"] == "query") else {
            continue;
        };
        let inside = query
            .strip_prefix("label_values(")
            .and_then(|rest| rest.strip_suffix(')'));
        let (selector, label) = inside
            .and_then(|inside| inside.rsplit_once(", "))
            .expect("label_values");
        let selector = with_variables(selector, RATE_INTERVAL, &BTreeMap::new());
        let answer = prometheus.get(&format!("/api/v1/series?match[]={}", encode(&selector)));
        let series = answer["data"].as_array().expect("a list");
        let values: BTreeSet<_> = series
            .iter()
            .filter_map(|labels| Some(labels[label].as_str()?.to_owned()))
            .collect();
        assert!(!values.is_empty(), "{query} has no values");
        chosen.insert(variable["name"].as_str().expect("a name").to_owned(), values);
    }
    chosen
}

/// What a panel's query gives now, as a graph or as numbers.
fn run(query: &Query, prometheus: &Prometheus, chosen: &BTreeMap<&str, String>) -> Vec<Sample> {
    let expr = with_variables(&query.expr, RATE_INTERVAL, chosen);
    let samples = if query.instant {
        prometheus.query(&expr)
    } else {
        prometheus.query_range(&expr, 30)
    };
    samples.unwrap_or_else(|error| panic!("{}: {}: {expr}: {error}", query.dashboard, query.panel))
}

/// The names of metrics in a query.
fn names(expr: &str) -> impl Iterator<Item = &str> {
    let words = expr.split(|letter: char| !letter.is_ascii_alphanumeric() && !"_:".contains(letter));
    words.filter(|word| word.starts_with("macvlan_") && !word.contains(':'))
}

/// Metrics that the kernel tells only from a version on.
const SINCE: [(&str, (u32, u32)); 1] = [("macvlan_parent_broadcast_queue_limit", (5, 12))];

/// Metrics that are not in the scrape of this kernel; each of them must be made from a hook that is not attached, or be
/// younger than the kernel.
fn absent(agent: &Agent) -> BTreeSet<String> {
    let table = run_to_end(&["metrics", "--output", "json"]);
    let table: Vec<Value> = serde_json::from_slice(&table.stdout).expect("the table is JSON");
    let (scrape, off) = eventually(patience(Duration::from_secs(5)), || {
        let scrape = agent.scrape();
        let off: BTreeSet<String> = scrape
            .samples("macvlan_agent_hook_attached", &[])
            .filter(|sample| sample.value < 1.0)
            .map(|sample| sample.label("hook").to_owned())
            .collect();
        let known = ["macvlan_delivered_frames_total", "macvlan_parent_unknown_macs"];
        let counted = known.iter().all(|name| scrape.families.contains_key(*name));
        counted
            .then_some((scrape, off))
            .ok_or_else(|| "nothing is counted yet".to_owned())
    });
    let mut absent = BTreeSet::new();
    for row in table {
        let name = row["name"].as_str().expect("a name");
        if scrape.families.contains_key(name) {
            continue;
        }
        let hooks = row["hooks"].as_array().expect("hooks");
        let young = SINCE.iter().any(|(young, since)| *young == name && release() < *since);
        let explained = young || hooks.iter().any(|hook| off.contains(hook.as_str().unwrap_or_default()));
        assert!(
            explained,
            "{name} is in no scrape, and its hooks {hooks:?} are attached"
        );
        absent.insert(name.to_owned());
    }
    absent
}

fn find(panel: &str, dashboard: &str) -> Query {
    let mut found = queries()
        .into_iter()
        .filter(|query| query.panel == panel && query.dashboard == dashboard);
    found
        .next()
        .unwrap_or_else(|| panic!("{dashboard} has no panel {panel}"))
}

#[test]
fn every_query_gives_data_that_matches_what_was_sent() {
    let mut busy = Busy::new();
    let agent = Agent::start();
    agent.await_known(&[&busy.web, &busy.db, &busy.vepa]);
    if !on_host() {
        return asked_for_is_in_the_scrape(&agent);
    }
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dashboards");
    let home = home.canonicalize().expect("the dashboards are beside the tests");
    let prometheus = Prometheus::start_with(&format!(
        "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}\n\
         rule_files: [\"{home}/rules/*.yml\", \"{home}/alerts/*.yml\"]\n\
         scrape_configs:\n- job_name: {JOB}\n  static_configs:\n  - targets: [\"{}\"]\n",
        agent.address(),
        home = home.display(),
    ));
    prometheus.await_value(&format!("up{{job=\"{JOB}\"}}"), "1");
    busy.start();
    // One that comes, loses frames, and goes.
    let gone = busy.lab.add("gone", Mode::Bridge);
    agent.await_known(&[&gone]);
    gone.link.send(&frame(busy.lab.parent.mac, gone.mac(), 100), 5);
    eventually(Duration::from_secs(15), || {
        let lost = prometheus.query("sum(macvlan_dropped_frames_total{interface=\"gone\"})")?;
        (lost.first().map(|sample| sample.value) == Some(5.0))
            .then_some(())
            .ok_or(format!("{lost:?}"))
    });
    gone.link.delete().expect("it is deleted");
    thread::sleep(pictures().map_or(Duration::from_secs(12), |_| Duration::from_mins(4)));
    let absent = absent(&agent);
    panels_have_data(&prometheus, &absent);
    rules_have_data(&prometheus, &absent);
    if let Some(directory) = pictures() {
        keep_for_pictures(&prometheus, &directory);
    }
    the_blocked_one_is_told_from_the_others(&prometheus, &busy);
    busy.end();
    what_was_sent_is_what_is_stored(&prometheus, &busy);
}

/// Each panel's query gives something, for all and for one sub-interface.
fn panels_have_data(prometheus: &Prometheus, absent: &BTreeSet<String>) {
    let mut ran = 0;
    for (dashboard, text) in DASHBOARDS {
        let values = variables(prometheus, text);
        for query in queries().into_iter().filter(|query| query.dashboard == dashboard) {
            let chosen = BTreeMap::from([
                ("job", JOB.to_owned()),
                (
                    "instance",
                    values["instance"].iter().cloned().collect::<Vec<_>>().join("|"),
                ),
            ]);
            for chosen in [BTreeMap::new(), chosen] {
                let samples = run(&query, prometheus, &chosen);
                let expected =
                    query.expr.contains("or vector(0)") || !names(&query.expr).any(|name| absent.contains(name));
                assert_eq!(
                    !samples.is_empty(),
                    expected,
                    "{dashboard}: {}: {}",
                    query.panel,
                    query.expr
                );
                assert!(
                    samples.iter().all(|sample| sample.value.is_finite()),
                    "{query:?}: {samples:?}"
                );
                ran += 1;
            }
        }
    }
    assert!(ran > 60, "{ran} queries were run");
}

/// Each rule is evaluated without an error, and each recording rule records something.
fn rules_have_data(prometheus: &Prometheus, absent: &BTreeSet<String>) {
    let answer = prometheus.get("/api/v1/rules");
    let groups = answer["data"]["groups"].as_array().expect("groups");
    let rules: Vec<_> = groups
        .iter()
        .flat_map(|group| group["rules"].as_array().expect("rules"))
        .collect();
    assert!(rules.len() > 20, "{} rules", rules.len());
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule}");
        let (name, expr) = (
            rule["name"].as_str().expect("a name"),
            rule["query"].as_str().expect("a query"),
        );
        let samples = prometheus.query(expr).unwrap_or_else(|error| panic!("{name}: {error}"));
        if rule["type"] == "recording" {
            let expected = !names(expr).any(|name| absent.contains(name));
            assert_eq!(!samples.is_empty(), expected, "{name}: {expr}");
            let recorded = prometheus.query(name).expect("the name is a query");
            assert_eq!(recorded.len(), samples.len(), "{name}");
        }
    }
    // The alerts see what they are for, and nothing else.
    let firing = |alert: &str| {
        let rule = groups
            .iter()
            .flat_map(|group| group["rules"].as_array().expect("rules"))
            .find(|rule| rule["name"] == alert)
            .unwrap_or_else(|| panic!("no alert {alert}"));
        let samples = prometheus
            .query(rule["query"].as_str().expect("a query"))
            .expect("it is answered");
        samples
            .iter()
            .map(|sample| sample.label("interface").to_owned())
            .collect::<Vec<_>>()
    };
    let blocked = firing("MacvlanHostUnreachable");
    assert!(blocked.contains(&"web".to_owned()), "{blocked:?}");
    assert!(
        !blocked.contains(&"db".to_owned()) && !blocked.contains(&"vepa".to_owned()),
        "{blocked:?}"
    );
    assert_eq!(firing("MacvlanSiblingUnreachable"), ["vepa"]);
    for quiet in [
        "MacvlanFramesDropped",
        "MacvlanHookMissing",
        "MacvlanParentDown",
        "MacvlanCountsLost",
    ] {
        assert_eq!(firing(quiet), Vec::<String>::new(), "{quiet}");
    }
}

/// The panels of losses name the container that calls its host, and no other.
fn the_blocked_one_is_told_from_the_others(prometheus: &Prometheus, busy: &Busy) {
    let lost = find("Lost frames by reason", "sub-interface");
    let of = |sub: &SubInterface, reason: &str| -> f64 {
        let chosen = BTreeMap::from([("interface", sub.link.name.clone())]);
        let samples = run(&lost, prometheus, &chosen);
        samples
            .iter()
            .filter(|sample| sample.label("reason") == reason)
            .map(|sample| sample.value)
            .sum()
    };
    // 4 each quarter of a second and a little, so about 15 a second; twice as slow on a busy machine.
    let blocked = of(&busy.web, "child_to_parent");
    assert!((5.0..18.0).contains(&blocked), "{blocked} per second");
    for other in [&busy.db, &busy.vepa] {
        assert!(of(other, "child_to_parent") <= 0.0, "{}", other.link.name);
    }
    assert!(of(&busy.vepa, "sibling_not_reflected") > 0.0);
    assert!(of(&busy.web, "sibling_not_reflected") <= 0.0);
    let losers = find("Sub-interfaces that lose frames", "overview");
    let losers: BTreeSet<_> = run(&losers, prometheus, &BTreeMap::new())
        .iter()
        .map(|sample| (sample.label("interface").to_owned(), sample.label("reason").to_owned()))
        .collect();
    let expected = [("vepa", "sibling_not_reflected"), ("web", "child_to_parent")];
    let expected: BTreeSet<_> = expected
        .map(|(name, reason)| (name.to_owned(), reason.to_owned()))
        .into();
    // What the one that is gone had lost before Prometheus saw it first is no growth, and may or may not be in it.
    let gone = ("gone".to_owned(), "child_to_parent".to_owned());
    assert_eq!(
        losers
            .into_iter()
            .filter(|loser| *loser != gone)
            .collect::<BTreeSet<_>>(),
        expected
    );
}

/// In the end the counter in Prometheus is what was sent.
fn what_was_sent_is_what_is_stored(prometheus: &Prometheus, busy: &Busy) {
    let sent = busy.sent_to_parent.load(Ordering::Relaxed);
    prometheus.await_value(
        "sum(macvlan_dropped_frames_total{interface=\"web\", reason=\"child_to_parent\"})",
        &sent.to_string(),
    );
    // The parent's own counter keeps what the one that is gone has lost.
    prometheus.await_value(
        "sum(macvlan_parent_isolation_lost_frames_total{direction=\"child_to_parent\"})",
        &(sent + 5).to_string(),
    );
    assert_eq!(
        prometheus.query("macvlan_interface_info{interface=\"gone\"}"),
        Ok(Vec::new())
    );
}

/// What the panels ask for is there on this kernel.
fn asked_for_is_in_the_scrape(agent: &Agent) {
    let absent = absent(agent);
    let scrape = agent.scrape();
    let queries = queries();
    let asked: BTreeSet<&str> = queries.iter().flat_map(|query| names(&query.expr)).collect();
    assert!(asked.len() > 20, "{asked:?}");
    for name in asked {
        assert_eq!(scrape.families.contains_key(name), !absent.contains(name), "{name}");
    }
}

/// Where the data of each panel is to be kept, for `cargo xtask pictures`.
fn pictures() -> Option<PathBuf> {
    env::var_os("MACVLAN_PICTURES_DIR").map(PathBuf::from)
}

/// Keeps each panel with the answers to its queries, over the last minutes.
fn keep_for_pictures(prometheus: &Prometheus, directory: &Path) {
    fs::create_dir_all(directory).expect("the directory is there or is made");
    for (name, text) in DASHBOARDS {
        let mut page: Value = serde_json::from_str(text).expect("a dashboard is JSON");
        // One time for all, as in Grafana: tables are joined by it.
        let now = prometheus.query("vector(time())").expect("a time")[0].value;
        for panel in page["panels"].as_array_mut().expect("panels") {
            let targets = panel["targets"].as_array().cloned().unwrap_or_default();
            let answers: Vec<Value> = targets.iter().map(|target| answer(prometheus, target, now)).collect();
            panel["answers"] = json!(answers);
        }
        fs::write(directory.join(format!("{name}.json")), page.to_string()).expect("it is written");
    }
}

/// What Prometheus answers to a panel's query, with the container that calls its host chosen.
fn answer(prometheus: &Prometheus, target: &Value, now: f64) -> Value {
    let chosen = BTreeMap::from([("interface", "web".to_owned())]);
    let expr = target["expr"].as_str().expect("an expression");
    let expr = encode(&with_variables(expr, RATE_INTERVAL, &chosen));
    let path = if target["instant"] == true {
        format!("/api/v1/query?query={expr}&time={now}")
    } else {
        format!(
            "/api/v1/query_range?query={expr}&start={}&end={now}&step=2",
            now - 220.0
        )
    };
    prometheus.get(&path)["data"].clone()
}
