//! Parents that are no card: a VLAN that the agent makes for its first user, a bond of two. What the agent puts on them
//! carries traffic, and the agent counts it.

use std::{
    fs,
    net::IpAddr,
    time::{Duration, Instant},
};

use macvlan_agent_tests::{
    agent::Agent,
    exposition::Scrape,
    lab::{Lab, Link, Mac, Mode, Place, Upstream, veth},
    manage::{Desk, answers, ip_text, link, try_ip},
    moves::{Moves, await_moves_on, moves, moves_and_verdicts},
    netns::{Namespace, switch_ipv6},
    surroundings::{eventually, has, patience, sleep_until},
    traffic::frame,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// An attempt is a loss when nothing has answered it in three seconds.
const SETTLEMENT: Duration = Duration::from_millis(4_500);

/// Within this time a frame is counted.
const SOON: Duration = Duration::from_secs(2);

fn ip_of(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A bond over the lab's parent and a second wire to the same switch, in the process's own namespace.
struct Bond {
    link: Link,
    second: Link,
}

impl Bond {
    fn new(lab: &Lab) -> Self {
        let (own, wire) = (Namespace::own(), &lab.station.namespace);
        let name = format!("mvb{}", std::process::id());
        let (second, far) = veth(&own, &format!("{name}s"), wire, "second").expect("a second wire");
        let switch = Link {
            namespace: wire.clone(),
            name: "switch".into(),
            mac: Mac([0; 6]),
        };
        // From here on they go when this does.
        let mut bond = Self {
            link: Link {
                namespace: own.clone(),
                name,
                mac: lab.parent.mac,
            },
            second,
        };
        far.join(&switch).expect("a second port");
        let name = bond.link.name.as_str();
        let kind = ["type", "bond", "mode", "active-backup", "miimon", "50"];
        let _ = ip_text(&own, &[["link", "add", name].as_slice(), &kind].concat());
        switch_ipv6(name, false).expect("a bond");
        for slave in [&lab.parent, &bond.second] {
            // A bond takes only what is down.
            slave.set_up(false).expect("down");
            slave.join(&bond.link).expect("a slave");
        }
        bond.link.set_up(true).expect("up");
        bond.link.mac = mac_of(&own, name);
        bond
    }

    /// The slave that carries the traffic.
    fn active(&self) -> String {
        let path = format!("/sys/class/net/{}/bonding/active_slave", self.link.name);
        fs::read_to_string(path).unwrap_or_default().trim().to_owned()
    }

    /// Takes the first slave away; the other one takes over.
    fn fail_over(&self, first: &Link) {
        assert_eq!(self.active(), first.name);
        first.set_up(false).expect("down");
        eventually(patience(Duration::from_secs(5)), || {
            if self.active() == self.second.name {
                Ok(())
            } else {
                Err(format!("{:?} is active", self.active()))
            }
        });
    }
}

impl Drop for Bond {
    fn drop(&mut self) {
        // What is not there any more has gone with the lab.
        let _ = self.link.delete();
        let _ = self.second.delete();
    }
}

fn mac_of(namespace: &Namespace, name: &str) -> Mac {
    let link = link(namespace, name).unwrap_or_else(|| panic!("there is no {name}"));
    let text = link["address"].as_str().expect("a MAC");
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).expect("a MAC"))
        .collect();
    Mac(bytes.try_into().expect("six bytes"))
}

/// Who sends what on a parent.
struct Traffic<'a> {
    parent: &'a Link,
    sub: &'a Link,
    station: &'a Link,
}

impl Traffic<'_> {
    /// Sends `count` frames to the sub-interface, some back, and some to its parent, where macvlan leads none; exactly
    /// these are counted.
    fn is_counted(&self, agent: &Agent, count: u32) -> Counted {
        let Self { parent, sub, station } = self;
        let before = agent.scrape();
        let (back, attempts) = (count / 3, count / 10);
        station.send(&frame(sub.mac, station.mac, 200), count);
        sub.send(&frame(station.mac, sub.mac, 300), back);
        sub.send(&frame(parent.mac, sub.mac, 100), attempts);
        let sent = Instant::now();
        let [all, back, attempts] = [count, back, attempts].map(u64::from);
        let text = |what: &str| what.replace("SUB", &sub.name);
        let expected = moves_and_verdicts(
            [
                (&*text("delivered_frames SUB cast=unicast path=external"), all),
                (&*text("delivered_bytes SUB cast=unicast path=external"), all * 200),
                (&*text("transmitted_frames SUB path=external"), back + attempts),
                (
                    &*text("transmitted_bytes SUB path=external"),
                    back * 300 + attempts * 100,
                ),
                (
                    &*text("isolation_attempts SUB direction=child_to_parent kind=unicast"),
                    attempts,
                ),
            ],
            all,
            0,
            0,
        );
        await_moves_on(agent, &parent.name, &before, &expected, patience(SOON));
        let losses = moves([
            (&*text("dropped_frames SUB reason=child_to_parent"), attempts),
            ("parent_isolation_lost_frames direction=child_to_parent", attempts),
        ]);
        Counted {
            parent: parent.name.clone(),
            before,
            settled: expected.into_iter().chain(losses).collect(),
            sent,
        }
    }
}

/// What was counted at once.
struct Counted {
    parent: String,
    before: Scrape,
    settled: Moves,
    sent: Instant,
}

impl Counted {
    /// Nothing answers what was for the parent: it becomes a loss, and nothing else moves.
    fn settles(&self, agent: &Agent) {
        sleep_until(self.sent + SETTLEMENT);
        await_moves_on(agent, &self.parent, &self.before, &self.settled, patience(SOON));
    }
}

/// A station behind the lab's wire that hears and sends what is tagged alone.
fn station_on_vlan(lab: &Lab) -> Link {
    let wire = &lab.station.namespace;
    let far = lab.station.name.as_str();
    let _ = ip_text(
        wire,
        &["link", "add", "link", far, "name", "tagged", "type", "vlan", "id", "10"],
    );
    let tagged = Link {
        namespace: wire.clone(),
        name: "tagged".into(),
        mac: lab.station.mac,
    };
    tagged.set_up(true).expect("up");
    tagged
}

/// Waits until an address answers.
fn reach(from: &Namespace, to: &Link, address: &str) {
    eventually(patience(Duration::from_secs(5)), || {
        if answers(from, &to.namespace, ip_of(address)) {
            Ok(())
        } else {
            Err(format!("{address} does not answer"))
        }
    });
}

/// What a kernel without bonds or VLANs says: that the rest of the test cannot be had there.
fn lacking(desk: &Desk, config: &str, vlan: &str) -> bool {
    let own = Namespace::own();
    if !has("bond") {
        let name = format!("mvb{}", std::process::id());
        let refusal = try_ip(&own, &["link", "add", &name, "type", "bond"]).expect_err("this kernel has no bonds");
        let refusal = format!("{refusal:#}");
        assert!(
            refusal.contains("Unknown device type") || refusal.contains("not supported"),
            "{refusal}"
        );
    }
    if !has("vlan") {
        let flag = desk.configure(config);
        let said = String::from_utf8_lossy(&desk.run(&["apply", &flag]).stdout).into_owned();
        assert!(said.contains("this kernel has no VLANs (CONFIG_VLAN_8021Q)"), "{said}");
        assert!(link(&own, vlan).is_none());
        desk.succeed(&["apply", "--prune", "--config.file=/dev/null"]);
    }
    !(has("bond") && has("vlan"))
}

#[test]
fn a_vlan_on_demand_and_a_bond_carry_traffic_that_is_counted() {
    let (lab, desk, own) = (Lab::new(Place::Own, Upstream::Wire), Desk::new(), Namespace::own());
    let (one, two) = (lab.namespace("one"), lab.namespace("two"));
    let base = lab.parent.name.as_str();
    let (vlan, bond_name) = (format!("{base}.10"), format!("mvb{}", std::process::id()));
    let macs = [lab.mac(), lab.mac()];
    let on_vlan = |more: &str| {
        let space = one.name().unwrap();
        let mac = macs[0];
        format!("  - {{name: macv1, parent: {vlan}, mode: bridge, netns: {space}, mac: \"{mac}\"{more}}}\n")
    };
    let on_bond = |more: &str| {
        let space = two.name().unwrap();
        let mac = macs[1];
        format!("  - {{name: macv2, parent: {bond_name}, mode: bridge, netns: {space}, mac: \"{mac}\"{more}}}\n")
    };
    let config = |subs: &[String]| {
        let parents = format!("parents:\n  - {{name: {vlan}, vlan: {{parent: {base}, id: 10}}}}\n");
        format!("{parents}sub_interfaces:\n{}", subs.concat())
    };
    if lacking(&desk, &config(&[on_vlan("")]), &vlan) {
        return;
    }

    let wires = Lab::new(Place::Own, Upstream::Switch);
    let bond = Bond::new(&wires);
    let tagged = station_on_vlan(&lab);

    let flag = desk.configure(&config(&[on_vlan(""), on_bond("")]));
    let [state, run] = desk.flags();
    let agent = Agent::start_with(&[&flag, &state, &run]);
    let subs = [
        (&one, "macv1", vlan.as_str(), macs[0]),
        (&two, "macv2", &bond_name, macs[1]),
    ];
    let subs = subs.map(|(space, name, parent, mac)| {
        eventually(patience(Duration::from_secs(5)), || {
            known(&agent.scrape(), name, parent)
        });
        Link {
            namespace: space.clone(),
            name: name.to_owned(),
            mac,
        }
    });
    switch_ipv6(&vlan, false).unwrap();
    let parents = [
        Link {
            namespace: own.clone(),
            name: vlan.clone(),
            mac: mac_of(&own, &vlan),
        },
        bond.link.clone(),
    ];
    let traffic = [
        Traffic {
            parent: &parents[0],
            sub: &subs[0],
            station: &tagged,
        },
        Traffic {
            parent: &parents[1],
            sub: &subs[1],
            station: &wires.station,
        },
    ];
    // One after the other: what is for one parent moves nothing on the other.
    let counted = [traffic[0].is_counted(&agent, 137), traffic[1].is_counted(&agent, 211)];
    for each in counted {
        each.settles(&agent);
    }
    // The other slave takes over, and nothing is lost on the way to the counts.
    bond.fail_over(&wires.parent);
    let _ = traffic[1].is_counted(&agent, 95);

    // With addresses they answer.
    let reload = || kill(Pid::from_raw(i32::try_from(agent.pid()).unwrap()), Signal::SIGHUP).unwrap();
    let (first, second) = (", addresses: [198.51.100.151/24]", ", addresses: [203.0.113.152/24]");
    let _ = desk.configure(&config(&[on_vlan(first), on_bond(second)]));
    reload();
    tagged.add_address(ip_of("198.51.100.77"), 24).unwrap();
    wires.station.add_address(ip_of("203.0.113.77"), 24).unwrap();
    reach(&one, &tagged, "198.51.100.77");
    reach(&two, &wires.station, "203.0.113.77");

    // The VLAN goes with its last user; the bond is not ours, and the one on it stays.
    let _ = desk.configure(&config(&[on_bond(second)]));
    reload();
    eventually(patience(Duration::from_secs(5)), || {
        match (link(&one, "macv1"), link(&own, &vlan)) {
            (None, None) => Ok(()),
            (sub, parent) => Err(format!("{sub:?}; {parent:?}; {}", agent.log())),
        }
    });
    reach(&two, &wires.station, "203.0.113.77");
    assert_eq!(agent.stop().status.code(), Some(0));
    desk.succeed(&["apply", "--prune", "--config.file=/dev/null"]);
    assert!(link(&two, "macv2").is_none() && link(&own, &bond_name).is_some());
}

/// Whether a sub-interface is counted under its parent's name.
fn known(scrape: &Scrape, name: &str, parent: &str) -> Result<(), String> {
    let labels = [("interface", name), ("parent", parent)];
    match scrape.samples("macvlan_interface_up", &labels).next() {
        Some(sample) if sample.value > 0.5 => Ok(()),
        _ => Err(scrape.listing("macvlan_interface_up")),
    }
}

#[test]
fn what_the_configuration_leaves_out_is_not_observed() {
    let labs = [(); 2].map(|()| Lab::new(Place::Named, Upstream::Wire));
    let subs = labs.each_ref().map(|lab| lab.add("macv1", Mode::Bridge));
    let more = labs[0].add("macv2", Mode::Bridge);
    let [included, left_out] = labs.each_ref().map(Lab::parent_label);
    let file = tempfile::NamedTempFile::new().expect("a file");
    let text = format!("observe: {{parents: {{include: [{included:?}]}}}}\nlimits: {{sub_interfaces: 1}}\n");
    fs::write(file.path(), text).expect("a configuration");
    let state = tempfile::tempdir().expect("a directory");
    let flags = [
        format!("--config.file={}", file.path().display()),
        format!("--state.dir={}", state.path().display()),
    ];
    let agent = Agent::start_with(&flags.each_ref().map(String::as_str));
    agent.await_known(&[&subs[0], &more]);
    let scrape = agent.scrape();
    for metric in ["macvlan_interface_info", "macvlan_agent_hook_info"] {
        let of = |parent: &str| scrape.samples(metric, &[("parent", parent)]).count();
        assert_eq!((of(&included), of(&left_out)), (2, 0), "{metric}");
    }
    assert_eq!(scrape.count("macvlan_agent_interfaces_over_limit", &[]), 1);
}
