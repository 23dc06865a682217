use super::*;
use crate::lot::Lot;

const PARENT: ParentKey = ParentKey { netns: 7, ifindex: 2 };

fn sub_interface(mac: u8, mode: Mode, up: bool) -> WantedSubInterface {
    WantedSubInterface {
        parent: PARENT,
        mac: [2, 0, 0, 0, 0, mac],
        mode: mode as u8,
        up,
        device: ParentKey {
            netns: 8,
            ifindex: u32::from(mac),
        },
        device_flags: 0,
        keeps_source: mode == Mode::Source,
        addresses: vec![IpAddr::V4(Ipv4Addr::new(198, 51, 100, mac))],
        counted: true,
    }
}

fn parent() -> WantedParent {
    WantedParent {
        key: PARENT,
        mac: [2, 0, 0, 0, 0, 1],
        addresses: vec![
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            "2001:db8::1".parse().expect("an address"),
        ],
    }
}

/// The tables for these, in slots from 10 on.
fn tables(sub_interfaces: Vec<WantedSubInterface>) -> Tables {
    let mut tables = Tables::default();
    for (number, each) in (0..).zip(sub_interfaces) {
        tables.set(u64::from(number) + 1, Some((each, Some(10 + number))));
    }
    tables.set_parents(&[parent()], &[(7, Ipv4Addr::new(198, 51, 100, 1))], |_| Some(3));
    tables
}

/// What the maps are to hold.
type Held = (
    Vec<(SubInterfaceKey, SlotEntry)>,
    Vec<(AddressKey, AddressOwner)>,
    Vec<(ParentKey, DeviceEntry)>,
    BTreeMap<ParentKey, ParentEntry>,
);

fn held(tables: &Tables) -> Held {
    fn all<K: Copy + Ord, C: Copy + Ord, V: Copy + PartialEq>(claims: &Claims<K, C, V>, first: K) -> Vec<(K, V)> {
        let held = claims.keys_from(first).map(|key| (key, claims.holder(key)));
        held.filter_map(|(key, held)| Some((key, held?.1))).collect()
    }
    (
        all(&tables.sub_interfaces, SubInterfaceKey::default()),
        all(&tables.addresses, AddressKey::default()),
        all(&tables.devices, ParentKey::default()),
        tables.parents.clone(),
    )
}

#[test]
fn of_equal_macs_the_one_that_is_up_owns_the_key() {
    for order in [[false, true], [true, false]] {
        let tables = tables(vec![
            sub_interface(0x11, Mode::Bridge, order[0]),
            sub_interface(0x11, Mode::Bridge, order[1]),
        ]);
        let key = SubInterfaceKey::new(PARENT, [2, 0, 0, 0, 0, 0x11]);
        let (id, entry) = tables.sub_interfaces.holder(key).expect("known");
        assert_eq!((id, entry.slot), if order[0] { (1, 10) } else { (2, 11) });
        assert_eq!(tables.sub_interfaces.len(), 1);
    }
}

#[test]
fn passthru_is_found_by_its_parent_alone() {
    let tables = tables(vec![sub_interface(0x11, Mode::Passthru, true)]);
    assert_eq!(tables.parents[&PARENT].flags, PARENT_PASSTHRU);
    let key = SubInterfaceKey::new(PARENT, [0; 6]);
    assert!(tables.sub_interfaces.holder(key).is_some());
}

#[test]
fn a_device_is_found_by_its_own_place() {
    let tables = tables(vec![sub_interface(0x11, Mode::Source, true)]);
    let own = ParentKey {
        netns: 8,
        ifindex: 0x11,
    };
    let (_, device) = tables.devices.holder(own).expect("known");
    assert_eq!((device.slot, device.parent), (10, PARENT));
    assert_eq!(tables.parents[&PARENT].flags, PARENT_KEEPS_SOURCE);
}

#[test]
fn the_host_answers_for_ipv4_everywhere_and_for_ipv6_where_it_is() {
    let mut tables = tables(vec![sub_interface(0x11, Mode::Bridge, true)]);
    let slot = |tables: &Tables, ifindex, text: &str| {
        let parent = ParentKey { netns: 7, ifindex };
        let key = address_key(parent, text.parse().expect("an address"));
        tables.addresses.holder(key).map(|(_, owner)| owner.slot)
    };
    assert_eq!(slot(&tables, 0, "198.51.100.1"), Some(NO_SLOT));
    assert_eq!(slot(&tables, 2, "2001:db8::1"), Some(NO_SLOT));
    assert_eq!(slot(&tables, 2, "198.51.100.17"), Some(10));
    assert_eq!(
        slot(&tables, 2, "127.0.0.1"),
        None,
        "IPv4 of the parent is in the host's set"
    );
    tables.set_parents(&[], &[], |_| Some(3));
    assert_eq!(slot(&tables, 0, "198.51.100.1"), None);
    assert_eq!(slot(&tables, 2, "2001:db8::1"), None);
}

#[test]
fn one_without_a_slot_is_in_no_table_until_it_has_one() {
    let mut tables = Tables::default();
    tables.set(9, Some((sub_interface(0x11, Mode::Bridge, true), None)));
    assert_eq!(held(&tables), Held::default());
    tables.give_slot(9, 10);
    assert_eq!(tables.sub_interfaces.len(), 1);
    tables.give_slot(8, 11);
    assert_eq!(tables.sub_interfaces.len(), 1, "nobody wants it");
}

#[test]
fn a_parent_tells_when_its_slot_is_another() {
    let mut tables = Tables::default();
    let mut moved = |slot: Option<u32>| tables.set_parents(&[parent()], &[], |_| slot);
    let from = |before| vec![Moved { parent: PARENT, before }];
    assert_eq!(moved(None), []);
    assert_eq!(moved(Some(3)), from(None));
    assert_eq!(moved(Some(3)), []);
    assert_eq!(moved(Some(4)), from(Some(3)));
    assert_eq!(moved(None), from(Some(4)));
}

/// Many small steps, with few keys, so that they meet.
#[test]
fn step_by_step_the_tables_are_what_they_would_be_at_once() {
    let mut lot = Lot::new();
    let modes = [Mode::Bridge, Mode::Private, Mode::Passthru, Mode::Source];
    let mut all: BTreeMap<u64, Slotted> = BTreeMap::new();
    let mut tables = Tables::default();
    for step in 0..3000 {
        let id = lot.draw(8);
        let slotted = (lot.draw(4) > 0).then(|| {
            let mac = u8::try_from(lot.draw(3)).expect("small");
            let mode = modes[usize::try_from(lot.draw(4)).expect("small")];
            let mut wanted = sub_interface(mac, mode, lot.draw(2) == 0);
            wanted.addresses.truncate(usize::try_from(lot.draw(2)).expect("small"));
            (wanted, (lot.draw(5) > 0).then_some(u32::try_from(id).expect("small")))
        });
        tables.set(id, slotted.clone());
        match slotted {
            Some(slotted) => drop(all.insert(id, slotted)),
            None => drop(all.remove(&id)),
        }
        if lot.draw(3) == 0 {
            for written in [true, false] {
                tables.set_parents(&[parent()], &[], |_| Some(3));
                let mut at_once = Tables::default();
                for (id, slotted) in &all {
                    at_once.set(*id, Some(slotted.clone()));
                }
                at_once.set_parents(&[parent()], &[], |_| Some(3));
                assert_eq!(held(&tables), held(&at_once), "step {step}");
                if written {
                    tables.sub_interfaces.written();
                    tables.addresses.written();
                    tables.devices.written();
                }
            }
        }
    }
}
