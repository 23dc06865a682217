//! What the tests and `macvlan-lab` stand on: namespaces and links of their own, frames sent by number, an agent as a
//! child process, and what its scrape says.
//!
//! Everything is made without the `ip` tool, so that it works in a bare VM as well, and everything made is removed when
//! it goes out of scope, on panic too. Nothing here knows the agent's code: only its public contract.

pub mod agent;
mod bpf;
pub mod connection;
pub mod docker;
pub mod empty;
pub mod exposition;
pub mod fake_docker;
pub mod fleet;
pub mod flood;
pub mod lab;
pub mod live;
pub mod load;
pub mod maker;
pub mod manage;
pub mod model;
pub mod module;
pub mod moves;
pub mod netns;
pub mod owners;
pub mod panels;
pub mod podman;
pub mod prometheus;
pub mod remains;
pub mod rig;
pub mod sink;
pub mod surroundings;
pub mod tcp;
pub mod tls;
pub mod traffic;
