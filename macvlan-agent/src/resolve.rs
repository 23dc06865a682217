//! Names as people say them: `macv1`, `net1/macv1`, a container, a pod. Pure.
//!
//! What could mean several is an error that lists them. Commands that change something ask with [`Exactness::Exact`]: then
//! the beginning of an id is not enough.

use std::{fmt, path::PathBuf};

use crate::{output::visible, owners::Owner};

/// The beginning of an id must be this long: shorter ones are names.
const PREFIX: usize = 4;

/// How much of a name must be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exactness {
    /// The beginning of an id is enough.
    Loose,
    /// Whole names and whole ids.
    Exact,
}

/// Why a name means nothing, or not one thing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// There is none.
    #[error("there is no {kind} {}{}", visible(.query), advice(*.exact, .similar))]
    NotFound {
        /// What was looked for.
        kind: &'static str,
        /// How it was called.
        query: String,
        /// Whether only whole ids count.
        exact: bool,
        /// What a less exact look would have found.
        similar: Vec<String>,
    },
    /// There are several.
    #[error("{} may be any of these {kind}s: {}; say which", visible(.query), .candidates.join(", "))]
    Ambiguous {
        /// What was looked for.
        kind: &'static str,
        /// How it was called.
        query: String,
        /// What it may be.
        candidates: Vec<String>,
    },
}

fn advice(exact: bool, similar: &[String]) -> String {
    if similar.is_empty() {
        return "; `macvlan-agent list` shows what there is".to_owned();
    }
    let found = similar.join(", ");
    if exact {
        format!(": what changes something takes whole names and whole ids; is {found} meant?")
    } else {
        format!("; is {found} meant?")
    }
}

/// A sub-interface that may be meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Its parent, as in the label `parent`.
    pub parent: &'a str,
    /// Its name.
    pub interface: &'a str,
    /// Its namespace, as in the label `netns`.
    pub netns: &'a str,
    /// Whose it is.
    pub owner: Option<&'a Owner>,
}

impl fmt::Display for Candidate<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (netns, interface, parent) = (visible(self.netns), visible(self.interface), visible(self.parent));
        write!(f, "{netns}/{interface} on {parent}")?;
        match self.owner {
            Some(owner) => write!(f, " ({})", visible(&owner.display())),
            None => Ok(()),
        }
    }
}

/// A container, and where its network namespace is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPlace {
    /// Whose the namespace is.
    pub owner: Owner,
    /// The namespace's inode: to be compared after opening `path`.
    pub inode: u32,
    /// Its label.
    pub netns: String,
    /// A file that it is.
    pub path: PathBuf,
}

impl fmt::Display for ContainerPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id: String = self.owner.container_id.chars().take(12).collect();
        let name = visible(&self.owner.display());
        if id.is_empty() || name == id {
            write!(f, "{name}")
        } else {
            write!(f, "{name} ({})", visible(&id))
        }
    }
}

/// The one sub-interface that `query` means: its name, `NETNS/NAME`, `CONTAINER/NAME`, or the container or pod that has
/// only this one. Gives its place among `all`.
pub fn sub_interface(all: &[Candidate<'_>], query: &str, exactness: Exactness) -> Result<usize, ResolveError> {
    let meant = |candidate: &Candidate<'_>, exactness| {
        let owned = |name: &str| candidate.owner.is_some_and(|owner| owner.is_called(name, exactness));
        let within = query
            .rsplit_once('/')
            .is_some_and(|(place, name)| candidate.interface == name && (candidate.netns == place || owned(place)));
        candidate.interface == query || within || owned(query)
    };
    one("sub-interface", all, query, exactness, meant)
}

/// The one container that `query` means: its name, its id or the beginning of that, or its pod, `NAMESPACE/NAME` or
/// `NAME`. Gives its place among `all`.
pub fn container(all: &[ContainerPlace], query: &str, exactness: Exactness) -> Result<usize, ResolveError> {
    let meant = |place: &ContainerPlace, exactness| place.owner.is_called(query, exactness);
    one("container", all, query, exactness, meant)
}

fn one<T: fmt::Display>(
    kind: &'static str,
    all: &[T],
    query: &str,
    exactness: Exactness,
    meant: impl Fn(&T, Exactness) -> bool,
) -> Result<usize, ResolveError> {
    let matching = |exactness| -> Vec<usize> {
        let numbered = all.iter().enumerate();
        numbered
            .filter(|(_, each)| meant(each, exactness))
            .map(|(number, _)| number)
            .collect()
    };
    let shown = |numbers: Vec<usize>| numbers.into_iter().map(|number| all[number].to_string()).collect();
    // A whole name is that one, though an id may begin with the same letters.
    let mut found = matching(Exactness::Exact);
    if found.is_empty() && exactness == Exactness::Loose {
        found = matching(Exactness::Loose);
    }
    match found[..] {
        [number] => Ok(number),
        [] => Err(ResolveError::NotFound {
            kind,
            query: query.to_owned(),
            exact: exactness == Exactness::Exact,
            similar: shown(matching(Exactness::Loose)),
        }),
        _ => Err(ResolveError::Ambiguous {
            kind,
            query: query.to_owned(),
            candidates: shown(found),
        }),
    }
}

impl Owner {
    /// How people call it: the pod, the container's name, or the beginning of its id.
    #[must_use]
    pub fn display(&self) -> String {
        if !self.pod_name.is_empty() {
            return format!("{}/{}", self.pod_namespace, self.pod_name);
        }
        if !self.container_name.is_empty() {
            return self.container_name.clone();
        }
        self.container_id.chars().take(12).collect()
    }

    fn is_called(&self, name: &str, exactness: Exactness) -> bool {
        if name.is_empty() {
            return false;
        }
        let by_id = match exactness {
            Exactness::Exact => self.container_id == name,
            Exactness::Loose => name.len() >= PREFIX && self.container_id.starts_with(name),
        };
        let by_pod = !self.pod_name.is_empty()
            && (self.pod_name == name || name.split_once('/') == Some((&self.pod_namespace, &self.pod_name)));
        by_id || by_pod || self.container_name == name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3c1d849d5b88bfebe0e719877b0293490933659a4f64be89bb3d5e92cd867631";
    const OTHER: &str = "3c1dffff5b88bfebe0e719877b0293490933659a4f64be89bb3d5e92cd867631";

    fn owner(name: &str, id: &str, pod: &str) -> Owner {
        Owner {
            runtime: "docker".to_owned(),
            container_name: name.to_owned(),
            container_id: id.to_owned(),
            pod_name: pod.to_owned(),
            pod_namespace: "shop".to_owned(),
            ..Owner::default()
        }
    }

    fn candidate<'a>(netns: &'a str, interface: &'a str, owner: Option<&'a Owner>) -> Candidate<'a> {
        Candidate {
            parent: "eth0",
            interface,
            netns,
            owner,
        }
    }

    #[test]
    fn names_are_taken_as_people_say_them() {
        let (web, pod) = (owner("web-1", ID, ""), owner("", OTHER, "db-0"));
        let all = [
            candidate("host", "macv1", None),
            candidate("net1", "macv2", None),
            candidate("net2", "macv2", None),
            candidate("0123456789ab", "eth0", Some(&web)),
            candidate("cni-1", "net1", Some(&pod)),
        ];
        let find = |query, exactness| sub_interface(&all, query, exactness);
        let cases = [
            ("macv1", 0),
            ("net2/macv2", 2),
            ("web-1", 3),
            ("web-1/eth0", 3),
            ("0123456789ab/eth0", 3),
            (ID, 3),
            ("shop/db-0", 4),
            ("db-0", 4),
            ("shop/db-0/net1", 4),
        ];
        for (query, expected) in cases {
            assert_eq!(find(query, Exactness::Loose), Ok(expected), "{query}");
            assert_eq!(find(query, Exactness::Exact), Ok(expected), "{query}");
        }
        assert_eq!(find(&ID[..12], Exactness::Loose), Ok(3));
        let text = find(&ID[..12], Exactness::Exact).unwrap_err().to_string();
        assert!(
            text.contains("whole ids") && text.contains("0123456789ab/eth0 on eth0 (web-1)"),
            "{text}"
        );
        let text = find("macv2", Exactness::Loose).unwrap_err().to_string();
        assert_eq!(
            text,
            "macv2 may be any of these sub-interfaces: net1/macv2 on eth0, net2/macv2 on eth0; say which"
        );
        let text = find("3c1d", Exactness::Loose).unwrap_err().to_string();
        assert!(text.contains("(web-1)") && text.contains("(shop/db-0)"), "{text}");
        for nothing in [
            "",
            "/",
            "net1/",
            "/macv2",
            "3c1",
            "macv",
            "web",
            "net3/macv2",
            "eth0/web-1",
        ] {
            let error = find(nothing, Exactness::Loose).unwrap_err();
            assert!(matches!(error, ResolveError::NotFound { .. }), "{nothing}: {error}");
        }
    }

    #[test]
    fn a_container_with_two_sub_interfaces_is_not_one() {
        let web = owner("web-1", ID, "");
        let all = [candidate("a", "eth0", Some(&web)), candidate("a", "eth1", Some(&web))];
        assert!(matches!(
            sub_interface(&all, "web-1", Exactness::Exact),
            Err(ResolveError::Ambiguous { .. })
        ));
        assert_eq!(sub_interface(&all, "web-1/eth1", Exactness::Exact), Ok(1));
    }

    #[test]
    fn a_whole_name_goes_before_the_beginning_of_an_id() {
        let place = |owner: Owner| ContainerPlace {
            owner,
            inode: 7,
            netns: "x".to_owned(),
            path: "/run/netns/x".into(),
        };
        let all = [place(owner("3c1d", "ffff", "")), place(owner("web-1", ID, ""))];
        assert_eq!(container(&all, "3c1d", Exactness::Loose), Ok(0));
        assert_eq!(container(&all, "3c1d8", Exactness::Loose), Ok(1));
        assert!(container(&all, "3c1d8", Exactness::Exact).is_err());
        assert_eq!(container(&all, ID, Exactness::Exact), Ok(1));
        assert_eq!(all[1].to_string(), "web-1 (3c1d849d5b88)");
    }

    #[test]
    fn hostile_names_are_shown_and_not_obeyed() {
        let all = [
            candidate("a\u{1b}[2J", "x\u{202e}y", None),
            candidate("b", "x\u{202e}y", None),
        ];
        let text = sub_interface(&all, "x\u{202e}y", Exactness::Loose)
            .unwrap_err()
            .to_string();
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text:?}");
        assert_eq!(sub_interface(&all, "b/x\u{202e}y", Exactness::Exact), Ok(1));
    }
}
