//! The values that a configuration is made of. Each is valid once it exists; what is wrong with one is said together
//! with what would be right.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::topology::link;

mod netns;

pub use netns::NetnsRef;

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
mod tests;
