//! Who is wanted where, and who stands on which link already: found at once, since each of thousands asks.

use std::collections::HashMap;

use crate::{
    config::values::Mode,
    manage::{
        plan::Actual,
        record::Made,
        state::{LinkState, SpaceState},
        wanted::Wanted,
    },
    topology::link,
};

/// One that stands on a link of the agent's own namespace.
#[derive(Clone, Copy)]
pub(super) struct Tenant<'a> {
    pub(super) at: Made,
    pub(super) space: &'a SpaceState,
    pub(super) link: &'a LinkState,
}

impl Tenant<'_> {
    /// Whether it takes its parent alone.
    pub(super) fn is_alone(&self) -> bool {
        self.link.mode() == Some(link::Mode::Passthru)
    }
}

/// All of them.
pub(super) struct Crowd<'a> {
    /// All that are wanted.
    pub(super) wanted: &'a [Wanted],
    /// By namespace and name: the first one that is wanted there.
    first: HashMap<(u32, &'a str), &'a Wanted>,
    /// By the index of what they stand on.
    on: HashMap<u32, Vec<Tenant<'a>>>,
    /// Those that take it alone.
    alone: HashMap<u32, Vec<Tenant<'a>>>,
    /// Those that are up, by their MAC as well.
    by_mac: HashMap<(u32, [u8; 6]), Vec<Tenant<'a>>>,
}

impl<'a> Crowd<'a> {
    pub(super) fn of(wanted: &'a [Wanted], actual: &'a Actual) -> Self {
        let mut crowd = Self {
            wanted,
            first: HashMap::new(),
            on: HashMap::new(),
            alone: HashMap::new(),
            by_mac: HashMap::new(),
        };
        for each in wanted {
            if let Ok(inode) = each.place {
                crowd.first.entry((inode, each.name.as_str())).or_insert(each);
            }
        }
        for (inode, space) in &actual.spaces {
            for link in space.links.iter().filter(|link| link.mode().is_some()) {
                let at = Made {
                    netns: *inode,
                    ifindex: link.index(),
                };
                if let Some(parent) = link.link.link.filter(|parent| space.stands_on(link, *parent)) {
                    crowd.add(parent, Tenant { at, space, link });
                }
            }
        }
        crowd
    }

    fn add(&mut self, parent: u32, tenant: Tenant<'a>) {
        self.on.entry(parent).or_default().push(tenant);
        if tenant.is_alone() {
            self.alone.entry(parent).or_default().push(tenant);
        }
        if let Some(mac) = tenant.link.link.mac.filter(|_| tenant.link.link.up) {
            self.by_mac.entry((parent, mac)).or_default().push(tenant);
        }
    }

    /// The first that is wanted in this place under this name.
    pub(super) fn first(&self, inode: u32, name: &str) -> Option<&'a Wanted> {
        self.first.get(&(inode, name)).copied()
    }

    /// Those on the link with this index that may be in the way of `wanted`.
    pub(super) fn in_the_way(&self, wanted: &Wanted, parent: u32) -> impl Iterator<Item = Tenant<'a>> {
        let mac = wanted.mac.filter(|_| wanted.up);
        let (some, more) = if wanted.mode == Mode::Passthru {
            (self.on.get(&parent), None)
        } else {
            (
                self.alone.get(&parent),
                mac.and_then(|mac| self.by_mac.get(&(parent, mac))),
            )
        };
        some.into_iter().chain(more).flatten().copied()
    }
}
