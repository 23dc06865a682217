//! `--web.config.file`: TLS, client certificates, passwords, headers and the rate limit, by the file that all exporters
//! share. It is read again when it, or a file it names, changes; one that is wrong by then is reported, and the last
//! good one stays in force.

mod client;
mod file;
mod rate;
mod tls;
pub(super) mod users;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use axum::http::HeaderMap;

use rate::Bucket;
use tls::{Ready, Sources};
use users::Users;

/// What is wrong with the file.
#[derive(Debug, thiserror::Error)]
pub enum WebConfigError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no such file.
    #[error("{}:{line}: {what}", path.display())]
    Syntax {
        /// Which.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// What the parser says: the field, and what is expected.
        what: String,
    },
    /// A field has a wrong value.
    #[error("{}:{line}: {field}: {what}", path.display())]
    Field {
        /// Which.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// With the sections it is in.
        field: String,
        /// What is wrong, and what would be right.
        what: String,
    },
}

/// What the file asks for, ready to be used.
#[derive(Debug)]
pub struct WebConfig {
    /// TLS, where it is wanted.
    pub tls: Option<Ready>,
    /// Headers of every answer.
    pub headers: HeaderMap,
    /// Who may ask.
    pub users: Users,
    /// How often.
    pub rate: Bucket,
    /// The files it was made from, with their contents.
    sources: Sources,
}

impl WebConfig {
    /// Without a file: everything open, as exporters are.
    #[must_use]
    pub fn open() -> Self {
        Self {
            tls: None,
            headers: HeaderMap::new(),
            users: Users::default(),
            rate: Bucket::new(std::time::Duration::ZERO, 0),
            sources: Vec::new(),
        }
    }

    /// Reads the file and those it names.
    pub fn read(path: &Path) -> Result<Self, WebConfigError> {
        let bytes = fs::read(path).map_err(|source| WebConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let text = String::from_utf8_lossy(&bytes);
        let file = file::parse(path, &text)?;
        let mut sources = vec![(path.to_owned(), bytes.clone())];
        let tls = tls::ready(path, &file, &mut sources)?;
        let (interval, burst) = file.rate(path)?;
        Ok(Self {
            tls,
            headers: file.headers(path)?,
            users: Users::new(file.users(path)?),
            rate: Bucket::new(interval, burst),
            sources,
        })
    }

    /// Whether the files are still what they were.
    fn is_fresh(&self) -> bool {
        self.sources
            .iter()
            .all(|(path, bytes)| fs::read(path).is_ok_and(|now| now == *bytes))
    }
}

/// The configuration in force.
pub struct Live {
    path: Option<PathBuf>,
    state: Mutex<State>,
}

struct State {
    config: Arc<WebConfig>,
    /// What was last said to be wrong, so that it is said once.
    complaint: Option<String>,
}

impl Live {
    /// Reads it for the first time: what is wrong now is an error.
    pub fn start(path: Option<PathBuf>) -> Result<Self, WebConfigError> {
        let config = match &path {
            Some(path) => WebConfig::read(path)?,
            None => WebConfig::open(),
        };
        let state = State {
            config: Arc::new(config),
            complaint: None,
        };
        Ok(Self {
            path,
            state: Mutex::new(state),
        })
    }

    /// What holds now. The files are small and in the page cache: they are compared each time, as exporters do.
    pub fn current(&self) -> Arc<WebConfig> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = &self.path
            && !state.config.is_fresh()
        {
            state.follow(path);
        }
        Arc::clone(&state.config)
    }
}

impl State {
    fn follow(&mut self, path: &Path) {
        let new = match WebConfig::read(path) {
            Ok(new) if new.tls.is_some() == self.config.tls.is_some() => new,
            Ok(_) => {
                let why = "TLS cannot be switched on or off while the agent runs: start it again";
                return self.complain(format!("{}: {why}", path.display()));
            }
            Err(error) => return self.complain(error.to_string()),
        };
        self.config = Arc::new(new);
        self.complaint = None;
        tracing::info!(file = %path.display(), "web.config.file was read again");
    }

    fn complain(&mut self, what: String) {
        if self.complaint.as_ref() != Some(&what) {
            tracing::error!(
                error = what,
                "web.config.file is wrong now: the last good one stays in force"
            );
            self.complaint = Some(what);
        }
    }
}

#[cfg(test)]
mod tests;
