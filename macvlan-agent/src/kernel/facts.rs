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
    /// How programs may read the kernel's memory themselves.
    pub cast: Option<Cast>,
    /// Whether no counter shows what a device without carrier throws away: `noop_enqueue` counts since 6.11.
    pub unsent_is_uncounted: bool,
}

/// What programs call to read the kernel's memory themselves, by the kernel's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cast {
    /// The function `bpf_rdonly_cast` (6.2 and newer).
    pub function: u32,
    /// A structure that begins with a whole word, `timespec64`.
    pub structure: u32,
}

impl Cast {
    fn find(btf: &Btf) -> Option<Self> {
        let begins = btf.bits("timespec64", &["tv_sec"]).ok()? == 0;
        begins.then_some(Self {
            function: btf.function("bpf_rdonly_cast").ok()??,
            structure: btf.structure_number("timespec64").ok()?,
        })
    }
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
        // What is called or attached to by its number is asked of nobody but the kernel.
        let own = if path == Path::new(btf::VMLINUX) {
            None
        } else {
            Btf::read(Path::new(btf::VMLINUX)).ok()
        };
        let kernel = if path == Path::new(btf::VMLINUX) {
            known
        } else {
            own.as_ref()
        };
        Self {
            offsets,
            drop_reasons: known.and_then(|btf| DropReasons::resolve(btf).ok()).unwrap_or_default(),
            built_in_handler: kernel.and_then(|btf| btf.function(HANDLER).ok()?),
            cast: kernel.and_then(Cast::find),
            unsent_is_uncounted: KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(6, 11, 0)),
        }
    }
}
