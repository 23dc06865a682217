//! The composition root: builds the rooms in order, owns the tasks, returns addresses and a handle to wait on.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::UnixListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::{JoinHandle, JoinSet, spawn_blocking},
    time::{Instant, sleep_until, timeout},
};

use crate::{
    config::{
        args::{KernelArgs, Run},
        file::Config,
        manage_args,
    },
    http::{self, App, Pages, listen, serve, web_config::Live},
    keeper::{self, Keeper},
    kernel::{
        drop_reason::Symbols,
        hooks::{Hook, Wish},
        load::{Kernel, LoadError},
        module_events::ModuleEvents,
        room::Room,
    },
    manage::{
        control::{self, Control},
        daemon::{self, Listener, Manager},
        plan::Tally,
    },
    metrics::own::Own,
    observe::Observed,
    owners::{self, Owners},
    pace::Pace,
    run_dir::RunDir,
    snapshot::Snapshot,
    topology::{
        inventory::Inventory,
        netns::Netns,
        watcher::{self, Namespaces},
    },
};

/// How long a scrape in hand may still take when the agent stops.
const DRAIN: Duration = Duration::from_secs(3);

/// A running agent.
pub struct Agent {
    /// Where it listens.
    pub addresses: Vec<SocketAddr>,
    stop: watch::Sender<bool>,
    /// Lets the topology go, which holds the namespaces open: after the hooks in them.
    release: watch::Sender<bool>,
    servers: JoinSet<()>,
    follower: JoinHandle<()>,
    manager: JoinHandle<()>,
    topology: JoinHandle<()>,
    keeper: Arc<Mutex<Keeper>>,
    signals: Signals,
    _control: Control,
    _run_dir: RunDir,
}

/// What ends the agent.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

/// Starts an agent: when this returns, it has read the namespaces, attached, and listens.
pub async fn start(arguments: Run) -> Result<Agent> {
    let configuration = daemon::start_configuration(arguments.config.as_deref())?;
    let run_dir = RunDir::take(&arguments.run_dir)?;
    // From here on a signal is an orderly end.
    let signals = Signals {
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
    };
    // Listening comes first because it fails most often, and leaves nothing behind.
    let web = Arc::new(Live::start(arguments.web_config.clone())?);
    let listeners = listen::open(&arguments.listen, arguments.systemd_socket)?;
    let control_path = manage_args::control_socket(arguments.control_socket.as_ref(), &arguments.run_dir);
    let (control, control_listener) = control::listen(&control_path).await?;
    allow_many_files();
    let own = Netns::own()?;
    let configured = configuration.as_ref().map(|(_, loaded)| &loaded.config);
    let kernel = load(&arguments.kernel, configured, &own);
    let (stop, stopped) = watch::channel(false);
    let (release, released) = watch::channel(false);
    let (asked, asks) = watch::channel(());
    let topology = watcher::start(until(released), "/run/netns".into(), asks.clone())
        .await
        .context("cannot read this host's interfaces")?;
    let namespaces = topology.namespaces.clone();
    // It takes long, and nothing is dropped where there is no parent.
    let has_parents = !topology.inventory.borrow().parents.is_empty();
    let symbols = has_parents.then(|| thread::spawn(Symbols::read));
    let owners = owners::start(
        until(stopped.clone()),
        (topology.inventory.clone(), topology.namespaces.clone()),
        own.inode(),
        arguments.containers.sources(),
        asks,
    );
    let kernel = kernel.await??;
    let room = kernel.room();
    let keeper = keep((kernel, symbols), arguments.kernel.clone(), namespaces, stopped.clone()).await?;
    let own_metrics = Arc::new(Own::new(!arguments.disable_exporter_metrics)?);
    let (observed, observe) = watch::channel(Observed::default());
    let manager = Manager::new(
        arguments.state_dir,
        configuration
            .as_ref()
            .map(|(file, loaded)| (file.clone(), &loaded.config)),
        room,
        (topology.inventory.clone(), topology.namespaces.clone()),
        arguments.containers.sources(),
        Box::new(Heard {
            own: Arc::clone(&own_metrics),
            observed,
        }),
    );
    let manager = Arc::new(manager);
    let follower = tokio::spawn(follow(
        Arc::clone(&keeper),
        topology.inventory,
        observe,
        stopped.clone(),
    ));
    let pages = Pages {
        telemetry_path: arguments.telemetry_path,
        max_requests: arguments.max_requests,
        remote_api: arguments.remote_api,
    };
    let app = App::new(take(Arc::clone(&keeper), owners, asked), own_metrics, pages);
    let app = if arguments.lifecycle {
        app.with_reload(Arc::clone(&manager))
    } else {
        app
    };
    let router = http::guarded(http::router(Arc::new(app)), Arc::clone(&web));
    let mut addresses = Vec::new();
    let mut servers = JoinSet::new();
    for listener in listeners {
        let address = listener.local_addr().context("cannot tell where the agent listens")?;
        let (router, web) = (router.clone(), Arc::clone(&web));
        servers.spawn(serve::serve(listener, router, web, until(stopped.clone())));
        addresses.push(address);
    }
    servers.spawn(serve_changes(control_listener, Arc::clone(&manager), stopped.clone()));
    let manager = tokio::spawn(manage(manager, signal(SignalKind::hangup())?, stopped.clone()));
    if let Some(address) = addresses.first() {
        run_dir.set_address(*address)?;
    }
    for address in &addresses {
        tracing::info!(%address, "listening");
    }
    Ok(Agent {
        addresses,
        stop,
        release,
        servers,
        follower,
        manager,
        topology: topology.task,
        keeper,
        signals,
        _control: control,
        _run_dir: run_dir,
    })
}

/// How it is told how things are; `asked` lets those know who look for what nobody tells them.
fn take(
    keeper: Arc<Mutex<Keeper>>,
    owners: watch::Receiver<Arc<Owners>>,
    asked: watch::Sender<()>,
) -> Box<dyn Fn() -> Snapshot + Send + Sync> {
    Box::new(move || {
        asked.send_replace(());
        lock(&keeper).snapshot().with_owners(&owners.borrow())
    })
}

/// Loads the programs, which nothing has to be known for.
fn load(arguments: &KernelArgs, configuration: Option<&Config>, own: &Netns) -> JoinHandle<Result<Kernel, LoadError>> {
    let limits = configuration.map(|config| config.limits).unwrap_or_default();
    let (btf, inode) = (arguments.btf.clone(), own.inode());
    let frame_free = arguments.wish(Hook::FrameFree) != Wish::Off;
    spawn_blocking(move || Kernel::load(inode, &btf, Room::of(limits.sub_interfaces), frame_free))
}

/// Begins to keep the kernel side, and has the programs' log read.
async fn keep(
    (kernel, symbols): (Kernel, Option<thread::JoinHandle<Symbols>>),
    arguments: KernelArgs,
    namespaces: Namespaces,
    stopped: watch::Receiver<bool>,
) -> Result<Arc<Mutex<Keeper>>> {
    let built_in = kernel.macvlan_is_built_in();
    let keeper = spawn_blocking(move || Keeper::new(arguments, kernel, namespaces, symbols)).await??;
    let keeper = Arc::new(Mutex::new(keeper));
    forward_kernel_log(&keeper, stopped);
    if !built_in && let Some(note) = keeper::module_note() {
        tracing::info!("{note}");
    }
    Ok(keeper)
}

impl Agent {
    /// Waits for SIGTERM or SIGINT, then stops.
    pub async fn wait(mut self) -> Result<()> {
        let name = tokio::select! {
            _ = self.signals.terminate.recv() => "SIGTERM",
            _ = self.signals.interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "stopping");
        self.stop().await
    }

    /// Finishes the scrapes in hand, lets go of all hooks, and ends.
    pub async fn stop(mut self) -> Result<()> {
        self.stop.send_replace(true);
        if timeout(DRAIN, async { while self.servers.join_next().await.is_some() {} })
            .await
            .is_err()
        {
            tracing::warn!("a client did not finish in time");
            self.servers.abort_all();
        }
        self.manager.await?;
        self.follower.await?;
        let keeper = Arc::clone(&self.keeper);
        spawn_blocking(move || lock(&keeper).stop()).await?;
        self.release.send_replace(true);
        if timeout(DRAIN, self.topology).await.is_err() {
            tracing::warn!("the topology did not end in time");
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// A namespace costs a descriptor or two, and the usual limit is made for programs that `select`.
fn allow_many_files() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// Takes changes from the control socket until the agent stops.
async fn serve_changes(listener: UnixListener, manager: Arc<Manager>, stopped: watch::Receiver<bool>) {
    let served = axum::serve(listener, control::service(manager)).with_graceful_shutdown(until(stopped));
    if let Err(error) = served.await {
        tracing::error!(%error, "the control socket ended");
    }
}

/// Keeps what is managed as it was asked for, and reads the configuration anew on SIGHUP, until the agent stops.
async fn manage(manager: Arc<Manager>, mut hangup: Signal, stopped: watch::Receiver<bool>) {
    let keeping = tokio::spawn(Arc::clone(&manager).run(until(stopped.clone())));
    let stop = until(stopped);
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            heard = hangup.recv() => match heard {
                // Said in the log either way.
                Some(()) => drop(manager.reload().await),
                None => break,
            },
        }
    }
    if let Err(error) = keeping.await {
        tracing::error!(%error, "managing interfaces ended");
    }
}

/// Takes what the manager says to the metrics and to those who observe.
struct Heard {
    own: Arc<Own>,
    observed: watch::Sender<Observed>,
}

impl Listener for Heard {
    fn managed(&self, tally: Tally) {
        self.own.managed(tally);
    }

    fn reloaded(&self, good: bool) {
        self.own.reloaded(good);
    }

    fn configured(&self, config: &Config) {
        self.observed.send_replace(Observed::by(config));
    }
}

/// A poisoned lock still guards whole values: the counts live in the kernel.
fn lock(keeper: &Mutex<Keeper>) -> MutexGuard<'_, Keeper> {
    keeper.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends when the agent stops.
async fn until(mut stopped: watch::Receiver<bool>) {
    // An error means that the agent is gone altogether.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// What the keeper has to do something about.
enum News {
    /// The inventory is another.
    Inventory(Arc<Inventory>),
    /// The macvlan module came or went.
    Module,
    /// Something is due.
    Due,
}

/// Follows the inventory until the agent stops.
async fn follow(
    keeper: Arc<Mutex<Keeper>>,
    mut inventory: watch::Receiver<Arc<Inventory>>,
    mut observed: watch::Receiver<Observed>,
    stopped: watch::Receiver<bool>,
) {
    let stop = until(stopped);
    tokio::pin!(stop);
    inventory.mark_changed();
    let mut next_due: Option<Instant> = None;
    let mut pace = Pace::default();
    let mut departures = 0;
    // To wait for a departure without taking note of what else changes, as `inventory` would.
    let mut departed = inventory.clone();
    let modules = ModuleEvents::open()
        .inspect_err(
            |error| tracing::info!(%error, "a macvlan module that is loaded again is noticed with its first link"),
        )
        .ok();
    loop {
        let due = next_due;
        let is_due = async move {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        let module = async {
            match &modules {
                Some(modules) => modules.changed().await,
                None => std::future::pending().await,
            }
        };
        let changed = async {
            if let Some(rest) = pace.next(false) {
                let departure = async { departed.wait_for(|now| now.departures != departures).await.is_ok() };
                tokio::select! {
                    () = sleep_until(rest.into()) => {}
                    true = departure => {
                        if let Some(rest) = pace.next(true) {
                            sleep_until(rest.into()).await;
                        }
                    }
                }
            }
            inventory.changed().await
        };
        let news = tokio::select! {
            () = &mut stop => return,
            changed = changed => match changed {
                Ok(()) => News::Inventory(observed.borrow_and_update().of(&inventory.borrow_and_update())),
                Err(_) => return,
            },
            changed = observed.changed() => match changed {
                Ok(()) => News::Inventory(observed.borrow_and_update().of(&inventory.borrow_and_update())),
                Err(_) => return,
            },
            () = module => News::Module,
            () = is_due => News::Due,
        };
        if let News::Inventory(inventory) = &news {
            departures = inventory.departures;
        }
        let shared = Arc::clone(&keeper);
        let next = spawn_blocking(move || {
            let mut keeper = lock(&shared);
            let due = match news {
                News::Inventory(inventory) => keeper.follow(inventory),
                News::Module => keeper.module_changed(),
                News::Due => keeper.catch_up(),
            };
            (due, keeper.pace())
        });
        match next.await {
            Ok((due, paced)) => {
                next_due = due.map(Instant::from_std);
                pace = paced;
            }
            Err(error) => tracing::error!(%error, "following the inventory failed"),
        }
    }
}

/// What the programs have to say goes to our log.
fn forward_kernel_log(keeper: &Mutex<Keeper>, stopped: watch::Receiver<bool>) {
    let logger = match lock(keeper).kernel().logger() {
        Ok(logger) => logger,
        Err(error) => {
            tracing::debug!(%error, "the programs' own log is not read");
            return;
        }
    };
    tokio::spawn(async move {
        // SAFETY: the logger owns the ring buffer's descriptor, never gives another one, and closes it only when dropped.
        let Ok(mut logger) = (unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }) else {
            return;
        };
        let stop = until(stopped);
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => return,
                ready = logger.readable_mut() => match ready {
                    Ok(mut guard) => {
                        guard.get_inner_mut().flush();
                        guard.clear_ready();
                    }
                    Err(_) => return,
                },
            }
        }
    });
}
