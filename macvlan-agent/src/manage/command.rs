//! The commands that change interfaces. Where an agent runs, they ask it; else they do it themselves.

use std::{io::IsTerminal as _, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    task::spawn_blocking,
};

use super::{
    apply::{Desired, Outcome, Survey},
    control::{Client, Put},
    operation::{self, Finished, How, OperationError, Report},
    places::containers,
    record::{Spec, Store},
    shim::Reach,
    view::OutcomeView,
};
use crate::{
    config::{
        file::{Shim as ShimSpec, ShimRoutes, SubInterface},
        load,
        manage_args::{Add, Apply, Config, Del, Output, Places, Set, Shim, ShimAdd, ShimWhich, Which},
        reference,
        values::{InterfaceName, NetnsRef, OneOrMore},
    },
    output,
    owners::Sources,
    resolve::ContainerPlace,
    topology::{inventory::Inventory, watcher},
};

/// Looks for itself: no agent runs that would know.
struct Alone(Sources);

impl Alone {
    fn of(places: &Places) -> Self {
        Self(places.containers.sources())
    }
}

impl Survey for Alone {
    fn inventory(&self) -> Inventory {
        let runtime = tokio::runtime::Handle::current();
        runtime
            .block_on(watcher::dump_once("/run/netns".into()))
            .inspect_err(|error| tracing::warn!(%error, "the sub-interfaces in other namespaces cannot be read"))
            .map(|(inventory, _)| Inventory::clone(&inventory))
            .unwrap_or_default()
    }

    fn containers(&self) -> Result<Vec<ContainerPlace>, String> {
        containers(&self.0)
    }
}

/// `config`.
pub fn config(command: &Config) -> Result<()> {
    match command {
        Config::Example => output::text(reference::EXAMPLE)?,
        Config::Schema => output::line(&serde_json::to_string_pretty(&reference::schema())?)?,
        Config::Reference => output::text(&reference::markdown())?,
        Config::Check { config } => {
            let loaded = load::read(config)?;
            let (subs, shims) = (loaded.config.sub_interfaces.len(), loaded.config.shims.len());
            output::line(&format!(
                "{} is valid: {subs} sub-interfaces, {shims} shims",
                config.display()
            ))?;
        }
    }
    Ok(())
}

/// `plan`.
pub async fn plan(arguments: Apply) -> Result<()> {
    let loaded = load::read(&arguments.config)?;
    let outcome = spawn_blocking(move || {
        let record = operation::peek(&arguments.places.state_dir)?;
        let outcome = operation::plan(record, &loaded, arguments.prune, &Alone::of(&arguments.places))?;
        match operation::complaints(&loaded, &outcome) {
            Some(complaints) => Err(OperationError::Configuration(complaints)),
            None => Ok((outcome, arguments.places.output)),
        }
    })
    .await?;
    let (outcome, form) = outcome?;
    print(&OutcomeView::from(&outcome), form, false)
}

/// `apply`.
pub async fn apply(arguments: Apply) -> Result<ExitCode> {
    // Read here first: the error is then about the file as the user named it.
    let loaded = load::read(&arguments.config)?;
    if let Some(mut client) = Client::connect(&arguments.places.control_socket()).await? {
        let file = std::path::absolute(&arguments.config)?;
        let report = client.apply(&file, arguments.prune).await?;
        print(&report.outcome, arguments.places.output, true)?;
        return Ok(exit(&report.outcome));
    }
    let (form, quiet) = (arguments.places.output, arguments.no_announce);
    let finished = alone(&arguments.places, move |store, survey| {
        operation::apply(store, &loaded, arguments.prune, survey)
    })
    .await?;
    print(&finished.report.outcome, form, true)?;
    if !quiet {
        tell(finished.outcome).await?;
    }
    Ok(exit(&finished.report.outcome))
}

fn exit(outcome: &OutcomeView) -> ExitCode {
    if outcome.failed() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// `add`.
pub async fn add(arguments: Add) -> Result<()> {
    let options = arguments.options;
    let Some(mode) = options.mode else {
        bail!(
            "--mode is missing: say private, vepa, bridge, passthru or source; there is no default, since every tool has another"
        );
    };
    let spec = SubInterface {
        name: bare_name(&arguments.which)?,
        netns: place(&arguments.which)?,
        parent: arguments.parent,
        kind: arguments.kind,
        mode,
        mac: options.mac,
        addresses: options.addresses,
        gateway: OneOrMore(options.gateway),
        routes: Vec::new(),
        mtu: options.mtu,
        flags: options.flags,
        source_macs: options.source_macs,
        bc_queue_len: options.bc_queue_len,
        bc_cutoff: options.bc_cutoff,
        alias: options.alias,
        up: !arguments.down,
    };
    let report = put(&arguments.places, Spec::SubInterface(spec), How::default()).await?;
    print_one(&report.outcome, arguments.places.output)
}

/// The name in `NETNS/NAME`; a path before it is one of a namespace.
fn bare_name(which: &Which) -> Result<InterfaceName> {
    let name = which
        .name
        .rsplit_once('/')
        .map_or(which.name.as_str(), |(_, name)| name);
    name.parse().map_err(anyhow::Error::msg)
}

fn place(which: &Which) -> Result<Option<NetnsRef>> {
    let Some((netns, _)) = which.name.rsplit_once('/') else {
        return Ok(which.netns());
    };
    if which.netns().is_some() {
        bail!(
            "the namespace is said twice: in {} and by a flag; leave one out",
            which.name
        );
    }
    Ok(Some(netns.parse().map_err(anyhow::Error::msg)?))
}

/// `set` begins anew so often when others change the same one meanwhile.
const TRIES: u32 = 10;

/// `set`.
pub async fn set(arguments: Set) -> Result<()> {
    let mut tries = 1..TRIES;
    loop {
        let spec = current(&arguments)?;
        match change(&arguments, &spec).await {
            Err(_) if tries.next().is_some() && current(&arguments)? != spec => {}
            Ok(report) => return print_one(&report.outcome, arguments.places.output),
            Err(error) => return Err(error),
        }
    }
}

/// Changes one that is `spec` now.
async fn change(arguments: &Set, spec: &SubInterface) -> Result<Report> {
    let up = match (arguments.up, arguments.down) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    };
    let changed = operation::changed(spec, &arguments.options, up);
    if changed == *spec {
        bail!("there is nothing to change: say what is to be set, as in --mode bridge or --mtu 1400");
    }
    let how = How {
        replace: true,
        was: Some(Spec::SubInterface(spec.clone())),
        ..How::default()
    };
    put(&arguments.places, Spec::SubInterface(changed), how).await
}

/// What it is now.
fn current(arguments: &Set) -> Result<SubInterface> {
    let (which, record) = (&arguments.which, operation::peek(&arguments.places.state_dir)?);
    let id = operation::find(&record, &which.name, which.netns().as_ref(), false)?;
    match record.entries.get(&id).map(|entry| &entry.spec) {
        Some(Spec::SubInterface(spec)) => Ok(spec.clone()),
        _ => bail!("{} is no sub-interface", which.name),
    }
}

/// `del`.
pub async fn del(arguments: Del) -> Result<()> {
    let record = operation::peek(&arguments.places.state_dir)?;
    let id = operation::find(&record, &arguments.which.name, arguments.which.netns().as_ref(), false)?;
    let report = remove(&arguments.places, id, false).await?;
    print_one(&report.outcome, arguments.places.output)
}

/// `shim`.
pub async fn shim(command: Shim) -> Result<()> {
    match command {
        Shim::Add(arguments) => shim_add(arguments).await,
        Shim::Del(ShimWhich { name, places }) => {
            let id = operation::find(&operation::peek(&places.state_dir)?, &name, None, true)?;
            let report = remove(&places, id, true).await?;
            print_one(&report.outcome, places.output)
        }
        Shim::Confirm(ShimWhich { name, places }) => {
            let id = operation::find(&operation::peek(&places.state_dir)?, &name, None, true)?;
            confirm(&places, id).await?;
            output::line(&format!("{name} stays"))?;
            Ok(())
        }
        Shim::List(arguments) => shim_list(arguments.places).await,
    }
}

async fn shim_add(arguments: ShimAdd) -> Result<()> {
    let name = match arguments.name {
        Some(name) => name,
        None => shim_name(&arguments.parent)?,
    };
    let spec = ShimSpec {
        parent: arguments.parent,
        name: name.clone(),
        address: arguments.address,
        routes: if arguments.routes.is_empty() {
            ShimRoutes::Auto
        } else {
            ShimRoutes::To(arguments.routes)
        },
    };
    let auto = spec.routes == ShimRoutes::Auto;
    let how = How {
        confirm_within: arguments.confirm_within,
        ..How::default()
    };
    let places = arguments.places;
    let id = super::apply::id_of(&Spec::Shim(spec.clone()));
    let report = put(&places, Spec::Shim(spec), how).await?;
    match places.output {
        Output::Json => output::line(&serde_json::to_string_pretty(&report)?)?,
        Output::Text => {
            print_one(&report.outcome, Output::Text)?;
            output::text(&reach_text(&report.reach))?;
            if auto && Client::connect(&places.control_socket()).await?.is_none() {
                output::line("no agent runs: the routes are not kept in step with sub-interfaces to come")?;
            }
        }
    }
    match arguments.confirm_within {
        Some(within) => await_confirmation(&places, &name, id, within).await,
        None => Ok(()),
    }
}

/// `shim-eth0`, as far as a name reaches.
fn shim_name(parent: &InterfaceName) -> Result<InterfaceName> {
    let name = format!("shim-{parent}");
    name.parse()
        .map_err(|_| anyhow::anyhow!("the name {name} would be too long: choose one with --name"))
}

fn reach_text(reach: &[Reach]) -> String {
    if reach.is_empty() {
        return "  no sub-interface with an address is behind it yet\n".to_owned();
    }
    reach.iter().map(|each| format!("  {}\n", each.text())).collect()
}

/// Keeps the shim if the user says so in time. Whoever lost the connection says nothing.
async fn await_confirmation(places: &Places, name: &InterfaceName, id: String, within: Duration) -> Result<()> {
    // On a terminal the question stands before the answer.
    if std::io::stdin().is_terminal() || places.output == Output::Text {
        output::line(&format!(
            "It is taken back in {} s. Type yes to keep it, or run: macvlan-agent shim confirm {name}",
            within.as_secs()
        ))?;
    }
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (sender, yes) = oneshot::channel();
    // A thread of its own, since nothing ends a read from a terminal but the end of the process.
    std::thread::spawn(move || {
        let typed = std::io::stdin()
            .lines()
            .map_while(Result::ok)
            .any(|line| line.trim() == "yes");
        // At the end of the input nobody is there to answer; a confirmation by command is still possible.
        if typed {
            let _ = sender.send(());
        }
    });
    let typed = async {
        if yes.await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let said_yes = tokio::select! {
        () = typed => true,
        () = tokio::time::sleep(within) => false,
        _ = hangup.recv() => false,
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
    };
    if said_yes {
        confirm(places, id).await?;
        return Ok(output::line(&format!("{name} stays"))?);
    }
    // It may have been confirmed by another command meanwhile.
    let record = operation::peek(&places.state_dir)?;
    match record.entries.get(&id) {
        Some(entry) if entry.confirm_by.is_none() => Ok(output::line(&format!("{name} stays: it was confirmed"))?),
        Some(_) => {
            remove(places, id, true).await?;
            bail!("{name} was not confirmed in time and is taken back")
        }
        None => bail!("{name} was not confirmed in time and has been taken back"),
    }
}

/// A shim as `shim list` tells it.
#[derive(serde::Serialize)]
struct ShimView {
    shim: ShimSpec,
    /// Until when it waits to be confirmed, in seconds since 1970.
    confirm_by: Option<u64>,
    reach: Vec<Reach>,
}

fn shims(places: &Places) -> Result<Vec<ShimView>> {
    let store = Store::open(&places.state_dir)?;
    let survey = Alone::of(places);
    let mut list = Vec::new();
    for (id, entry) in &store.record.entries {
        if let Spec::Shim(spec) = &entry.spec {
            let reach = operation::reach(&store, id, spec, &[], &survey)?;
            list.push(ShimView {
                shim: spec.clone(),
                confirm_by: entry.confirm_by,
                reach,
            });
        }
    }
    Ok(list)
}

async fn shim_list(places: Places) -> Result<()> {
    let form = places.output;
    let list = spawn_blocking(move || shims(&places)).await??;
    if form == Output::Json {
        output::line(&serde_json::to_string_pretty(&list)?)?;
        return Ok(());
    }
    if list.is_empty() {
        output::line("there is no shim of this agent's")?;
    }
    for each in list {
        let waiting = each.confirm_by.map(|by| {
            let left = by.saturating_sub(operation::now());
            format!(", taken back in {left} s unless confirmed")
        });
        let (name, parent) = (each.shim.name, each.shim.parent);
        output::line(&format!("{name} on {parent}{}", waiting.unwrap_or_default()))?;
        output::text(&reach_text(&each.reach))?;
    }
    Ok(())
}

/// Makes or changes one.
async fn put(places: &Places, spec: Spec, how: How) -> Result<Report> {
    if let Some(mut client) = Client::connect(&places.control_socket()).await? {
        return client.put(&Put::new(&spec, &how)?).await;
    }
    let finished = alone(places, move |store, survey| {
        operation::put(store, &Desired::default(), &spec, &how, survey)
    })
    .await?;
    tell(finished.outcome).await?;
    Ok(finished.report)
}

/// Removes one.
async fn remove(places: &Places, id: String, shim: bool) -> Result<Report> {
    if let Some(mut client) = Client::connect(&places.control_socket()).await? {
        return client.remove(&id, shim).await;
    }
    let finished = alone(places, move |store, survey| {
        operation::remove(store, &Desired::default(), &id, survey)
    })
    .await?;
    Ok(finished.report)
}

async fn confirm(places: &Places, id: String) -> Result<()> {
    if let Some(mut client) = Client::connect(&places.control_socket()).await? {
        return client.confirm(&id).await;
    }
    let directory = places.state_dir.clone();
    spawn_blocking(move || operation::confirm(&mut Store::open(&directory)?, &id)).await??;
    Ok(())
}

/// Does something with the record in hand, on a thread that may block.
async fn alone(
    places: &Places,
    work: impl FnOnce(&mut Store, &Alone) -> Result<Finished, OperationError> + Send + 'static,
) -> Result<Finished> {
    let (directory, survey) = (places.state_dir.clone(), Alone::of(places));
    let finished = spawn_blocking(move || work(&mut Store::open(&directory)?, &survey)).await?;
    Ok(finished?)
}

async fn tell(outcome: Outcome) -> Result<()> {
    spawn_blocking(move || outcome.announce())
        .await
        .context("the neighbours were not told")
}

fn print(view: &OutcomeView, form: Output, done: bool) -> Result<()> {
    match form {
        Output::Json => output::line(&serde_json::to_string_pretty(view)?)?,
        Output::Text => output::text(&view.text(done))?,
    }
    Ok(())
}

/// The same without the sum.
fn print_one(view: &OutcomeView, form: Output) -> Result<()> {
    if form == Output::Json {
        return print(view, form, true);
    }
    let text = view.text(true);
    let lines: Vec<_> = text.lines().collect();
    let lines = lines.split_last().map(|(_, lines)| lines).unwrap_or_default();
    if lines.is_empty() {
        output::line("it is as it should be; nothing was changed")?;
    }
    for line in lines {
        output::line(line)?;
    }
    Ok(())
}
