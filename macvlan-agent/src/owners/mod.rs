//! Whose a namespace is: container, image, pod.
//!
//! Told by the cgroups of the processes in it, by Docker's and podman's API, and by the cache of CNI's results. Each may be
//! missing or slow without harm to the others; where two contradict each other, or a namespace is shared, nothing is said.
//! This room knows namespaces and asks only with GET; it must not know metrics or HTTP served.

pub mod api;
pub mod cgroup;
pub mod cni;

mod client;
mod join;
mod task;

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

pub use join::join;
pub use task::{containers, gather_once, start};

/// Whose a namespace is. What is not known is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// `docker`, `podman`, `containerd`, `cri-o`, `lxc`, `systemd-nspawn`, `libvirt`.
    pub runtime: String,
    /// The container's name.
    pub container_name: String,
    /// Its whole id.
    pub container_id: String,
    /// What it was made from.
    pub image: String,
    /// The pod's name.
    pub pod_name: String,
    /// Its Kubernetes namespace.
    pub pod_namespace: String,
}

/// Namespaces by inode, each with its generation: inodes are used again, generations are not.
pub type Generations = BTreeMap<u32, u64>;

/// All owners that are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    /// By the namespace's inode.
    pub by_namespace: BTreeMap<u32, Owner>,
    /// Why more is not known.
    pub problems: Vec<String>,
}

impl Owners {
    /// Whose this namespace is.
    #[must_use]
    pub fn of(&self, netns: u32) -> Option<&Owner> {
        self.by_namespace.get(&netns)
    }
}

/// Where owners are asked for.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Sockets of Docker or of what speaks its API.
    pub sockets: Vec<PathBuf>,
    /// CNI's cache directory, which holds `results/`.
    pub cni: PathBuf,
}

/// Names are short; what is longer comes from somebody who means no good.
fn bounded(mut text: String) -> String {
    const LENGTH: usize = 512;
    if text.len() > LENGTH {
        text.truncate(text.floor_char_boundary(LENGTH));
    }
    text
}
