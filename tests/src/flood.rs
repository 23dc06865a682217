//! Frames as fast as they go, for counts that must hold whatever the speed; and links that come and go meanwhile.

use std::{
    io::IoSlice,
    os::fd::{AsRawFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    sys::socket::{LinkAddr, MsgFlags, MultiHeaders, sendmmsg},
};

use crate::{
    lab::{Arrival, Lab, Mac, Mode},
    netns::Namespace,
    traffic::{open, switch_on},
};

/// Frames of one system call.
const AT_ONCE: usize = 64;

/// Sends `frames` over and over from `interface` until it has tried `count`. What the device refuses is not sent again.
pub fn flood(namespace: &Namespace, interface: &str, frames: &[Vec<u8>], count: u64) -> Result<()> {
    Flooder::at(namespace, interface)?.flood(frames, count)
}

/// Whoever sends as fast as it goes, from one interface past its queueing discipline: that is where a sender of frames
/// would be slowed down.
#[derive(Debug)]
pub struct Flooder {
    socket: OwnedFd,
    interface: String,
}

impl Flooder {
    /// One at an interface; it may send from any thread.
    pub fn at(namespace: &Namespace, interface: &str) -> Result<Self> {
        let socket = namespace.run(|| {
            let socket = open(interface)?;
            switch_on(&socket, libc::PACKET_QDISC_BYPASS)?;
            Ok(socket)
        })?;
        Ok(Self {
            socket,
            interface: interface.into(),
        })
    }

    /// Sends `frames` over and over until it has tried `count`. What the device refuses is not sent again.
    pub fn flood(&self, frames: &[Vec<u8>], count: u64) -> Result<()> {
        let slices: Vec<[IoSlice<'_>; 1]> = frames
            .iter()
            .cycle()
            .take(AT_ONCE * frames.len())
            .map(|frame| [IoSlice::new(frame)])
            .collect();
        let mut headers = MultiHeaders::<LinkAddr>::preallocate(AT_ONCE, None);
        let addresses = [None; AT_ONCE];
        let (mut tried, mut at) = (0, 0);
        while tried < count {
            let wanted = usize::try_from(count - tried).map_or(AT_ONCE, |left| left.min(AT_ONCE));
            let batch = &slices[at..(at + wanted).min(slices.len())];
            let sent = match sendmmsg(
                self.socket.as_raw_fd(),
                &mut headers,
                batch,
                &addresses[..batch.len()],
                [],
                MsgFlags::empty(),
            ) {
                Ok(results) => results.count(),
                // The next frame was refused: it counts as tried.
                Err(Errno::ENOBUFS) => 1,
                Err(error) => return Err(error).with_context(|| format!("could not send from {}", self.interface)),
            };
            tried += sent as u64;
            at = (at + sent) % slices.len();
        }
        Ok(())
    }
}

/// Makes, moves and deletes sub-interfaces with these MACs in turn, so many changes a second, until it is told to end;
/// says how many there were.
///
/// # Panics
/// When the kernel does not take a change.
pub fn churn(lab: &Lab, macs: &[Mac], per_second: u32, end: &AtomicBool) -> u32 {
    let [here, there] = ["churn1", "churn2"].map(|role| lab.namespace(role));
    let (start, mut changes) = (Instant::now(), 0);
    let mut pace = || {
        changes += 1;
        let due = start + Duration::from_secs(1) * changes / per_second;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    };
    for (number, mac) in macs.iter().cycle().enumerate() {
        if end.load(Ordering::Relaxed) {
            break;
        }
        let mut sub = lab.add_in(&here, &format!("c{number}"), Mode::Bridge, *mac, Arrival::Directly);
        pace();
        sub.link.move_to(&there).unwrap_or_else(|error| panic!("{error:#}"));
        sub.link.set_up(true).unwrap_or_else(|error| panic!("{error:#}"));
        pace();
        sub.link.delete().unwrap_or_else(|error| panic!("{error:#}"));
        pace();
    }
    changes
}
