//! Container runtimes name cgroups after containers: what a process's cgroup says of whose the process is. Pure but for
//! the reading.

use std::{collections::BTreeSet, fs};

/// What one cgroup says.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    /// The runtime; empty where the form is common to several.
    pub runtime: &'static str,
    /// The container's id, or its name where the runtime knows no ids.
    pub id: String,
    /// Whether that is a name.
    pub is_name: bool,
}

/// More processes of one namespace are not looked at.
const ENOUGH: usize = 256;

/// Whose the processes are: more than one where they share a namespace. Those of nobody are left out.
#[must_use]
pub fn of_processes(processes: &[u32]) -> BTreeSet<Identity> {
    let read = |process: &u32| fs::read_to_string(format!("/proc/{process}/cgroup")).ok();
    processes
        .iter()
        .take(ENOUGH)
        .filter_map(read)
        .filter_map(|cgroups| of_cgroups(&cgroups))
        .collect()
}

/// Whose a process is, by its `/proc/PID/cgroup`.
#[must_use]
pub fn of_cgroups(cgroups: &str) -> Option<Identity> {
    // hierarchy:controllers:path; cgroup v2 has one line, v1 one for each hierarchy.
    cgroups
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .find_map(of_path)
}

/// The innermost container in a path.
fn of_path(path: &str) -> Option<Identity> {
    let parts: Vec<&str> = path.split('/').collect();
    (0..parts.len()).rev().find_map(|at| {
        let above = at.checked_sub(1).map_or("", |above| parts[above]);
        of_part(parts[at], above, path)
    })
}

fn of_part(part: &str, above: &str, path: &str) -> Option<Identity> {
    const PREFIXES: [(&str, &str); 6] = [
        ("docker-", "docker"),
        ("libpod-", "podman"),
        ("cri-containerd-", "containerd"),
        ("nerdctl-", "containerd"),
        ("crio-", "cri-o"),
        // As systemd's driver writes it where the unit's name is not taken apart.
        ("cri-containerd:", "containerd"),
    ];
    let by_id = |runtime, id: &str| Identity {
        runtime,
        id: id.to_owned(),
        is_name: false,
    };
    let by_name = |runtime, id: &str| {
        (!id.is_empty()).then(|| Identity {
            runtime,
            id: id.to_owned(),
            is_name: true,
        })
    };
    let plain = part.strip_suffix(".scope").unwrap_or(part);
    for (prefix, runtime) in PREFIXES {
        if let Some(id) = plain.rsplit_once(prefix).map(|(_, id)| id).filter(|id| is_id(id)) {
            return Some(by_id(runtime, id));
        }
    }
    if is_id(part) {
        return match above {
            "docker" => Some(by_id("docker", part)),
            "libpod_parent" => Some(by_id("podman", part)),
            _ if path.contains("/kubepods") => Some(by_id("", part)),
            _ => None,
        };
    }
    if let Some(name) = part.strip_prefix("lxc.payload.") {
        return by_name("lxc", name);
    }
    if above == "lxc" {
        return by_name("lxc", part);
    }
    if let Some(name) = part
        .strip_prefix("systemd-nspawn@")
        .and_then(|rest| rest.strip_suffix(".service"))
    {
        return by_name("systemd-nspawn", &unescaped(name));
    }
    let machine = part.strip_prefix("machine-")?.strip_suffix(".scope").map(unescaped)?;
    match machine.strip_prefix("qemu-") {
        // qemu-NUMBER-NAME
        Some(domain) => by_name("libvirt", domain.split_once('-').map_or(domain, |(_, name)| name)),
        None => by_name("systemd-nspawn", &machine),
    }
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Undoes systemd's escapes in unit names, `\x2d` for `-`.
fn unescaped(name: &str) -> String {
    let mut plain = Vec::new();
    let mut rest = name.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let code = after
            .strip_prefix(b"x")
            .and_then(|hex| str::from_utf8(hex.get(..2)?).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok())
            .filter(|_| byte == b'\\');
        plain.push(code.unwrap_or(byte));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3c1d849d5b88bfebe0e719877b0293490933659a4f64be89bb3d5e92cd867631";

    fn found(path: &str) -> Option<(&'static str, String)> {
        of_path(path).map(|identity| (identity.runtime, identity.id))
    }

    #[test]
    fn every_runtime_is_known_by_its_form() {
        let forms = [
            ("/system.slice/docker-ID.scope", "docker"),
            ("/docker/ID", "docker"),
            ("/docker/ID/init", "docker"),
            ("/machine.slice/libpod-ID.scope", "podman"),
            ("/machine.slice/libpod-ID.scope/container", "podman"),
            ("/libpod_parent/libpod-ID", "podman"),
            (
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-podX.slice/cri-containerd-ID.scope",
                "containerd",
            ),
            (
                "/system.slice/containerd.service/kubepods-podX.slice:cri-containerd:ID",
                "containerd",
            ),
            ("/kubepods.slice/kubepods-podX.slice/crio-ID.scope", "cri-o"),
            ("/kubepods/burstable/podX/ID", ""),
        ];
        for (form, runtime) in forms {
            let path = form.replace("ID", ID);
            assert_eq!(found(&path), Some((runtime, ID.to_owned())), "{path}");
        }
        assert_eq!(found("/lxc.payload.web/system.slice"), Some(("lxc", "web".to_owned())));
        assert_eq!(
            found("/machine.slice/systemd-nspawn@web\\x2d1.service/payload"),
            Some(("systemd-nspawn", "web-1".to_owned()))
        );
        assert_eq!(
            found("/machine.slice/machine-qemu\\x2d3\\x2dvm\\x2d1.scope/libvirt/emulator"),
            Some(("libvirt", "vm-1".to_owned()))
        );
    }

    #[test]
    fn the_innermost_container_counts() {
        let inner = ID.replace('3', "4");
        let path = format!("/docker/{ID}/docker/{inner}");
        assert_eq!(found(&path), Some(("docker", inner)));
    }

    #[test]
    fn what_is_no_container_is_nobodys() {
        let conmon = format!("/machine.slice/libpod-conmon-{ID}.scope");
        let other = format!("/backup/{ID}");
        for path in [
            "/",
            "/user.slice/session-1.scope",
            "/docker",
            "/docker/short",
            &conmon,
            &other,
            "/lxc.payload.",
        ] {
            assert_eq!(found(path), None, "{path}");
        }
    }

    #[test]
    fn the_lines_of_every_version_are_read() {
        let v1 = format!("9:name=systemd:/docker/{ID}\n8:pids:/docker/{ID}\n0::/\n");
        assert_eq!(of_cgroups(&v1).map(|identity| identity.id), Some(ID.to_owned()));
        assert_eq!(of_cgroups("0::/\n"), None);
        assert_eq!(of_cgroups("damaged"), None);
    }
}
