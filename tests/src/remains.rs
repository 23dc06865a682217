//! What container runtimes leave where they cannot be told not to: mounts, cgroups, directories under `/run`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, umount2};

/// Where cgroups are; in version 1 and in mixed set-ups each hierarchy has a directory of its own there.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Removed with its handle, once the runtime has ended.
#[derive(Debug)]
pub struct Remains {
    home: PathBuf,
    cgroup: String,
    directories: Vec<PathBuf>,
}

impl Remains {
    /// Of a runtime that keeps its things in `home`, its containers below `cgroup`, and that makes `directories`: of
    /// those the ones that are there already are somebody else's.
    #[must_use]
    pub fn of(home: &Path, cgroup: &str, directories: &[&str]) -> Self {
        let directories = directories.iter().map(PathBuf::from);
        Self {
            home: home.to_owned(),
            cgroup: cgroup.to_owned(),
            directories: directories.filter(|directory| !directory.exists()).collect(),
        }
    }
}

impl Drop for Remains {
    fn drop(&mut self) {
        // Nobody is left to tell; what could not be removed is seen by the next that looks.
        for mount in mounts_below(&self.home).iter().rev() {
            let _ = umount2(mount, MntFlags::MNT_DETACH);
        }
        let hierarchies = fs::read_dir(CGROUPS).into_iter().flatten().flatten();
        for place in hierarchies.map(|entry| entry.path()).chain([CGROUPS.into()]) {
            remove_cgroup(&place.join(&self.cgroup));
        }
        for directory in &self.directories {
            let _ = fs::remove_dir_all(directory);
        }
    }
}

fn mounts_below(home: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let points = points.map(PathBuf::from).filter(|point| point.starts_with(home));
    points.collect()
}

/// A cgroup goes only when those below it are gone; its files cannot be removed, nor need they.
fn remove_cgroup(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    let _ = fs::remove_dir(cgroup);
}

/// A root file system with nothing but busybox.
///
/// # Panics
/// When busybox is not there.
pub fn root_file_system(place: &Path) -> std::io::Result<()> {
    for directory in ["bin", "dev", "etc", "proc", "run", "sys", "tmp"] {
        fs::create_dir_all(place.join(directory))?;
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new);
    let busybox = busybox.into_iter().find(|path| path.exists());
    let busybox = busybox.expect("busybox-static, which the virtual machines need as well");
    fs::copy(busybox, place.join("bin/busybox"))?;
    for applet in ["sh", "ping", "sleep"] {
        std::os::unix::fs::symlink("busybox", place.join("bin").join(applet))?;
    }
    Ok(())
}
