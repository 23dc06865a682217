//! What the running kernel says of itself, read once at start: where its fields are, what it means when it frees a
//! frame, and which of its functions are described.

use std::path::Path;

use aya::util::KernelVersion;
use macvlan_agent_ebpf::abi::Offsets;

use super::{
    attach::HANDLER,
    btf::{self, Btf, BtfError},
    drop_reason::DropReasons,
    hooks::{NotAttached, Reason},
    offsets,
};

/// Facts about the running kernel.
pub struct Facts {
    /// Where the fields are that the hooks read.
    pub offsets: Result<Offsets, NotAttached>,
    /// What it says when it frees a frame.
    pub drop_reasons: DropReasons,
    /// The number of macvlan's handler among the kernel's own functions, where macvlan is built in.
    pub built_in_handler: Option<u32>,
    /// Whether no counter shows what a device without carrier throws away: `noop_enqueue` counts since 6.11.
    pub unsent_is_uncounted: bool,
}

impl Facts {
    /// Reads them; `path` is the file with the kernel's types.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        let unknown = |error: &BtfError| {
            let advice = "handle_frame and frame_free need a kernel built with CONFIG_DEBUG_INFO_BTF";
            NotAttached::new(Reason::NoField, format!("{error}; {advice}"))
        };
        let types = Btf::read(path).map_err(|error| unknown(&error));
        let offsets = match &types {
            Ok(btf) => offsets::resolve(btf).map_err(|error| unknown(&error)),
            Err(missing) => Err(missing.clone()),
        };
        let known = types.as_ref().ok();
        let number = |btf: &Btf| btf.function(HANDLER).ok()?;
        Self {
            offsets,
            drop_reasons: known.and_then(|btf| DropReasons::resolve(btf).ok()).unwrap_or_default(),
            // A program is attached by this number: it is asked of nobody else.
            built_in_handler: if path == Path::new(btf::VMLINUX) {
                known.and_then(number)
            } else {
                Btf::read(Path::new(btf::VMLINUX)).ok().as_ref().and_then(number)
            },
            unsent_is_uncounted: KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(6, 11, 0)),
        }
    }
}
