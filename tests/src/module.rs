//! The macvlan module, on kernels where it is one.

use std::process::Command;

/// Unloads it, and with it every sub-interface.
///
/// # Panics
/// When the kernel keeps it.
pub fn unload() {
    // It stands on the other, and may not be there.
    let _ = Command::new("rmmod").arg("macvtap").output();
    let rmmod = Command::new("rmmod").arg("macvlan").output().expect("a VM has rmmod");
    assert!(rmmod.status.success(), "{rmmod:?}");
}

/// Loads it. The VM's modules lie in one directory, in no tool's index.
///
/// # Panics
/// When it cannot be loaded.
pub fn load() {
    for module in ["macvlan", "macvtap"] {
        let insmod = Command::new("insmod")
            .arg(format!("/lib/modules/{module}.ko"))
            .output()
            .expect("a VM has insmod");
        assert!(insmod.status.success() || module == "macvtap", "{insmod:?}");
    }
}
