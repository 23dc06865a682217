//! Route netlink by hand: a socket, requests, and what datagrams hold.
//!
//! By hand because what matters here is what the usual crates leave out: `NLM_F_DUMP_INTR`, errors at the end of a dump,
//! overruns, who sent a datagram, names that are no UTF-8.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname, send, setsockopt,
    socket, sockopt,
};

use socket2::SockRef;

use super::link::{attributes, number};
use crate::packet_filter;

mod receive;
mod requests;

pub use receive::Datagram;
pub use requests::{
    addresses_request, assign_nsid_request, links_request, nsid_request, request, statistics_request, unicast_request,
};

/// A datagram is not longer than this: dumps come in 32 KiB, and of one link's attributes none can pass 64 KiB.
pub const DATAGRAM: usize = 128 * 1024;

/// How much the kernel may queue for us. A limit, not a cost: a storm of a thousand links must fit.
const QUEUE: usize = 16 * 1024 * 1024;

/// A non-blocking route netlink socket. It belongs to the namespace of the thread that opened it, for good, and keeps
/// that namespace alive.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Socket {
    /// Opens one in the calling thread's namespace and joins it to multicast `groups` (`RTNLGRP_*`, up to 32).
    pub fn open(groups: &[u32]) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        if !groups.is_empty() && setsockopt(&socket, sockopt::RcvBufForce, &QUEUE).is_err() {
            // Without CAP_NET_ADMIN: as much as net.core.rmem_max allows. An overrun costs a new dump, nothing more.
            setsockopt(&socket, sockopt::RcvBuf, &QUEUE)?;
        }
        let mask = groups.iter().fold(0, |mask, group| mask | 1 << (group - 1));
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, mask))?;
        Ok(Self(socket))
    }

    /// Sends one request.
    pub fn send(&self, request: &[u8]) -> io::Result<()> {
        send(self.0.as_raw_fd(), request, MsgFlags::empty())?;
        Ok(())
    }

    /// Opens one that hears of every namespace that has an id in the calling thread's, and that may dump any of them
    /// (`NETLINK_LISTEN_ALL_NSID`, `NETLINK_GET_STRICT_CHK`). Hearing of others needs `CAP_NET_BROADCAST`: the error says
    /// whether that was refused, the socket is good for dumps all the same.
    pub fn open_for_all(groups: &[u32]) -> io::Result<(Self, Option<io::Error>)> {
        let socket = Self::open(groups)?;
        // Without it the kernel answers a question for another namespace's addresses with our own.
        socket.set(libc::NETLINK_GET_STRICT_CHK, 1)?;
        let deaf = socket.set(libc::NETLINK_LISTEN_ALL_NSID, 1).err();
        Ok((socket, deaf))
    }

    /// Its port: what the kernel puts into its answers, and others cannot have in this namespace.
    pub fn port(&self) -> io::Result<u32> {
        Ok(getsockname::<NetlinkAddr>(self.0.as_raw_fd())?.pid())
    }

    /// Joins it to one more multicast group.
    pub fn join(&self, group: u32) -> io::Result<()> {
        self.set(libc::NETLINK_ADD_MEMBERSHIP, group.cast_signed())
    }

    /// Of all routes that come and go, lets those pass that bear the number `protocol`. The kernel looks before it queues
    /// anything, so that the routes of others cost nothing here, however many they are.
    pub fn hear_routes_of(&self, protocol: u8) -> io::Result<()> {
        SockRef::from(self).attach_filter(&packet_filter::routes_of(protocol))
    }

    fn set(&self, option: i32, value: i32) -> io::Result<()> {
        // SAFETY: the kernel reads the four bytes of `value`, which lives until the call returns.
        let result = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_NETLINK,
                option,
                (&raw const value).cast(),
                libc::socklen_t::try_from(size_of_val(&value)).unwrap_or_default(),
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Receives one datagram. An error of kind `WouldBlock` says that there is none, one of `ENOBUFS` that some are lost.
    pub fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
        Ok(self.receive_from(buffer)?.bytes)
    }

    /// The same, with the id of the namespace that it tells of.
    pub fn receive_from<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Datagram<'a>> {
        receive::receive(self.0.as_fd(), buffer)
    }

    /// The id that the namespace `other` has in this socket's namespace, if it has one (`RTM_GETNSID`). The kernel
    /// answers within the call, so this does not wait.
    pub fn nsid_of(&self, other: impl AsFd) -> io::Result<Option<i32>> {
        self.ask_nsid(None, Peer::File(other.as_fd()))
    }

    /// The id that `peer` has in the namespace with the id `target` here, or in this one.
    pub fn ask_nsid(&self, target: Option<i32>, peer: Peer<'_>) -> io::Result<Option<i32>> {
        self.send(&nsid_request(0, target, peer))?;
        let mut buffer = [0; 512];
        let answer = self.receive(&mut buffer)?;
        let Some(message) = messages(answer).next() else {
            return Ok(None);
        };
        message.error().map_or_else(|| Ok(message.nsid()), Err)
    }
}

/// A namespace that a question is about.
#[derive(Copy, Clone, Debug)]
pub enum Peer<'a> {
    /// By a file that is open.
    File(BorrowedFd<'a>),
    /// By its id in the asking socket's namespace.
    Id(i32),
}

/// One message of a datagram.
#[derive(Copy, Clone, Debug)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`: that of the request it answers; 0 in notifications that nobody asked for.
    pub sequence: u32,
    /// The port of the socket that it answers, or that brought it about.
    pub port: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl Message<'_> {
    /// The error that an `NLMSG_ERROR` or the `NLMSG_DONE` at the end of a dump carries.
    #[must_use]
    pub fn error(&self) -> Option<io::Error> {
        let kinds = [libc::NLMSG_ERROR, libc::NLMSG_DONE];
        if !kinds.contains(&i32::from(self.kind)) {
            return None;
        }
        let code = number(self.payload)?.cast_signed();
        (code < 0).then(|| io::Error::from_raw_os_error(-code))
    }

    /// The id in an `RTM_NEWNSID` or `RTM_DELNSID`; none where it says that there is none.
    #[must_use]
    pub fn nsid(&self) -> Option<i32> {
        const NETNSA_NSID: u16 = 1;
        // struct rtgenmsg and its padding come first.
        let id = attributes(self.payload.get(4..)?)
            .find(|&(kind, _)| kind == NETNSA_NSID)
            .and_then(|(_, value)| number(value))?
            .cast_signed();
        (id >= 0).then_some(id)
    }

    /// The state that a dump walks through changed while it did: what it gave may not be all (`NLM_F_DUMP_INTR`).
    #[must_use]
    pub fn interrupted(&self) -> bool {
        i32::from(self.flags) & libc::NLM_F_DUMP_INTR != 0
    }
}

/// The messages of a datagram, up to the first that is damaged.
pub fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        // struct nlmsghdr: len u32, type u16, flags u16, seq u32, pid u32
        let header = datagram.get(..16)?;
        let length = usize::try_from(number(header)?).ok()?;
        let message = Message {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: number(&header[8..])?,
            port: number(&header[12..])?,
            payload: datagram.get(16..length)?,
        };
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::netns::Netns;

    #[test]
    fn a_datagram_is_taken_apart() {
        let mut datagram = request(16, 0, 7, &[1, 2, 3]);
        datagram.push(0);
        datagram.extend(request(17, 0x10, 8, &[]));
        let all: Vec<_> = messages(&datagram)
            .map(|m| (m.kind, m.sequence, m.payload.len(), m.interrupted()))
            .collect();
        assert_eq!(all, [(16, 7, 3, false), (17, 8, 0, true)]);
    }

    #[test]
    fn damage_ends_a_datagram() {
        let datagram = request(16, 0, 7, &[1, 2, 3, 4]);
        for length in 0..datagram.len() {
            assert_eq!(messages(&datagram[..length]).count(), 0);
        }
        assert_eq!(messages(&[0; 64]).count(), 0);
    }

    #[test]
    fn errors_are_the_kernels() {
        let done = request(3, 0, 1, &(-13_i32).to_ne_bytes());
        let error = messages(&done).next().and_then(|m| m.error()).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        let acknowledged = request(2, 0, 1, &0_i32.to_ne_bytes());
        assert!(messages(&acknowledged).next().unwrap().error().is_none());
    }

    #[test]
    fn a_namespace_answers_about_itself() {
        let socket = Socket::open(&[]).unwrap();
        let own = Netns::own().unwrap();
        // It has an id in itself only if somebody gave it one; that it answers is what matters.
        socket.nsid_of(&*own).unwrap();
        assert!(
            socket
                .nsid_of(std::fs::File::open("/proc/self/status").unwrap())
                .is_err()
        );
    }
}
