//! The single changes that a plan is made of, as people and programs read them.

use std::fmt;

use super::wanted::WantedRoute;
use crate::config::values::{Flag, Mac};

/// One change to one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Makes it, with all that was asked for.
    Create,
    /// Deletes it.
    Delete(String),
    /// Gives it its name back.
    Rename(Change<String>),
    /// Sets its mode.
    Mode(Change<String>),
    /// Sets its MAC.
    Mac(Change<Mac>),
    /// Sets its MTU.
    Mtu(Change<u32>),
    /// Sets its flags.
    Flags(Change<u16>),
    /// Sets its list of source MACs.
    SourceMacs(Change<Vec<[u8; 6]>>),
    /// Asks for another broadcast queue.
    BcQueueLen(Change<u32>),
    /// Sets the cut-off of the broadcast queue.
    BcCutoff(Change<i32>),
    /// Writes its alias, by which it is ours.
    Alias(Change<String>),
    /// Sets it up.
    Up,
    /// Sets it down.
    Down,
    /// Gives it an address; `shared` with the parent or not.
    AddAddress(ipnet::IpNet, bool),
    /// Takes an address.
    RemoveAddress(ipnet::IpNet),
    /// Adds a route through it.
    AddRoute(WantedRoute),
    /// Removes one.
    RemoveRoute(WantedRoute),
}

/// From what to what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<T> {
    /// What it is.
    pub from: T,
    /// What it is to be.
    pub to: T,
}

impl<T: Clone> Change<T> {
    /// A change.
    pub fn new(from: T, to: T) -> Self {
        Self { from, to }
    }

    fn back(&self) -> Self {
        Self::new(self.to.clone(), self.from.clone())
    }
}

impl Step {
    /// What undoes it; none where nothing does.
    #[must_use]
    pub fn inverse(&self) -> Option<Self> {
        Some(match self {
            Self::Rename(change) => Self::Rename(change.back()),
            Self::Mode(change) => Self::Mode(change.back()),
            Self::Mac(change) => Self::Mac(change.back()),
            Self::Mtu(change) => Self::Mtu(change.back()),
            Self::Flags(change) => Self::Flags(change.back()),
            Self::SourceMacs(change) => Self::SourceMacs(change.back()),
            Self::BcQueueLen(change) => Self::BcQueueLen(change.back()),
            Self::BcCutoff(change) => Self::BcCutoff(change.back()),
            Self::Alias(change) => Self::Alias(change.back()),
            Self::Up => Self::Down,
            Self::Down => Self::Up,
            Self::AddAddress(address, _) => Self::RemoveAddress(*address),
            Self::RemoveAddress(address) => Self::AddAddress(*address, false),
            Self::AddRoute(route) => Self::RemoveRoute(*route),
            Self::RemoveRoute(route) => Self::AddRoute(*route),
            Self::Create | Self::Delete(_) => return None,
        })
    }

    /// What kind of change it is.
    #[must_use]
    pub fn action(&self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Delete(_) => "delete",
            Self::AddAddress(..) | Self::AddRoute(_) => "add",
            Self::RemoveAddress(_) | Self::RemoveRoute(_) => "remove",
            _ => "set",
        }
    }

    /// What is changed, and from what to what.
    pub(super) fn parts(&self) -> (&'static str, Option<String>, Option<String>) {
        fn both<T: ToString>(
            field: &'static str,
            change: &Change<T>,
        ) -> (&'static str, Option<String>, Option<String>) {
            (field, Some(change.from.to_string()), Some(change.to.to_string()))
        }
        match self {
            Self::Create => ("sub_interface", None, None),
            Self::Delete(because) => ("sub_interface", Some(because.clone()), None),
            Self::Rename(change) => both("name", change),
            Self::Mode(change) => both("mode", change),
            Self::Mac(change) => both("mac", change),
            Self::Mtu(change) => both("mtu", change),
            Self::Flags(change) => ("flags", Some(flags(change.from)), Some(flags(change.to))),
            Self::SourceMacs(change) => ("source_macs", Some(macs(&change.from)), Some(macs(&change.to))),
            Self::BcQueueLen(change) => both("bc_queue_len", change),
            Self::BcCutoff(change) => both("bc_cutoff", change),
            Self::Alias(change) => both("alias", change),
            Self::Up => ("up", Some("false".to_owned()), Some("true".to_owned())),
            Self::Down => ("up", Some("true".to_owned()), Some("false".to_owned())),
            Self::AddAddress(address, _) => ("address", None, Some(address.to_string())),
            Self::RemoveAddress(address) => ("address", Some(address.to_string()), None),
            Self::AddRoute(route) => ("route", None, Some(route.to_string())),
            Self::RemoveRoute(route) => ("route", Some(route.to_string()), None),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (field, from, to) = self.parts();
        match self {
            Self::Create => f.write_str("create"),
            Self::Delete(because) => write!(f, "delete: {because}"),
            Self::AddAddress(..) | Self::AddRoute(_) => write!(f, "{field}: add {}", to.unwrap_or_default()),
            Self::RemoveAddress(_) | Self::RemoveRoute(_) => write!(f, "{field}: remove {}", from.unwrap_or_default()),
            _ => {
                let said = |text: Option<String>| {
                    let text = text.unwrap_or_default();
                    if text.is_empty() { "none".to_owned() } else { text }
                };
                write!(f, "{field}: {} -> {}", said(from), said(to))
            }
        }
    }
}

impl fmt::Display for WantedRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.to)?;
        if let Some(via) = self.via {
            write!(f, " via {via}")?;
        }
        if self.metric > 0 {
            write!(f, " metric {}", self.metric)?;
        }
        Ok(())
    }
}

fn flags(bits: u16) -> String {
    let flags = [Flag::NoPromisc, Flag::NoDst].into_iter();
    let words: Vec<_> = flags.filter(|flag| bits & flag.bit() != 0).map(Flag::word).collect();
    words.join(",")
}

fn macs(list: &[[u8; 6]]) -> String {
    list.iter()
        .map(|mac| Mac(*mac).to_string())
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_reads_as_what_it_does() {
        let mode = Step::Mode(Change::new("vepa".to_owned(), "bridge".to_owned()));
        assert_eq!(mode.to_string(), "mode: vepa -> bridge");
        assert_eq!(
            mode.inverse().map(|step| step.to_string()).as_deref(),
            Some("mode: bridge -> vepa")
        );
        let flags = Step::Flags(Change::new(0, 3));
        assert_eq!(flags.to_string(), "flags: none -> nopromisc,nodst");
        let address = Step::AddAddress("198.51.100.9/24".parse().expect("valid"), false);
        assert_eq!(address.to_string(), "address: add 198.51.100.9/24");
        assert_eq!(Step::Create.inverse(), None);
    }
}
