//! Sizes of the maps, each with its reason.

/// Sub-interfaces with counts of their own, unless the configuration says another number.
pub const SUB_INTERFACES: u32 = 4_096;

/// The most that the configuration may say: a slot has 14 bits in the tables in front (`front`).
pub const MOST_SUB_INTERFACES: u32 = 16_000;

/// Parents: far more than a host has, and each costs one slot.
pub const PARENTS: u32 = 256;

/// Slots there may be: every sub-interface and every parent has one.
pub const SLOTS: u32 = MOST_SUB_INTERFACES + PARENTS;

/// Unknown MACs that have counts waiting, over all parents, for each CPU.
pub const CREDITS: u32 = 2_048;

/// Unknown MACs that one parent may add in [`CREDIT_SECONDS`], for each CPU, so that random MACs out of one container
/// leave room.
pub const CREDITS_PER_PARENT: u32 = 1_024;

/// CPUs whose credits are looked for in one run of the program.
pub const CPUS_AT_ONCE: u32 = 64;

/// How long the counts of an unknown MAC wait for their sub-interface.
pub const CREDIT_SECONDS: u32 = 5;

/// ARP requests and neighbour solicitations that wait for a reply, by (asker, target); the oldest gives way.
pub const ASKS: u32 = 8_192;

/// Addresses of parents' namespaces and of sub-interfaces.
pub const ADDRESSES: u32 = 32_768;

/// Entries of the handler that may be under way on one CPU: 1 where softirqs cannot be preempted, all of them on
/// PREEMPT_RT, where a second thread may enter before the first returns.
pub const ENTRIES: u32 = 8;

/// Bytes of one of them: a power of two, so that it is found by a shift.
pub const ENTRY: u32 = 512;

/// Reasons of the kernel's own (`enum skb_drop_reason`) have small numbers; those of subsystems begin at 65,536.
pub const REASONS: u32 = 256;

/// Functions in which frames are freed that `frame_free` tells apart by where that was.
pub const LOCATIONS: usize = 12;

/// Bytes of a structure of the kernel's that are copied at once: the fields that are read of an `sk_buff` lie within
/// some 100.
pub const WINDOW: u32 = 128;
