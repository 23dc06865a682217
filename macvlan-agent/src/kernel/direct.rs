//! The maps that programs address without a lookup ([`macvlan_agent_ebpf::abi::direct`]): made here, and put into the
//! object in the places of their marks.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use macvlan_agent_ebpf::{
    abi::{Common, Direct, Rare, Settings, direct::CAST, limits},
    flow::Flow,
};

use super::{facts::Cast, load::OBJECT, room::Room, system_call::descriptor};

/// The verifier lets no program go further into a map (`BPF_MAX_VAR_OFF`, `include/linux/bpf_verifier.h`, 5.10 to 7.3).
const FURTHEST: u32 = 1 << 29;

/// The maps of one value, and how large they are, as the programs' globals say it.
pub(super) struct DirectMaps {
    maps: [OwnedFd; Direct::ALL.len()],
    /// How far apart the flows of a CPU are.
    pub(super) flow_stride: u64,
    /// The last place of a flow; 0 where there are none.
    pub(super) last_flow: u64,
    /// The last place of a frame that is being handed to macvlan.
    pub(super) last_entry: u64,
    /// The cells that are found without a lookup: all, or none where the kernel takes no value as large as that (before
    /// 6.0, `array_map_alloc_check`, `kernel/bpf/arraymap.c`).
    pub(super) cells: u64,
    cast: Option<Cast>,
}

impl DirectMaps {
    /// Makes them.
    pub(super) fn make(room: Room, cpus: u32, realtime: bool, cast: Option<Cast>) -> io::Result<Self> {
        let places = cpus.next_power_of_two();
        let all_entries = if realtime { places * limits::ENTRIES } else { places };
        let entries = make("ENTRIES", all_entries, limits::ENTRY as usize)?;
        let settings = make("SETTINGS", 1, size_of::<Settings>())?;
        let mut flows = if realtime { 0 } else { room.flows() };
        let (all_flows, of_flows) = loop {
            let all = (flows * places).max(1);
            match make("FLOWS", all, size_of::<Flow>()) {
                // Fewer flows forget more often, and that is all.
                Err(error) if is_too_large(&error) && flows > 1 => flows /= 2,
                made => break (all, made?),
            }
        };
        let count = room.slots() * cpus;
        let (cells, (common, rare)) = match make_cells(count) {
            Err(error) if is_too_large(&error) => (0, make_cells(1)?),
            made => (count, made?),
        };
        Ok(Self {
            maps: [settings, of_flows, entries, common, rare],
            flow_stride: places.into(),
            last_flow: (all_flows - 1).into(),
            last_entry: (all_entries - 1).into(),
            cells: cells.into(),
            cast,
        })
    }

    /// One of them.
    pub(super) fn map(&self, map: Direct) -> BorrowedFd<'_> {
        self.maps[map as usize].as_fd()
    }

    /// The structure that programs take the kernel's memory for when they read it themselves; 0 where they may not.
    pub(super) fn cast_to(&self) -> u64 {
        self.cast.map_or(0, |cast| cast.structure.into())
    }

    /// The object with these maps in it.
    pub(super) fn object(&self) -> Object {
        let mut object = Object::of(OBJECT);
        object.put(|map| self.map(map).as_raw_fd().cast_unsigned());
        if let Some(cast) = self.cast {
            object.call(cast.function);
        }
        object
    }
}

/// Two maps of that many cells, of what is common and of the rest.
fn make_cells(count: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    let rare = make("RARE", count, size_of::<Rare>())?;
    Ok((make("COMMON", count, size_of::<Common>())?, rare))
}

fn is_too_large(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::E2BIG)
}

/// The part of `union bpf_attr` that makes a map; what stands behind it is zero.
#[repr(C)]
#[derive(Default)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_map: u32,
    numa_node: u32,
    name: [u8; 16],
}

/// Makes an array of one value that is so many of those sizes long, and can be mapped: so it begins on a page. One that is
/// longer than programs may reach is too large.
fn make(name: &str, count: u32, size: usize) -> io::Result<OwnedFd> {
    const MAP_CREATE: i64 = 0;
    let too_large = || io::Error::from_raw_os_error(libc::E2BIG);
    let length = u32::try_from(size).ok().and_then(|size| size.checked_mul(count));
    let length = length.filter(|length| *length <= FURTHEST).ok_or_else(too_large)?;
    let mut attributes = MapCreate {
        kind: aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY as u32,
        key_size: 4,
        value_size: length,
        max_entries: 1,
        flags: aya_obj::generated::BPF_F_MMAPABLE,
        ..MapCreate::default()
    };
    for (place, byte) in attributes.name.iter_mut().take(15).zip(name.bytes()) {
        *place = byte;
    }
    descriptor(MAP_CREATE, &mut attributes)
}

/// The opcode of an instruction and both its registers.
const OPCODE: u64 = 0xffff;

/// Where the second register is.
const SECOND: u32 = 12;

/// An object that is being made ready, in whole words.
pub(super) struct Object(Vec<u64>);

impl Object {
    fn of(bytes: &[u8]) -> Self {
        let word = |bytes: &[u8]| {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            u64::from_ne_bytes(word)
        };
        Self(bytes.chunks(8).map(word).collect())
    }

    /// Its bytes, and at most seven more.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the words are initialised memory of this length, and bytes have no alignment.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), size_of_val(self.0.as_slice())) }
    }

    /// Puts descriptors in the places of marks; gives how many there were. An instruction with 64 bits of a number is two
    /// words, each with one half of it in its upper half.
    fn put(&mut self, descriptor: impl Fn(Direct) -> u32) -> usize {
        const LOAD: u64 = 0x18;
        const FIRST_REGISTER: u64 = 0xf00;
        const VALUE: u64 = (aya_obj::generated::BPF_PSEUDO_MAP_VALUE as u64) << SECOND;
        let mut found = 0;
        for at in 1..self.0.len() {
            let (low, high) = (self.0[at - 1].to_le(), self.0[at].to_le());
            if low & OPCODE & !FIRST_REGISTER != LOAD || high & u64::from(u32::MAX) != 0 {
                continue;
            }
            if let Some((map, offset)) = Direct::of_mark(high | low >> 32) {
                let registers = low & u64::from(u32::MAX) | VALUE;
                self.0[at - 1] = u64::from_le(registers | u64::from(descriptor(map)) << 32);
                self.0[at] = u64::from_le(u64::from(offset) << 32);
                found += 1;
            }
        }
        found
    }

    /// Makes calls of the function with that number out of those that are marked; gives how many there were.
    fn call(&mut self, function: u32) -> usize {
        const CALL: u64 = 0x85;
        const OF_THE_KERNEL: u64 = (aya_obj::generated::BPF_PSEUDO_KFUNC_CALL as u64) << SECOND;
        let mut found = 0;
        for word in &mut self.0 {
            if word.to_le() == CALL | u64::from(CAST) << 32 {
                *word = u64::from_le(CALL | OF_THE_KERNEL | u64::from(function) << 32);
                found += 1;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_become_addresses_in_maps() {
        let mark = Direct::Flows.mark() + 24;
        let load = 0x18 | 7 << 8 | mark << 32;
        let other = [0x18, 0x1234 << 32];
        let words = [other[0], other[1], load, mark >> 32 << 32];
        let mut object = Object(words.map(u64::from_le).to_vec());
        assert_eq!(object.put(|map| 40 + map as u32), 1);
        let expected = [other[0], other[1], 0x18 | 0x27 << 8 | 41 << 32, 24 << 32];
        assert_eq!(object.0, expected.map(u64::from_le));
    }

    #[test]
    fn the_object_has_marks_of_every_map_and_stays_as_long() {
        let mut object = Object::of(OBJECT);
        let seen = std::cell::RefCell::new(std::collections::BTreeSet::new());
        let found = object.put(|map| {
            seen.borrow_mut().insert(map as u32);
            0
        });
        assert!(found >= Direct::ALL.len(), "{found}");
        assert_eq!(seen.into_inner().len(), Direct::ALL.len());
        assert!(object.bytes().len() - OBJECT.len() < 8);
        assert_eq!(object.put(|_| 0), 0, "none is left");
    }

    #[test]
    fn both_entries_of_the_handler_call_the_kernel() {
        let mut object = Object::of(OBJECT);
        assert_eq!((object.call(7), object.call(7)), (2, 0));
    }

    #[test]
    fn the_part_of_the_attributes_is_as_long_as_the_kernels() {
        assert_eq!(std::mem::offset_of!(MapCreate, name), 28);
    }
}
