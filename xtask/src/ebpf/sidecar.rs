//! What is written beside the object: the hash of the sources it was built from, its own, and the tools that built it.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::toolchain::Toolchain;

const NOTE: &str = "# Written by `cargo xtask ebpf`; `cargo xtask ebpf --check` compares it.\n";

/// Crates whose version is part of the sources: they are compiled into the object.
const COMPILED_IN: [&str; 2] = ["aya-ebpf", "aya-log-ebpf"];

/// The file beside the object.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Sidecar {
    pub(crate) source_sha256: String,
    pub(crate) object_sha256: String,
    rustc: String,
    bpf_linker: String,
    llvm: String,
}

#[derive(Deserialize)]
struct Lock {
    package: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
}

impl Sidecar {
    pub(crate) fn new(tree: &Path, object: &[u8], toolchain: &Toolchain) -> Result<Self> {
        Ok(Self {
            source_sha256: source_sha256(tree)?,
            object_sha256: sha256(object),
            rustc: toolchain.rustc_version.clone(),
            bpf_linker: toolchain.linker_version.clone(),
            llvm: toolchain.llvm_version.clone(),
        })
    }

    pub(crate) fn read(object: &Path) -> Result<Self> {
        let path = object.with_extension("toml");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("read {}", path.display()))
    }

    pub(crate) fn write(&self, object: &Path) -> Result<()> {
        let path = object.with_extension("toml");
        fs::write(&path, format!("{NOTE}{}", toml::to_string(self)?))
            .with_context(|| format!("write {}", path.display()))
    }

    /// Whether these tools wrote it.
    pub(crate) fn has_tools_of(&self, toolchain: &Toolchain) -> bool {
        self.tools() == toolchain.tools()
    }

    /// The tools in one line.
    pub(crate) fn tools(&self) -> String {
        format!("{}, LLVM {}, {}", self.rustc, self.llvm, self.bpf_linker)
    }
}

/// The hash of all that the object is made of: the crate's files and the versions of what is compiled in.
pub(crate) fn source_sha256(tree: &Path) -> Result<String> {
    let package = tree.join("macvlan-agent-ebpf");
    let mut files = files_below(&package.join("src"))?;
    files.push(package.join("Cargo.toml"));
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let bytes = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        // Lengths keep a byte from moving between a name and its file unseen.
        hash.update(format!("{} {}\n", file.strip_prefix(tree)?.display(), bytes.len()));
        hash.update(&bytes);
    }
    let lock = fs::read_to_string(tree.join("Cargo.lock")).context("read Cargo.lock")?;
    for line in compiled_in(&lock)? {
        hash.update(line);
    }
    Ok(hexadecimal(&hash.finalize()))
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn compiled_in(lock: &str) -> Result<Vec<String>> {
    let lock: Lock = toml::from_str(lock).context("read Cargo.lock")?;
    let is_compiled_in = |package: &Package| COMPILED_IN.iter().any(|prefix| package.name.starts_with(prefix));
    let packages = lock.package.into_iter().filter(is_compiled_in);
    let mut lines: Vec<_> = packages
        .map(|package| format!("{} {}\n", package.name, package.version))
        .collect();
    lines.sort();
    Ok(lines)
}

fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(program: &str, aya: &str, other: &str) -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        let package = tree.path().join("macvlan-agent-ebpf");
        fs::create_dir_all(package.join("src/hooks")).unwrap();
        fs::write(package.join("src/main.rs"), "mod hooks;").unwrap();
        fs::write(package.join("src/hooks/frame.rs"), program).unwrap();
        fs::write(package.join("Cargo.toml"), "[package]").unwrap();
        let package = |name: &str, version: &str| format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\n");
        let lock = package("aya-ebpf", aya) + &package("serde", other);
        fs::write(tree.path().join("Cargo.lock"), lock).unwrap();
        tree
    }

    #[test]
    fn the_source_hash_follows_what_is_compiled_and_nothing_else() {
        let hash = |program, aya, other| source_sha256(tree(program, aya, other).path()).unwrap();
        let first = hash("fn a() {}", "0.2.1", "1.0");
        assert_eq!(
            first,
            hash("fn a() {}", "0.2.1", "1.1"),
            "another directory, another serde"
        );
        assert_ne!(first, hash("fn b() {}", "0.2.1", "1.0"));
        assert_ne!(first, hash("fn a() {}", "0.2.2", "1.0"));
    }

    #[test]
    fn a_hash_is_written_as_sha256sum_writes_it() {
        assert_eq!(
            sha256(b""),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
