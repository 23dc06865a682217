//! Maps of one value, and the kernel's own memory, as memory: see [`macvlan_agent_ebpf::abi::direct`].

use core::{mem::transmute, ptr::with_exposed_provenance_mut};

use macvlan_agent_ebpf::{
    abi::{Common, Direct, Rare, Settings, direct::CAST, limits},
    flow::Flow,
};

use crate::{
    entry::Entry,
    maps::{CAST_TO, LAST_ENTRY, LAST_FLOW},
};

const _: () = assert!(size_of::<Entry>() <= limits::ENTRY as usize && limits::ENTRY.is_power_of_two());

/// Where the map is: what the compiler takes for a number is an address when the kernel's verifier sees it.
#[inline(always)]
fn start<T>(of: Direct) -> *mut T {
    with_exposed_provenance_mut(of.mark() as usize)
}

/// The settings.
#[inline(always)]
pub(crate) fn settings() -> *mut Settings {
    start(Direct::Settings)
}

/// A flow by its place, of all CPUs'.
#[inline(always)]
pub(crate) fn flow(place: u64) -> *mut Flow {
    let place = place & LAST_FLOW.load();
    start::<Flow>(Direct::Flows).wrapping_add(place as usize)
}

/// A frame that is being handed to macvlan, by its place, of all CPUs'.
#[inline(always)]
pub(crate) fn entry(place: u64) -> *mut Entry {
    let place = place & LAST_ENTRY.load();
    start::<Entry>(Direct::Entries).wrapping_byte_add(place as usize * limits::ENTRY as usize)
}

/// What is common of the cell at a place, of so many; None where there is no such cell.
#[inline(always)]
pub(crate) fn common(place: u32, cells: u64) -> Option<*mut Common> {
    cell(Direct::Common, place, cells)
}

/// The rest of it.
#[inline(always)]
pub(crate) fn rare(place: u32, cells: u64) -> Option<*mut Rare> {
    cell(Direct::Rare, place, cells)
}

#[inline(always)]
fn cell<T>(of: Direct, place: u32, cells: u64) -> Option<*mut T> {
    let place = u64::from(place);
    (place < cells).then(|| start::<T>(of).wrapping_add(place as usize))
}

/// What is at an address of the kernel's, 0 where nothing is; None where the kernel does not let programs read there
/// themselves, which costs them a tenth of what the helper does.
#[inline(always)]
pub(crate) fn word_at(address: u64) -> Option<u64> {
    let number = CAST_TO.load();
    if number == 0 {
        return None;
    }
    // SAFETY: the call becomes one of `bpf_rdonly_cast(address, number)`, which gives the address back and makes the kernel's
    // verifier take it for one of the structure of that number, `timespec64`: its first member is a whole word. Where
    // nothing can be read the processor's exception is made a 0.
    unsafe {
        let cast: unsafe extern "C" fn(u64, u64) -> *const u64 = transmute(CAST as usize);
        Some(cast(address, number).read_volatile())
    }
}
