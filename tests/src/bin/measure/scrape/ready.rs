//! A server that has its one answer ready: what is left of a scrape is the kernel's, and the client's.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    thread,
};

use anyhow::Result;
use macvlan_agent_tests::netns::Namespace;

/// Answers every request with `body`, one after the other, for as long as the process lives.
pub(super) fn serve(namespace: &Namespace, body: String) -> Result<SocketAddr> {
    let listener = namespace.run(|| Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?))?;
    let address = listener.local_addr()?;
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // Who does not take the answer whole says so itself.
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(head.as_bytes());
            let _ = stream.write_all(body.as_bytes());
        }
    });
    Ok(address)
}
