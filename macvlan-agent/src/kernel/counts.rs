//! The counts in memory: the maps' own pages, read without a system call.
//!
//! A system call on a map would make the kernel skip kprobe programs on this CPU while it lasts (`bpf_prog_active`,
//! `trace_call_bpf` in `kernel/trace/bpf_trace.c`).

use std::{
    array, io,
    num::NonZeroUsize,
    ops::Range,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
};

use macvlan_agent_ebpf::{
    abi::{
        Cell, Common, Counter, HANDLER_ATTACHED, RECENT_RINGS, Range as Addresses, Rare, Recent, Settings,
        TABLES_CHANGED,
        counts::{COMMON, COUNTERS, HAS_RARE, RECENT_SECONDS},
        label::Lost,
    },
    pending,
};
use nix::{
    sys::mman::{MapFlags, ProtFlags, mmap, munmap},
    time::{ClockId, clock_gettime},
};

/// The pages of a mapped array of `T`.
pub(super) struct Mapped<T> {
    start: NonNull<T>,
    length: usize,
}

// SAFETY: the pages are shared with the kernel for as long as the value lives, and are read and written by volatile
// accesses of whole words only.
unsafe impl<T> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Mapped<T> {}

impl<T> Mapped<T> {
    pub(super) fn of(map: impl AsFd, length: usize) -> io::Result<Self> {
        let bytes = NonZeroUsize::new(length * size_of::<T>()).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing of ours; the array has at least
        // `length` elements, which is what it was created with.
        let start = unsafe {
            mmap(
                None,
                bytes,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                map,
                0,
            )?
        };
        Ok(Self {
            start: start.cast(),
            length,
        })
    }

    fn pointer(&self, index: usize) -> Option<*mut T> {
        if index >= self.length {
            return None;
        }
        // SAFETY: the index is inside the mapping.
        Some(unsafe { self.start.as_ptr().add(index) })
    }

    fn read(&self, index: usize) -> Option<T> {
        // SAFETY: the pointer is inside the mapping and aligned, since the array begins on a page; any bytes are a
        // valid value of the types that are mapped here.
        self.pointer(index).map(|pointer| unsafe { pointer.read_volatile() })
    }

    /// An element as words, each of which is read whole.
    fn words(&self, index: usize) -> &[AtomicU64] {
        let Some(pointer) = self.pointer(index) else {
            return &[];
        };
        // SAFETY: the element is inside the mapping, which lives as long as `self`, and aligned, since the array begins on a
        // page and the types that are read so consist of words, or of pairs of halves ([`Recent`]), without gaps; what the
        // programs write there meanwhile they write by stores of whole words or halves, which an atomic load of the word
        // reads before or after each.
        unsafe { std::slice::from_raw_parts(pointer.cast(), size_of::<T>() / size_of::<u64>()) }
    }

    pub(super) fn write(&self, index: usize, value: T) {
        if let Some(pointer) = self.pointer(index) {
            // SAFETY: as for reading.
            unsafe { pointer.write_volatile(value) };
        }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: made by `of` with this length, and no pointer into it outlives the value.
        let _ = unsafe { munmap(self.start.cast(), self.length * size_of::<T>()) };
    }
}

/// The counts of one slot over all CPUs at one moment. Of most slots nothing is counted but what is common.
#[derive(Clone, Debug)]
pub struct Totals {
    common: [u64; COMMON],
    rest: Option<Box<Rest>>,
}

/// What is not common.
#[derive(Clone, Debug)]
struct Rest {
    counters: [u64; COUNTERS - COMMON],
    pending: [u64; RECENT_RINGS],
}

impl Rest {
    const ZERO: Self = Self {
        counters: [0; COUNTERS - COMMON],
        pending: [0; RECENT_RINGS],
    };

    /// Adds one. Tells whether anything of it may be pending.
    fn add(&mut self, rare: &Rare, now: u32) -> bool {
        for (sum, value) in self.counters.iter_mut().zip(rare.counters) {
            *sum = sum.wrapping_add(value);
        }
        self.add_pending(&rare.recent, now);
        rare.recent.seconds.iter().any(|since| pending::is_pending(*since, now))
    }

    /// Adds one as it stands in memory. Tells whether anything of it may be pending.
    fn add_words(&mut self, rare: &[AtomicU64], now: u32) -> bool {
        let (counters, recent) = rare.split_at_checked(COUNTERS - COMMON).unwrap_or_default();
        for (sum, value) in self.counters.iter_mut().zip(counters) {
            *sum = sum.wrapping_add(value.load(Ordering::Relaxed));
        }
        // An attempt is made pending before it is counted: whoever has read that it is counted reads that it is pending.
        fence(Ordering::Acquire);
        let mut seconds = recent.iter().take(RECENT_SECONDS / 2).flat_map(halves);
        let is_pending = seconds.any(|second| pending::is_pending(second, now));
        if is_pending {
            self.add_pending(&recent_of(recent), now);
        }
        is_pending
    }

    fn add_pending(&mut self, recent: &Recent<RECENT_RINGS>, now: u32) {
        for (ring, sum) in self.pending.iter_mut().enumerate() {
            *sum += pending::pending(recent, ring, now);
        }
    }
}

/// What stands there in words of two numbers each: the seconds, then the counts of each ring.
fn recent_of(words: &[AtomicU64]) -> Recent<RECENT_RINGS> {
    let mut recent = Recent::default();
    let places = recent.seconds.iter_mut().chain(recent.counts.as_flattened_mut());
    for (place, number) in places.zip(words.iter().flat_map(halves)) {
        *place = number;
    }
    recent
}

/// The two numbers of a word, in the order in which they lie in memory.
fn halves(word: &AtomicU64) -> [u32; 2] {
    let bytes = word.load(Ordering::Relaxed).to_ne_bytes();
    let (halves, _) = bytes.as_chunks();
    array::from_fn(|half| u32::from_ne_bytes(halves[half]))
}

impl Totals {
    /// Nothing counted.
    pub const ZERO: Self = Self {
        common: [0; COMMON],
        rest: None,
    };

    /// Adds one cell as it was in second `now`.
    pub fn add(&mut self, cell: &Cell, now: u32) {
        self.add_common(&cell.common);
        if cell.rare != Rare::EMPTY {
            self.rest().add(&cell.rare, now);
        }
    }

    fn add_common(&mut self, common: &Common) {
        for (sum, value) in self.common.iter_mut().zip(common.counters) {
            *sum = sum.wrapping_add(value & !HAS_RARE);
        }
    }

    fn rest(&mut self) -> &mut Rest {
        self.rest.get_or_insert_with(|| Box::new(Rest::ZERO))
    }

    /// Sets a counter.
    pub fn set(&mut self, counter: Counter, value: u64) {
        self.set_at(counter as usize, value);
    }

    /// Sets the counter at a place of [`Counter`].
    pub fn set_at(&mut self, place: usize, value: u64) {
        let counter = match place.checked_sub(COMMON) {
            None => self.common.get_mut(place),
            // Nothing is what is there.
            Some(_) if value == 0 && self.rest.is_none() => None,
            Some(place) => self.rest().counters.get_mut(place),
        };
        if let Some(counter) = counter {
            *counter = value;
        }
    }

    /// Adds to a counter.
    pub fn raise(&mut self, counter: Counter, amount: u64) {
        self.set(counter, self.at(counter, 0) + amount);
    }

    /// The counter `offset` places behind `first`.
    #[must_use]
    pub fn at(&self, first: Counter, offset: usize) -> u64 {
        let place = first as usize + offset;
        let counter = match place.checked_sub(COMMON) {
            None => self.common.get(place),
            Some(place) => self.rest.as_ref().and_then(|rest| rest.counters.get(place)),
        };
        counter.copied().unwrap_or(0)
    }

    /// Whether anything but what is common was ever counted.
    #[must_use]
    pub fn has_rest(&self) -> bool {
        self.rest.is_some()
    }

    /// All counters that were counted, in the order of [`Counter`].
    pub fn counters(&self) -> impl Iterator<Item = u64> {
        let rest = self.rest.as_deref().map_or(&[][..], |rest| &rest.counters);
        self.common.iter().chain(rest).copied()
    }

    /// Attempts still pending in a ring.
    #[must_use]
    pub fn pending(&self, ring: usize) -> u64 {
        let pending = self.rest.as_ref().and_then(|rest| rest.pending.get(ring));
        pending.copied().unwrap_or(0)
    }
}

/// The mapped maps.
pub struct Counts {
    common: Mapped<Common>,
    rare: Mapped<Rare>,
    lost: Mapped<u64>,
    settings: Mapped<Settings>,
    cpus: usize,
    /// A second of the clock that was the present one some time ago.
    second: AtomicU32,
}

impl Counts {
    /// Maps the arrays. Those of the cells, what is common and the rest, have `slots` × `cpus` elements.
    pub fn map(
        (common, rare): (impl AsFd, impl AsFd),
        lost: impl AsFd,
        settings: impl AsFd,
        slots: usize,
        cpus: usize,
    ) -> io::Result<Self> {
        Ok(Self {
            common: Mapped::of(common, slots * cpus)?,
            rare: Mapped::of(rare, slots * cpus)?,
            lost: Mapped::of(lost, Lost::ALL.len() * cpus)?,
            settings: Mapped::of(settings, 1)?,
            cpus,
            second: AtomicU32::new(monotonic_second()),
        })
    }

    /// The sum over all CPUs of the cells of a sub-interface's slot, and of `extra` ones.
    #[must_use]
    pub fn of_sub_interface(&self, slot: u32, extra: &[Cell]) -> Totals {
        self.with_rest(self.common(slot), &self.marked(slot), extra)
    }

    /// The same of a parent's, which always has more than what is common.
    #[must_use]
    pub fn of_parent(&self, slot: u32, extra: &[Cell]) -> Totals {
        self.with_rest(self.common(slot), &self.cells(slot), extra)
    }

    /// Where a slot's cells are.
    fn cells(&self, slot: u32) -> Range<usize> {
        let first = usize::try_from(slot).unwrap_or(usize::MAX).saturating_mul(self.cpus);
        first..first.saturating_add(self.cpus)
    }

    /// Those of them that have anything beside what is common.
    fn marked(&self, slot: u32) -> impl Iterator<Item = usize> + Clone {
        self.cells(slot).filter(|cell| self.has_rare(*cell))
    }

    /// What is common.
    fn common(&self, slot: u32) -> Totals {
        let mut totals = Totals::ZERO;
        for cell in self.cells(slot) {
            for (sum, word) in totals.common.iter_mut().zip(self.common.words(cell)) {
                *sum = sum.wrapping_add(word.load(Ordering::Relaxed) & !HAS_RARE);
            }
        }
        totals
    }

    /// The same with the rest of these cells, if there is any.
    fn with_rest(&self, mut totals: Totals, cells: &(impl Iterator<Item = usize> + Clone), extra: &[Cell]) -> Totals {
        for cell in extra {
            totals.add_common(&cell.common);
        }
        if cells.clone().next().is_none() && extra.iter().all(|cell| cell.rare == Rare::EMPTY) {
            return totals;
        }
        let rest = totals.rest();
        let mut before = self.second.load(Ordering::Relaxed);
        loop {
            let mut is_pending = false;
            for cell in cells.clone() {
                is_pending |= rest.add_words(self.rare.words(cell), before);
            }
            for cell in extra {
                is_pending |= rest.add(&cell.rare, before);
            }
            // What has come of age by then has so by now, and what was made pending since would be.
            if !is_pending {
                return totals;
            }
            // A column is emptied when its second comes round: only within one second is it sure to be whole. What was the
            // second when the last slot had been read was it before this one.
            fence(Ordering::Acquire);
            let now = monotonic_second();
            if now == before {
                return totals;
            }
            self.second.store(now, Ordering::Relaxed);
            before = now;
            *rest = Rest::ZERO;
        }
    }

    /// Some counters of a sub-interface's slot that are not common, over all CPUs.
    #[must_use]
    pub fn rare<const N: usize>(&self, slot: u32, counters: [Counter; N]) -> [u64; N] {
        let mut sums = [0; N];
        for index in self.marked(slot) {
            for (sum, counter) in sums.iter_mut().zip(counters) {
                *sum += self.rare_at(index, counter).unwrap_or(0);
            }
        }
        sums
    }

    fn rare_at(&self, index: usize, counter: Counter) -> Option<u64> {
        let (rare, place) = (self.rare.pointer(index)?, (counter as usize).checked_sub(COMMON)?);
        // SAFETY: the pointer is to a whole element inside the mapping, and the counter is one of it.
        Some(unsafe { (&raw const (*rare).counters[place]).read_volatile() })
    }

    /// Whether a sub-interface has anything in a cell beside what is common.
    fn has_rare(&self, index: usize) -> bool {
        // SAFETY: the pointer is to a whole element inside the mapping.
        let last = |common: *mut Common| unsafe { (&raw const (*common).counters[COMMON - 1]).read_volatile() };
        self.common
            .pointer(index)
            .is_some_and(|common| last(common) & HAS_RARE != 0)
    }

    /// Empties a slot that no program writes any more.
    pub fn clear(&self, slot: u32) {
        for index in self.cells(slot) {
            self.common.write(index, Common::EMPTY);
            self.rare.write(index, Rare::EMPTY);
        }
    }

    /// How many counts were lost, by where.
    #[must_use]
    pub fn lost(&self, what: Lost) -> u64 {
        let first = what.index() * self.cpus;
        (first..first + self.cpus)
            .filter_map(|index| self.lost.read(index))
            .sum()
    }

    /// Tells the TC programs whether `handle_frame` counts what is delivered.
    pub fn set_handler_attached(&self, attached: bool) {
        if let Some(state) = self.state() {
            if attached {
                state.fetch_or(HANDLER_ATTACHED, Ordering::SeqCst);
            } else {
                state.fetch_and(!HANDLER_ATTACHED, Ordering::SeqCst);
            }
        }
    }

    /// Tells the TC programs that the tables have changed: what they found out before holds no longer.
    pub fn tables_changed(&self) {
        if let Some(state) = self.state() {
            state.fetch_add(TABLES_CHANGED, Ordering::SeqCst);
        }
    }

    fn state(&self) -> Option<&AtomicU64> {
        // SAFETY: the word is aligned and inside the mapping, which lives as long as `self`; here it is written by atomic
        // operations alone, in the kernel it is only read.
        let state = |settings: *mut Settings| unsafe { AtomicU64::from_ptr(&raw mut (*settings).state) };
        self.settings.pointer(0).map(state)
    }

    /// Whether there may be counts that wait for their owner.
    #[must_use]
    pub fn has_credits(&self) -> bool {
        // SAFETY: the word is inside the mapping; here it is only read.
        let has = |settings: *mut Settings| unsafe { (&raw const (*settings).has_credits).read_volatile() };
        self.settings.pointer(0).map(has).is_some_and(|has| has != 0)
    }

    /// Tells `frame_free` where macvlan's handler is.
    pub fn set_handler_range(&self, range: Addresses) {
        if let Some(settings) = self.settings.pointer(0) {
            // SAFETY: the field is inside the mapping; the programs read each of its words whole.
            unsafe { (&raw mut (*settings).handler).write_volatile(range) };
        }
    }
}

/// The second of the clock that the programs use (`bpf_ktime_get_ns`).
#[must_use]
pub fn monotonic_second() -> u32 {
    pending::second_of(monotonic_nanoseconds())
}

/// The same in nanoseconds.
#[must_use]
pub fn monotonic_nanoseconds() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| time.tv_sec() * 1_000_000_000 + time.tv_nsec());
    u64::try_from(time).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_the_sum_of_cells_and_of_what_is_pending() {
        let mut cell = Cell::EMPTY
            .with(Counter::Attempts, 5)
            .with(Counter::DeliveredExternalFrames, 7);
        pending::add(&mut cell.rare.recent, 0, 2, 50);
        let mut totals = Totals::ZERO;
        totals.add(&cell, 51);
        totals.add(&cell, 51);
        assert_eq!((totals.at(Counter::Attempts, 0), totals.pending(0)), (10, 4));
        assert_eq!(totals.at(Counter::DeliveredExternalFrames, 0), 14);
        let mut later = Totals::ZERO;
        later.add(&cell, 54);
        assert_eq!(later.pending(0), 0, "settled");
    }

    #[test]
    fn words_in_memory_are_the_cell() {
        let mut cell = Cell::EMPTY;
        for (value, counter) in (1..).zip(&mut cell.rare.counters) {
            *counter = value << 33;
        }
        for ring in 0..RECENT_RINGS {
            pending::add(&mut cell.rare.recent, ring, 3 + u32::try_from(ring).unwrap(), 50);
        }
        let words = (&raw const cell.rare).cast::<AtomicU64>();
        // SAFETY: the cell is aligned for words, consists of them, and nobody else has it.
        let words = unsafe { std::slice::from_raw_parts(words, size_of::<Rare>() / size_of::<u64>()) };
        let (mut read, mut added) = (Rest::ZERO, Rest::ZERO);
        read.add_words(words, 51);
        added.add(&cell.rare, 51);
        assert_eq!((read.counters, read.pending), (added.counters, added.pending));
        assert_eq!(read.counters, cell.rare.counters);
        assert_eq!(read.pending[1], 4);
    }

    #[test]
    fn what_is_not_common_takes_room_only_where_it_is_counted() {
        let mut totals = Totals::ZERO;
        totals.raise(Counter::DeliveredExternalFrames, 3);
        totals.set(Counter::Attempts, 0);
        assert!(totals.rest.is_none());
        totals.raise(Counter::OtherwiseDroppedSkbs, 2);
        assert_eq!(
            (
                totals.at(Counter::OtherwiseDroppedSkbs, 0),
                totals.at(Counter::Attempts, 0)
            ),
            (2, 0)
        );
        assert_eq!(totals.at(Counter::DeliveredExternalFrames, 0), 3);
    }
}
