//! The kernel's own counters of links, read when they are asked for.
//!
//! By `RTM_GETSTATS`, which costs a tenth of a dump of links, on one socket per namespace, opened by a thread that joined
//! it. Such a socket keeps its namespace alive, so only those get one that a file keeps alive anyway, and
//! [`Reader::retain`] lets go of it when that has gone. In others, and where joining is refused, links are dumped by the
//! namespace's id.

use std::{collections::BTreeMap, io, os::fd::AsFd as _};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    link::attributes,
    netlink::{DATAGRAM, Socket, links_request, messages, statistics_request},
    netns::{Netns, NetnsError},
    watcher::Namespaces,
};

/// Counters of one link, `struct rtnl_link_stats64` of `include/uapi/linux/if_link.h`; the form has only grown since
/// Linux 2.6.35, at its end.
#[derive(Copy, Clone, Default, Eq, PartialEq, Debug)]
pub struct Statistics {
    /// Skbs received, multicast included.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Multicast and broadcast skbs received.
    pub multicast: u64,
    /// Skbs sent.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Skbs that could not be delivered.
    pub rx_errors: u64,
    /// Skbs dropped on the way in, those in `rx_errors` included once more.
    pub rx_dropped: u64,
    /// Skbs dropped on the way out.
    pub tx_dropped: u64,
}

impl Statistics {
    /// What was counted since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            rx_packets: self.rx_packets.saturating_sub(before.rx_packets),
            rx_bytes: self.rx_bytes.saturating_sub(before.rx_bytes),
            multicast: self.multicast.saturating_sub(before.multicast),
            tx_packets: self.tx_packets.saturating_sub(before.tx_packets),
            tx_bytes: self.tx_bytes.saturating_sub(before.tx_bytes),
            rx_errors: narrow(self.rx_errors, before.rx_errors),
            rx_dropped: narrow(self.rx_dropped, before.rx_dropped),
            tx_dropped: narrow(self.tx_dropped, before.tx_dropped),
        }
    }

    /// The sum of two differences.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            rx_packets: self.rx_packets + other.rx_packets,
            rx_bytes: self.rx_bytes + other.rx_bytes,
            multicast: self.multicast + other.multicast,
            tx_packets: self.tx_packets + other.tx_packets,
            tx_bytes: self.tx_bytes + other.tx_bytes,
            rx_errors: self.rx_errors + other.rx_errors,
            rx_dropped: self.rx_dropped + other.rx_dropped,
            tx_dropped: self.tx_dropped + other.tx_dropped,
        }
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let field = |index: usize| {
            let eight = bytes.get(index * 8..index * 8 + 8)?;
            eight.try_into().ok().map(u64::from_ne_bytes)
        };
        Some(Self {
            rx_packets: field(0)?,
            rx_bytes: field(2)?,
            multicast: field(8)?,
            tx_packets: field(1)?,
            tx_bytes: field(3)?,
            rx_errors: field(4)?,
            rx_dropped: field(6)?,
            tx_dropped: field(7)?,
        })
    }
}

/// The difference of two values of which macvlan keeps a part in 32 bits (`rx_errors`, `tx_dropped` of
/// `vlan_pcpu_stats`, `macvlan_dev_get_stats64`): that part begins again at 0.
fn narrow(now: u64, before: u64) -> u64 {
    if now >= before {
        now - before
    } else {
        (now + (1 << 32)).saturating_sub(before)
    }
}

/// The counters of a namespace's links at one time.
#[derive(Clone, Default, Eq, PartialEq, Debug)]
pub struct Links(Vec<(u32, Statistics)>);

impl Links {
    /// In whatever order the kernel told of them.
    fn of(mut links: Vec<(u32, Statistics)>) -> Self {
        links.sort_unstable_by_key(|(ifindex, _)| *ifindex);
        Self(links)
    }

    /// Those of one link after the other: whoever asks in nearly the order of the indexes is answered without a search.
    pub fn in_turn(&self) -> impl FnMut(u32) -> Option<Statistics> {
        let mut next = 0;
        move |ifindex| {
            if self.0.get(next).is_none_or(|(index, _)| *index != ifindex) {
                next = self.0.binary_search_by_key(&ifindex, |(index, _)| *index).ok()?;
            }
            let (_, statistics) = self.0.get(next)?;
            next += 1;
            Some(*statistics)
        }
    }

    /// Those of the link with this index.
    #[must_use]
    pub fn get(&self, ifindex: u32) -> Option<&Statistics> {
        let place = self.0.binary_search_by_key(&ifindex, |(ifindex, _)| *ifindex).ok()?;
        self.0.get(place).map(|(_, statistics)| statistics)
    }
}

/// Why counters cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum StatisticsError {
    /// The namespace cannot be joined.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel refuses, or does not answer.
    #[error("cannot read the counters of the links in namespace {netns}")]
    Netlink {
        /// Which.
        netns: String,
        /// What it said.
        source: io::Error,
    },
}

/// Reads counters, namespace by namespace.
#[derive(Default, Debug)]
pub struct Reader {
    sockets: BTreeMap<u32, Socket>,
    /// In our own namespace, for those that are not joined.
    outside: Option<Socket>,
    sequence: u32,
    buffer: Vec<u8>,
}

/// The kernel answers a dump while it is read; this is for a machine that stands still.
const PATIENCE: u16 = 1_000;

impl Reader {
    /// Lets go of namespaces that are gone, or about to go.
    pub fn retain(&mut self, known: impl Fn(u32) -> bool) {
        self.sockets.retain(|netns, _| known(*netns));
    }

    /// The counters of all links of a followed namespace. None when it has just gone.
    pub fn read(&mut self, netns: u32, namespaces: &Namespaces) -> Result<Option<Links>, StatisticsError> {
        let Some(namespace) = namespaces.get(netns) else {
            return Ok(None);
        };
        let read = match (self.sockets.remove(&netns), namespace.nsid) {
            (Some(socket), _) => self.ask_inside(netns, socket),
            (None, Some(nsid)) if !namespace.mounted => self.ask_outside(nsid),
            (None, nsid) => match (namespaces.open(netns), nsid) {
                (Some(Err(_)), Some(nsid)) => self.ask_outside(nsid),
                (Some(opened), _) => return self.read_in(&*opened?).map(Some),
                (None, _) => return Ok(None),
            },
        };
        let failed = |source| StatisticsError::Netlink {
            netns: namespace.label,
            source,
        };
        read.map(Some).map_err(failed)
    }

    /// The counters of all links of this namespace.
    pub fn read_in(&mut self, netns: &Netns) -> Result<Links, StatisticsError> {
        let failed = |source| StatisticsError::Netlink {
            netns: netns.label().to_owned(),
            source,
        };
        let socket = netns.run(|| Socket::open(&[]))?.map_err(failed)?;
        self.ask_inside(netns.inode(), socket).map_err(failed)
    }

    /// Asks on a socket in the namespace, which is kept only when its answer is whole: half an answer would be the next
    /// one's beginning.
    fn ask_inside(&mut self, netns: u32, socket: Socket) -> io::Result<Links> {
        let request = statistics_request(self.next());
        let all = self.dump(&socket, &request, link)?;
        self.sockets.insert(netns, socket);
        Ok(all)
    }

    fn ask_outside(&mut self, nsid: i32) -> io::Result<Links> {
        let socket = self.outside.take().map_or_else(|| Socket::open(&[]), Ok)?;
        let request = links_request(self.next(), Some(nsid), true);
        let all = self.dump(&socket, &request, whole_link)?;
        self.outside = Some(socket);
        Ok(all)
    }

    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn dump(
        &mut self,
        socket: &Socket,
        request: &[u8],
        take: fn(&[u8]) -> Option<(u32, Statistics)>,
    ) -> io::Result<Links> {
        self.buffer.resize(DATAGRAM, 0);
        socket.send(request)?;
        let mut all = Vec::new();
        loop {
            let mut waiting = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            if poll(&mut waiting, PollTimeout::from(PATIENCE))? == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
            for message in messages(socket.receive(&mut self.buffer)?) {
                if let Some(error) = message.error() {
                    return Err(error);
                }
                if i32::from(message.kind) == libc::NLMSG_DONE {
                    return Ok(Links::of(all));
                }
                all.extend(take(message.payload));
            }
        }
    }
}

/// Interface index and counters of an `RTM_NEWLINK`: `struct ifinfomsg` (16 bytes), then attributes.
fn whole_link(payload: &[u8]) -> Option<(u32, Statistics)> {
    const IFLA_STATS64: u16 = 23;
    let ifindex = payload.get(4..8)?.try_into().ok().map(u32::from_ne_bytes)?;
    let (_, bytes) = attributes(payload.get(16..)?).find(|&(kind, _)| kind == IFLA_STATS64)?;
    Some((ifindex, Statistics::parse(bytes)?))
}

/// Interface index and counters of an `RTM_NEWSTATS`: `struct if_stats_msg` (12 bytes), then attributes.
fn link(payload: &[u8]) -> Option<(u32, Statistics)> {
    const IFLA_STATS_LINK_64: u16 = 1;
    let ifindex = payload.get(4..8)?.try_into().ok().map(u32::from_ne_bytes)?;
    let (_, bytes) = attributes(payload.get(12..)?).find(|&(kind, _)| kind == IFLA_STATS_LINK_64)?;
    Some((ifindex, Statistics::parse(bytes)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_taken_by_their_place() {
        let bytes: Vec<u8> = (0..24_u64).flat_map(u64::to_ne_bytes).collect();
        let expected = Statistics {
            rx_packets: 0,
            rx_bytes: 2,
            multicast: 8,
            tx_packets: 1,
            tx_bytes: 3,
            rx_errors: 4,
            rx_dropped: 6,
            tx_dropped: 7,
        };
        assert_eq!(Statistics::parse(&bytes), Some(expected));
        assert_eq!(Statistics::parse(&bytes[..70]), None, "cut short");
    }

    #[test]
    fn in_turn_they_are_found_in_any_order() {
        let of = |packets: u64| Statistics {
            rx_packets: packets,
            ..Statistics::default()
        };
        let links = Links::of([7, 3, 9, 4].map(|index| (index, of(index.into()))).to_vec());
        let mut next = links.in_turn();
        for index in [3, 4, 9, 7, 9, 5, 3, 3, 10, 4, 7] {
            assert_eq!(next(index), links.get(index).copied(), "{index}");
        }
    }

    #[test]
    fn failures_are_kept_in_32_bits() {
        assert_eq!(narrow(7, 3), 4);
        assert_eq!(narrow(1, u64::from(u32::MAX)), 2);
    }

    #[test]
    fn the_own_namespace_has_counters_of_its_loopback() {
        let own = Netns::own().unwrap();
        let mut reader = Reader::default();
        for _ in 0..2 {
            assert!(reader.read_in(&own).unwrap().get(1).is_some(), "lo");
        }
    }
}
