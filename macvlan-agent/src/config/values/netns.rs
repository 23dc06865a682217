//! How a configuration names a network namespace.

use std::{fmt, path::PathBuf, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

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
