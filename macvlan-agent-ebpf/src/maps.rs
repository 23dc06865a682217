//! All maps, and what user space sets when it loads the programs.

use aya_ebpf::{
    Global,
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray},
};
use macvlan_agent_ebpf::{
    abi::{
        AddressKey, AddressOwner, Ask, AskKey, Attempted, Common, Credit, DeviceEntry, Locations, Offsets, ParentEntry,
        ParentKey, Rare, SlotEntry, SubInterfaceKey, limits,
    },
    front::{self, ParentPlace},
};

use crate::skb::Windows;

/// Inode of the namespace that this instance of the TC programs serves.
#[unsafe(no_mangle)]
pub(crate) static NETNS: Global<u32> = Global::new(0);

/// The same in the upper half of a word, as a flow has it.
#[unsafe(no_mangle)]
pub(crate) static NETNS_ABOVE: Global<u64> = Global::new(0);

/// Possible CPUs: a slot's cells stand side by side.
#[unsafe(no_mangle)]
pub(crate) static CPUS: Global<u32> = Global::new(1);

/// How far apart the flows of a CPU are, since those of all CPUs take turns: a power of two.
#[unsafe(no_mangle)]
pub(crate) static FLOW_STRIDE: Global<u64> = Global::new(1);

/// The last place of a flow, of all CPUs': a power of two less one, so that no place is beyond. 0 where there are no flows,
/// because another thread may come in between (PREEMPT_RT).
#[unsafe(no_mangle)]
pub(crate) static LAST_FLOW: Global<u64> = Global::new(0);

/// The same of the frames that are being handed to macvlan.
#[unsafe(no_mangle)]
pub(crate) static LAST_ENTRY: Global<u64> = Global::new(0);

/// How many cells are found without a lookup: all, or none, where [`COMMON`] and [`RARE`] have them.
#[unsafe(no_mangle)]
pub(crate) static DIRECT_CELLS: Global<u64> = Global::new(0);

/// The number of `struct timespec64` among the kernel's types, where programs may read the kernel's memory themselves
/// (`bpf_rdonly_cast`); else 0.
#[unsafe(no_mangle)]
pub(crate) static CAST_TO: Global<u64> = Global::new(0);

/// 1 where softirqs can be preempted (PREEMPT_RT).
#[unsafe(no_mangle)]
pub(crate) static REALTIME: Global<u32> = Global::new(0);

/// 1 where the kernel says why it frees a frame (5.17 and newer, and some older ones).
#[unsafe(no_mangle)]
pub(crate) static SAYS_REASON: Global<u32> = Global::new(0);

/// 1 where no counter shows what a device without carrier throws away (before 6.11).
#[unsafe(no_mangle)]
pub(crate) static UNSENT_UNCOUNTED: Global<u32> = Global::new(0);

/// Where the kernel's fields are.
#[unsafe(no_mangle)]
pub(crate) static OFFSETS: Global<Offsets> = Global::new(Offsets::NONE);

/// What is common of the cells, `[slot][CPU]`, where they are found by a lookup; user space maps it and sizes it to the
/// sub-interfaces it may have and the CPUs there are.
#[map]
pub(crate) static COMMON: Array<Common> = Array::with_max_entries(limits::SLOTS, BPF_F_MMAPABLE);

/// The rest of them, in the same places.
#[map]
pub(crate) static RARE: Array<Rare> = Array::with_max_entries(limits::SLOTS, BPF_F_MMAPABLE);

/// [`macvlan_agent_ebpf::abi::label::Lost`] counts, `[what][CPU]`; mapped like [`COMMON`].
#[map]
pub(crate) static LOST: Array<u64> = Array::with_max_entries(8, BPF_F_MMAPABLE);

#[map]
pub(crate) static SUB_INTERFACES: HashMap<SubInterfaceKey, SlotEntry> =
    HashMap::with_max_entries(limits::SUB_INTERFACES, 0);

#[map]
pub(crate) static PARENTS: HashMap<ParentKey, ParentEntry> = HashMap::with_max_entries(limits::PARENTS, 0);

/// In front of [`SUB_INTERFACES`]: see [`front`]. Mapped, like the next one.
#[map]
pub(crate) static FRONT: Array<u64> = Array::with_max_entries(front::PLACES, BPF_F_MMAPABLE);

/// In front of [`PARENTS`].
#[map]
pub(crate) static PARENT_FRONT: Array<ParentPlace> = Array::with_max_entries(front::PARENT_PLACES, BPF_F_MMAPABLE);

/// Sub-interfaces by their own namespace and interface index.
#[map]
pub(crate) static DEVICES: HashMap<ParentKey, DeviceEntry> = HashMap::with_max_entries(limits::SUB_INTERFACES, 1);

/// [`macvlan_agent_ebpf::abi::label::Cause`] by the kernel's number of the reason.
#[map]
pub(crate) static REASONS: Array<u32> = Array::with_max_entries(limits::REASONS, 0);

/// Where frames are freed that the reason does not tell.
#[map]
pub(crate) static LOCATIONS: Array<Locations> = Array::with_max_entries(1, 0);

#[map]
pub(crate) static ADDRESSES: HashMap<AddressKey, AddressOwner> = HashMap::with_max_entries(limits::ADDRESSES, 1);

/// By slot.
#[map]
pub(crate) static ATTEMPTED: Array<Attempted> = Array::with_max_entries(limits::SLOTS, 0);

#[map]
pub(crate) static ASKS: LruHashMap<AskKey, Ask> = LruHashMap::with_max_entries(limits::ASKS, 0);

/// What each CPU has counted for MACs without an entry, by [`SubInterfaceKey::on_cpu`]. It is no map of values per CPU,
/// since a program can read such a one's values of other CPUs only since 5.19.
#[map]
pub(crate) static CREDITS: LruHashMap<SubInterfaceKey, Credit> = LruHashMap::with_max_entries(limits::CREDITS, 0);

/// An empty credit to begin with: it does not fit the stack.
#[map]
pub(crate) static BLANK: PerCpuArray<Credit> = PerCpuArray::with_max_entries(1, 0);

/// What was copied of the kernel's structures: one for each program that has no place in [`crate::entry::Entry`], since one may
/// interrupt another.
#[map]
pub(crate) static WINDOWS: PerCpuArray<Windows> = PerCpuArray::with_max_entries(2, 0);

/// The second of this CPU's last warning.
#[map]
pub(crate) static LAST_WARNING: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);
