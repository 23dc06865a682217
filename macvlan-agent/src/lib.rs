//! macvlan-agent: which frames reached a macvlan sub-interface, which did not, and why.
//!
//! What it knows flows one way: kernel maps, join with the inventory, samples, HTTP.

pub mod agent;
pub mod check;
pub mod config;
mod differences;
pub mod http;
pub mod inference;
pub mod keeper;
pub mod kernel;
pub mod kernel_counters;
pub mod list;
pub mod lives;
#[cfg(test)]
mod lot;
pub mod manage;
pub mod metrics;
pub mod observe;
pub mod output;
pub mod owners;
pub mod pace;
mod packet_filter;
pub mod resolve;
pub mod run_dir;
pub mod snapshot;
pub mod topology;
pub mod view;
