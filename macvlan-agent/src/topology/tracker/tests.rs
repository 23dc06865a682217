use std::{net::IpAddr, time::Duration};

use super::*;
use crate::topology::{
    inventory::{Inventory, Parent, SubInterface},
    link::{Kind, Macvlan, Mode},
};

const HOST: u32 = 1;
const NET1: u32 = 2;
const NET2: u32 = 3;

/// A tracker and the kernel it listens to.
struct World {
    tracker: Tracker,
    now: Instant,
    /// What ids mean: (where, id) to namespace.
    kernel: HashMap<(u32, i32), u32>,
    known: Vec<u32>,
}

impl World {
    /// The host with a parent `eth0` (2), and two namespaces where id 0 is the host.
    fn new() -> Self {
        let mut world = Self {
            tracker: Tracker::new(HOST),
            now: Instant::now(),
            kernel: HashMap::from([((NET1, 0), HOST), ((NET2, 0), HOST), ((NET2, 1), NET1)]),
            known: Vec::new(),
        };
        for (netns, label) in [(HOST, "host"), (NET1, "net1"), (NET2, "net2")] {
            world.add(netns, label);
        }
        world.event(HOST, Event::Link(link(2, "eth0")));
        world
    }

    fn add(&mut self, netns: u32, label: &str) {
        self.tracker.add(netns, label);
        self.known.push(netns);
        for (asked, nsid) in self.tracker.unresolved() {
            if self.kernel.get(&(asked, nsid)) == Some(&netns) {
                self.tracker.resolved(asked, nsid, Some(netns), self.now);
            }
        }
        self.event(netns, Event::DumpBegins);
        self.event(netns, Event::DumpEnds { sound: true });
    }

    fn event(&mut self, netns: u32, event: Event) {
        self.tracker.apply(netns, event, self.now);
        for (asked, nsid) in self.tracker.wanted() {
            let target = self
                .kernel
                .get(&(asked, nsid))
                .filter(|target| self.known.contains(target))
                .copied();
            self.tracker.resolved(asked, nsid, target, self.now);
        }
        // What was made before must not outlive its reasons.
        let inventory = self.tracker.inventory();
        self.check(&inventory);
    }

    /// An inventory is what it would be if nothing of it had been made before.
    fn check(&mut self, inventory: &Inventory) {
        self.tracker.made = SubInterfaces::default();
        self.tracker.standing = BTreeMap::new();
        for space in self.tracker.spaces.values_mut() {
            space.ipv4 = None;
        }
        self.tracker.touch_everything();
        assert!(
            self.tracker.inventory() == *inventory,
            "something made before is out of date"
        );
    }

    fn subs(&mut self) -> Vec<SubInterface> {
        let inventory = self.tracker.inventory();
        let subs = inventory.sub_interfaces.values();
        subs.map(|sub| SubInterface::clone(sub)).collect()
    }

    fn only(&mut self) -> SubInterface {
        let mut subs = self.subs();
        assert_eq!(subs.len(), 1, "{subs:?}");
        subs.remove(0)
    }

    fn parents(&mut self) -> Vec<Parent> {
        self.tracker.inventory().parents.into_values().collect()
    }
}

fn link(ifindex: u32, name: &str) -> LinkMessage {
    LinkMessage {
        ifindex,
        name: name.to_owned(),
        mac: Some([2, 0, 0, 0, 0, 2]),
        up: true,
        oper_state: 6,
        mtu: 1500,
        promiscuity: 0,
        hardware: 1,
        kind: None,
        link: None,
        link_nsid: None,
        nsid_is_askers: false,
        macvlan: None,
        new_netns: false,
        new_ifindex: None,
    }
}

/// A sub-interface of link 2, which is in the same namespace or where `nsid` says.
fn macv(ifindex: u32, name: &str, nsid: Option<i32>) -> LinkMessage {
    let macvlan = Macvlan {
        kind: Kind::Macvlan,
        mode: Mode::Bridge,
        keeps_source: false,
        queue_asked: Some(1000),
        queue_used: None,
    };
    LinkMessage {
        mac: Some([2, 0, 0, 0, 1, 0]),
        kind: Some("macvlan".to_owned()),
        link: Some(2),
        link_nsid: nsid,
        macvlan: Some(macvlan),
        ..link(ifindex, name)
    }
}

fn moving(message: LinkMessage, new_ifindex: u32) -> Event {
    Event::LinkGone(LinkMessage {
        new_netns: true,
        new_ifindex: Some(new_ifindex),
        ..message
    })
}

fn address(ifindex: u32, ip: &str, prefix: u8) -> Address {
    let ip = ip.parse().unwrap();
    Address {
        ifindex,
        ip,
        peer: ip,
        prefix,
    }
}

#[test]
fn a_sub_interface_brings_its_parent_and_takes_it_along() {
    let mut world = World::new();
    assert!(world.parents().is_empty());
    world.event(HOST, Event::Link(macv(7, "macv1", None)));
    let sub = world.only();
    assert_eq!(
        (sub.key, sub.parent),
        (
            LinkKey {
                netns: HOST,
                ifindex: 7
            },
            LinkKey {
                netns: HOST,
                ifindex: 2
            }
        )
    );
    assert_eq!(
        (sub.name.as_str(), sub.netns.as_str(), sub.mode),
        ("macv1", "host", Mode::Bridge)
    );
    let parent = &world.parents()[0];
    assert_eq!((parent.display.as_str(), parent.kind.as_str()), ("eth0", "physical"));
    world.event(HOST, Event::LinkGone(macv(7, "macv1", None)));
    assert_eq!(
        world.tracker.inventory().sub_interfaces.len() + world.parents().len(),
        0
    );
}

#[test]
fn an_incarnation_outlives_name_mac_mode_and_address() {
    let mut world = World::new();
    world.event(NET1, Event::Link(macv(2, "macv1", Some(0))));
    let before = world.only();
    world.event(NET1, Event::Link(macv(2, "eth0", Some(0))));
    world.event(
        NET1,
        Event::Link(LinkMessage {
            mac: Some([2, 9, 9, 9, 9, 9]),
            ..macv(2, "eth0", Some(0))
        }),
    );
    let mut changed = LinkMessage {
        mac: Some([2, 9, 9, 9, 9, 9]),
        up: false,
        mtu: 1400,
        ..macv(2, "eth0", Some(0))
    };
    changed.macvlan.as_mut().unwrap().mode = Mode::Vepa;
    world.event(NET1, Event::Link(changed));
    let after = world.only();
    assert_eq!(before.id, after.id);
    assert_eq!((after.name.as_str(), after.mac), ("eth0", [2, 9, 9, 9, 9, 9]));
    assert_eq!((after.mode, after.up, after.mtu), (Mode::Vepa, false, 1400));
}

#[test]
fn a_link_made_again_is_another() {
    let mut world = World::new();
    world.event(HOST, Event::Link(macv(7, "macv1", None)));
    let before = world.only().id;
    world.event(HOST, Event::LinkGone(macv(7, "macv1", None)));
    world.event(HOST, Event::Link(macv(7, "macv1", None)));
    assert_ne!(before, world.only().id);
    let before = world.only().id;
    world.event(HOST, Event::LinkGone(macv(7, "macv1", None)));
    world.event(NET1, Event::Link(macv(7, "macv1", Some(0))));
    assert_ne!(before, world.only().id, "ended here and made there is not a move");
}

#[test]
fn a_move_keeps_the_incarnation_when_the_end_is_read_first() {
    let mut world = World::new();
    world.event(HOST, Event::Link(macv(7, "macv1", None)));
    let before = world.only().id;
    world.event(HOST, moving(macv(7, "macv1", None), 3));
    assert!(world.subs().is_empty());
    world.now += Duration::from_millis(1900);
    world.event(NET1, Event::Link(macv(3, "eth0", Some(0))));
    let after = world.only();
    assert_eq!(
        (after.id, after.key, after.netns.as_str()),
        (
            before,
            LinkKey {
                netns: NET1,
                ifindex: 3
            },
            "net1"
        )
    );
}

#[test]
fn a_move_keeps_the_incarnation_when_the_beginning_is_read_first() {
    let mut world = World::new();
    world.event(HOST, Event::Link(macv(7, "macv1", None)));
    let before = world.only().id;
    world.event(NET1, Event::Link(macv(7, "macv1", Some(0))));
    assert_eq!(world.subs().len(), 2);
    world.event(HOST, moving(macv(7, "macv1", None), 7));
    let after = world.only();
    assert_eq!((after.id, after.key.netns), (before, NET1));
    world.event(HOST, Event::Link(macv(8, "macv2", None)));
    assert!(
        world.subs()[1].id > before + 1,
        "an id that was given for a moment is not given again"
    );
}

#[test]
fn a_move_back_and_forth_keeps_the_incarnation() {
    let mut world = World::new();
    world.event(HOST, Event::Link(macv(7, "macv1", None)));
    let before = world.only().id;
    for _ in 0..3 {
        world.event(HOST, moving(macv(7, "macv1", None), 3));
        world.event(NET1, Event::Link(macv(3, "macv1", Some(0))));
        assert_eq!(world.only().id, before);
        world.event(HOST, Event::Link(macv(7, "macv1", None)));
        world.event(NET1, moving(macv(3, "macv1", Some(0)), 7));
        assert_eq!(world.only().id, before);
    }
}

#[test]
fn of_several_that_move_each_is_found_by_its_mac() {
    let mut world = World::new();
    let mac = |n: u8, message| LinkMessage {
        mac: Some([2, 0, 0, 0, 1, n]),
        ..message
    };
    for n in 0..5 {
        world.event(
            HOST,
            Event::Link(mac(n, macv(10 + u32::from(n), &format!("m{n}"), None))),
        );
    }
    let before: BTreeMap<[u8; 6], u64> = world.subs().into_iter().map(|sub| (sub.mac, sub.id)).collect();
    for n in 0..5 {
        world.event(HOST, moving(mac(n, macv(10 + u32::from(n), &format!("m{n}"), None)), 3));
    }
    for n in (0..5).rev() {
        // The same index and name in every namespace would not tell them apart.
        world.event(
            if n % 2 == 0 { NET1 } else { NET2 },
            Event::Link(mac(n, macv(3 + u32::from(n), "eth0", Some(0)))),
        );
    }
    let after: BTreeMap<[u8; 6], u64> = world.subs().into_iter().map(|sub| (sub.mac, sub.id)).collect();
    assert_eq!(before, after);
}

#[test]
fn a_move_that_ends_too_late_is_a_new_link() {
    let mut world = World::new();
    world.event(HOST, Event::Link(macv(7, "macv1", None)));
    let before = world.only().id;
    world.event(HOST, moving(macv(7, "macv1", None), 3));
    world.now += Duration::from_millis(2100);
    world.event(NET1, Event::Link(macv(3, "macv1", Some(0))));
    assert_ne!(world.only().id, before);
}

#[test]
fn a_parent_may_be_in_a_third_namespace() {
    let mut world = World::new();
    world.event(
        NET1,
        Event::Link(LinkMessage {
            kind: Some("veth".to_owned()),
            ..link(2, "v0")
        }),
    );
    world.event(NET2, Event::Link(macv(2, "macv1", Some(1))));
    assert_eq!(
        world.only().parent,
        LinkKey {
            netns: NET1,
            ifindex: 2
        }
    );
    let parent = &world.parents()[0];
    assert_eq!(
        (parent.display.as_str(), parent.netns.as_str(), parent.kind.as_str()),
        ("net1/v0", "net1", "veth")
    );
}

#[test]
fn a_parent_in_an_unknown_namespace_is_waited_for() {
    let mut world = World::new();
    world.kernel.insert((NET2, 4), 99);
    world.event(NET2, Event::Link(macv(2, "macv1", Some(4))));
    world.event(NET2, Event::Link(macv(3, "macv2", Some(-1))));
    assert!(world.subs().is_empty() && world.parents().is_empty());
    world.add(99, "late");
    assert!(world.subs().is_empty(), "its parent has not been read yet");
    world.event(99, Event::Link(link(2, "v0")));
    assert_eq!(world.only().name, "macv1");
    assert_eq!(world.parents()[0].display, "late/v0");
    world.tracker.remove(99);
    assert!(world.subs().is_empty() && world.parents().is_empty());
}

#[test]
fn an_id_may_come_to_mean_another_namespace() {
    let mut world = World::new();
    world.event(NET1, Event::Link(link(2, "v0")));
    world.event(NET2, Event::Link(macv(5, "macv1", Some(1))));
    world.event(NET2, Event::LinkGone(macv(5, "macv1", Some(1))));
    world.event(NET2, Event::NsidGone(1));
    world.kernel.insert((NET2, 1), HOST);
    world.event(NET2, Event::Link(macv(6, "macv2", Some(1))));
    assert_eq!(world.only().parent.netns, HOST);
}

#[test]
fn a_parent_that_goes_takes_its_sub_interfaces_along() {
    let mut world = World::new();
    world.event(NET1, Event::Link(macv(2, "macv1", Some(0))));
    world.event(HOST, Event::LinkGone(link(2, "eth0")));
    assert!(world.subs().is_empty() && world.parents().is_empty());
    world.event(NET1, Event::LinkGone(macv(2, "macv1", Some(0))));
    world.event(HOST, Event::Link(link(2, "eth0")));
    assert!(world.subs().is_empty());
}

#[test]
fn a_parent_that_moves_has_its_sub_interfaces_read_again() {
    let mut world = World::new();
    world.event(HOST, Event::Link(macv(7, "macv1", None)));
    world.event(NET1, Event::Link(macv(2, "macv2", Some(0))));
    let before: Vec<u64> = world.subs().iter().map(|sub| sub.id).collect();
    world.event(HOST, moving(link(2, "eth0"), 2));
    world.event(NET2, Event::Link(link(2, "eth0")));
    assert!(world.subs().is_empty());
    assert_eq!(world.tracker.restless(), BTreeSet::from([HOST, NET1]));
    assert!(world.tracker.restless().is_empty());
    world.kernel.extend([((HOST, 1), NET2), ((NET1, 1), NET2)]);
    world.event(HOST, Event::Link(macv(7, "macv1", Some(1))));
    world.event(NET1, Event::Link(macv(2, "macv2", Some(1))));
    assert_eq!(world.subs().iter().map(|sub| sub.id).collect::<Vec<_>>(), before);
    assert_eq!(world.parents()[0].display, "net2/eth0");
    world.event(HOST, moving(link(3, "eth1"), 3));
    assert!(
        world.tracker.restless().is_empty(),
        "a link that is no parent disturbs nobody"
    );
}

#[test]
fn a_namespace_that_goes_takes_all_along() {
    let mut world = World::new();
    world.event(NET1, Event::Link(macv(2, "macv1", Some(0))));
    let before = world.only().id;
    world.tracker.remove(NET1);
    assert!(world.subs().is_empty() && world.parents().is_empty());
    world.event(NET1, Event::Link(macv(2, "macv1", Some(0))));
    assert!(
        world.subs().is_empty(),
        "nothing is heard of a namespace that is not known"
    );
    world.add(NET1, "other");
    world.event(NET1, Event::Link(macv(2, "macv1", Some(0))));
    assert_ne!(world.only().id, before);
}

#[test]
fn addresses_come_and_go() {
    let mut world = World::new();
    world.event(HOST, Event::Address(address(1, "127.0.0.1", 8)));
    world.event(HOST, Event::Address(address(2, "198.51.100.1", 24)));
    world.event(HOST, Event::Address(address(2, "2001:db8::1", 64)));
    world.event(HOST, Event::Address(address(9, "192.0.2.1", 24)));
    world.event(NET1, Event::Address(address(2, "198.51.100.7", 24)));
    world.event(NET1, Event::Address(address(2, "198.51.100.7", 32)));
    assert!(world.tracker.inventory().host_ipv4.is_empty());
    world.event(NET1, Event::Link(macv(2, "macv1", Some(0))));
    let inventory = world.tracker.inventory();
    let host: Vec<String> = inventory.host_ipv4[&HOST].iter().map(ToString::to_string).collect();
    assert_eq!(
        (inventory.host_ipv4.len(), host),
        (1, vec!["192.0.2.1".to_owned(), "198.51.100.1".to_owned()])
    );
    assert_eq!(world.parents()[0].addresses.len(), 2);
    assert_eq!(world.only().addresses, ["198.51.100.7".parse::<IpAddr>().unwrap()]);
    world.event(NET1, Event::AddressGone(address(2, "198.51.100.7", 24)));
    assert_eq!(world.only().addresses.len(), 1, "it is there with another prefix too");
    world.event(NET1, Event::AddressGone(address(2, "198.51.100.7", 32)));
    assert!(world.only().addresses.is_empty());
}

#[test]
fn a_sound_dump_removes_what_it_does_not_tell_of() {
    let mut world = World::new();
    world.event(HOST, Event::Link(macv(7, "macv1", None)));
    world.event(
        HOST,
        Event::Link(LinkMessage {
            mac: Some([2, 0, 0, 0, 1, 1]),
            ..macv(8, "macv2", None)
        }),
    );
    world.event(HOST, Event::Address(address(7, "198.51.100.7", 24)));
    world.event(HOST, Event::Address(address(7, "198.51.100.8", 24)));
    let before = world.subs();
    world.event(HOST, Event::Resync);
    assert_eq!(world.subs(), before, "nothing vanishes meanwhile");
    for sound in [false, true] {
        world.event(HOST, Event::DumpBegins);
        world.event(HOST, Event::Link(link(2, "eth0")));
        world.event(HOST, Event::Link(macv(7, "macv1", None)));
        world.event(HOST, Event::Address(address(7, "198.51.100.8", 24)));
        world.event(HOST, Event::DumpEnds { sound });
        assert_eq!(world.subs().len(), if sound { 1 } else { 2 });
    }
    assert_eq!((world.only().id, world.only().addresses.len()), (before[0].id, 1));
    assert_eq!(world.tracker.inventory().netlink_resyncs, 1);
}

#[test]
fn a_move_of_which_the_end_was_lost_keeps_the_incarnation() {
    let mut world = World::new();
    world.event(HOST, Event::Link(macv(7, "macv1", None)));
    let before = world.only().id;
    world.event(NET1, Event::Link(macv(7, "macv1", Some(0))));
    world.event(HOST, Event::Resync);
    world.event(HOST, Event::DumpBegins);
    world.event(HOST, Event::Link(link(2, "eth0")));
    world.event(HOST, Event::DumpEnds { sound: true });
    assert_eq!((world.only().id, world.only().key.netns), (before, NET1));
}

#[test]
fn another_link_with_the_same_index_is_not_the_same() {
    let mut world = World::new();
    world.event(HOST, Event::Link(macv(7, "macv1", None)));
    let before = world.only().id;
    world.event(
        HOST,
        Event::Link(LinkMessage {
            mac: Some([2, 7, 7, 7, 7, 7]),
            ..macv(7, "macv9", None)
        }),
    );
    assert_ne!(world.only().id, before);
    world.event(HOST, Event::Link(link(7, "macv9")));
    assert!(world.subs().is_empty());
}

#[test]
fn the_broadcast_queue_is_what_was_heard_last() {
    let mut world = World::new();
    let queue = |ifindex, asked, used| {
        let mut message = macv(ifindex, &format!("m{ifindex}"), None);
        let macvlan = message.macvlan.as_mut().unwrap();
        (macvlan.queue_asked, macvlan.queue_used) = (Some(asked), Some(used));
        message
    };
    let limit = |world: &mut World| world.parents()[0].broadcast_queue_limit;
    world.event(HOST, Event::Link(queue(7, 1000, 1000)));
    assert_eq!(limit(&mut world), Some(1000));
    world.event(HOST, Event::Link(queue(8, 5000, 5000)));
    assert_eq!(limit(&mut world), Some(5000));
    // The kernel shortens the queue without a word.
    world.event(HOST, Event::LinkGone(queue(8, 5000, 5000)));
    assert_eq!(limit(&mut world), Some(1000));
}

#[test]
fn a_namespace_where_links_are_made_all_the_time_is_read_in_the_end() {
    let mut world = World::new();
    world.tracker.add(99, "busy");
    for _ in 0..PATIENCE {
        assert!(!world.tracker.is_read(99));
        world.event(99, Event::DumpBegins);
        world.event(99, Event::DumpEnds { sound: false });
    }
    assert!(world.tracker.is_read(99));
}

#[test]
fn an_id_in_a_dump_is_one_of_the_own_namespace() {
    let mut world = World::new();
    world.kernel.insert((HOST, 4), HOST);
    world.event(
        NET1,
        Event::Link(LinkMessage {
            nsid_is_askers: true,
            ..macv(2, "macv1", Some(4))
        }),
    );
    assert_eq!(
        world.only().parent,
        LinkKey {
            netns: HOST,
            ifindex: 2
        }
    );
    // The same link, as it is told of when it changes.
    world.event(NET1, Event::Link(macv(2, "macv1", Some(0))));
    assert_eq!(world.only().id, 1);
    // One of a namespace that is found later.
    let dumped = LinkMessage {
        nsid_is_askers: true,
        mac: Some([2, 0, 0, 0, 1, 1]),
        ..macv(3, "macv2", Some(5))
    };
    world.event(NET1, Event::Link(dumped));
    assert_eq!(world.subs().len(), 1);
    world.kernel.insert((HOST, 5), 9);
    world.add(9, "late");
    world.event(9, Event::Link(link(2, "eth0")));
    assert_eq!(world.subs().len(), 2);
}
