//! Changes of the tables that frames are looked up in, as user space hands them to the program that makes them.

/// Words of the largest key, and of the largest value.
pub const WORDS: usize = 6;

/// So many are made in one run, one after the other.
pub const AT_ONCE: usize = 16;

/// The bits of the program's answer that say why a change was refused.
pub const ERROR: i32 = 0xfff;

/// The tables.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// [`SubInterfaceKey`](super::SubInterfaceKey) to [`SlotEntry`](super::SlotEntry).
    SubInterfaces = 1,
    /// [`ParentKey`](super::ParentKey) to [`ParentEntry`](super::ParentEntry).
    Parents = 2,
    /// [`AddressKey`](super::AddressKey) to [`AddressOwner`](super::AddressOwner).
    Addresses = 3,
    /// [`ParentKey`](super::ParentKey) of a sub-interface itself to [`DeviceEntry`](super::DeviceEntry).
    Devices = 4,
}

/// One entry put in place of what the table has under its key, or taken out.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// A [`Table`] as a number.
    pub table: u32,
    /// 1 to take the entry out.
    pub removes: u32,
    /// The key, filled up with zeroes.
    pub key: [u32; WORDS],
    /// The value, filled up with zeroes.
    pub value: [u32; WORDS],
}

const _: () = assert!(
    size_of::<Change>() >= 14,
    "the kernel runs a program on no less than an Ethernet header"
);

impl Change {
    /// Of an entry in a table: its key with the value to put there, or none to take it out.
    #[cfg(feature = "user")]
    #[must_use]
    pub fn new<K: aya::Pod, V: aya::Pod>(table: Table, key: &K, value: Option<&V>) -> Self {
        Self {
            table: table as u32,
            removes: u32::from(value.is_none()),
            key: words(key),
            value: value.map_or([0; WORDS], words),
        }
    }

    /// The bytes of some.
    #[cfg(feature = "user")]
    #[must_use]
    pub const fn bytes(changes: &[Self]) -> &[u8] {
        // SAFETY: a change is words alone, without padding; the bytes live as long as they do.
        unsafe { core::slice::from_raw_parts(changes.as_ptr().cast(), size_of_val(changes)) }
    }
}

#[cfg(feature = "user")]
fn words<T: aya::Pod>(of: &T) -> [u32; WORDS] {
    const { assert!(size_of::<T>() <= WORDS * 4) };
    let mut words = [0; WORDS];
    // SAFETY: a `Pod` is bytes without padding, and as many as it has fit into the words.
    unsafe {
        core::ptr::copy_nonoverlapping(
            core::ptr::from_ref(of).cast::<u8>(),
            words.as_mut_ptr().cast::<u8>(),
            size_of::<T>(),
        );
    }
    words
}

#[cfg(all(test, feature = "user"))]
mod tests {
    use super::{
        super::{DeviceEntry, ParentKey, SlotEntry},
        *,
    };

    #[test]
    fn a_change_is_key_and_value_filled_up() {
        let key = ParentKey { netns: 7, ifindex: 9 };
        let change = Change::new(Table::Devices, &key, None::<&DeviceEntry>);
        assert_eq!((change.table, change.removes, change.key), (4, 1, [7, 9, 0, 0, 0, 0]));
        assert_eq!(change.value, [0; WORDS]);
        assert_eq!(Change::bytes(&[change, change]).len(), 112);
        let entry = SlotEntry {
            slot: 5,
            ..SlotEntry::NONE
        };
        assert_eq!(Change::new(Table::SubInterfaces, &key, Some(&entry)).value[0], 5);
    }
}
