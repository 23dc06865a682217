//! Entry and return of `macvlan_handle_frame(struct sk_buff **)`, macvlan's rx handler, by kprobe and kretprobe or by
//! fentry and fexit. It is static, but its address is taken, so no compiler makes it go away; same form from 5.10 to
//! 7.1.
//!
//! The arguments are gone when it returns, and the frame may be: so the entry sees to it that the frame is read, and the
//! return finds what was read ([`Entry`]). One place per CPU is enough, because the handler runs with softirqs off and
//! does not nest; on PREEMPT_RT a second thread may enter, so there the thread chooses among several places. Whoever
//! finds a place taken knows that a return was missed.

use aya_ebpf::{
    EbpfContext,
    helpers::generated::bpf_get_func_arg,
    macros::{fentry, fexit, kprobe, kretprobe},
    programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use aya_log_ebpf::warn;
use macvlan_agent_ebpf::{
    abi::{Counter, Mode, NO_SLOT, ParentKey, SubInterfaceKey, Verdict, label::Lost},
    flow::{self, Cells},
    frame::Mac,
    verdict::{Consumed, consumed_unicast, keeps_own_multicast, verdict_of},
};

use crate::{
    count::{self, Amount, Tally},
    direct,
    entry::{self, ENTERED, Entry},
};

/// Whether the handler is at work on this frame now.
#[inline(always)]
pub(crate) fn is_handled(skb: u64) -> bool {
    let (_, entry) = entry::mine();
    entry.stage == ENTERED && entry.skb == skb
}

/// The cell of the parent's totals, or their credit while user space does not know the parent.
#[inline(always)]
fn totals(slot: u32, key: ParentKey) -> Option<Tally> {
    if slot == NO_SLOT {
        count::credit(SubInterfaceKey::of_parent(key))
    } else {
        count::cell(slot)
    }
}

#[kprobe]
pub(crate) fn handle_frame(context: ProbeContext) -> u32 {
    begun(&context, context.arg(0).unwrap_or(0));
    0
}

/// The same as [`handle_frame`] where the function's types are known. The argument is a pointer to a pointer, which the
/// verifier lets nobody read from the context before 7.1 (`btf_ctx_access`): a helper hands it over, since 5.17.
#[fentry(function = "macvlan_handle_frame")]
pub(crate) fn handle_frame_entry(context: FEntryContext) -> i32 {
    let mut holder = 0;
    // SAFETY: the helper writes 8 bytes to where it is told, or fails.
    let failed = unsafe { bpf_get_func_arg(context.as_ptr(), 0, &raw mut holder) };
    begun(&context, if failed == 0 { holder } else { 0 });
    0
}

#[inline(always)]
fn begun(context: &impl EbpfContext, holder: u64) {
    if enter(context, holder as *const u64).is_none() {
        count::lost(Lost::Reads, 1);
    }
}

#[inline(always)]
fn enter(context: &impl EbpfContext, holder: *const u64) -> Option<()> {
    let skb = match direct::word_at(holder as u64) {
        Some(skb) => skb,
        // SAFETY: the helper checks the address itself.
        None => unsafe { aya_ebpf::helpers::bpf_probe_read_kernel(holder) }.ok()?,
    };
    let (thread, entry) = entry::mine();
    let stage = entry.stage;
    entry.stage = entry::NONE;
    if stage == ENTERED {
        missed(context, entry);
    }
    if stage != entry::READ || entry.skb != skb {
        entry.read(skb)?;
    }
    if let Some(thread) = thread {
        entry.thread = thread;
    }
    entry.stage = ENTERED;
    Some(())
}

/// An entry whose return nobody saw: its verdict is unknown.
#[inline(always)]
fn missed(context: &impl EbpfContext, entry: &Entry) {
    if entry.flow != 0 {
        if let Some(rest) = count::cells().rest(entry.total as u32) {
            rest.add_at(Counter::HandledFrames, Verdict::Unknown.index(), 1);
        }
    } else if let Some(tally) = totals(entry.parent.slot, entry.frame.parent) {
        handled(tally, Verdict::Unknown, entry.frame.amount.frames);
    }
    count::lost(Lost::Returns, 1);
    warn_rarely(context);
}

/// At most one record in ten seconds per CPU.
#[inline(always)]
fn warn_rarely(context: &impl EbpfContext) {
    let Some(last) = crate::maps::LAST_WARNING.get_ptr_mut(0) else {
        return;
    };
    let now = count::now();
    // SAFETY: the lookup succeeded and the element is this CPU's.
    let last = unsafe { &mut *last };
    if now.wrapping_sub(*last) >= 10 {
        *last = now;
        warn!(
            context,
            "a return of macvlan_handle_frame was missed: its frame's verdict is counted as unknown"
        );
    }
}

#[inline(always)]
fn handled(tally: Tally, verdict: Verdict, frames: u64) {
    tally.add_at(Counter::HandledFrames, verdict.index(), frames);
}

#[kretprobe]
pub(crate) fn handle_frame_return(context: RetProbeContext) -> u32 {
    let _ = leave(context.ret());
    0
}

/// The same as [`handle_frame_return`] where the function's types are known.
#[fexit(function = "macvlan_handle_frame")]
pub(crate) fn handle_frame_exit(context: FExitContext) -> i32 {
    // SAFETY: the context is the function's one argument and, behind it, what it returned, a word each.
    let returned = unsafe { context.as_ptr().cast::<u64>().add(1).read() };
    let _ = leave(returned);
    0
}

#[inline(always)]
fn leave(returned: u64) -> Option<()> {
    let (thread, entry) = entry::mine();
    if entry.stage != ENTERED || thread.is_some_and(|thread| entry.thread != thread) {
        count::lost(Lost::Entries, 1);
        return None;
    }
    entry.stage = entry::NONE;
    let verdict = verdict_of(returned);
    if entry.flow != 0 {
        let cells = count::cells();
        if let Some(rest) = cells.rest(entry.total as u32) {
            rest.add_at(Counter::HandledFrames, verdict.index(), 1);
        }
        match verdict {
            Verdict::Delivered if entry.cells.owner != flow::NOTHING => {
                return delivered_of(cells, entry.cells, entry.frame.kernel_bytes);
            }
            // The parent's own.
            Verdict::Passed if entry.cells.owner == flow::NOTHING => return None,
            _ => entry.unfold(),
        }
    } else {
        if let Some(tally) = totals(entry.parent.slot, entry.frame.parent) {
            handled(tally, verdict, entry.frame.amount.frames);
        }
        if entry.frame.is_loopback() {
            return None;
        }
    }
    match verdict {
        Verdict::Delivered => delivered(entry),
        Verdict::Consumed => consumed(entry),
        Verdict::Passed => passed(entry),
        Verdict::Unknown => None,
    }
}

/// Unicast to a sub-interface is passed on to the parent's stack where the kernel has forgotten it because it is down
/// or going (`macvlan_stop`), whatever user space has heard of that by now. Mode source is passed always.
#[inline(always)]
fn passed(entry: &Entry) -> Option<()> {
    let (frame, source, destination) = (&entry.frame, entry.source, entry.destination);
    if entry.is_passthru() || frame.header.is_multicast() {
        return None;
    }
    if !destination.is_known() || destination.is_in(Mode::Source) {
        return None;
    }
    if source.is_bridged_with(destination) {
        // What the switch has returned was counted when it was sent out. What was never sent out was looped, and its
        // addressee went while it was under way.
        if count::was_sent_out(destination.slot()) {
            return None;
        }
        count::cell(source.slot())?.pair(Counter::TransmittedSiblingFrames, frame.amount);
    }
    count::cell(destination.slot())?.add(Counter::InterfaceDownFrames, frame.amount.frames);
    Some(())
}

/// A frame of a flow.
#[inline(always)]
fn delivered_of(all: count::Cells, cells: Cells, bytes: u64) -> Option<()> {
    let amount = Amount { frames: 1, bytes };
    let few = all.few(cells.owner)?;
    if cells.sibling == flow::NOTHING {
        few.delivered(false, amount);
        return Some(());
    }
    few.delivered(true, amount);
    all.few(cells.sibling)?.pair(Counter::TransmittedSiblingFrames, amount);
    Some(())
}

#[inline(always)]
fn delivered(entry: &Entry) -> Option<()> {
    let (frame, source, destination) = (&entry.frame, entry.source, entry.destination);
    if frame.header.is_multicast() {
        return None;
    }
    let mac = entry::addressee(entry.parent, frame.header.destination);
    let tally = count::owner(destination.slot(), frame.parent, mac)?;
    // Not known yet, but delivered: in all likelihood in bridge mode, since the sender is.
    let takes = !destination.is_known() || destination.is_in(Mode::Bridge);
    let sibling = source.is_in(Mode::Bridge) && takes && !entry.is_passthru();
    if sibling {
        // Proof that it was looped inside: counted here for the sender as well, whether or not its addressee is known.
        if let Some(tally) = count::cell(source.slot()) {
            tally.pair(Counter::TransmittedSiblingFrames, frame.amount);
        }
    }
    tally.delivered(sibling, frame.amount, frame.kernel_bytes);
    Some(())
}

#[inline(always)]
fn consumed(entry: &Entry) -> Option<()> {
    let (frame, source, destination) = (&entry.frame, entry.source, entry.destination);
    if frame.header.is_multicast() {
        // A fragment that waits for the others (`ip_check_defrag`) is nobody's yet; the last one brings them all.
        if entry.held != 0 {
            return None;
        }
        return returned_to_sender(entry);
    }
    // The kernel found the addressee: a sibling's frame was looped, not returned by the switch.
    if source.is_bridged_with(destination) && !entry.is_passthru() {
        count::cell(source.slot())?.pair(Counter::TransmittedSiblingFrames, frame.amount);
    }
    match consumed_unicast(destination.entry()) {
        Consumed::InterfaceDown => {
            count::cell(destination.slot())?.add(Counter::InterfaceDownFrames, frame.amount.frames);
        }
        Consumed::CloneFailed => count::cell(destination.slot())?.add(Counter::CloneFailedFrames, frame.amount.frames),
        Consumed::NotDropped => {}
    }
    Some(())
}

/// Multicast that came back to the one that sent it ("forward to original port"). Mode passthru has the parent's MAC.
#[inline(always)]
fn returned_to_sender(entry: &Entry) -> Option<()> {
    let frame = &entry.frame;
    let mac = if entry.is_passthru() && frame.header.source == entry.parent.mac {
        Mac::default()
    } else {
        frame.header.source
    };
    let sender = count::addressed(entry.parent.slot, frame.parent, mac);
    if keeps_own_multicast(sender.entry().mode) {
        count::cell(sender.slot())?.add(Counter::ReturnedSkbs, 1);
    }
    Some(())
}
