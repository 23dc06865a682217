//! What both sides of macvlan-agent share: the layout of its maps, and the parts of its logic that are pure.
//!
//! Builds for the BPF target and for the host, where its tests run. The program that goes into the kernel is
//! `main.rs`, built with the feature `program` by `cargo xtask ebpf`.
#![cfg_attr(not(test), no_std)]
#![expect(
    clippy::inline_always,
    reason = "in the kernel each call costs, and 5.10's verifier follows each anew"
)]

pub mod abi;
pub mod flow;
pub mod frame;
pub mod front;
pub mod pending;
pub mod verdict;
