//! A client that costs little: it takes an answer into memory that is there already, and looks at it afterwards.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use macvlan_agent_tests::{
    exposition::{Response, read_response},
    netns::Namespace,
};

/// Longer than any answer here.
const MOST: usize = 256 << 20;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_mins(3);

/// How often is tried to reach a server that is just starting.
const RETRY: Duration = Duration::from_millis(1);

pub(super) struct Client {
    namespace: Namespace,
    memory: Vec<u8>,
}

/// An answer, and how long it took from the connection on.
pub(super) struct Answer<'a> {
    pub(super) took: Duration,
    bytes: &'a [u8],
}

impl Answer<'_> {
    pub(super) fn milliseconds(&self) -> f64 {
        self.took.as_secs_f64() * 1e3
    }

    /// Lines that are samples.
    pub(super) fn lines(&self) -> Result<usize> {
        let text = self.read()?.body;
        Ok(text.lines().filter(|line| !line.starts_with('#')).count())
    }

    pub(super) fn read(&self) -> Result<Response> {
        let response = read_response(self.bytes)?;
        ensure!(response.status == 200, "{}: {}", response.status, response.body);
        Ok(response)
    }
}

impl Client {
    pub(super) fn new(namespace: &Namespace) -> Self {
        Self {
            namespace: namespace.clone(),
            // Touched, so that taking an answer into it is no more than that.
            memory: vec![1; MOST],
        }
    }

    /// `GET path` as it is, or compressed; waits for the server to listen.
    pub(super) fn get(&mut self, address: SocketAddr, path: &str, gzip: bool) -> Result<Answer<'_>> {
        let encoding = if gzip { "gzip" } else { "identity" };
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: agent.test\r\nConnection: close\r\nAccept-Encoding: {encoding}\r\n\r\n"
        );
        let memory = &mut self.memory;
        let (took, length) = self.namespace.run(move || {
            let mut stream = connect(address)?;
            let begun = Instant::now();
            stream.write_all(request.as_bytes())?;
            let mut length = 0;
            loop {
                match stream.read(&mut memory[length..])? {
                    0 => return Ok((begun.elapsed(), length)),
                    more => length += more,
                }
            }
        })?;
        Ok(Answer {
            took,
            bytes: &self.memory[..length],
        })
    }
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused && Instant::now() < deadline => {
                std::thread::sleep(RETRY);
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => bail!("nobody listens at {address}"),
            Err(error) => return Err(error).with_context(|| format!("no answer at {address}")),
        }
    }
}
