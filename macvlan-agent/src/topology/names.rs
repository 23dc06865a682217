//! Where namespaces are to be found by a path: names under `/run/netns`, and mounts anywhere, as Docker makes them; and
//! when that may have changed.
//!
//! A name is a file that a namespace is mounted on, or a symbolic link to one under `/proc`. The file comes before the
//! mount and may stay after it, so inotify alone is not enough: the list of mounts is watched as well. Either only says
//! "look again"; looking is cheap, a `stat` for each name and one read of the list of mounts.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, RawFd},
        unix::{ffi::OsStringExt as _, fs::MetadataExt},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::netns::label_of;

/// How long a file without a namespace is looked at again by the clock. After that only a mount or the slow tick helps.
const YOUNG: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Watches(Inotify);

impl AsRawFd for Watches {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

#[derive(Debug)]
pub(super) struct Names {
    directory: PathBuf,
    /// The device number of nsfs, where all namespaces are.
    nsfs: u64,
    mounts_of_the_process: PathBuf,
    inotify: Option<AsyncFd<Watches>>,
    watched: Option<WatchDescriptor>,
    mounts: Option<AsyncFd<File>>,
    young: BTreeMap<OsString, Instant>,
}

/// What a look gave.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// By inode. Names may be those of namespaces of other types.
    pub(super) places: BTreeMap<u32, Place>,
    /// Look again after this time.
    pub(super) again: Option<Duration>,
}

/// Where a namespace is.
#[derive(Clone, Eq, PartialEq, Debug)]
pub(super) struct Place {
    /// A file that is it.
    pub(super) path: PathBuf,
    /// What its place says of how it is called.
    pub(super) label: Option<String>,
    /// Whether the namespace is mounted there, which keeps it alive.
    pub(super) mounted: bool,
}

impl Names {
    /// Without inotify or the list of mounts (both are limited by the system) changes are seen later, but seen.
    pub(super) fn new(directory: PathBuf) -> io::Result<Self> {
        let inotify = || -> io::Result<_> {
            let inotify = Watches(Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?);
            // SAFETY: `Watches` owns its descriptor, never gives another one, and closes it only when dropped.
            Ok(unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) }?)
        };
        let mounts = || -> io::Result<_> {
            let mounts = File::open("/proc/self/mountinfo")?;
            // SAFETY: a `File` owns its descriptor, never gives another one, and closes it only when dropped.
            Ok(unsafe { AsyncFd::register_with_interest(mounts, Interest::PRIORITY) }?)
        };
        let degraded = |what: &str, error: &io::Error| {
            tracing::warn!("cannot watch {what}, so new namespaces are found some seconds late: {error}");
        };
        Ok(Self {
            nsfs: fs::metadata("/proc/self/ns/net")?.dev(),
            inotify: inotify().inspect_err(|error| degraded("directories", error)).ok(),
            watched: None,
            mounts: mounts().inspect_err(|error| degraded("the list of mounts", error)).ok(),
            young: BTreeMap::new(),
            mounts_of_the_process: "/proc/self/mountinfo".into(),
            directory,
        })
    }

    /// Waits until something may have changed.
    pub(super) async fn changed(&mut self) {
        let Self { inotify, mounts, .. } = self;
        let directory = async {
            let Some(inotify) = inotify else {
                return std::future::pending().await;
            };
            match inotify.readable().await {
                // What happened does not matter, only that it did.
                Ok(mut guard) => drop(guard.try_io(|inotify| Ok(inotify.get_ref().0.read_events()?))),
                Err(_) => std::future::pending().await,
            }
        };
        let mounted = async {
            let Some(mounts) = mounts else {
                return std::future::pending().await;
            };
            match mounts.ready(Interest::PRIORITY).await {
                Ok(mut guard) => guard.clear_ready(),
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = directory => {}
            () = mounted => {}
        }
    }

    /// Looks which there are.
    pub(super) fn scan(&mut self, now: Instant) -> Scan {
        self.watch();
        let mut scan = Scan::default();
        let mut young = BTreeMap::new();
        // No directory: no names, and `watch` waits for it.
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        // In byte order, so that the first name of a namespace gives the label.
        let names: BTreeSet<OsString> = entries.map(|entry| entry.file_name()).collect();
        for name in names {
            let path = self.directory.join(&name);
            let found = fs::metadata(&path).ok().filter(|file| file.dev() == self.nsfs);
            if let Some(inode) = found.and_then(|file| u32::try_from(file.ino()).ok()) {
                let (label, mounted) = (Some(label_of(&name)), !path.is_symlink());
                scan.places.entry(inode).or_insert(Place { path, label, mounted });
                continue;
            }
            let since = self.young.get(&name).copied().unwrap_or(now);
            let age = now.saturating_duration_since(since);
            if age < YOUNG {
                let wait = age.clamp(Duration::from_millis(1), Duration::from_millis(200));
                scan.again = Some(scan.again.unwrap_or(wait).min(wait));
            }
            young.insert(name, since);
        }
        self.young = young;
        let mounts = fs::read(&self.mounts_of_the_process).unwrap_or_default();
        for (inode, path) in mounted(&mounts) {
            // The mount may have come since its name was looked at.
            let name = path.file_name().filter(|_| path.parent() == Some(&*self.directory));
            let label = name.map(label_of).or_else(|| docker_label(&path));
            let mounted = true;
            let place = scan.places.entry(inode);
            place
                .and_modify(|place| place.mounted = true)
                .or_insert(Place { path, label, mounted });
        }
        scan
    }

    /// Sees to it that the directory is watched, or as long as it does not exist, what will be the first to show it.
    fn watch(&mut self) {
        let Some(inotify) = &self.inotify else { return };
        let inotify = &inotify.get_ref().0;
        // Twice, for the directory may be made while we turn to one above it.
        for _ in 0..2 {
            let Some((path, descriptor)) = watch_nearest(inotify, &self.directory) else {
                return;
            };
            if let Some(old) = self.watched.replace(descriptor).filter(|&old| old != descriptor) {
                // It fails when the directory, and the watch with it, has gone.
                let _ = inotify.rm_watch(old);
            }
            if path == self.directory {
                return;
            }
        }
    }
}

fn watch_nearest<'a>(inotify: &Inotify, directory: &'a Path) -> Option<(&'a Path, WatchDescriptor)> {
    let flags = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ONLYDIR;
    for path in directory.ancestors() {
        match inotify.add_watch(path, flags) {
            Ok(descriptor) => return Some((path, descriptor)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(error) => {
                tracing::debug!("cannot watch {}: {error}", path.display());
                return None;
            }
        }
    }
    None
}

/// The network namespaces in a list of mounts (`proc_pid_mountinfo(5)`), and where they are.
fn mounted(list: &[u8]) -> impl Iterator<Item = (u32, PathBuf)> {
    list.split(|&byte| byte == b'\n').filter_map(|line| {
        // id, parent, device, root, mount point, options, any number of fields, "-", type
        let mut fields = line.split(|&byte| byte == b' ');
        let (root, point) = (fields.nth(3)?, fields.next()?);
        let inode = str::from_utf8(root).ok()?.strip_prefix("net:[")?.strip_suffix(']')?;
        fields.find(|field| *field == b"-")?;
        (fields.next()? == b"nsfs").then_some(())?;
        Some((inode.parse().ok()?, PathBuf::from(OsString::from_vec(unescaped(point)))))
    })
}

/// Undoes what the kernel does to blanks in paths: `\\040`.
fn unescaped(mut text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    while let Some((&byte, rest)) = text.split_first() {
        let digits = rest.first_chunk::<3>().and_then(|digits| str::from_utf8(digits).ok());
        let code = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(code) = code.filter(|_| byte == b'\\') {
            plain.push(code);
            text = &rest[3..];
        } else {
            plain.push(byte);
            text = rest;
        }
    }
    plain
}

/// Docker mounts a sandbox's namespace at `netns/` and the first 12 digits of its id, in `/run/docker` or wherever its
/// `--exec-root` is.
fn docker_label(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let in_netns = path.parent()?.file_name()? == "netns";
    let is_id = name.len() == 12 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (in_netns && is_id).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_that_comes_later_is_noticed() {
        let root = std::env::temp_dir().join(format!("macvlan-agent-names-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        let directory = root.join("run/netns");
        let mut names = Names::new(directory.clone()).unwrap();
        // Not the machine's own mounts.
        names.mounts_of_the_process = root.join("mounts");
        let expect = async |names: &mut Names, wanted: &[&str]| {
            let labels =
                |scan: &Scan| -> Vec<_> { scan.places.values().filter_map(|place| place.label.clone()).collect() };
            let mut scan = names.scan(Instant::now());
            while labels(&scan) != wanted {
                tokio::time::timeout(Duration::from_secs(5), names.changed())
                    .await
                    .unwrap();
                scan = names.scan(Instant::now());
            }
            scan
        };
        expect(&mut names, &[]).await;
        fs::create_dir(root.join("run")).unwrap();
        expect(&mut names, &[]).await;
        fs::create_dir(&directory).unwrap();
        expect(&mut names, &[]).await;
        std::os::unix::fs::symlink("/proc/self/ns/net", directory.join("b")).unwrap();
        let scan = expect(&mut names, &["b"]).await;
        let inode = fs::metadata("/proc/self/ns/net").unwrap().ino();
        assert_eq!(scan.places[&u32::try_from(inode).unwrap()].path, directory.join("b"));
        fs::write(directory.join("a"), "").unwrap();
        assert!(expect(&mut names, &["b"]).await.again.is_some());
        fs::remove_dir_all(&directory).unwrap();
        expect(&mut names, &[]).await;
        fs::create_dir(&directory).unwrap();
        expect(&mut names, &[]).await;
        std::os::unix::fs::symlink("/proc/self/ns/net", directory.join("d")).unwrap();
        std::os::unix::fs::symlink("/proc/self/ns/net", directory.join("c")).unwrap();
        expect(&mut names, &["c"]).await;
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn mounts_of_network_namespaces_are_found_wherever_they_are() {
        let list = b"22 1 0:21 / /proc rw,relatime shared:5 - proc proc rw\n\
            80 22 0:4 net:[4026532008] /run/docker/netns/0123456789ab rw shared:3 - nsfs nsfs rw\n\
            81 22 0:4 net:[4026532009] /srv/a\\040b/netns/default rw - nsfs nsfs rw\n\
            82 22 0:4 mnt:[4026532010] /run/x rw - nsfs nsfs rw\n\
            83 22 0:9 net:[4026532011] /fake rw - ext4 net rw\n\
            damaged\n";
        let found: Vec<_> = mounted(list).collect();
        let expected = [
            (4_026_532_008, PathBuf::from("/run/docker/netns/0123456789ab")),
            (4_026_532_009, PathBuf::from("/srv/a b/netns/default")),
        ];
        assert_eq!(found, expected);
        let labels = found.iter().map(|(_, path)| docker_label(path));
        assert_eq!(labels.collect::<Vec<_>>(), [Some("0123456789ab".to_owned()), None]);
        assert_eq!(docker_label(Path::new("/run/docker/0123456789ab")), None);
        assert_eq!(docker_label(Path::new("/run/docker/netns/0123456789AB")), None);
    }
}
