//! What macvlan does with a frame, and so what must be counted: a model of `drivers/net/macvlan.c` (5.10 to 7.3), of
//! the hooks before and behind it, and of a wire that may return what it gets. Pure: it asks neither the kernel nor the
//! agent. Marks like R4 are those of the return paths of `macvlan_handle_frame`, in the order of its source.

use std::collections::BTreeMap;

use crate::{lab::Mode, load::Burst, moves::Moves, traffic::ETHERNET};

/// Somebody at or on a parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// The parent's own stack.
    Parent,
    /// A sub-interface, by its place among the port's.
    Child(usize),
    /// A station on the wire.
    Stranger,
}

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// The MAC of one.
    One(Node),
    /// A MAC that nobody has.
    Nobody,
    /// Broadcast, or a group that every interface with IPv4 has joined.
    All,
}

/// A sub-interface.
#[derive(Clone, Debug)]
pub struct Child {
    /// Its name, as the moves say it.
    pub name: String,
    /// Its mode.
    pub mode: Mode,
    /// Whether it is up.
    pub up: bool,
    /// Whether it gets copies of the stranger's frames: mode source with the stranger's MAC in its list.
    pub hears_stranger: bool,
    /// Whether it is in the parent's namespace, where the host answers on it for all its addresses.
    pub of_host: bool,
}

/// What a frame says of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    Nothing,
    /// Who has an address of this one?
    Asks(Node),
    Answers,
}

/// Frames that are alike.
#[derive(Clone, Copy, Debug)]
struct Frames {
    burst: Burst,
    says: Says,
}

/// An attempt that an answer may still cancel.
#[derive(Clone, Copy, Debug)]
struct Ask {
    asker: Node,
    /// Whom it is counted on.
    child: usize,
    direction: &'static str,
    reason: &'static str,
}

/// A parent with its sub-interfaces, and all that moved on it.
#[derive(Clone, Debug)]
pub struct Port {
    /// Its sub-interfaces.
    pub children: Vec<Child>,
    /// Whether it is up.
    pub up: bool,
    /// Whether the switch behind the wire returns frames (hairpin, reflective relay).
    pub hairpin: bool,
    /// Version of the kernel.
    pub release: (u32, u32),
    moves: Moves,
    asks: Vec<Ask>,
}

/// ARP: as the kernel makes it, it is not padded.
const ARP_FRAME: u64 = ETHERNET + 28;
/// `mcast_solicit`: how often the kernel asks for an address before it gives up.
const SOLICITATIONS: u32 = 3;

impl Port {
    /// Nothing has moved.
    #[must_use]
    pub fn new(children: Vec<Child>, up: bool, hairpin: bool, release: (u32, u32)) -> Self {
        Self {
            children,
            up,
            hairpin,
            release,
            moves: BTreeMap::new(),
            asks: Vec::new(),
        }
    }

    /// All that moved, once what nobody answered is a loss.
    #[must_use]
    pub fn settled(mut self) -> Moves {
        for ask in std::mem::take(&mut self.asks) {
            self.lost(ask.child, ask.direction, ask.reason, 1);
        }
        self.moves.retain(|_, by| *by > 0);
        self.moves
    }

    /// `from` sends frames; those of a stranger may carry somebody else's MAC, as a switch's reflections do.
    pub fn send(&mut self, from: Node, source: Node, to: To, burst: Burst) {
        let frames = Frames {
            burst,
            says: Says::Nothing,
        };
        match from {
            Node::Stranger => drop(self.arrive(source, to, frames)),
            _ => drop(self.transmit(from, to, frames)),
        }
    }

    /// The stack of `from` sends packets to an address of `to`, whose MAC it has to ask for first.
    pub fn talk(&mut self, from: Node, to: Node, burst: Burst) {
        if !self.can_send(from) {
            return;
        }
        let one = |says| Frames {
            burst: Burst::plain(1, ARP_FRAME),
            says,
        };
        let mut answerer = None;
        for _ in 0..SOLICITATIONS {
            for node in self.transmit(from, To::All, one(Says::Asks(to))) {
                if self.answers_for(node, to) && self.transmit(node, To::One(from), one(Says::Answers)).contains(&from)
                {
                    answerer = Some(node);
                }
            }
            if answerer.is_some() {
                break;
            }
        }
        match (answerer, from) {
            (Some(node), _) => self.send(from, from, To::One(node), burst),
            // `neigh_invalidate`: the packets never left the neighbour's queue.
            (None, Node::Child(child)) => self.add("neighbour_failed_packets", Some(child), "", burst.skbs),
            (None, _) => {}
        }
    }

    /// Whether `node`'s stack answers for `owner`'s addresses: any of a host's interfaces does for all of them.
    fn answers_for(&self, node: Node, owner: Node) -> bool {
        node == owner || owner == Node::Parent && matches!(node, Node::Child(child) if self.children[child].of_host)
    }

    /// Whether frames get as far as the sender's device.
    #[must_use]
    pub fn can_send(&self, from: Node) -> bool {
        match from {
            Node::Child(child) => self.children[child].up,
            _ => self.up,
        }
    }

    fn is_passthru(&self) -> bool {
        self.children.iter().any(|child| child.mode == Mode::Passthru)
    }

    fn is_bridge(&self, child: usize) -> bool {
        self.children[child].mode == Mode::Bridge
    }

    fn bridged(&self, one: usize, other: usize) -> bool {
        self.is_bridge(one) && self.is_bridge(other)
    }

    /// Who received what `from` sends.
    fn transmit(&mut self, from: Node, to: To, frames: Frames) -> Vec<Node> {
        if !self.can_send(from) {
            return Vec::new();
        }
        match from {
            Node::Parent => self.leave(from, to, frames),
            Node::Child(child) => self.start_xmit(child, to, frames),
            Node::Stranger => self.arrive(from, to, frames),
        }
    }

    /// `macvlan_start_xmit` and `macvlan_queue_xmit`.
    fn start_xmit(&mut self, child: usize, to: To, frames: Frames) -> Vec<Node> {
        if !self.up {
            // No carrier: the queueing discipline of one without carrier is noop (`dev_deactivate`).
            // The kernel counts what it cannot send in packets of its own.
            self.add(
                "dropped_frames",
                Some(child),
                "reason=transmit_failed",
                frames.burst.skbs,
            );
            return Vec::new();
        }
        let mut received = Vec::new();
        if self.is_bridge(child) {
            match to {
                // "send to other bridge ports directly": clones that cross no hook of the parent. The kernel adds the
                // header's length to an skb that still has its header.
                To::All => {
                    for other in 0..self.children.len() {
                        if other != child && self.is_bridge(other) && self.children[other].up {
                            let burst = frames.burst;
                            self.multicast(other, burst.skbs, burst.wire_bytes + burst.skbs * ETHERNET);
                            received.push(Node::Child(other));
                        }
                    }
                }
                // `dev_forward_skb(lowerdev)`: ingress and handler of the parent, and no egress.
                To::One(Node::Child(other)) if self.is_bridge(other) && self.children[other].up => {
                    self.transmitted(child, "sibling", frames);
                    self.unicast(other, "sibling", frames);
                    self.handled("delivered", frames.burst.frames());
                    self.answered(frames, Node::Child(other));
                    return vec![Node::Child(other)];
                }
                To::One(_) | To::Nobody => {}
            }
        }
        self.transmitted(child, "external", frames);
        received.extend(self.leave(Node::Child(child), to, frames));
        received
    }

    /// The parent's egress and the wire: where isolation shows, and where it ends if the switch returns frames.
    fn leave(&mut self, from: Node, to: To, frames: Frames) -> Vec<Node> {
        let count = frames.burst.frames();
        let attempt = if self.is_passthru() {
            // One MAC for both: nothing tells the two apart.
            None
        } else {
            match (from, to, frames.says) {
                (Node::Child(child), To::One(Node::Parent), _) => Some((child, "child_to_parent", "unicast")),
                (Node::Child(child), To::One(Node::Child(other)), _) if self.bridged(child, other) => {
                    // The kernel has forgotten the other one: it is down.
                    self.add("dropped_frames", Some(other), "reason=interface_down", count);
                    None
                }
                (Node::Child(child), To::One(Node::Child(_)), _) => Some((child, "sibling", "unicast")),
                (Node::Parent, To::One(Node::Child(child)), _) => Some((child, "parent_to_child", "unicast")),
                (Node::Child(child), To::All, Says::Asks(Node::Parent)) => Some((child, "child_to_parent", "arp")),
                (Node::Child(child), To::All, Says::Asks(Node::Child(other))) if !self.bridged(child, other) => {
                    Some((child, "sibling", "arp"))
                }
                (Node::Parent, To::All, Says::Asks(Node::Child(child))) => Some((child, "parent_to_child", "arp")),
                _ => None,
            }
        };
        if let Some((child, direction, kind)) = attempt {
            let labels = format!("direction={direction} kind={kind}");
            self.add("isolation_attempts", Some(child), &labels, count);
            let reason = if direction == "sibling" {
                "sibling_not_reflected"
            } else {
                direction
            };
            if kind == "arp" {
                self.asks.push(Ask {
                    asker: from,
                    child,
                    direction,
                    reason,
                });
            } else if !self.hairpin {
                self.lost(child, direction, reason, count);
            }
        }
        if self.hairpin {
            self.arrive(from, to, frames)
        } else {
            vec![Node::Stranger]
        }
    }

    /// The parent's ingress and `macvlan_handle_frame`.
    fn arrive(&mut self, source: Node, to: To, frames: Frames) -> Vec<Node> {
        if !self.up {
            return Vec::new();
        }
        self.ingress(source, to, frames);
        match to {
            To::All => self.handle_multicast(source, frames),
            _ => self.handle_unicast(source, to, frames),
        }
    }

    fn ingress(&mut self, source: Node, to: To, frames: Frames) {
        if self.is_passthru() {
            return;
        }
        let reflection = match (source, to) {
            (Node::Child(child), To::All) => Some((child, "multicast")),
            (Node::Child(child), To::One(Node::Parent)) => Some((child, "child_to_parent")),
            (Node::Child(child), To::One(Node::Child(_))) => Some((child, "sibling")),
            (Node::Parent, To::One(Node::Child(child))) => Some((child, "parent_to_child")),
            _ => None,
        };
        if let Some((child, direction)) = reflection {
            let labels = format!("direction={direction}");
            self.add("reflected_frames", Some(child), &labels, frames.burst.frames());
        }
        if let To::One(node) = to {
            self.answered(frames, node);
        }
    }

    fn handle_multicast(&mut self, source: Node, frames: Frames) -> Vec<Node> {
        let burst = frames.burst;
        // R2: fragments are held until they are whole; then one skb goes on.
        self.handled("consumed", burst.held);
        let (skbs, bytes) = (burst.skbs - burst.held, burst.whole_bytes());
        // `macvlan_forward_source`; no NODST here.
        let mut received = self.forward_source(source, skbs, bytes);
        let sender = self.hashed(source);
        if let Some(child) = sender
            && !matches!(self.children[child].mode, Mode::Vepa | Mode::Bridge)
        {
            // R4: "forward to original port", with a length that nobody has set.
            self.handled("consumed", skbs);
            if self.children[child].mode == Mode::Source {
                self.copied(child, skbs, 0);
            }
            received.push(Node::Child(child));
            return received;
        }
        // R5: `macvlan_multicast_rx`, and the parent's own stack.
        for child in 0..self.children.len() {
            let mode = self.children[child].mode;
            let gets = match sender.map(|sender| self.children[sender].mode) {
                None => mode != Mode::Source,
                Some(Mode::Vepa) => matches!(mode, Mode::Vepa | Mode::Bridge) && sender != Some(child),
                // "cannot distinguish a looped-back multicast from one sent by an external source sharing the MAC"
                Some(_) if self.release >= (7, 1) => matches!(mode, Mode::Vepa | Mode::Bridge),
                Some(_) => mode == Mode::Vepa,
            };
            if gets && self.children[child].up {
                self.multicast(child, skbs, bytes);
                received.push(Node::Child(child));
            }
        }
        self.handled("passed", skbs);
        received.push(Node::Parent);
        // The parent's stack has seen the question, or has got its own back: it did not end at macvlan.
        if let Says::Asks(_) = frames.says {
            self.asks.retain(|ask| ask.asker != source);
        }
        received
    }

    fn handle_unicast(&mut self, source: Node, to: To, frames: Frames) -> Vec<Node> {
        let burst = frames.burst;
        let count = burst.frames();
        let mut received = self.forward_source(source, burst.skbs, burst.kernel_bytes);
        let found = if self.is_passthru() {
            // The first of the port, whatever the frame's MAC, up or not.
            Some(0)
        } else {
            match to {
                To::One(node) => self.hashed(node),
                _ => None,
            }
        };
        match found {
            // R8
            Some(child) if !self.children[child].up => {
                self.handled("consumed", count);
                self.add("dropped_frames", Some(child), "reason=interface_down", count);
            }
            // R10
            Some(child) if self.children[child].mode != Mode::Source => {
                self.handled("delivered", count);
                self.unicast(child, "external", frames);
                received.push(Node::Child(child));
            }
            // R7
            _ => {
                self.handled("passed", count);
                match to {
                    To::One(Node::Parent) => received.push(Node::Parent),
                    // Forgotten by `macvlan_stop`. Where a bridge-mode sibling sent it, that was counted as it left.
                    To::One(Node::Child(child)) if !self.children[child].up => {
                        let told = matches!(source, Node::Child(sender) if self.bridged(sender, child));
                        if self.children[child].mode != Mode::Source && !told {
                            self.add("dropped_frames", Some(child), "reason=interface_down", count);
                        }
                    }
                    _ => {}
                }
            }
        }
        received
    }

    /// Who of a port's sub-interfaces is found by its MAC: those that are up (`macvlan_open`, `macvlan_stop`).
    fn hashed(&self, node: Node) -> Option<usize> {
        match node {
            // The one MAC of both.
            Node::Parent if self.is_passthru() => Some(0),
            Node::Child(child) => Some(child),
            _ => None,
        }
        .filter(|child| self.children[*child].up)
    }

    /// Copies to those in mode source that listen to the sender.
    fn forward_source(&mut self, source: Node, skbs: u64, bytes: u64) -> Vec<Node> {
        let mut received = Vec::new();
        for child in 0..self.children.len() {
            let each = &self.children[child];
            if source == Node::Stranger && each.hears_stranger && each.up {
                self.copied(child, skbs, bytes);
                received.push(Node::Child(child));
            }
        }
        received
    }

    /// An answer takes back what its addressee asked.
    fn answered(&mut self, frames: Frames, to: Node) {
        if frames.says == Says::Answers {
            self.asks.retain(|ask| ask.asker != to);
        }
    }

    fn unicast(&mut self, child: usize, path: &str, frames: Frames) {
        let labels = format!("cast=unicast path={path}");
        self.add("delivered_frames", Some(child), &labels, frames.burst.frames());
        self.add("delivered_bytes", Some(child), &labels, frames.burst.wire_bytes);
    }

    /// The kernel's own count: skbs, and their bytes as it sees them.
    fn multicast(&mut self, child: usize, skbs: u64, bytes: u64) {
        self.add("delivered_frames", Some(child), "cast=multicast path=any", skbs);
        self.add("delivered_bytes", Some(child), "cast=multicast path=any", bytes);
    }

    fn copied(&mut self, child: usize, skbs: u64, bytes: u64) {
        self.add("delivered_frames", Some(child), "cast=unicast path=any", skbs);
        self.add("delivered_bytes", Some(child), "cast=unicast path=any", bytes);
    }

    fn transmitted(&mut self, child: usize, path: &str, Frames { burst, .. }: Frames) {
        // The parent has the same MAC: only the kernel's own count tells whose frames they are, and that is of skbs.
        let (frames, bytes) = if self.is_passthru() {
            (burst.skbs, burst.kernel_bytes + burst.inner_tags)
        } else {
            (burst.frames(), burst.wire_bytes)
        };
        let labels = format!("path={path}");
        self.add("transmitted_frames", Some(child), &labels, frames);
        self.add("transmitted_bytes", Some(child), &labels, bytes);
    }

    fn lost(&mut self, child: usize, direction: &str, reason: &str, count: u64) {
        self.add("dropped_frames", Some(child), &format!("reason={reason}"), count);
        self.add(
            "parent_isolation_lost_frames",
            None,
            &format!("direction={direction}"),
            count,
        );
    }

    fn handled(&mut self, verdict: &str, count: u64) {
        self.add("parent_handled_frames", None, &format!("verdict={verdict}"), count);
    }

    fn add(&mut self, counter: &str, child: Option<usize>, labels: &str, by: u64) {
        let name = child.map_or("", |child| self.children[child].name.as_str());
        let words = [counter, name, labels];
        let key: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
        *self.moves.entry(key.join(" ")).or_default() += by;
    }
}
