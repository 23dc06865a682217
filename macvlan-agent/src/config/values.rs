//! The values that a configuration is made of. Each is valid once it exists; what is wrong with one is said together
//! with what would be right.

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr};

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::topology::link;

/// Serde and schema by way of the text form.
macro_rules! by_text {
    ($type:ident, $description:literal, $schema:expr) => {
        impl TryFrom<String> for $type {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                let mut schema = $schema;
                schema.insert("description".to_owned(), $description.into());
                schema
            }
        }
    };
}

/// A value among words: its text form, its parser with the words in the error, its schema.
macro_rules! word {
    ($type:ident, $noun:literal, $description:literal, $($variant:ident = $word:literal),+ $(,)?) => {
        impl $type {
            /// The words there are.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// Its word.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.word())
            }
        }

        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(format!(
                        "{text:?} is no {}; there are {}", $noun, Self::WORDS.join(", ")
                    )),
                }
            }
        }

        by_text!($type, $description, json_schema!({ "type": "string", "enum": $type::WORDS }));
    };
}

/// A macvlan's mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[expect(missing_docs, reason = "the words say it; `topology::link::Mode` explains them")]
pub enum Mode {
    Private,
    Vepa,
    Bridge,
    Passthru,
    Source,
}

word!(
    Mode,
    "mode",
    "How siblings reach each other; there is no default, since every tool has another.",
    Private = "private",
    Vepa = "vepa",
    Bridge = "bridge",
    Passthru = "passthru",
    Source = "source",
);

impl From<Mode> for link::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Private => Self::Private,
            Mode::Vepa => Self::Vepa,
            Mode::Bridge => Self::Bridge,
            Mode::Passthru => Self::Passthru,
            Mode::Source => Self::Source,
        }
    }
}

/// Which device a sub-interface is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[expect(missing_docs, reason = "the words say it; `topology::link::Kind` explains them")]
pub enum Kind {
    #[default]
    Macvlan,
    Macvtap,
}

word!(
    Kind,
    "kind of sub-interface",
    "An interface, or one with a character device in the place of a stack.",
    Macvlan = "macvlan",
    Macvtap = "macvtap",
);

/// A flag of a macvlan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Flag {
    /// Mode passthru: the parent is not made promiscuous.
    NoPromisc,
    /// Mode source: a frame that was taken by its source is not given to the parent as well.
    NoDst,
}

word!(
    Flag,
    "flag",
    "nopromisc: in mode passthru the parent is not made promiscuous; nodst: in mode source a frame that was taken is not given to the parent as well.",
    NoPromisc = "nopromisc",
    NoDst = "nodst",
);

impl Flag {
    /// The kernel's bit, `MACVLAN_FLAG_*`.
    #[must_use]
    pub fn bit(self) -> u16 {
        match self {
            Self::NoPromisc => 1,
            Self::NoDst => 2,
        }
    }
}

/// The name of an interface, as the kernel takes it, and without characters that command a terminal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName(String);

impl InterfaceName {
    /// The longest there is, in bytes.
    const LONGEST: usize = 15;

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let advice = "an interface's name has 1 to 15 bytes, without spaces, control characters, /, : and %, and is \
                      neither . nor ..";
        let fault = if text.is_empty() {
            "the name is empty".to_owned()
        } else if text.len() > Self::LONGEST {
            format!("{text:?} has {} bytes", text.len())
        } else if let Some(bad) = text
            .chars()
            .find(|c| c.is_whitespace() || c.is_control() || "/:%".contains(*c) || crate::output::turns_direction(*c))
        {
            format!("{text:?} has {bad:?} in it")
        } else if text == "." || text == ".." {
            format!("{text:?} is the name of a directory")
        } else {
            return Ok(Self(text.to_owned()));
        };
        Err(format!("{fault}; {advice}"))
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

by_text!(
    InterfaceName,
    "Name of an interface: 1 to 15 bytes, without spaces, control characters, /, : and %.",
    json_schema!({ "type": "string", "minLength": 1, "maxLength": 15, "pattern": "^[^\\s/:%]+$" })
);

/// A unicast MAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes: Option<Vec<u8>> = text
            .split(':')
            .map(|part| {
                let plain = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
                plain.then(|| u8::from_str_radix(part, 16).ok()).flatten()
            })
            .collect();
        let bytes: [u8; 6] = bytes
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| format!("{text:?} is no MAC; expected six bytes as in 52:76:5f:92:85:8d"))?;
        if bytes == [0; 6] {
            return Err(format!(
                "{text} is the empty MAC, which the kernel takes for no address; expected one as in 52:76:5f:92:85:8d"
            ));
        }
        if bytes[0] & 1 == 1 {
            let first = bytes[0] & 0xfe | 2;
            return Err(format!(
                "{text} is not a unicast MAC: bit 0 of the first byte is set; {first:02x}{} would be one",
                &text[2..]
            ));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: Vec<_> = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        f.pad(&bytes.join(":"))
    }
}

by_text!(
    Mac,
    "A unicast MAC, as in 52:76:5f:92:85:8d.",
    json_schema!({ "type": "string", "pattern": "^([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}$" })
);

/// An address with the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address(pub IpNet);

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let network = network(text)?;
        let address = network.addr();
        let fault = if address.is_unspecified() {
            "is no address of an interface"
        } else if address.is_multicast() {
            "is a multicast address"
        } else if address.is_loopback() {
            "is an address of the loopback"
        } else if address == network.network()
            && network.prefix_len() < network.max_prefix_len() - 1
            && address.is_ipv4()
        {
            "is the address of the network itself"
        } else if address.is_ipv4() && address == network.broadcast() && network.prefix_len() < 31 {
            "is the network's broadcast address"
        } else {
            return Ok(Self(network));
        };
        Err(format!("{text} {fault}; expected a host's, as in 198.51.100.151/24"))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

by_text!(
    Address,
    "An IPv4 or IPv6 address with the length of its network's prefix, as in 198.51.100.151/24.",
    json_schema!({ "type": "string", "pattern": "^[0-9A-Fa-f.:]+/[0-9]{1,3}$" })
);

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Destination(pub IpNet);

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let network = network(text)?;
        if network.trunc() != network {
            return Err(format!(
                "{text} has bits behind its prefix; {} would be the network",
                network.trunc()
            ));
        }
        Ok(Self(network))
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

by_text!(
    Destination,
    "A network, as in 203.0.113.0/24; 0.0.0.0/0 and ::/0 are the default routes.",
    json_schema!({ "type": "string", "pattern": "^[0-9A-Fa-f.:]+/[0-9]{1,3}$" })
);

fn network(text: &str) -> Result<IpNet, String> {
    let Some((address, length)) = text.split_once('/') else {
        return match text.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => Err(format!("{text} has no prefix length; expected {text}/24 or the like")),
            Ok(IpAddr::V6(_)) => Err(format!("{text} has no prefix length; expected {text}/64 or the like")),
            Err(_) => Err(format!(
                "{text:?} is no address; expected ADDRESS/LENGTH as in 198.51.100.151/24 or 2001:db8::151/64"
            )),
        };
    };
    let address: IpAddr = address.parse().map_err(|_| {
        format!("{address:?} is no address; expected ADDRESS/LENGTH as in 198.51.100.151/24 or 2001:db8::151/64")
    })?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    length
        .parse()
        .ok()
        .and_then(|length| IpNet::new(address, length).ok())
        .ok_or_else(|| format!("{length:?} is no prefix length of {address}; expected 0 to {longest}"))
}

/// A namespace, as the user names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NetnsRef {
    /// A name under `/run/netns`.
    Name(String),
    /// A file.
    Path(PathBuf),
    /// That of a process.
    Pid(u32),
    /// That of a container, by name or id.
    Container(String),
}

impl NetnsRef {
    fn from_text(text: &str) -> Result<Self, String> {
        let advice = "expected a name under /run/netns, a path that begins with /, {pid: NUMBER} or {container: NAME}";
        if text.is_empty() || text == "." || text == ".." {
            return Err(format!("{text:?} names no namespace; {advice}"));
        }
        if text.chars().any(char::is_control) {
            return Err(format!("{text:?} has a control character in it; {advice}"));
        }
        if text.starts_with('/') {
            return Ok(Self::Path(text.into()));
        }
        if text.contains('/') {
            return Err(format!("{text:?} is neither a name nor an absolute path; {advice}"));
        }
        Ok(Self::Name(text.to_owned()))
    }

    fn from_parts(parts: NetnsParts) -> Result<Self, String> {
        match parts {
            NetnsParts {
                pid: Some(pid),
                container: None,
            } if pid > 0 => Ok(Self::Pid(pid)),
            NetnsParts {
                pid: None,
                container: Some(name),
            } if !name.is_empty() => Ok(Self::Container(name)),
            _ => Err("a namespace has one of pid (a number above 0) and container (a name)".to_owned()),
        }
    }
}

/// As `--netns` takes it: a name, a path, `pid:NUMBER` or `container:NAME`.
impl FromStr for NetnsRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pid, container) = (text.strip_prefix("pid:"), text.strip_prefix("container:"));
        match (pid, container) {
            (Some(pid), _) => Self::from_parts(NetnsParts {
                pid: Some(pid.parse().map_err(|_| format!("{pid:?} is no process id"))?),
                container: None,
            }),
            (_, Some(name)) => Self::from_parts(NetnsParts {
                pid: None,
                container: Some(name.to_owned()),
            }),
            _ => Self::from_text(text),
        }
    }
}

impl fmt::Display for NetnsRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Pid(pid) => write!(f, "pid:{pid}"),
            Self::Container(name) => write!(f, "container:{name}"),
        }
    }
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NetnsParts {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    container: Option<String>,
}

impl Serialize for NetnsRef {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut parts = NetnsParts {
            pid: None,
            container: None,
        };
        match self {
            Self::Name(_) | Self::Path(_) => return serializer.collect_str(self),
            Self::Pid(pid) => parts.pid = Some(*pid),
            Self::Container(name) => parts.container = Some(name.clone()),
        }
        parts.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for NetnsRef {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = NetnsRef;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name under /run/netns, a path, {pid: NUMBER} or {container: NAME}")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<NetnsRef, E> {
                NetnsRef::from_text(text).map_err(E::custom)
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<NetnsRef, A::Error> {
                let parts = NetnsParts::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                NetnsRef::from_parts(parts).map_err(serde::de::Error::custom)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for NetnsRef {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "NetnsRef".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let parts = generator.subschema_for::<NetnsParts>();
        json_schema!({
            "description": "A namespace: a name under /run/netns, a path, {pid: NUMBER} or {container: NAME}.",
            "oneOf": [{ "type": "string", "minLength": 1 }, parts],
        })
    }
}

/// One value, or a list of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OneOrMore<T>(pub Vec<T>);

impl<T> Default for OneOrMore<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> OneOrMore<T> {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T: Serialize> Serialize for OneOrMore<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => one.serialize(serializer),
            more => more.serialize(serializer),
        }
    }
}

impl<'de, T: Deserialize<'de> + FromStr<Err: fmt::Display>> Deserialize<'de> for OneOrMore<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de> + FromStr<Err: fmt::Display>> serde::de::Visitor<'de> for Visitor<T> {
            type Value = OneOrMore<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one value or a list of them")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<OneOrMore<T>, E> {
                let value = text.parse().map_err(|error| E::custom(format!("{text:?}: {error}")))?;
                Ok(OneOrMore(vec![value]))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<OneOrMore<T>, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element()? {
                    values.push(value);
                }
                Ok(OneOrMore(values))
            }
        }

        deserializer.deserialize_any(Visitor(std::marker::PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for OneOrMore<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("OneOrMore{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<T>();
        json_schema!({ "oneOf": [one, { "type": "array", "items": one }] })
    }
}

#[cfg(test)]
mod tests {
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
}
