//! The agent keeps what its configuration asks for: what somebody else changes is repaired, and logged as what it was.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixListener,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use macvlan_agent_tests::{
    agent::Agent,
    lab::{Lab, Place, Upstream},
    manage::{Desk, ip, ip_text, link, try_ip},
    netns::Namespace,
    surroundings::{eventually, patience, release},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// Within this time a change is repaired.
const SOON: Duration = Duration::from_secs(2);

fn name(namespace: &Namespace) -> &str {
    namespace.name().expect("a named namespace")
}

fn start(desk: &Desk, config: &str) -> Agent {
    let [state, run] = desk.flags();
    Agent::start_with(&[config, &state, &run])
}

/// Whether `macv1` is in the namespace as it was asked for.
fn whole(space: &Namespace) -> Result<(), String> {
    let link = link(space, "macv1").ok_or("there is no macv1")?;
    let mode = &link["linkinfo"]["info_data"]["mode"];
    let up = link["flags"]
        .as_array()
        .is_some_and(|flags| flags.contains(&"UP".into()));
    let addresses = ip(space, &["addr", "show", "dev", "macv1"]);
    let addresses = addresses
        .as_array()
        .and_then(|list| list.first())
        .cloned()
        .unwrap_or_default();
    let has = addresses["addr_info"].as_array().is_some_and(|list| {
        list.iter()
            .any(|info| info["local"] == "198.51.100.151" && info["prefixlen"] == 24)
    });
    let routes = ip(space, &["route", "show", "203.0.113.0/24"]);
    let keeps_route = routes
        .as_array()
        .is_some_and(|list| list.iter().any(|route| route["dev"] == "macv1"));
    if mode == "bridge" && up && has && keeps_route && link["mtu"] == 1400 {
        return Ok(());
    }
    Err(format!(
        "mode {mode}, up {up}, address {has}, route {keeps_route}, mtu {}",
        link["mtu"]
    ))
}

/// What the log says was found, of each repair.
fn repairs(agent: &Agent) -> Vec<String> {
    let log = agent.log();
    let records = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    records
        .filter(|record| ["repaired", "changed"].iter().any(|word| record["message"] == *word))
        .map(|record| record.to_string())
        .collect()
}

#[test]
fn what_somebody_else_changes_is_repaired_and_logged_as_what_it_was() {
    let (lab, desk) = (Lab::new(Place::Own, Upstream::Wire), Desk::new());
    let (one, two) = (lab.namespace("one"), lab.namespace("two"));
    let config = desk.configure(&format!(
        "sub_interfaces:\n  - {{name: macv1, parent: {}, mode: bridge, netns: {}, addresses: [198.51.100.151/24], mtu: \
         1400, routes: [{{to: 203.0.113.0/24, via: 198.51.100.1}}]}}\n",
        lab.parent.name,
        name(&one)
    ));
    let agent = start(&desk, &config);
    eventually(patience(Duration::from_secs(5)), || whole(&one));
    let change = |words: &str| {
        let words: Vec<_> = words.split(' ').collect();
        let _ = ip_text(&one, &words);
    };
    let moved = format!("link set macv1 netns {}", name(&two));
    // Each: what somebody does, and what the log is to say of it.
    let cases = [
        ("link del macv1", "was deleted"),
        ("link set macv1 type macvlan mode private", "private"),
        ("addr del 198.51.100.151/24 dev macv1", "198.51.100.151/24"),
        ("link set macv1 down", "up: false -> true"),
        ("link set macv1 mtu 1300", "1300"),
        ("route del 203.0.113.0/24", "203.0.113.0/24"),
        ("link set macv1 name other", "other"),
        (&moved, name(&two)),
    ];
    for (words, said) in cases {
        if words.contains(" name ") && release() < (6, 2) {
            // Before 6.2 the kernel renames none that is up (`net/core/dev.c`, `dev_change_name`): nobody does that to it.
            let words: Vec<_> = words.split(' ').collect();
            let refusal = try_ip(&one, &words).expect_err("one that is up keeps its name here");
            assert!(format!("{refusal:#}").contains("busy"), "{refusal:#}");
            continue;
        }
        let before = repairs(&agent).len();
        let start = Instant::now();
        change(words);
        eventually(patience(SOON), || whole(&one));
        let took = start.elapsed();
        let found = eventually(patience(Duration::from_secs(1)), || {
            let found = repairs(&agent).split_off(before);
            if found.is_empty() {
                Err(format!("{words}: nothing is logged"))
            } else {
                Ok(found)
            }
        });
        println!("{words}: {took:?}; {}", found.join(" "));
        assert!(
            found.iter().any(|line| line.contains(said)),
            "{words}: {said:?} is not in {found:?}"
        );
        for stray in ["other", "macv1"] {
            assert!(
                link(&two, stray).is_none(),
                "{words}: {stray} is left in the other namespace"
            );
        }
        assert!(link(&one, "other").is_none(), "{words}: a second one is left");
    }
    assert_eq!(agent.stop().status.code(), Some(0));
    assert_eq!(whole(&one), Ok(()), "what was made stays when the agent ends");
    desk.succeed(&["apply", "--prune", "--config.file=/dev/null"]);
    assert!(link(&one, "macv1").is_none());
}

#[test]
fn what_is_missing_is_waited_for_and_a_bad_configuration_leaves_the_former_one() {
    let (lab, desk) = (Lab::new(Place::Own, Upstream::Wire), Desk::new());
    let later = lab.namespace("later");
    let later_name = name(&later).to_owned();
    later.remove().unwrap();
    let text = |space: &str, mtu: u32| {
        format!(
            "sub_interfaces:\n  - {{name: macv1, parent: {}, mode: bridge, netns: {space}, mtu: {mtu}}}\n",
            lab.parent.name
        )
    };
    let config = desk.configure(&text(&later_name, 1400));
    let agent = start(&desk, &config);
    let managed = |state: &str| agent.scrape().value("macvlan_managed_interfaces", &[("state", state)]);
    let state = |state: &str, number: f64| {
        eventually(patience(Duration::from_secs(5)), || {
            let got = managed(state);
            if (got - number).abs() < 0.5 {
                Ok(())
            } else {
                Err(format!("{got} are {state}; {}", agent.log()))
            }
        });
    };
    state("pending", 1.0);
    assert!(agent.log().contains("there is no network namespace"), "{}", agent.log());
    let later = Namespace::create(&later_name).unwrap();
    eventually(patience(Duration::from_secs(5)), || {
        link(&later, "macv1").map(drop).ok_or("it is not there".to_owned())
    });
    state("ready", 1.0);

    let hangup = || kill(Pid::from_raw(i32::try_from(agent.pid()).unwrap()), Signal::SIGHUP).unwrap();
    let reloads = || agent.scrape().value("macvlan_agent_config_last_reload_successful", &[]) > 0.5;
    let mtu = || link(&later, "macv1").map(|link| link["mtu"].clone());
    let _ = desk.configure(&text(&later_name, 1400).replace("bridge", "bridged"));
    hangup();
    eventually(patience(Duration::from_secs(5)), || {
        if reloads() {
            Err("it was taken".to_owned())
        } else {
            Ok(())
        }
    });
    assert!(agent.log().contains("\\\"bridged\\\" is no mode"), "{}", agent.log());
    assert_eq!(mtu(), Some(1400.into()));
    let _ = desk.configure(&text(&later_name, 1300));
    hangup();
    eventually(patience(Duration::from_secs(5)), || {
        if mtu() == Some(1300.into()) && reloads() {
            Ok(())
        } else {
            Err(format!("{:?}; {}", mtu(), agent.log()))
        }
    });
    // Commands go through the agent, which keeps what they made as well.
    let own = format!("{later_name}/byhand");
    desk.succeed(&[
        "add",
        &own,
        "--parent",
        &lab.parent.name,
        "--mode",
        "bridge",
        "--address",
        "198.51.100.9/24",
    ]);
    let _ = ip_text(&later, &["link", "del", "byhand"]);
    eventually(patience(SOON), || {
        link(&later, "byhand").map(drop).ok_or("it is not there".to_owned())
    });
    desk.succeed(&["del", &own]);
    assert!(link(&later, "byhand").is_none());
    desk.refuse(&["del", &format!("{later_name}/macv1")], &["macv1"]);
    assert!(fs::metadata(desk.path("run/control.sock")).is_ok());
    let ended = agent.stop();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
}

/// Answers like Docker on a host without containers; notes when it is asked.
fn empty_docker(desk: &Desk) -> (String, Arc<Mutex<Vec<Instant>>>) {
    let socket = desk.path("docker.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let asked = Arc::new(Mutex::new(Vec::new()));
    let times = Arc::clone(&asked);
    // It ends with the process: nothing else ends an accept.
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let times = Arc::clone(&times);
            thread::spawn(move || {
                let mut request = [0; 4096];
                while let Ok(1..) = stream.read(&mut request) {
                    times.lock().expect("no panic").push(Instant::now());
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]";
                    if stream.write_all(answer).is_err() {
                        return;
                    }
                }
            });
        }
    });
    (format!("--containers.socket={}", socket.display()), asked)
}

#[test]
fn a_container_that_is_not_there_is_asked_for_less_and_less_often() {
    let (lab, desk) = (Lab::new(Place::Own, Upstream::Wire), Desk::new());
    let (docker, asked) = empty_docker(&desk);
    let config = desk.configure(&format!(
        "sub_interfaces:\n  - {{name: macv1, parent: {}, mode: bridge, netns: {{container: no-such}}}}\n",
        lab.parent.name
    ));
    let [state, run] = desk.flags();
    let agent = Agent::start_with(&[&config, &state, &run, &docker]);
    let times = || asked.lock().expect("no panic").clone();
    // At once, then after one second, two and four; at each look it would be one second or two every time. Other
    // namespaces of this machine that come or go meanwhile are asked for as well, and begin it anew.
    let first = eventually(patience(Duration::from_secs(40)), || {
        let times = times();
        let mut waits = times.windows(2).map(|pair| pair[1] - pair[0]);
        if waits.any(|wait| wait > Duration::from_millis(3_500)) {
            Ok(times)
        } else {
            Err(format!("asked at {times:?}; {}", agent.log()))
        }
    });
    assert!(agent.log().contains("no-such"), "{}", agent.log());
    // What comes now may be it.
    let _later = lab.namespace("later");
    eventually(patience(Duration::from_secs(3)), || {
        if times().len() > first.len() {
            Ok(())
        } else {
            Err(format!("asked {} times; {}", first.len(), agent.log()))
        }
    });
    assert_eq!(agent.stop().status.code(), Some(0));
}
