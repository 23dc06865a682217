//! Follows every namespace there is and publishes the inventory.
//!
//! One task owns the state. It looks where namespaces are (names, mounts, processes), has the follower take up the new
//! ones, and hears from that what happens in them. Nothing of another namespace is held open, so one ends when its users
//! let go of it, and the kernel says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{AbortHandle, spawn_blocking},
    time::sleep_until,
};

use super::{
    follower::{Command, News},
    inventory::Inventory,
    link::LinkKey,
    names::{Names, Place},
    netlink::{Peer, Socket},
    netns::Netns,
    processes::{self, Processes},
    tracker::Tracker,
    unicast::{self, Strangers},
};
use crate::pace::{Pace, Stint};

mod looks;
mod namespaces;
mod start;

use looks::Looks;
pub use namespaces::{Namespace, Namespaces};
pub use start::{Topology, TopologyError, dump_once, start};

/// How long changes are gathered before they are published while the first inventory is made.
const GATHER: Duration = Duration::from_millis(50);

/// How closely is looked for namespaces.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Debug)]
enum Look {
    /// At names and mounts.
    Names,
    /// At processes that are new as well.
    Processes,
    /// At every process.
    Everything,
}

/// A namespace that is followed, or about to be.
#[derive(Debug)]
struct Space {
    label: String,
    /// Its id in ours, once it has one.
    nsid: Option<i32>,
}

/// The task that owns the state.
#[derive(Debug)]
pub struct Watcher {
    own: Arc<Netns>,
    names: Names,
    processes: Processes,
    tracker: Tracker,
    spaces: BTreeMap<u32, Space>,
    namespaces: Namespaces,
    commands: mpsc::UnboundedSender<Command>,
    follower: AbortHandle,
    ask: Socket,
    /// By inode: label and reason.
    unreadable: BTreeMap<u32, (String, String)>,
    /// Why not all is seen at once, or at all.
    deaf: Option<String>,
    /// Of the namespaces that there were at the start, those not read yet.
    awaited: BTreeSet<u32>,
    publisher: watch::Sender<Arc<Inventory>>,
    publish_at: Option<Instant>,
    pace: Pace,
    look_at: Option<Instant>,
    looks: Looks,
    ready: Option<oneshot::Sender<()>>,
    strangers: Strangers,
    /// The parents' lists are being read.
    reading: Option<oneshot::Receiver<BTreeMap<LinkKey, BTreeSet<[u8; 6]>>>>,
    /// They are to be read at the next tick.
    suspicious: bool,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.follower.abort();
        self.namespaces.change(BTreeMap::clear);
    }
}

impl Watcher {
    async fn run(&mut self, mut news: mpsc::Receiver<Vec<News>>, mut asks: watch::Receiver<()>) {
        self.look(Look::Everything, true);
        self.awaited = self.spaces.keys().copied().collect();
        loop {
            tokio::select! {
                () = at(self.publish_at) => {
                    let stint = Stint::begin();
                    self.publish();
                    self.pace.done(&stint);
                }
                Some(news) = news.recv() => self.hear(news),
                () = self.names.changed() => {
                    self.looks.hear(Instant::now());
                    self.look(Look::Names, false);
                }
                () = at(self.look_at) => self.look(Look::Processes, false),
                lists = read(&mut self.reading) => self.judge(&lists),
                () = asked(&mut asks) => self.looks.ask(),
                () = at(Some(self.looks.next())) => self.tick(),
            }
        }
    }

    fn tick(&mut self) {
        let due = self.looks.tick(Instant::now());
        if due.retry {
            self.unreadable.clear();
        }
        if due.all {
            self.look(Look::Everything, false);
        } else if self.processes.has_new() {
            self.look(Look::Processes, false);
        } else if due.names {
            self.look(Look::Names, false);
        }
        // In the middle of a flood they would be read for nothing.
        if due.all || self.suspicious && self.pace.next(false).is_none() {
            self.read_lists();
        }
    }

    /// Looks which namespaces there are and takes up new ones. At the start (`first`) none is about to get a name.
    fn look(&mut self, look: Look, first: bool) {
        let now = Instant::now();
        self.looks.looked(look, now);
        if look >= Look::Processes {
            self.processes.look(look == Look::Everything, now);
        }
        let scan = self.names.scan(now);
        let mut again = scan.again;
        let mut places = scan.places;
        let processes = self.processes.by_namespace();
        for (&inode, processes) in &processes {
            if places.contains_key(&inode) || self.spaces.contains_key(&inode) {
                continue;
            }
            let wait = self.processes.wait(inode, now);
            if first || wait.is_zero() {
                let path = processes.first().copied().map(processes::path_of).unwrap_or_default();
                let (label, mounted) = (None, false);
                places.insert(inode, Place { path, label, mounted });
            } else {
                again = Some(again.unwrap_or(wait).min(wait.max(Duration::from_millis(1))));
            }
        }
        self.look_at = again.map(|wait| now + wait);
        for (&inode, place) in &places {
            if inode != self.own.inode() && !self.spaces.contains_key(&inode) && !self.unreadable.contains_key(&inode) {
                self.take_up(inode, place);
            }
        }
        let known = self.unreadable.len();
        self.unreadable
            .retain(|inode, _| places.contains_key(inode) || processes.contains_key(inode));
        if self.namespaces.locate(&places, &processes) || self.unreadable.len() != known {
            self.publish_soon();
        }
    }

    fn take_up(&mut self, inode: u32, place: &Place) {
        let label = place.label.clone().unwrap_or_else(|| format!("ino:{inode}"));
        self.tracker.add(inode, &label);
        self.namespaces.add(inode, &label);
        self.spaces.insert(inode, Space { label, nsid: None });
        self.follow(inode, place.path.clone());
    }

    fn follow(&self, inode: u32, path: PathBuf) {
        // The follower ends only with us.
        let _ = self.commands.send(Command::Follow(inode, path));
    }

    fn hear(&mut self, news: Vec<News>) {
        let now = Instant::now();
        self.looks.hear(now);
        for each in news {
            match each {
                News::Event(inode, event) => {
                    self.tracker.apply(inode, event, now);
                    if self.tracker.is_read(inode) {
                        self.awaited.remove(&inode);
                    }
                }
                News::Followed(inode, nsid) => self.followed(inode, nsid, now),
                News::Unreadable(inode, reason) => self.cannot_read(inode, reason),
                News::Doubtful(inode) => self.follow_again(inode),
                News::NotThere(inode) | News::Ended(inode) => {
                    self.forget(inode);
                    // Another one may have its number already.
                    self.look_at = Some(now);
                }
                News::Stranger => self.look(Look::Everything, false),
                News::Overrun => self.follow_all(),
            }
        }
        self.resolve();
        for inode in self.tracker.restless() {
            let _ = self.commands.send(Command::Dump(inode));
        }
        self.publish_soon();
    }

    fn followed(&mut self, inode: u32, nsid: i32, now: Instant) {
        self.tracker.resolved(self.own.inode(), nsid, Some(inode), now);
        let is_own = inode == self.own.inode();
        let Some(space) = self.spaces.get_mut(&inode).filter(|_| !is_own) else {
            return;
        };
        space.nsid = Some(nsid);
        self.namespaces.name(inode, nsid);
        for (asked, id) in self.tracker.unresolved() {
            if self.means(asked, id, inode) {
                self.tracker.resolved(asked, id, Some(inode), now);
            }
        }
    }

    /// Follows all anew, where they are now.
    fn follow_all(&mut self) {
        self.look(Look::Everything, false);
        let spaces = self.spaces.keys().copied().filter(|inode| *inode != self.own.inode());
        for inode in spaces.collect::<Vec<_>>() {
            self.follow_again(inode);
        }
    }

    fn follow_again(&mut self, inode: u32) {
        match self.namespaces.path_of(inode) {
            Some(path) => self.follow(inode, path),
            None => self.forget(inode),
        }
    }

    fn forget(&mut self, inode: u32) {
        self.namespaces.change(|all| {
            all.remove(&inode);
        });
        self.spaces.remove(&inode);
        self.tracker.remove(inode);
        self.awaited.remove(&inode);
        self.publish_soon();
    }

    fn cannot_read(&mut self, inode: u32, reason: String) {
        let label = self
            .spaces
            .get(&inode)
            .map_or_else(String::new, |space| space.label.clone());
        tracing::warn!(
            netns = label,
            reason,
            "a network namespace cannot be read: its sub-interfaces are neither listed nor counted by name"
        );
        self.unreadable.insert(inode, (label, reason));
        self.forget(inode);
    }

    /// Asks the kernel which namespaces the ids stand for that links were told to be in.
    fn resolve(&mut self) {
        for (asked, nsid) in self.tracker.wanted() {
            // Parents are in the own namespace as a rule.
            let own = self.own.inode();
            let others = self.spaces.keys().copied().filter(|inode| *inode != own);
            let target = [own]
                .into_iter()
                .chain(others)
                .find(|inode| self.means(asked, nsid, *inode));
            self.tracker.resolved(asked, nsid, target, Instant::now());
        }
    }

    /// Whether in the namespace `asked` this id stands for `meant`.
    fn means(&self, asked: u32, nsid: i32, meant: u32) -> bool {
        let own = self.own.inode();
        let id_of = |inode: u32| self.spaces.get(&inode).and_then(|space| space.nsid);
        let target = if asked == own { None } else { id_of(asked) };
        let peer = if meant == own {
            Some(Peer::File(std::os::fd::AsFd::as_fd(&*self.own)))
        } else {
            id_of(meant).map(Peer::Id)
        };
        let (Some(peer), true) = (peer, asked == own || target.is_some()) else {
            return false;
        };
        self.ask.ask_nsid(target, peer).is_ok_and(|id| id == Some(nsid))
    }

    /// Has the parents' lists of MACs read, where joining a namespace and waiting do no harm.
    fn read_lists(&mut self) {
        let parents: BTreeSet<LinkKey> = self.publisher.borrow().parents.keys().copied().collect();
        if parents.is_empty() || self.reading.is_some() {
            return;
        }
        self.suspicious = false;
        let (sender, receiver) = oneshot::channel();
        let namespaces = self.namespaces.clone();
        spawn_blocking(move || {
            // Nobody waits if the watcher was dropped.
            let _ = sender.send(unicast::read(&parents, &namespaces));
        });
        self.reading = Some(receiver);
    }

    fn judge(&mut self, lists: &BTreeMap<LinkKey, BTreeSet<[u8; 6]>>) {
        self.reading = None;
        let before = self.strangers.counts().clone();
        let known = self.tracker.macs_on(lists.keys().copied());
        if self.strangers.judge(lists, &known) {
            self.suspicious = true;
            self.look(Look::Everything, false);
        }
        if *self.strangers.counts() != before {
            self.publish_soon();
        }
    }

    fn publish_soon(&mut self) {
        let now = Instant::now();
        let earliest = if self.awaited.is_empty() { now } else { now + GATHER };
        let hurries = self.tracker.departures() != self.publisher.borrow().departures;
        let at = self.pace.next(hurries).map_or(earliest, |next| next.max(earliest));
        self.publish_at = Some(self.publish_at.map_or(at, |before| before.min(at)));
    }

    fn publish(&mut self) {
        self.publish_at = None;
        if self.ready.is_some() && !self.tracker.is_read(self.own.inode()) {
            // More is coming, and nobody begins before.
            return;
        }
        let mut inventory = self.tracker.inventory();
        for (key, parent) in &mut inventory.parents {
            parent.unknown_macs = self.strangers.on(*key);
        }
        inventory.complete = self.awaited.is_empty();
        inventory.mounted = self.namespaces.mounted();
        inventory.unreadable = self.unreadable.values().cloned().collect();
        inventory.unreadable.sort();
        inventory.problems.extend(self.deaf.clone());
        if self.processes.denied {
            inventory.problems.push(
                "the namespaces of other users' processes cannot be looked at, which takes CAP_SYS_PTRACE: one without a \
                 name is not found, and owners are known only where a container runtime tells them"
                    .to_owned(),
            );
        }
        let before = self.publisher.borrow().sub_interfaces.len();
        self.suspicious |= before != inventory.sub_interfaces.len();
        self.publisher.send_if_modified(|current| {
            let changed = **current != inventory;
            if changed {
                *current = Arc::new(inventory);
            }
            changed
        });
        if let Some(ready) = self.ready.take() {
            // Nobody waits if `start` was dropped.
            let _ = ready.send(());
        }
    }
}

/// Waits until `deadline`; for ever without one.
async fn at(deadline: Option<Instant>) {
    match deadline {
        // A timer would go with the next millisecond.
        Some(deadline) if deadline <= Instant::now() => {}
        Some(deadline) => sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// Waits until somebody wants to know how things are; for ever where nobody can.
pub(crate) async fn asked(asks: &mut watch::Receiver<()>) {
    if asks.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Waits for what is being read; for ever when nothing is.
async fn read<T: Default>(reading: &mut Option<oneshot::Receiver<T>>) -> T {
    match reading {
        // It is dropped unsent only with the runtime.
        Some(reading) => reading.await.unwrap_or_default(),
        None => std::future::pending().await,
    }
}
