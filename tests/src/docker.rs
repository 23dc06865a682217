//! A Docker daemon of Debian's that shares nothing with one that the machine may have: own directories, socket,
//! containerd and cgroup. It and its containers end with its handle.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{
    remains::{Remains, root_file_system},
    surroundings::{container_program, eventually},
};

/// The image that every daemon has: busybox alone.
pub const IMAGE: &str = "busybox-of-the-test";

/// A running daemon.
#[derive(Debug)]
pub struct Docker {
    daemon: Service,
    containerd: Service,
    _remains: Remains,
    home: TempDir,
}

impl Docker {
    /// Starts it and gives it the image.
    ///
    /// # Panics
    /// When it does not start; the message has its log.
    #[must_use]
    pub fn start() -> Self {
        Self::try_start().unwrap_or_else(|error| panic!("no Docker: {error:#}"))
    }

    fn try_start() -> Result<Self> {
        let home = tempfile::Builder::new().prefix("mvt-docker-").tempdir()?;
        let at = |name: &str| home.path().join(name).display().to_string();
        let cgroup = format!("mvt{}-docker", process::id());
        let remains = Remains::of(home.path(), &cgroup, &["/run/containerd", "/run/docker"]);
        let settings = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {:?}\n",
            at("containerd"),
            at("containerd-state"),
            at("containerd.sock")
        );
        fs::write(home.path().join("containerd.toml"), settings)?;
        fs::write(home.path().join("daemon.json"), "{}")?;
        let containerd = Service::start(
            home.path(),
            "bin/containerd",
            &[format!("--config={}", at("containerd.toml"))],
        )?;
        containerd.await_socket(&home.path().join("containerd.sock"));
        let flags = [
            format!("--containerd={}", at("containerd.sock")),
            format!("--config-file={}", at("daemon.json")),
            format!("--data-root={}", at("data")),
            format!("--exec-root={}", at("exec")),
            format!("--pidfile={}", at("docker.pid")),
            format!("--host=unix://{}", at("docker.sock")),
            // Below "docker", as its containers are everywhere.
            format!("--cgroup-parent=/{cgroup}/docker"),
            "--exec-opt=native.cgroupdriver=cgroupfs".to_owned(),
            "--storage-driver=vfs".to_owned(),
            "--bridge=none".to_owned(),
            "--iptables=false".to_owned(),
            "--ip6tables=false".to_owned(),
        ];
        let daemon = Service::start(home.path(), "sbin/dockerd", &flags)?;
        daemon.await_socket(&home.path().join("docker.sock"));
        let docker = Self {
            daemon,
            containerd,
            _remains: remains,
            home,
        };
        eventually(Duration::from_mins(1), || {
            docker
                .run(&["version"])
                .map_err(|error| format!("{error:#}\n{}", docker.daemon.log()))
        });
        docker.import().context("could not make the image")?;
        Ok(docker)
    }

    fn import(&self) -> Result<()> {
        let root = self.home.path().join("root");
        root_file_system(&root)?;
        let archive = self.home.path().join("image.tar");
        let tar = Command::new("tar")
            .arg("--create")
            .arg("--file")
            .arg(&archive)
            .arg("--directory")
            .arg(&root)
            .arg(".")
            .status()?;
        ensure!(tar.success(), "tar: {tar}");
        self.run(&["import", &archive.display().to_string(), IMAGE])?;
        Ok(())
    }

    /// Where its API is.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.home.path().join("docker.sock")
    }

    /// Runs `docker` with these arguments; gives what it printed.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = command(self.home.path(), "bin/docker")
            .arg(format!("--host=unix://{}", self.socket().display()))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context("could not start docker")?;
        ensure!(
            output.status.success(),
            "docker {}: {}: {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // Its containers would outlive it.
        if let Ok(all) = self.run(&["ps", "--all", "--quiet"]) {
            let all: Vec<_> = all.lines().collect();
            if !all.is_empty() {
                let _ = self.run(&[["rm", "--force", "--volumes"].as_slice(), &all].concat());
            }
        }
        self.daemon.stop();
        self.containerd.stop();
        if thread::panicking() {
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "--- dockerd said:\n{}---", self.daemon.log());
        }
    }
}

/// A program of Debian's that runs until it is told to end.
#[derive(Debug)]
pub(crate) struct Service {
    child: Child,
    log: PathBuf,
}

impl Service {
    pub(crate) fn start(home: &Path, program: &str, flags: &[String]) -> Result<Self> {
        let mut command = command(home, program);
        command.args(flags);
        Self::spawn(home, command)
    }

    pub(crate) fn spawn(home: &Path, mut command: Command) -> Result<Self> {
        let program = PathBuf::from(command.get_program());
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = home.join(format!("{name}.log"));
        let file = File::create(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("could not start {}", program.display()))?;
        Ok(Self { child, log })
    }

    pub(crate) fn await_socket(&self, socket: &Path) {
        eventually(Duration::from_mins(1), || {
            socket
                .exists()
                .then_some(())
                .ok_or_else(|| format!("there is no {}: {}", socket.display(), self.log()))
        });
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGTERM, and SIGKILL if that does not help.
    pub(crate) fn stop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        for _ in 0..2000 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.stop();
        }
    }
}

/// One of Debian's programs, which finds the others beside it and nothing of the user's.
pub(crate) fn command(home: &Path, program: &str) -> Command {
    let own = ["sbin", "bin"].map(container_program);
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(own.into_iter().chain(env::split_paths(&path)));
    let mut command = Command::new(container_program(program));
    command
        .env("PATH", path.unwrap_or_else(|_| OsString::new()))
        .env("HOME", home)
        .env("TMPDIR", home)
        .env_remove("DOCKER_HOST")
        .env_remove("DOCKER_CONTEXT")
        .env("DOCKER_CONFIG", home);
    command
}
