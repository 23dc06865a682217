//! Moves between namespaces. The kernel tells of one as an end here and a beginning there, on two sockets, which may be
//! read in either order. Pure: two lists of what waits for its other half.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::link::{Kind, LinkKey};

/// How long one half waits for the other.
const WINDOW: Duration = Duration::from_secs(2);

/// What both halves of a move have in common.
#[derive(Clone, Eq, PartialEq, Debug)]
pub(super) struct Traits {
    pub(super) parent: LinkKey,
    pub(super) kind: Kind,
    pub(super) mac: [u8; 6],
    pub(super) name: String,
}

/// One half of a move: a link that left, or one that came.
#[derive(Clone, Debug)]
pub(super) struct Half {
    pub(super) id: u64,
    /// Where it was, or where it is.
    pub(super) key: LinkKey,
    /// Of one that left: the index that it was to have, if the kernel said.
    pub(super) new_ifindex: Option<u32>,
    pub(super) traits: Traits,
    pub(super) at: Instant,
}

#[derive(Default, Debug)]
pub(super) struct Moves {
    departed: VecDeque<Half>,
    arrived: VecDeque<Half>,
}

impl Moves {
    /// A link has left. The place where it has been seen already, if so.
    pub(super) fn departs(&mut self, half: Half) -> Option<LinkKey> {
        self.forget_old(half.at);
        let found = best(&self.arrived, |arrived| fit(&half, arrived));
        if let Some(index) = found {
            return self.arrived.remove(index).map(|arrived| arrived.key);
        }
        self.departed.push_back(half);
        None
    }

    /// A link has come, and `half` has a new id for it. The id that it had before, if it only moved.
    pub(super) fn arrives(&mut self, half: Half) -> Option<u64> {
        self.forget_old(half.at);
        let found = best(&self.departed, |departed| fit(departed, &half));
        if let Some(index) = found {
            return self.departed.remove(index).map(|departed| departed.id);
        }
        self.arrived.push_back(half);
        None
    }

    /// The link at `key` has ended, or left again.
    pub(super) fn forget(&mut self, key: LinkKey) {
        self.arrived.retain(|half| half.key != key);
    }

    fn forget_old(&mut self, now: Instant) {
        let old = |half: &mut Half| now.saturating_duration_since(half.at) > WINDOW;
        // In both, those that wait longest stand first.
        for halves in [&mut self.departed, &mut self.arrived] {
            while halves.pop_front_if(old).is_some() {}
        }
    }
}

fn best(halves: &VecDeque<Half>, fit: impl Fn(&Half) -> Option<u8>) -> Option<usize> {
    let fits = halves
        .iter()
        .enumerate()
        .filter_map(|(index, half)| Some((fit(half)?, index)));
    fits.max().map(|(_, index)| index)
}

/// How well the two go together, if they can. A name may change with a move, and an index; a MAC only when the second
/// half was read late.
fn fit(departed: &Half, arrived: &Half) -> Option<u8> {
    let (a, b) = (&departed.traits, &arrived.traits);
    if departed.key.netns == arrived.key.netns || a.parent != b.parent || a.kind != b.kind {
        return None;
    }
    let index = departed.new_ifindex == Some(arrived.key.ifindex);
    let name = a.name == b.name;
    let mac = a.mac == b.mac;
    (mac || index && name).then_some(4 * u8::from(mac) + 2 * u8::from(index) + u8::from(name))
}
