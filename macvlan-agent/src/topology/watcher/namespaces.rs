//! The namespaces that are followed, for whoever has to work in one or has to say whose it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

use crate::topology::{
    names::Place,
    netns::{Netns, NetnsError},
    processes::path_of,
};

/// A namespace and where it is to be found.
#[derive(Clone, Default, Eq, PartialEq, Debug)]
pub struct Namespace {
    /// Its inode: its identity while it lives.
    pub inode: u32,
    /// What it is called.
    pub label: String,
    /// Its id in the agent's own namespace, once it is followed; that one needs none.
    pub nsid: Option<i32>,
    /// A file that it is mounted on, or a symbolic link to it.
    pub path: Option<PathBuf>,
    /// Whether that is a mount, which keeps it alive.
    pub mounted: bool,
    /// The processes in it that may be looked at, in order.
    pub processes: Vec<u32>,
    /// Inodes are used again, generations are not.
    pub generation: u64,
}

impl Namespace {
    /// Some file that is this namespace. It may be another one by the time it is opened.
    #[must_use]
    pub fn file(&self) -> Option<PathBuf> {
        let process = self.processes.first().copied();
        self.path.clone().or_else(|| process.map(path_of))
    }
}

#[derive(Debug)]
struct All {
    own: Arc<Netns>,
    generations: u64,
    namespaces: BTreeMap<u32, Namespace>,
}

/// All of them.
#[derive(Clone, Debug)]
pub struct Namespaces(Arc<RwLock<All>>);

impl Namespaces {
    pub(super) fn new(own: Arc<Netns>) -> Self {
        let namespace = Namespace {
            inode: own.inode(),
            label: own.label().to_owned(),
            ..Namespace::default()
        };
        Self(Arc::new(RwLock::new(All {
            generations: 0,
            namespaces: BTreeMap::from([(own.inode(), namespace)]),
            own,
        })))
    }

    /// The namespace with this inode.
    #[must_use]
    pub fn get(&self, inode: u32) -> Option<Namespace> {
        self.look(|all| all.namespaces.get(&inode).cloned())
    }

    /// Whether the namespace with this inode is followed.
    #[must_use]
    pub fn contains(&self, inode: u32) -> bool {
        self.look(|all| all.namespaces.contains_key(&inode))
    }

    /// All of them, the agent's own included.
    #[must_use]
    pub fn all(&self) -> Vec<Namespace> {
        self.look(|all| all.namespaces.values().cloned().collect())
    }

    /// How many there have ever been.
    #[must_use]
    pub fn ever(&self) -> u64 {
        self.look(|all| all.generations)
    }

    /// Opens the namespace with this inode, to run something in it. None when it is not known, or not any more. Let go of
    /// it soon: it is kept alive meanwhile.
    #[must_use]
    pub fn open(&self, inode: u32) -> Option<Result<Arc<Netns>, NetnsError>> {
        let namespace = self.get(inode)?;
        let own = self.look(|all| Arc::clone(&all.own));
        if own.inode() == inode {
            return Some(Ok(own));
        }
        match Netns::open(&namespace.file()?, namespace.label) {
            Ok(netns) if netns.inode() == inode => Some(Ok(netns)),
            Ok(_) | Err(NetnsError::NotNetns { .. }) => None,
            Err(error) => Some(Err(error)),
        }
    }

    pub(super) fn add(&self, inode: u32, label: &str) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.generations += 1;
        let namespace = Namespace {
            inode,
            label: label.to_owned(),
            generation: all.generations,
            ..Namespace::default()
        };
        all.namespaces.insert(inode, namespace);
    }

    pub(super) fn name(&self, inode: u32, nsid: i32) {
        self.change(|all| {
            if let Some(namespace) = all.get_mut(&inode) {
                namespace.nsid = Some(nsid);
            }
        });
    }

    /// Notes where they are now. True when one has got or lost its file.
    pub(super) fn locate(&self, places: &BTreeMap<u32, Place>, processes: &BTreeMap<u32, Vec<u32>>) -> bool {
        let mut moved = false;
        self.change(|all| {
            for (inode, namespace) in all {
                let place = places.get(inode).filter(|place| !place.path.starts_with("/proc"));
                let mounted = place.is_some_and(|place| place.mounted);
                moved |= mounted != namespace.mounted;
                namespace.mounted = mounted;
                namespace.path = place.map(|place| place.path.clone());
                namespace.processes = processes.get(inode).cloned().unwrap_or_default();
            }
        });
        moved
    }

    pub(super) fn path_of(&self, inode: u32) -> Option<PathBuf> {
        self.get(inode)?.file()
    }

    /// Those that a file keeps alive.
    pub(super) fn mounted(&self) -> BTreeSet<u32> {
        self.look(|all| {
            let mounted = all.namespaces.values().filter(|namespace| namespace.mounted);
            mounted.map(|namespace| namespace.inode).collect()
        })
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut BTreeMap<u32, Namespace>)) {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner).namespaces);
    }

    fn look<T>(&self, look: impl FnOnce(&All) -> T) -> T {
        look(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}
