//! The fields that `handle_frame` and `frame_free` read, looked up in the running kernel's BTF.

use macvlan_agent_ebpf::abi::{NO_FIELD, Offsets, Window};

use super::btf::{Btf, BtfError};

/// The places of all fields that the hooks need. The first that is missing is the error: without it they would count
/// garbage.
pub fn resolve(btf: &Btf) -> Result<Offsets, BtfError> {
    let skb = |member: &str| btf.bytes("sk_buff", &[member]);
    // Before 6.2 (commit 354259fa73e2) a bit says whether there is a tag, since then the tag's own 32 bits do.
    let vlan_present = btf.bits("sk_buff", &["vlan_present"]).ok();
    let (skb_vlan_present, skb_vlan_present_bit) = match vlan_present {
        Some(bits) => (
            u32::try_from(bits / 8).unwrap_or(NO_FIELD),
            u32::try_from(bits % 8).unwrap_or(0),
        ),
        None => (NO_FIELD, NO_FIELD),
    };
    let mut offsets = Offsets {
        skb_dev: skb("dev")?,
        skb_len: skb("len")?,
        skb_head: skb("head")?,
        skb_end: skb("end")?,
        skb_mac_header: skb("mac_header")?,
        skb_pkt_type: skb("pkt_type")?,
        skb_vlan_present,
        skb_vlan_present_bit,
        skb_vlan_all: skb("vlan_all").unwrap_or(NO_FIELD),
        shared_gso_size: btf.bytes("skb_shared_info", &["gso_size"])?,
        shared_gso_segs: btf.bytes("skb_shared_info", &["gso_segs"])?,
        dev_ifindex: btf.bytes("net_device", &["ifindex"])?,
        dev_net: btf.bytes("net_device", &["nd_net"])?,
        net_inum: btf.bytes("net", &["ns", "inum"])?,
        skb_window: Window::default(),
        dev_window: Window::default(),
    };
    offsets.skb_window = Window::around(&[
        offsets.skb_len,
        offsets.skb_pkt_type,
        offsets.skb_vlan_present,
        offsets.skb_vlan_all,
        offsets.skb_mac_header,
        offsets.skb_end,
        offsets.skb_head,
    ]);
    offsets.dev_window = Window::around(&[offsets.dev_ifindex, offsets.dev_net]);
    Ok(offsets)
}
