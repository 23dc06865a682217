//! Which processes are in which network namespaces: for namespaces that have no other name, and to learn whose one is.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    time::{Duration, Instant},
};

/// A namespace that only processes are in is not taken up before it has been there for this long: most are about to be
/// given a name, and how one is called is said once.
const GRACE: Duration = Duration::from_millis(300);

/// What is known of the processes.
#[derive(Debug)]
pub(super) struct Processes {
    own: u32,
    /// The device number of nsfs, where all namespaces are.
    nsfs: u64,
    /// The namespace of each; none where it could not be asked.
    of: BTreeMap<u32, Option<u32>>,
    /// The last process that there was when we looked.
    last: String,
    since: HashMap<u32, Instant>,
    /// Some may not be asked.
    pub(super) denied: bool,
}

impl Processes {
    pub(super) fn new(own: u32) -> io::Result<Self> {
        Ok(Self {
            own,
            nsfs: fs::metadata("/proc/self/ns/net")?.dev(),
            of: BTreeMap::new(),
            last: String::new(),
            since: HashMap::new(),
            denied: false,
        })
    }

    /// Whether a process has begun since the last look.
    pub(super) fn has_new(&self) -> bool {
        last_process() != self.last
    }

    /// Looks at those that are new, or at all: one may have changed its namespace.
    pub(super) fn look(&mut self, all: bool, now: Instant) {
        self.last = last_process();
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let present: Vec<u32> = entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        let mut of = BTreeMap::new();
        if all {
            self.denied = false;
        }
        for process in present {
            let known = self.of.get(&process).filter(|_| !all).copied();
            of.insert(process, known.unwrap_or_else(|| self.ask(process)));
        }
        self.of = of;
        let there: Vec<u32> = self.of.values().flatten().copied().collect();
        self.since.retain(|inode, _| there.contains(inode));
        for inode in there {
            self.since.entry(inode).or_insert(now);
        }
    }

    fn ask(&mut self, process: u32) -> Option<u32> {
        match fs::metadata(path_of(process)) {
            Ok(file) if file.dev() == self.nsfs => u32::try_from(file.ino()).ok().filter(|inode| *inode != self.own),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                self.denied = true;
                None
            }
            _ => None,
        }
    }

    /// The processes in each other namespace, in order.
    pub(super) fn by_namespace(&self) -> BTreeMap<u32, Vec<u32>> {
        let mut namespaces: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (process, inode) in &self.of {
            if let Some(inode) = inode {
                namespaces.entry(*inode).or_default().push(*process);
            }
        }
        namespaces
    }

    /// How long to wait yet before a namespace may be taken up without a name.
    pub(super) fn wait(&self, inode: u32, now: Instant) -> Duration {
        let since = self.since.get(&inode).copied().unwrap_or(now);
        GRACE.saturating_sub(now.saturating_duration_since(since))
    }
}

/// The file that is a process's namespace.
pub(super) fn path_of(process: u32) -> PathBuf {
    format!("/proc/{process}/ns/net").into()
}

/// The last number of `/proc/loadavg`: cheap to read, and it changes with every process.
fn last_process() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next_back().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_that_only_a_process_is_in_is_found_and_forgotten() {
        // As if ours were another one.
        let mut processes = Processes::new(0).unwrap();
        let ours = u32::try_from(fs::metadata("/proc/self/ns/net").unwrap().ino()).unwrap();
        let now = Instant::now();
        processes.look(true, now);
        assert!(processes.by_namespace()[&ours].contains(&std::process::id()));
        assert_eq!(processes.wait(ours, now), GRACE);
        assert_eq!(processes.wait(ours, now + GRACE), Duration::ZERO);
        assert_eq!(processes.wait(1, now + GRACE), GRACE, "never seen");
        processes.own = ours;
        processes.look(true, now);
        assert!(
            !processes.by_namespace().contains_key(&ours),
            "our own is followed anyway"
        );
    }

    #[test]
    fn a_new_process_is_noticed() {
        let mut processes = Processes::new(0).unwrap();
        processes.look(false, Instant::now());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(processes.has_new());
        processes.look(false, Instant::now());
        assert!(processes.of.contains_key(&child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        processes.look(false, Instant::now());
        assert!(!processes.of.contains_key(&child.id()));
    }
}
