//! What CNI keeps of its results: for which pod an interface was made (`libcni` writes it for containerd, CRI-O and
//! podman).

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use serde::Deserialize;

use super::bounded;

/// A file that is longer is none of CNI's.
const LENGTH: u64 = 1024 * 1024;

/// More files are not read: it is known to be never cleaned up.
const FILES: usize = 20_000;

/// An interface that CNI made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachment {
    /// The container's id: of a pod, its sandbox's.
    pub container_id: String,
    /// The interface's name.
    pub interface: String,
    /// The MACs that it says.
    pub macs: Vec<String>,
    /// The pod's name, if it was made for one.
    pub pod_name: String,
    /// The pod's namespace.
    pub pod_namespace: String,
    /// The inode of the network namespace.
    pub netns: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cached {
    kind: String,
    container_id: String,
    #[serde(default)]
    if_name: String,
    #[serde(default)]
    netns: Option<String>,
    #[serde(default)]
    cni_args: Option<Vec<Vec<String>>>,
    #[serde(default)]
    result: Option<Outcome>,
}

#[derive(Deserialize, Default)]
struct Outcome {
    #[serde(default)]
    interfaces: Option<Vec<Interface>>,
}

#[derive(Deserialize)]
struct Interface {
    #[serde(default)]
    name: String,
    #[serde(default)]
    mac: String,
    #[serde(default)]
    sandbox: String,
}

/// The attachments whose namespace is there; `Err` says why the cache cannot be read. One that does not exist is empty.
pub fn read(cache: &Path) -> Result<Vec<Attachment>, String> {
    let results = cache.join("results");
    let entries = match fs::read_dir(&results) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(format!("{} cannot be read: {error}", results.display())),
    };
    let device = fs::metadata("/proc/self/ns/net")
        .map(|own| own.dev())
        .unwrap_or_default();
    let inode = |path: &str| {
        let file = fs::metadata(path).ok().filter(|file| file.dev() == device)?;
        u32::try_from(file.ino()).ok()
    };
    let files = entries.flatten().take(FILES).filter_map(|entry| text_of(&entry.path()));
    Ok(files.filter_map(|text| parse(&text, inode)).collect())
}

fn text_of(path: &Path) -> Option<String> {
    let file = File::open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = String::new();
    file.take(LENGTH).read_to_string(&mut text).ok()?;
    Some(text)
}

/// What one file says; `inode` looks at paths.
fn parse(text: &str, inode: impl Fn(&str) -> Option<u32>) -> Option<Attachment> {
    let cached: Cached = serde_json::from_str(text)
        .ok()
        .filter(|cached: &Cached| cached.kind == "cniCacheV1")?;
    let interfaces = cached.result.and_then(|result| result.interfaces).unwrap_or_default();
    let sandboxes = interfaces.iter().map(|interface| interface.sandbox.as_str());
    let paths = cached.netns.as_deref().into_iter().chain(sandboxes);
    let netns = paths.filter(|path| path.starts_with('/')).find_map(inode)?;
    let args = cached.cni_args.unwrap_or_default();
    let argument = |wanted: &str| {
        let pair = args.iter().find(|pair| pair.first().is_some_and(|name| name == wanted));
        bounded(pair.and_then(|pair| pair.get(1)).cloned().unwrap_or_default())
    };
    let inside = interfaces.iter().filter(|interface| interface.name == cached.if_name);
    Some(Attachment {
        macs: inside.map(|interface| interface.mac.to_ascii_lowercase()).collect(),
        container_id: bounded(cached.container_id),
        pod_name: argument("K8S_POD_NAME"),
        pod_namespace: argument("K8S_POD_NAMESPACE"),
        interface: cached.if_name,
        netns,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CACHED: &str = r#"{"kind":"cniCacheV1","containerId":"abc","config":"e30=","ifName":"net1","networkName":"mv",
        "netns":"/run/netns/cni-1","cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","shop"],["K8S_POD_NAME","web-0"]],
        "result":{"cniVersion":"1.0.0","interfaces":[{"name":"net1","mac":"02:00:00:AA:00:01","sandbox":"/run/netns/cni-1"}]}}"#;

    fn at(path: &str) -> Option<u32> {
        (path == "/run/netns/cni-1").then_some(7)
    }

    #[test]
    fn a_result_names_its_pod() {
        let expected = Attachment {
            container_id: "abc".to_owned(),
            interface: "net1".to_owned(),
            macs: vec!["02:00:00:aa:00:01".to_owned()],
            pod_name: "web-0".to_owned(),
            pod_namespace: "shop".to_owned(),
            netns: 7,
        };
        assert_eq!(parse(CACHED, at), Some(expected.clone()));
        // As older versions wrote it.
        let old = CACHED.replace(r#""netns":"/run/netns/cni-1","#, "");
        assert_eq!(parse(&old, at), Some(expected));
    }

    #[test]
    fn one_without_a_namespace_or_without_sense_is_left_out() {
        assert_eq!(parse(CACHED, |_| None), None);
        for text in [
            "",
            "{}",
            "[]",
            "{\"kind\":\"cniCacheV2\",\"containerId\":\"x\"}",
            &CACHED[..90],
        ] {
            assert_eq!(parse(text, at), None, "{text}");
        }
        let bare =
            r#"{"kind":"cniCacheV1","containerId":"abc","cniArgs":[[],["K8S_POD_NAME"]],"netns":"/run/netns/cni-1"}"#;
        assert_eq!(parse(bare, at).unwrap().pod_name, "");
    }

    #[test]
    fn no_cache_is_no_fault_and_one_that_is_closed_is() {
        assert_eq!(read(Path::new("/nonexistent")), Ok(Vec::new()));
        assert!(
            read(Path::new("/proc/self/status"))
                .unwrap_err()
                .contains("cannot be read")
        );
    }
}
