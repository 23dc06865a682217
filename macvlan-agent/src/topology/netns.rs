//! Network namespaces: opening one, naming it, running code in it.
//!
//! The only `setns` of the agent is here. A namespace belongs to a thread: [`Netns::run`] gives its closure a thread of
//! its own and ends that thread afterwards, so nothing can stay abroad. Sockets opened in the closure stay bound to the
//! namespace and may travel.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt, fs::OpenOptionsExt},
    },
    panic,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::statfs::{NSFS_MAGIC, fstatfs},
};

/// The label of the agent's own namespace.
pub const HOST: &str = "host";

/// The calling thread's namespace, not the process's: they may differ.
pub(super) const OWN: &str = "/proc/thread-self/ns/net";

/// `_IO(0xb7, 0x3)` of `linux/nsfs.h`: of which type a namespace file is, since Linux 4.11.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// A network namespace, held open. As long as this lives the kernel keeps the namespace and all its links, so let go of
/// it as soon as the watcher does.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    inode: u32,
    label: String,
}

/// Why a namespace could not be opened or joined.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The file could not be opened or asked what it is.
    #[error("cannot open the network namespace {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file is something else: a plain file that nothing is mounted on (yet), or a namespace of another type.
    #[error("{} is not a network namespace", path.display())]
    NotNetns {
        /// The file.
        path: PathBuf,
    },
    /// Joining was refused: mostly `EPERM`, for want of `CAP_SYS_ADMIN`.
    #[error(
        "cannot join the network namespace {label}, which takes the capability CAP_SYS_ADMIN: give it to the agent"
    )]
    Join {
        /// The namespace's label.
        label: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// No thread could be made to join with.
    #[error("cannot start a thread to join the network namespace {label}")]
    Thread {
        /// The namespace's label.
        label: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Netns {
    /// The calling thread's namespace, labelled [`HOST`].
    pub fn own() -> Result<Arc<Self>, NetnsError> {
        Self::open(Path::new(OWN), HOST.to_owned())
    }

    /// Opens the namespace that `path` names, and makes sure that it is a network namespace. Joins it for a moment, so
    /// this fails with [`NetnsError::Join`] without `CAP_SYS_ADMIN`.
    pub fn open(path: &Path, label: String) -> Result<Arc<Self>, NetnsError> {
        let (file, inode) = open_file(path)?;
        let named = Self {
            fd: file.into(),
            inode,
            label,
        };
        // A file opened by its name keeps what is mounted there busy, and umount would fail for as long as we run. One
        // opened through /proc does not.
        let source = |source| NetnsError::Open {
            path: path.to_owned(),
            source,
        };
        let fd = named.run(|| File::open(OWN))?.map_err(source)?.into();
        Ok(Arc::new(Self { fd, ..named }))
    }

    /// The namespace's inode: its identity while it lives. The kernel gives the number to another one afterwards.
    #[must_use]
    pub fn inode(&self) -> u32 {
        self.inode
    }

    /// The namespace's label, see [`label_of`].
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Runs `f` on a thread of its own that has joined this namespace, and waits for it; in place when the calling
    /// thread is there already. A panic in `f` is resumed.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        if std::fs::metadata(OWN).is_ok_and(|own| own.ino() == u64::from(self.inode)) {
            return Ok(f());
        }
        let join = || match setns(&self.fd, CloneFlags::CLONE_NEWNET) {
            Ok(()) => Ok(f()),
            Err(e) => Err(NetnsError::Join {
                label: self.label.clone(),
                source: e.into(),
            }),
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, join)
                .map_err(|source| NetnsError::Thread {
                    label: self.label.clone(),
                    source,
                })?;
            thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Opens the file of a network namespace, makes sure that it is one, and says its inode. What is mounted there cannot be
/// unmounted while the file is open, so keep it for a moment only.
pub(super) fn open_file(path: &Path) -> Result<(File, u32), NetnsError> {
    let open = |source| NetnsError::Open {
        path: path.to_owned(),
        source,
    };
    let not_netns = || NetnsError::NotNetns { path: path.to_owned() };
    // O_NONBLOCK: a name may lead to a FIFO, where open would wait. O_CLOEXEC is std's own.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(open)?;
    if fstatfs(&file).map_err(|e| open(e.into()))?.filesystem_type() != NSFS_MAGIC {
        return Err(not_netns());
    }
    // SAFETY: `file` is open during the call, and this request takes no argument that the kernel would follow.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    if kind != libc::CLONE_NEWNET {
        return Err(not_netns());
    }
    let inode = file.metadata().map_err(open)?.ino();
    // Namespace inodes are 32 bits wide in the kernel (`struct ns_common`).
    let inode = u32::try_from(inode).map_err(|_| not_netns())?;
    Ok((file, inode))
}

/// An error and what it says of its cause.
pub(super) fn with_cause(error: &dyn std::error::Error) -> String {
    error
        .source()
        .map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// The label of a namespace by its name under `/run/netns`: the name, or `run:<name>` when it could be taken for another
/// form of label. Names that are not UTF-8 are written as [`printable`] says.
#[must_use]
pub fn label_of(name: &OsStr) -> String {
    let name = printable(name.as_bytes());
    let docker = name.len() == 12 && name.bytes().all(|b| b.is_ascii_hexdigit());
    if docker || name == HOST || name.starts_with("ino:") || name.starts_with("run:") {
        return format!("run:{name}");
    }
    name
}

/// The kernel's names are bytes. As text: as they are, but bytes that are no UTF-8 as `\xff` and so that no two names
/// become one, a backslash doubled.
#[must_use]
pub fn printable(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '\\' {
                text.push('\\');
            }
            text.push(c);
        }
        for byte in chunk.invalid() {
            text.extend(['\\', 'x']);
            text.extend([byte >> 4, byte & 15].map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(name: &[u8]) -> String {
        label_of(OsStr::from_bytes(name))
    }

    #[test]
    fn a_plain_name_is_its_own_label() {
        assert_eq!(label(b"net1"), "net1");
        assert_eq!(label(b"cni-3f2a"), "cni-3f2a");
        assert_eq!(label("größe".as_bytes()), "größe");
    }

    #[test]
    fn a_name_that_looks_like_another_form_is_marked() {
        assert_eq!(label(b"host"), "run:host");
        assert_eq!(label(b"ino:4026531840"), "run:ino:4026531840");
        assert_eq!(label(b"run:host"), "run:run:host");
        assert_eq!(label(b"0123456789ab"), "run:0123456789ab");
        assert_eq!(label(b"0123456789AB"), "run:0123456789AB");
        assert_eq!(label(b"0123456789abc"), "0123456789abc");
        assert_eq!(label(b"0123456789xy"), "0123456789xy");
    }

    #[test]
    fn names_of_any_bytes_stay_distinct() {
        let names: [&[u8]; 6] = [b"a\xff", b"a\xfe", b"a\\xff", b"a\\\\xff", b"a\\\xff", b"a\xef\xbf\xbd"];
        let labels: std::collections::BTreeSet<_> = names.iter().map(|n| label(n)).collect();
        assert_eq!(labels.len(), names.len());
        assert_eq!(label(b"a\xff"), "a\\xff");
    }

    #[test]
    fn other_files_are_refused() {
        let open = |path: &str| Netns::open(Path::new(path), "x".to_owned());
        assert!(matches!(open("/proc/self/status"), Err(NetnsError::NotNetns { .. })));
        assert!(matches!(open("/proc/self/ns/uts"), Err(NetnsError::NotNetns { .. })));
        assert!(matches!(open("/nonexistent"), Err(NetnsError::Open { .. })));
    }

    #[test]
    fn the_own_namespace_runs_in_place() {
        let own = Netns::own().unwrap();
        assert_eq!(own.label(), HOST);
        let here = thread::current().id();
        assert_eq!(own.run(|| thread::current().id()).unwrap(), here);
    }
}
