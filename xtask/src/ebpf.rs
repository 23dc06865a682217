//! The eBPF object: built from its sources the same way everywhere, and compared with what is committed.

mod btf;
mod contents;
mod sidecar;
mod toolchain;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::host;
use contents::Contents;
use sidecar::Sidecar;
use toolchain::Toolchain;

const PACKAGE: &str = "macvlan-agent-ebpf";
const TARGET: &str = "bpfel-unknown-none";
const OBJECT: &str = "macvlan-agent/bpf/macvlan-agent.x86_64.bpfel.o";

/// Installs the tools that build the object.
pub(crate) fn provision() -> Result<()> {
    Toolchain::provision().map(drop)
}

/// Builds the object and writes it with its sidecar.
pub(crate) fn write() -> Result<()> {
    let tree = host::work_tree()?;
    let toolchain = Toolchain::provision()?;
    let object = build(&tree, &toolchain)?;
    let sidecar = Sidecar::new(&tree, &object, &toolchain)?;
    let path = tree.join(OBJECT);
    fs::create_dir_all(path.parent().context("the object has no directory")?)?;
    fs::write(&path, &object).with_context(|| format!("write {OBJECT}"))?;
    sidecar.write(&path)?;
    println!("{OBJECT}: {} bytes, sha256 {}", object.len(), sidecar.object_sha256);
    Ok(())
}

/// Whether the sources and the object are those of the sidecar; needs no tools.
pub(crate) fn check() -> Result<()> {
    let tree = host::work_tree()?;
    let sidecar = Sidecar::read(&tree.join(OBJECT))?;
    let source = sidecar::source_sha256(&tree)?;
    ensure!(
        source == sidecar.source_sha256,
        "the eBPF sources have changed since the object was built: {REMEDY}"
    );
    let object = read_object(&tree)?;
    ensure!(
        sidecar::sha256(&object) == sidecar.object_sha256,
        "{OBJECT} is not what its sidecar says: {REMEDY}"
    );
    Ok(())
}

/// Whether building anew gives what is committed: its bytes where the tools are the same, else its contents.
pub(crate) fn verify() -> Result<String> {
    let tree = host::work_tree()?;
    let toolchain = Toolchain::provision()?;
    let fresh = build(&tree, &toolchain)?;
    let committed = read_object(&tree)?;
    let sidecar = Sidecar::read(&tree.join(OBJECT))?;
    if sidecar.has_tools_of(&toolchain) {
        ensure!(
            fresh == committed,
            "the object built anew has other bytes than {OBJECT}: {REMEDY}"
        );
        return Ok(format!("compared bytes, built by {}", sidecar.tools()));
    }
    let differences = Contents::read(&committed)?.differences(&Contents::read(&fresh)?);
    ensure!(
        differences.is_empty(),
        "the object built anew differs from {OBJECT}: {REMEDY}\n{}",
        differences.join("\n")
    );
    Ok(format!(
        "compared programs, maps and types: {} is not {}",
        toolchain.tools(),
        sidecar.tools()
    ))
}

const REMEDY: &str = "run cargo xtask ebpf";

fn read_object(tree: &Path) -> Result<Vec<u8>> {
    fs::read(tree.join(OBJECT)).with_context(|| format!("read {OBJECT}: {REMEDY}"))
}

/// Builds the object below `target/` and gives its bytes, without DWARF.
fn build(tree: &Path, toolchain: &Toolchain) -> Result<Vec<u8>> {
    let target = tree.join("target/ebpf");
    // What another run left there must not stand in for a build.
    if target.exists() {
        fs::remove_dir_all(&target).with_context(|| format!("remove {}", target.display()))?;
    }
    let mut cargo = toolchain.cargo();
    cargo
        .current_dir(tree)
        .args(["build", "--package", PACKAGE, "--bin", PACKAGE, "--features", "program"]);
    cargo
        .args(["--profile", "bpf", "--target", TARGET, "--locked", "--target-dir"])
        .arg(&target);
    host::read(forget_outer_cargo(&mut cargo).env("CARGO_ENCODED_RUSTFLAGS", flags(tree, toolchain)?))?;
    let built = target.join(TARGET).join("bpf").join(PACKAGE);
    let stripped = target.join("macvlan-agent.o");
    host::read(
        host::tool(&toolchain.objcopy)
            .arg("--strip-debug")
            .args([&built, &stripped]),
    )?;
    let mut object = fs::read(&stripped).with_context(|| format!("read {}", stripped.display()))?;
    btf::order_forward_types(&mut object)?;
    Ok(object)
}

/// What the compiler is told: paths of this machine stay out of the object, which holds them for each line otherwise.
fn flags(tree: &Path, toolchain: &Toolchain) -> Result<String> {
    let mut flags = vec![
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // The processors that the object is for read words wherever they lie, and the kernel lets programs do so there
        // (`CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS`): else each byte of a MAC is read alone.
        "-Ctarget-feature=+allows-misaligned-mem-access".to_owned(),
        format!("-Clinker={}", toolchain.linker.display()),
        format!("--remap-path-prefix={}=/macvlan-agent", tree.display()),
    ];
    for registry in registries()? {
        flags.push(format!("--remap-path-prefix={}=/registry", registry.display()));
    }
    Ok(flags.join("\x1f"))
}

/// Where cargo keeps the sources of dependencies: one directory for each registry, named by the machine.
fn registries() -> Result<Vec<PathBuf>> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let default = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
    let sources = home.or_else(default).context("HOME is not set")?.join("registry/src");
    fs::create_dir_all(&sources).with_context(|| format!("create {}", sources.display()))?;
    let entries = fs::read_dir(&sources).with_context(|| format!("read {}", sources.display()))?;
    let mut registries: Vec<_> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    registries.sort();
    Ok(registries)
}

/// Takes out what the cargo of the task would tell the cargo of another toolchain.
fn forget_outer_cargo(command: &mut Command) -> &mut Command {
    for name in [
        "CARGO",
        "RUSTUP_TOOLCHAIN",
        "RUSTFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
    ] {
        command.env_remove(name);
    }
    command
}
