//! The clsact qdisc that programs hang on where the kernel has no tcx (before 6.6): made by us only where nobody had,
//! removed by us only where nobody else uses it.
//!
//! Works in the calling thread's namespace.

use std::io;

use futures_util::TryStreamExt as _;
use netlink_packet_route::tc::TcHandle;
use rtnetlink::Handle;

const CLSACT: u16 = 0xffff;

/// Why the qdisc is not known or not changed.
#[derive(Debug, thiserror::Error)]
pub enum ClsactError {
    /// No connection to the kernel.
    #[error("cannot open a netlink connection")]
    Connection(#[from] io::Error),
    /// The kernel's answer.
    #[error("the kernel refuses")]
    Netlink(#[from] rtnetlink::Error),
}

/// Whether the interface has a clsact qdisc (or the older ingress, which keeps its place).
pub fn present(ifindex: i32) -> Result<bool, ClsactError> {
    connected(async |handle| {
        let qdiscs: Vec<_> = handle.qdisc().get().index(ifindex).execute().try_collect().await?;
        Ok(qdiscs
            .iter()
            .any(|qdisc| qdisc.header.index == ifindex && qdisc.header.handle.major == CLSACT))
    })
}

/// Whether any filter hangs on it.
pub fn in_use(ifindex: i32) -> Result<bool, ClsactError> {
    connected(async |handle| {
        let mut filters = handle.traffic_filter(ifindex);
        let ingress: Vec<_> = filters.get().ingress().execute().try_collect().await?;
        let egress: Vec<_> = filters.get().egress().execute().try_collect().await?;
        Ok(!ingress.is_empty() || !egress.is_empty())
    })
}

/// Removes it.
pub fn remove(ifindex: i32) -> Result<(), ClsactError> {
    connected(async |handle| {
        let mut request = handle.qdisc().del(ifindex);
        request.message_mut().header.parent = TcHandle::CLSACT;
        request.message_mut().header.handle = TcHandle {
            major: CLSACT,
            minor: 0,
        };
        Ok(request.execute().await?)
    })
}

/// Runs `work` with a connection of this thread's namespace.
fn connected<T>(work: impl AsyncFnOnce(Handle) -> Result<T, ClsactError>) -> Result<T, ClsactError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let result = work(handle).await;
        connection.abort();
        result
    })
}
