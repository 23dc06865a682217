//! Who may ask a running agent to change something, and what becomes of two who ask for different things at once.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, Permissions},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Command, Output},
    thread,
    time::Duration,
};

use macvlan_agent_tests::{
    agent::Agent,
    exposition::{self, post},
    lab::{Lab, Place, Upstream},
    manage::{Desk, ip, ip_text, link},
    netns::Namespace,
    surroundings::{agent_program, eventually, long, on_host, patience},
};
use serde_json::Value;

const NOBODY: u32 = 65_534;

fn name(namespace: &Namespace) -> &str {
    namespace.name().expect("a named namespace")
}

/// An agent that keeps to `flags` and works on the desk's record.
fn start(desk: &Desk, flags: &[&str]) -> Agent {
    let [state, run] = desk.flags();
    Agent::start_with(&[flags, &[state.as_str(), &run]].concat())
}

#[test]
fn a_reload_over_http_says_what_became_of_it() {
    let (lab, desk) = (Lab::new(Place::Own, Upstream::Wire), Desk::new());
    let address = Ipv4Addr::new(198, 51, 100, 1);
    lab.parent.add_address(address, 24).unwrap();
    let inside = lab.namespace("inside");
    let text = |mode: &str, mtu: u32| {
        let (parent, space) = (&lab.parent.name, name(&inside));
        format!("sub_interfaces:\n  - {{name: macv1, parent: {parent}, mode: {mode}, netns: {space}, mtu: {mtu}}}\n")
    };
    let mtu = || link(&inside, "macv1").map(|link| link["mtu"].clone());
    let flag = desk.configure(&text("bridge", 1400));
    let agent = start(
        &desk,
        &[&flag, "--web.enable-lifecycle", "--web.listen-address=198.51.100.1:0"],
    );
    eventually(patience(Duration::from_secs(5)), || {
        if mtu() == Some(1400.into()) {
            Ok(())
        } else {
            Err(format!("{:?}", mtu()))
        }
    });
    let here = agent.address();
    let reload = |says: u16, words: &[&str]| {
        let answer = post(here, "/-/reload").unwrap();
        assert_eq!(answer.status, says, "{}", answer.body);
        for word in words {
            assert!(answer.body.contains(word), "{word:?} is not in: {}", answer.body);
        }
    };
    let holds = |good: bool| {
        let value = agent.scrape().value("macvlan_agent_config_last_reload_successful", &[]);
        assert_eq!(value > 0.5, good, "{}", agent.log());
    };
    let _ = desk.configure(&text("bridge", 1300));
    reload(200, &["was read anew", "mtu: 1400 -> 1300", "1 changed"]);
    assert_eq!(mtu(), Some(1300.into()));
    holds(true);

    // What is wrong by itself, and what this host cannot give: file, line, field, what would be right.
    for (bad, words) in [
        (
            text("bridged", 1200),
            [
                "sub_interfaces[0].mode",
                "\"bridged\" is no mode",
                "private, vepa, bridge",
            ],
        ),
        (
            text("bridge", 9000),
            ["sub_interfaces[0].mtu", "mtu 9000 is over that of", "at most 1500"],
        ),
    ] {
        let _ = desk.configure(&bad);
        reload(500, &["the former one holds", "config.yaml:2: "]);
        reload(500, &words);
        holds(false);
        assert_eq!(mtu(), Some(1300.into()));
        for word in words {
            assert!(agent.log().contains(&word.replace('"', "\\\"")), "{}", agent.log());
        }
    }
    // The former one is also what is repaired to.
    let _ = ip_text(&inside, &["link", "set", "macv1", "mtu", "1250"]);
    eventually(patience(Duration::from_secs(2)), || {
        if mtu() == Some(1300.into()) {
            Ok(())
        } else {
            Err(format!("{:?}", mtu()))
        }
    });
    let _ = desk.configure(&text("bridge", 1200));
    reload(200, &["1 changed"]);
    holds(true);

    // Only who is on this machine may; and nobody by looking at a page.
    let other = listening_at(&agent, address.into());
    let answer = post(other, "/-/reload").unwrap();
    assert_eq!(answer.status, 403, "{}", answer.body);
    assert!(answer.body.contains("loopback only"), "{}", answer.body);
    assert_eq!(exposition::get(other, "/-/healthy").unwrap().status, 200);
    assert_eq!(agent.get("/-/reload").status, 405);
    drop(agent);
    let agent = start(&desk, &[&flag]);
    let answer = post(agent.address(), "/-/reload").unwrap();
    assert_eq!(answer.status, 403, "{}", answer.body);
    assert!(answer.body.contains("--web.enable-lifecycle"), "{}", answer.body);
    assert_eq!(agent.stop().status.code(), Some(0));
    desk.succeed(&["apply", "--prune", "--config.file=/dev/null"]);
}

/// Where an agent listens at an address of its host: it answers at the first one before it has told of all.
fn listening_at(agent: &Agent, ip: IpAddr) -> SocketAddr {
    eventually(patience(Duration::from_secs(5)), || {
        let log = agent.log();
        let records = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut addresses = records.filter_map(|record| record["address"].as_str()?.parse::<SocketAddr>().ok());
        let found = addresses.find(|address| address.ip() == ip);
        found.ok_or_else(|| format!("it does not listen at {ip}: {log}"))
    })
}

#[test]
fn another_user_is_refused_with_a_sentence() {
    let (lab, desk) = (Lab::new(Place::Own, Upstream::Wire), Desk::new());
    let inside = lab.namespace("inside");
    let agent = start(&desk, &[]);
    let socket = desk.path("run/control.sock");
    // A copy that this user may reach, wherever the build is, and the way to the socket.
    let program = desk.path("macvlan-agent");
    fs::copy(agent_program(), &program).unwrap();
    let allow = |path: &Path, mode: u32| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    for path in [&desk.path(""), &program, &desk.path("run")] {
        allow(path, 0o755);
    }
    let which = format!("{}/macv1", name(&inside));
    let ask = |uid: u32| -> Output {
        let arguments = ["add", &which, "--parent", &lab.parent.name, "--mode", "bridge"];
        let mut command = Command::new(&program);
        command
            .args(arguments)
            .args(desk.flags())
            .uid(uid)
            .gid(uid)
            .current_dir("/");
        command.output().unwrap()
    };
    let refused = |words: &[&str]| {
        let output = ask(NOBODY);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        for word in words {
            assert!(said.contains(word), "{word:?} is not in: {said}");
        }
        assert!(!said.contains("panicked") && link(&inside, "macv1").is_none(), "{said}");
    };
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o007, 0);
    refused(&["control.sock", "cannot be used", "Permission denied"]);
    // The file's mode is one thing; whoever gets through is asked for his uid all the same.
    allow(&socket, 0o666);
    refused(&["only root and members of the group macvlan-agent may change interfaces"]);
    let output = ask(0);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(link(&inside, "macv1").is_some());
    desk.succeed(&["del", &which]);
    assert_eq!(agent.stop().status.code(), Some(0));
}

/// The macvlans in a namespace: mode and MTU by name.
fn there(space: &Namespace) -> BTreeMap<String, (String, u64)> {
    let links = ip(space, &["link"]);
    let links = links.as_array().into_iter().flatten();
    let macvlans = links.filter(|link| link["linkinfo"]["info_kind"] == "macvlan");
    macvlans
        .map(|link| {
            let mode = link["linkinfo"]["info_data"]["mode"].as_str().unwrap_or_default();
            let mtu = link["mtu"].as_u64().unwrap_or_default();
            (
                link["ifname"].as_str().unwrap_or_default().to_owned(),
                (mode.to_owned(), mtu),
            )
        })
        .collect()
}

/// Runs two commands at once. Each ends well, or says who has the lock, or one of `words`; tells which ended well.
fn at_once(desk: &Desk, commands: [&[&str]; 2], words: &[&str]) -> [bool; 2] {
    let outputs = thread::scope(|scope| {
        let running = commands.map(|command| scope.spawn(|| desk.run(command)));
        running.map(|each| each.join().expect("no panic"))
    });
    outputs.map(|output| {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let known = ["another macvlan-agent (pid "].iter().chain(words);
        assert!(
            output.status.success() || known.into_iter().any(|word| said.contains(word)),
            "{commands:?}: {said}"
        );
        assert!(!said.contains("panicked"), "{said}");
        output.status.success()
    })
}

#[test]
fn two_commands_at_once_do_not_fight() {
    let (lab, desk) = (Lab::new(Place::Own, Upstream::Wire), Desk::new());
    let inside = lab.namespace("inside");
    let (parent, space) = (lab.parent.name.as_str(), name(&inside));
    let file = |name: &str, mode: &str, mtu: u32| {
        let mut text = "sub_interfaces:\n".to_owned();
        for sub in ["both", &format!("{name}1"), &format!("{name}2"), &format!("{name}3")] {
            let _ = writeln!(
                text,
                "  - {{name: {sub}, parent: {parent}, mode: {mode}, netns: {space}, mtu: {mtu}}}"
            );
        }
        let path = desk.path(&format!("{name}.yaml"));
        fs::write(&path, text).unwrap();
        format!("--config.file={}", path.display())
    };
    let (a, b) = (file("a", "bridge", 1400), file("b", "private", 1300));
    let of = |name: &str, mode: &str, mtu: u64| -> BTreeMap<_, _> {
        let names = [
            "both".to_owned(),
            format!("{name}1"),
            format!("{name}2"),
            format!("{name}3"),
        ];
        names.into_iter().map(|name| (name, (mode.to_owned(), mtu))).collect()
    };
    let (only_a, only_b) = (of("a", "bridge", 1400), of("b", "private", 1300));
    let by_hand = format!("{space}/byhand");
    let add = |mode: &'static str| ["add", &by_hand, "--parent", parent, "--mode", mode];
    let add_private = add("private");
    let add_vepa = add("vepa");
    // The lock and the order of commands do not depend on the kernel: in emulated machines, where each command takes
    // seconds, only the agent's own part is seen again.
    let rounds = if long() { 20 } else { 1 };
    let every = on_host() || long();
    let fight = |who: &str| {
        for round in 0..rounds {
            let at = format!("{who}, round {round}");
            // One configuration or the other, never a mixture; whose command came last has it.
            at_once(&desk, [&["apply", "--prune", &a], &["apply", "--prune", &b]], &[]);
            let now = there(&inside);
            assert!(now == only_a || now == only_b, "{at}: {now:?}");
            // A configuration and a command: both.
            let well = at_once(&desk, [&["apply", "--prune", &a], &add_vepa], &[]);
            assert_eq!(well, [true, true], "{at}");
            let mut both = only_a.clone();
            both.insert("byhand".to_owned(), ("vepa".to_owned(), 1500));
            assert_eq!(there(&inside), both, "{at}");
            desk.succeed(&["del", &by_hand]);
            if every {
                // The same one, asked for in two ways: one is told that it is there.
                let otherwise = ["is there already, made otherwise"];
                let [first, second] = at_once(&desk, [&add_vepa, &add_private], &otherwise);
                assert!(first != second, "{at}");
                let mode = if first { "vepa" } else { "private" };
                assert_eq!(there(&inside)["byhand"].0, mode, "{at}");
                // Each changes what it was told to, and nothing else.
                let [mode, mtu] = [
                    ["set", &by_hand, "--mode", "bridge"],
                    ["set", &by_hand, "--mtu", "1350"],
                ];
                assert_eq!(at_once(&desk, [&mode, &mtu], &[]), [true, true], "{at}");
                assert_eq!(there(&inside)["byhand"], ("bridge".to_owned(), 1350), "{at}");
                desk.succeed(&["del", &by_hand]);
            }
        }
    };
    if every {
        fight("without an agent");
    }
    let agent = start(&desk, &[]);
    fight("an agent without a configuration");
    assert_eq!(agent.stop().status.code(), Some(0));

    // An agent that keeps to a file takes no other.
    let agent = start(&desk, &[&a]);
    let keeps = |now: BTreeMap<String, (String, u64)>| {
        eventually(patience(Duration::from_secs(5)), || {
            if there(&inside) == now {
                Ok(())
            } else {
                Err(format!("{:?}; {}", there(&inside), agent.log()))
            }
        });
    };
    keeps(only_a.clone());
    let well = at_once(&desk, [&["apply", &a], &["apply", &b]], &["keeps to"]);
    assert_eq!(well, [true, false]);
    keeps(only_a.clone());
    let well = at_once(&desk, [&["apply", &a], &add("vepa")], &[]);
    assert_eq!(well, [true, true]);
    let mut both = only_a;
    both.insert("byhand".to_owned(), ("vepa".to_owned(), 1500));
    keeps(both);
    assert_eq!(agent.stop().status.code(), Some(0));
    desk.succeed(&["del", &by_hand]);
    desk.succeed(&["apply", "--prune", "--config.file=/dev/null"]);
}
