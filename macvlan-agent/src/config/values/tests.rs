use super::*;

fn refused<T: FromStr<Err = String> + fmt::Debug>(text: &str, words: &[&str]) {
    let error = text.parse::<T>().expect_err(text);
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

#[test]
fn names_are_the_kernels() {
    for good in ["eth0", "macv1", "eth0.10", "$(reboot)", "größe", "a-b_c@d"] {
        assert_eq!(good.parse::<InterfaceName>().expect(good).as_str(), good);
    }
    refused::<InterfaceName>("", &["empty", "1 to 15"]);
    refused::<InterfaceName>("sixteen-letters-", &["16 bytes"]);
    for bad in [
        "a b",
        "a/b",
        "a:b",
        "v%d",
        "a\nb",
        "a\u{1b}[2J",
        "x\u{202e}y",
        ".",
        "..",
    ] {
        refused::<InterfaceName>(bad, &["1 to 15 bytes"]);
    }
}

#[test]
fn macs_are_unicast() {
    let mac: Mac = "52:76:5F:92:85:8d".parse().expect("valid");
    assert_eq!(mac.to_string(), "52:76:5f:92:85:8d");
    refused::<Mac>("97:00:00:00:00:01", &["bit 0", "96:00:00:00:00:01"]);
    refused::<Mac>("00:00:00:00:00:00", &["empty MAC"]);
    for bad in [
        "",
        "52:76:5f:92:85",
        "52:76:5f:92:85:8d:00",
        "52-76-5f-92-85-8d",
        "5:76:5f:92:85:8d",
        "+2:76:5f:92:85:8d",
    ] {
        refused::<Mac>(bad, &["is no MAC", "52:76:5f:92:85:8d"]);
    }
}

#[test]
fn addresses_are_hosts() {
    for good in [
        "198.51.100.151/24",
        "198.51.100.0/31",
        "198.51.100.0/32",
        "2001:db8::/64",
        "2001:db8::1/128",
    ] {
        assert_eq!(good.parse::<Address>().expect(good).to_string(), good);
    }
    refused::<Address>("198.51.100.151", &["no prefix length", "198.51.100.151/24"]);
    refused::<Address>("2001:db8::1", &["2001:db8::1/64"]);
    refused::<Address>("198.51.100.151/33", &["0 to 32"]);
    refused::<Address>("198.51.100.0/24", &["network itself"]);
    refused::<Address>("198.51.100.255/24", &["broadcast"]);
    refused::<Address>("224.0.0.1/24", &["multicast"]);
    refused::<Address>("127.0.0.1/8", &["loopback"]);
    refused::<Address>("0.0.0.0/0", &["no address of an interface"]);
    refused::<Address>("here/24", &["\"here\" is no address"]);
    refused::<Destination>("203.0.113.7/24", &["203.0.113.0/24"]);
}

#[test]
fn namespaces_are_named_in_four_ways() {
    let parse = |text: &str| text.parse::<NetnsRef>();
    assert_eq!(parse("net1"), Ok(NetnsRef::Name("net1".into())));
    assert_eq!(
        parse("/run/docker/netns/x"),
        Ok(NetnsRef::Path("/run/docker/netns/x".into()))
    );
    assert_eq!(parse("pid:17"), Ok(NetnsRef::Pid(17)));
    assert_eq!(parse("container:web-1"), Ok(NetnsRef::Container("web-1".into())));
    for bad in ["", ".", "..", "a/b", "pid:x", "pid:0", "container:"] {
        assert!(parse(bad).is_err(), "{bad}");
    }
    for text in ["\"net1\"", "{\"pid\":3}", "{\"container\":\"web-1\"}"] {
        let parsed: NetnsRef = serde_json::from_str(text).expect(text);
        assert_eq!(serde_json::to_string(&parsed).expect("it encodes"), text);
    }
    assert!(serde_json::from_str::<NetnsRef>("{\"pid\":3,\"container\":\"x\"}").is_err());
}

#[test]
fn modes_and_flags_name_the_words_there_are() {
    refused::<Mode>(
        "bridged",
        &["\"bridged\" is no mode", "private, vepa, bridge, passthru, source"],
    );
    refused::<Flag>("promisc", &["nopromisc, nodst"]);
    refused::<Kind>("ipvlan", &["macvlan, macvtap"]);
    for (mode, number) in Mode::WORDS.iter().zip([1, 2, 4, 8, 16]) {
        let mode: Mode = mode.parse().expect("valid");
        assert_eq!(link::Mode::from(mode).number(), number);
    }
}
