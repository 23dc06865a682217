//! What cannot be right is refused with a sentence that says where, what and what instead, and nothing is changed.

use macvlan_agent_tests::{
    lab::{Lab, Place, Upstream},
    manage::{Desk, ip_text, picture, try_ip},
    netns::Namespace,
};

/// Each: lines of a sub-interface on PARENT in INSIDE, the line that is named, and what is said of it.
const SUB_INTERFACES: &[(&str, usize, &[&str])] = &[
    (
        "mode: bridged",
        4,
        &["\"bridged\" is no mode", "private, vepa, bridge, passthru, source"],
    ),
    ("mode: bridge\nkind: ipvlan", 5, &["\"ipvlan\"", "macvlan, macvtap"]),
    (
        "mode: bridge\nmac: 01:00:5e:00:00:01",
        5,
        &["sub_interfaces[0].mac", "bit 0", "02:00:5e:00:00:01"],
    ),
    ("mode: bridge\nmac: 00:00:00:00:00:00", 5, &["the empty MAC"]),
    (
        "mode: bridge\nmac: 52-76-5f-92-85-8d",
        5,
        &["is no MAC", "52:76:5f:92:85:8d"],
    ),
    ("mode: passthru\nmac: 52:76:5f:92:85:8d", 5, &["the parent's MAC"]),
    (
        "mode: bridge\nsource_macs: [52:76:5f:92:85:8d]",
        5,
        &["only mode source", "say mode: source"],
    ),
    ("mode: source\nsource_macs: [33:33:00:00:00:01]", 5, &["bit 0"]),
    (
        "mode: bridge\nflags: [nopromisc]",
        5,
        &["flags[0]", "mode passthru only"],
    ),
    ("mode: passthru\nflags: [nodst]", 5, &["flags[0]", "mode source only"]),
    ("mode: bridge\nflags: [promisc]", 5, &["nopromisc, nodst"]),
    ("mode: bridge\nmtu: 60", 5, &["60 is no MTU", "68 to 65535"]),
    ("mode: bridge\nmtu: 9000", 5, &["mtu 9000 is over that of"]),
    (
        "mode: bridge\nmtu: 1200\naddresses: [\"2001:db8::1/64\"]",
        5,
        &["no MTU with IPv6", "1280"],
    ),
    ("mode: bridge\nmtu: large", 5, &["sub_interfaces[0].mtu"]),
    (
        "mode: bridge\nbc_cutoff: -2",
        5,
        &["bc_cutoff", "-1 for no queue at all"],
    ),
    ("mode: bridge\nbc_queue_len: -1", 5, &["bc_queue_len"]),
    (
        "mode: bridge\naddresses: [198.51.100.9]",
        5,
        &["no prefix length", "198.51.100.9/24"],
    ),
    (
        "mode: bridge\naddresses: [198.51.100.9/33]",
        5,
        &["\"33\" is no prefix length", "0 to 32"],
    ),
    ("mode: bridge\naddresses: [198.51.100.300/24]", 5, &["is no address"]),
    (
        "mode: bridge\naddresses: [198.51.100.0/24]",
        5,
        &["address of the network itself"],
    ),
    ("mode: bridge\naddresses: [198.51.100.255/24]", 5, &["broadcast"]),
    ("mode: bridge\naddresses: [127.0.0.2/8]", 5, &["loopback"]),
    ("mode: bridge\naddresses: [224.0.0.5/24]", 5, &["expected a host's"]),
    (
        "mode: bridge\naddresses: [198.51.100.9/24, 198.51.100.9/25]",
        5,
        &["twice"],
    ),
    ("mode: bridge\ngateway: 198.51.100.1", 5, &["in no network"]),
    (
        "mode: bridge\naddresses: [198.51.100.9/24]\ngateway: 198.51.100.9",
        6,
        &["own address"],
    ),
    (
        "mode: bridge\naddresses: [198.51.100.9/24]\ngateway: [198.51.100.1, 198.51.100.2]",
        6,
        &["at most one of each"],
    ),
    (
        "mode: bridge\naddresses: [198.51.100.9/24]\nroutes: [{to: 203.0.113.1/24, via: 198.51.100.1}]",
        6,
        &["bits behind its prefix", "203.0.113.0/24"],
    ),
    (
        "mode: bridge\naddresses: [198.51.100.9/24]\nroutes: [{to: 203.0.113.0/24, via: 192.0.2.1}]",
        6,
        &["routes[0].via", "in no network"],
    ),
    (
        "mode: bridge\naddresses: [198.51.100.9/24]\nroutes: [{to: 203.0.113.0/24, via: \"fe80::1\"}]",
        6,
        &["routes[0].via", "another family"],
    ),
    (
        "mode: bridge\naddresses: [198.51.100.9/24]\ngateway: 198.51.100.1\nroutes: [{to: 0.0.0.0/0}]",
        7,
        &["gateway makes this route already"],
    ),
    (
        "mode: bridge\naddresses: [198.51.100.9/24]\ngateway: 198.51.100.1\nup: false",
        7,
        &["up: true"],
    ),
    (
        "mode: bridge\nkind: macvtap\naddresses: [198.51.100.9/24]",
        6,
        &["character device", "kind: macvlan"],
    ),
    ("mode: bridge\nalias: \"\"", 5, &["1 to 200 bytes"]),
    ("mode: bridge\nalias: \"a\\u001b[2J\"", 5, &["control characters"]),
    ("mode: bridge\ncolour: red", 5, &["colour"]),
    ("mode: bridge\nup: maybe", 5, &["sub_interfaces[0].up"]),
    ("mtu: 1400", 2, &["mode"]),
];

/// Each: a whole configuration, with PARENT and INSIDE in it, the line that is named, and what is said of it.
const CONFIGURATIONS: &[(&str, usize, &[&str])] = &[
    (
        "sub_interfaces:\n  - {name: \"a b\", parent: PARENT, mode: bridge}",
        2,
        &["' ' in it", "1 to 15 bytes"],
    ),
    (
        "sub_interfaces:\n  - {name: sixteen-bytes-xy, parent: PARENT, mode: bridge}",
        2,
        &["has 16 bytes"],
    ),
    (
        "sub_interfaces:\n  - {name: .., parent: PARENT, mode: bridge}",
        2,
        &["name of a directory"],
    ),
    (
        "sub_interfaces:\n  - {name: a, parent: lo, mode: bridge}",
        2,
        &["the loopback cannot be a parent"],
    ),
    (
        "sub_interfaces:\n  - {name: PARENT, parent: PARENT, mode: bridge}",
        2,
        &["the parent's own name"],
    ),
    (
        "sub_interfaces:\n  - {name: a, parent: PARENT, mode: bridge, netns: a/b}",
        2,
        &["neither a name nor an absolute path"],
    ),
    (
        "sub_interfaces:\n  - {name: a, parent: PARENT, mode: bridge, netns: {pid: 0}}",
        2,
        &["a number above 0"],
    ),
    (
        "sub_interfaces:\n  - {name: a, parent: PARENT, mode: bridge}\n  - {name: a, parent: PARENT, mode: vepa}",
        3,
        &["sub_interfaces[1].name", "has the name a", "already"],
    ),
    (
        "sub_interfaces:\n  - {name: a, parent: PARENT, mode: passthru}\n  - {name: b, parent: PARENT, mode: passthru}",
        3,
        &["sub_interfaces[1].mode", "takes its parent alone"],
    ),
    (
        "sub_interfaces:\n  - {name: a, parent: PARENT, mode: bridge, bc_cutoff: 1}\n  - {name: b, parent: PARENT, \
         mode: bridge, bc_cutoff: 2}",
        3,
        &["which has only one"],
    ),
    (
        "sub_interfaces:\n  - {name: a, parent: PARENT, mode: bridge, mac: 52:76:5f:92:85:8d}\n  - {name: b, parent: \
         PARENT, mode: bridge, mac: 52:76:5f:92:85:8d}",
        3,
        &["has this MAC"],
    ),
    (
        "sub_interfaces:\n  - {name: a, parent: PARENT, mode: bridge, addresses: [198.51.100.9/24]}\n  - {name: b, parent: \
         PARENT, mode: bridge, addresses: [198.51.100.9/24]}",
        3,
        &["the same address on the same parent"],
    ),
    (
        "parents:\n  - {name: v, vlan: {parent: PARENT, id: 4095}}",
        2,
        &["4095 is no VLAN", "1 to 4094"],
    ),
    (
        "parents:\n  - {name: v, vlan: {parent: v, id: 5}}",
        2,
        &["cannot stand on itself"],
    ),
    (
        "parents:\n  - {name: v, vlan: {parent: lo, id: 5}}",
        2,
        &["the loopback carries no VLANs"],
    ),
    (
        "shims:\n  - {parent: PARENT, name: s, address: 198.51.100.250/24}",
        2,
        &["expected 198.51.100.250/32"],
    ),
    (
        "shims:\n  - {parent: PARENT, name: s, routes: [0.0.0.0/0]}",
        2,
        &["would cut the host off"],
    ),
    (
        "shims:\n  - {parent: lo, name: s}",
        2,
        &["the loopback cannot be a parent"],
    ),
    (
        "shims:\n  - {parent: PARENT, name: s}\n  - {parent: PARENT, name: t}",
        3,
        &["one shim for each parent"],
    ),
    (
        "sub_interfaces:\n  - {name: a, parent: PARENT, mode: passthru}\nshims:\n  - {parent: PARENT, name: s}",
        4,
        &["takes PARENT alone in mode passthru"],
    ),
    (
        "observe: {parents: {include: [\"eth[\"]}}",
        1,
        &["is no shell pattern", "eth*"],
    ),
    ("limits: {sub_interfaces: 16001}", 1, &["16001 is more than the 16000"]),
    ("interfaces: []", 1, &["interfaces"]),
    ("sub_interfaces: {}", 1, &["sub_interfaces"]),
    ("sub_interfaces:\n  - {name: a, parent: PARENT", 2, &[]),
    ("limits: {per_namespace: 1}\nlimits: {per_namespace: 2}", 2, &["limits"]),
];

/// Each: a command, and what is said of it.
const COMMANDS: &[(&[&str], &[&str])] = &[
    (&["add", "INSIDE/m", "--parent", "PARENT"], &["--mode is missing"]),
    (
        &["add", "INSIDE/m", "--parent", "PARENT", "--mode", "bridged"],
        &["no mode"],
    ),
    (
        &["add", "INSIDE/m", "--parent", "lo", "--mode", "bridge"],
        &["loopback"],
    ),
    (
        &[
            "add", "INSIDE/m", "--parent", "PARENT", "--mode", "bridge", "--mtu", "9000",
        ],
        &["mtu 9000 is over that of"],
    ),
    (
        &[
            "add", "INSIDE/m", "--parent", "PARENT", "--mode", "bridge", "--flag", "nodst",
        ],
        &["mode source only"],
    ),
    (
        &[
            "add",
            "INSIDE/m",
            "--parent",
            "PARENT",
            "--mode",
            "bridge",
            "--gateway",
            "198.51.100.1",
        ],
        &["in no network"],
    ),
    (
        &[
            "add",
            "INSIDE/m",
            "--parent",
            "PARENT",
            "--mode",
            "bridge",
            "--mac",
            "01:00:00:00:00:00",
        ],
        &["bit 0"],
    ),
    (
        &["add", "PARENT", "--parent", "PARENT", "--mode", "bridge"],
        &["the parent's own name"],
    ),
    (&["add", "TAKEN", "--parent", "PARENT", "--mode", "bridge"], &["TAKEN"]),
    (
        &["add", "INSIDE/m", "--parent", "ENSLAVED", "--mode", "bridge"],
        &["is a port of"],
    ),
    (&["set", "INSIDE/m", "--mtu", "1400"], &["INSIDE/m"]),
    (&["del", "INSIDE/m"], &["INSIDE/m"]),
    (&["del", "TAKEN"], &["TAKEN"]),
    (&["shim", "add", "lo"], &["loopback"]),
    (
        &["shim", "add", "PARENT", "--route", "0.0.0.0/0"],
        &["would cut the host off"],
    ),
    (
        &["shim", "add", "PARENT", "--confirm-within", "1h"],
        &["expected seconds or minutes"],
    ),
    (&["shim", "del", "PARENT"], &["PARENT"]),
    (&["shim", "confirm", "PARENT"], &["PARENT"]),
    (
        &["apply", "--config.file=/nowhere/config.yaml"],
        &["/nowhere/config.yaml", "--config.file"],
    ),
];

/// Somebody else's links: one that has a name already, its other end a port of a bridge.
struct Strangers {
    own: Namespace,
    taken: String,
    enslaved: String,
    bridge: String,
}

impl Strangers {
    fn new(own: &Namespace) -> Self {
        let name = |role: &str| format!("mvt{}{role}", std::process::id());
        let strangers = Self {
            own: own.clone(),
            taken: name("tk"),
            enslaved: name("en"),
            bridge: name("br"),
        };
        let Self {
            taken,
            enslaved,
            bridge,
            ..
        } = &strangers;
        let _ = ip_text(own, &["link", "add", taken, "type", "veth", "peer", "name", enslaved]);
        let _ = ip_text(own, &["link", "add", bridge, "type", "bridge"]);
        let _ = ip_text(own, &["link", "set", enslaved, "master", bridge]);
        strangers
    }
}

impl Drop for Strangers {
    fn drop(&mut self) {
        for name in [&self.taken, &self.bridge] {
            // One that was not made yet cannot be removed.
            let _ = try_ip(&self.own, &["link", "del", name]);
        }
    }
}

#[test]
fn a_catalogue_of_bad_configurations_and_commands_changes_nothing() {
    let (lab, desk, own) = (Lab::new(Place::Own, Upstream::Wire), Desk::new(), Namespace::own());
    let inside = lab.namespace("inside");
    let strangers = Strangers::new(&own);
    let (parent, space) = (lab.parent.name.as_str(), inside.name().unwrap());
    let fill = |text: &str| {
        text.replace("PARENT", parent)
            .replace("INSIDE", space)
            .replace("TAKEN", &strangers.taken)
            .replace("ENSLAVED", &strangers.enslaved)
    };
    let before = [picture(&own), picture(&inside)];
    let subs = SUB_INTERFACES.iter().map(|(lines, line, words)| {
        let lines = format!("name: m\nparent: PARENT\n{lines}\nnetns: INSIDE");
        let config = format!("sub_interfaces:\n  - {}", lines.replace('\n', "\n    "));
        (config, line, words)
    });
    let all = CONFIGURATIONS
        .iter()
        .map(|(text, line, words)| ((*text).to_owned(), line, words));
    for (text, line, words) in subs.chain(all) {
        let text = fill(&text);
        let flag = desk.configure(&text);
        let words: Vec<_> = words.iter().map(|word| fill(word)).collect();
        let place = format!("config.yaml:{line}:");
        let words: Vec<_> = words.iter().map(String::as_str).chain([place.as_str()]).collect();
        let said = desk.refuse(&["apply", &flag], &words);
        assert!(!said.contains("(os error"), "{text}: {said}");
        assert_eq!(
            [picture(&own), picture(&inside)],
            before,
            "nothing is changed by:\n{text}"
        );
    }
    for (arguments, words) in COMMANDS {
        let arguments: Vec<_> = arguments.iter().map(|each| fill(each)).collect();
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let words: Vec<_> = words.iter().map(|word| fill(word)).collect();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let _ = desk.refuse(&arguments, &words);
        assert_eq!(
            [picture(&own), picture(&inside)],
            before,
            "nothing is changed by {arguments:?}"
        );
    }
    let number = SUB_INTERFACES.len() + CONFIGURATIONS.len() + COMMANDS.len();
    assert!(number >= 60, "{number} cases");
}
