//! The run directory: one agent each, with its process id and where it listens.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

/// Why a run directory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// Another agent has it.
    #[error(
        "another macvlan-agent (pid {pid}) runs with the run directory {directory}: stop it, or give this one a \
         directory and an address of its own with --run.dir and --web.listen-address"
    )]
    Taken {
        /// Its process id.
        pid: String,
        /// The directory.
        directory: String,
    },
    /// The system refuses.
    #[error("cannot use {path} as run directory: {source}; choose another with --run.dir")]
    Io {
        /// Which.
        path: String,
        /// What it said.
        source: io::Error,
    },
}

/// A run directory of ours, locked for as long as this lives.
pub struct RunDir {
    directory: PathBuf,
    _lock: Flock<File>,
}

const LOCK: &str = "agent.pid";
const ADDRESS: &str = "agent.address";

impl RunDir {
    /// Makes the directory where it is missing, and takes its lock.
    pub fn take(directory: &Path) -> Result<Self, RunDirError> {
        let failed = |path: &Path, source: io::Error| RunDirError::Io {
            path: path.display().to_string(),
            source,
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .map_err(|source| failed(directory, source))?;
        let path = directory.join(LOCK);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(|source| failed(&path, source))?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                let pid = if pid.trim().is_empty() {
                    "unknown".to_owned()
                } else {
                    pid.trim().to_owned()
                };
                return Err(RunDirError::Taken {
                    pid,
                    directory: directory.display().to_string(),
                });
            }
            Err((_, errno)) => return Err(failed(&path, errno.into())),
        };
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(|source| failed(&path, source))?;
        Ok(Self {
            directory: directory.to_owned(),
            _lock: lock,
        })
    }

    /// Writes down where the agent listens, for `list`.
    pub fn set_address(&self, address: SocketAddr) -> Result<(), RunDirError> {
        let path = self.directory.join(ADDRESS);
        fs::write(&path, format!("{address}\n")).map_err(|source| RunDirError::Io {
            path: path.display().to_string(),
            source,
        })
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        // The lock file stays: whoever waits for it holds this very file.
        let _ = fs::remove_file(self.directory.join(ADDRESS));
    }
}

/// Where the agent of a run directory listens; none where there is no such agent.
#[must_use]
pub fn address(directory: &Path) -> Option<SocketAddr> {
    fs::read_to_string(directory.join(ADDRESS)).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_agent_and_names_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = RunDir::take(directory.path()).expect("free");
        let error = RunDir::take(directory.path()).err().expect("taken").to_string();
        assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");
        first
            .set_address("127.0.0.1:10177".parse().expect("valid"))
            .expect("writable");
        assert_eq!(address(directory.path()).map(|address| address.port()), Some(10_177));
        drop(first);
        assert_eq!(address(directory.path()), None);
        RunDir::take(directory.path()).expect("free again");
    }
}
