//! Where the agent listens: addresses of its own, or sockets that systemd opened.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail, ensure};
use listenfd::ListenFd;
use tokio::net::{TcpListener, TcpSocket};

/// Opens a listener for each address, or takes systemd's.
pub fn open(addresses: &[SocketAddr], systemd: bool) -> Result<Vec<TcpListener>> {
    if systemd {
        return inherited();
    }
    addresses.iter().map(|address| listen(*address)).collect()
}

fn inherited() -> Result<Vec<TcpListener>> {
    let mut sockets = ListenFd::from_env();
    ensure!(
        sockets.len() > 0,
        "--web.systemd-socket: systemd passed no socket (LISTEN_FDS); start this by a .socket unit, or leave the flag \
         out"
    );
    let mut listeners = Vec::new();
    for index in 0..sockets.len() {
        let listener = sockets
            .take_tcp_listener(index)
            .with_context(|| format!("--web.systemd-socket: socket {index} is no listening TCP socket"))?;
        let Some(listener) = listener else {
            bail!("--web.systemd-socket: socket {index} was taken twice");
        };
        listener.set_nonblocking(true)?;
        listeners.push(TcpListener::from_std(listener)?);
    }
    Ok(listeners)
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let attempt = |address: SocketAddr| {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(128)
    };
    let unspecified_v4 = SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), address.port());
    match attempt(address) {
        // `:PORT` means every address there is; a host may have no IPv6.
        Err(error)
            if address.ip() == std::net::Ipv6Addr::UNSPECIFIED && error.raw_os_error() == Some(libc::EAFNOSUPPORT) =>
        {
            attempt(unspecified_v4)
        }
        other => other,
    }
    .with_context(|| {
        format!(
            "cannot listen on {address}: is another agent or exporter there? Choose another with --web.listen-address"
        )
    })
}
