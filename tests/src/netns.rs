//! Named network namespaces, as `ip netns` keeps them: made, joined for the length of a closure, removed.
//!
//! A namespace is joined by a thread of its own that ends with the closure, so no thread of the caller is ever in
//! another namespace than it thinks.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    panic,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

use crate::{
    lab::loopback_up,
    surroundings::{eventually, patience},
};

/// Where named namespaces are.
pub const DIRECTORY: &str = "/run/netns";

/// A network namespace: the process's own, or a named one that is removed with its last handle.
#[derive(Clone, Debug)]
pub struct Namespace(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: Option<String>,
    path: PathBuf,
    /// Made by us and not removed yet.
    ours: AtomicBool,
}

impl Namespace {
    /// The namespace that the process is in.
    #[must_use]
    pub fn own() -> Self {
        // The main thread joins no other one, but for `apart`.
        Self(Arc::new(Inner {
            name: None,
            path: "/proc/self/ns/net".into(),
            ours: AtomicBool::new(false),
        }))
    }

    /// Makes a namespace, with IPv6 off for all links to come: its neighbour discovery would send frames of its own
    /// among those that are counted. A name that exists is refused.
    pub fn create(name: &str) -> Result<Self> {
        let path = path_of(name);
        prepare_directory().with_context(|| format!("could not prepare {DIRECTORY}"))?;
        match OpenOptions::new().write(true).create_new(true).mode(0o444).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                bail!("a network namespace named {name} exists already; it is not touched")
            }
            other => other.with_context(|| format!("could not create {}", path.display()))?,
        };
        let namespace = Self(Arc::new(Inner {
            name: Some(name.into()),
            path,
            ours: AtomicBool::new(true),
        }));
        on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("could not make a network namespace (is this root?)")?;
            let source = Some("/proc/thread-self/ns/net");
            mount(source, &namespace.0.path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .with_context(|| format!("could not mount {}", namespace.0.path.display()))
        })?;
        namespace.run(|| {
            switch_ipv6("all", false)?;
            switch_ipv6("default", false)
        })?;
        Ok(namespace)
    }

    /// A namespace that somebody else made; it stays when the handle goes.
    pub fn existing(name: &str) -> Result<Self> {
        let path = path_of(name);
        if !path.exists() {
            bail!("there is no network namespace named {name}");
        }
        Ok(Self(Arc::new(Inner {
            name: Some(name.into()),
            path,
            ours: AtomicBool::new(false),
        })))
    }

    /// The namespace that a process is in, which has no name: its label is that of one found by a process.
    pub fn of_process(pid: u32) -> Result<Self> {
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        let inode = fs::metadata(&path)
            .with_context(|| format!("there is no {}", path.display()))?
            .ino();
        Ok(Self(Arc::new(Inner {
            name: Some(format!("ino:{inode}")),
            path,
            ours: AtomicBool::new(false),
        })))
    }

    /// Its name; none for the process's own.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.0.name.as_deref()
    }

    /// What the label `netns` of its sub-interfaces says.
    #[must_use]
    pub fn label(&self) -> &str {
        self.name().unwrap_or("host")
    }

    /// The path of a file that is this namespace.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// A file that is this namespace.
    pub fn open(&self) -> Result<File> {
        File::open(&self.0.path).with_context(|| format!("could not open {}", self.0.path.display()))
    }

    /// Runs `work` in this namespace; a panic in it goes on in the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let file = self.open()?;
        on_a_thread(move || {
            setns(&file, CloneFlags::CLONE_NEWNET).with_context(|| format!("could not join {}", self.label()))?;
            work()
        })
    }

    /// Removes the name now, and with it the namespace once nobody is in it.
    pub fn remove(&self) -> Result<()> {
        self.0.ours.store(false, Ordering::Relaxed);
        self.0.remove()
    }
}

impl Inner {
    fn remove(&self) -> Result<()> {
        if self.name.is_none() {
            return Ok(());
        }
        match umount2(&self.path, MntFlags::MNT_DETACH) {
            // Not mounted: its making was interrupted.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(error) => return Err(error).with_context(|| format!("could not unmount {}", self.path.display())),
        }
        fs::remove_file(&self.path).with_context(|| format!("could not remove {}", self.path.display()))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.ours.load(Ordering::Relaxed) {
            // Nobody is left to tell; a test that leaves something behind is seen by the next that looks.
            let _ = self.remove();
        }
    }
}

/// Does `work` while the process's own namespace is a new one, with IPv6 off and the loopback up, so that nothing of the
/// host's is in the way or harmed. To be called by the main thread, whose namespace the process's own is; other threads
/// stay where they are.
pub fn apart<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = Namespace::own().open()?;
    unshare(CloneFlags::CLONE_NEWNET).context("could not make a network namespace (is this root?)")?;
    let done = switch_ipv6("all", false)
        .and_then(|()| switch_ipv6("default", false))
        .and_then(|()| loopback_up())
        .and_then(|()| work());
    setns(&before, CloneFlags::CLONE_NEWNET).context("could not go back to the first namespace")?;
    done
}

/// A process in a network namespace of its own that nobody gave a name; it ends with its handle.
#[derive(Debug)]
pub struct Hermit {
    child: Child,
    /// Where it lives.
    pub namespace: Namespace,
}

impl Hermit {
    /// As `unshare -n` makes one.
    pub fn new() -> Result<Self> {
        let child = Command::new("unshare").args(["-n", "sleep", "1000"]).spawn();
        let child = child.context("could not start unshare")?;
        let inode = |process: &str| Ok::<_, io::Error>(fs::metadata(format!("/proc/{process}/ns/net"))?.ino());
        let (own, pid) = (inode("self")?, child.id());
        let mut hermit = Self {
            child,
            namespace: Namespace::own(),
        };
        // It is one once it is away.
        eventually(patience(Duration::from_secs(2)), || match inode(&pid.to_string()) {
            Ok(there) if there != own => Ok(()),
            other => Err(format!("{other:?}")),
        });
        hermit.namespace = Namespace::of_process(pid)?;
        hermit.namespace.run(|| {
            switch_ipv6("all", false)?;
            switch_ipv6("default", false)
        })?;
        Ok(hermit)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Hermit {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Turns IPv6 on or off for an interface of the namespace that the thread is in; a kernel without IPv6 is as good as
/// one that has it off.
pub fn switch_ipv6(interface: &str, on: bool) -> Result<()> {
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    match fs::write(&path, if on { "0" } else { "1" }) {
        Err(error) if on || error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("could not write {path}"))
        }
        _ => Ok(()),
    }
}

fn path_of(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".into()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
    })
}

/// `/run/netns` as iproute2 makes it: a shared mount, so that mounts in it are seen in every mount namespace.
fn prepare_directory() -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(DIRECTORY)?;
    let _lock = Flock::lock(File::open(DIRECTORY)?, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    let share = || {
        mount(
            None::<&str>,
            DIRECTORY,
            None::<&str>,
            MsFlags::MS_SHARED | MsFlags::MS_REC,
            None::<&str>,
        )
    };
    match share() {
        Ok(()) => Ok(()),
        // Not a mount point yet.
        Err(Errno::EINVAL) => {
            mount(
                Some(DIRECTORY),
                DIRECTORY,
                None::<&str>,
                MsFlags::MS_BIND | MsFlags::MS_REC,
                None::<&str>,
            )?;
            Ok(share()?)
        }
        Err(error) => Err(anyhow!(error)),
    }
}
