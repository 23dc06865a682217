//! How large the kernel's tables are made.

use macvlan_agent_ebpf::abi::limits;

/// How many sub-interfaces the tables have room for, and what follows from that. They are made once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room(u32);

impl Default for Room {
    fn default() -> Self {
        Self(limits::SUB_INTERFACES)
    }
}

impl Room {
    /// For as many sub-interfaces as are to be counted, and always for as many as without a configuration, so that a
    /// lower limit can be taken back.
    #[must_use]
    pub fn of(limit: u32) -> Self {
        Self(limit.clamp(limits::SUB_INTERFACES, limits::MOST_SUB_INTERFACES))
    }

    /// Sub-interfaces with counts of their own.
    #[must_use]
    pub fn sub_interfaces(self) -> u32 {
        self.0
    }

    /// Slots: every sub-interface and every parent has one.
    #[must_use]
    pub fn slots(self) -> u32 {
        self.0 + limits::PARENTS
    }

    /// Addresses: as many for each sub-interface however many there are.
    #[must_use]
    pub fn addresses(self) -> u32 {
        limits::ADDRESSES / limits::SUB_INTERFACES * self.0
    }

    /// Flows of a CPU, a power of two: two for each sub-interface.
    #[must_use]
    pub fn flows(self) -> u32 {
        (2 * self.0).next_power_of_two()
    }

    /// The entries of every map that this is about; `direct` says that cells are found without a lookup.
    pub(super) fn entries(self, cpus: u32, direct: bool) -> [(&'static str, u32); 7] {
        let cells = if direct { 1 } else { self.slots() * cpus };
        [
            ("COMMON", cells),
            ("RARE", cells),
            ("ATTEMPTED", self.slots()),
            ("SUB_INTERFACES", self.sub_interfaces()),
            ("DEVICES", self.sub_interfaces()),
            ("ADDRESSES", self.addresses()),
            ("CREDITS", limits::CREDITS * cpus),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_configuration_tables_are_as_the_object_says() {
        let entries = Room::default().entries(2, false);
        assert_eq!(entries[0], ("COMMON", 2 * (limits::SUB_INTERFACES + limits::PARENTS)));
        assert_eq!(Room::default().entries(2, true)[0], ("COMMON", 1));
        assert_eq!(entries[5], ("ADDRESSES", limits::ADDRESSES));
    }

    #[test]
    fn every_sub_interface_has_room_for_two_flows() {
        for (limit, flows) in [(0, 8_192), (4_096, 8_192), (4_097, 16_384), (16_000, 32_768)] {
            assert_eq!(Room::of(limit).flows(), flows, "{limit}");
        }
    }

    #[test]
    fn a_lower_limit_leaves_the_tables_and_a_higher_one_makes_them_larger() {
        assert_eq!(Room::of(3), Room::default());
        assert_eq!(Room::of(10_000).slots(), 10_000 + limits::PARENTS);
        assert_eq!(Room::of(u32::MAX).sub_interfaces(), limits::MOST_SUB_INTERFACES);
    }
}
