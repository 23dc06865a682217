//! What of netlink's notifications the kernel is to leave out, as a program of the classic packet filter. Pure.

use socket2::SockFilter;

/// Place of `nlmsg_type`: struct nlmsghdr is len u32, type u16, flags u16, seq u32, pid u32.
const TYPE: u32 = 4;

/// Place of `rtm_protocol`: behind the header, struct rtmsg is family, destination length, source length, tos, table,
/// protocol, a byte each.
const PROTOCOL: u32 = 16 + 5;

const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

fn jump(value: u32, then: u8, otherwise: u8) -> SockFilter {
    SockFilter::new(JUMP_IF_EQUAL, then, otherwise, value)
}

/// Lets pass what the kernel tells udev of modules that come and go: `add@/module/NAME`, `remove@/module/NAME`. Each
/// network device that is made brings three events and more.
pub(crate) fn modules() -> [SockFilter; 6] {
    let module = u32::from_be_bytes(*b"/mod");
    let behind = |action: &str| SockFilter::new(LOAD_WORD, 0, 0, u32::try_from(action.len()).unwrap_or_default());
    [
        behind("add@"),
        jump(module, 3, 0),
        behind("remove@"),
        jump(module, 1, 0),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
}

/// Lets pass what tells of no route, and what tells of one with the number `protocol`. A notification of a route comes
/// alone in its datagram.
pub(crate) fn routes_of(protocol: u8) -> [SockFilter; 7] {
    // The filter reads numbers as they are on the wire, netlink writes them as they are in memory.
    let kind = |kind: u16| u32::from(u16::from_be_bytes(kind.to_ne_bytes()));
    [
        SockFilter::new(LOAD_HALF, 0, 0, TYPE),
        jump(kind(libc::RTM_NEWROUTE), 1, 0),
        jump(kind(libc::RTM_DELROUTE), 0, 2),
        SockFilter::new(LOAD_BYTE, 0, 0, PROTOCOL),
        jump(protocol.into(), 0, 1),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use socket2::SockRef;

    use super::*;
    use crate::topology::netlink::request;

    #[test]
    fn only_modules_pass() {
        let (sender, receiver) = UnixDatagram::pair().expect("sockets");
        SockRef::from(&receiver)
            .attach_filter(&modules())
            .expect("a valid program");
        receiver.set_nonblocking(true).expect("a socket");
        let mut buffer = [0; 64];
        for (text, passes) in [
            ("add@/module/macvlan\0ACTION=add\0", true),
            ("remove@/module/macvlan\0ACTION=remove\0", true),
            ("add@/devices/virtual/net/module0\0", false),
            ("add@/devices/virtual/net/m0/queues/rx-0\0", false),
            ("remove@/devices/virtual/net/m0\0", false),
            ("add", false),
        ] {
            // A datagram that is left out is sent all the same.
            let _ = sender.send(text.as_bytes());
            assert_eq!(receiver.recv(&mut buffer).is_ok(), passes, "{text}");
        }
    }

    #[test]
    fn routes_of_others_are_left_out_and_all_else_passes() {
        let (sender, receiver) = UnixDatagram::pair().expect("sockets");
        SockRef::from(&receiver)
            .attach_filter(&routes_of(0x6d))
            .expect("a valid program");
        receiver.set_nonblocking(true).expect("a socket");
        // struct rtmsg up to the protocol, and what follows
        let route = |protocol: u8| [2, 24, 0, 0, 254, protocol, 0, 1, 0, 0, 0, 0];
        let mut buffer = [0; 64];
        for (kind, protocol, passes) in [
            (libc::RTM_NEWROUTE, 0x6d, true),
            (libc::RTM_DELROUTE, 0x6d, true),
            (libc::RTM_NEWROUTE, 186, false),
            (libc::RTM_DELROUTE, 3, false),
            (libc::RTM_DELLINK, 3, true),
            (libc::RTM_DELADDR, 3, true),
        ] {
            // A datagram that is left out is sent all the same.
            let _ = sender.send(&request(kind, 0, 0, &route(protocol)));
            assert_eq!(receiver.recv(&mut buffer).is_ok(), passes, "{kind} of {protocol}");
        }
        // One too short for what is looked at tells of nothing.
        let _ = sender.send(&request(libc::RTM_NEWROUTE, 0, 0, &[2, 24]));
        assert!(receiver.recv(&mut buffer).is_err());
    }
}
