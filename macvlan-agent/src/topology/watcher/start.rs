//! Starting the watcher, and what it is for others.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

use super::{Namespace, Namespaces, Space, Watcher, looks::Looks};
use crate::{
    pace::Pace,
    topology::{
        follower::{self, Ear},
        inventory::Inventory,
        names::Names,
        netlink::Socket,
        netns::{Netns, NetnsError},
        processes::Processes,
        tracker::Tracker,
        unicast::Strangers,
    },
};

/// How long [`dump_once`] waits for the last namespace.
const DUMP: Duration = Duration::from_secs(10);

/// Why there is no inventory.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// The agent's own namespace could not be opened.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// Netlink in the agent's own namespace could not be opened.
    #[error("cannot open a netlink socket")]
    Netlink(#[source] io::Error),
    /// Namespaces cannot be told from other files: `/proc` is missing.
    #[error("cannot ask /proc for the own namespace")]
    Proc(#[source] io::Error),
}

/// The running watcher, as others see it.
#[derive(Debug)]
pub struct Topology {
    /// The newest inventory.
    pub inventory: watch::Receiver<Arc<Inventory>>,
    /// The namespaces in it.
    pub namespaces: Namespaces,
    /// Ends some time after `cancel` did, with nothing held any more.
    pub task: JoinHandle<()>,
}

fn deaf(error: &io::Error) -> String {
    format!(
        "changes in other namespaces are not heard of ({error}: it takes CAP_NET_BROADCAST): they are looked for every two \
         seconds"
    )
}

/// Follows the calling thread's namespace, those under `run_netns` and all others that can be found, until `cancel` ends.
/// `asks` changes when somebody wants to know how things are. Returns when the own namespace has been read.
pub async fn start(
    cancel: impl Future<Output = ()> + Send + 'static,
    run_netns: PathBuf,
    asks: watch::Receiver<()>,
) -> Result<Topology, TopologyError> {
    let own = Netns::own()?;
    let ear = Ear::open().map_err(TopologyError::Netlink)?;
    let ask = Socket::open(&[]).map_err(TopologyError::Netlink)?;
    let names = Names::new(run_netns).map_err(TopologyError::Proc)?;
    let processes = Processes::new(own.inode()).map_err(TopologyError::Proc)?;
    let (publisher, inventory) = watch::channel(Arc::default());
    let (commands, orders) = mpsc::unbounded_channel();
    let (sender, news) = mpsc::channel(256);
    let namespaces = Namespaces::new(Arc::clone(&own));
    let (ready, is_ready) = oneshot::channel();
    let deaf = ear.deaf.as_ref().map(deaf);
    if let Some(deaf) = &deaf {
        tracing::warn!("{deaf}");
    }
    let mut tracker = Tracker::new(own.inode());
    tracker.add(own.inode(), own.label());
    let space = Space {
        label: own.label().to_owned(),
        nsid: None,
    };
    let follower = tokio::spawn(follower::follow(own.inode(), ear, orders, sender));
    let mut watcher = Watcher {
        names,
        processes,
        tracker,
        spaces: BTreeMap::from([(own.inode(), space)]),
        namespaces: namespaces.clone(),
        commands,
        follower: follower.abort_handle(),
        ask,
        unreadable: BTreeMap::new(),
        deaf,
        awaited: BTreeSet::new(),
        publisher,
        publish_at: None,
        pace: Pace::default(),
        look_at: None,
        looks: Looks::begun(Instant::now()),
        ready: Some(ready),
        strangers: Strangers::default(),
        reading: None,
        suspicious: true,
        own,
    };
    let task = tokio::spawn(async move {
        tokio::select! {
            () = watcher.run(news, asks) => {}
            () = cancel => {}
        }
    });
    // It is dropped unsent when cancelled before that: then there is nothing to wait for.
    let _ = is_ready.await;
    Ok(Topology {
        inventory,
        namespaces,
        task,
    })
}

/// The inventory as it is now, of all namespaces, and these, without following them. A namespace that cannot be read in some
/// seconds is left out, and the inventory not complete.
pub async fn dump_once(run_netns: PathBuf) -> Result<(Arc<Inventory>, Vec<Namespace>), TopologyError> {
    let (cancel, cancelled) = oneshot::channel::<()>();
    let cancelled = async {
        let _ = cancelled.await;
    };
    let Topology {
        mut inventory,
        namespaces,
        task,
    } = start(cancelled, run_netns, watch::channel(()).1).await?;
    let complete = timeout(DUMP, inventory.wait_for(|inventory| inventory.complete))
        .await
        .is_ok();
    tracing::debug!(complete, "read all namespaces once");
    let last = (inventory.borrow().clone(), namespaces.all());
    drop(cancel);
    // It ends by its cancellation; what it would say is of no use any more.
    let _ = task.await;
    Ok(last)
}
