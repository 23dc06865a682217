//! Every mode, every kind of traffic, every state: each case on a parent of its own, its counts by the model of macvlan
//! and not by what an agent once said. Whatever else moved is a failure.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::UdpSocket,
    process,
    time::{Duration, Instant},
};

use macvlan_agent_tests::{
    agent::Agent,
    exposition::Scrape,
    lab::{Mac, Mode},
    load::{Burst, Load},
    model::{Child, Node, Port, To},
    moves::{Moves, moved_by_parent},
    rig::{Kind, Plan, Rig, Shim, Site, cards},
    surroundings::{eventually, has, long, patience, release, sees_verdicts, sleep_until},
    traffic::{BROADCAST, datagrams},
};

/// A station on the wire.
const STRANGER: Mac = Mac([0x02, 0x77, 0, 0, 0, 1]);
/// One that nobody is.
const NOBODY: Mac = Mac([0x02, 0x77, 0, 0, 0, 2]);
/// "All systems on this subnet": every interface with IPv4 has joined it.
const ALL_SYSTEMS: Mac = Mac([0x01, 0x00, 0x5e, 0, 0, 1]);
const IT: Node = Node::Child(0);
const SIBLING: Node = Node::Child(1);
/// Discard (RFC 863), where nobody answers a datagram.
const PORT: u16 = 9;
const DATAGRAM: u64 = 100;
/// Three requests in two seconds, and four more until the last of them is a loss.
const SETTLEMENT: Duration = Duration::from_secs(6);

/// Parents of one run; the agent takes 256.
const PARENTS: usize = 200;

const MODES: [Mode; 5] = [Mode::Private, Mode::Vepa, Mode::Bridge, Mode::Passthru, Mode::Source];

/// How frames come to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// As they are.
    Raw(Load),
    /// Raw, to a group instead of broadcast.
    Group(Load),
    /// Raw, with the first sub-interface's MAC as their source: what a switch that returns frames sends.
    Replayed(Load),
    /// Datagrams out of a stack that has to ask for the neighbour first.
    Stack,
}

/// A kind of traffic.
struct Traffic {
    name: &'static str,
    from: Node,
    to: To,
    how: How,
    count: u64,
}

const PLAIN: How = How::Raw(Load::Plain(200));

const fn traffic(name: &'static str, from: Node, to: To, how: How, count: u64) -> Traffic {
    Traffic {
        name,
        from,
        to,
        how,
        count,
    }
}

/// The counts differ, so that one cannot stand for another.
const TRAFFIC: [Traffic; 26] = [
    traffic("wire to it", Node::Stranger, To::One(IT), PLAIN, 21),
    traffic("wire to the parent", Node::Stranger, To::One(Node::Parent), PLAIN, 22),
    traffic("wire to an unknown MAC", Node::Stranger, To::Nobody, PLAIN, 23),
    traffic(
        "wire to a group",
        Node::Stranger,
        To::All,
        How::Group(Load::Plain(120)),
        24,
    ),
    traffic("wire to all", Node::Stranger, To::All, How::Raw(Load::Plain(130)), 25),
    traffic("it to its sibling", IT, To::One(SIBLING), PLAIN, 26),
    traffic("its sibling to it", SIBLING, To::One(IT), PLAIN, 27),
    traffic(
        "it to the parent, static neighbour",
        IT,
        To::One(Node::Parent),
        PLAIN,
        28,
    ),
    traffic(
        "the parent to it, static neighbour",
        Node::Parent,
        To::One(IT),
        PLAIN,
        29,
    ),
    traffic(
        "it to the parent, dynamic neighbour",
        IT,
        To::One(Node::Parent),
        How::Stack,
        7,
    ),
    traffic(
        "the parent to it, dynamic neighbour",
        Node::Parent,
        To::One(IT),
        How::Stack,
        8,
    ),
    traffic("it to the wire", IT, To::Nobody, PLAIN, 31),
    traffic("it to a group", IT, To::All, How::Group(Load::Plain(140)), 32),
    traffic("it to all", IT, To::All, PLAIN, 33),
    traffic("the parent to all", Node::Parent, To::All, PLAIN, 34),
    traffic(
        "reflected, to all",
        Node::Stranger,
        To::All,
        How::Replayed(Load::Plain(150)),
        35,
    ),
    traffic(
        "reflected, to the parent",
        Node::Stranger,
        To::One(Node::Parent),
        How::Replayed(Load::Plain(150)),
        36,
    ),
    traffic(
        "wire to it, fragments",
        Node::Stranger,
        To::One(IT),
        How::Raw(Load::Fragments),
        11,
    ),
    traffic(
        "wire to all, fragments",
        Node::Stranger,
        To::All,
        How::Raw(Load::Fragments),
        12,
    ),
    traffic(
        "wire to it, tagged",
        Node::Stranger,
        To::One(IT),
        How::Raw(Load::Tagged(200)),
        37,
    ),
    traffic(
        "wire to all, tagged",
        Node::Stranger,
        To::All,
        How::Raw(Load::Tagged(200)),
        38,
    ),
    traffic(
        "it to its sibling, tagged",
        IT,
        To::One(SIBLING),
        How::Raw(Load::Tagged(200)),
        39,
    ),
    traffic(
        "it to the wire, tagged",
        IT,
        To::Nobody,
        How::Raw(Load::Tagged(200)),
        41,
    ),
    traffic(
        "wire to it, GSO",
        Node::Stranger,
        To::One(IT),
        How::Raw(Load::Gso(4_000)),
        5,
    ),
    traffic(
        "it to its sibling, GSO",
        IT,
        To::One(SIBLING),
        How::Raw(Load::Gso(20_000)),
        6,
    ),
    traffic(
        "it to the parent, GSO",
        IT,
        To::One(Node::Parent),
        How::Raw(Load::Gso(10_000)),
        4,
    ),
];

/// What is so while the traffic flows.
#[derive(Clone, Copy)]
struct State {
    name: &'static str,
    it_up: bool,
    parent_up: bool,
    hairpin: bool,
    shim: Option<Shim>,
}

const UP: State = State {
    name: "up",
    it_up: true,
    parent_up: true,
    hairpin: false,
    shim: None,
};
const DOWN: State = State {
    name: "sub-interface down",
    it_up: false,
    ..UP
};
const PARENT_DOWN: State = State {
    name: "parent down",
    parent_up: false,
    ..UP
};
const HAIRPIN: State = State {
    name: "hairpin",
    hairpin: true,
    ..UP
};
const HAIRPIN_AND_DOWN: State = State {
    name: "hairpin, sub-interface down",
    it_up: false,
    ..HAIRPIN
};
const SHIM_WITH_ROUTE: State = State {
    name: "shim with route",
    shim: Some(Shim::WithRoute),
    ..UP
};
const SHIM_WITHOUT_ROUTE: State = State {
    name: "shim without route",
    shim: Some(Shim::WithoutRoute),
    ..UP
};

impl State {
    /// Whether it changes what becomes of this traffic, compared with the state in which all is up; the rest of the
    /// table is in the slow variant.
    fn touches(self, traffic: &Traffic) -> bool {
        let Traffic { from, to, .. } = *traffic;
        let from_wire = from == Node::Stranger;
        if self.shim.is_some() {
            return to == To::All || traffic.how == How::Stack;
        }
        if !self.it_up {
            // What it would send is not sent.
            return from != IT && (!self.hairpin || !from_wire || to == To::One(IT));
        }
        if !self.parent_up {
            return from == IT || from == SIBLING || to == To::One(IT);
        }
        !self.hairpin || !from_wire
    }
}

/// One cell of the table.
struct Case {
    state: State,
    kind: Kind,
    tap: bool,
    mode: Mode,
    traffic: Vec<&'static Traffic>,
}

impl Case {
    /// Each kind of traffic on a parent of its own, a veth.
    fn all(states: &[State]) -> Vec<Self> {
        let mut cases = Vec::new();
        for &state in states {
            let wanted = TRAFFIC.iter().filter(|traffic| state.touches(traffic) || long());
            let pairs = wanted.flat_map(|traffic| MODES.iter().map(move |mode| (*mode, traffic)));
            let pairs = pairs.filter(|(mode, traffic)| is_possible(state, *mode, traffic));
            cases.extend(pairs.map(|(mode, traffic)| Self {
                state,
                kind: Kind::Veth,
                tap: false,
                mode,
                traffic: vec![traffic],
            }));
        }
        cases
    }

    /// All traffic on one parent of this kind, but for reflections of what was not sent, which would take back what was.
    fn whole(kind: Kind, tap: bool, mode: Mode) -> Self {
        let traffic = TRAFFIC.iter().filter(|traffic| is_possible(UP, mode, traffic));
        let traffic = traffic.filter(|traffic| !matches!(traffic.how, How::Replayed(_)));
        let has_wire = kind != Kind::Dummy;
        Self {
            state: UP,
            kind,
            tap,
            mode,
            traffic: traffic
                .filter(|traffic| has_wire || traffic.from != Node::Stranger)
                .collect(),
        }
    }

    /// What it is, for people.
    fn name(&self) -> String {
        let traffic = if let [traffic] = self.traffic[..] {
            traffic.name
        } else {
            "everything"
        };
        let tap = if self.tap { ", macvtap" } else { "" };
        format!(
            "{}: {traffic}, mode {:?} on {}{tap}",
            self.state.name,
            self.mode,
            self.kind.name()
        )
    }

    fn plan(&self) -> Plan {
        Plan {
            kind: self.kind,
            tap: self.tap,
            mode: self.mode,
            hairpin: self.state.hairpin,
            shim: self.state.shim,
            listens_to: STRANGER,
        }
    }

    fn port(&self, site: &Site) -> Port {
        let state = self.state;
        let children = site.children.iter().enumerate().map(|(place, link)| {
            let is_shim = state.shim.is_some() && place + 1 == site.children.len();
            Child {
                name: link.name.clone(),
                mode: if is_shim { Mode::Bridge } else { self.mode },
                up: place > 0 || state.it_up,
                hears_stranger: self.mode == Mode::Source && place == 0,
                of_host: is_shim,
            }
        });
        Port::new(children.collect(), state.parent_up, state.hairpin, release())
    }

    /// Who sends what the host's stack sends to it: with a route through the shim, that.
    fn sender(&self, traffic: &Traffic, site: &Site) -> Node {
        let through_shim = self.state.shim == Some(Shim::WithRoute) && traffic.how == How::Stack;
        match traffic.from {
            Node::Parent if through_shim => Node::Child(site.children.len() - 1),
            from => from,
        }
    }

    /// What must move.
    fn expected(&self, site: &Site) -> Moves {
        let mut port = self.port(site);
        for traffic in &self.traffic {
            let Traffic { to, how, count, .. } = **traffic;
            let from = self.sender(traffic, site);
            match how {
                // A dummy asks for nobody (IFF_NOARP): its stack sends to the dummy's own MAC.
                How::Stack if self.kind == Kind::Dummy && from == Node::Parent => {}
                How::Raw(load) | How::Group(load) => port.send(from, from, to, load.burst(count)),
                How::Replayed(load) => port.send(from, IT, to, load.burst(count)),
                How::Stack => {
                    let To::One(to) = to else {
                        panic!("a stack talks to one")
                    };
                    port.talk(from, to, Burst::plain(count, DATAGRAM + 14 + 20 + 8));
                }
            }
        }
        let mut moves = port.settled();
        if !sees_verdicts() {
            moves.retain(|counter, _| !counter.starts_with("parent_handled_frames"));
        }
        moves
    }

    fn send(&self, site: &Site) {
        for traffic in &self.traffic {
            self.send_one(traffic, site);
        }
    }

    fn send_one(&self, traffic: &Traffic, site: &Site) {
        let from = traffic.from;
        // A parent that is down takes the carrier of its peer.
        if !self.port(site).can_send(from) || from == Node::Stranger && !self.state.parent_up {
            return;
        }
        let link = match from {
            Node::Parent => &site.parent,
            Node::Child(child) => &site.children[child],
            Node::Stranger => &site.station,
        };
        let mac = |node: Node| match node {
            Node::Parent => site.parent.mac,
            Node::Child(child) => site.children[child].mac,
            Node::Stranger => STRANGER,
        };
        let to = match (traffic.to, traffic.how) {
            (To::One(node), _) => mac(node),
            (To::Nobody, _) => NOBODY,
            (To::All, How::Group(_)) => ALL_SYSTEMS,
            (To::All, _) => BROADCAST,
        };
        let count = traffic.count;
        let sent = match traffic.how {
            How::Raw(load) | How::Group(load) => load.send(&link.namespace, &link.name, to, mac(from), count),
            How::Replayed(load) => load.send(&link.namespace, &link.name, to, mac(IT), count),
            How::Stack => {
                let (mine, theirs) = match from {
                    Node::Parent => (site.address, site.child_address()),
                    _ => (site.child_address(), site.address),
                };
                datagrams(&link.namespace, (mine, theirs), PORT, DATAGRAM, count)
            }
        };
        sent.unwrap_or_else(|error| panic!("{}, {}: {error:#}", self.name(), traffic.name));
    }
}

/// One in mode passthru has no sibling, and so no shim.
fn is_possible(state: State, mode: Mode, traffic: &Traffic) -> bool {
    let needs_sibling = traffic.from == SIBLING || traffic.to == To::One(SIBLING);
    mode != Mode::Passthru || !needs_sibling && state.shim.is_none()
}

/// All these cases, each on a parent of its own, under one agent for as many parents as it may have.
fn batch(name: &str, cases: &[Case]) {
    let runs = cases.chunks(PARENTS).enumerate();
    let faults: String = runs
        .map(|(number, cases)| run(&format!("{name}{number}"), cases, Agent::start))
        .collect();
    assert!(faults.is_empty(), "\n{faults}");
}

/// What is wrong with these cases.
fn run(name: &str, cases: &[Case], start: impl FnOnce() -> Agent) -> String {
    let plans: Vec<_> = cases.iter().map(Case::plan).collect();
    let rig = Rig::build(&format!("mvm{}-{name}", process::id()), &plans);
    let rig = rig.unwrap_or_else(|error| panic!("no rig: {error:#}"));
    set_states(&rig, cases);
    let _listeners = [&rig.hosts, &rig.homes].map(|namespace| {
        let listen = || Ok(UdpSocket::bind(("0.0.0.0", PORT))?);
        namespace.run(listen).unwrap_or_else(|error| panic!("{error:#}"))
    });
    let agent = start();
    await_known(&agent, &rig);
    let before = agent.scrape();
    for (case, site) in cases.iter().zip(&rig.sites) {
        case.send(site);
    }
    sleep_until(Instant::now() + SETTLEMENT);
    let faults = eventually_none(|| faults(cases, &rig, &before, &agent.scrape()));
    agent.kill();
    faults
}

/// What is wrong, asked again while there is something and time.
fn eventually_none(mut probe: impl FnMut() -> String) -> String {
    let deadline = Instant::now() + patience(Duration::from_secs(1));
    loop {
        let faults = probe();
        if faults.is_empty() || Instant::now() > deadline {
            return faults;
        }
    }
}

fn faults(cases: &[Case], rig: &Rig, before: &Scrape, after: &Scrape) -> String {
    let moved: BTreeMap<String, Moves> = moved_by_parent(before, after);
    let mut text = String::new();
    for (case, site) in cases.iter().zip(&rig.sites) {
        let expected = case.expected(site);
        let moved = moved.get(&site.parent_label()).cloned().unwrap_or_default();
        if moved == expected {
            continue;
        }
        let _ = writeln!(text, "{} ({}):", case.name(), site.parent.name);
        for counter in moved
            .keys()
            .chain(expected.keys().filter(|counter| !moved.contains_key(*counter)))
        {
            let (is, should) = (moved.get(counter), expected.get(counter));
            if is != should {
                let [is, should] = [is, should].map(|by| by.copied().unwrap_or(0));
                let _ = writeln!(text, "    {counter}: {is}, not {should}");
            }
        }
    }
    text
}

fn set_states(rig: &Rig, cases: &[Case]) {
    let both = || cases.iter().zip(&rig.sites);
    let sub_interfaces = both().filter(|(case, _)| !case.state.it_up);
    let sub_interfaces: Vec<_> = sub_interfaces.map(|(_, site)| &site.children[0]).collect();
    let parents = both().filter(|(case, _)| !case.state.parent_up);
    let parents: Vec<_> = parents.map(|(_, site)| &site.parent).collect();
    let homes = Rig::set_up(&rig.homes, &sub_interfaces, false);
    let down = homes.and_then(|()| Rig::set_up(&rig.hosts, &parents, false));
    down.unwrap_or_else(|error| panic!("{error:#}"));
}

fn await_known(agent: &Agent, rig: &Rig) {
    let wanted: usize = rig.sites.iter().map(|site| site.children.len()).sum();
    let attached = rig.sites.len() * 2;
    let hosts = rig.hosts.label();
    eventually(patience(Duration::from_secs(10)), || {
        let scrape = agent.scrape();
        let ours = |name: &str| {
            let samples = scrape
                .samples
                .iter()
                .filter(|sample| sample.name == name && sample.value > 0.0);
            samples
                .filter(|sample| sample.label("parent").starts_with(&format!("{hosts}/")))
                .count()
        };
        let (known, hooks) = (ours("macvlan_interface_info"), ours("macvlan_agent_hook_attached"));
        if (known, hooks) == (wanted, attached) {
            Ok(())
        } else {
            Err(format!(
                "{known} of {wanted} sub-interfaces, {hooks} of {attached} hooks"
            ))
        }
    });
}

#[test]
fn all_up() {
    batch("up", &Case::all(&[UP]));
}

#[test]
fn sub_interface_or_parent_down() {
    batch("down", &Case::all(&[DOWN, PARENT_DOWN]));
}

#[test]
fn hairpin_upstream_and_shims() {
    batch(
        "back",
        &Case::all(&[HAIRPIN, HAIRPIN_AND_DOWN, SHIM_WITH_ROUTE, SHIM_WITHOUT_ROUTE]),
    );
}

#[test]
fn every_kind_of_parent_and_macvtap() {
    let cards = cards();
    assert_eq!(cards.is_ok(), has(Kind::Virtio.name()), "the table says: {cards:?}");
    let (there, lacked): (Vec<_>, Vec<_>) = Kind::MADE.into_iter().partition(|kind| has(kind.name()));
    let kinds = there
        .iter()
        .flat_map(|kind| MODES.map(|mode| Case::whole(*kind, false, mode)));
    let taps = MODES.map(|mode| Case::whole(Kind::Veth, true, mode));
    let card = has(Kind::Virtio.name()).then(|| Case::whole(Kind::Virtio, false, Mode::Bridge));
    batch("kinds", &kinds.chain(taps).chain(card).collect::<Vec<_>>());
    for kind in lacked {
        let plan = Case::whole(kind, false, Mode::Bridge).plan();
        let made = Rig::build(&format!("mvm{}-lacked", process::id()), &[plan]);
        assert!(made.is_err(), "the table says that this kernel lacks {}", kind.name());
    }
}

/// The other way to see verdicts gives the same numbers; a kernel without it says so instead of counting by another.
#[test]
fn fexit_counts_the_same() {
    let name = "handle_frame";
    let there = has("fexit");
    let start = || {
        let agent = Agent::start_with(&["--hook.handle_frame=fexit"]);
        let info = agent
            .scrape()
            .sample("macvlan_agent_hook_info", &[("hook", name)])
            .clone();
        let (mechanism, reason) = (info.label("mechanism"), info.label("reason"));
        assert_eq!((mechanism == "fexit", reason.is_empty()), (there, there), "{info}");
        agent
    };
    if there {
        let faults = run("fexit", &MODES.map(|mode| Case::whole(Kind::Veth, false, mode)), start);
        assert!(faults.is_empty(), "\n{faults}");
    } else {
        assert_eq!(
            start().scrape().count("macvlan_agent_hook_attached", &[("hook", name)]),
            0
        );
    }
}
