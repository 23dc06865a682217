//! Changes the tables that frames are looked up in. Run with BPF_PROG_TEST_RUN, never attached.
//!
//! User space could change them by the system call that is there for it, but while that is at work the kernel runs no
//! kprobe program on the same CPU (`bpf_disable_instrumentation`, `kernel/bpf/syscall.c`, 5.10 to 7.3; `trace_call_bpf`,
//! `kernel/trace/bpf_trace.c`, counts on the same `bpf_prog_active`): frames that an interrupt brings in between would
//! pass `handle_frame` unseen. A program that changes a map stops nobody.

use core::mem::{offset_of, size_of};

use aya_ebpf::{bindings::BPF_ANY, macros::classifier, maps::HashMap, programs::TcContext};
use macvlan_agent_ebpf::abi::{
    Change, Table,
    change::{self, WORDS},
};

use crate::maps::{ADDRESSES, DEVICES, PARENTS, SUB_INTERFACES};

/// There is no such entry: ENOENT.
const ABSENT: i32 = -2;

/// There is no such table, or no such request: EINVAL.
pub(super) const UNKNOWN: i32 = -22;

/// Makes the changes that the packet consists of. Gives 0, or how many were made, above [`change::ERROR`], and why the next
/// one was refused.
#[classifier]
pub(crate) fn tables(context: TcContext) -> i32 {
    let mut made = 0;
    while made < change::AT_ONCE {
        let Ok(change) = context.load::<Change>(made * size_of::<Change>()) else {
            break;
        };
        if let Err(code) = make_any(&change) {
            return (made as i32) << change::ERROR.count_ones() | -code & change::ERROR;
        }
        made += 1;
    }
    0
}

#[inline(always)]
fn make_any(change: &Change) -> Result<(), i32> {
    match change.table {
        table if table == Table::SubInterfaces as u32 => make(&SUB_INTERFACES, change),
        table if table == Table::Parents as u32 => make(&PARENTS, change),
        table if table == Table::Addresses as u32 => make(&ADDRESSES, change),
        table if table == Table::Devices as u32 => make(&DEVICES, change),
        _ => Err(UNKNOWN),
    }
}

/// To take out what is not there is no error.
#[inline(always)]
fn make<K, V>(table: &HashMap<K, V>, change: &Change) -> Result<(), i32> {
    const {
        assert!(size_of::<K>() <= WORDS * 4 && size_of::<V>() <= WORDS * 4);
        assert!(align_of::<K>() <= align_of::<Change>() && align_of::<V>() <= align_of::<Change>());
        assert!(offset_of!(Change, key).is_multiple_of(align_of::<Change>()));
        assert!(offset_of!(Change, value).is_multiple_of(align_of::<Change>()));
    };
    // SAFETY: both fit into the words, which begin where a change may, and are made of integers alone, of which any bytes
    // are a value.
    let (key, value) = unsafe {
        (
            &*(&raw const change.key).cast::<K>(),
            &*(&raw const change.value).cast::<V>(),
        )
    };
    if change.removes == 0 {
        return table.insert(key, value, u64::from(BPF_ANY));
    }
    match table.remove(key) {
        Err(ABSENT) => Ok(()),
        other => other,
    }
}
