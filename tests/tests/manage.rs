//! Interfaces are made, changed, kept and removed as they were asked for, and nothing else is touched.

use std::{
    fmt::Write as _,
    net::IpAddr,
    os::unix::process::ExitStatusExt,
    time::{Duration, Instant},
};

use macvlan_agent_tests::{
    lab::{Lab, Mode, Place, Upstream},
    manage::{Desk, answers, batch, ip, ip_text, link, picture},
    netns::Namespace,
    surroundings::{eventually, has, long, on_host, patience},
};
use serde_json::Value;

fn ip_of(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn name(namespace: &Namespace) -> &str {
    namespace.name().expect("a named namespace")
}

/// The routing tables of the host, as text.
fn routes() -> String {
    let own = Namespace::own();
    let four = ip_text(&own, &["route", "show", "table", "all"]);
    four + &ip_text(&own, &["-6", "route", "show", "table", "all"])
}

#[test]
fn the_experiment_by_configuration_alone_and_the_shim_that_repairs_it() {
    let (lab, desk, own) = (Lab::new(Place::Own, Upstream::Wire), Desk::new(), Namespace::own());
    lab.parent.add_address(ip_of("198.51.100.1"), 24).unwrap();
    let (one, two) = (lab.namespace("one"), lab.namespace("two"));
    let parent = lab.parent.name.as_str();
    let config = desk.configure(&format!(
        "sub_interfaces:\n  - {{name: macv1, parent: {parent}, mode: bridge, netns: {}, addresses: [198.51.100.151/24]}}\n  \
         - {{name: macv1, parent: {parent}, mode: bridge, netns: {}, addresses: [198.51.100.152/24]}}\n",
        name(&one),
        name(&two)
    ));
    let planned = desk.succeed(&["plan", &config]);
    assert!(planned.contains("2 to make"), "{planned}");
    assert!(link(&one, "macv1").is_none(), "plan changes nothing");
    let done = desk.succeed(&["apply", &config]);
    assert!(
        done.contains("2 made, 0 changed, 0 removed; 0 pending, 0 failed"),
        "{done}"
    );
    let again = desk.succeed(&["apply", &config]);
    assert!(
        again.contains("0 made, 0 changed, 0 removed") && again.contains("2 as they should be"),
        "{again}"
    );

    let (host, first, second) = (ip_of("198.51.100.1"), ip_of("198.51.100.151"), ip_of("198.51.100.152"));
    assert!(answers(&one, &two, second), "siblings reach each other");
    assert!(answers(&two, &one, first), "siblings reach each other");
    assert!(!answers(&one, &own, host), "macvlan keeps its parent away");
    assert!(!answers(&own, &one, first), "macvlan keeps its parent away");

    let before = routes();
    let added = desk.succeed(&["shim", "add", parent]);
    assert!(added.contains("198.51.100.151: answers through the shim"), "{added}");
    for (from, to, address) in [
        (&one, &own, host),
        (&own, &one, first),
        (&two, &own, host),
        (&own, &two, second),
    ] {
        assert!(answers(from, to, address), "{address} through the shim\n{added}");
    }
    assert!(answers(&one, &two, second), "siblings still reach each other");
    let listed = desk.succeed(&["shim", "list"]);
    assert!(
        listed.contains(&format!("on {parent}")) && listed.contains("198.51.100.152: answers"),
        "{listed}"
    );

    desk.succeed(&["shim", "del", parent]);
    assert_eq!(routes(), before, "the routing table is as before");
    assert!(
        !answers(&one, &own, host) && !answers(&own, &one, first),
        "as before the shim"
    );

    let gone = desk.succeed(&["apply", "--prune", "--config.file=/dev/null"]);
    assert!(gone.contains("2 removed"), "{gone}");
    assert!(link(&one, "macv1").is_none() && link(&two, "macv1").is_none());
}

#[test]
fn a_shim_that_is_not_confirmed_is_taken_back() {
    let (lab, desk) = (Lab::new(Place::Own, Upstream::Wire), Desk::new());
    lab.parent.add_address(ip_of("198.51.100.1"), 24).unwrap();
    let before = routes();
    let parent = lab.parent.name.as_str();
    desk.refuse(
        &[
            "shim",
            "add",
            parent,
            "--confirm-within",
            "1s",
            "--address",
            "198.51.100.250/32",
        ],
        &["was not confirmed in time"],
    );
    assert_eq!(routes(), before);
    // One whose command was killed goes with the next command that changes anything.
    let killed = desk.run_killed(
        &["shim", "add", parent, "--confirm-within", "1s", "--name", "mvshim0"],
        999,
    );
    assert_eq!(killed.status.code(), Some(1));
    assert_eq!(routes(), before);
}

/// Each option: what is written in the configuration, and where and what `ip -d -j link` tells of it.
const OPTIONS: &[(&str, &str, &str)] = &[
    ("mode: private", "/linkinfo/info_data/mode", "\"private\""),
    ("mode: vepa", "/linkinfo/info_data/mode", "\"vepa\""),
    ("mode: bridge", "/linkinfo/info_data/mode", "\"bridge\""),
    ("mode: passthru", "/linkinfo/info_data/mode", "\"passthru\""),
    ("mode: source", "/linkinfo/info_data/mode", "\"source\""),
    ("mode: bridge, kind: macvtap", "/linkinfo/info_kind", "\"macvtap\""),
    (
        "mode: passthru, flags: [nopromisc]",
        "/linkinfo/info_data/nopromisc",
        "true",
    ),
    ("mode: source, flags: [nodst]", "/linkinfo/info_data/nodst", "true"),
    (
        "mode: source, source_macs: [52:76:5f:92:85:02, 52:76:5f:92:85:01]",
        "/linkinfo/info_data/macaddr_data",
        "[\"52:76:5f:92:85:01\",\"52:76:5f:92:85:02\"]",
    ),
    (
        "mode: bridge, mac: 52:76:5f:92:85:8d",
        "/address",
        "\"52:76:5f:92:85:8d\"",
    ),
    ("mode: bridge, mtu: 1400", "/mtu", "1400"),
    ("mode: bridge, up: false", "/operstate", "\"DOWN\""),
];

#[test]
fn every_option_is_read_back() {
    let (lab, desk) = (Lab::new(Place::Own, Upstream::Wire), Desk::new());
    let inside = lab.namespace("inside");
    let configure = |options: &str| {
        desk.configure(&format!(
            "sub_interfaces:\n  - {{name: macv1, parent: {}, netns: {}, {options}}}\n",
            lab.parent.name,
            name(&inside)
        ))
    };
    for (options, place, value) in OPTIONS {
        let flag = configure(options);
        desk.succeed(&["apply", "--prune", &flag]);
        let told = link(&inside, "macv1").unwrap_or_else(|| panic!("{options}: it is not there"));
        let mut got = told.pointer(place).cloned().unwrap_or(Value::Null);
        if let Value::Array(list) = &mut got {
            list.sort_by_key(ToString::to_string);
        }
        let wanted: Value = serde_json::from_str(value).unwrap();
        // Older `ip` puts flags into a list, or under their name.
        let flags = told
            .pointer("/linkinfo/info_data")
            .map(ToString::to_string)
            .unwrap_or_default();
        let by_name = place
            .rsplit('/')
            .next()
            .is_some_and(|word| wanted == true && flags.contains(word));
        assert!(got == wanted || by_name, "{options}: {got} is not {wanted}: {told}");
        let again = desk.succeed(&["apply", "--prune", &flag]);
        assert!(again.contains("1 as they should be"), "{options}: {again}");
    }
    for (option, words) in [
        ("bc_queue_len: 77", "no bc_queue_len (since Linux 5.11)"),
        ("bc_cutoff: 7", "no bc_cutoff (since Linux 6.5)"),
    ] {
        let flag = configure(&format!("mode: bridge, {option}"));
        let key = option.split(':').next().unwrap();
        if !has(key) {
            let before = picture(&inside);
            desk.refuse(&["apply", &flag], &["config.yaml:2: sub_interfaces[0]", key, words]);
            assert_eq!(picture(&inside), before, "nothing is changed");
            continue;
        }
        desk.succeed(&["apply", &flag]);
        let told = ip_text(&inside, &["-d", "link", "show", "macv1"]);
        // Debian 12's `ip` does not know the cut-off; that the agent reads it back is what the second run shows.
        assert!(key == "bc_cutoff" || told.contains("bcqueuelen 77"), "{told}");
        let again = desk.succeed(&["apply", &flag]);
        assert!(again.contains("1 as they should be"), "{again}");
        let other = configure(&format!("mode: bridge, {}", option.replace('7', "8")));
        let changed = desk.succeed(&["apply", &other]);
        assert!(changed.contains("1 changed"), "{changed}");
    }
}

#[test]
fn live_changes_lead_from_each_to_each() {
    let (lab, desk) = (Lab::new(Place::Own, Upstream::Wire), Desk::new());
    let inside = lab.namespace("inside");
    let which = format!("{}/macv1", name(&inside));
    desk.succeed(&["add", &which, "--parent", &lab.parent.name, "--mode", "private"]);
    let index = || link(&inside, "macv1").unwrap()["ifindex"].clone();
    let first = index();
    for (from, to) in [
        ("private", "vepa"),
        ("vepa", "bridge"),
        ("bridge", "source"),
        ("source", "private"),
    ] {
        let said = desk.succeed(&["set", &which, "--mode", to]);
        assert!(said.contains(&format!("mode: {from} -> {to}")), "{said}");
        assert_eq!(link(&inside, "macv1").unwrap()["linkinfo"]["info_data"]["mode"], to);
    }
    let said = desk.succeed(&["set", &which, "--mtu", "1400", "--address", "198.51.100.9/24"]);
    assert!(
        said.contains("mtu: 1500 -> 1400") && said.contains("address: add 198.51.100.9/24"),
        "{said}"
    );
    let said = desk.succeed(&["set", &which, "--address", "198.51.100.10/24"]);
    assert!(said.contains("address: remove 198.51.100.9/24"), "{said}");
    assert_eq!(index(), first, "it is still the same interface");
    // The kernel tells of a carrier when it finds the time (`linkwatch`).
    eventually(patience(Duration::from_secs(5)), || {
        let told = link(&inside, "macv1").unwrap()["operstate"].clone();
        (told == "UP").then_some(()).ok_or_else(|| format!("it is {told}"))
    });
    // A later step is refused: what was done before it is undone.
    let before = picture(&inside);
    desk.refuse(
        &["set", &which, "--mode", "bridge", "--mtu", "9000"],
        &["mtu 9000 is over that of"],
    );
    assert_eq!(picture(&inside), before);
    desk.succeed(&["set", &which, "--mode", "passthru"]);
    assert_ne!(index(), first, "no change leads to passthru: it was made anew");
    desk.succeed(&["del", &which]);
    assert!(link(&inside, "macv1").is_none());
}

#[test]
fn a_vlan_is_made_with_its_first_user_and_goes_with_its_last() {
    let (lab, desk, own) = (Lab::new(Place::Own, Upstream::Wire), Desk::new(), Namespace::own());
    let inside = lab.namespace("inside");
    let base = lab.parent.name.clone();
    // As long as a name may be.
    let vlan = format!("{}.10", &base[base.len().saturating_sub(8)..]);
    let config = |subs: &str| {
        desk.configure(&format!(
            "parents:\n  - {{name: {vlan}, vlan: {{parent: {base}, id: 10}}}}\nsub_interfaces:\n{subs}"
        ))
    };
    let sub = |name: &str, last: u8| {
        format!(
            "  - {{name: {name}, parent: {vlan}, mode: bridge, netns: {}, addresses: [198.51.100.{last}/24]}}\n",
            inside.name().unwrap()
        )
    };
    let two = config(&(sub("macv1", 11) + &sub("macv2", 12)));
    if !has("vlan") {
        desk.refuse(&["apply", &two], &[]);
        let output = desk.run(&["apply", &two]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("this kernel has no VLANs (CONFIG_VLAN_8021Q)"), "{said}");
        assert!(link(&own, &vlan).is_none() && link(&inside, "macv1").is_none());
        return;
    }
    desk.succeed(&["apply", &two]);
    let made = link(&own, &vlan).expect("it was made");
    assert_eq!(made["linkinfo"]["info_data"]["id"], 10);
    assert_eq!(link(&inside, "macv1").unwrap()["link_index"], made["ifindex"]);
    // Its traffic is tagged: a station on the same VLAN answers, one without does not.
    let wire = &lab.station.namespace;
    let _ = ip_text(
        wire,
        &[
            "link",
            "add",
            "link",
            &lab.station.name,
            "name",
            "tagged",
            "type",
            "vlan",
            "id",
            "10",
        ],
    );
    let _ = ip_text(wire, &["addr", "add", "198.51.100.77/24", "dev", "tagged"]);
    let _ = ip_text(wire, &["link", "set", "tagged", "up"]);
    assert!(answers(&inside, wire, ip_of("198.51.100.77")));
    let one = config(&sub("macv2", 12));
    desk.succeed(&["apply", "--prune", &one]);
    assert!(link(&own, &vlan).is_some(), "it has a user left");
    let none = desk.configure("");
    desk.succeed(&["apply", "--prune", &none]);
    assert!(link(&own, &vlan).is_none(), "its last user has gone");
    // One that somebody else made stays.
    let _ = ip_text(
        &own,
        &["link", "add", "link", &base, "name", &vlan, "type", "vlan", "id", "10"],
    );
    let one = config(&sub("macv2", 12));
    desk.succeed(&["apply", "--prune", &one]);
    let none = desk.configure("");
    desk.succeed(&["apply", "--prune", &none]);
    assert!(link(&own, &vlan).is_some() && link(&inside, "macv2").is_none());
    // By command, the name says which VLAN it is.
    let _ = ip_text(&own, &["link", "del", &vlan]);
    desk.succeed(&[
        "add",
        &format!("{}/c1", name(&inside)),
        "--parent",
        &format!("{base}.7"),
        "--mode",
        "bridge",
    ]);
    assert!(link(&own, &format!("{base}.7")).is_some());
    desk.succeed(&["del", &format!("{}/c1", name(&inside))]);
    assert!(link(&own, &format!("{base}.7")).is_none());
}

/// What each namespace holds, for a comparison.
fn pictures(spaces: &[&Namespace]) -> Value {
    let pictures = spaces.iter().map(|space| (space.label().to_owned(), picture(space)));
    Value::Object(pictures.collect())
}

/// Where two pictures differ: all of them would fill pages.
fn unlike(before: &Value, after: &Value, at: &str, found: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(one), Value::Object(other)) => {
            for key in one.keys().chain(other.keys().filter(|key| !one.contains_key(*key))) {
                unlike(&before[key], &after[key], &format!("{at}/{key}"), found);
            }
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            for (number, (one, other)) in one.iter().zip(other).enumerate() {
                unlike(one, other, &format!("{at}/{number}"), found);
            }
        }
        (Value::Array(one), Value::Array(other)) => {
            let gone = one.iter().filter(|each| !other.contains(each));
            let new = other.iter().filter(|each| !one.contains(each));
            found.extend(
                gone.map(|each| format!("{at}: - {each}"))
                    .chain(new.map(|each| format!("{at}: + {each}"))),
            );
        }
        _ if before == after => {}
        _ => found.push(format!("{at}: {before} is {after}")),
    }
}

/// That nothing has changed.
fn same(before: &Value, after: &Value, what: &str) {
    let mut found = Vec::new();
    unlike(before, after, "", &mut found);
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

/// Links and routes that look like the agent's and are not: nothing of them may change.
fn strangers(lab: &Lab, [one, other]: [&Namespace; 2]) {
    let stranger = lab.add_in(
        one,
        "stranger",
        Mode::Bridge,
        lab.mac(),
        macvlan_agent_tests::lab::Arrival::Directly,
    );
    stranger.link.add_address(ip_of("203.0.113.9"), 24).expect("an address");
    let run = |space: &Namespace, words: &str| {
        let words: Vec<_> = words.split(' ').collect();
        let _ = ip_text(space, &words);
    };
    run(other, "link add forged type veth peer name peer");
    run(other, "link set forged alias macvlan-agent:000000000000");
    // The number of a route's protocol is anybody's.
    run(one, "route add 10.200.0.0/16 dev stranger proto 109");
    let parent = &lab.parent.name;
    run(
        &Namespace::own(),
        &format!("route add 192.0.2.0/24 dev {parent} proto 109 metric 77"),
    );
}

#[test]
fn killed_between_any_two_changes_it_leaves_nothing_that_the_next_run_does_not_mend() {
    let (lab, desk, own) = (Lab::new(Place::Own, Upstream::Wire), Desk::new(), Namespace::own());
    let inside: Vec<_> = (0..5).map(|number| lab.namespace(&format!("k{number}"))).collect();
    let start = Instant::now();
    let parent = lab.parent.name.as_str();
    strangers(&lab, [&inside[0], &inside[1]]);
    let mut subs = String::from("sub_interfaces:\n");
    for number in 0..50 {
        let space = name(&inside[number % inside.len()]);
        let _ = writeln!(
            subs,
            "  - {{name: k{number}, parent: {parent}, mode: bridge, netns: {space}, addresses: [198.51.100.{}/24], \
             routes: [{{to: 10.0.{number}.0/24, via: 198.51.100.254}}]}}",
            number + 10
        );
    }
    let all = desk.configure(&subs);
    let wire = &lab.station.namespace;
    let spaces: Vec<&Namespace> = inside.iter().chain([&own, wire]).collect();
    // The kernel tells some time later that a new link is up.
    eventually(patience(Duration::from_secs(5)), || {
        let state = link(&inside[0], "stranger").map(|link| link["operstate"].clone());
        if state == Some("UP".into()) {
            Ok(())
        } else {
            Err(format!("{state:?}"))
        }
    });
    let before = pictures(&spaces);
    desk.succeed(&["apply", &all]);
    let names = |space: &Namespace| -> serde_json::Map<String, Value> {
        let links = ip(space, &["addr"]);
        let links = links.as_array().unwrap().iter();
        links
            .map(|link| {
                let addresses = link["addr_info"].as_array().unwrap().iter();
                let addresses: Vec<_> = addresses.map(|info| info["local"].clone()).collect();
                let fields = serde_json::json!([link["address"], link["flags"], link["ifalias"], addresses]);
                (link["ifname"].as_str().unwrap().to_owned(), fields)
            })
            .collect()
    };
    let all_names = || -> Value {
        let names = spaces
            .iter()
            .map(|space| (space.label().to_owned(), names(space).into()));
        Value::Object(names.collect())
    };
    let whole = all_names();
    // Creation, address, mark and route of each, and the record before and after.
    let changes = 50 * 4 + 2;
    let kills = match (long(), on_host()) {
        (true, _) => 200,
        (false, true) => 20,
        (false, false) => 8,
    };
    let none = Desk::new().configure("");
    let empty = desk.path("empty.yaml");
    std::fs::write(&empty, "").unwrap();
    drop(none);
    let empty = format!("--config.file={}", empty.display());
    let mut seed = 0x2545_f491_u32;
    for kill in 0..kills {
        desk.succeed(&["apply", "--prune", &empty]);
        let what = format!("kill {kill}: a foreign link, address or route has changed");
        same(&before, &pictures(&spaces), &what);
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let at = seed % changes + 1;
        let killed = desk.run_killed(&["apply", &all], at);
        assert_eq!(
            killed.status.signal(),
            Some(9),
            "at {at}: {}",
            String::from_utf8_lossy(&killed.stdout)
        );
        desk.succeed(&["apply", "--prune", &all]);
        same(&whole, &all_names(), &format!("kill {kill} at {at}"));
        // Killed while it removes.
        let killed = desk.run_killed(&["apply", "--prune", &empty], at % 30 + 1);
        assert_eq!(killed.status.signal(), Some(9), "removal, at {}", at % 30 + 1);
    }
    desk.succeed(&["apply", "--prune", &empty]);
    same(&before, &pictures(&spaces), "after the last kill");
    println!("{kills} kills of each kind: {:?}", start.elapsed());
}

#[test]
fn a_thousand_are_made_as_fast_as_by_a_batch_of_ip() {
    let (lab, desk) = (Lab::new(Place::Own, Upstream::Wire), Desk::new());
    let parent = lab.parent.name.as_str();
    let number = if on_host() || long() { 1000 } else { 250 };
    let address = |number: usize| format!("10.{}.{}.1/32", number / 250, number % 250 + 1);
    let own = Namespace::own();
    // Made beside the parent, since `ip -batch` cannot give addresses in another namespace.
    let mut lines = String::new();
    for each in 0..number {
        let _ = writeln!(lines, "link add b{each} link {parent} type macvlan mode bridge");
        let _ = writeln!(lines, "addr add {} dev b{each}\nlink set b{each} up", address(each));
    }
    macvlan_agent_tests::netns::switch_ipv6("default", false).unwrap();
    let start = Instant::now();
    batch(&own, &desk.path("batch"), &lines);
    let by_ip = start.elapsed();
    let _ = ip_text(&own, &["link", "del", parent]);
    let lab = Lab::new(Place::Own, Upstream::Wire);
    let parent = lab.parent.name.as_str();
    let mut config = String::from("sub_interfaces:\n");
    for each in 0..number {
        let _ = writeln!(
            config,
            "  - {{name: b{each}, parent: {parent}, mode: bridge, addresses: [{}]}}",
            address(each)
        );
    }
    let flag = desk.configure(&config);
    let start = Instant::now();
    let done = desk.succeed(&["apply", "--no-announce", &flag]);
    let ours = start.elapsed();
    assert!(
        done.contains(&format!("{number} made")),
        "{}",
        done.lines().last().unwrap_or_default()
    );
    let start = Instant::now();
    let again = desk.succeed(&["apply", &flag]);
    let second = start.elapsed();
    assert!(again.contains("0 made, 0 changed, 0 removed"), "{again}");
    let start = Instant::now();
    let gone = desk.succeed(&["apply", "--prune", "--config.file=/dev/null"]);
    let removal = start.elapsed();
    assert!(
        gone.contains(&format!("{number} removed")),
        "{}",
        gone.lines().last().unwrap_or_default()
    );
    println!("{number}: ip -batch {by_ip:?}, apply {ours:?}, second apply {second:?}, removal {removal:?}");
    // Times of a machine that does other things as well say nothing.
    if long() && on_host() {
        assert!(ours <= by_ip.mul_f64(1.5), "apply took {ours:?}, ip -batch {by_ip:?}");
        assert!(second.as_secs_f64() <= 1.0, "the second apply took {second:?}");
        // One by one it would be 16 ms and more each.
        assert!(removal <= by_ip.mul_f64(4.0), "removal took {removal:?}");
    }
}
