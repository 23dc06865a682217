//! One run of all test binaries on one kernel: the shell script that does it, here or in a machine, and what is read
//! from its output.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::gate::Outcome;
use crate::libtest::Tally;
use crate::vm::kernel::Kernel;

/// Begins a line of the script's own among what the binaries print.
const MARK: &str = "== ";

/// What runs, and with what around it.
pub(crate) struct Script<'kernel> {
    pub(crate) kernel: &'kernel Kernel,
    pub(crate) agent: PathBuf,
    /// Name and path of each test binary.
    pub(crate) tests: Vec<(String, PathBuf)>,
    /// Variables that say where programs of others are.
    pub(crate) others: Vec<(&'static str, PathBuf)>,
    pub(crate) long: bool,
}

impl Script<'_> {
    /// The script; its exit status is 0 when every binary's was.
    pub(crate) fn text(&self) -> String {
        let mut text = "exec 2>&1\nstatus=0\n".to_owned();
        for (name, value) in self.environment() {
            let _ = writeln!(text, "export {name}={}", quoted(&value));
        }
        let _ = writeln!(text, "echo \"{MARK}kernel $(uname -r)\"\necho '{MARK}check'");
        let _ = writeln!(text, "{} check -o json 2>/dev/null", quoted(&path_text(&self.agent)));
        for (name, path) in &self.tests {
            let _ = writeln!(
                text,
                "echo; echo '{MARK}test {name}'\n{} --test-threads=1",
                quoted(&path_text(path))
            );
            let _ = writeln!(
                text,
                "code=$?; [ $code = 0 ] || status=1; echo; echo \"{MARK}ended $code\""
            );
        }
        text.push_str("exit $status\n");
        text
    }

    fn environment(&self) -> Vec<(&str, String)> {
        let mut environment = vec![
            ("MACVLAN_AGENT", path_text(&self.agent)),
            ("MACVLAN_TEST_KERNEL", self.kernel.name.clone()),
            ("MACVLAN_TEST_HOOKS", self.kernel.hooks_text()),
            ("MACVLAN_TEST_LACKS", self.kernel.lacks.join(",")),
        ];
        let others = self.others.iter();
        environment.extend(others.map(|(variable, directory)| (*variable, path_text(directory))));
        if self.long {
            environment.push(("MACVLAN_TEST_LONG", "1".to_owned()));
        }
        environment
    }
}

/// What became of a run.
#[derive(Debug, Default)]
pub(crate) struct Report {
    release: String,
    tests: Tally,
    /// Hook and mechanism, as the agent itself found them able there.
    attached: BTreeMap<String, String>,
    faults: Vec<String>,
}

#[derive(Deserialize)]
struct Check {
    hooks: Vec<CheckedHook>,
}

#[derive(Deserialize)]
struct CheckedHook {
    hook: String,
    mechanism: Option<String>,
}

impl Report {
    /// Reads what the script printed. A binary without a result, or fewer binaries than there are, is a fault.
    pub(crate) fn read(output: &str, binaries: usize, verdict: Option<bool>, last_words: &str) -> Self {
        let mut report = Self::default();
        let mut seen = 0;
        for part in parts(output) {
            let (title, body) = part.split_once('\n').unwrap_or((part, ""));
            match title.split_once(' ').unwrap_or((title, "")) {
                ("kernel", release) => release.clone_into(&mut report.release),
                ("check", _) => report.attached = attached(body),
                ("test", _) => {
                    seen += 1;
                    report.add_binary(body, &format!("{title}\n{body}"));
                }
                ("ended", code) if code != "0" => report.faults.push(format!("it ended with {code}")),
                _ => {}
            }
        }
        if seen < binaries {
            report
                .faults
                .push(format!("{seen} of {binaries} test binaries were started"));
        }
        if verdict != Some(true) && report.faults.is_empty() {
            report
                .faults
                .push("the run ended without a verdict that it passed".to_owned());
        }
        if verdict.is_none() {
            report.faults.push(format!("no verdict: {last_words}"));
        }
        report
    }

    fn add_binary(&mut self, body: &str, whole: &str) {
        let tests = Tally::read(body);
        if tests.failed > 0 || tests.summaries != 1 {
            self.faults.push(whole.to_owned());
        }
        if tests.summaries != 1 {
            self.faults.push("it gave no result".to_owned());
        }
        self.tests.passed += tests.passed;
        self.tests.failed += tests.failed;
    }

    /// The step's outcome: a hook that is not what the table says is a fault as well.
    pub(crate) fn outcome(mut self, kernel: &Kernel) -> Outcome {
        let missing = self.missing(kernel);
        if !missing.is_empty() {
            self.faults.push(format!(
                "hooks that are not as required: {missing}; the agent has {}",
                list(&self.attached)
            ));
        }
        Outcome {
            note: self.tests.to_string(),
            tests: self.tests,
            faults: self.faults,
        }
    }

    /// The kernel's line in the table.
    pub(crate) fn line(&self, kernel: &Kernel) -> String {
        let Tally { passed, failed, .. } = self.tests;
        let word = if self.missing(kernel).is_empty() {
            "all of"
        } else {
            "not all of"
        };
        let (name, release, attached) = (&kernel.name, &self.release, list(&self.attached));
        let left = if kernel.leaves.is_empty() {
            String::new()
        } else {
            format!("; left to the host: {}", kernel.leaves.join(","))
        };
        format!(
            "{name:<6} {release:<27} {passed:>6} {failed:>6}  {attached}: {word} {}{left}\n",
            kernel.hooks_text()
        )
    }

    /// The required hooks that the agent does not have, or has by another mechanism.
    fn missing(&self, kernel: &Kernel) -> String {
        let required = kernel
            .hooks
            .iter()
            .filter(|(hook, mechanism)| self.attached.get(*hook) != Some(mechanism));
        required
            .map(|(hook, mechanism)| format!("{hook}={mechanism}"))
            .collect::<Vec<_>>()
            .join(",")
    }
}

/// Stands over the lines of the kernels.
pub(crate) const TABLE_HEAD: &str = "kernel release                     passed failed  hooks attached: required\n";

/// The line of a kernel that the tests could not be started on.
pub(crate) fn no_line(kernel: &Kernel) -> String {
    format!(
        "{:<6} {:<27} {:>6} {:>6}  nothing: none of {}\n",
        kernel.name,
        "-",
        0,
        0,
        kernel.hooks_text()
    )
}

/// The output cut before each line of the script's own.
fn parts(output: &str) -> impl Iterator<Item = &str> {
    let begins = output.match_indices(MARK).map(|(place, _)| place);
    let begins = begins
        .filter(|place| *place == 0 || output[..*place].ends_with('\n'))
        .collect::<Vec<_>>();
    let ends = begins.iter().skip(1).copied().chain([output.len()]).collect::<Vec<_>>();
    begins
        .into_iter()
        .zip(ends)
        .map(|(begin, end)| &output[begin + MARK.len()..end])
}

/// What the agent's `check` says of the hooks; nothing where it could not run.
fn attached(json: &str) -> BTreeMap<String, String> {
    let hooks = serde_json::from_str::<Check>(json)
        .map(|check| check.hooks)
        .unwrap_or_default();
    hooks
        .into_iter()
        .map(|hook| (hook.hook, hook.mechanism.unwrap_or_else(|| "none".to_owned())))
        .collect()
}

fn list(hooks: &BTreeMap<String, String>) -> String {
    let hooks = hooks.iter().map(|(hook, mechanism)| format!("{hook}={mechanism}"));
    let text = hooks.collect::<Vec<_>>().join(",");
    if text.is_empty() { "nothing".to_owned() } else { text }
}

fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "up\n== kernel 6.1\n== check\n{\"hooks\":[{\"hook\":\"handle_frame\",\"mechanism\":null}]}\n\n\
                        == test lab\nrunning 2 tests\n\ntest result: ok. 2 passed; 0 failed; 0 ignored\n\n== ended 0\n";

    #[test]
    fn a_whole_run_is_counted() {
        let report = Report::read(GOOD, 1, Some(true), "");
        assert_eq!((report.release.as_str(), report.tests.passed), ("6.1", 2));
        assert_eq!(report.attached["handle_frame"], "none");
        assert!(report.faults.is_empty(), "{:?}", report.faults);
    }

    #[test]
    fn a_run_that_stops_is_a_fault() {
        let end = GOOD.find("test result").unwrap();
        assert_eq!(Report::read(&GOOD[..end], 1, None, "panic").faults.len(), 3);
        assert_eq!(
            Report::read(GOOD, 2, Some(true), "").faults,
            ["1 of 2 test binaries were started"]
        );
        assert_eq!(Report::read(GOOD, 1, Some(false), "").faults.len(), 1);
    }
}
