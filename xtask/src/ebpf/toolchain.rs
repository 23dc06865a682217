//! The compiler and linker of the eBPF object: Debian's, which bring a `core` for the target, else a rustup nightly
//! that builds its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{apt, host};

const PACKAGES: [&str; 6] = [
    "cargo-web",
    "libstd-rust-web-dev",
    "libstd-rust-web-dev-bpf",
    "llvm-22",
    "llvm-22-dev",
    "rustc-web",
];
const LLVM: &str = "/usr/lib/llvm-22";
const LINKER_VERSION: &str = "0.13.0";

/// Tools that exist, and what they call themselves.
pub(crate) struct Toolchain {
    kind: Kind,
    pub(crate) linker: PathBuf,
    pub(crate) objcopy: PathBuf,
    pub(crate) rustc_version: String,
    pub(crate) llvm_version: String,
    pub(crate) linker_version: String,
}

#[derive(Clone, Copy)]
enum Kind {
    Debian,
    Nightly,
}

impl Toolchain {
    /// Installs what is missing.
    pub(crate) fn provision() -> Result<Self> {
        let _lock = host::lock_cache()?;
        let kind = if apt::is_present() { Kind::Debian } else { Kind::Nightly };
        let objcopy = match kind {
            Kind::Debian => {
                apt::install(&PACKAGES)?;
                Path::new(LLVM).join("bin/llvm-objcopy")
            }
            Kind::Nightly => nightly_objcopy()?,
        };
        let linker = install_linker(kind)?;
        let versions = host::read(kind.tool("rustc").arg("-vV"))?;
        let llvm = versions.lines().find_map(|line| line.strip_prefix("LLVM version: "));
        Ok(Self {
            kind,
            linker_version: first_line(&host::read(host::tool(&linker).arg("--version"))?),
            rustc_version: first_line(&versions),
            llvm_version: llvm.context("rustc names no LLVM")?.to_owned(),
            linker,
            objcopy,
        })
    }

    /// The cargo that builds the object.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = self.kind.tool("cargo");
        match self.kind {
            // aya-ebpf alone needs an unstable feature; nothing else gets one.
            Kind::Debian => cargo.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "aya_ebpf"),
            Kind::Nightly => cargo.args(["-Z", "build-std=core"]),
        };
        cargo
    }

    /// The tools in one line.
    pub(crate) fn tools(&self) -> String {
        format!(
            "{}, LLVM {}, {}",
            self.rustc_version, self.llvm_version, self.linker_version
        )
    }
}

impl Kind {
    fn tool(self, name: &str) -> Command {
        match self {
            Self::Debian => host::tool(Path::new("/usr/bin").join(name)),
            Self::Nightly => {
                let mut command = host::tool("rustup");
                command.args(["run", "nightly", name]);
                command
            }
        }
    }
}

/// The nightly's own objcopy; says what to do where there is no nightly that can build `core`.
fn nightly_objcopy() -> Result<PathBuf> {
    let remedy = "without apt the eBPF object needs `rustup toolchain install nightly --component rust-src`";
    let root = host::read(Kind::Nightly.tool("rustc").args(["--print", "sysroot"])).context(remedy)?;
    let library = Path::new(root.trim()).join("lib/rustlib");
    ensure!(library.join("src/rust/library/core").exists(), remedy);
    Ok(library.join(format!("{}-unknown-linux-gnu/bin/rust-objcopy", std::env::consts::ARCH)))
}

/// The linker, built against the LLVM of the compiler.
fn install_linker(kind: Kind) -> Result<PathBuf> {
    match kind {
        Kind::Debian => {
            let flags = "--no-default-features --features llvm-22";
            host::crate_program("bpf-linker", LINKER_VERSION, flags, &[("LLVM_PREFIX", LLVM)])
        }
        Kind::Nightly => host::crate_program("bpf-linker", LINKER_VERSION, "", &[]),
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}
