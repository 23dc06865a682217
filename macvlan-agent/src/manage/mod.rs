//! Makes interfaces and keeps them as they were asked for.
//!
//! What is wanted ([`wanted`]) and what there is ([`state`]) meet in a pure plan ([`plan`]); [`apply`] carries it out over
//! netlink ([`wire`]). What was made is written down before it is made ([`record`]), and bears a mark, so that a crash at
//! any point leaves nothing that the next start does not know.

pub mod apply;
pub mod command;
pub mod control;
pub mod daemon;
pub mod operation;
pub mod plan;
pub mod record;
pub mod shim;
pub mod state;
pub mod step;
pub mod view;
pub mod wanted;
pub mod wire;

mod announce;
mod memory;
mod places;
mod sentence;
