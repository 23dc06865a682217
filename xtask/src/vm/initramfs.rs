//! The first and only file system of a machine: busybox, iproute2, bpftool, the programs asked for, their libraries,
//! and the modules that sub-interfaces and their parents need.

use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::kernel::Tree;
use crate::host;

/// The modules, with options that keep them from making interfaces nobody asked for.
const MODULES: [(&str, &str); 12] = [
    ("macvlan", ""),
    ("macvtap", ""),
    ("veth", ""),
    ("dummy", "numdummies=0"),
    ("8021q", ""),
    ("bonding", "max_bonds=0"),
    ("bridge", ""),
    ("sch_ingress", ""),
    ("cls_bpf", ""),
    ("sch_netem", ""),
    ("virtio_pci", ""),
    ("virtio_net", ""),
];

/// What some kernels have built in, of which their packages say nothing: it is taken where it is a module.
const BUILT_IN_SOMEWHERE: &str = "virtio_pci";

/// Applets that would stand in for programs we bring.
const LEFT_OUT_APPLETS: [&str; 3] = ["busybox", "ip", "tc"];

const INIT: &str = include_str!("init.sh");

/// A program of the machine that builds, and where it stands in the machine that boots.
pub(crate) struct Program {
    from: PathBuf,
    to: PathBuf,
}

impl Program {
    /// A program for `/bin`, under its own name.
    pub(crate) fn in_bin(from: &Path) -> Result<Self> {
        Self::in_directory(from, "bin")
    }

    /// A program for a directory at the top, under its own name.
    pub(crate) fn in_directory(from: &Path, directory: &str) -> Result<Self> {
        let name = from
            .file_name()
            .with_context(|| format!("{} has no name", from.display()))?;
        Ok(Self {
            from: from.to_owned(),
            to: Path::new(directory).join(name),
        })
    }

    /// Its absolute path in the machine.
    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/").join(&self.to)
    }
}

/// Writes an image that boots, runs `script` with a shell and says its verdict.
pub(crate) fn pack(kernel: &Tree, programs: &[Program], script: &str, image: &Path) -> Result<()> {
    let directory = tempfile::tempdir().context("make a directory for the image")?;
    let root = directory.path();
    for directory in [
        "bin",
        "sbin",
        "proc",
        "sys",
        "dev",
        "tmp",
        "run",
        "etc",
        "lib/modules",
        "usr",
    ] {
        fs::create_dir_all(root.join(directory))?;
    }
    symlink("../bin", root.join("usr/bin"))?;
    symlink("../bin", root.join("usr/sbin"))?;
    add_busybox(root)?;
    add_modules(root, kernel)?;
    for program in programs {
        add_program(root, program).with_context(|| format!("pack {}", program.from.display()))?;
    }
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n::1 localhost\n")?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    fs::write(root.join("script"), script)?;
    write_executable(&root.join("init"), INIT)?;
    archive(root, image)
}

fn add_busybox(root: &Path) -> Result<()> {
    let busybox = host::find_tool("busybox").context("busybox is not installed")?;
    fs::copy(&busybox, root.join("bin/busybox"))?;
    let applets = host::read(host::tool(&busybox).arg("--list"))?;
    for applet in applets.lines().filter(|applet| !LEFT_OUT_APPLETS.contains(applet)) {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    Ok(())
}

/// Puts the modules into one directory, unpacked, with the order to load them in beside them.
fn add_modules(root: &Path, kernel: &Tree) -> Result<()> {
    let version = kernel.index_modules()?;
    let home = root.join("lib/modules");
    let mut order = String::new();
    for (module, options) in MODULES {
        // Without the settings of the machine that builds, which are no part of a test.
        let mut query = host::tool("modprobe");
        query.args([
            "--config=/dev/null",
            "--set-version",
            &version,
            "--show-depends",
            module,
        ]);
        let needs = match host::read(query.arg("--dirname").arg(&kernel.path)) {
            Err(_) if module == BUILT_IN_SOMEWHERE => continue,
            needs => needs?,
        };
        for file in needs.lines().filter_map(|line| line.strip_prefix("insmod ")) {
            let file = Path::new(file.trim());
            let name = plain_module_name(file)?;
            let options = if name == format!("{module}.ko") { options } else { "" };
            if !home.join(&name).exists() {
                unpack_module(file, &home.join(&name))?;
                writeln!(order, "{name} {options}")?;
            }
        }
    }
    fs::write(home.join("order"), order).context("write the order of the modules")
}

fn plain_module_name(file: &Path) -> Result<String> {
    let name = file
        .file_name()
        .and_then(|name| name.to_str())
        .context("a module without a name")?;
    Ok(name.trim_end_matches(".xz").trim_end_matches(".zst").to_owned())
}

fn unpack_module(from: &Path, to: &Path) -> Result<()> {
    let unpacker = match from.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => {
            return fs::copy(from, to)
                .map(drop)
                .with_context(|| format!("copy {}", from.display()));
        }
    };
    let status = host::tool(unpacker)
        .arg("-dc")
        .arg(from)
        .stdout(File::create(to)?)
        .status()?;
    ensure!(status.success(), "{unpacker} could not unpack {}", from.display());
    Ok(())
}

/// Copies a program without its debug data, which would fill the machine's memory, and the libraries it names.
fn add_program(root: &Path, program: &Program) -> Result<()> {
    let to = root.join(&program.to);
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory)?;
    }
    let is_elf = fs::read(&program.from)?.starts_with(b"\x7fELF");
    if !is_elf {
        return fs::copy(&program.from, &to).map(drop).context("copy");
    }
    host::read(
        host::tool("strip")
            .arg("--strip-debug")
            .arg("-o")
            .arg(&to)
            .arg(&program.from),
    )?;
    // A static program has no libraries: ldd says so with a failure.
    let libraries = host::read(host::tool("ldd").arg(&program.from)).unwrap_or_default();
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        let copy = root.join(library.trim_start_matches('/'));
        if !copy.exists() {
            fs::create_dir_all(copy.parent().context("a library at the top")?)?;
            fs::copy(library, &copy).with_context(|| format!("copy {library}"))?;
        }
    }
    Ok(())
}

fn write_executable(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, Permissions::from_mode(0o755)).with_context(|| format!("write {}", path.display()))
}

/// Packs the directory uncompressed: the emulated processor would need longer to unpack it than to read it.
fn archive(root: &Path, image: &Path) -> Result<()> {
    let mut names = Command::new("find")
        .arg(".")
        .current_dir(root)
        .stdout(Stdio::piped())
        .spawn()?;
    let list = names.stdout.take().context("the list of files")?;
    let mut pack = host::tool("cpio");
    pack.args(["--create", "--format=newc", "--quiet", "--owner=0:0"])
        .current_dir(root);
    let status = pack
        .stdin(list)
        .stdout(File::create(image)?)
        .status()
        .context("start cpio")?;
    ensure!(
        names.wait()?.success() && status.success(),
        "cpio could not pack {}",
        root.display()
    );
    Ok(())
}
