//! The layout that the kernel side writes and user space reads.
//!
//! Every type is `repr(C)`, has no implicit padding, no `bool`, no `usize` and no reference, so that both compilers
//! lay it out alike and any bytes are a valid value. Numbers are in host byte order, addresses in network order.

pub mod change;
pub mod counts;
pub mod direct;
pub mod global;
pub mod key;
pub mod label;
pub mod limits;

pub use change::{Change, Table};
pub use counts::{Cell, Common, Counter, RECENT_RINGS, Rare, Recent};
pub use direct::Direct;
pub use global::{HANDLER_ATTACHED, Location, Locations, NO_FIELD, Offsets, Range, Settings, TABLES_CHANGED, Window};
pub use key::{
    AddressKey, AddressOwner, Ask, AskKey, Attempted, Credit, CreditExchange, CreditRequest, DeviceEntry, NO_SLOT,
    ParentEntry, ParentKey, SlotEntry, SubInterfaceKey,
};
pub use label::{AskKind, Direction, Mode, Verdict};

#[cfg(feature = "user")]
mod pod {
    use super::{
        AddressKey, AddressOwner, Ask, AskKey, Credit, CreditExchange, CreditRequest, DeviceEntry, ParentEntry,
        ParentKey, SlotEntry, SubInterfaceKey, global,
    };

    macro_rules! pod {
        ($($name:ty),+) => {
            $(
                // SAFETY: `repr(C)` without implicit padding and without references: any bytes are a valid value.
                unsafe impl aya::Pod for $name {}
            )+
        };
    }

    pod!(
        AddressKey,
        AddressOwner,
        Ask,
        AskKey,
        Credit,
        CreditExchange,
        CreditRequest,
        DeviceEntry,
        ParentEntry,
        ParentKey,
        SlotEntry,
        SubInterfaceKey,
        global::Locations,
        global::Offsets
    );
}
