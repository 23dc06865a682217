//! Where scrapes are measured: a namespace with parents that get more and more sub-interfaces.

use std::time::Instant;

use anyhow::Result;
use macvlan_agent_tests::{
    empty::Empty,
    flood::flood,
    lab::{Link, Mac, macvlans, veth},
    netns::Namespace,
    traffic::frame,
};

/// Among more than about a thousand the kernel itself searches long: that many parents share them.
const PARENTS: usize = 10;

/// One in so many receives frames.
const ACTIVE: usize = 100;

/// Frames to each of them.
const FRAMES: u64 = 3;

pub(super) struct Field {
    pub(super) namespace: Namespace,
    parents: Vec<Parent>,
    count: usize,
}

struct Parent {
    link: Link,
    far: Link,
    /// A frame for each that is active.
    frames: Vec<Vec<u8>>,
}

impl Field {
    pub(super) fn new() -> Result<Self> {
        let [near, far] = ["near", "far"].map(|end| format!("mvm{}-{end}", std::process::id()));
        let (namespace, outside) = (Namespace::create(&near)?, Namespace::create(&far)?);
        set_loopback_up(&namespace)?;
        let parents = (0..PARENTS).map(|number| {
            let (link, far) = veth(
                &namespace,
                &format!("parent{number}"),
                &outside,
                &format!("far{number}"),
            )?;
            Ok(Parent {
                link,
                far,
                frames: Vec::new(),
            })
        });
        Ok(Self {
            parents: parents.collect::<Result<_>>()?,
            namespace,
            count: 0,
        })
    }

    /// How many sub-interfaces there are.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn parents(&self) -> usize {
        self.parents.len()
    }

    /// How many milliseconds it takes to attach a program that does nothing to both sides of every parent: the kernel's
    /// share of a start.
    pub(super) fn attach_empty(&self) -> Result<f64> {
        let begun = Instant::now();
        let attached: Vec<_> = self
            .parents
            .iter()
            .map(|parent| Empty::tcx(&parent.link))
            .collect::<Result<_>>()?;
        let took = begun.elapsed().as_secs_f64() * 1e3;
        drop(attached);
        Ok(took)
    }

    /// Makes more, until there are `count`.
    pub(super) fn grow(&mut self, count: usize) -> Result<()> {
        let namespace = self.namespace.clone();
        for (number, parent) in self.parents.iter_mut().enumerate() {
            let fresh: Vec<(String, Mac)> = (self.count..count)
                .filter(|index| index % PARENTS == number)
                .map(|index| Ok((format!("macv{index}"), mac(index)?)))
                .collect::<Result<_>>()?;
            macvlans(&parent.link, &namespace, &fresh)?;
        }
        for index in (self.count..count).step_by(ACTIVE) {
            // Neighbours in number lie on different parents.
            let index = index + index / ACTIVE % PARENTS;
            let parent = &mut self.parents[index % PARENTS];
            parent.frames.push(frame(mac(index)?, parent.far.mac, 100));
        }
        self.count = count;
        Ok(())
    }

    /// Sends some frames to those that are active.
    pub(super) fn stir(&self) -> Result<()> {
        for parent in self.parents.iter().filter(|parent| !parent.frames.is_empty()) {
            let count = FRAMES * parent.frames.len() as u64;
            flood(&parent.far.namespace, &parent.far.name, &parent.frames, count)?;
        }
        Ok(())
    }
}

fn mac(index: usize) -> Result<Mac> {
    let [.., high, low] = u32::try_from(index)?.to_be_bytes();
    // Of this machine's own, as if drawn by lot: neighbours are not alike in their last bits alone.
    Ok(Mac([0x02, 0x6d, 0x73, low, high, low ^ 0x5a]))
}

fn set_loopback_up(namespace: &Namespace) -> Result<()> {
    let loopback = Link {
        namespace: namespace.clone(),
        name: "lo".into(),
        mac: Mac([0; 6]),
    };
    loopback.set_up(true)
}
