//! Exact frames, exact counts. Each test says every counter of its lab that must have moved; whatever else moved is a
//! failure. Verdicts of `macvlan_handle_frame` are expected where the agent can see them.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use macvlan_agent_ebpf::{frame::Mac as Number, front};
use macvlan_agent_tests::{
    agent::Agent,
    exposition::{Scrape, whole},
    lab::{Arrival, Lab, Mac, Mode, Place, SubInterface, Upstream},
    moves::{Moves, await_moves, moves, moves_and_verdicts},
    surroundings::{eventually, patience, sleep_until},
    traffic::{self, BROADCAST, arp_reply, arp_request, frame, neighbour_advertisement, neighbour_solicitation},
};

const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const NOBODY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
const ONE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 12);
/// A station on the wire that is not in the lab.
const STRANGER: Mac = Mac([0x02, 0x77, 0, 0, 0, 1]);
/// Losses are settled less than four seconds after the attempt.
const SETTLEMENT: Duration = Duration::from_secs(4);

/// An agent that watches a lab.
struct Bench<'a> {
    agent: Agent,
    lab: &'a Lab,
    before: Scrape,
}

impl<'a> Bench<'a> {
    fn start(lab: &'a Lab, known: &[&SubInterface]) -> Self {
        let agent = Agent::start();
        agent.await_known(known);
        let before = agent.scrape();
        Self { agent, lab, before }
    }

    /// Exactly this has moved since the last call.
    fn counts(&mut self, expected: &Moves) {
        self.before = self.so_far(expected);
    }

    /// Exactly this has moved since the last `counts`, and may move on.
    fn so_far(&self, expected: &Moves) -> Scrape {
        await_moves(
            &self.agent,
            self.lab,
            &self.before,
            expected,
            patience(Duration::from_secs(1)),
        )
    }

    /// The same, after everything sent until now has become a loss if it is one.
    fn counts_settled(&mut self, expected: &Moves) {
        sleep_until(Instant::now() + SETTLEMENT);
        self.counts(expected);
    }

    fn await_up(&self, sub: &SubInterface, up: u64) {
        let labels = sub.labels();
        let labels = labels.each_ref().map(|(name, value)| (*name, value.as_str()));
        eventually(patience(Duration::from_secs(2)), || {
            match self.agent.scrape().count("macvlan_interface_up", &labels) {
                now if now == up => Ok(()),
                now => Err(format!("macvlan_interface_up of {} is {now}", sub.link.name)),
            }
        });
    }
}

#[test]
fn frames_from_the_wire_count_on_the_one_they_are_for() {
    let lab = Lab::new(Place::Own, Upstream::Wire);
    let [bridge, vepa, private, other] = [
        ("bridge1", Mode::Bridge),
        ("vepa1", Mode::Vepa),
        ("private1", Mode::Private),
        ("bridge2", Mode::Bridge),
    ]
    .map(|(name, mode)| lab.add(name, mode));
    let mut bench = Bench::start(&lab, &[&bridge, &vepa, &private, &other]);

    lab.station.send(&frame(bridge.mac(), STRANGER, 200), 1000);
    bench.counts(&moves_and_verdicts(
        [
            ("delivered_frames bridge1 cast=unicast path=external", 1000),
            ("delivered_bytes bridge1 cast=unicast path=external", 200_000),
        ],
        1000,
        0,
        0,
    ));

    lab.station.send(&frame(vepa.mac(), STRANGER, 60), 300);
    lab.station.send(&frame(private.mac(), STRANGER, 1514), 200);
    bench.counts(&moves_and_verdicts(
        [
            ("delivered_frames vepa1 cast=unicast path=external", 300),
            ("delivered_bytes vepa1 cast=unicast path=external", 18_000),
            ("delivered_frames private1 cast=unicast path=external", 200),
            ("delivered_bytes private1 cast=unicast path=external", 302_800),
        ],
        500,
        0,
        0,
    ));

    // To the parent, to nobody here, and to all: the handler passes them on, and no unicast count moves.
    lab.station.send(&frame(lab.parent.mac, STRANGER, 200), 100);
    lab.station.send(&frame(STRANGER, STRANGER, 200), 20);
    lab.station.send(&frame(BROADCAST, STRANGER, 200), 30);
    bench.counts(&moves_and_verdicts([], 0, 150, 0));
}

#[test]
fn frames_between_siblings_in_bridge_mode_never_count_as_external() {
    let lab = Lab::new(Place::Named, Upstream::Wire);
    let [one, other, third] = ["macv1", "macv2", "macv3"].map(|name| lab.add(name, Mode::Bridge));
    let mut bench = Bench::start(&lab, &[&one, &other, &third]);

    one.link.send(&frame(other.mac(), one.mac(), 200), 1000);
    bench.counts(&moves_and_verdicts(
        [
            ("delivered_frames macv2 cast=unicast path=sibling", 1000),
            ("delivered_bytes macv2 cast=unicast path=sibling", 200_000),
            ("transmitted_frames macv1 path=sibling", 1000),
            ("transmitted_bytes macv1 path=sibling", 200_000),
        ],
        1000,
        0,
        0,
    ));

    // To the world: external, and nobody's delivery.
    one.link.send(&frame(STRANGER, one.mac(), 300), 100);
    bench.counts(&moves([
        ("transmitted_frames macv1 path=external", 100),
        ("transmitted_bytes macv1 path=external", 30_000),
    ]));
}

/// MACs that have one place in the table in front, whatever slot their parent has: all but one of them are looked for
/// behind.
fn meeting() -> [Mac; 3] {
    let place = |slot, number| front::of_sub_interface(slot, Number::low(number)).index;
    // Places follow from a product, so what lies next to nothing is next to everything it is added to. The two lowest
    // bytes stay: the first says that it is nobody's group.
    let step = (1..u64::MAX)
        .map(|number| number << 16)
        .find(|step| place(0, *step) == 0 && place(0, 4 * step) == 0)
        .expect("one in some hundred thousand does");
    let alike = |first: u64| {
        let all = [first, first + step, first + 2 * step];
        let meet = |slot| all.iter().all(|mac| place(slot, *mac) == place(slot, first));
        (0..8).all(meet).then_some(all)
    };
    let all = (0..1 << 20).find_map(|number| alike(number << 16 | 0x02));
    all.expect("one in some hundred does")
        .map(|number| Mac(Number::low(number).bytes()))
}

#[test]
fn those_that_meet_in_a_table_count_their_own() {
    let lab = Lab::new(Place::Own, Upstream::Wire);
    let home = lab.namespace("home");
    let [one, other, third] = meeting();
    let [one, other, third] = [("meets1", one), ("meets2", other), ("meets3", third)]
        .map(|(name, mac)| lab.add_in(&home, name, Mode::Bridge, mac, Arrival::Directly));
    let mut bench = Bench::start(&lab, &[&one, &other, &third]);
    lab.station.send(&frame(one.mac(), STRANGER, 100), 10);
    lab.station.send(&frame(other.mac(), STRANGER, 100), 20);
    lab.station.send(&frame(third.mac(), STRANGER, 100), 30);
    third.link.send(&frame(one.mac(), third.mac(), 100), 7);
    other.link.send(&frame(third.mac(), other.mac(), 100), 9);
    bench.counts(&moves_and_verdicts(
        [
            ("delivered_frames meets1 cast=unicast path=external", 10),
            ("delivered_bytes meets1 cast=unicast path=external", 1_000),
            ("delivered_frames meets2 cast=unicast path=external", 20),
            ("delivered_bytes meets2 cast=unicast path=external", 2_000),
            ("delivered_frames meets3 cast=unicast path=external", 30),
            ("delivered_bytes meets3 cast=unicast path=external", 3_000),
            ("delivered_frames meets1 cast=unicast path=sibling", 7),
            ("delivered_bytes meets1 cast=unicast path=sibling", 700),
            ("transmitted_frames meets3 path=sibling", 7),
            ("transmitted_bytes meets3 path=sibling", 700),
            ("delivered_frames meets3 cast=unicast path=sibling", 9),
            ("delivered_bytes meets3 cast=unicast path=sibling", 900),
            ("transmitted_frames meets2 path=sibling", 9),
            ("transmitted_bytes meets2 path=sibling", 900),
        ],
        76,
        0,
        0,
    ));
}

#[test]
fn frames_to_the_parent_are_attempts_at_once_and_drops_four_seconds_later() {
    let lab = Lab::new(Place::Own, Upstream::Wire);
    let [bridge, vepa, private] = [
        ("bridge1", Mode::Bridge),
        ("vepa1", Mode::Vepa),
        ("private1", Mode::Private),
    ]
    .map(|(name, mode)| lab.add(name, mode));
    let mut bench = Bench::start(&lab, &[&bridge, &vepa, &private]);

    bridge.link.send(&frame(lab.parent.mac, bridge.mac(), 200), 1000);
    vepa.link.send(&frame(lab.parent.mac, vepa.mac(), 200), 20);
    private.link.send(&frame(lab.parent.mac, private.mac(), 200), 30);
    let mut expected = moves([
        (
            "isolation_attempts bridge1 direction=child_to_parent kind=unicast",
            1000,
        ),
        ("isolation_attempts vepa1 direction=child_to_parent kind=unicast", 20),
        ("isolation_attempts private1 direction=child_to_parent kind=unicast", 30),
        ("transmitted_frames bridge1 path=external", 1000),
        ("transmitted_bytes bridge1 path=external", 200_000),
        ("transmitted_frames vepa1 path=external", 20),
        ("transmitted_bytes vepa1 path=external", 4_000),
        ("transmitted_frames private1 path=external", 30),
        ("transmitted_bytes private1 path=external", 6_000),
    ]);
    bench.so_far(&expected);

    expected.extend(moves([
        ("dropped_frames bridge1 reason=child_to_parent", 1000),
        ("dropped_frames vepa1 reason=child_to_parent", 20),
        ("dropped_frames private1 reason=child_to_parent", 30),
        ("parent_isolation_lost_frames direction=child_to_parent", 1050),
    ]));
    bench.counts_settled(&expected);
}

#[test]
fn an_arp_request_for_the_parent_is_an_attempt_and_any_other_is_none() {
    let lab = Lab::new(Place::Named, Upstream::Switch);
    lab.parent.add_address(HOST, 24).unwrap();
    let [one, other] = ["macv1", "macv2"].map(|name| lab.add(name, Mode::Bridge));
    let mut bench = Bench::start(&lab, &[&one, &other]);

    one.link.send(&arp_request(one.mac(), ONE, HOST), 1);
    other.link.send(&arp_request(other.mac(), OTHER, NOBODY), 1);
    // A probe before an address is taken (RFC 5227), and an announcement after.
    other
        .link
        .send(&arp_request(other.mac(), Ipv4Addr::UNSPECIFIED, HOST), 1);
    other.link.send(&arp_request(other.mac(), OTHER, OTHER), 1);
    let mut expected = moves([
        ("isolation_attempts macv1 direction=child_to_parent kind=arp", 1),
        ("transmitted_frames macv1 path=external", 1),
        ("transmitted_bytes macv1 path=external", 60),
        ("transmitted_frames macv2 path=external", 3),
        ("transmitted_bytes macv2 path=external", 180),
    ]);
    bench.so_far(&expected);

    expected.extend(moves([
        ("dropped_frames macv1 reason=child_to_parent", 1),
        ("parent_isolation_lost_frames direction=child_to_parent", 1),
    ]));
    bench.counts_settled(&expected);
}

#[test]
fn an_answered_arp_request_is_no_loss() {
    let lab = Lab::new(Place::Named, Upstream::Wire);
    lab.parent.add_address(HOST, 24).unwrap();
    let [one, other] = ["macv1", "macv2"].map(|name| lab.add(name, Mode::Bridge));
    let mut bench = Bench::start(&lab, &[&one, &other]);

    // Both ask; a proxy on the wire answers one of them.
    one.link.send(&arp_request(one.mac(), ONE, HOST), 1);
    other.link.send(&arp_request(other.mac(), OTHER, HOST), 1);
    lab.station.send(&arp_reply(lab.station.mac, HOST, one.mac(), ONE), 1);
    bench.counts_settled(&moves_and_verdicts(
        [
            ("isolation_attempts macv1 direction=child_to_parent kind=arp", 1),
            ("isolation_attempts macv2 direction=child_to_parent kind=arp", 1),
            ("transmitted_frames macv1 path=external", 1),
            ("transmitted_bytes macv1 path=external", 60),
            ("transmitted_frames macv2 path=external", 1),
            ("transmitted_bytes macv2 path=external", 60),
            ("delivered_frames macv1 cast=unicast path=external", 1),
            ("delivered_bytes macv1 cast=unicast path=external", 60),
            ("dropped_frames macv2 reason=child_to_parent", 1),
            ("parent_isolation_lost_frames direction=child_to_parent", 1),
        ],
        1,
        0,
        0,
    ));
}

#[test]
fn neighbour_solicitations_count_as_arp_requests_do() {
    let (host, mine) = (
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 11),
    );
    let lab = Lab::new(Place::Named, Upstream::Wire);
    // The parent's own stack now sends multicast frames, which no count of ours takes for an attempt.
    lab.parent.enable_ipv6().unwrap();
    lab.parent.add_address(host, 64).unwrap();
    let [one, other] = ["macv1", "macv2"].map(|name| lab.add(name, Mode::Bridge));
    let mut bench = Bench::start(&lab, &[&one, &other]);

    one.link.send(&neighbour_solicitation(one.mac(), mine, host), 1);
    other.link.send(&neighbour_solicitation(other.mac(), mine, host), 1);
    lab.station
        .send(&neighbour_advertisement(lab.station.mac, host, other.mac(), mine), 1);
    // Detection of duplicate addresses, and an address that nobody has.
    other
        .link
        .send(&neighbour_solicitation(other.mac(), Ipv6Addr::UNSPECIFIED, host), 1);
    other
        .link
        .send(&neighbour_solicitation(other.mac(), mine, Ipv6Addr::LOCALHOST), 1);
    bench.counts_settled(&moves_and_verdicts(
        [
            ("isolation_attempts macv1 direction=child_to_parent kind=ndp", 1),
            ("isolation_attempts macv2 direction=child_to_parent kind=ndp", 1),
            ("transmitted_frames macv1 path=external", 1),
            ("transmitted_bytes macv1 path=external", 86),
            ("transmitted_frames macv2 path=external", 3),
            ("transmitted_bytes macv2 path=external", 86 + 78 + 86),
            ("delivered_frames macv2 cast=unicast path=external", 1),
            ("delivered_bytes macv2 cast=unicast path=external", 86),
            ("dropped_frames macv1 reason=child_to_parent", 1),
            ("parent_isolation_lost_frames direction=child_to_parent", 1),
        ],
        1,
        0,
        0,
    ));
}

/// The parent's address on the shim too, or on the parent alone: then the shim answers for it all the same (the host
/// answers for any address of its own on any interface).
#[test]
fn with_a_working_shim_nothing_is_lost() {
    for shim_has_the_address in [true, false] {
        let lab = Lab::new(Place::Named, Upstream::Switch);
        lab.parent.add_address(HOST, 24).unwrap();
        let one = lab.add("macv1", Mode::Bridge);
        one.link.add_address(ONE, 24).unwrap();
        let shim = lab.add_in(
            &lab.parent.namespace,
            "mac0",
            Mode::Bridge,
            lab.mac(),
            Arrival::Directly,
        );
        shim.link.add_route(ONE).unwrap();
        if shim_has_the_address {
            shim.link.add_address(HOST, 32).unwrap();
        } else {
            shim.link.accept_any_source().unwrap();
        }
        let bench = Bench::start(&lab, &[&one, &shim]);

        let timeout = patience(Duration::from_millis(500));
        let replies = traffic::ping(&one.link.namespace, HOST, 3, timeout).unwrap();
        assert_eq!(replies, 3, "the shim answers");
        sleep_until(Instant::now() + SETTLEMENT);
        let scrape = bench.agent.scrape();
        let labels = one.labels();
        let labels = labels.each_ref().map(|(name, value)| (*name, value.as_str()));
        let [parent, _, _] = labels;
        let arp = [("direction", "child_to_parent"), ("kind", "arp")];
        let attempts = scrape.count("macvlan_isolation_attempts_total", &[labels.as_slice(), &arp].concat());
        // An address of a sibling that it can reach is not the parent's alone.
        assert_eq!(attempts > 0, !shim_has_the_address, "{attempts} attempts");
        let dropped = whole(scrape.sum("macvlan_dropped_frames_total", &[parent]));
        assert_eq!(dropped, 0, "{}", scrape.listing("macvlan_dropped_frames_total"));
        let path = [("cast", "unicast"), ("path", "sibling")];
        let delivered = scrape.count("macvlan_delivered_frames_total", &[labels.as_slice(), &path].concat());
        assert!(delivered >= 3, "{delivered} delivered");
    }
}

#[test]
fn frames_of_the_parent_to_a_sub_interface_are_lost_too() {
    let lab = Lab::new(Place::Named, Upstream::Switch);
    lab.parent.add_address(HOST, 24).unwrap();
    let [one, other] = [("macv1", Mode::Bridge), ("macv2", Mode::Private)].map(|(name, mode)| lab.add(name, mode));
    one.link.add_address(ONE, 24).unwrap();
    other.link.add_address(OTHER, 24).unwrap();
    let mut bench = Bench::start(&lab, &[&one, &other]);

    lab.parent.send(&frame(one.mac(), lab.parent.mac, 200), 100);
    lab.parent.send(&arp_request(lab.parent.mac, HOST, OTHER), 1);
    lab.parent.send(&arp_request(lab.parent.mac, HOST, NOBODY), 1);
    let mut expected = moves([
        ("isolation_attempts macv1 direction=parent_to_child kind=unicast", 100),
        ("isolation_attempts macv2 direction=parent_to_child kind=arp", 1),
    ]);
    bench.so_far(&expected);
    expected.extend(moves([
        ("dropped_frames macv1 reason=parent_to_child", 100),
        ("dropped_frames macv2 reason=parent_to_child", 1),
        ("parent_isolation_lost_frames direction=parent_to_child", 101),
    ]));
    bench.counts_settled(&expected);
}

#[test]
fn siblings_that_are_not_both_in_bridge_mode_lose_what_the_switch_keeps() {
    let lab = Lab::new(Place::Named, Upstream::Switch);
    let [vepa, other_vepa, bridge, private, other_private] = [
        ("vepa1", Mode::Vepa),
        ("vepa2", Mode::Vepa),
        ("bridge1", Mode::Bridge),
        ("private1", Mode::Private),
        ("private2", Mode::Private),
    ]
    .map(|(name, mode)| lab.add(name, mode));
    let mut bench = Bench::start(&lab, &[&vepa, &other_vepa, &bridge, &private, &other_private]);

    vepa.link.send(&frame(other_vepa.mac(), vepa.mac(), 100), 100);
    bridge.link.send(&frame(vepa.mac(), bridge.mac(), 100), 50);
    private.link.send(&frame(other_private.mac(), private.mac(), 100), 30);
    let mut expected = moves([
        ("isolation_attempts vepa1 direction=sibling kind=unicast", 100),
        ("isolation_attempts bridge1 direction=sibling kind=unicast", 50),
        ("isolation_attempts private1 direction=sibling kind=unicast", 30),
        ("transmitted_frames vepa1 path=external", 100),
        ("transmitted_bytes vepa1 path=external", 10_000),
        ("transmitted_frames bridge1 path=external", 50),
        ("transmitted_bytes bridge1 path=external", 5_000),
        ("transmitted_frames private1 path=external", 30),
        ("transmitted_bytes private1 path=external", 3_000),
    ]);
    bench.so_far(&expected);
    expected.extend(moves([
        ("dropped_frames vepa1 reason=sibling_not_reflected", 100),
        ("dropped_frames bridge1 reason=sibling_not_reflected", 50),
        ("dropped_frames private1 reason=sibling_not_reflected", 30),
        ("parent_isolation_lost_frames direction=sibling", 180),
    ]));
    bench.counts_settled(&expected);
}

#[test]
fn what_a_hairpin_switch_returns_is_reflected_and_not_lost() {
    let lab = Lab::new(Place::Named, Upstream::Hairpin);
    let [vepa, other_vepa, bridge] = [("vepa1", Mode::Vepa), ("vepa2", Mode::Vepa), ("bridge1", Mode::Bridge)]
        .map(|(name, mode)| lab.add(name, mode));
    let mut bench = Bench::start(&lab, &[&vepa, &other_vepa, &bridge]);

    vepa.link.send(&frame(other_vepa.mac(), vepa.mac(), 100), 100);
    bridge.link.send(&frame(lab.parent.mac, bridge.mac(), 100), 50);
    lab.parent.send(&frame(bridge.mac(), lab.parent.mac, 100), 20);
    bench.counts_settled(&moves_and_verdicts(
        [
            ("isolation_attempts vepa1 direction=sibling kind=unicast", 100),
            ("reflected_frames vepa1 direction=sibling", 100),
            ("transmitted_frames vepa1 path=external", 100),
            ("transmitted_bytes vepa1 path=external", 10_000),
            ("delivered_frames vepa2 cast=unicast path=external", 100),
            ("delivered_bytes vepa2 cast=unicast path=external", 10_000),
            ("isolation_attempts bridge1 direction=child_to_parent kind=unicast", 50),
            ("reflected_frames bridge1 direction=child_to_parent", 50),
            ("transmitted_frames bridge1 path=external", 50),
            ("transmitted_bytes bridge1 path=external", 5_000),
            ("isolation_attempts bridge1 direction=parent_to_child kind=unicast", 20),
            ("reflected_frames bridge1 direction=parent_to_child", 20),
            ("delivered_frames bridge1 cast=unicast path=external", 20),
            ("delivered_bytes bridge1 cast=unicast path=external", 2_000),
        ],
        120,
        50,
        0,
    ));
}

#[test]
fn passthru_takes_every_unicast_frame_and_drops_it_while_down() {
    let lab = Lab::new(Place::Named, Upstream::Wire);
    let passthru = lab.add("pass1", Mode::Passthru);
    let mut bench = Bench::start(&lab, &[&passthru]);

    lab.station.send(&frame(lab.parent.mac, STRANGER, 100), 100);
    lab.station
        .send(&frame(Mac([0x02, 0x55, 0, 0, 0, 1]), STRANGER, 100), 100);
    bench.counts(&moves_and_verdicts(
        [
            ("delivered_frames pass1 cast=unicast path=external", 200),
            ("delivered_bytes pass1 cast=unicast path=external", 20_000),
        ],
        200,
        0,
        0,
    ));

    // It shares its MAC with the parent: nothing it sends can be told to be for the parent.
    passthru.link.send(&frame(STRANGER, passthru.mac(), 100), 40);
    bench.counts_settled(&moves([
        ("transmitted_frames pass1 path=external", 40),
        ("transmitted_bytes pass1 path=external", 4_000),
    ]));

    passthru.link.set_up(false).unwrap();
    bench.await_up(&passthru, 0);
    lab.station.send(&frame(lab.parent.mac, STRANGER, 100), 50);
    bench.counts(&moves_and_verdicts(
        [("dropped_frames pass1 reason=interface_down", 50)],
        0,
        0,
        50,
    ));

    passthru.link.set_up(true).unwrap();
    bench.await_up(&passthru, 1);
    lab.station.send(&frame(lab.parent.mac, STRANGER, 100), 10);
    bench.counts(&moves_and_verdicts(
        [
            ("delivered_frames pass1 cast=unicast path=external", 10),
            ("delivered_bytes pass1 cast=unicast path=external", 1_000),
        ],
        10,
        0,
        0,
    ));
}

#[test]
fn frames_for_one_that_is_down_are_dropped_for_that_reason() {
    let lab = Lab::new(Place::Named, Upstream::Switch);
    let [one, other] = ["macv1", "macv2"].map(|name| lab.add(name, Mode::Bridge));
    let mut bench = Bench::start(&lab, &[&one, &other]);
    other.link.set_up(false).unwrap();
    bench.await_up(&other, 0);

    // From the wire: the handler does not know it any more and passes the frames on to the parent.
    lab.station.send(&frame(other.mac(), STRANGER, 100), 100);
    bench.counts(&moves_and_verdicts(
        [("dropped_frames macv2 reason=interface_down", 100)],
        0,
        100,
        0,
    ));

    // From a sibling: macvlan does not find it either and sends the frames to the wire.
    one.link.send(&frame(other.mac(), one.mac(), 100), 50);
    bench.counts_settled(&moves([
        ("dropped_frames macv2 reason=interface_down", 50),
        ("transmitted_frames macv1 path=external", 50),
        ("transmitted_bytes macv1 path=external", 5_000),
    ]));

    other.link.set_up(true).unwrap();
    bench.await_up(&other, 1);
    one.link.send(&frame(other.mac(), one.mac(), 100), 10);
    bench.counts(&moves_and_verdicts(
        [
            ("delivered_frames macv2 cast=unicast path=sibling", 10),
            ("delivered_bytes macv2 cast=unicast path=sibling", 1_000),
            ("transmitted_frames macv1 path=sibling", 10),
            ("transmitted_bytes macv1 path=sibling", 1_000),
        ],
        10,
        0,
        0,
    ));
}

#[test]
fn multicast_counts_as_the_kernel_delivers_it() {
    let lab = Lab::new(Place::Named, Upstream::Wire);
    let [one, other] = [("macv1", Mode::Bridge), ("macv2", Mode::Vepa)].map(|(name, mode)| lab.add(name, mode));
    let down = lab
        .add_down(
            &lab.namespace("down"),
            "macv3",
            Mode::Bridge,
            lab.mac(),
            Arrival::Directly,
        )
        .unwrap();
    let bench = Bench::start(&lab, &[&one, &other, &down]);
    // Their own stacks may have received something before the agent came: only what comes now counts.
    lab.station.send(&frame(one.mac(), STRANGER, 100), 10);
    lab.station.send(&frame(BROADCAST, STRANGER, 200), 30);
    for (sub, frames) in [(&one, 30), (&other, 30), (&down, 0)] {
        let labels = sub.labels();
        let [parent, interface, netns] = labels.each_ref().map(|(name, value)| (*name, value.as_str()));
        let all = [parent, interface, netns, ("cast", "multicast"), ("path", "any")];
        let count = |scrape: &Scrape, name| scrape.count(name, &all);
        eventually(patience(Duration::from_secs(1)), || {
            let scrape = bench.agent.scrape();
            let moved = ["macvlan_delivered_frames_total", "macvlan_delivered_bytes_total"]
                .map(|name| count(&scrape, name) - count(&bench.before, name));
            if moved == [frames, frames * 200] {
                Ok(())
            } else {
                Err(format!("{}: {moved:?}, not {frames} frames", sub.link.name))
            }
        });
    }
}
