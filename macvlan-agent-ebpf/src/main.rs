//! The program in the kernel: the hooks and what they share. Built by `cargo xtask ebpf`.
#![no_std]
#![no_main]
#![expect(
    clippy::inline_always,
    reason = "in the kernel each call costs, and 5.10's verifier follows each anew"
)]

mod count;
mod direct;
mod entry;
mod hooks;
mod maps;
mod skb;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel lends its probe helpers to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
