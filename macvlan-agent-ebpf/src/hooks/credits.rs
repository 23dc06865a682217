//! Gives user space what waits in `CREDITS`. Run with BPF_PROG_TEST_RUN, never attached: for the reason see
//! [`super::tables`].

use core::mem::size_of;

use aya_ebpf::{helpers::generated::bpf_skb_store_bytes, macros::classifier, programs::TcContext};
use macvlan_agent_ebpf::abi::{Credit, CreditRequest, limits};

use super::tables::UNKNOWN;
use crate::maps::{CPUS, CREDITS};

/// Answers a request: one more than the CPU whose credit is written behind it, or 0 where none of those looked at has one.
#[classifier]
pub(crate) fn credits(context: TcContext) -> i32 {
    let Ok(request) = context.load::<CreditRequest>(0) else {
        return UNKNOWN;
    };
    let mut step = 0;
    while step < limits::CPUS_AT_ONCE {
        let cpu = request.first + step;
        if cpu >= CPUS.load() {
            break;
        }
        let key = request.key.on_cpu(cpu);
        if let Some(credit) = CREDITS.get_ptr_mut(key) {
            let (behind, length) = (size_of::<CreditRequest>() as u32, size_of::<Credit>() as u32);
            // SAFETY: the lookup succeeded, so there are as many bytes to be read; the helper checks that there is room
            // for them.
            let written = unsafe { bpf_skb_store_bytes(context.skb.skb, behind, credit.cast(), length, 0) };
            if written != 0 {
                return written as i32;
            }
            if request.removes != 0 {
                let _ = CREDITS.remove(key);
            }
            return cpu as i32 + 1;
        }
        step += 1;
    }
    0
}
