//! Whose a sub-interface is, whoever made its namespace: podman, CNI's macvlan plugin, `ip netns`, a bare `unshare -n`;
//! and that none is taken for another, whatever they are called.

use std::{
    collections::{BTreeSet, VecDeque},
    fs,
    io::Write as _,
    os::unix::{fs::MetadataExt as _, net::UnixListener},
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use macvlan_agent_tests::{
    agent::{Agent, run_to_end},
    exposition,
    fake_docker::FakeDocker,
    lab::{Arrival, Lab, Mac, Mode, Place, SubInterface, Upstream, macvlans},
    netns::{Hermit, Namespace},
    owners::{await_gone, await_info, count, info, listed, table},
    podman::Podman,
    surroundings::{container_program, eventually, kernel, long, on_host, release},
    traffic::frame,
};
use serde_json::{Value, json};

/// Two seconds are promised; this machine may have more to do.
const SOON: Duration = Duration::from_secs(20);

fn soon() -> Duration {
    if on_host() { SOON } else { SOON * 4 }
}

/// Frames for it are counted under its name: the series is the sub-interface's, and not only its label.
fn frames_are_its_own(agent: &Agent, lab: &Lab, label: &str, value: &str, mac: Mac) {
    const FRAMES: u32 = 7;
    lab.station.send(&frame(mac, lab.station.mac, 100), FRAMES);
    eventually(soon(), || {
        let scrape = agent.scrape();
        let own = info(&scrape, label, value)?;
        let labels = [("cast", "unicast"), ("path", "external")];
        match count(&scrape, &own, "macvlan_delivered_frames_total", &labels) {
            delivered if delivered == u64::from(FRAMES) => Ok(()),
            delivered => Err(format!("{delivered} of {FRAMES} are counted for {value}")),
        }
    });
}

fn mac_of(text: &str) -> Mac {
    let mut bytes = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).expect("a byte of a MAC"));
    Mac([(); 6].map(|()| bytes.next().expect("a MAC has six bytes")))
}

/// There is neither podman nor CNI in a VM, and that this is one is shown: nothing that they need of the agent is the
/// kernel's affair, and tests/docker.rs asks there what an API of ours tells.
fn is_a_machine() {
    let (major, minor) = release();
    assert_eq!(
        kernel(),
        format!("{major}.{minor}"),
        "this is no virtual machine of ours"
    );
}

/// By its API, and without that by the cgroups that it makes.
#[test]
fn podmans_containers() {
    if !on_host() {
        return is_a_machine();
    }
    let lab = Lab::new(Place::Own, Upstream::Wire);
    let podman = Podman::start();
    let parent = format!("--opt=parent={}", lab.parent.name);
    let create = ["network", "create", "--driver=macvlan", "--subnet=192.0.2.0/24"];
    podman
        .run(&[create.as_slice(), &[&parent, "mv"]].concat())
        .expect("a network");
    let agent = Agent::start_with(&[&format!("--containers.socket={}", podman.socket().display())]);
    for name in ["pod-1", "pod-2"] {
        let id = podman.sleeper(name, "mv").expect("a container");
        let (info, late) = await_info(&agent, "container_name", name, soon());
        say(&format!("podman's {name} was known {late:.2?} after podman run"));
        assert_eq!(
            ["runtime", "container_id", "parent", "interface"].map(|label| info.label(label)),
            ["podman", &id, &lab.parent.name, "eth0"]
        );
        frames_are_its_own(&agent, &lab, "container_name", name, mac_of(info.label("mac")));
    }
    podman.run(&["rm", "--force", "--time=0", "pod-1"]).expect("it goes");
    await_gone(&agent, "container_name", "pod-1", soon());
    info(&agent.scrape(), "container_name", "pod-2").expect("the other stays");

    // Without the API the cgroups of its processes are what is left: the id, and that the name is missing is said.
    assert_eq!(agent.stop().status.code(), Some(0));
    let agent = Agent::start_with(&["--containers.socket=/nonexistent/podman.sock"]);
    let (info, _) = await_info(&agent, "runtime", "podman", soon());
    assert_eq!(
        (info.label("container_id").len(), info.label("container_name")),
        (64, "")
    );
    let ready = agent.get("/-/ready").body;
    assert!(
        ready.contains("podman") && ready.contains("--containers.socket"),
        "{ready}"
    );
}

/// What a container runtime does to make a pod's interface: calls the plugin and keeps its result.
#[test]
fn pods_of_cni() {
    if !on_host() {
        return is_a_machine();
    }
    let lab = Lab::new(Place::Own, Upstream::Wire);
    let cache = tempfile::tempdir().expect("a directory");
    fs::create_dir(cache.path().join("results")).expect("a directory");
    let agent = Agent::start_with(&[
        "--containers.socket=",
        &format!("--containers.cni-cache={}", cache.path().display()),
    ]);
    for (number, pod) in ["web-0", "web-1"].iter().enumerate() {
        let namespace = lab.namespace(&format!("cni-{number}"));
        let id = format!("{:064x}", 0xabc_0000 + number);
        let result = cni(&lab, &namespace, &id, "ADD").expect("the plugin makes it");
        let kept = json!({
            "kind": "cniCacheV1", "containerId": id, "config": "e30=", "ifName": "net1", "networkName": "mv",
            "netns": namespace.path(),
            "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", pod]],
            "result": result,
        });
        let file = cache.path().join(format!("results/mv-{id}-net1"));
        fs::write(&file, kept.to_string()).expect("it can be written");
        let (info, late) = await_info(&agent, "pod_name", pod, soon());
        say(&format!("pod {pod} was known {late:.2?} after CNI's result"));
        let labels = ["pod_namespace", "container_id", "interface", "netns", "parent"];
        assert_eq!(
            labels.map(|label| info.label(label)),
            ["shop", &id, "net1", namespace.label(), &lab.parent.name]
        );
        let mac = result["interfaces"][0]["mac"].as_str().expect("a MAC");
        assert_eq!(info.label("mac"), mac);
        frames_are_its_own(&agent, &lab, "pod_name", pod, mac_of(mac));
        cni(&lab, &namespace, &id, "DEL").expect("the plugin takes it away");
        await_gone(&agent, "pod_name", pod, soon());
    }
}

fn cni(lab: &Lab, namespace: &Namespace, id: &str, command: &str) -> Result<Value> {
    let config = json!({
        "cniVersion": "1.0.0", "name": "mv", "type": "macvlan", "master": lab.parent.name, "mode": "bridge",
        "ipam": { "type": "static", "addresses": [{ "address": "192.0.2.31/24" }] },
    });
    let mut plugin = Command::new(container_program("lib/cni/macvlan"))
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", id)
        .env("CNI_NETNS", namespace.path())
        .env("CNI_IFNAME", "net1")
        .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web")
        .env("CNI_PATH", container_program("lib/cni"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    plugin
        .stdin
        .take()
        .context("it reads")?
        .write_all(config.to_string().as_bytes())?;
    let output = plugin.wait_with_output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    if command == "DEL" {
        return Ok(Value::Null);
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// One agent for all of these: its start is what takes long in a VM.
#[test]
fn each_is_known_as_itself() {
    let api = FakeDocker::start();
    let agent = Agent::start_with(&[&api.flag()]);
    a_named_namespace_and_a_bare_process(&agent);
    equals_are_told_apart(&agent, &api);
    hostile_names(&agent, &api);
}

/// No runtime at all: a name under /run/netns, and a process that nobody gave a name.
fn a_named_namespace_and_a_bare_process(agent: &Agent) {
    let lab = Lab::new(Place::Own, Upstream::Wire);
    let named = lab.add("macv1", Mode::Bridge);
    let hermit = Hermit::new().expect("a process in a namespace of its own");
    let bare = lab.add_in(&hermit.namespace, "macv1", Mode::Bridge, lab.mac(), Arrival::Moved);
    assert!(hermit.namespace.label().starts_with("ino:"));
    for sub in [&named, &bare] {
        eventually(soon(), || agent.knows(sub));
        let label = sub.link.namespace.label();
        frames_are_its_own(agent, &lab, "netns", label, sub.mac());
        let scrape = agent.scrape();
        let own = info(&scrape, "netns", label).expect("it is known");
        assert_eq!(
            ["runtime", "container_name", "pod_name"].map(|label| own.label(label)),
            ["", "", ""]
        );
    }
    // It ends with its process, without a message about its link.
    let gone = hermit.namespace.label().to_owned();
    drop(hermit);
    await_gone(agent, "netns", &gone, soon());
    agent.knows(&named).expect("the other stays");
}

/// Equal names, indexes and addresses; only parents and namespaces differ.
fn equals_are_told_apart(agent: &Agent, api: &FakeDocker) {
    let labs = [Place::Own, Place::Named].map(|place| Lab::new(place, Upstream::Wire));
    let mac = labs[0].mac();
    let names = ["twin-1", "twin-2"];
    let twins: Vec<SubInterface> = labs
        .iter()
        .zip(names)
        .map(|(lab, name)| {
            let namespace = lab.namespace("twin");
            let sub = lab.add_in(&namespace, "net1", Mode::Bridge, mac, Arrival::Directly);
            sub.link
                .add_address(std::net::Ipv4Addr::new(192, 0, 2, 9), 24)
                .expect("it takes the address");
            api.add(name, namespace.path());
            sub
        })
        .collect();
    let infos = names.map(|name| await_info(agent, "container_name", name, soon()).0);
    for label in ["interface", "mac", "ifindex"] {
        assert_eq!(infos[0].label(label), infos[1].label(label), "they are to be equal");
    }
    for (number, (lab, name)) in labs.iter().zip(names).enumerate() {
        let own = &infos[number];
        assert_eq!(
            [own.label("parent"), own.label("netns")],
            [&lab.parent_label(), twins[number].link.namespace.label()]
        );
        let frames = 10 + u32::try_from(number).expect("it is small");
        lab.station.send(&frame(mac, lab.station.mac, 100), frames);
        eventually(soon(), || {
            let scrape = agent.scrape();
            let labels = [("cast", "unicast"), ("path", "external")];
            let counted = infos
                .each_ref()
                .map(|info| count(&scrape, info, "macvlan_delivered_frames_total", &labels));
            let expected = if number == 0 { [10, 0] } else { [10, 11] };
            (counted == expected)
                .then_some(())
                .ok_or_else(|| format!("{counted:?} and not {expected:?}"))
        });
        let listed = listed(agent, &lab.parent_label());
        let [one] = &listed[..] else { panic!("{listed:?}") };
        assert_eq!(
            (&one["owner"]["container_name"], &one["counts"]["delivered_external"]),
            (&json!(name), &json!(frames))
        );
        assert_eq!(one["addresses"], json!(["192.0.2.9"]));
        let table = table(agent);
        let rows: Vec<_> = table.lines().filter(|row| row.contains(name)).collect();
        let [row] = rows[..] else { panic!("{table}") };
        let cells: Vec<_> = row.split_whitespace().collect();
        let parent = lab.parent_label();
        assert_eq!(cells[..3], [&parent, "net1", twins[number].link.namespace.label()]);
        assert!(cells.contains(&frames.to_string().as_str()), "{row}");
    }
}

/// Names that the kernel takes: it forbids `/`, `:` and white space in those of links, `/` in those of files, and nothing
/// in those of containers, which a runtime of its own may choose.
fn hostile_names(agent: &Agent, api: &FakeDocker) {
    const LINKS: [&str; 6] = [
        "\"quo'ted\\",
        "\u{1b}[2J\u{1b}]0;x",
        "$(reboot)`;&|",
        "größenwahn-é",
        "<img+src=x>&lt;",
        "\u{202e}drawkcab\u{7f}",
    ];
    const CONTAINERS: [&str; 6] = [
        "line\nbreak\r\ttab",
        "\u{1b}[31mred\u{1b}[0m",
        "$(reboot); `id` | sh",
        "\"}\n# HELP evil x\nmacvlan_evil 1\n",
        "<script>alert(1)</script>",
        "日本語のコンテナ名\\n",
    ];
    let lab = Lab::new(Place::Own, Upstream::Wire);
    let mut subs = Vec::new();
    for (link, container) in LINKS.iter().zip(CONTAINERS) {
        assert!(link.len() <= 15, "{link:?}");
        let namespace = lab.namespace(&format!("{}{container}", subs.len()).replace('/', "_"));
        let sub = lab.add_in(&namespace, link, Mode::Bridge, lab.mac(), Arrival::Directly);
        api.add(container, namespace.path());
        subs.push(sub);
    }
    // A backslash is written twice, so that what is no UTF-8 can be written by it.
    let label = |name: &str| name.replace('\\', "\\\\");
    for (sub, container) in subs.iter().zip(CONTAINERS) {
        let (info, _) = await_info(agent, "container_name", container, soon());
        assert_eq!(
            ["interface", "netns"].map(|name| info.label(name).to_owned()),
            [label(&sub.link.name), label(sub.link.namespace.label())]
        );
    }
    let scrape = agent.scrape();
    let open = [("Accept", "application/openmetrics-text;version=1.0.0")];
    let open = exposition::get_with(agent.address(), "/metrics", &open).expect("it answers");
    assert!(open.body.ends_with("\n# EOF\n"));
    let infos = |text: &str| -> BTreeSet<String> {
        let lines = text.lines().filter(|line| line.starts_with("macvlan_interface_info{"));
        lines
            .filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned()))
            .collect()
    };
    assert_eq!(infos(&scrape.text), infos(&open.body));
    assert!(infos(&open.body).len() >= LINKS.len());
    assert!(!scrape.families.contains_key("macvlan_evil") && !open.body.contains("\nmacvlan_evil"));

    let listed = listed(agent, &lab.parent.name);
    assert_eq!(listed.len(), LINKS.len());
    for (sub, container) in subs.iter().zip(CONTAINERS) {
        let one = listed
            .iter()
            .find(|one| one["owner"]["container_name"] == container)
            .unwrap_or_else(|| panic!("{container:?} is not in {listed:?}"));
        assert_eq!(one["interface"], label(&sub.link.name));
        assert_eq!(one["netns"], label(sub.link.namespace.label()));
    }
    let run_dir = format!("--run.dir={}", agent.run_dir().display());
    // With the agent, and without it by its own eyes. In a VM each takes seconds, and none asks the kernel for more.
    let ways = [(run_dir.as_str(), "table"), ("--run.dir=/nonexistent", "table")];
    let more = [(run_dir.as_str(), "yaml"), ("--run.dir=/nonexistent", "yaml")];
    let more = more.into_iter().filter(|_| on_host());
    for (run_dir, form) in ways.into_iter().chain(more) {
        let output = run_to_end(&["list", "-o", form, run_dir, &api.flag()]);
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).expect("it is UTF-8");
        // YAML is for programs, which may write the direction of text as it is.
        let turns = |c: char| form == "table" && matches!(c, '\u{202a}'..='\u{202e}' | '\u{7f}');
        let raw = |c: char| (c < ' ' && c != '\n') || turns(c);
        assert!(!text.contains(raw), "{form}: {text:?}");
        assert!(text.contains("<script>alert(1)</script>"), "{form}: {text}");
        if form == "table" {
            let own = text.lines().filter(|line| line.contains(&lab.parent.name));
            assert_eq!(own.count(), LINKS.len(), "one line each: {text}");
        }
    }
    let page = agent.get("/");
    assert!(!page.body.contains("<script>alert"), "{}", page.body);
}

/// It is for joining other namespaces: without it all the rest is shown, and what is missing is said.
#[test]
fn without_the_capability() {
    const SYS_ADMIN: u8 = 21;
    let api = FakeDocker::start();
    let own = Lab::new(Place::Own, Upstream::Wire);
    let near = own.add("near", Mode::Bridge);
    api.add("web-1", near.link.namespace.path());
    let agent = Agent::start_without(SYS_ADMIN, &[&api.flag()]);
    let other = Lab::new(Place::Named, Upstream::Wire);
    let far = other.add("far", Mode::Bridge);
    // Who there is, in every namespace, and whose: that needs no joining.
    agent.await_known(&[&near, &far]);
    let _ = await_info(&agent, "container_name", "web-1", soon());
    // What arrives at the parent that can be reached is counted.
    frames_are_its_own(&agent, &own, "container_name", "web-1", near.mac());
    // A parent in another namespace is not: of that one the agent is not ready, and says why and what else is missing.
    eventually(soon(), || {
        let ready = agent.get("/-/ready");
        let parent = format!("parent_egress on {} is not attached", other.parent_label());
        let said = [&parent, "CAP_SYS_ADMIN", "not ready", "besides, it is degraded"];
        (ready.status == 503 && said.iter().all(|word| ready.body.contains(word)))
            .then_some(())
            .ok_or(ready.body)
    });
    let run_dir = format!("--run.dir={}", agent.run_dir().display());
    let said = String::from_utf8_lossy(&run_to_end(&["list", &run_dir]).stderr).into_owned();
    assert!(said.contains("CAP_SYS_ADMIN"), "{said}");
    let listed = [&own, &other].map(|lab| listed(&agent, &lab.parent_label()).len());
    assert_eq!(listed, [1, 1]);
}

/// Where no runtime is there is nothing to say; of one that does not answer there is, and all but names is shown.
#[test]
fn without_an_answer_from_docker() {
    if !on_host() {
        return is_a_machine();
    }
    let lab = Lab::new(Place::Own, Upstream::Wire);
    let sub = lab.add("net1", Mode::Bridge);
    let place = tempfile::tempdir().expect("a directory");
    let socket = place.path().join("docker.sock").display().to_string();
    let _mute = UnixListener::bind(&socket).expect("a socket");
    let agent = Agent::start_with(&[&format!("--containers.socket={socket},/nonexistent/docker.sock")]);
    agent.await_known(&[&sub]);
    eventually(soon(), || {
        let ready = agent.get("/-/ready").body;
        let is_said = ready.contains(&format!("{socket} cannot be asked for names"));
        (is_said && !ready.contains("/nonexistent")).then_some(()).ok_or(ready)
    });
    let netns = sub.link.namespace.label();
    frames_are_its_own(&agent, &lab, "netns", netns, sub.mac());
    let one = info(&agent.scrape(), "netns", netns).expect("it is shown");
    assert_eq!(one.label("container_name"), "");
}

/// The kernel gives a namespace's inode to the next one: what was told of the one before does not keep anybody from
/// asking for the name of this one.
#[test]
fn a_name_is_known_though_another_had_the_inode() {
    if !on_host() {
        return is_a_machine();
    }
    let lab = Lab::new(Place::Own, Upstream::Wire);
    let api = FakeDocker::start();
    let agent = Agent::start_with(&[&api.flag()]);
    let (mut inode, mut namespace) = (0, lab.namespace("first"));
    for name in ["one", "two", "three"] {
        let sub = lab.add_in(&namespace, "net1", Mode::Bridge, lab.mac(), Arrival::Directly);
        // A runtime tells of a container when its network is there already, and this one takes its time.
        eventually(soon(), || agent.knows(&sub));
        thread::sleep(Duration::from_secs(1));
        api.add(name, namespace.path());
        let (info, late) = await_info(&agent, "container_name", name, Duration::from_secs(6));
        say(&format!("{name} was known {late:.2?} after its runtime told of it"));
        assert_eq!(info.label("netns"), namespace.label());
        let own = inode_of(&namespace);
        assert!(inode == 0 || inode == own, "it is to have the number of the one before");
        inode = own;
        api.clear();
        drop((sub, namespace));
        await_gone(&agent, "parent", &lab.parent_label(), soon());
        namespace = with_inode(&lab, inode, name);
    }
}

fn inode_of(namespace: &Namespace) -> u64 {
    fs::metadata(namespace.path()).expect("it is there").ino()
}

/// A new namespace with the number of one that has ended: the kernel gives the lowest that is free, so some others may
/// have to take those below.
fn with_inode(lab: &Lab, inode: u64, name: &str) -> Namespace {
    let mut others = Vec::new();
    eventually(soon(), || {
        let next = lab.namespace(&format!("after-{name}-{}", others.len()));
        if inode_of(&next) == inode {
            return Ok(next);
        }
        let why = format!("{} have others than {inode}", others.len());
        others.push(next);
        Err(why)
    })
}

/// Twenty come and go each second.
#[test]
fn a_coming_and_going() {
    const EACH_SECOND: u32 = 20;
    /// So many are there at once.
    const ALIVE: usize = 10;
    let seconds = match (long(), on_host()) {
        (true, true) => 300,
        (false, true) => 60,
        (_, false) => 1,
    };
    let lab = Lab::new(Place::Own, Upstream::Wire);
    let agent = Agent::start_with(&["--containers.socket="]);
    let parent = lab.parent_label();
    let known = || {
        let scrape = agent.scrape();
        let labels = [("parent", parent.as_str())];
        let seen = scrape.samples("macvlan_interface_info", &labels);
        let seen: BTreeSet<String> = seen.map(|sample| sample.label("mac").to_owned()).collect();
        seen
    };
    let seen = Mutex::new(BTreeSet::new());
    let is_seen = |mac: &Mac| -> Result<(), String> {
        let seen = seen.lock().expect("nobody panicked");
        let missed = || format!("{mac} was missed; {} were seen", seen.len());
        seen.contains(&mac.to_string()).then_some(()).ok_or_else(missed)
    };
    let turn = |from: u32, count: u32| -> Duration {
        let start = Instant::now();
        let mut alive = VecDeque::new();
        for number in from..from + count {
            let [.., high, low] = number.to_be_bytes();
            let mac = Mac([0x02, 0x6d, 0x77, 0, high, low]);
            let namespace = lab.namespace(&format!("c{number}"));
            macvlans(&lab.parent, &namespace, &[("net1".to_owned(), mac)]).expect("it is made");
            alive.push_back((namespace, mac));
            if alive.len() > ALIVE {
                // It has been there for half a second, and is to be known by now; on a busy machine it may stay longer.
                let (_namespace, mac) = alive.pop_front().expect("there are some");
                eventually(soon(), || is_seen(&mac));
            }
            let due = start + Duration::from_secs(1) / EACH_SECOND * (number - from + 1);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let took = start.elapsed();
        for (_, mac) in &alive {
            eventually(soon(), || is_seen(mac));
        }
        took
    };
    let none_left = || {
        eventually(soon(), || {
            let left = known();
            left.is_empty()
                .then_some(())
                .ok_or_else(|| format!("{left:?} are left"))
        });
    };
    let stop = AtomicBool::new(false);
    let (before, took, after) = thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let now = known();
                seen.lock().expect("nobody panicked").extend(now);
                thread::sleep(Duration::from_millis(50));
            }
        });
        // What the first ones take stays: buffers, and the allocator's arenas.
        let warm_up = if on_host() { EACH_SECOND * 2 } else { EACH_SECOND / 2 };
        turn(0, warm_up);
        none_left();
        let before = resident_kilobytes(agent.pid());
        let took = turn(warm_up, EACH_SECOND * seconds);
        none_left();
        (before, took, resident_kilobytes(agent.pid()))
    });
    say(&format!(
        "{} came and went in {took:.1?}; the agent's memory went from {before} to {after} kB",
        EACH_SECOND * seconds
    ));
    assert!(after < before + 8 * 1024, "{before} kB before, {after} kB after");
    let ready = agent.get("/-/ready");
    assert_eq!(ready.status, 200, "{}", ready.body);
}

/// Ends the observer, when the one that is observed panics as well.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn resident_kilobytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).expect("a number of kB")
}

/// Past what libtest keeps for failures: these times are the result.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
