//! What Prometheus sees: one table of metrics, samples made from a snapshot by it, one writer for them.

pub mod catalog;
pub mod own;
pub mod reference;
pub mod text;
