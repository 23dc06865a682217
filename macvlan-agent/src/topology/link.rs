//! Links as netlink tells them: what we take from an `RTM_NEWLINK` or `RTM_DELLINK`.
//!
//! Pure: bytes in, facts out. The bytes are read here and not by `netlink-packet-route`, for that refuses a link whose
//! name is not UTF-8, which the kernel allows: one such name in a container would hide the rest of the datagram.

use std::fmt;

use super::netns::printable;

/// A link's identity: interface indexes are per namespace.
#[derive(Copy, Clone, Ord, PartialOrd, Eq, PartialEq, Hash, Debug)]
pub struct LinkKey {
    /// The inode of the link's namespace.
    pub netns: u32,
    /// The link's index there.
    pub ifindex: u32,
}

/// A macvlan's mode.
#[derive(Copy, Clone, Ord, PartialOrd, Eq, PartialEq, Hash, Debug)]
pub enum Mode {
    /// `MACVLAN_MODE_PRIVATE`: siblings never reach each other.
    Private,
    /// `MACVLAN_MODE_VEPA`: siblings reach each other by way of the switch, if it reflects.
    Vepa,
    /// `MACVLAN_MODE_BRIDGE`: siblings reach each other directly.
    Bridge,
    /// `MACVLAN_MODE_PASSTHRU`: one sub-interface takes the whole parent.
    Passthru,
    /// `MACVLAN_MODE_SOURCE`: takes frames by their source MAC.
    Source,
}

impl Mode {
    /// The kernel's number, `enum macvlan_mode` of `linux/if_link.h`.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Private => 1,
            Self::Vepa => 2,
            Self::Bridge => 4,
            Self::Passthru => 8,
            Self::Source => 16,
        }
    }

    fn from_number(number: u32) -> Option<Self> {
        [Self::Private, Self::Vepa, Self::Bridge, Self::Passthru, Self::Source]
            .into_iter()
            .find(|mode| u32::from(mode.number()) == number)
    }
}

impl Mode {
    /// As `ip link` prints it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::Vepa => "vepa",
            Self::Bridge => "bridge",
            Self::Passthru => "passthru",
            Self::Source => "source",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// Which of the two devices a sub-interface is.
#[derive(Copy, Clone, Ord, PartialOrd, Eq, PartialEq, Hash, Debug)]
pub enum Kind {
    /// An interface.
    Macvlan,
    /// An interface with a character device in the place of a stack.
    Macvtap,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Macvlan => "macvlan",
            Self::Macvtap => "macvtap",
        })
    }
}

/// What only a macvlan or macvtap has.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Macvlan {
    /// Macvlan or macvtap.
    pub kind: Kind,
    /// Its mode.
    pub mode: Mode,
    /// In mode source, the parent does not see what this one takes (`MACVLAN_FLAG_NODST`).
    pub keeps_source: bool,
    /// The broadcast queue's length that this sub-interface asks for; since Linux 5.11.
    pub queue_asked: Option<u32>,
    /// The length in use, the longest that any sub-interface of the parent asks for; since Linux 5.11.
    pub queue_used: Option<u32>,
}

/// A link, as one message tells it.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct LinkMessage {
    /// Its index.
    pub ifindex: u32,
    /// Its name, made text by [`printable`].
    pub name: String,
    /// Its address, when that is a MAC.
    pub mac: Option<[u8; 6]>,
    /// Set up by an administrator (`IFF_UP`).
    pub up: bool,
    /// `IFLA_OPERSTATE`, RFC 2863: 6 is up, 2 down, 0 unknown.
    pub oper_state: u8,
    /// Its MTU.
    pub mtu: u32,
    /// How many ask it to be promiscuous. The kernel tells when this becomes 0 or ceases to be, not other changes.
    pub promiscuity: u32,
    /// `ARPHRD_*`: 1 is Ethernet.
    pub hardware: u16,
    /// `IFLA_INFO_KIND`: what `ip link` calls its type. Links of hardware have none.
    pub kind: Option<String>,
    /// `IFLA_LINK`: the link that this one stands on.
    pub link: Option<u32>,
    /// `IFLA_LINK_NETNSID`: where that is. None: in the same namespace.
    pub link_nsid: Option<i32>,
    /// Whether that is an id of the asker's namespace, as in dumps of another one, and not of the link's own.
    pub nsid_is_askers: bool,
    /// What only a macvlan or macvtap has.
    pub macvlan: Option<Macvlan>,
    /// Of an `RTM_DELLINK`: the link did not end, it moved to another namespace (`IFLA_NEW_NETNSID` is there).
    pub new_netns: bool,
    /// Its index there (`IFLA_NEW_IFINDEX`).
    pub new_ifindex: Option<u32>,
}

/// `MACVLAN_FLAG_NODST`.
const NODST: u16 = 2;

/// `linux/if_link.h`.
mod ifla {
    pub(super) const ADDRESS: u16 = 1;
    pub(super) const IFNAME: u16 = 3;
    pub(super) const MTU: u16 = 4;
    pub(super) const LINK: u16 = 5;
    pub(super) const OPERSTATE: u16 = 16;
    pub(super) const LINKINFO: u16 = 18;
    pub(super) const PROMISCUITY: u16 = 30;
    pub(super) const LINK_NETNSID: u16 = 37;
    pub(super) const NEW_NETNSID: u16 = 45;
    pub(super) const NEW_IFINDEX: u16 = 49;
    pub(super) const INFO_KIND: u16 = 1;
    pub(super) const INFO_DATA: u16 = 2;
    pub(super) const MACVLAN_MODE: u16 = 1;
    pub(super) const MACVLAN_FLAGS: u16 = 2;
    pub(super) const MACVLAN_BC_QUEUE_LEN: u16 = 7;
    pub(super) const MACVLAN_BC_QUEUE_LEN_USED: u16 = 8;
}

/// Reads the payload of an `RTM_NEWLINK` or `RTM_DELLINK`. None when it does not describe a whole link: bridges tell of
/// their ports with messages of family `AF_BRIDGE` (an `RTM_DELLINK` there means "left the bridge"), Wi-Fi of its events
/// with messages that hold little more than a name.
#[must_use]
pub fn parse(payload: &[u8]) -> Option<LinkMessage> {
    // struct ifinfomsg: family u8, pad u8, type u16, index i32, flags u32, change u32
    let (header, rest) = payload.split_at_checked(16)?;
    if header[0] != 0 {
        return None;
    }
    let mut message = LinkMessage {
        ifindex: number(&header[4..])?,
        name: String::new(),
        mac: None,
        up: number(&header[8..])? & libc::IFF_UP.cast_unsigned() != 0,
        oper_state: 0,
        mtu: 0,
        promiscuity: 0,
        hardware: u16::from_ne_bytes([header[2], header[3]]),
        kind: None,
        link: None,
        link_nsid: None,
        nsid_is_askers: false,
        macvlan: None,
        new_netns: false,
        new_ifindex: None,
    };
    let (mut named, mut whole) = (false, false);
    for (kind, value) in attributes(rest) {
        match kind {
            ifla::ADDRESS => message.mac = value.try_into().ok(),
            ifla::IFNAME => (message.name, named) = (text(value), true),
            ifla::MTU => (message.mtu, whole) = (number(value)?, true),
            ifla::LINK => message.link = number(value).filter(|&link| link != 0),
            ifla::OPERSTATE => message.oper_state = value.first().copied()?,
            ifla::LINKINFO => (message.kind, message.macvlan) = link_info(value),
            ifla::PROMISCUITY => message.promiscuity = number(value)?,
            ifla::LINK_NETNSID => message.link_nsid = Some(number(value)?.cast_signed()),
            ifla::NEW_NETNSID => message.new_netns = true,
            ifla::NEW_IFINDEX => message.new_ifindex = number(value),
            _ => {}
        }
    }
    (named && whole).then_some(message)
}

fn link_info(value: &[u8]) -> (Option<String>, Option<Macvlan>) {
    let find = |wanted| {
        attributes(value)
            .find(|&(kind, _)| kind == wanted)
            .map(|(_, value)| value)
    };
    let Some(name) = find(ifla::INFO_KIND).map(text) else {
        return (None, None);
    };
    let kind = match name.as_str() {
        "macvlan" => Kind::Macvlan,
        "macvtap" => Kind::Macvtap,
        _ => return (Some(name), None),
    };
    let data = find(ifla::INFO_DATA).unwrap_or_default();
    let raw = |wanted| {
        attributes(data)
            .find(|&(kind, _)| kind == wanted)
            .map(|(_, value)| value)
    };
    let find = |wanted| raw(wanted).and_then(number);
    let flags = raw(ifla::MACVLAN_FLAGS)
        .and_then(|value| value.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes)))
        .unwrap_or(0);
    let macvlan = find(ifla::MACVLAN_MODE)
        .and_then(Mode::from_number)
        .map(|mode| Macvlan {
            kind,
            mode,
            keeps_source: mode == Mode::Source && flags & NODST != 0,
            queue_asked: find(ifla::MACVLAN_BC_QUEUE_LEN),
            queue_used: find(ifla::MACVLAN_BC_QUEUE_LEN_USED),
        });
    (Some(name), macvlan)
}

/// The attributes of a message or of a nested attribute, up to the first that is damaged.
pub(crate) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = rest.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        // The upper two bits are NLA_F_NESTED and NLA_F_NET_BYTEORDER.
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub(crate) fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn text(value: &[u8]) -> String {
    printable(value.split(|&byte| byte == 0).next().unwrap_or_default())
}

#[cfg(test)]
mod tests;
