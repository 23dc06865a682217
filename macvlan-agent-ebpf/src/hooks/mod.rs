//! One kernel attach point per file.

mod credits;
mod frame_free;
pub(crate) mod handle_frame;
pub(crate) mod parent_egress;
mod parent_ingress;
mod self_test;
mod tables;
