//! When a module of macvlan's comes or goes, as the kernel tells udev: a module that is loaded again makes no link, so
//! nothing else would be heard of it (`kobject_uevent`, `lib/kobject_uevent.c`).

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};
use socket2::SockRef;
use tokio::io::{Interest, unix::AsyncFd};

use crate::packet_filter;

/// The kernel's own events; udev repeats them in another group.
const KERNEL: u32 = 1;

/// A listener.
pub struct ModuleEvents(AsyncFd<OwnedFd>);

impl ModuleEvents {
    /// Listens from now on. Inside a runtime.
    pub fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkKObjectUEvent,
        )?;
        // Before it hears of anything.
        SockRef::from(&socket).attach_filter(&packet_filter::modules())?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL))?;
        // SAFETY: an `OwnedFd` owns its descriptor, never gives another one, and closes it only when dropped.
        unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }
            .map(Self)
            .map_err(Into::into)
    }

    /// Waits until macvlan came or went.
    pub async fn changed(&self) {
        let mut buffer = [0; 2048];
        loop {
            let Ok(mut ready) = self.0.readable().await else {
                return std::future::pending().await;
            };
            match recv(self.0.get_ref().as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) if concerns_macvlan(buffer.get(..length).unwrap_or_default()) => return,
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                // Events were lost: it may have been one of ours.
                Err(nix::errno::Errno::ENOBUFS) => return,
                Err(_) => ready.clear_ready(),
            }
        }
    }
}

/// `ACTION@/module/NAME`, a zero, and what udev wants besides.
fn concerns_macvlan(event: &[u8]) -> bool {
    let head = event.split(|&byte| byte == 0).next().unwrap_or_default();
    head.ends_with(b"@/module/macvlan")
}

#[cfg(test)]
mod tests {
    use super::concerns_macvlan;

    #[test]
    fn only_the_module_itself_counts() {
        assert!(concerns_macvlan(b"add@/module/macvlan\0ACTION=add\0"));
        assert!(concerns_macvlan(b"remove@/module/macvlan"));
        assert!(!concerns_macvlan(b"add@/module/macvlan_other\0"));
        assert!(!concerns_macvlan(b"add@/devices/virtual/net/macvlan0\0"));
        assert!(!concerns_macvlan(b""));
    }
}
