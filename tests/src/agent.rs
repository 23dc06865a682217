//! The agent as a child process: started, asked, stopped; what it said on standard error is kept for the failure
//! message.

use std::{
    ffi::{OsStr, OsString},
    io::{BufRead, BufReader, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::process::CommandExt,
    panic,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{
    exposition::{self, Response, Scrape},
    lab::{self, SubInterface},
    surroundings::{agent_program, eventually, patience},
};

/// A running `macvlan-agent run`; ended with its handle.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    log: Log,
    reader: Option<JoinHandle<()>>,
    run_dir: PathBuf,
    address: SocketAddr,
    _own_run_dir: TempDir,
}

/// How an agent ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// All it said.
    pub log: String,
}

impl Agent {
    /// Starts the agent under test on a free port of the loopback, and waits until it is ready.
    ///
    /// # Panics
    /// When it does not become ready; the message has its log.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with more flags.
    ///
    /// # Panics
    /// When it does not become ready.
    #[must_use]
    pub fn start_with(flags: &[&str]) -> Self {
        let mut all = vec![OsString::from("--web.listen-address=127.0.0.1:0")];
        all.extend(flags.iter().map(OsString::from));
        Self::launch(&agent_program(), &all, &|| Ok(())).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// The same as root without one of the capabilities, by its number. It may be that it does not become ready then, so
    /// it is not waited for.
    ///
    /// # Panics
    /// When it does not listen.
    #[must_use]
    pub fn start_without(capability: u8, flags: &[&str]) -> Self {
        let mut all = vec![OsString::from("--web.listen-address=127.0.0.1:0")];
        all.extend(flags.iter().map(OsString::from));
        let start = || {
            // SAFETY: this request takes a number and no pointer; it narrows what this thread, which ends here, and the
            // processes it starts may be given.
            let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
            assert_eq!(result, 0, "capability {capability} cannot be dropped");
            let mut agent = Self::spawn(&agent_program(), &all)?;
            agent.await_ready(patience(Duration::from_secs(15)), true, &|| Ok(()))?;
            Ok(agent)
        };
        let started: Result<Self> = thread::scope(|scope| {
            let thread = scope.spawn(start);
            thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
        });
        started.unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Starts `program run` with `flags`, and with a run directory and JSON logs where these do not say otherwise, and
    /// waits until it is ready or `go_on` says to stop waiting.
    pub fn launch(program: &Path, flags: &[OsString], go_on: &dyn Fn() -> Result<()>) -> Result<Self> {
        Self::launch_within(program, flags, patience(Duration::from_secs(15)), go_on)
    }

    /// The same with another limit; the error has the last answer of `/-/ready`.
    pub fn launch_within(
        program: &Path,
        flags: &[OsString],
        limit: Duration,
        go_on: &dyn Fn() -> Result<()>,
    ) -> Result<Self> {
        let mut agent = Self::spawn(program, flags)?;
        agent.await_ready(limit, value_of(flags, "--web.config.file").is_some(), go_on)?;
        Ok(agent)
    }

    fn spawn(program: &Path, flags: &[OsString]) -> Result<Self> {
        lab::loopback_up().context("could not set the loopback up")?;
        let own_run_dir = tempfile::Builder::new().prefix("macvlan-agent-").tempdir()?;
        let mut run_dir = own_run_dir.path().to_owned();
        let mut command = Command::new(program);
        command.arg("run").args(flags);
        match value_of(flags, "--run.dir") {
            Some(chosen) => run_dir = chosen,
            None => drop(command.arg(format!("--run.dir={}", run_dir.display()))),
        }
        if value_of(flags, "--log.format").is_none() {
            command.arg("--log.format=json");
        }
        // In a group of its own, so that Ctrl-C reaches its parent alone, which then stops it.
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command
            .spawn()
            .with_context(|| format!("could not start {}", program.display()))?;
        let log = Log::default();
        let reader = child.stderr.take().map(|stderr| log.follow(stderr));
        let unknown = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        Ok(Self {
            child,
            log,
            reader,
            run_dir,
            address: unknown,
            _own_run_dir: own_run_dir,
        })
    }

    fn await_ready(&mut self, limit: Duration, guarded: bool, go_on: &dyn Fn() -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut last = "does not listen".to_owned();
        loop {
            if let Some(status) = self.child.try_wait()? {
                let log = self.finish_log();
                return Err(anyhow::Error::new(EndedEarly {
                    code: status.code(),
                    log,
                }));
            }
            if let Some(address) = self.log.listening() {
                self.address = address;
                if guarded {
                    // It listens last of all, and answers only those who know how to ask.
                    return Ok(());
                }
                match exposition::get(address, "/-/ready") {
                    Ok(response) if response.status == 200 => return Ok(()),
                    Ok(response) => last = format!("{} {}", response.status, response.body),
                    Err(error) => last = format!("{error:#}"),
                }
            }
            go_on()?;
            if Instant::now() > deadline {
                bail!("the agent did not become ready: {last}\nit said:\n{}", self.log.text());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its run directory.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// What it has said so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// `GET path`.
    ///
    /// # Panics
    /// When there is no answer.
    #[must_use]
    pub fn get(&self, path: &str) -> Response {
        exposition::get(self.address, path).unwrap_or_else(|error| panic!("{error:#}; the agent said:\n{}", self.log()))
    }

    /// `GET /metrics`.
    ///
    /// # Panics
    /// When there is no answer, or one that a Prometheus would not take.
    #[must_use]
    pub fn scrape(&self) -> Scrape {
        Scrape::fetch(self.address).unwrap_or_else(|error| panic!("{error:#}; the agent said:\n{}", self.log()))
    }

    /// Waits until the agent names each of these as it is.
    ///
    /// # Panics
    /// When it does not.
    pub fn await_known(&self, sub_interfaces: &[&SubInterface]) {
        for sub in sub_interfaces {
            eventually(patience(Duration::from_secs(5)), || self.knows(sub));
        }
    }

    /// Whether the agent names this one, with its MAC and whether it is up.
    pub fn knows(&self, sub: &SubInterface) -> Result<(), String> {
        let scrape = self.scrape();
        let labels = sub.labels();
        let labels: Vec<_> = labels.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mac = sub.link.mac.to_string();
        let info = [labels.as_slice(), &[("mac", mac.as_str()), ("mode", sub.mode.word())]].concat();
        if scrape.samples("macvlan_interface_info", &info).count() != 1 {
            return Err(format!(
                "no macvlan_interface_info with {info:?}; there are:\n{}",
                scrape.listing("macvlan_interface_info")
            ));
        }
        Ok(())
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Panics
    /// When it does not end.
    #[must_use]
    pub fn stop(mut self) -> Ended {
        let status = self
            .terminate()
            .unwrap_or_else(|error| panic!("{error:#}; the agent said:\n{}", self.log()));
        Ended {
            status,
            log: self.finish_log(),
        }
    }

    /// Kills it, for a test whose parents go at once as well: to let go of a hundred of them takes an agent seconds.
    ///
    /// # Panics
    /// When it had ended before.
    pub fn kill(mut self) {
        let ended = self.child.try_wait().ok().flatten();
        assert!(ended.is_none(), "the agent ended: {ended:?}; it said:\n{}", self.log());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn terminate(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        kill(self.nix_pid()?, Signal::SIGTERM).context("could not send SIGTERM")?;
        wait(&mut self.child, patience(Duration::from_secs(10)))
    }

    /// Waits for an end that is to come by itself, or by a signal sent by the caller.
    ///
    /// # Panics
    /// When it does not come.
    #[must_use]
    pub fn await_end(mut self) -> Ended {
        let status = wait(&mut self.child, patience(Duration::from_secs(10)))
            .unwrap_or_else(|error| panic!("{error:#}; the agent said:\n{}", self.log()));
        Ended {
            status,
            log: self.finish_log(),
        }
    }

    /// Whether it has ended, without waiting.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    fn nix_pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id())?))
    }

    fn finish_log(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        self.log.text()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // SIGTERM first: killed, it could not take its filters along.
        if self.terminate().is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if thread::panicking() {
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "--- the agent said:\n{}---", self.log());
        }
    }
}

/// The agent ended before it was ready.
#[derive(Debug)]
pub struct EndedEarly {
    /// Its exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// All it said.
    pub log: String,
}

impl std::fmt::Display for EndedEarly {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let code = self
            .code
            .map_or_else(|| "a signal".into(), |code| format!("exit code {code}"));
        write!(
            f,
            "the agent ended with {code} before it was ready; it said:\n{}",
            self.log
        )
    }
}

impl std::error::Error for EndedEarly {}

/// Runs the agent under test to its end, as any of its commands.
///
/// # Panics
/// When it does not end.
#[must_use]
pub fn run_to_end<S: AsRef<OsStr>>(arguments: &[S]) -> Output {
    run_to_end_as(arguments, |_| {})
}

/// The same, as `prepare` makes the process: another user, another environment.
///
/// # Panics
/// When it does not end.
#[must_use]
pub fn run_to_end_as<S: AsRef<OsStr>>(arguments: &[S], prepare: impl FnOnce(&mut Command)) -> Output {
    let program = agent_program();
    let mut command = Command::new(&program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    prepare(&mut command);
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("could not start {}: {error}", program.display()));
    let stdout = child.stdout.take().map(drain);
    let stderr = child.stderr.take().map(drain);
    let status = wait(&mut child, patience(Duration::from_secs(10)));
    if status.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let collect = |reader: Option<JoinHandle<Vec<u8>>>| reader.and_then(|it| it.join().ok()).unwrap_or_default();
    let (stdout, stderr) = (collect(stdout), collect(stderr));
    match status {
        Ok(status) => Output { status, stdout, stderr },
        Err(error) => panic!("{error:#}; it said:\n{}", String::from_utf8_lossy(&stderr)),
    }
}

fn drain(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

fn wait(child: &mut Child, within: Duration) -> Result<ExitStatus> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > deadline {
            bail!("process {} did not end within {within:?}", child.id());
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// The value of `--name=value` or `--name value` among `flags`.
fn value_of(flags: &[OsString], name: &str) -> Option<PathBuf> {
    flags
        .iter()
        .enumerate()
        .find_map(|(at, flag)| match flag.to_str()?.strip_prefix(name)? {
            "" => flags.get(at + 1).map(PathBuf::from),
            rest => rest.strip_prefix('=').map(PathBuf::from),
        })
}

/// What the agent writes to standard error, kept as it comes.
#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn follow(&self, stderr: impl Read + Send + 'static) -> JoinHandle<()> {
        let log = self.clone();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                log.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        })
    }

    fn text(&self) -> String {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .flat_map(|line| [line.as_str(), "\n"])
            .collect()
    }

    /// The address of the record "listening", as something that can be connected to.
    fn listening(&self) -> Option<SocketAddr> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().find_map(|line| listening(line))
    }
}

fn listening(line: &str) -> Option<SocketAddr> {
    let address = match serde_json::from_str::<serde_json::Value>(line) {
        Ok(record) => {
            let fields = record.get("fields").unwrap_or(&record);
            let message = fields.get("message").or_else(|| fields.get("msg"))?;
            (message == "listening").then_some(())?;
            fields.get("address")?.as_str()?.to_owned()
        }
        Err(_) if line.contains("listening") => line
            .split_once("address=")?
            .1
            .split_whitespace()
            .next()?
            .trim_matches('"')
            .to_owned(),
        Err(_) => return None,
    };
    let mut address: SocketAddr = address.parse().ok()?;
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    Some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_found_in_every_form_of_the_record() {
        let expected = Some("127.0.0.1:4711".parse().unwrap());
        for line in [
            r#"{"level":"INFO","fields":{"message":"listening","address":"127.0.0.1:4711"}}"#,
            r#"{"level":"INFO","message":"listening","address":"0.0.0.0:4711"}"#,
            "2026-01-01T00:00:00Z INFO macvlan_agent: listening address=127.0.0.1:4711",
        ] {
            assert_eq!(listening(line), expected, "{line}");
        }
        assert_eq!(
            listening(r#"{"fields":{"message":"attached","address":"127.0.0.1:1"}}"#),
            None
        );
    }

    #[test]
    fn a_flag_is_found_in_both_forms() {
        let flags = ["--run.dir", "/a", "--log.format=json"].map(OsString::from);
        assert_eq!(value_of(&flags, "--run.dir"), Some("/a".into()));
        assert_eq!(value_of(&flags, "--log.format"), Some("json".into()));
        assert_eq!(value_of(&flags, "--log"), None);
    }
}
