//! Containers as Docker's API tells them; podman speaks it as well. GET only.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use serde::Deserialize;

pub use super::client::ClientError;
use super::{Generations, bounded, client::Client};

/// A container that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// `docker` or `podman`.
    pub runtime: &'static str,
    /// Its whole id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What it was made from.
    pub image: String,
    /// The pod's name, where Kubernetes had it made.
    pub pod_name: String,
    /// The pod's namespace.
    pub pod_namespace: String,
    /// The inode of its network namespace, if that is its own and can be looked at.
    pub netns: Option<u32>,
}

/// One socket, and what was learnt over it.
#[derive(Debug)]
pub struct Api {
    socket: PathBuf,
    known: HashMap<String, Known>,
}

/// A container as it was looked at last.
#[derive(Debug)]
struct Known {
    container: Container,
    /// The generation of its namespace, where that was followed already.
    generation: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
    #[serde(default)]
    names: Option<Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Inspected {
    id: String,
    name: String,
    state: State,
    config: Config,
    host_config: HostConfig,
    network_settings: NetworkSettings,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct State {
    pid: u32,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    image: Option<String>,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct HostConfig {
    network_mode: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct NetworkSettings {
    sandbox_key: Option<String>,
}

impl Api {
    /// Nothing learnt.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            known: HashMap::new(),
        }
    }

    /// Where it is asked.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The containers that run. One whose namespace is still followed is not looked at again: by the generation, for a
    /// container that was started anew has another one, and its old one's inode may be somebody else's. `own` is the
    /// agent's namespace, which is no container's.
    pub async fn containers(&mut self, own: u32, followed: &Generations) -> Result<Vec<Container>, ClientError> {
        let mut client = Client::connect(&self.socket).await?;
        let listed: Vec<Listed> = client.get("/containers/json").await?.unwrap_or_default();
        let runtime = runtime_of(&self.socket);
        let mut all = HashMap::new();
        for each in listed {
            let generation = |container: &Container| container.netns.and_then(|netns| followed.get(&netns)).copied();
            let known = self.known.remove(&each.id);
            let settled =
                known.filter(|known| known.generation.is_some() && known.generation == generation(&known.container));
            let mut container = match settled {
                Some(known) => known.container,
                None => match inspect(&mut client, &each.id).await? {
                    Some(inspected) => inspected.container(runtime, own),
                    // It has ended meanwhile.
                    None => continue,
                },
            };
            // It may have another name than before.
            if let Some(name) = each.names.iter().flatten().next() {
                container.name = plain(name);
            }
            let generation = generation(&container);
            all.insert(each.id, Known { container, generation });
        }
        self.known = all;
        let mut containers: Vec<Container> = self.known.values().map(|known| known.container.clone()).collect();
        containers.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(containers)
    }
}

async fn inspect(client: &mut Client, id: &str) -> Result<Option<Inspected>, ClientError> {
    // It goes into a path: what the other side calls an id must not lead elsewhere.
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Ok(None);
    }
    client.get(&format!("/containers/{id}/json")).await
}

impl Inspected {
    fn container(self, runtime: &'static str, own: u32) -> Container {
        let mut labels = self.config.labels.unwrap_or_default();
        let mut label = |name| bounded(labels.remove(name).unwrap_or_default());
        let mode = self.host_config.network_mode.unwrap_or_default();
        // It lives in another's namespace: of that one it is not the owner.
        let is_guest = mode == "host" || mode.starts_with("container:");
        let netns = netns_of(self.network_settings.sandbox_key.as_deref(), self.state.pid);
        Container {
            runtime,
            id: bounded(self.id),
            name: plain(&self.name),
            image: bounded(self.config.image.unwrap_or_default()),
            pod_name: label("io.kubernetes.pod.name"),
            pod_namespace: label("io.kubernetes.pod.namespace"),
            netns: netns.filter(|netns| !is_guest && *netns != own),
        }
    }
}

/// By the file that it says, which may be hidden from us, else by its first process.
fn netns_of(sandbox: Option<&str>, process: u32) -> Option<u32> {
    let inode = |path: &str| {
        let file = std::fs::metadata(path).ok()?;
        u32::try_from(file.ino()).ok().filter(|_| is_nsfs(file.dev()))
    };
    let sandbox = sandbox.filter(|path| path.starts_with('/')).and_then(inode);
    sandbox.or_else(|| (process > 0).then(|| inode(&format!("/proc/{process}/ns/net")))?)
}

fn is_nsfs(device: u64) -> bool {
    std::fs::metadata("/proc/self/ns/net").is_ok_and(|own| own.dev() == device)
}

/// Docker puts a slash before names.
fn plain(name: &str) -> String {
    bounded(name.strip_prefix('/').unwrap_or(name).to_owned())
}

/// Podman's sockets are called so everywhere; their API does not say whose it is without another question.
fn runtime_of(socket: &Path) -> &'static str {
    if socket.to_string_lossy().contains("podman") {
        "podman"
    } else {
        "docker"
    }
}

/// Whether this only means that there is no such runtime, or that it does not run.
#[must_use]
pub fn is_absent(error: &ClientError) -> bool {
    matches!(error, ClientError::Connect(error)
        if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::UnixListener,
    };

    use super::*;

    const ID: &str = "3c1d849d5b88bfebe0e719877b0293490933659a4f64be89bb3d5e92cd867631";

    /// A server that answers each request with what `answer` makes of its path; gives all that was asked.
    fn serve(
        directory: &Path,
        answer: impl Fn(&str) -> Option<String> + Copy + Send + 'static,
    ) -> (PathBuf, tokio::sync::mpsc::UnboundedReceiver<String>) {
        let socket = directory.join("docker.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (asked, all) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let asked = asked.clone();
                tokio::spawn(async move {
                    let mut request = vec![0; 4096];
                    while let Ok(length @ 1..) = stream.read(&mut request).await {
                        let line = String::from_utf8_lossy(&request[..length])
                            .lines()
                            .next()
                            .unwrap()
                            .to_owned();
                        let body = answer(line.split(' ').nth(1).unwrap());
                        asked.send(line).unwrap();
                        match body {
                            Some(body) => {
                                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                                let _ = stream.write_all((head + &body).as_bytes()).await;
                            }
                            None => std::future::pending().await,
                        }
                    }
                });
            }
        });
        (socket, all)
    }

    fn two_containers(path: &str) -> String {
        let me = std::process::id();
        match path {
            "/containers/json" => format!(
                "[{{\"Id\":\"{ID}\",\"Names\":[\"/new-name\"]}},{{\"Id\":\"../secret\"}},{{\"Id\":\"b0b\",\"Names\":null}}]"
            ),
            "/containers/b0b/json" => format!(
                "{{\"Id\":\"b0b\",\"Name\":\"/guest\",\"State\":{{\"Pid\":{me}}},\"HostConfig\":{{\"NetworkMode\":\"container:x\"}}}}"
            ),
            _ => format!(
                "{{\"Id\":\"{ID}\",\"Name\":\"/web-1\",\"State\":{{\"Pid\":{me}}},\"Config\":{{\"Image\":\"bb\",\"Labels\":{{\"io.kubernetes.pod.name\":\"p\"}}}},\
                 \"NetworkSettings\":{{\"SandboxKey\":\"/nonexistent\"}}}}"
            ),
        }
    }

    #[tokio::test]
    async fn containers_are_listed_and_each_is_inspected_once_in_a_namespace() {
        let directory = tempfile::tempdir().unwrap();
        let (socket, mut asked) = serve(directory.path(), |path| Some(two_containers(path)));
        let own = u32::try_from(std::fs::metadata("/proc/self/ns/net").unwrap().ino()).unwrap();
        let mut api = Api::new(socket.clone());
        let mut followed = Generations::from([(own, 1)]);
        let containers = api.containers(0, &followed).await.unwrap();
        let expected = Container {
            runtime: "docker",
            id: ID.to_owned(),
            name: "new-name".to_owned(),
            image: "bb".to_owned(),
            pod_name: "p".to_owned(),
            pod_namespace: String::new(),
            netns: Some(own),
        };
        assert_eq!(containers[0], expected);
        assert_eq!(
            (containers.len(), containers[1].netns),
            (2, None),
            "a guest owns nothing"
        );
        api.containers(0, &followed).await.unwrap();
        followed.insert(own, 2);
        api.containers(0, &followed).await.unwrap();
        let mut lines = Vec::new();
        while let Ok(line) = asked.try_recv() {
            lines.push(line);
        }
        let list = "GET /containers/json HTTP/1.1".to_owned();
        let inspect = |id: &str| format!("GET /containers/{id}/json HTTP/1.1");
        let all = [list.clone(), inspect(ID), inspect("b0b")];
        let not_again = [list, inspect("b0b")];
        let expected = [all.as_slice(), &not_again, &all].concat();
        assert_eq!(lines, expected, "anew once its namespace is another one");
        let mut api = Api::new(socket);
        assert_eq!(
            api.containers(own, &followed).await.unwrap()[0].netns,
            None,
            "ours is no container's"
        );
    }

    #[tokio::test]
    async fn one_that_does_not_answer_is_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let (socket, _asked) = serve(directory.path(), |_| None);
        let start = Instant::now();
        let error = Api::new(socket).containers(0, &Generations::new()).await.unwrap_err();
        assert!(matches!(error, ClientError::Slow), "{error}");
        assert!(start.elapsed() < Duration::from_secs(4));
    }

    #[tokio::test]
    async fn one_that_says_too_much_or_nonsense_is_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let (socket, _asked) = serve(directory.path(), |_| Some(" ".repeat(9 * 1024 * 1024)));
        let error = Api::new(socket).containers(0, &Generations::new()).await.unwrap_err();
        assert!(matches!(error, ClientError::Long), "{error}");
        let directory = tempfile::tempdir().unwrap();
        let (socket, _asked) = serve(directory.path(), |_| Some("<html>".to_owned()));
        let error = Api::new(socket).containers(0, &Generations::new()).await.unwrap_err();
        assert!(matches!(error, ClientError::Content(_)), "{error}");
        let error = Api::new("/nonexistent".into())
            .containers(0, &Generations::new())
            .await
            .unwrap_err();
        assert!(is_absent(&error), "{error}");
    }
}
