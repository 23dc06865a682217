//! Tells the neighbours of a parent who has an address now: gratuitous ARP and unsolicited neighbour advertisements,
//! as Docker sends them. Linux itself is silent, or says it once.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::Arc,
    thread,
    time::Duration,
};

use crate::topology::netns::Netns;

/// How many times.
const ROUNDS: u32 = 3;

/// How long apart.
const INTERVAL: Duration = Duration::from_millis(300);

/// Who has which addresses.
#[derive(Clone, Debug)]
pub(super) struct Announcement {
    pub(super) netns: Arc<Netns>,
    pub(super) ifindex: u32,
    pub(super) mac: [u8; 6],
    pub(super) addresses: Vec<IpAddr>,
}

/// How many threads let go of sockets: one that lets go waits for all processors, and many can wait for the same.
const CLOSERS: usize = 32;

/// Sends all rounds; takes as long as they are apart.
pub(super) fn announce(list: &[Announcement]) {
    let sockets = sockets(list);
    for round in 0..ROUNDS {
        if sockets.is_empty() {
            return;
        }
        if round > 0 {
            thread::sleep(INTERVAL);
        }
        for each in list {
            let Some(socket) = sockets.get(&each.netns.inode()) else {
                continue;
            };
            // A link without a carrier, or one that has just gone, tells nobody.
            if let Err(error) = send(socket, each) {
                tracing::debug!(%error, ifindex = each.ifindex, "the neighbours were not told");
            }
        }
    }
    close(sockets.into_values().collect());
}

/// One for each namespace, by its inode.
fn sockets(list: &[Announcement]) -> BTreeMap<u32, OwnedFd> {
    let mut sockets = BTreeMap::new();
    for each in list {
        if let Entry::Vacant(place) = sockets.entry(each.netns.inode()) {
            match each.netns.run(open) {
                Ok(Ok(socket)) => drop(place.insert(socket)),
                Ok(Err(error)) => tracing::debug!(%error, "the neighbours are not told"),
                Err(error) => tracing::debug!(%error, "the neighbours are not told"),
            }
        }
    }
    sockets
}

fn open() -> io::Result<OwnedFd> {
    // SAFETY: socket takes no pointers; what it gives is checked before it is used.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn close(mut sockets: Vec<OwnedFd>) {
    let share = sockets.len().div_ceil(CLOSERS);
    thread::scope(|scope| {
        while !sockets.is_empty() {
            let some = sockets.split_off(sockets.len().saturating_sub(share));
            // Where there is no thread to be had they are closed here.
            let _ = thread::Builder::new().spawn_scoped(scope, move || drop(some));
        }
    });
}

fn send(socket: &OwnedFd, each: &Announcement) -> io::Result<()> {
    for address in &each.addresses {
        let frame = match address {
            IpAddr::V4(ip) => arp(each.mac, *ip),
            IpAddr::V6(ip) => advertisement(each.mac, *ip),
        };
        transmit(socket, each.ifindex, &frame)?;
    }
    Ok(())
}

fn transmit(socket: &OwnedFd, ifindex: u32, frame: &[u8]) -> io::Result<()> {
    // SAFETY: a `sockaddr_ll` of zeros is a valid one.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
    to.sll_ifindex = i32::try_from(ifindex).unwrap_or_default();
    let length = u32::try_from(size_of_val(&to)).unwrap_or_default();
    // SAFETY: frame and address are alive during the call, with the lengths that are given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            libc::MSG_DONTWAIT,
            (&raw const to).cast(),
            length,
        )
    };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// An ARP request for the own address (RFC 5227, announcement).
fn arp(mac: [u8; 6], ip: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(mac);
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(ip.octets());
    frame.extend([0; 6]);
    frame.extend(ip.octets());
    frame
}

/// A neighbour advertisement to all nodes, with override (RFC 4861, 7.2.6).
fn advertisement(mac: [u8; 6], ip: Ipv6Addr) -> Vec<u8> {
    let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut body = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    body.extend(ip.octets());
    body.extend([2, 1]);
    body.extend(mac);
    let sum = checksum(ip, all, &body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = vec![0x33, 0x33, 0, 0, 0, 1];
    frame.extend(mac);
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]);
    frame.extend(ip.octets());
    frame.extend(all.octets());
    frame.extend(body);
    frame
}

/// The checksum of `ICMPv6` over its pseudo-header.
fn checksum(from: Ipv6Addr, to: Ipv6Addr, body: &[u8]) -> u16 {
    let length = u8::try_from(body.len()).unwrap_or_default();
    let words = [
        from.octets().as_slice(),
        &to.octets(),
        &[0, 0, 0, length, 0, 0, 0, 58],
        body,
    ]
    .concat();
    let mut sum: u32 = words
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or_default()])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    #[test]
    fn an_announcement_asks_for_its_own_address() {
        let frame = arp(MAC, Ipv4Addr::new(198, 51, 100, 9));
        assert_eq!(frame.len(), 42);
        assert_eq!(frame[28..32], frame[38..42]);
    }

    #[test]
    fn an_advertisement_sums_up() {
        let ip = "2001:db8::9".parse().expect("valid");
        let frame = advertisement(MAC, ip);
        assert_eq!(frame.len(), 14 + 40 + 32);
        // Over a body that carries its sum, the sum is 0.
        let all = "ff02::1".parse().expect("valid");
        assert_eq!(checksum(ip, all, &frame[54..]), 0);
    }
}
