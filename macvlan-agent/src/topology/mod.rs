//! Which macvlan sub-interfaces there are, on which parents, in which namespaces, and how that changes.
//!
//! This room knows namespaces, netlink, links and addresses. It must not know eBPF, metrics or HTTP.
//! [`watcher::start`] gives an [`inventory::Inventory`] that is kept up to date; everything else here serves it.

pub mod inventory;
pub mod link;
pub mod netlink;
pub mod netns;
pub mod statistics;
pub mod watcher;

mod address;
mod follower;
mod moves;
mod names;
mod processes;
mod tracker;
mod unicast;
