//! Commands that change interfaces, run as their users run them, and what `ip` says of the result.

use std::{
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    agent::{run_to_end, run_to_end_as},
    netns::Namespace,
};

/// A directory for the record, the configuration and the control socket of one test.
#[derive(Debug)]
pub struct Desk {
    directory: TempDir,
}

impl Default for Desk {
    fn default() -> Self {
        Self::new()
    }
}

impl Desk {
    /// An empty one.
    ///
    /// # Panics
    /// When there is no directory for temporary files.
    #[must_use]
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("macvlan-agent-").tempdir();
        Self {
            directory: directory.expect("a directory for temporary files"),
        }
    }

    /// A file in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes the configuration and gives the flag that names it.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn configure(&self, text: &str) -> String {
        let path = self.path("config.yaml");
        fs::write(&path, text).expect("the configuration can be written");
        format!("--config.file={}", path.display())
    }

    /// The flags of a command that works on this record and asks the agent of this run directory.
    #[must_use]
    pub fn flags(&self) -> [String; 2] {
        [
            format!("--state.dir={}", self.path("state").display()),
            format!("--run.dir={}", self.path("run").display()),
        ]
    }

    /// Runs a command of the agent's to its end.
    #[must_use]
    pub fn run(&self, arguments: &[&str]) -> Output {
        run_to_end(&self.arguments(arguments))
    }

    /// The same, to be killed before its change with the number `change`.
    #[must_use]
    pub fn run_killed(&self, arguments: &[&str], change: u32) -> Output {
        run_to_end_as(&self.arguments(arguments), |command| {
            command.env("MACVLAN_AGENT_KILL_BEFORE_CHANGE", change.to_string());
        })
    }

    fn arguments(&self, arguments: &[&str]) -> Vec<String> {
        let all = arguments.iter().map(|argument| (*argument).to_owned());
        all.chain(self.flags()).collect()
    }

    /// Runs a command that must succeed, and gives what it printed.
    ///
    /// # Panics
    /// When it does not succeed.
    #[expect(clippy::must_use_candidate, reason = "what it printed is often beside the point")]
    pub fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{arguments:?}: {said}{}",
            String::from_utf8_lossy(&output.stdout)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a command that must be refused with each of `words` in what it says.
    ///
    /// # Panics
    /// When it is not.
    #[expect(clippy::must_use_candidate, reason = "what it said is often beside the point")]
    pub fn refuse(&self, arguments: &[&str], words: &[&str]) -> String {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{arguments:?}: {word:?} is not in: {said}");
        }
        assert!(!said.contains("panicked"), "{said}");
        said
    }
}

/// What `ip -d -j ARGUMENTS` prints in a namespace.
///
/// # Panics
/// When it cannot be run, or prints no JSON.
#[must_use]
pub fn ip(namespace: &Namespace, arguments: &[&str]) -> Value {
    let text = ip_text(namespace, &[&["-d", "-j"], arguments].concat());
    // Of a namespace without routes it prints nothing at all.
    let text = if text.trim().is_empty() { "[]" } else { text.as_str() };
    serde_json::from_str(text).unwrap_or_else(|error| panic!("ip {arguments:?}: {error}: {text}"))
}

/// What `ip ARGUMENTS` prints in a namespace.
///
/// # Panics
/// When it fails.
#[must_use]
pub fn ip_text(namespace: &Namespace, arguments: &[&str]) -> String {
    try_ip(namespace, arguments).unwrap_or_else(|error| panic!("{error:#}"))
}

/// The same, as a result.
pub fn try_ip(namespace: &Namespace, arguments: &[&str]) -> Result<String> {
    namespace.run(|| {
        let output = Command::new("ip").args(arguments).output().context("cannot run ip")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        anyhow::ensure!(output.status.success(), "ip {arguments:?}: {said}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    })
}

/// A link as `ip -d -j link` tells it; none where it is not there.
#[must_use]
pub fn link(namespace: &Namespace, name: &str) -> Option<Value> {
    let links = ip(namespace, &["link"]);
    let mut links = links.as_array()?.iter();
    links.find(|link| link["ifname"] == name).cloned()
}

/// Everything that `ip` tells of links, addresses and routes, without what changes by itself: counters of use and times.
#[must_use]
pub fn picture(namespace: &Namespace) -> Value {
    let mut picture = serde_json::json!({
        "link": ip(namespace, &["link"]),
        "address": ip(namespace, &["addr"]),
        "route": ip(namespace, &["route", "show", "table", "all"]),
        "route6": ip(namespace, &["-6", "route", "show", "table", "all"]),
    });
    forget(&mut picture);
    picture
}

/// Removes what changes by itself, or because a neighbour comes and goes.
fn forget(value: &mut Value) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(forget),
        Value::Object(map) => {
            for key in ["promiscuity", "allmulti", "valid_life_time", "preferred_life_time"] {
                map.remove(key);
            }
            map.values_mut().for_each(forget);
        }
        _ => {}
    }
}

/// Whether a datagram from one namespace to an address in another is answered.
///
/// # Panics
/// When there are no sockets.
#[must_use]
pub fn answers(from: &Namespace, to: &Namespace, address: IpAddr) -> bool {
    try_answers(from, to, address).unwrap_or_else(|error| panic!("{error:#}"))
}

fn try_answers(from: &Namespace, to: &Namespace, address: IpAddr) -> Result<bool> {
    let any = |ip: IpAddr| -> SocketAddr {
        if ip.is_ipv4() {
            "0.0.0.0:0".parse().expect("valid")
        } else {
            "[::]:0".parse().expect("valid")
        }
    };
    let server = to.run(|| Ok(UdpSocket::bind(any(address))?))?;
    let port = server.local_addr()?.port();
    let client = from.run(|| Ok(UdpSocket::bind(any(address))?))?;
    server.set_read_timeout(Some(Duration::from_millis(700)))?;
    client.set_read_timeout(Some(Duration::from_millis(700)))?;
    let mut buffer = [0; 16];
    for _ in 0..3 {
        // An address without a route is one that does not answer.
        if client.send_to(b"ask", (address, port)).is_err() {
            continue;
        }
        let Ok((_, asker)) = server.recv_from(&mut buffer) else {
            continue;
        };
        if server.send_to(b"answer", asker).is_ok() && client.recv_from(&mut buffer).is_ok() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Writes a batch for `ip -batch` and runs it in a namespace.
///
/// # Panics
/// When it fails.
pub fn batch(namespace: &Namespace, file: &Path, lines: &str) {
    fs::write(file, lines).expect("the batch can be written");
    let _ = ip_text(namespace, &["-batch", &file.display().to_string()]);
}
