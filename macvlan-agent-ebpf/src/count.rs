//! Counting: finds the cell that a frame belongs to, and adds to it.

use core::mem::transmute;

use aya_ebpf::{
    bindings::{BPF_NOEXIST, bpf_func_id::BPF_FUNC_get_smp_processor_id},
    helpers::bpf_ktime_get_ns,
    maps::Array,
};
use macvlan_agent_ebpf::{
    abi::{
        Ask, AskKey, AskKind, Common, Counter, Credit, Direction, NO_SLOT, ParentKey, Rare, Recent, SlotEntry,
        SubInterfaceKey,
        counts::{COMMON as COMMON_COUNTERS, HAS_RARE},
        label::Lost,
        limits,
    },
    flow::{self, Flow},
    frame::Mac,
    front::{self, Found, Parent, Whose},
    pending,
};

use crate::{
    direct,
    maps::{
        ASKS, ATTEMPTED, BLANK, COMMON, CPUS, CREDITS, DIRECT_CELLS, FLOW_STRIDE, FRONT, LAST_FLOW, LOST, PARENT_FRONT,
        PARENTS, RARE, SUB_INTERFACES,
    },
};

/// The frames and bytes that one skb stands for.
#[derive(Clone, Copy)]
pub(crate) struct Amount {
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
}

/// What is common of a cell of this CPU. The kernel keeps map values in place for as long as a program runs, and only
/// this CPU writes its cells, with softirqs off.
#[derive(Clone, Copy)]
pub(crate) struct Few(*mut Common);

impl Few {
    #[inline(always)]
    pub(crate) fn pair(self, frames: Counter, amount: Amount) {
        // SAFETY: the pointer comes from where cells are, so it points to a whole one; the assertion says that
        // both counters are in it.
        unsafe {
            assert!((frames as usize) < COMMON_COUNTERS - 1);
            let counter = (&raw mut (*self.0).counters).cast::<u64>().add(frames as usize);
            *counter += amount.frames;
            *counter.add(1) += amount.bytes;
        }
    }

    #[inline(always)]
    pub(crate) fn delivered(self, from_sibling: bool, amount: Amount) {
        if from_sibling {
            self.pair(Counter::DeliveredSiblingFrames, amount);
        } else {
            self.pair(Counter::DeliveredExternalFrames, amount);
        }
    }

    /// Says that something beside what is common may be counted: whoever reads that afterwards sees this.
    #[inline(always)]
    pub(crate) fn marks_rest(self) {
        // SAFETY: as in `pair`.
        unsafe {
            let last = (&raw mut (*self.0).counters).cast::<u64>().add(COMMON_COUNTERS - 1);
            last.write_volatile(last.read_volatile() | HAS_RARE);
        }
    }
}

/// The rest of one.
#[derive(Clone, Copy)]
pub(crate) struct Rest(*mut Rare);

impl Rest {
    #[inline(always)]
    pub(crate) fn add_at(self, first: Counter, offset: usize, amount: u64) {
        // SAFETY: as in `Few::pair`; every range of counters ends inside them.
        unsafe {
            assert!(first as usize >= COMMON_COUNTERS);
            let counter = (&raw mut (*self.0).counters).cast::<u64>();
            *counter.add(first as usize - COMMON_COUNTERS + offset) += amount;
        }
    }

    /// An attempt: pending first, so that a reader who sees the attempt sees it pending as well.
    #[inline(always)]
    pub(crate) fn attempt(self, direction: Direction, kind: AskKind, frames: u64, now: u32) {
        let ring = direction.index() * 2 + usize::from(kind.index() != 0);
        // SAFETY: as in `Few::pair`; the ring is below RECENT_RINGS because a direction is below 3.
        let recent = unsafe { &mut (*self.0).recent };
        pending::add(recent, ring, frames as u32, now);
        self.add_at(Counter::Attempts, direction.index() * 3 + kind.index(), frames);
    }
}

/// A whole cell of this CPU.
#[derive(Clone, Copy)]
pub(crate) struct Tally {
    few: Few,
    rest: Rest,
}

impl Tally {
    #[inline(always)]
    pub(crate) fn add(self, counter: Counter, amount: u64) {
        self.add_at(counter, 0, amount);
    }

    #[inline(always)]
    pub(crate) fn add_at(self, first: Counter, offset: usize, amount: u64) {
        self.rest.add_at(first, offset, amount);
    }

    /// An attempt that was not even sent.
    #[inline(always)]
    pub(crate) fn unsent_attempt(self, direction: Direction, ask: bool, frames: u64) {
        self.add_at(
            Counter::UnsentAttempts,
            direction.index() * 2 + usize::from(ask),
            frames,
        );
    }

    /// Frames and their bytes, among what is common.
    #[inline(always)]
    pub(crate) fn pair(self, frames: Counter, amount: Amount) {
        self.few.pair(frames, amount);
    }

    /// Frames and their bytes, among the rest.
    #[inline(always)]
    pub(crate) fn rare_pair(self, frames: Counter, amount: Amount) {
        self.add_at(frames, 0, amount.frames);
        self.add_at(frames, 1, amount.bytes);
    }

    /// What was delivered, out of one skb of so many bytes as the kernel counts them.
    #[inline(always)]
    pub(crate) fn delivered(self, from_sibling: bool, amount: Amount, kernel_bytes: u64) {
        self.few.delivered(from_sibling, amount);
        self.add(Counter::MergedFrames, amount.frames - 1);
        self.add(Counter::MergedBytes, amount.bytes - kernel_bytes);
    }

    /// An attempt.
    #[inline(always)]
    pub(crate) fn attempt(self, direction: Direction, kind: AskKind, frames: u64, now: u32) {
        self.rest.attempt(direction, kind, frames, now);
    }

    #[inline(always)]
    pub(crate) fn cancelled(self, direction: Direction, ask: bool, frames: u64) {
        self.add_at(Counter::Cancelled, direction.index() * 2 + usize::from(ask), frames);
    }
}

#[inline(always)]
pub(crate) fn now() -> u32 {
    // SAFETY: takes no arguments and only reads a clock.
    pending::second_of(unsafe { bpf_ktime_get_ns() })
}

/// The number of this CPU. The helper's result is declared as 32 bits, but it is a whole register whose upper half is 0
/// (`bpf_get_smp_processor_id`, `kernel/bpf/helpers.c`, 5.10 to 7.3): nobody needs to clear it.
#[inline(always)]
pub(crate) fn cpu() -> u64 {
    // SAFETY: the helper of that number takes no arguments and only reads the CPU's number.
    unsafe {
        let helper: unsafe extern "C" fn() -> u64 = transmute(BPF_FUNC_get_smp_processor_id as usize);
        helper()
    }
}

#[inline(always)]
pub(crate) fn lost(what: Lost, amount: u64) {
    let index = (what as u32) * CPUS.load() + cpu() as u32;
    if let Some(counter) = LOST.get_ptr_mut(index) {
        // SAFETY: the lookup succeeded and only this CPU writes this element.
        unsafe { *counter += amount };
    }
}

/// The cell of a slot.
#[inline(always)]
pub(crate) fn cell(slot: u32) -> Option<Tally> {
    if slot == NO_SLOT {
        return None;
    }
    let (cells, place) = (cells(), place_of(slot, cpu()));
    let Some(few) = cells.few(place) else {
        lost(Lost::Counts, 1);
        return None;
    };
    few.marks_rest();
    Some(Tally {
        few,
        rest: cells.rest(place)?,
    })
}

/// The place of a slot's cell on a CPU.
#[inline(always)]
pub(crate) fn place_of(slot: u32, cpu: u64) -> u32 {
    slot * CPUS.load() + cpu as u32
}

/// The same of a sub-interface; [`flow::NOTHING`] where it is nobody's.
#[inline(always)]
pub(crate) fn place_or_nothing(whose: Whose, cpu: u64) -> u32 {
    if whose.is_known() {
        place_of(whose.slot(), cpu)
    } else {
        flow::NOTHING
    }
}

/// All cells.
#[derive(Clone, Copy)]
pub(crate) struct Cells {
    /// How many are found without a lookup.
    direct: u64,
}

/// All cells.
#[inline(always)]
pub(crate) fn cells() -> Cells {
    Cells {
        direct: DIRECT_CELLS.load(),
    }
}

impl Cells {
    /// What is common of the cell at a place.
    #[inline(always)]
    pub(crate) fn few(self, place: u32) -> Option<Few> {
        let common = if self.direct == 0 {
            COMMON.get_ptr_mut(place)
        } else {
            direct::common(place, self.direct)
        };
        common.map(Few)
    }

    /// The rest of it. Of a parent alone: of a sub-interface it must be said that there is any ([`Few::marks_rest`]).
    #[inline(always)]
    pub(crate) fn rest(self, place: u32) -> Option<Rest> {
        let rare = if self.direct == 0 {
            RARE.get_ptr_mut(place)
        } else {
            direct::rare(place, self.direct)
        };
        rare.map(Rest)
    }
}

#[inline(always)]
pub(crate) fn sub_interface(key: SubInterfaceKey) -> SlotEntry {
    // SAFETY: the entry is copied at once; user space replaces entries whole, and a removed one may be read as its
    // successor only for the frame in hand.
    match unsafe { SUB_INTERFACES.get(key) } {
        Some(entry) => *entry,
        None => SlotEntry::NONE,
    }
}

/// The same by way of the table in front, for frames: `parent_slot` is the slot of the key's parent, if it has one.
#[inline(always)]
pub(crate) fn addressed(parent_slot: u32, parent: ParentKey, mac: Mac) -> Whose {
    if parent_slot < limits::SLOTS
        && let Some(whose) = in_front(parent_slot, mac)
    {
        return whose;
    }
    Whose::of(sub_interface(SubInterfaceKey::of(parent, mac))).hidden(u64::from(parent_slot))
}

/// What the table in front says; None where it says nothing.
#[inline(always)]
pub(crate) fn in_front(parent_slot: u32, mac: Mac) -> Option<Whose> {
    let place = front::of_sub_interface(parent_slot, mac);
    let word = word(&FRONT, place.index)?;
    match front::sub_interface(place, word) {
        Found::Whose(whose) => Some(whose.hidden(word)),
        Found::Behind => None,
    }
}

/// A parent as user space last told of it; its allowance of unknown MACs is not told here.
#[inline(always)]
pub(crate) fn parent(key: ParentKey) -> Option<Parent> {
    if let Some(parent) = parent_in_front(key) {
        return Some(parent);
    }
    // SAFETY: the entry is copied at once; user space replaces entries whole.
    unsafe { PARENTS.get(key) }.map(Parent::of_entry)
}

/// The same as far as the table in front knows it.
#[inline(always)]
pub(crate) fn parent_in_front(key: ParentKey) -> Option<Parent> {
    parent_place(key).map(Parent::of_place)
}

/// The same as it stands there.
#[inline(always)]
pub(crate) fn parent_place(key: ParentKey) -> Option<u64> {
    let (index, product) = front::of_parent(key);
    let place = PARENT_FRONT.get_ptr(index)?;
    // SAFETY: the lookup succeeded; user space writes whole words, and each is read whole. The processors that this is
    // built for let nobody see two reads, or two writes, in another order.
    let (first, what, again) = unsafe {
        (
            (&raw const (*place).key).read_volatile(),
            (&raw const (*place).what).read_volatile(),
            (&raw const (*place).key).read_volatile(),
        )
    };
    (first == product && again == product).then_some(what)
}

/// The state of the tables, to be asked before them: see [`macvlan_agent_ebpf::abi::Settings`].
#[inline(always)]
pub(crate) fn state() -> u64 {
    // SAFETY: the settings are always there; user space writes the word whole, and it is read whole.
    unsafe { (&raw const (*direct::settings()).state).read_volatile() }
}

/// Where the flow of frames with these words at their head is on this CPU. Where another thread may come in between
/// (PREEMPT_RT) there is one place, of no flow.
#[inline(always)]
fn place_of_flow(first: u64, last: u64, cpu: u64) -> u64 {
    flow::place(first, last) * FLOW_STRIDE.load() | cpu
}

/// What is there, whatever flow it is.
#[inline(always)]
pub(crate) fn flow(first: u64, last: u64, cpu: u64) -> &'static mut Flow {
    flow_at(place_of_flow(first, last, cpu))
}

/// Keeps what was found out.
#[inline(always)]
pub(crate) fn learnt(cpu: u64, flow: Flow) {
    let (place, last) = (place_of_flow(flow.of.first, flow.of.last, cpu), LAST_FLOW.load());
    if last != 0 {
        *flow_at(place) = Flow {
            place: (place & last) as u32,
            ..flow
        };
    }
}

/// A flow by its place.
#[inline(always)]
pub(crate) fn flow_at(place: u64) -> &'static mut Flow {
    // SAFETY: every place that is looked for is inside the map; it is one CPU's, and the programs that use it run one after
    // the other, since softirqs are off while they do.
    unsafe { &mut *direct::flow(place) }
}

#[inline(always)]
fn word(table: &Array<u64>, index: u32) -> Option<u64> {
    // SAFETY: the lookup succeeded; user space writes whole words, and one is read whole.
    table.get_ptr(index).map(|word| unsafe { word.read_volatile() })
}

/// The cell that the counts of a MAC wait in until user space knows whose it is.
#[inline(always)]
pub(crate) fn credit(key: SubInterfaceKey) -> Option<Tally> {
    let key = key.on_cpu(cpu() as u32);
    if let Some(credit) = CREDITS.get_ptr_mut(key) {
        return Some(waiting(credit));
    }
    if !allowed(ParentKey {
        netns: key.netns,
        ifindex: key.parent,
    }) {
        lost(Lost::Credits, 1);
        return None;
    }
    let blank = BLANK.get_ptr_mut(0)?;
    // SAFETY: the element is this CPU's own scratch; its cell is never written, so it stays empty.
    let blank = unsafe {
        (*blank).since = bpf_ktime_get_ns();
        &*blank
    };
    there_are_credits();
    let inserted = CREDITS.insert(key, blank, u64::from(BPF_NOEXIST));
    match CREDITS.get_ptr_mut(key) {
        Some(credit) => Some(waiting(credit)),
        None => {
            if inserted.is_err() {
                lost(Lost::Credits, 1);
            }
            None
        }
    }
}

/// Says that from now on it is worth asking for them.
#[inline(always)]
fn there_are_credits() {
    // SAFETY: the settings are always there; all who write the word write the same.
    unsafe { (&raw mut (*direct::settings()).has_credits).write_volatile(1) };
}

/// The cell of a credit.
#[inline(always)]
fn waiting(credit: *mut Credit) -> Tally {
    // SAFETY: the lookup that found it succeeded.
    let (few, rest) = unsafe { (&raw mut (*credit).cell.common, &raw mut (*credit).cell.rare) };
    Tally {
        few: Few(few),
        rest: Rest(rest),
    }
}

/// Whether a parent may have one more unknown MAC now. Two CPUs may both take the last one: a bound, not a count.
#[inline(always)]
fn allowed(key: ParentKey) -> bool {
    let Some(parent) = PARENTS.get_ptr_mut(key) else {
        return true;
    };
    let now = now();
    // SAFETY: the lookup succeeded; these two fields are written here only.
    let entry = unsafe { &mut *parent };
    if now.wrapping_sub(entry.unknown_since) >= limits::CREDIT_SECONDS {
        entry.unknown_since = now;
        entry.unknown_count = 0;
    }
    entry.unknown_count += 1;
    entry.unknown_count <= limits::CREDITS_PER_PARENT * CPUS.load()
}

/// The cell of a known sub-interface, or the credit of a MAC that may become one.
#[inline(always)]
pub(crate) fn owner(slot: u32, parent: ParentKey, mac: Mac) -> Option<Tally> {
    if slot != NO_SLOT {
        cell(slot)
    } else {
        credit(SubInterfaceKey::of(parent, mac))
    }
}

/// Remembers that a unicast frame went where macvlan does not carry it: only then can a reflection be its.
#[inline(always)]
pub(crate) fn attempted(slot: u32, direction: Direction) {
    if let Some(attempted) = ATTEMPTED.get_ptr_mut(slot) {
        // SAFETY: the lookup succeeded; CPUs that write at once write the same second.
        unsafe { (*attempted).seconds[direction.index()] = now() };
    }
}

/// Remembers that a sibling's frame for a sub-interface in bridge mode went to the wire: only then can it come back.
#[inline(always)]
pub(crate) fn sent_out(slot: u32) {
    if let Some(attempted) = ATTEMPTED.get_ptr_mut(slot) {
        // SAFETY: as in `attempted`.
        unsafe { (*attempted).sent_out = now() };
    }
}

/// Whether a frame from a sibling may have come back from the wire.
#[inline(always)]
pub(crate) fn was_sent_out(slot: u32) -> bool {
    match ATTEMPTED.get_ptr_mut(slot) {
        // SAFETY: the lookup succeeded; a word is read whole.
        Some(attempted) => pending::is_pending(unsafe { (*attempted).sent_out }, now()),
        None => false,
    }
}

/// Whether a reflection may be that of a frame that is still pending.
#[inline(always)]
pub(crate) fn is_pending(slot: u32, direction: Direction) -> bool {
    match ATTEMPTED.get_ptr_mut(slot) {
        // SAFETY: the lookup succeeded; a word is read whole.
        Some(attempted) => pending::is_pending(unsafe { (*attempted).seconds[direction.index()] }, now()),
        None => false,
    }
}

/// Remembers that `asker` waits for `target`. `slot` is the addressee's where the parent asks.
#[inline(always)]
pub(crate) fn ask(parent: ParentKey, asker: Mac, target: [u8; 16], direction: Direction, slot: u32, now: u32) {
    let key = ask_key(parent, asker, target);
    if let Some(ask) = ASKS.get_ptr_mut(key) {
        // SAFETY: the lookup succeeded; two CPUs asking for the same at once is what the kernel's own neighbour table
        // prevents.
        let ask = unsafe { &mut *ask };
        ask.slot = slot;
        ask.direction = direction as u32;
        pending::add(&mut ask.recent, 0, 1, now);
        return;
    }
    let mut fresh = Ask {
        slot,
        direction: direction as u32,
        recent: Recent {
            seconds: [0; 4],
            counts: [[0; 4]],
        },
    };
    pending::add(&mut fresh.recent, 0, 1, now);
    if ASKS.insert(key, fresh, 0).is_err() {
        lost(Lost::Asks, 1);
    }
}

/// A reply to `asker` about `target`, or the request itself come back: what was pending is not lost. `parent_slot` is
/// where the parent's totals are.
#[inline(always)]
pub(crate) fn answered(parent: ParentKey, asker: Mac, target: [u8; 16], parent_slot: u32) {
    let key = ask_key(parent, asker, target);
    let Some(ask) = ASKS.get_ptr_mut(key) else { return };
    // SAFETY: the lookup succeeded; the entry is copied at once.
    let Ask {
        slot,
        direction,
        recent,
    } = unsafe { *ask };
    let count = pending::pending(&recent, 0, now());
    let _ = ASKS.remove(key);
    if count == 0 {
        return;
    }
    let whose = || owner(addressed(parent_slot, parent, asker).slot(), parent, asker);
    let (direction, whose) = if direction == Direction::ParentToChild as u32 {
        (Direction::ParentToChild, cell(slot))
    } else if direction == Direction::Sibling as u32 {
        (Direction::Sibling, whose())
    } else {
        (Direction::ChildToParent, whose())
    };
    if let Some(tally) = whose {
        tally.cancelled(direction, true, count);
    }
    if let Some(tally) = cell(parent_slot) {
        tally.cancelled(direction, true, count);
    }
}

#[inline(always)]
fn ask_key(parent: ParentKey, asker: Mac, target: [u8; 16]) -> AskKey {
    AskKey {
        netns: parent.netns,
        parent: parent.ifindex,
        target,
        asker: asker.bytes(),
        pad: [0; 2],
    }
}
