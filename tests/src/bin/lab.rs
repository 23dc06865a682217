//! `macvlan-lab`: the classic macvlan experiment in namespaces of its own, with the agent watching. Two sub-interfaces
//! reach each other and never their host; the agent's counts say so, and this program says why.
//!
//! `cargo xtask run --lab` builds it and runs it as root.

use std::{
    ffi::OsString,
    io::{self, Write},
    net::Ipv4Addr,
    os::linux::net::SocketAddrExt,
    os::unix::net::{SocketAddr as UnixAddress, UnixListener},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use macvlan_agent_tests::{
    agent::{Agent, EndedEarly},
    exposition::{Scrape, whole},
    lab::{self, Link, Mac, Mode},
    netns::{DIRECTORY, Namespace},
    traffic,
};
use tokio::signal::unix::{SignalKind, signal};

/// Builds the classic macvlan experiment in namespaces of its own, with the agent watching
#[derive(Debug, Parser)]
#[command(name = "macvlan-lab", version)]
struct Options {
    /// The macvlan-agent program to start
    #[arg(long, value_name = "PATH")]
    agent: PathBuf,
    /// End after the table instead of waiting for Ctrl-C
    #[arg(long)]
    once: bool,
    /// Flags for `macvlan-agent run`
    #[arg(last = true, value_name = "AGENT FLAGS")]
    flags: Vec<OsString>,
}

const NAMESPACES: [&str; 4] = ["mvlab-host", "mvlab-switch", "mvlab-net1", "mvlab-net2"];
/// Every link that the lab has; `mvlab-br` is the switch and `mvlab-port` its end of the parent's wire.
const LINKS: [&str; 5] = ["mvlab0", "mvlab-port", "mvlab-br", "macv1", "macv2"];
const PARENT: &str = "mvlab-host/mvlab0";
const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const MACV1: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 151);
const MACV2: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 152);
const PINGS: u16 = 5;
/// An attempt is pending for at least 3 s and less than 4 s after its ARP request.
const SETTLEMENT: Duration = Duration::from_secs(4);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Ctrl-C or SIGTERM came.
#[derive(Debug)]
struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

fn main() -> ExitCode {
    let options = Options::parse();
    match experiment(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Interrupted>() => {
            let _ = writeln!(io::stderr(), "Interrupted; the lab is removed.");
            ExitCode::from(130)
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "macvlan-lab: {error:#}");
            let agents = error.downcast_ref::<EndedEarly>().and_then(|ended| ended.code);
            ExitCode::from(
                agents
                    .and_then(|code| u8::try_from(code).ok())
                    .filter(|code| *code != 0)
                    .unwrap_or(1),
            )
        }
    }
}

/// Everything, with all that it made removed when it returns.
fn experiment(options: &Options) -> Result<()> {
    let signals = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_io()
        .build()?;
    watch_signals(&signals)?;
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this makes network namespaces and loads eBPF programs: run it as root"
    );
    let _only = only_one()?;
    remove_leftovers()?;

    say("Building the lab: mvlab0 with two sub-interfaces in bridge mode ...")?;
    let lab = Experiment::build()?;
    say("Starting the agent ...")?;
    let mut agent = Agent::launch(&options.agent, &options.flags, &unless_interrupted)?;
    let start = await_both(&agent)?;

    say(&format!("Pinging {MACV2} (macv2) and {HOST} (the host) from macv1 ..."))?;
    let to_sibling = lab.ping(MACV2)?;
    let to_host = lab.ping(HOST)?;
    pause(SETTLEMENT + Duration::from_millis(300))?;
    let scrape = Scrape::fetch(agent.address())?;
    report(&scrape, to_sibling, to_host)?;
    check(&start, &scrape, to_sibling, to_host)?;

    say(&format!(
        "\nAll of it, and what else the agent counts: http://{}/metrics",
        agent.address()
    ))?;
    if !options.once {
        say("Ctrl-C ends the lab and removes it.")?;
        while !interrupted() {
            ensure!(
                agent.ended().is_none(),
                "the agent ended by itself; it said:\n{}",
                agent.log()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }
    let ended = agent.stop();
    ensure!(
        ended.status.success(),
        "the agent ended with {}; it said:\n{}",
        ended.status,
        ended.log
    );
    Ok(())
}

/// The links of the experiment.
struct Experiment {
    macv1: Link,
    _macv2: Link,
    _parent: Link,
    _switch: Link,
}

impl Experiment {
    fn build() -> Result<Self> {
        let [host, switch, net1, net2] = NAMESPACES.map(|name| {
            unless_interrupted()?;
            Namespace::create(name)
        });
        let (host, switch) = (host?, switch?);
        let (parent, port) = lab::veth(&host, "mvlab0", &switch, "mvlab-port")?;
        parent.add_address(HOST, 24)?;
        let bridge = lab::switch(&switch, "mvlab-br", &[&port])?;
        let macv1 = sub_interface(&parent, &net1?, "macv1", MACV1)?;
        let macv2 = sub_interface(&parent, &net2?, "macv2", MACV2)?;
        Ok(Self {
            macv1,
            _macv2: macv2,
            _parent: parent,
            _switch: bridge,
        })
    }

    /// How many answers macv1 got.
    fn ping(&self, destination: Ipv4Addr) -> Result<u16> {
        let mut replies = 0;
        for _ in 0..PINGS {
            unless_interrupted()?;
            replies += traffic::ping(&self.macv1.namespace, destination, 1, Duration::from_secs(1))?;
        }
        Ok(replies)
    }
}

fn sub_interface(parent: &Link, namespace: &Namespace, name: &str, address: Ipv4Addr) -> Result<Link> {
    unless_interrupted()?;
    let [a, b, c, d] = address.octets();
    let link = lab::macvlan(parent, namespace, name, Mode::Bridge, Mac([0x02, 0x6d, a, b, c, d]))?;
    link.add_address(address, 24)?;
    link.set_up(true)?;
    Ok(link)
}

/// Waits until the agent names both sub-interfaces.
fn await_both(agent: &Agent) -> Result<Scrape> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let scrape = Scrape::fetch(agent.address())?;
        if scrape.samples("macvlan_interface_info", &[("parent", PARENT)]).count() == 2 {
            return Ok(scrape);
        }
        ensure!(
            Instant::now() < deadline,
            "the agent does not see macv1 and macv2; it names\n{}and said:\n{}",
            scrape.listing("macvlan_interface_info"),
            agent.log()
        );
        pause(Duration::from_millis(50))?;
    }
}

/// What a scrape says of one of the two.
struct Row<'a> {
    scrape: &'a Scrape,
    interface: &'a str,
}

impl Row<'_> {
    fn sum(&self, metric: &str, labels: &[(&str, &str)]) -> u64 {
        let all = [&[("parent", PARENT), ("interface", self.interface)], labels].concat();
        whole(self.scrape.sum(metric, &all))
    }

    fn attempts(&self, kind: &str) -> u64 {
        self.sum(
            "macvlan_isolation_attempts_total",
            &[("direction", "child_to_parent"), ("kind", kind)],
        )
    }

    fn dropped(&self) -> u64 {
        self.sum("macvlan_dropped_frames_total", &[("reason", "child_to_parent")])
    }

    fn delivered(&self, path: &str) -> u64 {
        self.sum("macvlan_delivered_frames_total", &[("cast", "unicast"), ("path", path)])
    }

    fn transmitted(&self, path: &str) -> u64 {
        self.sum("macvlan_transmitted_frames_total", &[("path", path)])
    }
}

fn report(scrape: &Scrape, to_sibling: u16, to_host: u16) -> Result<()> {
    let rows = ["macv1", "macv2"].map(|interface| Row { scrape, interface });
    let mut table = vec![["frames", "macv1", "macv2"].map(String::from)];
    let mut line = |what: &str, count: &dyn Fn(&Row<'_>) -> u64| {
        table.push([what.into(), count(&rows[0]).to_string(), count(&rows[1]).to_string()]);
    };
    line("delivered from the wire", &|row| row.delivered("external"));
    line("delivered from the sibling", &|row| row.delivered("sibling"));
    line("sent to the wire", &|row| row.transmitted("external"));
    line("sent to the sibling", &|row| row.transmitted("sibling"));
    line("child_to_parent attempts, unicast", &|row| row.attempts("unicast"));
    line("child_to_parent attempts, ARP", &|row| row.attempts("arp"));
    line("child_to_parent dropped", &|row| row.dropped());

    let width = table.iter().map(|row| row[0].len()).max().unwrap_or(0);
    say("")?;
    for [what, one, other] in table {
        say(&format!("  {what:width$}  {one:>7}  {other:>7}"))?;
    }
    let asks = rows[0].attempts("arp");
    say(&format!(
        "\nmacv1 can reach macv2 ({to_sibling} of {PINGS} pings answered) but not its host {HOST} ({to_host} of \
         {PINGS}): macvlan never\npasses a frame between a sub-interface and its parent, it sends it to the wire. The \
         {asks} ARP requests left by\nmvlab0 and nobody answered them, so the pings themselves never left macv1.\n\
         Remedy: a shim, which is a bridge-mode sub-interface in the host's own namespace, with a route to the\n\
         container through it:\n\
         \x20 ip link add mac0 link mvlab0 type macvlan mode bridge\n\
         \x20 ip link set mac0 up\n\
         \x20 ip address add {HOST}/32 dev mac0\n\
         \x20 ip route add {MACV1}/32 dev mac0"
    ))
}

/// The numbers are what the experiment must give.
fn check(start: &Scrape, scrape: &Scrape, to_sibling: u16, to_host: u16) -> Result<()> {
    let [before, after] = [start, scrape].map(|scrape| Row {
        scrape,
        interface: "macv1",
    });
    ensure!(
        to_sibling == PINGS,
        "macv2 answered {to_sibling} of {PINGS} pings: the lab does not work as it should"
    );
    ensure!(
        to_host == 0,
        "the host answered {to_host} of {PINGS} pings, which macvlan does not allow"
    );
    for (what, before, after) in [
        (
            "delivered frames from the sibling",
            before.delivered("sibling"),
            after.delivered("sibling"),
        ),
        (
            "child_to_parent attempts",
            before.attempts("arp"),
            after.attempts("arp"),
        ),
        ("child_to_parent drops", before.dropped(), after.dropped()),
    ] {
        ensure!(
            after > before,
            "the agent counted no {what} on macv1: these numbers are wrong"
        );
    }
    Ok(())
}

/// Holds a name that only one process can have, and that nothing is left of when it ends.
fn only_one() -> Result<UnixListener> {
    let name = UnixAddress::from_abstract_name("macvlan-lab")?;
    UnixListener::bind_addr(&name).context("another macvlan-lab is running; end that one first")
}

/// Removes what a killed run has left, if it looks like the lab's.
fn remove_leftovers() -> Result<()> {
    let left: Vec<_> = NAMESPACES
        .into_iter()
        .filter(|name| Path::new(DIRECTORY).join(name).exists())
        .collect();
    for name in &left {
        let namespace = Namespace::existing(name)?;
        // A name that nothing is mounted on is no namespace: the run was killed in between.
        let strange: Vec<_> = lab::links(&namespace)
            .unwrap_or_default()
            .into_iter()
            .filter(|(link, up)| *up && link != "lo" && !LINKS.contains(&link.as_str()))
            .map(|(link, _)| link)
            .collect();
        if !strange.is_empty() {
            bail!(
                "the namespace {name} is not the lab's ({} is up in it); rename or remove it",
                strange.join(", ")
            );
        }
    }
    for name in &left {
        Namespace::existing(name)?.remove()?;
    }
    if !left.is_empty() {
        say(&format!("Removed what an earlier run had left: {}.", left.join(", ")))?;
    }
    Ok(())
}

fn watch_signals(runtime: &tokio::runtime::Runtime) -> Result<()> {
    let _context = runtime.enter();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let mut signals = signal(kind)?;
        runtime.spawn(async move {
            while signals.recv().await.is_some() {
                INTERRUPTED.store(true, Ordering::Relaxed);
            }
        });
    }
    Ok(())
}

fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

fn unless_interrupted() -> Result<()> {
    if interrupted() { Err(Interrupted.into()) } else { Ok(()) }
}

fn pause(length: Duration) -> Result<()> {
    let end = Instant::now() + length;
    while Instant::now() < end {
        unless_interrupted()?;
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn say(text: &str) -> Result<()> {
    unless_interrupted()?;
    Ok(writeln!(io::stdout(), "{text}")?)
}
