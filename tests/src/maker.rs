//! Makes sub-interfaces one by one over a connection that is there already, so that nothing but the kernel lies between
//! asking for one and its acknowledgement.

use std::{fs::File, os::fd::AsRawFd as _, time::Instant};

use anyhow::{Context as _, Result};
use netlink_packet_route::link::MacVlanMode;
use rtnetlink::{Handle, LinkMacVlan, new_connection};
use tokio::runtime::{Builder, Runtime};

use crate::lab::{Link, Mac};

/// A connection in a parent's namespace.
#[derive(Debug)]
pub struct Maker {
    runtime: Runtime,
    handle: Handle,
    parent: u32,
}

impl Maker {
    /// Opens it.
    pub fn on(parent: &Link) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let (connection, handle) = parent.namespace.run(|| {
            let _context = runtime.enter();
            let (connection, handle, _) = new_connection()?;
            Ok((connection, handle))
        })?;
        runtime.spawn(connection);
        Ok(Self {
            runtime,
            handle,
            parent: parent.index()?,
        })
    }

    /// Makes one in bridge mode, up, in the namespace that `there` is. Says when the kernel acknowledged it.
    pub fn make(&self, there: &File, name: &str, mac: Mac) -> Result<Instant> {
        let link = LinkMacVlan::new(name, self.parent, MacVlanMode::Bridge).address(mac.0.to_vec());
        let message = link.up().setns_by_fd(there.as_raw_fd()).build();
        let made = self.runtime.block_on(self.handle.link().add(message).execute());
        let acknowledged = Instant::now();
        made.with_context(|| format!("could not make {name}"))?;
        Ok(acknowledged)
    }
}
