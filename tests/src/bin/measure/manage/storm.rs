//! Goal 21: ten thousand links made by `ip -batch` over ten parents, alone and beside the agent.

use std::{
    os::fd::{AsRawFd as _, OwnedFd},
    process,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow, ensure};
use macvlan_agent_tests::{
    agent::Agent,
    lab::{Link, veth},
    manage::Desk,
    netns::Namespace,
};
use nix::{
    errno::Errno,
    sys::{
        resource::{UsageWho, getrusage},
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket,
            sockopt,
        },
        time::{TimeVal, TimeValLike as _},
    },
    time::{ClockId, clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};

use super::{
    rounds::Rounds,
    tools::{add, batch, ensure_up},
};
use crate::{
    Options,
    report::{self, Quartiles},
};

const ROUNDS: usize = 5;
const PARENTS: u32 = 10;
const LINKS: u32 = 10_000;
/// `RTNLGRP_LINK`, as a bit.
const LINKS_GROUP: u32 = 1;
const BUFFER: usize = 32 << 20;
/// By then the agent has followed.
const SETTLED: Duration = Duration::from_secs(4);

/// What the agent used beside the creator.
#[derive(Default)]
struct Used {
    agent: Vec<f64>,
    creator: Vec<f64>,
    ratio: Vec<f64>,
    overruns: f64,
}

pub(super) fn measure(options: &Options) -> Result<()> {
    let mut used = Used::default();
    let mut heard = (Vec::new(), Vec::new());
    let rounds = Rounds::run(
        ROUNDS,
        || {
            let (took, listener) = beside_listener()?;
            heard.0.push(took);
            heard.1.push(listener);
            beside(options, &mut used)
        },
        alone,
    )?;
    report::side("21.creator", "beside_s", rounds.theirs()?)?;
    report::side("21.creator", "alone_s", rounds.ours()?)?;
    report::side("21.creator", "beside_a_mere_listener_s", Quartiles::of(heard.0)?)?;
    report::goal("21.creator", rounds.theirs()?.median / rounds.ours()?.median)?;
    report::side("21.cpu", "agent_s", Quartiles::of(used.agent)?)?;
    report::side("21.cpu", "creator_s", Quartiles::of(used.creator)?)?;
    report::side("21.cpu", "mere_listener_s", Quartiles::of(heard.1)?)?;
    report::note(
        "21.cpu",
        "a mere listener is a thread that takes the events of links and throws them away: the kernel's price of hearing",
    )?;
    report::goal("21.cpu", Quartiles::of(used.ratio)?.median)?;
    report::goal("21.overruns", used.overruns)
}

fn alone() -> Result<f64> {
    let (_parents, lines, desk) = prepare()?;
    let took = batch(&desk, &lines)?;
    ensure_up(&Namespace::own(), LINKS)?;
    Ok(took.as_secs_f64())
}

fn beside(options: &Options, used: &mut Used) -> Result<f64> {
    let (parents, lines, desk) = prepare()?;
    let flags = ["--web.listen-address=127.0.0.1:0".into()];
    let agent = Agent::launch(&options.agent, &flags, &|| Ok(()))?;
    let overruns = || agent.scrape().value("macvlan_agent_netlink_resyncs_total", &[]);
    let before = overruns();
    let (ours, creators) = (of_process(agent.pid())?, of_children()?);
    let took = batch(&desk, &lines)?;
    let creators = of_children()?.saturating_sub(creators);
    thread::sleep(SETTLED);
    let ours = of_process(agent.pid())?.saturating_sub(ours);
    ensure_up(&Namespace::own(), LINKS)?;
    let scrape = agent.scrape();
    let parents = parents.near.iter();
    let known: f64 = parents
        .map(|parent| scrape.value("macvlan_parent_interfaces", &[("parent", &parent.name)]))
        .sum();
    ensure!(
        (known - f64::from(LINKS)).abs() < 0.5,
        "the agent knows of {known} of {LINKS}"
    );
    used.overruns += overruns() - before;
    used.agent.push(ours.as_secs_f64());
    used.creator.push(creators.as_secs_f64());
    used.ratio.push(ours.as_secs_f64() / creators.as_secs_f64());
    agent.kill();
    Ok(took.as_secs_f64())
}

/// What the creator takes beside somebody who hears of every link and does nothing, and the processor time of that.
fn beside_listener() -> Result<(f64, f64)> {
    let (_parents, lines, desk) = prepare()?;
    let socket = listening()?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let listener = scope.spawn(|| {
            let mut buffer = vec![0; 1 << 16];
            loop {
                match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                    // The time is up.
                    Err(Errno::EAGAIN) if done.load(Ordering::Relaxed) => break,
                    Ok(_) | Err(Errno::EAGAIN | Errno::ENOBUFS) => {}
                    Err(error) => return Err(error),
                }
            }
            clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        });
        let took = batch(&desk, &lines);
        done.store(true, Ordering::Relaxed);
        let used = listener.join().map_err(|_| anyhow!("the listener panicked"))??;
        Ok((took?.as_secs_f64(), Duration::from(used).as_secs_f64()))
    })
}

/// A socket that hears of links as the agent's does.
fn listening() -> Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, LINKS_GROUP))?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(20))?;
    Ok(socket)
}

/// Parents, which take what stands on them along when they go.
struct Parents {
    near: Vec<Link>,
    /// Their other ends are in it.
    _wire: Namespace,
}

impl Drop for Parents {
    fn drop(&mut self) {
        for parent in &self.near {
            // Where this fails, it goes with the namespace that all is in.
            let _ = parent.delete();
        }
    }
}

fn prepare() -> Result<(Parents, String, Desk)> {
    let (own, wire) = (
        Namespace::own(),
        Namespace::create(&format!("mvm{}-wire", process::id()))?,
    );
    let mut near = Vec::new();
    for number in 0..PARENTS {
        let (parent, _) = veth(&own, &format!("mvt{number}"), &wire, &format!("w{number}"))?;
        near.push(parent);
    }
    let per_parent = LINKS / PARENTS;
    let lines = (0..)
        .zip(&near)
        .flat_map(|(at, parent)| (0..per_parent).map(move |number| add(parent, at * per_parent + number)));
    let lines = lines.collect();
    Ok((Parents { near, _wire: wire }, lines, Desk::new()))
}

/// Processor time of a process, its threads that have ended among them.
fn of_process(pid: u32) -> Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(pid)?))?;
    Ok(clock_gettime(clock)?.into())
}

/// Processor time of the children that have ended.
fn of_children() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let of = |time: TimeVal| {
        Duration::from_micros(u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap_or_default())
    };
    Ok(of(usage.user_time()) + of(usage.system_time()))
}
