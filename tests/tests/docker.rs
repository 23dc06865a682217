//! A real Docker daemon, Debian's, with a macvlan network: its containers are known by name, their frames are theirs, and
//! what ends leaves nothing behind.

use std::{
    io::Write as _,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use macvlan_agent_tests::{
    agent::Agent,
    docker::{Docker, IMAGE},
    exposition::{Sample, Scrape},
    lab::{Lab, Link, Mac, Place, Upstream},
    netns::Namespace,
    owners::{await_gone, await_info, count, info, listed},
    surroundings::{eventually, kernel, on_host, release},
};

const NETWORK: &str = "mv";
const NAMES: [&str; 3] = ["web-1", "web-2", "web-3"];
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Two seconds are promised; this machine may have more to do.
const SOON: Duration = Duration::from_secs(20);

fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 11 + u8::try_from(number).expect("there are few"))
}

/// A daemon with a network on the lab's parent, and an agent that may ask it.
struct Bench {
    agent: Agent,
    docker: Docker,
    lab: Lab,
}

impl Bench {
    fn new() -> Self {
        let lab = Lab::new(Place::Own, Upstream::Wire);
        lab.parent.add_address(HOST, 24).expect("the host has an address");
        let docker = Docker::start();
        let parent = format!("--opt=parent={}", lab.parent.name);
        let network = ["network", "create", "--driver=macvlan", "--subnet=192.0.2.0/24"];
        docker
            .run(&[network.as_slice(), &["--gateway=192.0.2.254", &parent, NETWORK]].concat())
            .expect("a network");
        let agent = Agent::start_with(&[&format!("--containers.socket={}", docker.socket().display())]);
        Self { agent, docker, lab }
    }

    /// Starts a container, and waits until its name is known.
    fn run(&self, number: usize) -> Sample {
        let (name, address) = (NAMES[number], format!("--ip={}", address(number)));
        let run = ["run", "--detach", "--name", name, "--network", NETWORK, &address, IMAGE];
        let start = Instant::now();
        let id = self
            .docker
            .run(&[run.as_slice(), &["/bin/sleep", "1000"]].concat())
            .expect("a container");
        let started = start.elapsed();
        let (info, late) = await_info(&self.agent, "container_name", name, SOON);
        say(&format!(
            "{name}: docker run took {started:.2?}, its name was known {late:.2?} later"
        ));
        assert_eq!(
            [info.label("runtime"), info.label("container_id"), info.label("parent")],
            ["docker", &id, &self.lab.parent.name]
        );
        assert_eq!(info.label("interface"), "eth0");
        let sandbox = self
            .docker
            .run(&["inspect", "--format={{.NetworkSettings.SandboxID}}", name])
            .expect("it is there");
        assert_eq!(info.label("netns"), &sandbox[..12]);
        info
    }

    /// The container's end of the network, as the kernel has it.
    fn link(&self, number: usize) -> Link {
        let pid = self.docker.run(&["inspect", "--format={{.State.Pid}}", NAMES[number]]);
        let pid = pid.expect("it runs").parse().expect("a process id");
        let mac = info(&self.agent.scrape(), "container_name", NAMES[number]).expect("it is known");
        let mut bytes = mac
            .label("mac")
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16).expect("a byte"));
        Link {
            namespace: Namespace::of_process(pid).expect("it has a namespace"),
            name: "eth0".into(),
            mac: Mac([(); 6].map(|()| bytes.next().expect("six bytes"))),
        }
    }

    fn ping(&self, from: usize, to: Ipv4Addr, count: u64) -> Result<String, String> {
        let (count, to) = (count.to_string(), to.to_string());
        let ping = ["exec", NAMES[from], "/bin/ping", "-i", "0.2", "-W", "1", "-c"];
        let ping = self.docker.run(&[ping.as_slice(), &[&count, &to]].concat());
        ping.map_err(|error| format!("{error:#}"))
    }
}

#[test]
fn containers_of_a_real_daemon() {
    if !on_host() {
        // There is no Docker in a VM, and that this is one is shown.
        let (major, minor) = release();
        assert_eq!(
            kernel(),
            format!("{major}.{minor}"),
            "this is no virtual machine of ours"
        );
        return;
    }
    let bench = Bench::new();
    let infos = [0, 1, 2].map(|number| bench.run(number));
    let links = [0, 1, 2].map(|number| bench.link(number));
    // No ARP among what is counted.
    for (number, link) in links.iter().enumerate() {
        link.add_neighbour(HOST, bench.lab.parent.mac).expect("a neighbour");
        for (other, there) in links.iter().enumerate().filter(|(other, _)| *other != number) {
            link.add_neighbour(address(other), there.mac).expect("a neighbour");
        }
    }
    pings_are_counted(&bench, &infos);
    nothing_stays_of_what_ends(&bench, &infos);
    let said = bench.agent.log();
    assert!(!said.contains("\"ERROR\""), "{said}");
}

fn pings_are_counted(bench: &Bench, infos: &[Sample; 3]) {
    const SIBLING: u64 = 5;
    const PARENT: u64 = 4;
    let before = bench.agent.scrape();
    bench.ping(0, address(1), SIBLING).expect("a sibling answers");
    let lost = bench.ping(2, HOST, PARENT).expect_err("macvlan keeps the host away");
    assert!(lost.contains("docker exec"), "{lost}");
    eventually(SOON, || {
        let after = bench.agent.scrape();
        let moved = |number: usize, name: &str, labels: &[(&str, &str)]| {
            let of = |scrape: &Scrape| count(scrape, &infos[number], name, labels);
            of(&after) - of(&before)
        };
        let seen = [0, 1, 2].map(|number| {
            let sibling = [("path", "sibling")];
            let delivered = [("path", "sibling"), ("cast", "unicast")];
            let to_parent = [("direction", "child_to_parent"), ("kind", "unicast")];
            let dropped = [("reason", "child_to_parent")];
            [
                moved(number, "macvlan_transmitted_frames_total", &sibling),
                moved(number, "macvlan_delivered_frames_total", &delivered),
                moved(number, "macvlan_transmitted_frames_total", &[("path", "external")]),
                moved(number, "macvlan_isolation_attempts_total", &to_parent),
                moved(number, "macvlan_dropped_frames_total", &dropped),
            ]
        });
        let expected = [
            [SIBLING, SIBLING, 0, 0, 0],
            [SIBLING, SIBLING, 0, 0, 0],
            [0, 0, PARENT, PARENT, PARENT],
        ];
        (seen == expected)
            .then_some(())
            .ok_or_else(|| format!("{seen:?} and not {expected:?}"))
    });
}

fn nothing_stays_of_what_ends(bench: &Bench, infos: &[Sample; 3]) {
    let remove = |name: &str| bench.docker.run(&["rm", "--force", name]).expect("it goes");
    remove(NAMES[2]);
    await_gone(&bench.agent, "container_name", NAMES[2], SOON);
    await_gone(&bench.agent, "netns", infos[2].label("netns"), SOON);

    // The same name again: another container, whose counts begin at nothing.
    let again = bench.run(2);
    assert_ne!(again.label("container_id"), infos[2].label("container_id"));
    let scrape = bench.agent.scrape();
    assert_eq!(count(&scrape, &again, "macvlan_transmitted_frames_total", &[]), 0);
    assert_eq!(count(&scrape, &again, "macvlan_isolation_attempts_total", &[]), 0);

    // The same container again: in another namespace.
    bench
        .docker
        .run(&["restart", "--time=0", NAMES[0]])
        .expect("it comes back");
    await_gone(&bench.agent, "netns", infos[0].label("netns"), SOON);
    let (restarted, late) = await_info(&bench.agent, "container_name", NAMES[0], SOON);
    say(&format!("{} was known {late:.2?} after its restart", NAMES[0]));
    assert_eq!(restarted.label("container_id"), infos[0].label("container_id"));

    let parent = bench.lab.parent.name.as_str();
    assert_eq!(listed(&bench.agent, parent).len(), NAMES.len());
    for name in NAMES {
        remove(name);
    }
    bench.docker.run(&["network", "rm", NETWORK]).expect("it goes");
    await_gone(&bench.agent, "parent", parent, SOON);
    assert_eq!(listed(&bench.agent, parent).len(), 0);
}

/// Past what libtest keeps for failures: these times are the result.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
