//! A transfer over TCP between two namespaces, and how many segments its sender says that it was.

use std::{
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::mpsc,
    thread,
};

use anyhow::{Context, Result, ensure};

use crate::netns::Namespace;

/// What the sender sent, by its own count (`struct tcp_info`, RFC 4898).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// `tcpi_segs_out`: all of them, those without data too.
    pub segments: u64,
    /// `tcpi_bytes_sent`: payload, what was sent again included.
    pub payload: u64,
}

/// One end.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// Where it is.
    pub namespace: &'a Namespace,
    /// Its address.
    pub address: IpAddr,
}

/// Places in `struct tcp_info`, `include/uapi/linux/tcp.h`.
const SEGMENTS_OUT: usize = 136;
const BYTES_SENT: usize = 200;

/// Sends `bytes` from one end to the other.
///
/// # Panics
/// When the receiver did.
pub fn transfer(from: End<'_>, to: End<'_>, bytes: usize) -> Result<Sent> {
    let (announce, announced) = mpsc::channel();
    thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            to.namespace.run(|| {
                let listener = TcpListener::bind((to.address, 0))?;
                announce.send(listener.local_addr()?)?;
                let mut stream = listener.accept()?.0;
                let mut all = Vec::new();
                stream.read_to_end(&mut all)?;
                Ok(all.len())
            })
        });
        let to = announced.recv().context("the receiver does not listen")?;
        let sent = from.namespace.run(|| send(to, bytes))?;
        let arrived = receiver.join().expect("the receiver does not panic")?;
        ensure!(arrived == bytes, "{arrived} of {bytes} bytes were received");
        Ok(sent)
    })
}

fn send(to: SocketAddr, bytes: usize) -> Result<Sent> {
    let mut stream = TcpStream::connect(to).with_context(|| format!("could not connect to {to}"))?;
    stream.write_all(&vec![0x5a; bytes])?;
    stream.shutdown(Shutdown::Write)?;
    // The other end's last word: after its acknowledgement nothing is sent any more.
    stream.read_to_end(&mut Vec::new())?;
    sent(&stream)
}

fn sent(stream: &TcpStream) -> Result<Sent> {
    let mut info = [0_u8; 256];
    let mut length = libc::socklen_t::try_from(info.len())?;
    // SAFETY: the kernel writes at most `length` bytes into `info`, and how many it wrote into `length`; both live during
    // the call.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    ensure!(result == 0, "no TCP_INFO: {}", std::io::Error::last_os_error());
    let known = info.get(..usize::try_from(length)?).context("more than asked for")?;
    let segments = known
        .get(SEGMENTS_OUT..SEGMENTS_OUT + 4)
        .context("a kernel before 4.2")?;
    let payload = known.get(BYTES_SENT..BYTES_SENT + 8).context("a kernel before 4.19")?;
    Ok(Sent {
        segments: u32::from_ne_bytes(segments.try_into()?).into(),
        payload: u64::from_ne_bytes(payload.try_into()?),
    })
}
