//! Frames, built byte by byte and sent by number, and a ping that needs no tool.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    net::if_::if_nametoindex,
    sys::{
        socket::{
            AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrLike, bind, recv,
            send as transmit, sendto, setsockopt, socket, sockopt::ReceiveTimeout,
        },
        time::TimeVal,
    },
};

use crate::{lab::Mac, netns::Namespace};

/// The ethertype of a frame that nobody answers ("local experimental", IEEE 802).
pub const EXPERIMENTAL: u16 = 0x88b5;
/// All of them.
pub const BROADCAST: Mac = Mac([0xff; 6]);

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const HEADER: usize = 14;
/// Length of the Ethernet header.
pub const ETHERNET: u64 = 14;
/// What Ethernet needs without its checksum; veth would let shorter frames pass, wires would not.
const SHORTEST: usize = 60;
/// Far below the 1,000 frames of `net.core.netdev_max_backlog`, the queue between the two ends of a veth.
const BURST: u32 = 50;
const ECHO_LENGTH: u8 = 56;
const ECHO_IDENTIFIER: u16 = 0x6d76;

/// A frame of `length` bytes, header included, checksum not.
///
/// # Panics
/// When `length` is not that of an Ethernet frame.
#[must_use]
pub fn frame(to: Mac, from: Mac, length: usize) -> Vec<u8> {
    assert!(
        (SHORTEST..=1514).contains(&length),
        "{length} bytes are no Ethernet frame"
    );
    ethernet(to, from, EXPERIMENTAL, &vec![0x5a; length - HEADER])
}

/// An ARP request to all: who has `target`? Tell `sender` at `from`.
#[must_use]
pub fn arp_request(from: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    ethernet(BROADCAST, from, ARP, &arp(1, from, sender, Mac([0; 6]), target))
}

/// An ARP reply to `to`: `sender` is at `from`.
#[must_use]
pub fn arp_reply(from: Mac, sender: Ipv4Addr, to: Mac, target: Ipv4Addr) -> Vec<u8> {
    ethernet(to, from, ARP, &arp(2, from, sender, to, target))
}

/// A neighbour solicitation to the solicited-node group: who has `target`? Tell `sender` at `from`.
#[must_use]
pub fn neighbour_solicitation(from: Mac, sender: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let [.., x, y, z] = target.octets();
    let mut group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
    group[13..].copy_from_slice(&[x, y, z]);
    let to = Mac([0x33, 0x33, 0xff, x, y, z]);
    ethernet(
        to,
        from,
        IPV6,
        &neighbour_discovery(135, sender, group.into(), target, from),
    )
}

/// A neighbour advertisement to `to`: `sender` is at `from`.
#[must_use]
pub fn neighbour_advertisement(from: Mac, sender: Ipv6Addr, to: Mac, receiver: Ipv6Addr) -> Vec<u8> {
    ethernet(
        to,
        from,
        IPV6,
        &neighbour_discovery(136, sender, receiver, sender, from),
    )
}

/// An ICMP echo request in IPv4.
#[must_use]
pub fn echo_request(to: Mac, from: Mac, source: Ipv4Addr, destination: Ipv4Addr, sequence: u16) -> Vec<u8> {
    let echo = echo(sequence);
    let length = 20 + ECHO_LENGTH;
    let mut packet = vec![0x45, 0, 0, length];
    packet.extend([0, 0, 0x40, 0, 64, 1, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let sum = checksum(&packet).to_be_bytes();
    packet[10..12].copy_from_slice(&sum);
    packet.extend(echo);
    ethernet(to, from, IPV4, &packet)
}

/// Sends `frame` `count` times from `interface`, never faster than the other end can take, and checks with the
/// kernel's own counter that all of them were sent.
pub fn send(namespace: &Namespace, interface: &str, frame: &[u8], count: u32) -> Result<()> {
    namespace.run(|| {
        let socket = open(interface)?;
        let before = counters(interface)?.transmitted;
        for sent in 1..=count {
            let length = transmit(socket.as_raw_fd(), frame, MsgFlags::empty())
                .with_context(|| format!("frame {sent} of {count} could not be sent from {interface}"))?;
            if length != frame.len() {
                bail!("{length} of {} bytes sent from {interface}", frame.len());
            }
            if sent % BURST == 0 {
                thread::sleep(Duration::from_millis(2));
            }
        }
        let moved = counters(interface)?.transmitted.saturating_sub(before);
        if moved < u64::from(count) {
            bail!("{interface} says that it sent {moved} of {count} frames");
        }
        Ok(())
    })
}

/// Switches an option of a packet socket on, by its number (`packet(7)`).
pub fn switch_on(socket: &impl AsRawFd, option: libc::c_int) -> Result<()> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on))?;
    // SAFETY: the option's value is an int of `length` bytes that lives during the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            (&raw const on).cast(),
            length,
        )
    };
    if result != 0 {
        let error = std::io::Error::last_os_error();
        return Err(error).with_context(|| format!("the packet socket does not take option {option}"));
    }
    Ok(())
}

/// Sends datagrams of UDP out of the stack of `namespace`, from one address to another; nobody waits for an answer.
pub fn datagrams(
    namespace: &Namespace,
    (source, destination): (Ipv4Addr, Ipv4Addr),
    port: u16,
    payload: u64,
    count: u64,
) -> Result<()> {
    namespace.run(|| {
        let socket = UdpSocket::bind((source, 0)).with_context(|| format!("could not bind to {source}"))?;
        let payload = vec![0x5a; usize::try_from(payload)?];
        for _ in 0..count {
            socket
                .send_to(&payload, (destination, port))
                .with_context(|| format!("could not send to {destination}"))?;
        }
        Ok(())
    })
}

/// Asks `destination` for an echo `count` times, from `namespace`, each time waiting up to `timeout`; returns how many
/// answers came. The kernel resolves the neighbour, so the first thing on the wire is an ARP request.
pub fn ping(namespace: &Namespace, destination: Ipv4Addr, count: u16, timeout: Duration) -> Result<u16> {
    namespace.run(|| {
        let socket = socket(
            AddressFamily::Inet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::Icmp,
        )
        .context("could not open an ICMP socket (is this root?)")?;
        let address = SockaddrIn::from(std::net::SocketAddrV4::new(destination, 0));
        let mut replies = 0;
        for sequence in 0..count {
            match sendto(socket.as_raw_fd(), &echo(sequence), &address, MsgFlags::empty()) {
                Ok(_) if answered(&socket, destination, sequence, timeout)? => replies += 1,
                Ok(_) | Err(Errno::EHOSTUNREACH) => {}
                Err(error) => return Err(error).with_context(|| format!("could not ping {destination}")),
            }
        }
        Ok(replies)
    })
}

fn answered(socket: &OwnedFd, from: Ipv4Addr, sequence: u16, timeout: Duration) -> Result<bool> {
    let deadline = Instant::now() + timeout;
    let mut packet = [0; 2048];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        // At least one microsecond: zero means for ever.
        let micros = i64::try_from(left.as_micros()).unwrap_or(i64::MAX).max(1);
        setsockopt(
            socket,
            ReceiveTimeout,
            &TimeVal::new(micros / 1_000_000, micros % 1_000_000),
        )?;
        let length = match recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            Ok(length) => length,
            Err(Errno::EAGAIN | Errno::EINTR | Errno::EHOSTUNREACH) => continue,
            Err(error) => return Err(error).context("could not receive"),
        };
        let packet = &packet[..length];
        let Some(icmp) = packet
            .first()
            .and_then(|first| packet.get(usize::from(first & 0x0f) * 4..))
        else {
            continue;
        };
        let wanted = [ECHO_IDENTIFIER.to_be_bytes(), sequence.to_be_bytes()].concat();
        if packet.get(12..16) == Some(from.octets().as_slice())
            && icmp.first() == Some(&0)
            && icmp.get(4..8) == Some(wanted.as_slice())
        {
            return Ok(true);
        }
    }
}

pub(crate) fn ethernet(to: Mac, from: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [to.0, from.0].concat();
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame.resize(frame.len().max(SHORTEST), 0);
    frame
}

fn arp(operation: u16, from: Mac, sender: Ipv4Addr, to: Mac, target: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4];
    packet.extend(operation.to_be_bytes());
    packet.extend(from.0);
    packet.extend(sender.octets());
    packet.extend(to.0);
    packet.extend(target.octets());
    packet
}

/// RFC 4861, with the option that says the sender's MAC.
fn neighbour_discovery(kind: u8, source: Ipv6Addr, destination: Ipv6Addr, target: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let (flags, option) = if kind == 136 { (0x60, 2) } else { (0, 1) };
    let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    message.extend(target.octets());
    // Detection of duplicate addresses goes without.
    if !source.is_unspecified() {
        message.extend([option, 1]);
        message.extend(mac.0);
    }
    let length = u8::try_from(message.len()).expect("at most 32 bytes");
    let addresses = [source.octets(), destination.octets()].concat();
    let sum = checksum(&[addresses.as_slice(), &[0, 0, 0, length, 0, 0, 0, 58], &message].concat());
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    [&[0x60, 0, 0, 0, 0, length, 58, 255], addresses.as_slice(), &message].concat()
}

fn echo(sequence: u16) -> Vec<u8> {
    let mut message = vec![8, 0, 0, 0];
    message.extend(ECHO_IDENTIFIER.to_be_bytes());
    message.extend(sequence.to_be_bytes());
    message.resize(usize::from(ECHO_LENGTH), 0x5a);
    let sum = checksum(&message).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    message
}

/// The internet checksum of an even number of bytes.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}

/// A socket for whole frames on `interface`, which receives none.
pub fn open(interface: &str) -> Result<OwnedFd> {
    let index = if_nametoindex(interface).with_context(|| format!("there is no {interface}"))?;
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
        .context("could not open a packet socket (is this root?)")?;
    bind(socket.as_raw_fd(), &link_address(index, 0)?).with_context(|| format!("could not bind to {interface}"))?;
    Ok(socket)
}

pub(crate) fn link_address(index: u32, protocol: u16) -> Result<LinkAddr> {
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET)?,
        // With none the socket receives nothing, and the kernel (since 5.1) reads the ethertype from the frame it sends.
        sll_protocol: protocol.to_be(),
        sll_ifindex: i32::try_from(index)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>())?;
    // SAFETY: `address` is an initialised `sockaddr_ll` of `length` bytes that says so in its family, and it is only
    // read during the call.
    let address = unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) };
    address.context("not a link address")
}

/// The kernel's own counts of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// `rx_packets`
    pub received: u64,
    /// `rx_errors`
    pub receive_errors: u64,
    /// `rx_dropped`
    pub receive_dropped: u64,
    /// `multicast`
    pub multicast: u64,
    /// `tx_packets`
    pub transmitted: u64,
    /// `tx_dropped`
    pub transmit_dropped: u64,
}

impl Counters {
    /// What was counted since.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            received: self.received - before.received,
            receive_errors: self.receive_errors - before.receive_errors,
            receive_dropped: self.receive_dropped - before.receive_dropped,
            multicast: self.multicast - before.multicast,
            transmitted: self.transmitted - before.transmitted,
            transmit_dropped: self.transmit_dropped - before.transmit_dropped,
        }
    }
}

/// They, of an interface in the namespace that the thread is in.
pub fn counters(interface: &str) -> Result<Counters> {
    let table = fs::read_to_string("/proc/thread-self/net/dev").context("could not read the interfaces' counters")?;
    let counters = table
        .lines()
        .find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'))
        .with_context(|| format!("{interface} has no counters"))?;
    let columns: Vec<u64> = counters
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .context("a counter that is no number")?;
    let [
        _,
        received,
        receive_errors,
        receive_dropped,
        _,
        _,
        _,
        multicast,
        _,
        transmitted,
        _,
        transmit_dropped,
        ..,
    ] = columns[..]
    else {
        bail!("{} columns", columns.len());
    };
    Ok(Counters {
        received,
        receive_errors,
        receive_dropped,
        multicast,
        transmitted,
        transmit_dropped,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_the_length_asked_for() {
        let frame = frame(BROADCAST, Mac([2; 6]), 200);
        assert_eq!(frame.len(), 200);
        assert_eq!(frame[12..14], [0x88, 0xb5]);
    }

    #[test]
    fn an_arp_request_is_laid_out_as_rfc_826_says() {
        let frame = arp_request(
            Mac([2, 0, 0, 0, 0, 7]),
            Ipv4Addr::new(10, 0, 0, 7),
            Ipv4Addr::new(10, 0, 0, 1),
        );
        assert_eq!(frame.len(), SHORTEST);
        assert_eq!(frame[12..22], [8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(frame[28..32], [10, 0, 0, 7]);
        assert_eq!(frame[38..42], [10, 0, 0, 1]);
    }

    #[test]
    fn a_checksum_over_itself_is_zero() {
        assert_eq!(checksum(&echo(3)), 0);
        let frame = echo_request(BROADCAST, Mac([2; 6]), Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, 0);
        assert_eq!(checksum(&frame[14..34]), 0);
    }
}
