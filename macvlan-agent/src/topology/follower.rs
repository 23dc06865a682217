//! All namespaces' links and addresses: dumps, then everything that changes, in the kernel's order.
//!
//! One socket, in the agent's own namespace, hears of every namespace that has an id there and dumps any of them by that
//! id. So nothing of another namespace is held open: watching one does not keep it alive. Dumps, notifications and the
//! answers that say which id a namespace has share the socket, so they come in the order in which the kernel made them,
//! and each may be applied as it comes.
//!
//! The own namespace gets an id in itself as well: the kernel makes one up as soon as it is asked for the links of another
//! namespace that stand on one of ours, and from then on marks our own events with it.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tokio::{
    io::{
        Interest,
        unix::{AsyncFd, AsyncFdReadyGuard},
    },
    sync::mpsc,
    time::sleep_until,
};

use super::{
    address::{self, Address},
    link::{self, LinkMessage},
    netlink::{DATAGRAM, Message, Peer, Socket, assign_nsid_request, messages, nsid_request},
    netns,
};

mod jobs;

use jobs::{Bound, Job, Jobs, Step};

/// `RTNLGRP_LINK`, `RTNLGRP_IPV4_IFADDR`, `RTNLGRP_IPV6_IFADDR`, `RTNLGRP_NSID`.
const GROUPS: [u32; 4] = [1, 5, 9, 28];

/// How many datagrams are read before they are handed on.
const BATCH: usize = 64;

/// How long is waited after something was heard before more is read: what comes in a flood is read together. From this,
/// doubled up to that while more than [`FEW`] datagrams come in the meantime.
const REST: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(16));

/// So many datagrams are no flood.
const FEW: usize = 8;

/// How often other namespaces are dumped where their events may not be heard.
const DEAF: Duration = Duration::from_secs(2);

/// Something that happened in a namespace.
#[derive(Clone, Eq, PartialEq, Debug)]
pub(super) enum Event {
    /// A dump begins.
    DumpBegins,
    /// It has ended. When sound, what it did not tell of is not there.
    DumpEnds { sound: bool },
    /// Something was lost, and a new dump is coming.
    Resync,
    /// There is a link, or it changed.
    Link(LinkMessage),
    /// A link ended or moved away.
    LinkGone(LinkMessage),
    /// There is an address.
    Address(Address),
    /// An address was removed.
    AddressGone(Address),
    /// The id of another namespace ceased to be valid.
    NsidGone(i32),
}

/// What the watcher is told, in order. Namespaces are meant by their inode.
#[derive(Clone, Eq, PartialEq, Debug)]
pub(super) enum News {
    /// Something happened in one.
    Event(u32, Event),
    /// One is followed from here on; it has this id in ours.
    Followed(u32, i32),
    /// One cannot be followed.
    Unreadable(u32, String),
    /// What was to be followed is not there any more.
    NotThere(u32),
    /// The kernel has ended one.
    Ended(u32),
    /// The kernel has ended one, or another that had its id before: it is to be followed anew if it is there.
    Doubtful(u32),
    /// A namespace has got an id that is none of those followed.
    Stranger,
    /// Events were lost: which id means which namespace is not known any more, and all are to be followed anew.
    Overrun,
}

/// What the watcher asks for.
#[derive(Clone, Debug)]
pub(super) enum Command {
    /// Follow the namespace with this inode, which is at this path.
    Follow(u32, PathBuf),
    /// Dump it anew.
    Dump(u32),
}

/// The socket, opened where that may still fail the start.
#[derive(Debug)]
pub(super) struct Ear {
    socket: Socket,
    ask: Socket,
    port: u32,
    /// Why other namespaces' events are not heard.
    pub(super) deaf: Option<io::Error>,
}

impl Ear {
    /// Opens it in the calling thread's namespace.
    pub(super) fn open() -> io::Result<Self> {
        let (socket, deaf) = Socket::open_for_all(&GROUPS)?;
        let port = socket.port()?;
        let ask = Socket::open(&[])?;
        Ok(Self {
            socket,
            ask,
            port,
            deaf,
        })
    }
}

/// Follows the own namespace, and others as they are asked for, until the task is ended or `commands` closes.
pub(super) async fn follow(
    own: u32,
    ear: Ear,
    mut commands: mpsc::UnboundedReceiver<Command>,
    news: mpsc::Sender<Vec<News>>,
) {
    let mut reader = Reader {
        own,
        port: ear.port,
        ask: ear.ask,
        jobs: Jobs::new(own, ear.deaf.is_some()),
        news: Vec::new(),
        heard: 0,
        rest: REST.0,
        rested: None,
    };
    let failed = reader.run(&ear.socket, &mut commands, &news).await;
    if let Some(error) = failed {
        let reason = format!("cannot read from netlink: {error}");
        // The watcher has gone: this task is about to be ended too.
        let _ = news.send(vec![News::Unreadable(own, reason)]).await;
    }
}

/// What was read at once.
struct Drained {
    datagrams: usize,
    /// Nothing is left.
    all: bool,
}

struct Reader {
    own: u32,
    port: u32,
    ask: Socket,
    jobs: Jobs,
    news: Vec<News>,
    /// How many datagrams were read since the last rest, and how long that was.
    heard: usize,
    rest: Duration,
    /// Nothing is read before.
    rested: Option<Instant>,
}

impl Reader {
    async fn run(
        &mut self,
        socket: &Socket,
        commands: &mut mpsc::UnboundedReceiver<Command>,
        news: &mpsc::Sender<Vec<News>>,
    ) -> Option<io::Error> {
        let mut buffer = vec![0; DATAGRAM];
        let mut ear = None;
        loop {
            self.begin(socket);
            if !self.news.is_empty() {
                // Waits while the watcher is behind. The kernel's queue fills meanwhile, and a resync follows if it
                // overflows.
                news.send(std::mem::take(&mut self.news)).await.ok()?;
            }
            if self.rests() {
                // Or each message would wake us.
                ear = None;
            }
            tokio::select! {
                guard = self.readable(socket, &mut ear) => {
                    let mut guard = match guard { Ok(guard) => guard, Err(error) => return Some(error) };
                    let drained = match self.drain(socket, &mut buffer) {
                        Ok(drained) => drained,
                        Err(error) => return Some(error),
                    };
                    // An answer is not to be waited for, and what is left over not at all.
                    let rests = drained.all && !self.jobs.is_busy();
                    self.heard += drained.datagrams;
                    self.rested = rests.then(|| Instant::now() + self.next_rest());
                    if drained.all {
                        guard.clear_ready();
                    }
                }
                command = commands.recv() => match command? {
                    Command::Follow(inode, path) => self.jobs.push(Job::Follow(inode, path)),
                    Command::Dump(inode) => self.jobs.push(Job::Dump(inode)),
                },
                () = at(self.jobs.due()) => self.jobs.wake(Instant::now()),
            }
        }
    }

    /// How long to rest after what was heard since the last rest.
    fn next_rest(&mut self) -> Duration {
        self.rest = if self.heard > FEW {
            (self.rest * 2).min(REST.1)
        } else {
            REST.0
        };
        self.heard = 0;
        self.rest
    }

    fn rests(&self) -> bool {
        self.rested.is_some_and(|rested| rested > Instant::now()) && !self.jobs.is_busy()
    }

    /// Waits until there is something to be read and it is time to read it.
    async fn readable<'a, 'socket>(
        &self,
        socket: &'socket Socket,
        ear: &'a mut Option<AsyncFd<BorrowedFd<'socket>>>,
    ) -> io::Result<AsyncFdReadyGuard<'a, BorrowedFd<'socket>>> {
        if self.rests() {
            at(self.rested).await;
        }
        let ear = if let Some(ear) = ear {
            ear
        } else {
            // SAFETY: a `Socket` owns its descriptor, never gives another one, and closes it only when dropped, which is
            // after what borrows it.
            let fresh = unsafe { AsyncFd::register_with_interest(socket.as_fd(), Interest::READABLE) }?;
            ear.insert(fresh)
        };
        ear.readable().await
    }

    /// Reads what is there, up to a batch.
    fn drain(&mut self, socket: &Socket, buffer: &mut [u8]) -> io::Result<Drained> {
        for datagrams in 0..BATCH {
            match socket.receive_from(buffer) {
                Ok(datagram) => {
                    for message in messages(datagram.bytes) {
                        self.message(socket, datagram.nsid, &message);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Drained { datagrams, all: true });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => self.overrun(),
                Err(error) => return Err(error),
            }
        }
        Ok(Drained {
            datagrams: BATCH,
            all: false,
        })
    }

    fn overrun(&mut self) {
        self.news
            .extend(self.jobs.overrun().map(|inode| News::Event(inode, Event::Resync)));
        self.news.push(News::Overrun);
    }

    /// Begins jobs until one waits for the kernel's answer.
    fn begin(&mut self, socket: &Socket) {
        while let Some(job) = self.jobs.next() {
            match job {
                Job::Follow(inode, path) => self.open(socket, inode, &path),
                Job::Dump(inode) => self.dump(socket, inode),
            }
        }
    }

    /// Opens a namespace for as long as it takes to give it an id.
    fn open(&mut self, socket: &Socket, inode: u32, path: &Path) {
        match netns::open_file(path) {
            Ok((file, found)) if found == inode => self.send(socket, Step::Name(file)),
            Ok(_) | Err(netns::NetnsError::NotNetns { .. }) => self.finish(News::NotThere(inode)),
            Err(netns::NetnsError::Open { source, .. }) if gone(&source) => self.finish(News::NotThere(inode)),
            Err(error) => self.finish(News::Unreadable(inode, netns::with_cause(&error))),
        }
    }

    /// Ends the job in hand without a dump.
    fn finish(&mut self, news: News) {
        self.jobs.done();
        self.news.push(news);
    }

    /// Takes the job in hand to its next step.
    fn send(&mut self, socket: &Socket, step: Step) {
        let sequence = self.jobs.sequence();
        let request = match &step {
            Step::Name(file) => assign_nsid_request(sequence, Peer::File(file.as_fd())),
            Step::Ask(file) => nsid_request(sequence, None, Peer::File(file.as_fd())),
            Step::Links => super::netlink::links_request(sequence, self.jobs.target(), false),
            Step::Addresses => super::netlink::addresses_request(sequence, self.jobs.target()),
        };
        self.jobs.step(step);
        if let Err(error) = socket.send(&request) {
            self.fail(&error);
        }
    }

    fn message(&mut self, socket: &Socket, nsid: Option<i32>, message: &Message<'_>) {
        if nsid.is_none() && message.port == self.port && self.jobs.is_answer(message.sequence) {
            return self.answer(socket, message);
        }
        let Some(inode) = self.jobs.inode_of(nsid) else {
            return;
        };
        if inode == self.own {
            match (message.kind, message.nsid()) {
                (libc::RTM_NEWNSID, Some(id)) if self.jobs.inode_of(Some(id)).is_none() => {
                    self.news.push(News::Stranger);
                }
                (libc::RTM_DELNSID, Some(id)) => self.id_gone(id),
                _ => {}
            }
        }
        self.news.extend(event(message).map(|event| News::Event(inode, event)));
    }

    /// The kernel tells of an id's end after the id is free, so another namespace, just bound, may have it already.
    fn id_gone(&mut self, id: i32) {
        let Some(inode) = self.jobs.ended(id) else { return };
        let is_used = self.ask.ask_nsid(None, Peer::Id(id)).is_ok();
        self.news.push(if is_used {
            News::Doubtful(inode)
        } else {
            News::Ended(inode)
        });
    }

    /// An answer to the job in hand.
    fn answer(&mut self, socket: &Socket, message: &Message<'_>) {
        let kind = i32::from(message.kind);
        self.jobs.hears(message.interrupted());
        let ends = kind == libc::NLMSG_DONE || kind == libc::NLMSG_ERROR;
        match (self.jobs.take_step(), ends.then(|| message.error()).flatten()) {
            // It has one already; and without rights the own namespace can be followed all the same.
            (Some(Step::Name(file)), Some(error)) if error.raw_os_error() == Some(libc::EEXIST) => {
                self.send(socket, Step::Ask(file));
            }
            (Some(Step::Name(_) | Step::Ask(_)), Some(_)) if self.jobs.inode() == Some(self.own) => {
                self.dump(socket, self.own);
            }
            (Some(Step::Name(file)), None) if ends => self.send(socket, Step::Ask(file)),
            (Some(Step::Ask(file)), None) => match message.nsid() {
                Some(nsid) => self.named(socket, nsid),
                None => self.jobs.step(Step::Ask(file)),
            },
            (Some(_), Some(error)) => self.fail(&error),
            (Some(Step::Links), None) if ends => self.send(socket, Step::Addresses),
            (Some(Step::Addresses), None) if ends => self.dumped(),
            (Some(step), None) => {
                self.jobs.step(step);
                let event = event(message).map(|event| self.dumped_event(event));
                self.news.extend(
                    self.jobs
                        .inode()
                        .zip(event)
                        .map(|(inode, event)| News::Event(inode, event)),
                );
            }
            (None, _) => {}
        }
    }

    /// From here on the id means the namespace in hand.
    fn named(&mut self, socket: &Socket, nsid: i32) {
        let Some(Bound { inode, ended }) = self.jobs.bind(nsid) else {
            return;
        };
        self.news.extend(ended.map(News::Ended));
        self.news.push(News::Followed(inode, nsid));
        self.dump(socket, inode);
    }

    fn dump(&mut self, socket: &Socket, inode: u32) {
        self.news.push(News::Event(inode, Event::DumpBegins));
        self.send(socket, Step::Links);
    }

    /// In a dump of another namespace the kernel writes ids that are valid in ours.
    fn dumped_event(&self, event: Event) -> Event {
        match event {
            Event::Link(link) if self.jobs.target().is_some() => Event::Link(LinkMessage {
                nsid_is_askers: link.link_nsid.is_some(),
                ..link
            }),
            other => other,
        }
    }

    fn dumped(&mut self) {
        let Some((inode, sound)) = self.jobs.dumped(Instant::now()) else {
            return;
        };
        if !sound {
            self.news.push(News::Event(inode, Event::Resync));
        }
        self.news.push(News::Event(inode, Event::DumpEnds { sound }));
    }

    /// The kernel refuses the job in hand.
    fn fail(&mut self, error: &io::Error) {
        let Some(inode) = self.jobs.inode() else { return };
        let refused = [libc::EPERM, libc::EACCES].map(Some).contains(&error.raw_os_error());
        if refused || !self.jobs.dumps() {
            let reason = if refused {
                format!("its links may not be read: {error}; this takes CAP_NET_ADMIN")
            } else {
                format!("cannot give it an id: {error}")
            };
            self.jobs.forget(inode);
            return self.finish(News::Unreadable(inode, reason));
        }
        tracing::debug!("a netlink dump failed and will be repeated: {error}");
        self.jobs.hears(true);
        self.dumped();
    }
}

/// The file has gone, or the process whose it was.
fn gone(error: &io::Error) -> bool {
    [libc::ENOENT, libc::ESRCH, libc::ENOTDIR]
        .map(Some)
        .contains(&error.raw_os_error())
}

/// Waits until `deadline`; for ever without one.
async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn event(message: &Message<'_>) -> Option<Event> {
    let payload = message.payload;
    match message.kind {
        libc::RTM_NEWLINK => link::parse(payload).map(Event::Link),
        libc::RTM_DELLINK => link::parse(payload).map(Event::LinkGone),
        libc::RTM_NEWADDR => address::parse(payload).map(Event::Address),
        libc::RTM_DELADDR => address::parse(payload).map(Event::AddressGone),
        libc::RTM_DELNSID => message.nsid().map(Event::NsidGone),
        _ => None,
    }
}
