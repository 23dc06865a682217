//! Which MACs a parent receives frames for: every sub-interface that is up puts its own there, whatever namespace it is
//! in. One that none of the known sub-interfaces has belongs to one that was not found, or to something else that stands
//! on the parent.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::AsFd as _,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    link::{LinkKey, attributes, number},
    netlink::{DATAGRAM, Socket, messages, unicast_request},
    watcher::Namespaces,
};

/// A MAC.
type Mac = [u8; 6];

/// The kernel answers a dump while it is read; this is for a machine that stands still.
const PATIENCE: u16 = 1_000;

/// The lists of these parents; one that cannot be asked has none.
pub(super) fn read(parents: &BTreeSet<LinkKey>, namespaces: &Namespaces) -> BTreeMap<LinkKey, BTreeSet<Mac>> {
    let mut lists = BTreeMap::new();
    for netns in parents.iter().map(|parent| parent.netns).collect::<BTreeSet<_>>() {
        let Some(Ok(joined)) = namespaces.open(netns) else {
            continue;
        };
        let indexes = parents.iter().filter(|parent| parent.netns == netns);
        let indexes: Vec<u32> = indexes.map(|parent| parent.ifindex).collect();
        let read = joined.run(|| -> io::Result<_> {
            let socket = Socket::open(&[])?;
            let ask = |ifindex: u32| Ok((LinkKey { netns, ifindex }, dump(&socket, ifindex)?));
            indexes.into_iter().map(ask).collect::<io::Result<Vec<_>>>()
        });
        match read {
            Ok(Ok(read)) => lists.extend(read),
            Ok(Err(error)) => tracing::debug!(%error, "the MACs that parents receive for cannot be read"),
            Err(error) => tracing::debug!(%error, "the MACs that parents receive for cannot be read"),
        }
    }
    lists
}

fn dump(socket: &Socket, ifindex: u32) -> io::Result<BTreeSet<Mac>> {
    socket.send(&unicast_request(ifindex, ifindex))?;
    let (mut list, mut buffer) = (BTreeSet::new(), vec![0; DATAGRAM]);
    loop {
        let mut waiting = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        if poll(&mut waiting, PollTimeout::from(PATIENCE))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        for message in messages(socket.receive(&mut buffer)?) {
            if let Some(error) = message.error() {
                return Err(error);
            }
            if i32::from(message.kind) == libc::NLMSG_DONE {
                return Ok(list);
            }
            list.extend(entry(message.payload, ifindex));
        }
    }
}

/// The MAC of an `RTM_NEWNEIGH` that says that the link itself receives for it.
fn entry(payload: &[u8], ifindex: u32) -> Option<Mac> {
    const NTF_SELF: u8 = 2;
    const NDA_LLADDR: u16 = 2;
    // struct ndmsg: family u8, padding, ifindex i32, state u16, flags u8, type u8
    let (header, rest) = payload.split_at_checked(12)?;
    let (_, mac) = attributes(rest).find(|&(kind, _)| kind == NDA_LLADDR)?;
    let mac: Mac = mac.try_into().ok()?;
    let counts = number(&header[4..])? == ifindex && header[10] & NTF_SELF != 0 && mac[0] & 1 == 0;
    counts.then_some(mac)
}

/// MACs that nobody known has. One must be there twice: between making a sub-interface and hearing of it lies a moment.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    suspects: BTreeSet<(LinkKey, Mac)>,
    counts: BTreeMap<LinkKey, usize>,
}

impl Strangers {
    /// Takes in new lists, given what is known to stand on each. True when a suspect is new, which calls for a closer look.
    pub(super) fn judge(
        &mut self,
        lists: &BTreeMap<LinkKey, BTreeSet<Mac>>,
        known: &BTreeMap<LinkKey, BTreeSet<Mac>>,
    ) -> bool {
        let nobody = BTreeSet::new();
        let mut suspects = BTreeSet::new();
        self.counts.clear();
        for (&parent, list) in lists {
            let unknown = list
                .difference(known.get(&parent).unwrap_or(&nobody))
                .map(|mac| (parent, *mac))
                .collect::<Vec<_>>();
            let certain = unknown.iter().filter(|suspect| self.suspects.contains(suspect)).count();
            self.counts.insert(parent, certain);
            suspects.extend(unknown);
        }
        let new = !suspects.is_subset(&self.suspects);
        self.suspects = suspects;
        new
    }

    /// How many there are on each parent whose list could be read.
    pub(super) fn counts(&self) -> &BTreeMap<LinkKey, usize> {
        &self.counts
    }

    /// How many there are on a parent; none where its list could not be read.
    pub(super) fn on(&self, parent: LinkKey) -> Option<usize> {
        self.counts.get(&parent).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: LinkKey = LinkKey { netns: 1, ifindex: 2 };

    #[test]
    fn a_mac_counts_when_it_is_there_twice() {
        let mut strangers = Strangers::default();
        let mac = |last| [2, 0, 0, 0, 0, last];
        let lists = BTreeMap::from([(PARENT, BTreeSet::from([mac(1), mac(2)]))]);
        let known = |macs: &[Mac]| BTreeMap::from([(PARENT, macs.iter().copied().collect())]);
        let (one, both) = (known(&[mac(1)]), known(&[mac(1), mac(2)]));
        assert_eq!(strangers.on(PARENT), None);
        assert!(strangers.judge(&lists, &one));
        assert_eq!(strangers.on(PARENT), Some(0));
        assert!(!strangers.judge(&lists, &one));
        assert_eq!(strangers.on(PARENT), Some(1));
        assert!(!strangers.judge(&lists, &both));
        assert_eq!(strangers.on(PARENT), Some(0));
        assert!(!strangers.judge(&BTreeMap::new(), &one));
        assert_eq!(strangers.on(PARENT), None);
    }

    #[test]
    fn only_what_the_link_itself_receives_for_is_taken() {
        let entry_of = |ifindex: u32, flags: u8, mac: [u8; 6]| {
            let mut payload = vec![7, 0, 0, 0];
            payload.extend(ifindex.to_ne_bytes());
            payload.extend([0x80, 0, flags, 0, 10, 0, 2, 0]);
            payload.extend(mac);
            entry(&payload, 2)
        };
        let mac = [2, 0, 0, 0, 0, 1];
        assert_eq!(entry_of(2, 2, mac), Some(mac));
        assert_eq!(entry_of(3, 2, mac), None, "another link");
        assert_eq!(entry_of(2, 4, mac), None, "of its bridge");
        assert_eq!(entry_of(2, 2, [0x33, 0x33, 0, 0, 0, 1]), None, "multicast");
    }
}
