use netlink_packet_core::{DefaultNla, Emitable};
use netlink_packet_route::{
    AddressFamily,
    link::{
        InfoData, InfoKind, InfoMacVlan, InfoMacVtap, LinkAttribute, LinkFlags, LinkInfo, MacVlanMode, MacVtapMode,
        State,
    },
};

use super::*;

fn bytes(attributes: Vec<LinkAttribute>) -> Vec<u8> {
    let mut message = netlink_packet_route::link::LinkMessage::default();
    message.header.interface_family = AddressFamily::Unspec;
    message.header.index = 5;
    message.header.link_layer_type = netlink_packet_route::link::LinkLayerType::Ether;
    message.header.flags = LinkFlags::Up | LinkFlags::Broadcast;
    message.attributes = attributes;
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

fn plain(name: &str) -> Vec<LinkAttribute> {
    vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::Mtu(1500)]
}

fn macvlan(kind: InfoKind, data: InfoData) -> LinkAttribute {
    LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)])
}

#[test]
fn a_macvlan_is_read_whole() {
    let mut attributes = plain("macv1");
    let data = vec![
        InfoMacVlan::Mode(MacVlanMode::Bridge),
        InfoMacVlan::BcQueueLen(7),
        InfoMacVlan::BcQueueLenUsed(9),
    ];
    attributes.extend([
        LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
        LinkAttribute::Link(12),
        LinkAttribute::LinkNetNsId(3),
        LinkAttribute::OperState(State::Up),
        LinkAttribute::Promiscuity(2),
        macvlan(InfoKind::MacVlan, InfoData::MacVlan(data)),
    ]);
    let expected = LinkMessage {
        ifindex: 5,
        name: "macv1".to_owned(),
        mac: Some([2, 0, 0, 0, 0, 1]),
        up: true,
        oper_state: 6,
        mtu: 1500,
        promiscuity: 2,
        hardware: 1,
        kind: Some("macvlan".to_owned()),
        link: Some(12),
        nsid_is_askers: false,
        link_nsid: Some(3),
        macvlan: Some(Macvlan {
            kind: Kind::Macvlan,
            mode: Mode::Bridge,
            keeps_source: false,
            queue_asked: Some(7),
            queue_used: Some(9),
        }),
        new_netns: false,
        new_ifindex: None,
    };
    assert_eq!(parse(&bytes(attributes)), Some(expected));
}

#[test]
fn modes_are_the_kernels_and_print_as_ip_does() {
    let modes = [
        (MacVlanMode::Private, Mode::Private, 1, "private"),
        (MacVlanMode::Vepa, Mode::Vepa, 2, "vepa"),
        (MacVlanMode::Bridge, Mode::Bridge, 4, "bridge"),
        (MacVlanMode::Passthrough, Mode::Passthru, 8, "passthru"),
        (MacVlanMode::Source, Mode::Source, 16, "source"),
    ];
    for (theirs, ours, number, text) in modes {
        let mut attributes = plain("x");
        attributes.push(macvlan(
            InfoKind::MacVlan,
            InfoData::MacVlan(vec![InfoMacVlan::Mode(theirs)]),
        ));
        let macvlan = parse(&bytes(attributes)).unwrap().macvlan.unwrap();
        assert_eq!((macvlan.kind, macvlan.mode), (Kind::Macvlan, ours));
        assert_eq!((ours.number(), ours.to_string().as_str()), (number, text));
    }
}

#[test]
fn a_macvtap_is_read_alike() {
    let mut attributes = plain("tap0");
    let data = InfoData::MacVtap(vec![InfoMacVtap::Mode(MacVtapMode::Vepa)]);
    attributes.push(macvlan(InfoKind::MacVtap, data));
    let macvlan = parse(&bytes(attributes)).unwrap().macvlan.unwrap();
    assert_eq!((macvlan.kind, macvlan.mode), (Kind::Macvtap, Mode::Vepa));
    assert_eq!(
        (macvlan.queue_asked, macvlan.queue_used),
        (None, None),
        "kernels before 5.11 do not tell"
    );
}

#[test]
fn other_links_have_a_kind_or_none() {
    let mut attributes = plain("v0");
    attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]));
    let veth = parse(&bytes(attributes)).unwrap();
    assert_eq!((veth.kind.as_deref(), veth.macvlan), (Some("veth"), None));
    assert_eq!(parse(&bytes(plain("eth0"))).unwrap().kind, None);
}

#[test]
fn a_move_is_told_from_an_end() {
    let mut attributes = plain("macv1");
    attributes.extend([LinkAttribute::NewNetnsId(0), LinkAttribute::NewIfIndex(9)]);
    let moved = parse(&bytes(attributes)).unwrap();
    assert_eq!((moved.new_netns, moved.new_ifindex), (true, Some(9)));
    assert!(!parse(&bytes(plain("macv1"))).unwrap().new_netns);
}

#[test]
fn a_name_need_not_be_utf8() {
    let mut attributes = vec![LinkAttribute::Other(DefaultNla::new(ifla::IFNAME, b"a\xff\0".to_vec()))];
    attributes.push(LinkAttribute::Mtu(1500));
    assert_eq!(parse(&bytes(attributes)).unwrap().name, "a\\xff");
}

#[test]
fn messages_about_something_else_are_none() {
    let mut port = bytes(plain("v0"));
    port[0] = u8::try_from(libc::AF_BRIDGE).unwrap();
    assert_eq!(parse(&port), None);
    assert_eq!(parse(&bytes(vec![LinkAttribute::IfName("wlan0".to_owned())])), None);
}

#[test]
fn an_address_that_is_no_mac_is_none() {
    let mut attributes = plain("tun0");
    attributes.push(LinkAttribute::Address(vec![192, 0, 2, 1]));
    assert_eq!(parse(&bytes(attributes)).unwrap().mac, None);
}

#[test]
fn damage_never_panics() {
    let mut attributes = plain("macv1");
    attributes.push(LinkAttribute::Link(12));
    attributes.push(macvlan(
        InfoKind::MacVlan,
        InfoData::MacVlan(vec![InfoMacVlan::Mode(MacVlanMode::Vepa)]),
    ));
    let whole = bytes(attributes);
    for length in 0..whole.len() {
        let _ = parse(&whole[..length]);
    }
    for at in 16..whole.len() {
        for value in [0, 1, 3, 4, 0x7f, 0xff] {
            let mut damaged = whole.clone();
            damaged[at] = value;
            let _ = parse(&damaged);
        }
    }
}
