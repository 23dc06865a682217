//! Addresses as netlink tells them: what we take from an `RTM_NEWADDR` or `RTM_DELADDR`. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::link::{attributes, number};

/// An address on a link. One IP may be there several times, with different prefixes or peers.
#[derive(Copy, Clone, Ord, PartialOrd, Eq, PartialEq, Hash, Debug)]
pub(super) struct Address {
    /// The index of its link.
    pub(super) ifindex: u32,
    /// The link's own address.
    pub(super) ip: IpAddr,
    /// The other end's on a point-to-point link, else the same.
    pub(super) peer: IpAddr,
    /// How many bits of the peer's are the network's.
    pub(super) prefix: u8,
}

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

/// Reads the payload of an `RTM_NEWADDR` or `RTM_DELADDR`. None for other families than IPv4 and IPv6.
pub(super) fn parse(payload: &[u8]) -> Option<Address> {
    // struct ifaddrmsg: family u8, prefixlen u8, flags u8, scope u8, index u32
    let (header, rest) = payload.split_at_checked(8)?;
    let family = i32::from(header[0]);
    let find = |wanted| {
        let (_, value) = attributes(rest).find(|&(kind, _)| kind == wanted)?;
        match family {
            libc::AF_INET => <[u8; 4]>::try_from(value).ok().map(|v| IpAddr::V4(Ipv4Addr::from(v))),
            libc::AF_INET6 => <[u8; 16]>::try_from(value).ok().map(|v| IpAddr::V6(Ipv6Addr::from(v))),
            _ => None,
        }
    };
    let (address, local) = (find(IFA_ADDRESS), find(IFA_LOCAL));
    let ip = local.or(address)?;
    Some(Address {
        ifindex: number(&header[4..])?,
        ip,
        peer: address.unwrap_or(ip),
        prefix: header[1],
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;
    use netlink_packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressMessage},
    };

    use super::*;

    fn bytes(family: AddressFamily, attributes: Vec<AddressAttribute>) -> Vec<u8> {
        let mut message = AddressMessage::default();
        message.header.family = family;
        message.header.index = 7;
        message.header.prefix_len = 24;
        message.attributes = attributes;
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    #[test]
    fn the_links_own_end_is_the_address() {
        let (own, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let attributes = vec![AddressAttribute::Address(other), AddressAttribute::Local(own)];
        let address = parse(&bytes(AddressFamily::Inet, attributes)).unwrap();
        assert_eq!(
            address,
            Address {
                ifindex: 7,
                ip: own,
                peer: other,
                prefix: 24
            }
        );
    }

    #[test]
    fn ipv6_has_one_end_as_a_rule() {
        let own = "2001:db8::1".parse().unwrap();
        let address = parse(&bytes(AddressFamily::Inet6, vec![AddressAttribute::Address(own)])).unwrap();
        assert_eq!((address.ip, address.peer), (own, own));
    }

    #[test]
    fn damage_and_other_families_are_none() {
        let mut message = bytes(
            AddressFamily::Inet,
            vec![AddressAttribute::Local("192.0.2.1".parse().unwrap())],
        );
        assert!(parse(&message[..message.len() - 1]).is_none());
        message[0] = 16;
        assert!(parse(&message).is_none());
        assert!(parse(&[]).is_none());
    }
}
