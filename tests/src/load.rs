//! What a test sends: frames of several kinds, and how many frames, skbs and bytes that is to whom.

use std::{os::fd::AsRawFd, thread, time::Duration};

use anyhow::{Context, Result};
use nix::sys::socket::{MsgFlags, send as transmit};

use crate::{
    lab::Mac,
    netns::Namespace,
    traffic::{self, ETHERNET, checksum, ethernet, frame},
};

/// Frames that are alike, as everyone counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Burst {
    /// The kernel's packets.
    pub skbs: u64,
    /// How many frames of the wire each of them stands for.
    pub segments: u64,
    /// Bytes of all frames, each with its headers.
    pub wire_bytes: u64,
    /// `skb->len` and the Ethernet header, of all skbs: what macvlan counts. A VLAN tag stands beside the skb.
    pub kernel_bytes: u64,
    /// Bytes of VLAN tags where they are still in the frame: when it is sent.
    pub inner_tags: u64,
    /// Fragments that are held where fragments are put together.
    pub held: u64,
    /// The same bytes as `kernel_bytes` once they are put together.
    whole_bytes: u64,
}

impl Burst {
    /// `count` frames of `length` bytes.
    #[must_use]
    pub const fn plain(count: u64, length: u64) -> Self {
        Self {
            skbs: count,
            segments: 1,
            wire_bytes: count * length,
            kernel_bytes: count * length,
            inner_tags: 0,
            held: 0,
            whole_bytes: count * length,
        }
    }

    /// Frames on the wire.
    #[must_use]
    pub const fn frames(&self) -> u64 {
        self.skbs * self.segments
    }

    /// What macvlan counts where fragments are put together.
    #[must_use]
    pub const fn whole_bytes(&self) -> u64 {
        self.whole_bytes
    }
}

/// A kind of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Of this length, of a type that nobody answers.
    Plain(u16),
    /// The same with a VLAN tag of 802.1Q more.
    Tagged(u16),
    /// TCP over IPv4 with this many bytes of payload, to be cut into segments by whoever has to.
    Gso(u16),
    /// UDP over IPv4 in three fragments.
    Fragments,
}

const SEGMENT: u16 = 1448;
/// Ethernet, IPv4 and TCP without options.
const TCP_HEADERS: u16 = 14 + 20 + 20;
/// Payload of IPv4 in the fragments; all but the last are multiples of eight.
const FRAGMENTS: [u16; 3] = [1480, 1480, 48];
const TAG: u64 = 4;
const VLAN: u16 = 77;

impl Load {
    /// What `count` times this is.
    #[must_use]
    pub fn burst(self, count: u64) -> Burst {
        match self {
            Self::Plain(length) => Burst::plain(count, length.into()),
            Self::Tagged(length) => Burst {
                wire_bytes: count * (u64::from(length) + TAG),
                inner_tags: count * TAG,
                ..Burst::plain(count, length.into())
            },
            Self::Gso(payload) => {
                let segments = u64::from(payload.div_ceil(SEGMENT));
                let length = u64::from(TCP_HEADERS) + u64::from(payload);
                Burst {
                    segments,
                    wire_bytes: count * (length + (segments - 1) * u64::from(TCP_HEADERS)),
                    ..Burst::plain(count, length)
                }
            }
            Self::Fragments => {
                let number = FRAGMENTS.len() as u64;
                let payload: u64 = FRAGMENTS.iter().map(|&length| u64::from(length)).sum();
                let bytes = payload + number * (ETHERNET + 20);
                Burst {
                    skbs: count * number,
                    held: count * (number - 1),
                    whole_bytes: count * (payload + 20 + ETHERNET),
                    ..Burst::plain(1, count * bytes)
                }
            }
        }
    }

    /// The frames of one of them; `number` tells it from others.
    fn frames(self, to: Mac, from: Mac, number: u16) -> Vec<Vec<u8>> {
        match self {
            Self::Plain(length) => vec![frame(to, from, length.into())],
            Self::Tagged(length) => {
                let mut tagged = frame(to, from, length.into());
                let tag = [0x8100_u16.to_be_bytes(), VLAN.to_be_bytes()].concat();
                tagged.splice(12..12, tag);
                vec![tagged]
            }
            Self::Gso(payload) => {
                let mut packet = ipv4(6, payload + 20, number, 0);
                let mut tcp = vec![0; 20];
                tcp[..4].copy_from_slice(&[0, 9, 0, 9]);
                tcp[12..16].copy_from_slice(&[0x50, 0x10, 0xff, 0xff]);
                packet.extend(tcp);
                packet.extend(vec![0x5a; payload.into()]);
                vec![ethernet(to, from, 0x0800, &packet)]
            }
            Self::Fragments => {
                let (mut place, last) = (0, FRAGMENTS.len() - 1);
                let each = FRAGMENTS.iter().enumerate().map(|(at, &length)| {
                    let more = if at < last { 0x2000 } else { 0 };
                    let mut packet = ipv4(17, length, number, more | (place / 8));
                    place += length;
                    packet.extend(vec![0; length.into()]);
                    ethernet(to, from, 0x0800, &packet)
                });
                each.collect()
            }
        }
    }

    /// Sends it `count` times from `interface`.
    pub fn send(self, namespace: &Namespace, interface: &str, to: Mac, from: Mac, count: u64) -> Result<()> {
        namespace.run(|| {
            let socket = traffic::open(interface)?;
            let offload = matches!(self, Self::Gso(_));
            if offload {
                // A `struct virtio_net_hdr` before each frame.
                traffic::switch_on(&socket, libc::PACKET_VNET_HDR)?;
            }
            for number in 0..count {
                for frame in self.frames(to, from, u16::try_from(number)?) {
                    let header = if offload { offload_header() } else { Vec::new() };
                    transmit(socket.as_raw_fd(), &[header, frame].concat(), MsgFlags::empty())
                        .with_context(|| format!("{self:?} could not be sent from {interface}"))?;
                }
                if number % 32 == 31 {
                    thread::sleep(Duration::from_millis(2));
                }
            }
            Ok(())
        })
    }
}

/// What a socket with `PACKET_VNET_HDR` sends to let one skb of TCP with `payload` bytes arrive, which stands for as many
/// frames as that makes: like one that was merged on reception (GRO).
#[must_use]
pub fn merged(to: Mac, from: Mac, payload: u16) -> Vec<u8> {
    let frames = Load::Gso(payload).frames(to, from, 0);
    [vec![offload_header()], frames].concat().concat()
}

/// A header of 20 bytes: from one documentation network to another, which nobody answers.
fn ipv4(protocol: u8, payload: u16, identification: u16, fragment: u16) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend((payload + 20).to_be_bytes());
    header.extend(identification.to_be_bytes());
    header.extend(fragment.to_be_bytes());
    header.extend([64, protocol, 0, 0]);
    header.extend([192, 0, 2, 1, 198, 51, 100, 1]);
    let sum = checksum(&header).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    header
}

/// `struct virtio_net_hdr`: a TCP segment to be cut, with a checksum to be made.
fn offload_header() -> Vec<u8> {
    let numbers = [TCP_HEADERS, SEGMENT, 14 + 20, 16];
    [[1, 1]]
        .into_iter()
        .chain(numbers.map(u16::to_ne_bytes))
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_what_is_sent() {
        let (to, from) = (Mac([2; 6]), Mac([4; 6]));
        for load in [Load::Plain(200), Load::Tagged(200), Load::Fragments] {
            let frames: Vec<_> = (0..3).flat_map(|number| load.frames(to, from, number)).collect();
            let burst = load.burst(3);
            let bytes: usize = frames.iter().map(Vec::len).sum();
            assert_eq!(
                (frames.len() as u64, bytes as u64),
                (burst.frames(), burst.wire_bytes),
                "{load:?}"
            );
        }
        let burst = Load::Gso(3_000).burst(2);
        assert_eq!((burst.skbs, burst.frames()), (2, 6));
        assert_eq!(burst.wire_bytes, 2 * (3_000 + 3 * 54));
        assert_eq!(
            Load::Gso(3_000).frames(to, from, 0)[0].len() as u64 * 2,
            burst.kernel_bytes
        );
    }
}
