//! What a full host costs an agent: all its sub-interfaces are known soon after the start. And what a fleet costs a
//! Prometheus: many hosts that answer as a real agent did, scraped by a real Prometheus with our rules and alerts, whose
//! sums two more take over by federation and by remote write. The arithmetic of docs/SCALE.md stands on the counts of
//! series that are shown here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use macvlan_agent_tests::{
    agent::Agent,
    exposition,
    fleet::{self, Template},
    lab::{Lab, Mac, Mode, Place, Upstream, macvlans},
    panels::{queries, with_variables},
    prometheus::{Prometheus, encode},
    surroundings::{eventually, long, on_host, patience},
    traffic::frame,
};

/// What is simulated.
struct Size {
    hosts: usize,
    sub_interfaces: usize,
    /// Seconds between two scrapes.
    interval: u32,
    /// How long data is gathered before it is looked at.
    gather: Duration,
    /// No query of a dashboard may take longer.
    slowest_query: Duration,
}

impl Size {
    fn small() -> Self {
        Self {
            hosts: 5,
            sub_interfaces: 20,
            interval: 1,
            gather: Duration::from_secs(8),
            slowest_query: Duration::from_secs(2),
        }
    }

    /// What docs/SCALE.md tells: some 15 GiB of memory, and ten minutes.
    fn large() -> Self {
        Self {
            hosts: 200,
            sub_interfaces: 500,
            interval: 60,
            gather: Duration::from_mins(4),
            slowest_query: Duration::from_mins(1),
        }
    }
}

/// A real agent's answer with one busy sub-interface; and that one more adds as many series as the template says.
fn template() -> Template {
    let lab = Lab::new(Place::Named, Upstream::Wire);
    let sub = lab.add("eth0", Mode::Bridge);
    let agent = Agent::start();
    agent.await_known(&[&sub]);
    lab.station.send(&frame(sub.mac(), lab.station.mac, 200), 10);
    sub.link.send(&frame(lab.station.mac, sub.mac(), 200), 10);
    sub.link.send(&frame(lab.parent.mac, sub.mac(), 200), 10);
    let open = [("Accept", "application/openmetrics-text;version=1.0.0")];
    let text = eventually(patience(Duration::from_secs(10)), || {
        let scrape = agent.scrape();
        let lost = scrape.samples("macvlan_dropped_frames_total", &[("reason", "child_to_parent")]);
        let lost: f64 = lost.map(|sample| sample.value).sum();
        let answer = exposition::get_with(agent.address(), "/metrics", &open).map_err(|error| format!("{error:#}"))?;
        (lost >= 10.0).then_some(answer.body).ok_or(scrape.text)
    });
    let template = Template::of(&text, &sub.labels());
    let alone = agent.scrape();
    let other = lab.add("other", Mode::Bridge);
    agent.await_known(&[&other]);
    // A baseline of the kernel's counts has to be taken first.
    eventually(patience(Duration::from_secs(10)), || {
        let added = agent.scrape().samples.len() - alone.samples.len();
        (added == template.series_of_each())
            .then_some(())
            .ok_or(format!("{added} series"))
    });
    assert_eq!(
        template.series_of_host() + template.series_of_each(),
        alone.samples.len()
    );
    template
}

#[test]
fn a_fleet_is_scraped_summed_up_and_handed_on() {
    let size = if long() && on_host() {
        Size::large()
    } else {
        Size::small()
    };
    let template = template();
    let of_a_host = template.series_of_host() + template.series_of_each() * size.sub_interfaces;
    simulation_is_well_formed(&template, of_a_host, size.sub_interfaces);
    assert!(
        (30..=40).contains(&template.series_of_each()),
        "docs/SCALE.md reckons with 35 series of a sub-interface, not {}",
        template.series_of_each()
    );
    if !on_host() {
        // There is no Prometheus in a VM: that the simulation answers as the agent of this kernel does was shown.
        return;
    }
    say(&format!(
        "{} hosts, {} sub-interfaces each of {} series, {} of the host",
        size.hosts,
        size.sub_interfaces,
        template.series_of_each(),
        template.series_of_host()
    ));
    let targets = fleet::start(template, size.hosts, size.sub_interfaces);
    let written = Prometheus::start_with("scrape_configs: []\n");
    let regional = Prometheus::start_with(&regional_configuration(&size, &targets, &written));
    let federated = Prometheus::start_with(&provisioned("federation.yml", |text| {
        let text = text.replace("scrape_interval: 30s", "scrape_interval: 2s");
        text.replace(
            "\"prometheus-1:9090\", \"prometheus-2:9090\"",
            &format!("\"{}\"", regional.address()),
        )
    }));
    await_all(&regional, &size, of_a_host);
    thread::sleep(size.gather);
    let report = Report::of(&regional, size.interval);
    say(&report.text);
    assert!(report.series >= float(of_a_host * size.hosts), "{}", report.text);
    assert_eq!(
        value(&regional, "count(up{job=\"macvlan-agent\"} == 1)"),
        Ok(float(size.hosts))
    );
    the_dashboards_are_answered(&regional, &size);
    handed_on(&regional, &federated, &written, size.hosts);
}

/// What an agent finds when it starts on a host that is full.
#[test]
fn a_full_host_is_known_soon() {
    const IN_EACH: usize = 8;
    // Four thousand in five hundred namespaces are promised to be known within ten seconds.
    let (namespaces, limit) = match (long(), on_host()) {
        (true, true) => (500, 10),
        (false, true) => (125, 20),
        (_, false) => (10, 100),
    };
    let limit = Duration::from_secs(limit);
    let lab = Lab::new(Place::Own, Upstream::Wire);
    let mut macs = Vec::new();
    let start = Instant::now();
    let homes: Vec<_> = (0..namespaces)
        .map(|home: u16| {
            let namespace = lab.namespace(&format!("n{home}"));
            let [high, low] = home.to_be_bytes();
            let all = (0..).take(IN_EACH).map(|number: u8| {
                let mac = Mac([0x02, 0x6d, 0x78, high, low, number]);
                (format!("macv{number}"), mac)
            });
            let all: Vec<_> = all.collect();
            macvlans(&lab.parent, &namespace, &all).expect("they are made");
            macs.extend(all.into_iter().map(|(_, mac)| mac));
            namespace
        })
        .collect();
    let made = start.elapsed();
    let start = Instant::now();
    let agent = Agent::start();
    let ready = start.elapsed();
    let known = || -> Result<u64, String> {
        let parents: serde_json::Value =
            serde_json::from_str(&agent.get("/api/v1/parents").body).map_err(|error| error.to_string())?;
        let parents = parents.as_array().ok_or("no list")?.iter();
        let own = parents.filter(|parent| parent["parent"] == lab.parent_label());
        Ok(own.map(|parent| parent["sub_interfaces"].as_u64().unwrap_or(0)).sum())
    };
    eventually(limit, || match known()? {
        all if all == macs.len() as u64 => Ok(()),
        other => Err(format!("{other} of {} are known", macs.len())),
    });
    let complete = start.elapsed();
    say(&format!(
        "{} sub-interfaces in {} namespaces, made in {made:.1?}: the agent was ready after {ready:.2?}, and knew all after \
         {complete:.2?}",
        macs.len(),
        homes.len()
    ));
    assert!(complete < limit, "{complete:?}");
    let scrape = agent.scrape();
    let parent = lab.parent_label();
    let labels = [("parent", parent.as_str())];
    let infos = scrape.samples("macvlan_interface_info", &labels);
    let seen: BTreeSet<_> = infos.map(|sample| sample.label("mac").to_owned()).collect();
    assert_eq!(seen, macs.iter().map(ToString::to_string).collect());
    // The counts are theirs: of the last as of the first.
    let ends = [macs[0], macs[macs.len() - 1]];
    for mac in ends {
        lab.station.send(&frame(mac, lab.station.mac, 100), 3);
    }
    let unicast = [("parent", parent.as_str()), ("cast", "unicast"), ("path", "external")];
    eventually(patience(Duration::from_secs(10)), || {
        let scrape = agent.scrape();
        let counted = scrape.samples("macvlan_delivered_frames_total", &unicast);
        let counted: Vec<_> = counted
            .map(|sample| sample.value)
            .filter(|count| *count > 0.0)
            .collect();
        (counted == [3.0, 3.0])
            .then_some(())
            .ok_or_else(|| format!("{counted:?}"))
    });
    // Their series go with their namespaces, at once.
    drop(homes);
    eventually(patience(Duration::from_secs(30)), || match known()? {
        0 => Ok(()),
        left => Err(format!("{left} are left")),
    });
    agent.kill();
}

fn simulation_is_well_formed(template: &Template, of_a_host: usize, sub_interfaces: usize) {
    let text = template.text(sub_interfaces, 7);
    let lines = text.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(lines, of_a_host);
    assert!(text.ends_with("# EOF\n"));
}

fn regional_configuration(size: &Size, targets: &[std::net::SocketAddr], written: &Prometheus) -> String {
    let targets: Vec<_> = targets.iter().map(|target| format!("\"{target}\"")).collect();
    let home = home();
    let remote_write = provisioned("remote-write.yml", |text| {
        text.replace(
            "http://mimir:8080/api/v1/push",
            &format!("http://{}/api/v1/write", written.address()),
        )
    });
    let global = format!(
        "global:\n  scrape_interval: {}s\n  scrape_timeout: {}s\n  evaluation_interval: {}s\n",
        size.interval,
        size.interval.min(30),
        size.interval
    );
    format!(
        "{}rule_files: [\"{home}/rules/*.yml\", \"{home}/alerts/*.yml\"]\n\
         scrape_configs:\n- job_name: macvlan-agent\n  static_configs:\n  - targets: [{}]\n",
        remote_write.replace("global:\n", &global),
        targets.join(", "),
        home = home.display(),
    )
}

fn home() -> PathBuf {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dashboards");
    home.canonicalize().expect("the dashboards are beside the tests")
}

/// A file of `dashboards/provisioning` with names of ours put in.
///
/// # Panics
/// When nothing was put in: the file is not what this test takes it for.
fn provisioned(name: &str, put_in: impl Fn(&str) -> String) -> String {
    let text = fs::read_to_string(home().join("provisioning").join(name)).expect("it is there");
    let ours = put_in(&text);
    assert_ne!(text, ours, "{name}");
    ours
}

/// Every host was scraped, and summed up.
fn await_all(regional: &Prometheus, size: &Size, of_a_host: usize) {
    eventually(Duration::from_mins(10), || {
        let up = value(
            regional,
            &format!("count(scrape_samples_scraped{{job=\"macvlan-agent\"}} == {of_a_host})"),
        )?;
        let summed = value(regional, "count(instance:macvlan_interfaces_losing_frames:count > 0)")?;
        let hosts = size.hosts.to_string();
        (up.to_string() == hosts && summed.to_string() == hosts)
            .then_some(())
            .ok_or(format!("{up} hosts, {summed} summed up\n{}", regional.log()))
    });
}

/// What Prometheus says of itself.
struct Report {
    series: f64,
    text: String,
}

impl Report {
    fn of(prometheus: &Prometheus, interval: u32) -> Self {
        let before = (Own::read(prometheus), Instant::now());
        thread::sleep(Duration::from_secs(u64::from(interval) * 2));
        let (after, took) = (Own::read(prometheus), before.1.elapsed().as_secs_f64());
        let before = before.0;
        let per_second = |name: &str| (after.get(name) - before.get(name)) / took;
        let series = after.get("prometheus_tsdb_head_series");
        let memory = after.get("process_resident_memory_bytes");
        let mut text = format!(
            "series {series}; resident memory {:.2} GiB, {:.0} bytes a series; samples taken in {:.0} a second; \
             processors in use {:.2}\n",
            memory / f64::from(1 << 30),
            memory / series,
            per_second("prometheus_tsdb_head_samples_appended_total{type=\"float\"}"),
            per_second("process_cpu_seconds_total"),
        );
        for (what, query) in [
            ("slowest scrape", "max(scrape_duration_seconds{job=\"macvlan-agent\"})"),
            ("mean scrape", "avg(scrape_duration_seconds{job=\"macvlan-agent\"})"),
        ] {
            let seconds = value(prometheus, query).expect("it is answered");
            let _ = write!(text, "{what} {seconds:.3} s; ");
        }
        for (name, seconds) in &after.0 {
            if name.starts_with("prometheus_rule_group_last_duration_seconds") {
                let group = name
                    .rsplit_once(';')
                    .map_or("", |(_, group)| group.trim_end_matches("\"}"));
                let _ = write!(text, "{group} evaluated in {seconds:.2} s; ");
            }
        }
        Self { series, text }
    }
}

/// Its own metrics, by series.
struct Own(BTreeMap<String, f64>);

impl Own {
    fn read(prometheus: &Prometheus) -> Self {
        let answer = exposition::get(prometheus.address(), "/metrics").expect("it answers");
        let lines = answer.body.lines().filter(|line| !line.starts_with('#'));
        let series = lines.filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Self(series.collect())
    }

    fn get(&self, name: &str) -> f64 {
        self.0[name]
    }
}

/// Each panel's query, over the whole fleet where it is about it, and over one sub-interface where it is about one.
fn the_dashboards_are_answered(prometheus: &Prometheus, size: &Size) {
    let window = format!("{}s", size.interval * 4);
    let mut times: BTreeMap<&str, Vec<(Duration, String)>> = BTreeMap::new();
    for query in queries() {
        let mut chosen = BTreeMap::new();
        if query.dashboard == "sub-interface" {
            let host = prometheus.query("topk(1, up{job=\"macvlan-agent\"})").expect("a host");
            chosen.insert("instance", host[0].label("instance").to_owned());
            chosen.insert("netns", "container-0".to_owned());
        }
        let expr = with_variables(&query.expr, &window, &chosen);
        let path = if query.instant {
            format!("/api/v1/query?query={}", encode(&expr))
        } else {
            let now = value(prometheus, "vector(time())").expect("a time");
            let start = now - size.gather.as_secs_f64();
            let query = encode(&expr);
            format!(
                "/api/v1/query_range?query={query}&start={start}&end={now}&step={}",
                size.interval
            )
        };
        let start = Instant::now();
        let answer = prometheus.get(&path);
        let took = start.elapsed();
        assert_eq!(answer["status"], "success", "{}: {answer}", query.panel);
        assert!(took < size.slowest_query, "{}: {took:?}: {expr}", query.panel);
        times.entry(query.dashboard).or_default().push((took, query.panel));
    }
    for (dashboard, mut times) in times {
        times.sort();
        let (median, slowest) = (&times[times.len() / 2], &times[times.len() - 1]);
        say(&format!(
            "{dashboard}: {} queries, median {:.3} s, slowest {:.3} s ({})",
            times.len(),
            median.0.as_secs_f64(),
            slowest.0.as_secs_f64(),
            slowest.1
        ));
    }
}

/// The sums of each host, and nothing of single sub-interfaces, are where they were to be sent.
fn handed_on(regional: &Prometheus, federated: &Prometheus, written: &Prometheus, hosts: usize) {
    let sums = "{__name__=~\"instance.*:macvlan_.+\"}";
    let there = value(regional, &format!("count({sums})")).expect("it is answered");
    let of_a_host = there / float(hosts);
    say(&format!("handed on: {there} series, {of_a_host:.0} of a host"));
    assert!(
        (25.0..35.0).contains(&of_a_host),
        "docs/SCALE.md reckons with 30, not {of_a_host}"
    );
    for (way, other) in [("federation", federated), ("remote write", written)] {
        eventually(Duration::from_secs(90), || {
            let here = value(other, &format!("count({sums})"))?;
            ((here - there).abs() < 0.5)
                .then_some(())
                .ok_or(format!("{way}: {here} of {there} series\n{}", other.log()))
        });
        let single = other.query("count({__name__=~\"macvlan_.+\"})");
        assert_eq!(single, Ok(Vec::new()), "{way}");
    }
    let site = written.query("count by (site) (instance:macvlan_parent_interfaces:sum)");
    assert_eq!(site.expect("it is answered")[0].label("site"), "one");
}

fn value(prometheus: &Prometheus, query: &str) -> Result<f64, String> {
    let samples = prometheus.query(query)?;
    samples
        .first()
        .map(|sample| sample.value)
        .ok_or_else(|| format!("{query} gives nothing"))
}

fn float(number: usize) -> f64 {
    f64::from(u32::try_from(number).expect("it is small"))
}

/// Past what libtest keeps for failures: these numbers are the result.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
