//! The part of the daemon that keeps interfaces as they were asked for: on each change that netlink tells of, on a
//! regular look, on a new configuration, on request.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{Notify, watch},
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{
    apply::{Desired, Outcome, Survey, reconcile},
    memory::Memory,
    operation::{self, Finished, How, OperationError, Report},
    places::containers,
    plan::{State, Tally},
    record::{Spec, Store},
    state::ROUTE_PROTOCOL,
    view::tally,
};
use crate::{
    config::{
        check::Fault,
        file::Config,
        load::{self, Complaints, ConfigError, Loaded},
    },
    kernel::room::Room,
    output::visible,
    owners::Sources,
    resolve::ContainerPlace,
    topology::{inventory::Inventory, netlink::Socket, watcher::Namespaces},
};

/// How often is looked although nothing was heard.
const REGULARLY: Duration = Duration::from_secs(30);

/// How often is looked while something is missing that may come.
const IMPATIENTLY: Duration = Duration::from_secs(1);

/// How long changes are gathered before they are looked at.
const GATHER: Duration = Duration::from_millis(50);

/// Between two looks at least this time passes, however much changes.
const REST: Duration = Duration::from_millis(500);

/// `RTNLGRP_LINK`, `RTNLGRP_IPV4_IFADDR`, `RTNLGRP_IPV6_IFADDR`, `RTNLGRP_NSID`.
const GROUPS: [u32; 4] = [1, 5, 9, 28];

/// `RTNLGRP_IPV4_ROUTE`, `RTNLGRP_IPV6_ROUTE`.
const ROUTE_GROUPS: [u32; 2] = [7, 11];

/// Hears how things are, for the metrics.
pub trait Listener: Send + Sync {
    /// How many are how.
    fn managed(&self, tally: Tally);
    /// A configuration was read, or could not be.
    fn reloaded(&self, good: bool);
    /// A new configuration holds.
    fn configured(&self, config: &Config);
}

impl Survey for Manager {
    fn inventory(&self) -> Inventory {
        Inventory::clone(&self.inventory.borrow())
    }

    fn containers(&self) -> Result<Vec<ContainerPlace>, String> {
        let spaces = self.namespaces.ever();
        if let Some(told) = self.memory().recall(Instant::now().into_std(), spaces) {
            return told.clone();
        }
        let told = containers(&self.sources);
        self.memory().note(Instant::now().into_std(), spaces, told.clone());
        told
    }
}

/// Keeps things as they were asked for.
pub struct Manager {
    state_dir: PathBuf,
    config_file: Option<PathBuf>,
    room: Room,
    /// What the configuration asks for. Its lock is held while anything is changed.
    base: Mutex<Desired>,
    inventory: watch::Receiver<Arc<Inventory>>,
    namespaces: Namespaces,
    sources: Sources,
    memory: Mutex<Memory>,
    again: Notify,
    listener: Box<dyn Listener>,
}

impl Manager {
    /// One with a configuration, or none; `room` is what the kernel's tables were made for.
    #[must_use]
    pub fn new(
        state_dir: PathBuf,
        config: Option<(PathBuf, &Config)>,
        room: Room,
        topology: (watch::Receiver<Arc<Inventory>>, Namespaces),
        sources: Sources,
        listener: Box<dyn Listener>,
    ) -> Self {
        let base = config.as_ref().map(|(_, config)| operation::desired(config, true));
        if let Some((_, config)) = &config {
            listener.configured(config);
        }
        listener.reloaded(true);
        listener.managed(Tally::default());
        Self {
            state_dir,
            config_file: config.map(|(file, _)| file),
            room,
            base: Mutex::new(base.unwrap_or_default()),
            inventory: topology.0,
            namespaces: topology.1,
            sources,
            memory: Mutex::default(),
            again: Notify::new(),
            listener,
        }
    }

    fn base(&self) -> MutexGuard<'_, Desired> {
        // What a panic left is still what the configuration asks for.
        self.base.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes or changes a sub-interface or shim.
    pub async fn put(self: &Arc<Self>, spec: Spec, how: How) -> Result<Report> {
        self.change(move |manager, store, base| operation::put(store, base, &spec, &how, manager))
            .await
    }

    /// Removes one.
    pub async fn remove(self: &Arc<Self>, id: String) -> Result<Report> {
        self.change(move |manager, store, base| operation::remove(store, base, &id, manager))
            .await
    }

    /// Keeps a shim.
    pub async fn confirm(self: &Arc<Self>, id: String) -> Result<Report> {
        let manager = Arc::clone(self);
        spawn_blocking(move || {
            let _base = manager.base();
            operation::confirm(&mut Store::open(&manager.state_dir)?, &id)
        })
        .await??;
        Ok(Report::default())
    }

    /// Applies the configuration in `file`: the agent's own anew, or once that of an agent that has none.
    pub async fn apply(self: &Arc<Self>, file: PathBuf, prune: bool) -> Result<Report> {
        if let Some(own) = &self.config_file {
            if fs::canonicalize(own).ok() != fs::canonicalize(&file).ok() {
                let own = own.display();
                return Err(OperationError::Refused(format!(
                    "the agent that runs (pid {}) keeps to {own}: change that file and apply it, or stop the agent",
                    std::process::id()
                ))
                .into());
            }
            return self.reload().await;
        }
        let loaded = load::read(&file)?;
        self.change(move |manager, store, _| operation::apply(store, &loaded, prune, manager))
            .await
    }

    async fn change(
        self: &Arc<Self>,
        work: impl FnOnce(&Self, &mut Store, &Desired) -> Result<Finished, OperationError> + Send + 'static,
    ) -> Result<Report> {
        let manager = Arc::clone(self);
        let finished = spawn_blocking(move || {
            let base = manager.base();
            let mut store = Store::open(&manager.state_dir)?;
            manager.memory().forget();
            work(&manager, &mut store, &base)
        })
        .await??;
        log(&finished.outcome);
        self.again.notify_one();
        spawn_blocking(move || finished.outcome.announce());
        Ok(finished.report)
    }

    /// Reads the configuration anew. A bad one leaves everything as it is.
    pub async fn reload(self: &Arc<Self>) -> Result<Report> {
        let result = self.try_reload().await;
        self.listener.reloaded(result.is_ok());
        match &result {
            Ok(_) => tracing::info!("the configuration was read anew"),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(%error, "the configuration was not taken; the former one holds");
            }
        }
        result
    }

    async fn try_reload(self: &Arc<Self>) -> Result<Report> {
        let Some(file) = self.config_file.clone() else {
            return Err(OperationError::Refused(
                "this agent has no configuration: start it with --config.file".to_owned(),
            )
            .into());
        };
        let manager = Arc::clone(self);
        let finished = spawn_blocking(move || -> Result<Finished> {
            let loaded = load::read(&file)?;
            fits(&loaded, manager.room)?;
            let mut base = manager.base();
            let mut store = Store::open(&manager.state_dir)?;
            manager.memory().forget();
            let finished = operation::apply(&mut store, &loaded, true, &*manager)?;
            *base = operation::desired(&loaded.config, true);
            manager.listener.configured(&loaded.config);
            Ok(finished)
        })
        .await??;
        log(&finished.outcome);
        self.listener.managed(tally(&finished.outcome));
        spawn_blocking(move || finished.outcome.announce());
        self.again.notify_one();
        Ok(finished.report)
    }

    /// One look. Tells whether something is missing that may come.
    fn look(&self) -> Result<Option<Outcome>> {
        let base = self.base();
        // Without anything to manage not even the directory is made.
        let record = operation::peek(&self.state_dir)?;
        if base.specs.is_empty() && record.entries.is_empty() && record.parents.is_empty() {
            return Ok(None);
        }
        let mut store = Store::open(&self.state_dir)?;
        let desired = base.clone().with_commands(&store.record);
        Ok(Some(reconcile(&mut store, &desired, self)?))
    }

    /// Keeps things so until `stop` ends.
    pub async fn run(self: Arc<Self>, stop: impl Future<Output = ()>) {
        // While nothing is managed nothing is heard: every event would be copied once more, and wake us.
        let mut events = None;
        let mut inventory = self.inventory.clone();
        let mut tick = interval(REGULARLY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(stop);
        let mut pending = false;
        let mut said = String::new();
        // Whether there is something to manage: not known before the first look.
        let mut at_work = None;
        loop {
            let impatient = sleep_until(Instant::now() + IMPATIENTLY);
            tokio::select! {
                () = &mut stop => return,
                _ = tick.tick(), if at_work != Some(false) => {}
                () = impatient, if pending => {}
                () = self.again.notified() => {}
                _ = inventory.changed() => {}
                () = heard(events.as_ref()) => {}
            }
            tokio::time::sleep(GATHER).await;
            if let Some(events) = &events {
                events.forget();
            }
            inventory.mark_unchanged();
            let manager = Arc::clone(&self);
            let outcome = match spawn_blocking(move || manager.look()).await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(error)) => {
                    say_once(&mut said, format!("{error:#}"));
                    continue;
                }
                Err(error) => {
                    say_once(&mut said, error.to_string());
                    continue;
                }
            };
            let was_at_work = at_work.replace(outcome.is_some());
            if outcome.is_some() && was_at_work != Some(true) {
                events = Events::open()
                    .inspect_err(
                        |error| tracing::warn!(%error, "changes of interfaces are seen at a regular look only"),
                    )
                    .ok();
                // For what has changed in between.
                self.again.notify_one();
            } else if outcome.is_none() {
                events = None;
            }
            let outcome = outcome.unwrap_or_default();
            log(&outcome);
            say_states(&mut said, &outcome);
            self.listener.managed(tally(&outcome));
            pending = outcome.items.iter().any(|item| matches!(item.state, State::Pending(_)));
            let changed = outcome.changes();
            spawn_blocking(move || outcome.announce());
            // What was just changed is heard of as well: no need to look at once.
            tokio::time::sleep(if changed { REST } else { REST / 2 }).await;
        }
    }
}

/// Says something unless it was the last thing said.
fn say_once(said: &mut String, error: String) {
    if *said != error {
        tracing::error!(error, "the interfaces cannot be managed");
        *said = error;
    }
}

/// Says what is not as it should be, when that changes.
fn say_states(said: &mut String, outcome: &Outcome) {
    let line = |item: &super::apply::Done| {
        let reason = item.state.reason()?;
        Some(format!("{} is {}: {reason}", item.label, item.state.word()))
    };
    let now: Vec<String> = outcome
        .items
        .iter()
        .filter_map(line)
        .chain(outcome.failures.clone())
        .collect();
    let now = now.join("\n");
    if *said != now {
        for line in now.lines().filter(|line| !said.lines().any(|old| old == *line)) {
            tracing::warn!("{}", visible(line));
        }
        *said = now;
    }
}

/// What was done goes to the log, as what it was.
fn log(outcome: &Outcome) {
    for (name, because) in &outcome.removed {
        tracing::info!(interface = visible(name), because, "removed");
    }
    for line in &outcome.parents {
        tracing::info!("{}", visible(line));
    }
    for item in outcome.items.iter().filter(|item| item.state.reason().is_none()) {
        let interface = visible(&item.label);
        if let Some(found) = &item.found {
            tracing::warn!(interface, found = visible(found), "repaired");
        }
        for step in &item.steps {
            tracing::info!(interface, step = visible(&step.to_string()), "changed");
        }
    }
}

/// Tells of changes in all namespaces that have an id in the agent's own.
struct Events(AsyncFd<Socket>);

impl Events {
    fn open() -> io::Result<Self> {
        // Routes come last, once those of others are left out: a routing daemon may change a million.
        let (socket, deaf) = Socket::open_for_all(&GROUPS)?;
        let routes = socket.hear_routes_of(ROUTE_PROTOCOL);
        match routes.and_then(|()| ROUTE_GROUPS.iter().try_for_each(|group| socket.join(*group))) {
            Ok(()) => {}
            Err(error) => tracing::info!(%error, "that a route was removed is seen at a regular look only"),
        }
        if deaf.is_some() {
            tracing::info!(
                "changes in other namespaces are seen when the inventory tells of them, or at a regular look: \
                 hearing them at once needs CAP_NET_BROADCAST"
            );
        }
        // SAFETY: a `Socket` owns its descriptor, never gives another one, and closes it only when dropped.
        Ok(Self(unsafe {
            AsyncFd::register_with_interest(socket, Interest::READABLE)
        }?))
    }

    /// Takes out what was heard: that something changed is all that matters.
    fn forget(&self) {
        let mut buffer = vec![0; crate::topology::netlink::DATAGRAM];
        loop {
            match self.0.get_ref().receive(&mut buffer) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(_) => return,
            }
        }
    }
}

/// Waits for the next change.
async fn heard(events: Option<&Events>) {
    match events {
        Some(Events(socket)) => match socket.readable().await {
            Ok(mut guard) => guard.clear_ready(),
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// Whether the tables of this agent hold what a configuration wants counted: they are made once, when it starts.
fn fits(loaded: &Loaded, room: Room) -> Result<(), ConfigError> {
    let (limit, most) = (loaded.config.limits.sub_interfaces, room.sub_interfaces());
    if limit <= most {
        return Ok(());
    }
    let fault = Fault {
        field: "limits.sub_interfaces".to_owned(),
        text: format!(
            "{limit} is more than the {most} that the tables of this agent were made for when it started; expected 0 to \
             {most}, or a restart of the agent"
        ),
    };
    Err(ConfigError::Invalid(Complaints(vec![loaded.complaint(fault)])))
}

/// Reads the configuration that the agent is started with.
pub fn start_configuration(file: Option<&Path>) -> Result<Option<(PathBuf, Loaded)>> {
    let Some(file) = file else { return Ok(None) };
    let loaded = load::read(file)?;
    let file = std::path::absolute(file).context("cannot tell where the configuration is")?;
    Ok(Some((file, loaded)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_beyond_the_tables_waits_for_a_restart() {
        let taken = |text: &str, room| {
            let loaded = load::parse(text, "c.yaml").expect("valid");
            fits(&loaded, room).map_err(|error| error.to_string())
        };
        let text = "limits:\n  sub_interfaces: 10000\n";
        assert_eq!(taken("", Room::default()), Ok(()));
        assert_eq!(taken(text, Room::of(10_000)), Ok(()));
        assert_eq!(taken("limits: {sub_interfaces: 4096}", Room::of(5)), Ok(()));
        let said = taken(text, Room::of(9_999)).expect_err("too many");
        assert!(
            said.starts_with("c.yaml:2: limits.sub_interfaces: 10000 is more than the 9999"),
            "{said}"
        );
        assert!(said.contains("restart"), "{said}");
    }
}
