//! A netlink socket in one namespace: changes with their acknowledgement, dumps until one is whole.
//!
//! Messages are built with rtnetlink's types. They go over a socket of our own, one at a time, because what matters here
//! is what the crate's connection leaves out: the kernel's own words on a refusal, and dumps that were interrupted.

use std::{
    fmt, io,
    os::fd::{AsRawFd as _, BorrowedFd},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    nsid::{NsidAttribute, NsidMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::{sys::signal, unistd::Pid};

use crate::topology::{
    link::{attributes, number},
    netlink::{DATAGRAM, messages},
};

/// For tests of what a crash leaves: the process kills itself (`SIGKILL`) before the change with this number, counted
/// from 1; see CONTRIBUTING.
pub const KILL_BEFORE_CHANGE: &str = "MACVLAN_AGENT_KILL_BEFORE_CHANGE";

/// Dumps that were interrupted are repeated so many times.
const TRIES: u32 = 20;

/// What the kernel said to a change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Refusal {
    /// Its number.
    pub errno: i32,
    /// Its own words, where it has any.
    pub text: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = io::Error::from_raw_os_error(self.errno);
        match &self.text {
            Some(text) => write!(f, "{text}: {error}"),
            None => error.fmt(f),
        }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self {
            errno: error.raw_os_error().unwrap_or(libc::EIO),
            text: None,
        }
    }
}

/// A socket, bound for good to the namespace of the thread that opened it.
#[derive(Debug)]
pub struct Wire {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Wire {
    /// Opens one in the calling thread's namespace.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Old kernels have neither; then refusals come without words.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(DATAGRAM),
        })
    }

    /// Asks for a change and waits for the answer. `flags` come on top of those for a request with an answer.
    pub fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Refusal> {
        may_be_killed();
        self.ask(message, flags | NLM_F_ACK, |_, _| {})
    }

    /// All that a dump gives: types and payloads.
    pub fn dump(&mut self, message: &RouteNetlinkMessage) -> Result<Vec<(u16, Vec<u8>)>, Refusal> {
        for _ in 0..TRIES {
            let mut all = Vec::new();
            let mut whole = true;
            self.ask_until_done(message.clone(), NLM_F_DUMP, &mut |kind, payload, interrupted| {
                whole &= !interrupted;
                all.push((kind, payload.to_vec()));
            })?;
            if whole {
                return Ok(all);
            }
        }
        Err(Refusal {
            errno: libc::EAGAIN,
            text: Some("the host's interfaces change faster than they can be read".to_owned()),
        })
    }

    /// The same, of what the message's header asks for alone: the kernel heeds it only where it checks all of it.
    pub fn dump_of(&mut self, message: &RouteNetlinkMessage) -> Result<Vec<(u16, Vec<u8>)>, Refusal> {
        self.socket.set_netlink_get_strict_chk(true)?;
        let all = self.dump(message);
        self.socket.set_netlink_get_strict_chk(false)?;
        all
    }

    /// Asks for one thing; gives the answers.
    pub fn get(&mut self, message: RouteNetlinkMessage) -> Result<Vec<(u16, Vec<u8>)>, Refusal> {
        let mut all = Vec::new();
        self.ask(message, NLM_F_ACK, |kind, payload| all.push((kind, payload.to_vec())))?;
        Ok(all)
    }

    /// The id that the namespace `other` has in this socket's namespace; it is given one if it has none. An id is a
    /// name, nothing more.
    pub fn nsid_of(&mut self, other: BorrowedFd<'_>) -> Result<i32, Refusal> {
        let fd = NsidAttribute::Fd(other.as_raw_fd().cast_unsigned());
        if let Some(id) = self.existing_nsid(fd.clone())? {
            return Ok(id);
        }
        let mut message = NsidMessage::default();
        message.attributes = vec![fd.clone(), NsidAttribute::Id(-1)];
        match self.ask(RouteNetlinkMessage::NewNsId(message), NLM_F_ACK, |_, _| {}) {
            Ok(()) => {}
            Err(refusal) if refusal.errno == libc::EEXIST => {}
            Err(refusal) => return Err(refusal),
        }
        self.existing_nsid(fd)?.ok_or(Refusal {
            errno: libc::ENOENT,
            text: Some("the kernel gave the namespace no id".to_owned()),
        })
    }

    fn existing_nsid(&mut self, fd: NsidAttribute) -> Result<Option<i32>, Refusal> {
        const NETNSA_NSID: u16 = 1;
        let mut message = NsidMessage::default();
        message.attributes = vec![fd];
        let answers = self.get(RouteNetlinkMessage::GetNsId(message))?;
        let id = answers.iter().find_map(|(_, payload)| {
            let (_, value) = attributes(payload.get(4..)?).find(|(kind, _)| *kind == NETNSA_NSID)?;
            number(value).map(u32::cast_signed)
        });
        Ok(id.filter(|id| *id >= 0))
    }

    /// Whether the kernel's macvlan knows an attribute. Asked with a value too short for it and without a parent: a
    /// kernel that knows it complains of the value (`ERANGE`), one that does not of the parent (`EINVAL`); either way
    /// nothing is made.
    pub fn macvlan_knows(&mut self, attribute: u16) -> Result<bool, Refusal> {
        use netlink_packet_core::DefaultNla;
        use netlink_packet_route::link::{InfoData, InfoKind, InfoMacVlan, LinkAttribute, LinkInfo, LinkMessage};
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName("mva-probe".to_owned()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::MacVlan),
                LinkInfo::Data(InfoData::MacVlan(vec![InfoMacVlan::Other(DefaultNla::new(
                    attribute,
                    vec![0],
                ))])),
            ]),
        ];
        let flags = NLM_F_ACK | netlink_packet_core::NLM_F_CREATE | netlink_packet_core::NLM_F_EXCL;
        match self.ask(RouteNetlinkMessage::NewLink(message), flags, |_, _| {}) {
            Ok(()) => Ok(false),
            Err(refusal) if refusal.errno == libc::ERANGE => Ok(true),
            Err(refusal) if refusal.errno == libc::EINVAL => Ok(false),
            Err(refusal) => Err(refusal),
        }
    }

    fn ask(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        mut answer: impl FnMut(u16, &[u8]),
    ) -> Result<(), Refusal> {
        self.ask_until_done(message, flags, &mut |kind, payload, _| answer(kind, payload))
    }

    fn ask_until_done(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        answer: &mut dyn FnMut(u16, &[u8], bool),
    ) -> Result<(), Refusal> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags | NLM_F_REQUEST;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        loop {
            let sender = self.receive()?;
            // Whoever is root in a container may send to our socket there. Only the kernel has port 0.
            if sender.port_number() != 0 {
                continue;
            }
            for message in messages(&self.buffer) {
                if message.sequence != self.sequence {
                    continue;
                }
                match i32::from(message.kind) {
                    libc::NLMSG_ERROR | libc::NLMSG_DONE => return verdict(&message),
                    _ => answer(message.kind, message.payload, message.interrupted()),
                }
            }
        }
    }

    /// Takes the next datagram into the buffer; says who sent it.
    fn receive(&mut self) -> io::Result<SocketAddr> {
        loop {
            self.buffer.clear();
            match self.socket.recv_from(&mut self.buffer, 0) {
                Ok((_, sender)) => return Ok(sender),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// What an acknowledgement or the end of a dump says.
fn verdict(message: &crate::topology::netlink::Message<'_>) -> Result<(), Refusal> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let Some(error) = message.error() else {
        return Ok(());
    };
    // The error, then the header of the request, then what the kernel has to say.
    let words = message.payload.get(20..).unwrap_or_default();
    let text = attributes(words)
        .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
        .map(|(_, text)| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned());
    Err(Refusal {
        errno: error.raw_os_error().unwrap_or(libc::EIO),
        text: text.filter(|text| !text.is_empty()),
    })
}

/// How many changes this process has asked for.
static CHANGES: AtomicU64 = AtomicU64::new(0);

/// Before which of them a test wants it to end.
static KILL: LazyLock<Option<u64>> = LazyLock::new(|| std::env::var(KILL_BEFORE_CHANGE).ok()?.parse().ok());

/// Ends the process without any further word, where a test asks for it.
pub(super) fn may_be_killed() {
    let number = CHANGES.fetch_add(1, Ordering::Relaxed) + 1;
    if *KILL == Some(number) {
        // The signal is not delivered only if the process has ended already.
        let _ = signal::kill(Pid::this(), signal::Signal::SIGKILL);
    }
}
