//! What this kernel and this process can do, asked without side effects.

use std::{fs, path::Path};

/// A capability that the agent uses, and what is lost without it.
pub struct Capability {
    /// Its number, `include/uapi/linux/capability.h`.
    pub number: u32,
    /// Its name.
    pub name: &'static str,
    /// What is lost.
    pub lost_without: &'static str,
}

/// The capabilities that the agent uses.
pub const CAPABILITIES: &[Capability] = &[
    Capability {
        number: 39,
        name: "CAP_BPF",
        lost_without: "no program can be loaded",
    },
    Capability {
        number: 38,
        name: "CAP_PERFMON",
        lost_without: "handle_frame and frame_free cannot be loaded",
    },
    Capability {
        number: 12,
        name: "CAP_NET_ADMIN",
        lost_without: "no program can be attached to a parent",
    },
    Capability {
        number: 21,
        name: "CAP_SYS_ADMIN",
        lost_without: "parents in other namespaces are not attached to; sub-interfaces there are still found and counted on parents here",
    },
    Capability {
        number: 11,
        name: "CAP_NET_BROADCAST",
        lost_without: "changes in other namespaces are noticed some seconds late",
    },
    Capability {
        number: 19,
        name: "CAP_SYS_PTRACE",
        lost_without: "namespaces without a name are not found, and owners are known only where a container runtime tells them",
    },
    Capability {
        number: 34,
        name: "CAP_SYSLOG",
        lost_without: "where the kernel hides its symbols (kernel.kptr_restrict), full broadcast queues are not counted",
    },
];

/// How macvlan is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Module {
    /// Compiled into the kernel.
    BuiltIn,
    /// Loaded as a module.
    Loaded,
    /// A module that is not loaded.
    Loadable,
    /// Neither.
    Absent,
}

/// The running kernel's release.
#[must_use]
pub fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// How macvlan is there.
#[must_use]
pub fn macvlan() -> Module {
    let directory = format!("/lib/modules/{}", release());
    let listed =
        |file: &str| fs::read_to_string(format!("{directory}/{file}")).is_ok_and(|text| text.contains("/macvlan.ko"));
    if listed("modules.builtin") || fs::read_to_string("/proc/kallsyms").is_ok_and(|text| built_in(&text)) {
        Module::BuiltIn
    } else if Path::new("/sys/module/macvlan").exists() {
        Module::Loaded
    } else if listed("modules.dep") {
        Module::Loadable
    } else {
        Module::Absent
    }
}

/// Whether the symbols have the handler and say no module beside it.
fn built_in(symbols: &str) -> bool {
    symbols
        .lines()
        .any(|line| line.split_whitespace().nth(2) == Some(super::attach::HANDLER) && !line.contains('['))
}

/// Whether macvlan is in the kernel now.
#[must_use]
pub fn macvlan_present() -> bool {
    Path::new("/sys/module/macvlan").exists() || macvlan() == Module::BuiltIn
}

/// The capabilities in force, as a bit set.
#[must_use]
pub fn effective_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    effective(&status)
}

fn effective(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|text| u64::from_str_radix(text.trim(), 16).ok())
        .unwrap_or(0)
}

/// The kernel's lockdown: `none`, `integrity`, `confidentiality`.
#[must_use]
pub fn lockdown() -> String {
    let text = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    chosen(&text).unwrap_or("none").to_owned()
}

/// The word in brackets.
fn chosen(text: &str) -> Option<&str> {
    text.split_once('[')?.1.split_once(']').map(|(word, _)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symbol_of_a_module_is_not_built_in() {
        assert!(built_in("0000 t other\n0000 t macvlan_handle_frame\n"));
        assert!(!built_in("0000 t macvlan_handle_frame\t[macvlan]\n"));
        assert!(!built_in("0000 t macvlan_handle_frame.cold\n"));
    }

    #[test]
    fn capabilities_and_lockdown_are_read_as_the_kernel_writes_them() {
        assert_eq!(effective("Name:\tx\nCapEff:\t000001ffffffffff\n"), 0x1ff_ffff_ffff);
        assert_eq!(chosen("none [integrity] confidentiality\n"), Some("integrity"));
        assert_eq!(chosen(""), None);
    }
}
