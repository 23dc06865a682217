//! Receiving a datagram together with the namespace that it tells of, which comes beside it: neither `nix` nor the netlink
//! crates hand that on.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

use super::DATAGRAM;

/// What was received.
#[derive(Copy, Clone, Debug)]
pub struct Datagram<'a> {
    /// The messages.
    pub bytes: &'a [u8],
    /// The id of the namespace that they tell of, in the socket's namespace; none when it is that one.
    pub nsid: Option<i32>,
}

pub(super) fn receive<'a>(socket: BorrowedFd<'_>, buffer: &'a mut [u8]) -> io::Result<Datagram<'a>> {
    loop {
        let (length, nsid, sender) = receive_any(socket, buffer)?;
        // Whoever is root in a container may send to our socket there. Only the kernel has port 0.
        if sender == 0 {
            let bytes = &buffer[..length];
            return Ok(Datagram { bytes, nsid });
        }
    }
}

/// Length, namespace and the sender's port of the next datagram.
fn receive_any(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Option<i32>, u32)> {
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // Aligned as `cmsghdr` is.
    let mut beside = [0_u64; 8];
    // SAFETY: both are plain numbers and pointers, for which zeros are valid.
    let (mut sender, mut header): (libc::sockaddr_nl, libc::msghdr) = unsafe { std::mem::zeroed() };
    header.msg_name = (&raw mut sender).cast();
    header.msg_namelen = libc::socklen_t::try_from(size_of_val(&sender)).unwrap_or_default();
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = beside.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&beside);
    // SAFETY: every pointer in `header` leads to memory of the length beside it that lives until the call returns.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, 0) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    if header.msg_flags & libc::MSG_TRUNC != 0 {
        tracing::warn!("a netlink message of more than {DATAGRAM} bytes was cut short");
    }
    Ok((length.min(buffer.len()), nsid_beside(&header), sender.nl_pid))
}

fn nsid_beside(header: &libc::msghdr) -> Option<i32> {
    // SAFETY: `header` is as `recvmsg` left it, and the memory that it leads to is the caller's, who still holds it. The
    // macros stay within `msg_controllen`.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !next.is_null() {
        // SAFETY: not null, so it points at a whole header within the control data.
        let (level, kind, data) = unsafe { ((*next).cmsg_level, (*next).cmsg_type, libc::CMSG_DATA(next)) };
        if level == libc::SOL_NETLINK && kind == libc::NETLINK_LISTEN_ALL_NSID {
            // SAFETY: the kernel puts four bytes behind a header of this kind (`netlink_cmsg_listen_all_nsid`).
            return Some(unsafe { ptr::read_unaligned(data.cast()) });
        }
        // SAFETY: as for the first one.
        next = unsafe { libc::CMSG_NXTHDR(header, next) };
    }
    None
}
