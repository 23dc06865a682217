//! The table of kernels, and how one comes from Debian's archive into the cache.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::{apt, host};

/// One row of the table.
#[derive(Debug, Deserialize)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    suite: Option<String>,
    #[serde(default)]
    packages: Vec<String>,
    /// Hook and the mechanism it must be attached by.
    pub(crate) hooks: BTreeMap<String, String>,
    /// What not every kernel has and this one has not.
    #[serde(default)]
    pub(crate) lacks: Vec<String>,
    /// Test binaries that are not started here.
    #[serde(default)]
    pub(crate) leaves: Vec<String>,
}

#[derive(Deserialize)]
struct Table {
    kernel: Vec<Kernel>,
}

/// Whether the archive is asked for a newer package where there is one in the cache.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freshness {
    Newest,
    Cached,
}

/// A kernel's unpacked packages.
pub(crate) struct Tree {
    pub(crate) path: PathBuf,
}

/// Every row of the table, in its order.
pub(crate) fn table() -> Result<Vec<Kernel>> {
    let path = host::work_tree()?.join("tests/vm/kernels.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let table: Table = toml::from_str(&text).with_context(|| format!("read {}", path.display()))?;
    Ok(table.kernel)
}

/// The row of that name.
pub(crate) fn find(name: &str) -> Result<Kernel> {
    let mut rows = table()?;
    let names: Vec<_> = rows
        .iter()
        .filter(|row| !row.is_host())
        .map(|row| row.name.clone())
        .collect();
    let place = rows.iter().position(|row| row.name == name && !row.is_host());
    let place = place.with_context(|| format!("no kernel `{name}` in tests/vm/kernels.toml, which has {names:?}"))?;
    Ok(rows.swap_remove(place))
}

impl Kernel {
    /// Whether this is the kernel that the tests are started on.
    pub(crate) fn is_host(&self) -> bool {
        self.suite.is_none()
    }

    /// The hooks as `name=mechanism`, with commas between.
    pub(crate) fn hooks_text(&self) -> String {
        let hooks = self.hooks.iter().map(|(hook, mechanism)| format!("{hook}={mechanism}"));
        hooks.collect::<Vec<_>>().join(",")
    }

    /// The unpacked kernel: from the cache, or from the archive where that has a newer one or the cache has none.
    pub(crate) fn fetch(&self, freshness: Freshness) -> Result<Tree> {
        let _lock = host::lock_cache()?;
        let home = host::cache()?.join("kernels").join(&self.name);
        let cached = newest_entry(&home);
        let path = match (cached, freshness) {
            (Some(cached), Freshness::Cached) => cached,
            (Some(cached), Freshness::Newest) => self.fetch_newest(&home).unwrap_or_else(|error| {
                println!("{}: taken from the cache ({}): {error:#}", self.name, cached.display());
                cached
            }),
            (None, _) => self.fetch_newest(&home)?,
        };
        Ok(Tree { path })
    }

    fn fetch_newest(&self, home: &Path) -> Result<PathBuf> {
        let suite = self.suite.as_deref().context("the host's own kernel is not fetched")?;
        let archive = apt::Suite::fetch(suite)?;
        let (version, packages) = newest(&self.packages, &archive.packages()?)
            .with_context(|| format!("{suite} has no package like {:?}", self.packages))?;
        let tree = home.join(version);
        if !tree.exists() {
            println!("{}: unpacking {}", self.name, packages.join(" "));
            archive.unpack(&packages, &tree)?;
        }
        Ok(tree)
    }
}

impl Tree {
    /// The kernel itself.
    pub(crate) fn image(&self) -> Result<PathBuf> {
        let boot = ["boot", "usr/boot", "usr/lib/kernel", "usr/lib/modules"].map(|place| self.path.join(place));
        let places = boot
            .into_iter()
            .flat_map(|place| entries(&place).into_iter().flat_map(with_entries));
        let mut images = places.filter(|path| file_name(path).starts_with("vmlinuz"));
        images
            .next()
            .with_context(|| format!("no vmlinuz under {}", self.path.display()))
    }

    /// The version its modules are for; makes their index where the package has none.
    pub(crate) fn index_modules(&self) -> Result<String> {
        // Tools look below lib/modules; newer packages have usr/lib/modules only.
        if !self.path.join("lib").exists() {
            std::os::unix::fs::symlink("usr/lib", self.path.join("lib"))?;
        }
        let modules = self.path.join("lib/modules");
        let found = entries(&modules);
        ensure!(
            found.len() == 1,
            "{} should hold one version: {found:?}",
            modules.display()
        );
        let version = file_name(&found[0]);
        if !found[0].join("modules.dep").exists() {
            host::read(host::tool("depmod").arg("-b").arg(&self.path).arg(&version))?;
        }
        Ok(version)
    }
}

/// The newest version for which every pattern has a package: the first package's version, and the packages' names.
fn newest(patterns: &[String], packages: &BTreeMap<String, String>) -> Option<(String, Vec<String>)> {
    let (start, end) = patterns.first()?.split_once('*')?;
    let versions = packages
        .keys()
        .filter_map(|name| name.strip_prefix(start)?.strip_suffix(end));
    let names = |version: &str| {
        patterns
            .iter()
            .map(|pattern| pattern.replace('*', version))
            .collect::<Vec<_>>()
    };
    let whole = versions.filter(|version: &&str| names(version).iter().all(|name| packages.contains_key(name)));
    let names = names(whole.max_by(|left, right| compare_versions(left, right))?);
    Some((packages[&names[0]].clone(), names))
}

/// Orders versions by their numbers, then by what stands between them: `6.1.9` comes before `6.1.10`.
fn compare_versions(left: &str, right: &str) -> Ordering {
    let numbers = |version: &str| -> Vec<u64> {
        version
            .split(|letter: char| !letter.is_ascii_digit())
            .filter_map(|number| number.parse().ok())
            .collect()
    };
    numbers(left).cmp(&numbers(right)).then_with(|| left.cmp(right))
}

/// The newest of a directory's entries that are whole.
fn newest_entry(directory: &Path) -> Option<PathBuf> {
    let whole = entries(directory)
        .into_iter()
        .filter(|path| !file_name(path).starts_with('.'));
    whole.max_by(|left, right| compare_versions(&file_name(left), &file_name(right)))
}

/// What a directory holds, nothing where there is no such directory.
fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}

fn with_entries(path: PathBuf) -> impl Iterator<Item = PathBuf> {
    let inner = entries(&path);
    std::iter::once(path).chain(inner)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(packages: &[(&str, &str)]) -> BTreeMap<String, String> {
        packages
            .iter()
            .map(|(name, version)| ((*name).to_owned(), (*version).to_owned()))
            .collect()
    }

    #[test]
    fn the_newest_kernel_is_chosen_by_number() {
        let packages = archive(&[
            ("linux-image-6.12.9+deb12-cloud-amd64", "6.12.9-1"),
            ("linux-image-6.12.117+deb12-cloud-amd64", "6.12.117-1"),
            ("linux-image-6.12.117+deb12-cloud-amd64-dbg", "6.12.117-1"),
            ("linux-image-6.1.0-56-cloud-amd64", "6.1.192-2"),
        ]);
        let (version, names) = newest(&["linux-image-6.12.*-cloud-amd64".to_owned()], &packages).unwrap();
        assert_eq!(
            (version.as_str(), names[0].as_str()),
            ("6.12.117-1", "linux-image-6.12.117+deb12-cloud-amd64")
        );
    }

    #[test]
    fn a_version_without_all_its_packages_is_passed_over() {
        let packages = archive(&[
            ("binary-7.3.4-cloud", "7.3.4-1"),
            ("binary-7.3.5-cloud", "7.3.5-1"),
            ("modules-7.3.4-cloud", "7.3.4-1"),
        ]);
        let patterns = ["binary-7.3.*-cloud", "modules-7.3.*-cloud"].map(str::to_owned);
        let (version, names) = newest(&patterns, &packages).unwrap();
        assert_eq!(version, "7.3.4-1");
        assert_eq!(names, ["binary-7.3.4-cloud", "modules-7.3.4-cloud"]);
    }

    #[test]
    fn no_package_is_no_kernel() {
        assert!(
            newest(
                &["linux-image-9.*-amd64".to_owned()],
                &archive(&[("linux-image-6.1-amd64", "6.1")])
            )
            .is_none()
        );
    }

    #[test]
    fn the_table_has_the_host_and_says_what_must_attach_everywhere() {
        let table: Table = toml::from_str(include_str!("../../../tests/vm/kernels.toml")).unwrap();
        assert_eq!(table.kernel.iter().filter(|kernel| kernel.is_host()).count(), 1);
        for kernel in &table.kernel {
            let hooks: Vec<_> = kernel.hooks.keys().map(String::as_str).collect();
            assert_eq!(
                hooks,
                ["frame_free", "handle_frame", "parent_egress", "parent_ingress"],
                "{}",
                kernel.name
            );
        }
    }
}
