//! A socket that answers as Docker's API does, with containers that a test makes up.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A container that is none.
#[derive(Clone, Debug)]
pub struct Container {
    /// Sixty-four digits.
    pub id: String,
    /// Any text.
    pub name: String,
    /// The file of its network namespace.
    pub sandbox: String,
}

/// The socket; it answers as long as its handle lives.
#[derive(Debug)]
pub struct FakeDocker {
    directory: TempDir,
    containers: Arc<Mutex<Vec<Container>>>,
}

impl FakeDocker {
    /// With no containers.
    ///
    /// # Panics
    /// When the socket cannot be made.
    #[must_use]
    pub fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("mvt-docker-").tempdir();
        let directory = directory.expect("a directory for temporary files");
        let listener = UnixListener::bind(directory.path().join("docker.sock")).expect("a socket");
        let containers = Arc::<Mutex<Vec<Container>>>::default();
        let of_the_server = Arc::clone(&containers);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let containers = Arc::clone(&of_the_server);
                // Whoever asked may be gone.
                thread::spawn(move || serve(&stream, &containers));
            }
        });
        Self { directory, containers }
    }

    /// Where it is.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("docker.sock")
    }

    /// The flag by which an agent asks it.
    #[must_use]
    pub fn flag(&self) -> String {
        format!("--containers.socket={}", self.socket().display())
    }

    /// A new container; its id counts.
    pub fn add(&self, name: &str, sandbox: &Path) {
        let mut all = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        let id = format!("{:064x}", 0xc0_ffee_0000 + all.len());
        all.push(Container {
            id,
            name: name.to_owned(),
            sandbox: sandbox.display().to_string(),
        });
    }

    /// All end.
    pub fn clear(&self) {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

fn serve(mut stream: &UnixStream, containers: &Mutex<Vec<Container>>) -> std::io::Result<()> {
    let mut path = String::new();
    for line in BufReader::new(stream).lines() {
        let line = line?;
        if let Some(asked) = line.strip_prefix("GET ") {
            asked.split(' ').next().unwrap_or_default().clone_into(&mut path);
        }
        if !line.is_empty() {
            continue;
        }
        let all = containers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (status, body) =
            answer(&path, &all).map_or(("404 Not Found", "{}".to_owned()), |it| ("200 OK", it.to_string()));
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes())?;
    }
    Ok(())
}

fn answer(path: &str, all: &[Container]) -> Option<Value> {
    if path == "/containers/json" {
        let list = all
            .iter()
            .map(|each| json!({ "Id": each.id, "Names": [format!("/{}", each.name)] }));
        return Some(list.collect());
    }
    let id = path.strip_prefix("/containers/")?.strip_suffix("/json")?;
    let container = all.iter().find(|each| each.id == id)?;
    Some(json!({
        "Id": container.id,
        "Name": format!("/{}", container.name),
        "State": { "Pid": 0 },
        "Config": { "Image": "busybox", "Labels": {} },
        "HostConfig": { "NetworkMode": "mv" },
        "NetworkSettings": { "SandboxKey": container.sandbox },
    }))
}
