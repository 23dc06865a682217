use crate::config::load::parse;

/// A sub-interface with these lines in it.
fn sub(lines: &str) -> String {
    format!(
        "  - name: macv1\n    parent: eth0\n    {}\n",
        lines.replace('\n', "\n    ")
    )
}

/// Each: a text, the line and field of the one fault, and words of what is said.
#[expect(clippy::too_many_lines, reason = "a table")]
#[test]
fn a_catalogue_of_faults() {
    let one = |lines: &str| format!("sub_interfaces:\n{}", sub(lines));
    let two = |a: &str, b: &str| {
        let second = sub(b).replace("name: macv1", "name: macv2");
        format!("sub_interfaces:\n{}{second}", sub(a))
    };
    let cases: Vec<(String, usize, &str, &[&str])> = vec![
        (
            one("mode: bridge\nmac: 01:00:5e:00:00:01"),
            5,
            "sub_interfaces[0].mac",
            &["bit 0", "02:00:5e:00:00:01"],
        ),
        (
            one("mode: bridge\nsource_macs: [52:76:5f:92:85:8d]"),
            5,
            "sub_interfaces[0].source_macs",
            &["mode source"],
        ),
        (
            one("mode: bridge\nflags: [nopromisc]"),
            5,
            "sub_interfaces[0].flags[0]",
            &["mode passthru only"],
        ),
        (
            one("mode: passthru\nflags: [nodst]"),
            5,
            "sub_interfaces[0].flags[0]",
            &["mode source only"],
        ),
        (
            one("mode: passthru\nmac: 52:76:5f:92:85:8d"),
            5,
            "sub_interfaces[0].mac",
            &["the parent's MAC"],
        ),
        (
            one("mode: bridge\nmtu: 60"),
            5,
            "sub_interfaces[0].mtu",
            &["68 to 65535"],
        ),
        (
            one("mode: bridge\nmtu: 1200\naddresses: [\"2001:db8::1/64\"]"),
            5,
            "sub_interfaces[0].mtu",
            &["1280"],
        ),
        (
            one("mode: bridge\nbc_cutoff: -2"),
            5,
            "sub_interfaces[0].bc_cutoff",
            &["-1"],
        ),
        (
            one("mode: bridge\ngateway: 198.51.100.1"),
            5,
            "sub_interfaces[0].gateway",
            &["in no network"],
        ),
        (
            one("mode: bridge\naddresses: [198.51.100.9/24]\ngateway: 198.51.100.9"),
            6,
            "sub_interfaces[0].gateway",
            &["own address"],
        ),
        (
            one("mode: bridge\naddresses: [198.51.100.9/24]\ngateway: [198.51.100.1, 198.51.100.2]"),
            6,
            "sub_interfaces[0].gateway[1]",
            &["one of each"],
        ),
        (
            one("mode: bridge\naddresses:\n  - 198.51.100.9/24\n  - 198.51.100.9/25"),
            7,
            "sub_interfaces[0].addresses[1]",
            &["twice"],
        ),
        (
            one("mode: bridge\naddresses: [198.51.100.9/24]\nroutes:\n  - to: 203.0.113.0/24\n    via: 192.0.2.1"),
            8,
            "sub_interfaces[0].routes[0].via",
            &["in no network"],
        ),
        (
            one("mode: bridge\naddresses: [198.51.100.9/24]\nup: false\ngateway: 198.51.100.1"),
            6,
            "sub_interfaces[0].up",
            &["up: true"],
        ),
        (
            one("mode: bridge\nkind: macvtap\naddresses: [198.51.100.9/24]"),
            6,
            "sub_interfaces[0].addresses",
            &["kind: macvlan"],
        ),
        (
            one("mode: bridge").replace("eth0", "lo"),
            3,
            "sub_interfaces[0].parent",
            &["loopback"],
        ),
        (
            one("mode: bridge").replace("eth0", "macv1"),
            2,
            "sub_interfaces[0].name",
            &["parent's own name"],
        ),
        (
            one("mode: bridge\nnetns: a/b"),
            5,
            "sub_interfaces[0].netns",
            &["absolute path"],
        ),
        (
            one("mode: bridge\nalias: \"\""),
            5,
            "sub_interfaces[0].alias",
            &["1 to 200"],
        ),
        (
            two("mode: bridge", "mode: passthru"),
            7,
            "sub_interfaces[1].mode",
            &["sub_interfaces[0]", "alone"],
        ),
        (
            two("mode: passthru", "mode: passthru"),
            7,
            "sub_interfaces[1].mode",
            &["alone"],
        ),
        (
            two("mode: bridge\nbc_cutoff: 2", "mode: bridge\nbc_cutoff: 3"),
            9,
            "sub_interfaces[1].bc_cutoff",
            &["says 2"],
        ),
        (
            two(
                "mode: bridge\nmac: 52:76:5f:92:85:8d",
                "mode: vepa\nmac: 52:76:5F:92:85:8D",
            ),
            9,
            "sub_interfaces[1].mac",
            &["sub_interfaces[0]"],
        ),
        (
            two(
                "mode: bridge\naddresses: [198.51.100.9/24]",
                "mode: bridge\naddresses: [198.51.100.9/25]",
            ),
            9,
            "sub_interfaces[1].addresses[0]",
            &["same address"],
        ),
        (
            two("mode: bridge", "mode: bridge").replace("macv2", "macv1"),
            5,
            "sub_interfaces[1].name",
            &["sub_interfaces[0].name", "the host's namespace"],
        ),
        (
            "parents:\n  - { name: eth0.0, vlan: { parent: eth0, id: 0 } }".to_owned(),
            2,
            "parents[0].vlan.id",
            &["1 to 4094"],
        ),
        (
            "parents:\n  - { name: eth0, vlan: { parent: eth0, id: 5 } }".to_owned(),
            2,
            "parents[0].vlan.parent",
            &["itself"],
        ),
        (
            "limits:\n  sub_interfaces: 16001".to_owned(),
            2,
            "limits.sub_interfaces",
            &["16000"],
        ),
        (
            "observe:\n  parents:\n    include: [\"[a\"]".to_owned(),
            3,
            "observe.parents.include[0]",
            &["shell pattern"],
        ),
        (
            "shims:\n  - { parent: eth0, name: mac0, address: 198.51.100.250/24 }".to_owned(),
            2,
            "shims[0].address",
            &["198.51.100.250/32"],
        ),
        (
            "shims:\n  - { parent: eth0, name: mac0 }\n  - { parent: eth0, name: mac1 }".to_owned(),
            3,
            "shims[1].parent",
            &["one shim for each parent"],
        ),
        (
            "shims:\n  - { parent: eth0, name: mac0, routes: [0.0.0.0/0] }".to_owned(),
            2,
            "shims[0].routes[0]",
            &["cut the host off"],
        ),
        (
            "shims:\n  - { parent: eth0, name: mac0, routes: all }".to_owned(),
            2,
            "shims[0].routes",
            &["auto"],
        ),
    ];
    for (text, line, field, words) in cases {
        let said = parse(&text, "c.yaml").map(|_| ()).expect_err(&text).to_string();
        let wanted = format!("c.yaml:{line}: {field}: ");
        assert!(
            said.starts_with(&wanted),
            "{said}\ndoes not begin with {wanted}\n{text}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
        for word in words {
            assert!(said.contains(word), "{word:?} is not in: {said}");
        }
    }
}

#[test]
fn all_faults_are_said_at_once() {
    let text = format!(
        "limits: {{ per_namespace: 99999 }}\nsub_interfaces:\n{}",
        sub("mode: bridge\nmtu: 1\nbc_cutoff: -7")
    );
    let said = parse(&text, "c.yaml").map(|_| ()).expect_err("wrong").to_string();
    assert_eq!(said.lines().count(), 3, "{said}");
}
