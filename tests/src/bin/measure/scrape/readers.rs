//! Goal 9: the counts of many sub-interfaces, read by the agent's reader from mapped pages, and by one that asks the
//! kernel for many entries at once, from a per-CPU hash by MAC as is usual, and from the same array.

use std::{
    hint::black_box,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use macvlan_agent::kernel::counts::{Counts, Totals, monotonic_second};
use macvlan_agent_ebpf::abi::{
    Cell, Common, Rare, Settings,
    counts::{COMMON, HAS_RARE},
    label::Lost,
};

use crate::report::{self, Quartiles};

const SLOTS: u32 = 10_000;
/// One sub-interface in so many had anything but frames from and to outside and its siblings.
const RARELY: u32 = 10;
/// More gains nothing.
const BATCH: u32 = 512;
const ROUNDS: usize = 31;

/// `enum bpf_cmd` of `include/uapi/linux/bpf.h`, and `enum bpf_map_type`.
const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_LOOKUP_BATCH: libc::c_long = 24;
const ARRAY: u32 = 2;
const PERCPU_HASH: u32 = 5;
const MMAPABLE: u32 = 1 << 10;

/// The beginning of `union bpf_attr` for `BPF_MAP_CREATE`.
#[repr(C)]
struct Create {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// For `BPF_MAP_UPDATE_ELEM`.
#[repr(C)]
struct Update {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// For `BPF_MAP_LOOKUP_BATCH`.
#[repr(C)]
struct Batch {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    elem_flags: u64,
    flags: u64,
}

/// What the usual map is asked by: a namespace, a parent's index, a MAC.
type Key = [u32; 4];

pub(super) fn measure() -> Result<()> {
    let cpus = aya::util::nr_cpus().map_err(|(file, error)| anyhow::anyhow!("{file}: {error}"))?;
    let entries = SLOTS * u32::try_from(cpus)?;
    let cells = create(ARRAY, 4, size_of::<Cell>(), entries, 0)?;
    let common = create(ARRAY, 4, size_of::<Common>(), entries, MMAPABLE)?;
    let rare = create(ARRAY, 4, size_of::<Rare>(), entries, MMAPABLE)?;
    let lost = create(ARRAY, 4, 8, u32::try_from(Lost::ALL.len() * cpus)?, MMAPABLE)?;
    let settings = create(ARRAY, 4, size_of::<Settings>(), 1, MMAPABLE)?;
    let hash = create(PERCPU_HASH, size_of::<Key>(), size_of::<Cell>(), SLOTS, 0)?;
    for slot in 0..SLOTS {
        let values: Vec<Cell> = (0..cpus).map(|cpu| cell(slot, cpu)).collect();
        update(&hash, &[4_026_531_840, slot % 10, 0x6d76_0000, slot], &values)?;
        for (value, index) in values.iter().zip(slot * entries / SLOTS..) {
            update(&cells, &index, std::slice::from_ref(value))?;
            update(&common, &index, std::slice::from_ref(&value.common))?;
            update(&rare, &index, std::slice::from_ref(&value.rare))?;
        }
    }
    let counts = Counts::map((&common, &rare), &lost, &settings, SLOTS as usize, cpus)?;
    let mut sides = [(); 4].map(|()| Vec::new());
    let (mut of_hash, mut of_array) = (Reader::<Key>::new(cpus, cpus), Reader::<u32>::new(1, cpus));
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        let ours = sum((0..SLOTS).map(|slot| counts.of_sub_interface(slot, &[])));
        sides[0].push(begun.elapsed().as_secs_f64() * 1e3);
        let begun = Instant::now();
        black_box(sum((0..SLOTS).map(|slot| counts.of_sub_interface(slot, &[]))));
        sides[3].push(begun.elapsed().as_secs_f64() * 1e3);
        let begun = Instant::now();
        let theirs = of_hash.read(&hash)?;
        sides[1].push(begun.elapsed().as_secs_f64() * 1e3);
        let begun = Instant::now();
        let same = of_array.read(&cells)?;
        sides[2].push(begun.elapsed().as_secs_f64() * 1e3);
        ensure!(ours == theirs && ours == same, "the readers do not read the same");
    }
    let [ours, hash, array, again] = sides.map(Quartiles::of);
    let [ours, hash, array, again] = [ours?, hash?, array?, again?];
    report::side("9", "mapped-pages", ours)?;
    report::side("9", "mapped-pages,again_at_once", again)?;
    report::side("9", "batch,per-CPU-hash", hash)?;
    report::side("9", "batch,same-array", array)?;
    let text = format!(
        "{SLOTS} cells of {} bytes on each of {cpus} CPUs, summed, of which one in {RARELY} has more than what is common; \
         the goal's number is over the per-CPU hash, over an array in batches it is {:.3}",
        size_of::<Cell>(),
        ours.median / array.median
    );
    report::note("9", &text)?;
    report::goal("9", ours.median / hash.median)
}

/// What one CPU counted for a slot.
fn cell(slot: u32, cpu: usize) -> Cell {
    let mut cell = Cell::EMPTY;
    let rare = if slot.is_multiple_of(RARELY) { 4 } else { 0 };
    let counters = cell.common.counters.iter_mut().chain(&mut cell.rare.counters);
    for (counter, number) in counters.take(COMMON + rare).zip(1_u64..) {
        *counter = u64::from(slot) * number + cpu as u64;
    }
    if rare > 0 {
        cell.common.counters[COMMON - 1] |= HAS_RARE;
    }
    cell
}

/// One number that depends on all that was read.
fn sum(totals: impl Iterator<Item = Totals>) -> u64 {
    totals.fold(0, |sum, totals| {
        black_box(&totals).counters().fold(sum, u64::wrapping_add)
    })
}

/// Reads a map in batches, and sums what belongs together.
struct Reader<K> {
    keys: Vec<K>,
    values: Vec<Cell>,
    /// Cells of an entry, and of a slot.
    of_entry: usize,
    of_slot: usize,
}

impl<K: Copy + Default> Reader<K> {
    fn new(of_entry: usize, of_slot: usize) -> Self {
        // Entries of a slot are never parted.
        let batch = BATCH as usize * of_slot / of_entry;
        Self {
            keys: vec![K::default(); batch],
            values: vec![Cell::EMPTY; batch * of_entry],
            of_entry,
            of_slot,
        }
    }

    fn read(&mut self, map: &OwnedFd) -> Result<u64> {
        let (mut place, mut next, mut total) = ([0_u64; 2], [0_u64; 2], 0_u64);
        let mut begun = false;
        loop {
            let mut batch = Batch {
                from: if begun { address(&place) } else { 0 },
                to: next.as_mut_ptr() as u64,
                keys: self.keys.as_mut_ptr() as u64,
                values: self.values.as_mut_ptr() as u64,
                count: u32::try_from(self.keys.len())?,
                map: u32::try_from(map.as_raw_fd())?,
                elem_flags: 0,
                flags: 0,
            };
            // SAFETY: the kernel writes `count` keys and values into vectors that are as long, whose elements are plain
            // numbers, and where to go on into `next`, which is as long as the longest of the keys.
            let result = unsafe { bpf(MAP_LOOKUP_BATCH, &mut batch) };
            let ended = match result {
                Ok(_) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                Err(error) => return Err(error).context("a batch"),
            };
            let now = monotonic_second();
            let cells = &black_box(&self.values)[..batch.count as usize * self.of_entry];
            total = total.wrapping_add(sum(cells.chunks(self.of_slot).map(|slot| {
                let mut totals = Totals::ZERO;
                for cell in slot {
                    totals.add(cell, now);
                }
                totals
            })));
            if ended {
                return Ok(total);
            }
            place = *black_box(&next);
            begun = true;
            next = [0; 2];
        }
    }
}

fn address<T>(value: &T) -> u64 {
    std::ptr::from_ref(value) as u64
}

fn create(map_type: u32, key_size: usize, value_size: usize, max_entries: u32, map_flags: u32) -> Result<OwnedFd> {
    let mut create = Create {
        map_type,
        key_size: u32::try_from(key_size)?,
        value_size: u32::try_from(value_size)?,
        max_entries,
        map_flags,
    };
    // SAFETY: the attributes are numbers alone.
    let descriptor = unsafe { bpf(MAP_CREATE, &mut create) }.context("a map")?;
    // SAFETY: the kernel has just made it, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(descriptor)?) })
}

fn update<K, V>(map: &OwnedFd, key: &K, value: &[V]) -> Result<()> {
    let mut update = Update {
        map: u32::try_from(map.as_raw_fd())?,
        pad: 0,
        key: address(key),
        value: address(&value[0]),
        flags: 0,
    };
    // SAFETY: the kernel reads a key and a value, which are as long as the map was made for.
    unsafe { bpf(MAP_UPDATE_ELEM, &mut update) }.context("an entry")?;
    Ok(())
}

/// `bpf(2)`.
///
/// # Safety
/// All that `attributes` points to must be as long as the command and the map want, and may be written where they say so.
unsafe fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    let length = size_of::<T>();
    // SAFETY: the attributes are as long as is said, and the caller answers for what they point to.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), length) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
