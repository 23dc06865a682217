//! Where frames end that nobody waits for: a listener that takes each and keeps none. Without one the kernel would
//! give them up as unwanted, which costs more and is told as such.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::{
    net::if_::if_nametoindex,
    sys::socket::{AddressFamily, SockFlag, SockType, bind, socket},
};

use crate::{
    bpf::instruction,
    empty::Clsact,
    lab::Link,
    netns::Namespace,
    traffic::{EXPERIMENTAL, link_address},
};

/// Takes the frames of the experimental type that arrive, for as long as it lives.
#[derive(Debug)]
pub struct Sink {
    _socket: OwnedFd,
}

impl Sink {
    /// One at `link`.
    pub fn at(link: &Link) -> Result<Self> {
        link.namespace.run(|| {
            let index = if_nametoindex(link.name.as_str()).with_context(|| format!("there is no {}", link.name))?;
            Self::open(index).with_context(|| format!("could not listen on {}", link.name))
        })
    }

    /// One at every interface of a namespace, those to come as well.
    pub fn throughout(namespace: &Namespace) -> Result<Self> {
        namespace.run(|| Self::open(0).with_context(|| format!("could not listen in {}", namespace.label())))
    }

    fn open(index: u32) -> Result<Self> {
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
            .context("could not open a packet socket (is this root?)")?;
        keep_nothing(&socket)?;
        bind(socket.as_raw_fd(), &link_address(index, EXPERIMENTAL)?)?;
        Ok(Self { _socket: socket })
    }
}

/// `r0 = 4` (`TC_ACT_STOLEN`), `exit`: the frame is used up, and nobody says that it was given up.
const STEAL: [u64; 2] = [instruction(0xb7, [0, 0], 0, 4), instruction(0x95, [0, 0], 0, 0)];

/// Takes all frames that arrive at an interface before anybody in the kernel sees them, for as long as it lives: for
/// frames of a type that the kernel itself listens for.
#[derive(Debug)]
pub struct Swallow {
    _program: Clsact,
}

impl Swallow {
    /// One at `link`.
    pub fn at(link: &Link) -> Result<Self> {
        let program = Clsact::attach(link, &STEAL, &["ingress"])?;
        Ok(Self { _program: program })
    }
}

/// A filter of one instruction: return 0, so that no byte of a frame is kept.
fn keep_nothing(socket: &OwnedFd) -> Result<()> {
    let mut nothing = [libc::sock_filter {
        code: 6,
        jt: 0,
        jf: 0,
        k: 0,
    }];
    let filter = libc::sock_fprog {
        len: 1,
        filter: nothing.as_mut_ptr(),
    };
    let length = libc::socklen_t::try_from(size_of_val(&filter))?;
    // SAFETY: the option's value is a `sock_fprog` of `length` bytes; it and the one instruction that it points to live
    // during the call, which copies them.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            length,
        )
    };
    if result != 0 {
        return Err(std::io::Error::last_os_error()).context("the packet socket takes no filter");
    }
    Ok(())
}
