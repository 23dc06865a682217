//! Reads a frame that user space made through the same offsets that `handle_frame` uses, and says what it found:
//! offsets that are wrong for this kernel would count garbage. Run once with BPF_PROG_TEST_RUN, never attached.

use aya_ebpf::{macros::classifier, programs::TcContext};

use crate::{
    maps::{NETNS, WINDOWS},
    skb::{Handled, address},
};

/// Everything was read as it is.
const RIGHT: i32 = 0;
/// A field could not be read.
const UNREADABLE: i32 = 1;
/// The interface index differs.
const WRONG_DEVICE: i32 = 2;
/// The length differs.
const WRONG_LENGTH: i32 = 3;
/// The Ethernet header differs.
const WRONG_HEADER: i32 = 4;
/// The namespace differs.
const WRONG_NETNS: i32 = 5;

#[classifier]
pub(crate) fn self_test(context: TcContext) -> i32 {
    let Some(windows) = WINDOWS.get_ptr_mut(1) else {
        return UNREADABLE;
    };
    // SAFETY: the lookup succeeded; the element is this CPU's and this program's.
    let Some(frame) = Handled::of(address(&context), unsafe { &mut *windows }) else {
        return UNREADABLE;
    };
    // SAFETY: the context of a classifier is a `__sk_buff`.
    let skb = unsafe { &*context.skb.skb };
    if frame.parent.ifindex != skb.ifindex {
        return WRONG_DEVICE;
    }
    // At a TC hook the Ethernet header is inside skb->len, in the rx handler it is not.
    if frame.kernel_bytes != u64::from(skb.len) + 14 {
        return WRONG_LENGTH;
    }
    let (destination, source) = (frame.header.destination.bytes(), frame.header.source.bytes());
    let mut expected = 1;
    let mut wrong = 0;
    let mut byte = 0;
    while byte < 6 {
        wrong |= destination[byte] ^ expected;
        wrong |= source[byte] ^ (expected + 0x10);
        expected += 1;
        byte += 1;
    }
    if wrong != 0 {
        return WRONG_HEADER;
    }
    if frame.parent.netns != NETNS.load() {
        return WRONG_NETNS;
    }
    RIGHT
}
