//! What the running kernel says of itself, read once at start: where its fields are, what it means when it frees a
//! frame, and which of its functions are described.

use std::path::Path;

use aya::util::KernelVersion;
use macvlan_agent_ebpf::abi::Offsets;

use super::{
    attach::HANDLER,
    btf::{Btf, BtfError},
    drop_reason::{DropReasons, Symbols},
    hooks::{NotAttached, Reason},
    offsets,
};

/// Facts about the running kernel.
pub struct Facts {
    /// Where the fields are that the hooks read.
    pub offsets: Result<Offsets, NotAttached>,
    /// What it says when it frees a frame.
    pub drop_reasons: DropReasons,
    /// Where the functions are in which it does.
    pub symbols: Symbols,
    /// Whether macvlan's handler is described among the kernel's own functions: macvlan is built in.
    pub handler_is_built_in: bool,
    /// Whether no counter shows what a device without carrier throws away: `noop_enqueue` counts since 6.11.
    pub unsent_is_uncounted: bool,
}

impl Facts {
    /// Reads them; `btf` is the file with the kernel's types.
    #[must_use]
    pub fn read(btf: &Path) -> Self {
        let unknown = |error: &BtfError| {
            let advice = "handle_frame and frame_free need a kernel built with CONFIG_DEBUG_INFO_BTF";
            NotAttached::new(Reason::NoField, format!("{error}; {advice}"))
        };
        let btf = Btf::read(btf).map_err(|error| unknown(&error));
        let offsets = match &btf {
            Ok(btf) => offsets::resolve(btf).map_err(|error| unknown(&error)),
            Err(missing) => Err(missing.clone()),
        };
        let known = btf.as_ref().ok();
        let symbols = Symbols::read(&[HANDLER]).unwrap_or_else(|error| {
            tracing::debug!(%error, "the kernel's symbols cannot be read");
            Symbols::default()
        });
        Self {
            offsets,
            drop_reasons: known.and_then(|btf| DropReasons::resolve(btf).ok()).unwrap_or_default(),
            symbols,
            handler_is_built_in: known.is_some_and(|btf| matches!(btf.function(HANDLER), Ok(Some(_)))),
            unsent_is_uncounted: KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(6, 11, 0)),
        }
    }
}
