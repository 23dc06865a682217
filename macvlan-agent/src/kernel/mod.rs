//! The kernel side as user space sees it: what this kernel can do, the programs and their hooks, the maps.
//!
//! Names aya and BPF; knows nothing of namespaces' names, metrics or HTTP.

pub mod attach;
pub mod btf;
mod claims;
pub mod clsact;
pub mod counts;
mod credits;
mod direct;
pub mod directory;
pub mod drop_reason;
pub mod facts;
mod fronts;
pub mod hooks;
pub mod load;
pub mod module_events;
pub mod offsets;
pub mod room;
pub mod support;
mod system_call;
pub mod tables;
pub mod tracing_link;
