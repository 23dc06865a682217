//! The namespaces that are managed, held open while something is done in them and no longer.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    apply::Survey,
    plan::Actual,
    state::SpaceState,
    wanted::Absence,
    wire::{Refusal, Wire},
};
use crate::{
    config::values::NetnsRef,
    owners::{self, Sources},
    resolve::{self, ContainerPlace, Exactness, ResolveError},
    topology::netns::{HOST, Netns, NetnsError},
};

/// Where `ip netns` keeps its names.
const NAMED: &str = "/run/netns";

/// One of them.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) netns: Arc<Netns>,
    pub(super) wire: Wire,
    /// The id that the agent's own namespace has there.
    pub(super) host_nsid: Option<i32>,
}

/// All that are open.
pub(super) struct Places<'a> {
    pub(super) own: u32,
    survey: &'a dyn Survey,
    /// Asked for once, and only when one is named.
    containers: Option<Result<Vec<ContainerPlace>, String>>,
    open: BTreeMap<u32, Place>,
    known: BTreeMap<NetnsRef, Result<u32, Absence>>,
}

/// Why not even the own namespace can be managed.
#[derive(Debug, thiserror::Error)]
pub enum PlacesError {
    /// It cannot be opened.
    #[error("cannot open the agent's own network namespace")]
    Own(#[from] NetnsError),
    /// It cannot be asked.
    #[error("cannot open a netlink socket: {0}")]
    Socket(#[from] io::Error),
    /// A namespace could not be read.
    #[error("cannot read the interfaces of {label}: {source}")]
    Read {
        /// Which.
        label: String,
        /// What the kernel said.
        source: Refusal,
    },
}

impl<'a> Places<'a> {
    /// Opens the agent's own.
    pub(super) fn open(survey: &'a dyn Survey) -> Result<Self, PlacesError> {
        let own = Netns::own()?;
        let inode = own.inode();
        let place = Place {
            wire: own.run(Wire::open)??,
            netns: own,
            host_nsid: None,
        };
        Ok(Self {
            own: inode,
            survey,
            containers: None,
            open: BTreeMap::from([(inode, place)]),
            known: BTreeMap::new(),
        })
    }

    /// The one with this inode.
    pub(super) fn get(&mut self, inode: u32) -> Option<&mut Place> {
        self.open.get_mut(&inode)
    }

    /// The inode of the namespace that `netns` names, which is opened.
    pub(super) fn resolve(&mut self, netns: Option<&NetnsRef>) -> Result<u32, Absence> {
        let Some(netns) = netns else { return Ok(self.own) };
        if let Some(known) = self.known.get(netns) {
            return known.clone();
        }
        let found = self.look_up(netns);
        self.known.insert(netns.clone(), found.clone());
        found
    }

    fn look_up(&mut self, netns: &NetnsRef) -> Result<u32, Absence> {
        match netns {
            NetnsRef::Name(name) => self.take(&Path::new(NAMED).join(name), netns.to_string()),
            NetnsRef::Path(path) => self.take(path, netns.to_string()),
            NetnsRef::Container(name) => {
                let place = self.container(name)?;
                let inode = self.take(&place.path, netns.to_string())?;
                if inode != place.inode {
                    return Err(Absence::NotYet(format!("the container {name} has gone")));
                }
                Ok(inode)
            }
            NetnsRef::Pid(pid) => {
                // A number that was given away again between two looks would lead into a stranger's namespace.
                let born = started(*pid);
                let inode = self.take(&PathBuf::from(format!("/proc/{pid}/ns/net")), netns.to_string())?;
                if born.is_none() || started(*pid) != born {
                    return Err(Absence::NotYet(format!("the process {pid} has ended")));
                }
                Ok(inode)
            }
        }
    }

    /// Where the namespace of a container is.
    fn container(&mut self, name: &str) -> Result<ContainerPlace, Absence> {
        let survey = self.survey;
        let all = self.containers.get_or_insert_with(|| survey.containers());
        let all = all.as_ref().map_err(|why| Absence::NotYet(why.clone()))?;
        match resolve::container(all, name, Exactness::Exact) {
            Ok(number) => Ok(all[number].clone()),
            Err(error @ ResolveError::NotFound { .. }) => Err(Absence::NotYet(error.to_string())),
            Err(error @ ResolveError::Ambiguous { .. }) => Err(Absence::Never(error.to_string())),
        }
    }

    fn take(&mut self, path: &Path, label: String) -> Result<u32, Absence> {
        let netns = Netns::open(path, label).map_err(|error| absence(path, &error))?;
        let inode = netns.inode();
        if !self.open.contains_key(&inode) {
            let place = self.enter(netns).map_err(|error| {
                Absence::Never(format!(
                    "cannot work in the network namespace {}: {error}",
                    path.display()
                ))
            })?;
            self.open.insert(inode, place);
        }
        Ok(inode)
    }

    fn enter(&self, netns: Arc<Netns>) -> Result<Place, Box<dyn std::error::Error>> {
        let mut wire = netns.run(Wire::open)??;
        let own = self.open.get(&self.own).map(|place| Arc::clone(&place.netns));
        let host_nsid = own.map(|own| wire.nsid_of(own.as_fd())).transpose()?;
        Ok(Place { netns, wire, host_nsid })
    }

    /// Opens all that have a name: something may have been moved there.
    pub(super) fn take_all_named(&mut self) {
        let Ok(names) = fs::read_dir(NAMED) else { return };
        for name in names.filter_map(Result::ok) {
            let label = name.file_name().to_string_lossy().into_owned();
            // One that cannot be opened holds nothing that could be brought back.
            let _ = self.take(&name.path(), label);
        }
    }

    /// Reads all that are open. One that cannot be read any more has gone.
    pub(super) fn read(&mut self) -> Result<Actual, PlacesError> {
        let mut actual = Actual {
            own: self.own,
            ..Actual::default()
        };
        for (inode, place) in &mut self.open {
            let label = place.netns.label().to_owned();
            let label = if *inode == self.own { HOST.to_owned() } else { label };
            let state = SpaceState::read(&mut place.wire, label.clone(), place.host_nsid)
                .map_err(|source| PlacesError::Read { label, source })?;
            actual.spaces.insert(*inode, state);
        }
        Ok(actual)
    }

    /// Gives each an id in the agent's own namespace, by which the kernel tells of its changes there.
    pub(super) fn be_told(&mut self) {
        let others: Vec<_> = self.open.values().map(|place| Arc::clone(&place.netns)).collect();
        let Some(own) = self.open.get_mut(&self.own) else {
            return;
        };
        for netns in others.iter().filter(|netns| netns.inode() != self.own) {
            // Without an id its changes are seen at the next regular look.
            let _ = own.wire.nsid_of(netns.as_fd());
        }
    }
}

fn absence(path: &Path, error: &NetnsError) -> Absence {
    let shown = path.display();
    match error {
        NetnsError::Open { source, .. } if source.kind() == io::ErrorKind::NotFound => Absence::NotYet(format!(
            "there is no network namespace {shown}; it will be made when there is one"
        )),
        // Between its file and its mount, or a name that was left behind.
        NetnsError::NotNetns { .. } if path.starts_with(NAMED) => Absence::NotYet(format!(
            "{shown} is not a network namespace; it will be made when it is one"
        )),
        NetnsError::NotNetns { .. } => Absence::Never(format!(
            "{shown} is not a network namespace: expected a file like /run/netns/NAME or /proc/PID/ns/net"
        )),
        NetnsError::Open { source, .. } => {
            Absence::Never(format!("cannot open the network namespace {shown}: {source}"))
        }
        NetnsError::Join { source, .. } => Absence::Never(format!(
            "cannot join the network namespace {shown}: {source}; that needs CAP_SYS_ADMIN"
        )),
        NetnsError::Thread { source, .. } => Absence::NotYet(format!("cannot start a thread: {source}")),
    }
}

/// When a process started, in ticks since the host did.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold spaces and brackets; field 22 counts from before it.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// The containers on this host; for threads on which blocking is allowed.
pub(super) fn containers(sources: &Sources) -> Result<Vec<ContainerPlace>, String> {
    let found = tokio::runtime::Handle::current().block_on(owners::containers(sources.clone()));
    found.map_err(|error| format!("the containers cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{owners::Owner, topology::inventory::Inventory};

    struct Host(Vec<ContainerPlace>);

    impl Survey for Host {
        fn inventory(&self) -> Inventory {
            Inventory::default()
        }

        fn containers(&self) -> Result<Vec<ContainerPlace>, String> {
            Ok(self.0.clone())
        }
    }

    fn of(namespace: &str, pod: &str) -> ContainerPlace {
        ContainerPlace {
            owner: Owner {
                pod_name: pod.to_owned(),
                pod_namespace: namespace.to_owned(),
                ..Owner::default()
            },
            inode: 1,
            netns: String::new(),
            path: "/proc/self/ns/net".into(),
        }
    }

    #[test]
    fn a_process_has_a_start_and_a_missing_one_has_none() {
        assert!(started(std::process::id()).is_some_and(|ticks| ticks > 0));
        assert_eq!(started(u32::MAX), None);
    }

    #[test]
    fn missing_namespaces_may_come_and_other_files_will_not() {
        let host = Host(vec![of("shop", "web-1"), of("shop", "web-2"), of("blog", "web-2")]);
        let mut places = Places::open(&host).expect("the own one");
        let mut look = |text: &str| places.resolve(Some(&text.parse().expect("valid")));
        assert!(matches!(look("no-such-namespace"), Err(Absence::NotYet(_))));
        assert!(matches!(look("/proc/self/status"), Err(Absence::Never(_))));
        assert!(matches!(look("/proc/self/ns/uts"), Err(Absence::Never(_))));
        assert!(matches!(look("container:web"), Err(Absence::NotYet(_))));
        assert!(matches!(look("container:web-2"), Err(Absence::Never(why)) if why.contains("shop/web-2, blog/web-2")));
        // What was found there before is no longer it.
        assert!(matches!(look("container:web-1"), Err(Absence::NotYet(why)) if why.contains("has gone")));
        assert!(matches!(look("pid:4294967295"), Err(Absence::NotYet(_))));
        assert!(look("/proc/self/ns/net").is_ok());
    }
}
