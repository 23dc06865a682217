//! Podman of Debian's with directories of its own, and its API. It and its containers end with its handle.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::{
    docker::{Service, command},
    remains::{Remains, root_file_system},
    surroundings::container_program,
};

/// Podman with its API.
#[derive(Debug)]
pub struct Podman {
    service: Option<Service>,
    _remains: Remains,
    cgroup: String,
    home: TempDir,
}

impl Podman {
    /// Starts its API.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start() -> Self {
        Self::try_start().unwrap_or_else(|error| panic!("no podman: {error:#}"))
    }

    fn try_start() -> Result<Self> {
        let home = tempfile::Builder::new().prefix("mvt-podman-").tempdir()?;
        let cgroup = format!("mvt{}-podman", process::id());
        let places = ["/run/containers", "/run/runc", "/run/crun", "/var/lib/containers"];
        let remains = Remains::of(home.path(), &cgroup, &places);
        configure(home.path())?;
        root_file_system(&home.path().join("root"))?;
        let mut podman = Self {
            service: None,
            _remains: remains,
            cgroup,
            home,
        };
        let mut command = podman.command();
        command.args(["system", "service", "--time=0"]);
        command.arg(format!("unix://{}", podman.socket().display()));
        let service = Service::spawn(podman.home.path(), command)?;
        service.await_socket(&podman.socket());
        podman.service = Some(service);
        Ok(podman)
    }

    /// Where its API is.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.home.path().join("podman.sock")
    }

    /// Runs `podman` with these arguments; gives what it printed.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self
            .command()
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context("could not start podman")?;
        ensure!(
            output.status.success(),
            "podman {}: {}: {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Starts a container that sleeps.
    pub fn sleeper(&self, name: &str, network: &str) -> Result<String> {
        let root = self.home.path().join("root").display().to_string();
        self.run(&[
            "run",
            "--detach",
            &format!("--name={name}"),
            &format!("--network={network}"),
            &format!("--cgroup-parent=/{}", self.cgroup),
            "--rootfs",
            &root,
            "/bin/sleep",
            "1000",
        ])
    }

    fn command(&self) -> Command {
        let home = self.home.path();
        let mut command = command(home, "bin/podman");
        let path = command.get_envs().find(|(name, _)| *name == "PATH");
        let mut first = home.join("bin").into_os_string();
        if let Some((_, Some(rest))) = path {
            first.push(":");
            first.push(rest);
        }
        command
            .env_remove("DOCKER_CONFIG")
            .env("PATH", first)
            .env("LD_LIBRARY_PATH", container_program("lib/x86_64-linux-gnu"))
            .env("CONTAINERS_CONF", home.join("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", home.join("storage.conf"))
            .env("CONTAINERS_REGISTRIES_CONF", home.join("registries.conf"))
            .arg("--runtime")
            .arg(container_program("sbin/runc"));
        command
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.run(&["rm", "--all", "--force", "--time=0"]);
        if let Some(service) = &mut self.service {
            service.stop();
        }
    }
}

fn configure(home: &Path) -> Result<()> {
    let at = |name: &str| home.join(name).display().to_string();
    let (conmon, helpers) = (container_program("bin/conmon"), container_program("lib/podman"));
    fs::write(
        home.join("containers.conf"),
        format!(
            "[engine]\ncgroup_manager=\"cgroupfs\"\nevents_logger=\"file\"\nlock_type=\"file\"\nconmon_path=[\"{}\"]\n\
             helper_binaries_dir=[\"{}\"]\nstatic_dir={:?}\ntmp_dir={:?}\nvolume_path={:?}\n\
             [network]\nnetwork_backend=\"netavark\"\nnetwork_config_dir={:?}\n\
             [containers]\nseccomp_profile=\"unconfined\"\napparmor_profile=\"\"\n\
             default_ulimits=[\"nofile=1024:1024\",\"nproc=1024:1024\"]\n",
            conmon.display(),
            helpers.display(),
            at("static"),
            at("tmp"),
            at("volumes"),
            at("networks"),
        ),
    )?;
    fs::write(
        home.join("storage.conf"),
        format!(
            "[storage]\ndriver=\"vfs\"\nrunroot={:?}\ngraphroot={:?}\n",
            at("runroot"),
            at("graph")
        ),
    )?;
    fs::write(home.join("registries.conf"), "")?;
    // Netavark asks for the firewall's version before it knows that a macvlan network has none.
    fs::create_dir(home.join("bin"))?;
    for name in ["iptables", "ip6tables"] {
        let script = home.join("bin").join(name);
        fs::write(&script, "#!/bin/sh\necho \"iptables v1.8.9\"\n")?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}
