//! Asking the sources, again and again, without anybody waiting for the answers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::watch,
    task::{JoinSet, spawn_blocking},
    time::sleep_until,
};

use super::{
    Generations, Owners, Sources,
    api::{Api, ClientError, Container, is_absent},
    cgroup::{self, Identity},
    cni::{self, Attachment},
    join::{self, Evidence},
};
use crate::{
    resolve::ContainerPlace,
    topology::{
        inventory::Inventory,
        netns::Netns,
        watcher::{self, Namespace, Namespaces, TopologyError},
    },
};

/// After how long is asked again for the owner of a new namespace: a container's network is there before the container.
const PATIENCE: [Duration; 7] = [
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1500),
    Duration::from_secs(3),
    Duration::from_secs(7),
];

/// How often all is asked anew at most, where somebody asks us: a container may get another name.
const RENEW: Duration = Duration::from_secs(15);

/// Follows the owners of the namespaces with sub-interfaces until `cancel` ends. `asks` changes when somebody wants to know
/// how things are.
pub fn start(
    cancel: impl Future<Output = ()> + Send + 'static,
    (inventory, namespaces): (watch::Receiver<Arc<Inventory>>, Namespaces),
    own: u32,
    sources: Sources,
    asks: watch::Receiver<()>,
) -> watch::Receiver<Arc<Owners>> {
    let (publisher, owners) = watch::channel(Arc::default());
    let mut task = Task {
        own,
        namespaces,
        knowledge: Knowledge::new(sources),
        publisher,
        inventory: Arc::default(),
        waiting: HashMap::new(),
        renewed: Instant::now(),
        answers: JoinSet::new(),
    };
    tokio::spawn(async move {
        tokio::select! {
            () = task.run(inventory, asks) => {}
            () = cancel => {}
        }
    });
    owners
}

/// The owners of these namespaces as they are now.
pub async fn gather_once(inventory: &Arc<Inventory>, namespaces: Vec<Namespace>, own: u32, sources: Sources) -> Owners {
    let mut knowledge = Knowledge::new(sources);
    let mut answers = JoinSet::new();
    knowledge.ask(own, &generations(&namespaces), &mut answers);
    knowledge.look(namespaces.clone()).await;
    while let Some(answer) = answers.join_next().await {
        knowledge.learn(answer.ok());
    }
    knowledge.owners(&namespaces, inventory)
}

/// Every container on this host whose network namespace can be found, for [`resolve`](crate::resolve): those without a
/// sub-interface as well.
pub async fn containers(sources: Sources) -> Result<Vec<ContainerPlace>, TopologyError> {
    let own = Netns::own()?.inode();
    let (inventory, namespaces) = watcher::dump_once("/run/netns".into()).await?;
    let mut owners = gather_once(&inventory, namespaces.clone(), own, sources)
        .await
        .by_namespace;
    owners.remove(&own);
    let place = |namespace: Namespace| {
        Some(ContainerPlace {
            owner: owners.get(&namespace.inode)?.clone(),
            inode: namespace.inode,
            path: namespace.file()?,
            netns: namespace.label,
        })
    };
    Ok(namespaces.into_iter().filter_map(place).collect())
}

fn generations(namespaces: &[Namespace]) -> Generations {
    let each = namespaces
        .iter()
        .map(|namespace| (namespace.inode, namespace.generation));
    each.collect()
}

/// What one API has told.
struct Told {
    /// The namespaces that were there when it was asked: of one that came later, with the inode of one of them, it does
    /// not speak.
    about: Generations,
    containers: Result<Vec<Container>, ClientError>,
}

type Answer = (usize, Api, Told);

impl Told {
    fn nothing() -> Self {
        Self {
            about: Generations::new(),
            containers: Ok(Vec::new()),
        }
    }

    fn speaks_of(&self, namespace: &Namespace) -> bool {
        self.about.get(&namespace.inode) == Some(&namespace.generation)
    }
}

fn key(namespace: &Namespace) -> (u32, u64) {
    (namespace.inode, namespace.generation)
}

/// What the sources have said last.
struct Knowledge {
    cni: PathBuf,
    /// None while it is being asked.
    apis: Vec<Option<Api>>,
    /// What each has told, or why it has not.
    told: Vec<Told>,
    /// By inode and generation.
    identities: BTreeMap<(u32, u64), BTreeSet<Identity>>,
    attachments: Result<Vec<Attachment>, String>,
}

impl Knowledge {
    fn new(sources: Sources) -> Self {
        Self {
            cni: sources.cni,
            told: sources.sockets.iter().map(|_| Told::nothing()).collect(),
            apis: sources
                .sockets
                .into_iter()
                .map(|socket| Some(Api::new(socket)))
                .collect(),
            identities: BTreeMap::new(),
            attachments: Ok(Vec::new()),
        }
    }

    /// Looks at what lies on this machine.
    async fn look(&mut self, namespaces: Vec<Namespace>) {
        let cni = self.cni.clone();
        let looked = spawn_blocking(move || {
            let identities = namespaces
                .iter()
                .map(|namespace| (key(namespace), cgroup::of_processes(&namespace.processes)));
            (identities.collect(), cni::read(&cni))
        });
        if let Ok((identities, attachments)) = looked.await {
            (self.identities, self.attachments) = (identities, attachments);
        }
    }

    /// Asks the APIs that are not being asked already.
    fn ask(&mut self, own: u32, followed: &Generations, answers: &mut JoinSet<Answer>) {
        for (number, api) in self.apis.iter_mut().enumerate() {
            let Some(mut api) = api.take() else { continue };
            let about = followed.clone();
            answers.spawn(async move {
                let containers = api.containers(own, &about).await;
                (number, api, Told { about, containers })
            });
        }
    }

    fn learn(&mut self, answer: Option<Answer>) {
        // None: it panicked, and is not asked again.
        let Some((number, api, told)) = answer else { return };
        match (&told.containers, &self.told[number].containers) {
            (Err(error), Ok(_)) if is_absent(error) => {
                tracing::debug!(socket = %api.socket().display(), %error, "there is no container runtime");
            }
            (Err(error), Ok(_)) => {
                tracing::warn!(socket = %api.socket().display(), %error, "a container runtime cannot be asked for names");
            }
            _ => {}
        }
        self.told[number] = told;
        self.apis[number] = Some(api);
    }

    fn owners(&self, namespaces: &[Namespace], inventory: &Inventory) -> Owners {
        // They are asked for only to tell CNI's results apart.
        let interfaces = if self
            .attachments
            .as_ref()
            .is_ok_and(|attachments| !attachments.is_empty())
        {
            interfaces(inventory)
        } else {
            BTreeMap::new()
        };
        let containers = |namespace: &Namespace| {
            let told = self.told.iter().filter(|told| told.speaks_of(namespace));
            let containers = told.flat_map(|told| told.containers.iter().flatten());
            let netns = Some(namespace.inode);
            containers.filter(move |container| container.netns == netns).collect()
        };
        let attachments = || self.attachments.iter().flatten();
        let evidence = namespaces.iter().map(|namespace| {
            let netns = namespace.inode;
            let evidence = Evidence {
                identities: self.identities.get(&key(namespace)),
                containers: containers(namespace),
                attachments: attachments().filter(|attachment| attachment.netns == netns).collect(),
                interfaces: interfaces.get(&netns).map_or(&[], Vec::as_slice),
            };
            (netns, evidence)
        });
        let by_namespace = join::join(&evidence.collect());
        let mut owners = Owners {
            by_namespace,
            problems: Vec::new(),
        };
        owners.problems = self.problems(&owners);
        owners
    }

    fn problems(&self, owners: &Owners) -> Vec<String> {
        let socket = |number: usize| {
            self.apis[number]
                .as_ref()
                .map_or_else(String::new, |api| format!(" at {}", api.socket().display()))
        };
        let faults = self.told.iter().enumerate();
        let faults = faults.filter_map(|(number, told)| Some((number, told.containers.as_ref().err()?)));
        let mut problems: Vec<String> = faults
            .filter(|(_, error)| !is_absent(error))
            .map(|(number, error)| {
                let at = socket(number);
                format!("the container runtime{at} cannot be asked for names: {error}")
            })
            .collect();
        for runtime in ["docker", "podman"] {
            let nameless = owners.by_namespace.values().any(|owner| {
                owner.runtime == runtime && !owner.container_id.is_empty() && owner.container_name.is_empty()
            });
            if nameless && problems.is_empty() {
                problems.push(format!(
                    "containers of {runtime} are known by their ids only: its API does not answer at any of the sockets of \
                     --containers.socket"
                ));
            }
        }
        problems.extend(self.attachments.as_ref().err().cloned());
        problems
    }
}

/// Names and MACs of the sub-interfaces in each namespace.
fn interfaces(inventory: &Inventory) -> BTreeMap<u32, Vec<(String, String)>> {
    let mut interfaces: BTreeMap<u32, Vec<(String, String)>> = BTreeMap::new();
    for link in inventory.sub_interfaces.values() {
        let mac = link.mac.map(|byte| format!("{byte:02x}")).join(":");
        interfaces
            .entry(link.key.netns)
            .or_default()
            .push((link.name.clone(), mac));
    }
    interfaces
}

/// A namespace whose owner is not known yet: how often it was asked for, and when it will be next.
struct Waiting {
    generation: u64,
    attempts: usize,
    next: Option<Instant>,
}

struct Task {
    own: u32,
    namespaces: Namespaces,
    knowledge: Knowledge,
    publisher: watch::Sender<Arc<Owners>>,
    inventory: Arc<Inventory>,
    waiting: HashMap<u32, Waiting>,
    /// When all was asked last.
    renewed: Instant,
    answers: JoinSet<Answer>,
}

impl Task {
    async fn run(&mut self, mut inventory: watch::Receiver<Arc<Inventory>>, mut asks: watch::Receiver<()>) {
        inventory.mark_changed();
        loop {
            let due = self.due();
            let is_due = async {
                match due {
                    Some(due) => sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = inventory.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.inventory = Arc::clone(&inventory.borrow_and_update());
                    self.note();
                }
                Some(answer) = self.answers.join_next() => {
                    self.knowledge.learn(answer.ok());
                    self.publish();
                }
                () = watcher::asked(&mut asks) => {
                    if !self.waiting.is_empty() && self.renewed.elapsed() >= RENEW {
                        self.refresh().await;
                    }
                }
                () = is_due => self.refresh().await,
            }
        }
    }

    fn due(&self) -> Option<Instant> {
        self.waiting.values().filter_map(|waiting| waiting.next).min()
    }

    /// The namespaces whose owners matter: those that sub-interfaces are in, but our own.
    fn wanted(&self) -> Vec<Namespace> {
        let inodes = self.inventory.sub_interfaces.namespaces().map(|(inode, _)| inode);
        inodes
            .filter(|inode| *inode != self.own)
            .filter_map(|inode| self.namespaces.get(inode))
            .collect()
    }

    /// Notes which are new, and forgets those that are gone.
    fn note(&mut self) {
        let wanted = self.wanted();
        let now = Instant::now();
        let mut gone = false;
        let generations = generations(&wanted);
        self.waiting.retain(|inode, waiting| {
            let stays = generations.get(inode) == Some(&waiting.generation);
            gone |= !stays;
            stays
        });
        for namespace in &wanted {
            self.waiting.entry(namespace.inode).or_insert(Waiting {
                generation: namespace.generation,
                attempts: 0,
                next: Some(now),
            });
        }
        if gone {
            self.publish();
        }
    }

    async fn refresh(&mut self) {
        let now = Instant::now();
        self.renewed = now;
        for waiting in self
            .waiting
            .values_mut()
            .filter(|waiting| waiting.next.is_some_and(|next| next <= now))
        {
            waiting.next = PATIENCE.get(waiting.attempts).map(|wait| now + *wait);
            waiting.attempts += 1;
        }
        let wanted = self.wanted();
        self.knowledge.ask(self.own, &generations(&wanted), &mut self.answers);
        self.knowledge.look(wanted).await;
        self.publish();
    }

    fn publish(&mut self) {
        let owners = self.knowledge.owners(&self.wanted(), &self.inventory);
        for (inode, waiting) in &mut self.waiting {
            let is_named = |owner: &super::Owner| !owner.container_name.is_empty() || !owner.pod_name.is_empty();
            if owners.of(*inode).is_some_and(is_named) {
                waiting.next = None;
            }
        }
        self.publisher.send_if_modified(|current| {
            let changed = **current != owners;
            if changed {
                *current = Arc::new(owners);
            }
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_of_a_namespace_does_not_hold_for_the_next_with_its_inode() {
        let mut knowledge = Knowledge::new(Sources {
            sockets: vec!["/nonexistent".into()],
            cni: "/nonexistent".into(),
        });
        let container = Container {
            runtime: "docker",
            name: "web-1".to_owned(),
            netns: Some(7),
            ..Container::default()
        };
        let identity = Identity {
            runtime: "podman",
            ..Identity::default()
        };
        let mut namespace = Namespace {
            inode: 7,
            generation: 1,
            ..Namespace::default()
        };
        knowledge.told[0] = Told {
            about: generations(std::slice::from_ref(&namespace)),
            containers: Ok(vec![container]),
        };
        knowledge.identities.insert((7, 1), BTreeSet::from([identity]));
        let inventory = Inventory::default();
        let owners = knowledge.owners(std::slice::from_ref(&namespace), &inventory);
        assert_eq!(owners.by_namespace[&7].container_name, "web-1");
        namespace.generation = 2;
        let owners = knowledge.owners(&[namespace], &inventory);
        assert_eq!(owners.of(7), None);
    }
}
