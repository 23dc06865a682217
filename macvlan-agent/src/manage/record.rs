//! What was made, and what is to be made: written down before the kernel hears of it.
//!
//! A link is ours if it has our mark as its alias *and* stands here. The alias alone proves nothing, since whoever is
//! root in a container may write one. Only a link whose making was interrupted is known by other signs: the name, the
//! random group and the MAC that were written down here before it was made.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::config::{
    file::{Parent, Shim, SubInterface},
    values::Address,
};

/// Where it is unless `--state.dir` says otherwise.
pub const DEFAULT_DIRECTORY: &str = "/var/lib/macvlan-agent";

/// How long a command waits for another one that is changing something.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why the record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The system refuses.
    #[error("cannot use {path} as the agent's record: {source}; --state.dir names another directory")]
    Io {
        /// Which file.
        path: String,
        /// What it said.
        source: io::Error,
    },
    /// It is there and cannot be read.
    #[error(
        "the record {path} is damaged: {source}; without it nothing is known to be the agent's, so nothing will be \
         changed. If its interfaces may stay, move the file away; they keep the mark macvlan-agent: as alias"
    )]
    Damaged {
        /// Which file.
        path: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Somebody else is changing something.
    #[error("another macvlan-agent (pid {pid}) is changing interfaces and has not finished within {} s", PATIENCE.as_secs())]
    Busy {
        /// Who.
        pid: String,
    },
}

/// Who asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The configuration: it goes when it is no longer there.
    Config,
    /// A command: it stays until `del`, or until the host restarts.
    Command,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spec {
    /// A sub-interface.
    SubInterface(SubInterface),
    /// A shim.
    Shim(Shim),
}

impl Spec {
    /// It, where it is a sub-interface.
    #[must_use]
    pub fn sub_interface(&self) -> Option<&SubInterface> {
        match self {
            Self::SubInterface(spec) => Some(spec),
            Self::Shim(_) => None,
        }
    }

    /// It, where it is a shim.
    #[must_use]
    pub fn shim(&self) -> Option<&Shim> {
        match self {
            Self::Shim(spec) => Some(spec),
            Self::SubInterface(_) => None,
        }
    }
}

/// Where something that was made is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The inode of its namespace.
    pub netns: u32,
    /// Its index there.
    pub ifindex: u32,
}

/// A sub-interface or shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Who asked for it.
    pub origin: Origin,
    /// What was asked for.
    pub spec: Spec,
    /// The inode of the namespace that it is or was to be made in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intended: Option<u32>,
    /// The MAC it is made with, where it has one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<[u8; 6]>,
    /// Where it is, once that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<Made>,
    /// The addresses that we gave it: others are not ours to take.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Address>,
    /// Taken back at this time (seconds since 1970) unless it is confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_by: Option<u64>,
}

/// A VLAN device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentEntry {
    /// What was asked for.
    pub spec: Parent,
    /// Its index, once that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<u32>,
}

/// All that was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The start of the host that this is about: links do not survive it.
    pub boot: String,
    /// The group that links are made in, a random number.
    pub group: u32,
    /// Stands in for the machine's id where it has none.
    #[serde(default)]
    pub seed: u64,
    /// Sub-interfaces and shims, by id.
    #[serde(default)]
    pub entries: BTreeMap<String, Entry>,
    /// VLAN devices, by name.
    #[serde(default)]
    pub parents: BTreeMap<String, ParentEntry>,
}

/// The record, locked: nobody else changes anything while this lives.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    _lock: Flock<File>,
    /// What it says; see [`Store::save`].
    pub record: Record,
    saved: Record,
}

impl Store {
    /// Waits for the lock and reads.
    pub fn open(directory: &Path) -> Result<Self, RecordError> {
        let failed = |path: &Path| {
            let path = path.display().to_string();
            move |source| RecordError::Io { path, source }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed(directory))?;
        let lock = lock(&directory.join("lock"))?;
        let path = directory.join("record.json");
        let record = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| RecordError::Damaged {
                path: path.display().to_string(),
                source,
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Record::default(),
            Err(error) => return Err(failed(&path)(error)),
        };
        let mut store = Self {
            path,
            _lock: lock,
            saved: Record::clone(&record),
            record,
        };
        store.forget_former_start().map_err(failed(directory))?;
        Ok(store)
    }

    /// Reads without a lock, for what only looks.
    pub fn peek(directory: &Path) -> Result<Record, RecordError> {
        let path = directory.join("record.json");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| RecordError::Damaged {
                path: path.display().to_string(),
                source,
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Record::default()),
            Err(source) => Err(RecordError::Io {
                path: path.display().to_string(),
                source,
            }),
        }
    }

    /// No link outlives the host's restart: what the configuration asks for will be asked for again.
    fn forget_former_start(&mut self) -> io::Result<()> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        if self.record.boot == boot {
            return Ok(());
        }
        let mut bytes = [0; 12];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        let [a, b, c, d, seed @ ..] = bytes;
        self.record = Record {
            boot,
            // Not 0, which is everybody's; never negative in tools that take it for signed.
            group: u32::from_ne_bytes([a, b, c, d]) & 0x7fff_ffff | 0x1000_0000,
            seed: if self.record.seed == 0 {
                u64::from_ne_bytes(seed)
            } else {
                self.record.seed
            },
            ..Record::default()
        };
        Ok(())
    }

    /// Writes it down, whole or not at all.
    pub fn save(&mut self) -> Result<(), RecordError> {
        if self.record == self.saved {
            return Ok(());
        }
        let failed = |source| RecordError::Io {
            path: self.path.display().to_string(),
            source,
        };
        super::wire::may_be_killed();
        let new = self.path.with_extension("new");
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&new)?;
            file.write_all(&serde_json::to_vec(&self.record)?)?;
            // Without fsync: what a power failure takes from the file it takes from the kernel's links as well.
            fs::rename(&new, &self.path)
        };
        write().map_err(failed)?;
        self.saved = self.record.clone();
        Ok(())
    }
}

fn lock(path: &Path) -> Result<Flock<File>, RecordError> {
    let failed = |source| RecordError::Io {
        path: path.display().to_string(),
        source,
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(failed)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                let pid = format!("{}\n", std::process::id());
                lock.set_len(0)
                    .and_then(|()| lock.write_all(pid.as_bytes()))
                    .map_err(failed)?;
                return Ok(lock);
            }
            Err((back, nix::errno::Errno::EWOULDBLOCK)) if Instant::now() < deadline => {
                file = back;
                std::thread::sleep(Duration::from_millis(20));
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                let pid = fs::read_to_string(path).unwrap_or_default().trim().to_owned();
                return Err(RecordError::Busy { pid });
            }
            Err((_, errno)) => return Err(failed(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_kept_and_a_damaged_one_stops_everything() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut store = Store::open(directory.path()).expect("new");
        let group = store.record.group;
        assert_ne!(group, 0);
        store.save().expect("writable");
        drop(store);
        assert_eq!(Store::open(directory.path()).expect("again").record.group, group);
        fs::write(directory.path().join("record.json"), "{").expect("writable");
        let said = Store::open(directory.path())
            .map(|_| ())
            .expect_err("damaged")
            .to_string();
        assert!(said.contains("nothing will be changed"), "{said}");
    }

    #[test]
    fn another_start_of_the_host_begins_anew() {
        let directory = tempfile::tempdir().expect("a directory");
        let old = Record {
            boot: "another".into(),
            group: 7,
            seed: 42,
            ..Record::default()
        };
        fs::write(
            directory.path().join("record.json"),
            serde_json::to_vec(&old).expect("it encodes"),
        )
        .expect("writable");
        let store = Store::open(directory.path()).expect("readable");
        assert_ne!(store.record.group, 7);
        assert_eq!(store.record.seed, 42);
    }
}
