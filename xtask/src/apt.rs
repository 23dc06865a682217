//! Debian packages: installed where a tool must be in its place, or only unpacked into the cache.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::host;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Installs what is not installed yet.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let missing: Vec<_> = packages.iter().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    ensure!(
        is_present(),
        "this machine has no apt-get: install by its own means what Debian calls {missing:?}"
    );
    println!("installing {missing:?}");
    host::read(host::root_tool("apt-get")?.arg("update")).context("refresh the package lists")?;
    let mut install = host::root_tool("env")?;
    install.args([
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "install",
        "--yes",
        "--no-install-recommends",
    ]);
    host::read(install.args(missing))?;
    Ok(())
}

pub(crate) fn is_present() -> bool {
    host::find_tool("apt-get").is_some()
}

fn is_installed(package: &str) -> bool {
    let query = host::read(host::tool("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]));
    query.is_ok_and(|status| status == "installed")
}

/// Unpacks packages of the machine's own suite without installing them, so that no service is started.
pub(crate) fn unpack(packages: &[&str], to: &Path) -> Result<()> {
    replace_directory(to, |fresh| {
        let download = || {
            let mut apt = host::tool("apt-get");
            host::read(apt.arg("download").args(packages).current_dir(fresh))
        };
        download()
            .or_else(|_| {
                host::read(host::root_tool("apt-get")?.arg("update"))?;
                download()
            })
            .with_context(|| format!("download {packages:?}"))?;
        unpack_archives(fresh)
    })
}

/// One suite of Debian, with lists and settings of its own: nothing of it reaches the machine's.
pub(crate) struct Suite {
    settings: PathBuf,
}

impl Suite {
    /// Fetches the suite's package lists.
    pub(crate) fn fetch(name: &str) -> Result<Self> {
        let state = host::cache()?.join("apt").join(name);
        for directory in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(state.join(directory)).with_context(|| format!("create {}", state.display()))?;
        }
        fs::write(
            state.join("sources.list"),
            format!("deb [signed-by={KEYRING}] {} {name} main\n", mirror(name)?),
        )?;
        let settings = state.join("apt.conf");
        fs::write(&settings, settings_text(&state))?;
        let suite = Self { settings };
        host::read(suite.tool("apt-get").arg("update")).with_context(|| format!("fetch the lists of {name}"))?;
        Ok(suite)
    }

    /// Every package the suite has, with its version.
    pub(crate) fn packages(&self) -> Result<BTreeMap<String, String>> {
        let text = host::read(self.tool("apt-cache").arg("dumpavail"))?;
        let field = |paragraph: &str, name: &str| {
            paragraph
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .map(str::to_owned)
        };
        let paragraphs = text.split("\n\n");
        Ok(paragraphs
            .filter_map(|text| Some((field(text, "Package")?, field(text, "Version")?)))
            .collect())
    }

    /// Downloads and unpacks packages into one directory, which appears only when it is whole.
    pub(crate) fn unpack(&self, packages: &[String], to: &Path) -> Result<()> {
        replace_directory(to, |fresh| {
            host::read(self.tool("apt-get").arg("download").args(packages).current_dir(fresh))?;
            unpack_archives(fresh)
        })
    }

    fn tool(&self, program: &str) -> std::process::Command {
        let mut command = host::tool(program);
        command.arg("--config-file").arg(&self.settings);
        command
    }
}

/// The machine's own mirror that carries the suite: security suites have a site to themselves.
fn mirror(suite: &str) -> Result<String> {
    let known = host::read(host::tool("apt-get").args(["indextargets", "--format", "$(SITE)"]))?;
    let ending = if suite.ends_with("-security") {
        "debian-security"
    } else {
        "debian"
    };
    let mirror = known
        .lines()
        .find(|site| site.trim_end_matches('/').ends_with(&format!("/{ending}")));
    mirror
        .map(str::to_owned)
        .with_context(|| format!("apt on this machine knows no mirror that ends in /{ending}"))
}

fn settings_text(state: &Path) -> String {
    let state = state.display();
    // The sandbox user of apt cannot write below a user's home; signatures are still checked. Without the error mode
    // a mirror that cannot be reached is only a warning, and old lists are taken for new ones.
    format!(
        "Dir::State \"{state}\";\nDir::State::lists \"{state}/lists\";\nDir::State::status \"/dev/null\";\n\
         Dir::Cache \"{state}\";\nDir::Cache::archives \"{state}/archives\";\n\
         Dir::Etc::sourcelist \"{state}/sources.list\";\nDir::Etc::sourceparts \"-\";\n\
         Acquire::Languages \"none\";\nAPT::Update::Error-Mode \"any\";\nAPT::Sandbox::User \"\";\n\
         APT::Architecture \"amd64\";\n\
         APT::Architectures {{ \"amd64\"; }};\n"
    )
}

/// Unpacks the downloaded packages of a directory into that directory.
fn unpack_archives(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let archive = entry?.path();
        if archive.extension().is_some_and(|extension| extension == "deb") {
            host::read(host::tool("dpkg-deb").arg("--extract").arg(&archive).arg(directory))?;
            fs::remove_file(&archive)?;
        }
    }
    Ok(())
}

/// Fills a directory beside `to` and moves it there when it is whole.
fn replace_directory(to: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let Some(name) = to.file_name() else {
        bail!("{} has no name", to.display())
    };
    let fresh = to.with_file_name(format!(".{}.part", name.to_string_lossy()));
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    fs::create_dir_all(&fresh).with_context(|| format!("create {}", fresh.display()))?;
    fill(&fresh)?;
    fs::rename(&fresh, to).with_context(|| format!("move {} to {}", fresh.display(), to.display()))
}
