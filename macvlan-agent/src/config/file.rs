//! The configuration file: the types that it is read into, and that its schema and its page are made from.

use std::net::IpAddr;

use macvlan_agent_ebpf::abi::limits;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{Address, Destination, Flag, InterfaceName, Kind, Mac, Mode, NetnsRef, OneOrMore};

/// Where it is unless `--config.file` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/macvlan-agent/config.yaml";

/// The whole file. Everything may be left out: then every macvlan is observed and nothing is changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What is observed.
    pub observe: Observe,
    /// How many sub-interfaces get counts of their own.
    pub limits: Limits,
    /// VLAN devices to be made when a sub-interface or shim stands on them, and removed with the last.
    pub parents: Vec<Parent>,
    /// The sub-interfaces to be made and kept as they are written here.
    pub sub_interfaces: Vec<SubInterface>,
    /// The host's own ways to the sub-interfaces behind a parent.
    pub shims: Vec<Shim>,
}

/// What is observed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Observe {
    /// Which parents.
    pub parents: Patterns,
}

/// Shell patterns of names, as `list` shows them: `eth0`, `bond*`, `NETNS/eth?`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Patterns {
    /// Observed is what matches one of these…
    pub include: Vec<String>,
    /// …and none of these.
    pub exclude: Vec<String>,
}

impl Default for Patterns {
    fn default() -> Self {
        Self {
            include: vec!["*".to_owned()],
            exclude: Vec::new(),
        }
    }
}

/// How many sub-interfaces get counts of their own; those over a limit are in the totals of their parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// In all, up to 16000. The kernel's tables are made for so many when the agent starts, and for no less than 4096: a
    /// reload that asks for more than they hold is refused.
    pub sub_interfaces: u32,
    /// In each namespace other than the agent's own; those that the agent made do not count.
    pub per_namespace: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sub_interfaces: limits::SUB_INTERFACES,
            per_namespace: 256,
        }
    }
}

/// A VLAN device that is made when something stands on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parent {
    /// Its name, for the `parent` of sub-interfaces and shims.
    pub name: InterfaceName,
    /// What it is.
    pub vlan: Vlan,
}

/// A VLAN of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Vlan {
    /// The interface that carries it.
    pub parent: InterfaceName,
    /// Its number, 1 to 4094.
    pub id: u16,
}

/// A sub-interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SubInterface {
    /// Its name in its namespace.
    pub name: InterfaceName,
    /// The interface it stands on, in the agent's own namespace; while there is none it is pending.
    pub parent: InterfaceName,
    /// `macvlan` or `macvtap`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub kind: Kind,
    /// How siblings reach each other; there is no default.
    pub mode: Mode,
    /// The namespace it is in; the agent's own where this is left out. While it does not exist, the sub-interface is
    /// pending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<NetnsRef>,
    /// Its MAC; left out, one derived from the machine's id, the namespace and the name, which stays the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Its addresses. Others that somebody gives it are left alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Address>,
    /// Where its default route leads; one, or a list with one of each family.
    #[serde(default, skip_serializing_if = "OneOrMore::is_empty")]
    pub gateway: OneOrMore<IpAddr>,
    /// Its further routes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Its MTU; left out, whatever the kernel gives it, which is the parent's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Its flags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<Flag>,
    /// The source MACs whose frames it takes, in mode source.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_macs: Vec<Mac>,
    /// How many broadcast frames may wait in the parent's queue: a request, the longest of all siblings counts. Since
    /// Linux 5.11.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bc_queue_len: Option<u32>,
    /// Multicast groups with at most so many listeners are handled at once instead of through the queue; -1 handles
    /// all at once. Of the whole parent. Since Linux 6.5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bc_cutoff: Option<i32>,
    /// Text for the link's alias, behind the mark of ownership.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Whether it is set up.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub up: bool,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Where it leads.
    pub to: Destination,
    /// By way of which neighbour; left out, the network is on the link itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<IpAddr>,
    /// Its metric; the smallest wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<u32>,
}

/// A bridge-mode sub-interface in the agent's own namespace, by which the host and the sub-interfaces of a parent reach
/// each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Shim {
    /// Whose sub-interfaces are to be reached.
    pub parent: InterfaceName,
    /// Its name.
    pub name: InterfaceName,
    /// Its address, a /32 or /128 that nobody else has; left out, it shares those of the parent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Address>,
    /// `auto`: one to each address of each sub-interface, kept in step; or a list of networks that cover them.
    #[serde(default)]
    pub routes: ShimRoutes,
}

/// Which routes lead through a shim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ShimRoutes {
    /// One to each address.
    #[default]
    Auto,
    /// These.
    To(Vec<Destination>),
}

impl Serialize for ShimRoutes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::To(list) => list.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for ShimRoutes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = ShimRoutes;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("auto or a list of networks")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ShimRoutes, E> {
                if text == "auto" {
                    return Ok(ShimRoutes::Auto);
                }
                Err(E::custom(format!("{text:?} is neither auto nor a list of networks")))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<ShimRoutes, A::Error> {
                let mut networks = Vec::new();
                while let Some(network) = list.next_element()? {
                    networks.push(network);
                }
                Ok(ShimRoutes::To(networks))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for ShimRoutes {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ShimRoutes".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let network = generator.subschema_for::<Destination>();
        schemars::json_schema!({
            "description": "auto: one route to each address of each sub-interface, kept in step; or a list of networks.",
            "oneOf": [{ "const": "auto" }, { "type": "array", "items": network }],
        })
    }
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_true(value: &bool) -> bool {
    *value
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
