//! The numbers: read from what `macvlan-cost` prints, kept in a file, and held against it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// What a number may grow by, in per cent.
const TOLERANCE: u64 = 3;

/// What instructions may differ by between two runs of the same programs.
const SPREAD: u64 = 4;

const HEAD: &str = "\
# Written by `cargo xtask bench`: what a frame of 60 bytes costs, in instructions, by kernel, path and set-up; what the
# verifier went through and how long the machine code is, by kernel and program. `cargo xtask test` measures one kernel
# anew and fails where a number is more than 3 % above these.

";

/// What was counted on all kernels.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) kernels: BTreeMap<String, Measured>,
}

impl Record {
    pub(super) fn read(text: &str) -> Result<Self> {
        toml::from_str(text).context("the record of costs")
    }

    pub(super) fn text(&self) -> Result<String> {
        Ok(HEAD.to_owned() + &toml::to_string(self).context("write the record of costs")?)
    }
}

/// What was counted on one kernel.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Measured {
    /// Instructions of a frame, by path and set-up.
    pub(super) frames: BTreeMap<String, BTreeMap<String, u64>>,
    /// Instructions that the verifier went through, by program.
    pub(super) verified: BTreeMap<String, u64>,
    /// Bytes of machine code, by program.
    pub(super) machine_code: BTreeMap<String, u64>,
}

/// How numbers were held against recorded ones.
pub(super) struct Compared {
    pub(super) numbers: usize,
    pub(super) faults: Vec<String>,
}

impl Measured {
    /// Reads what `macvlan-cost` printed.
    pub(super) fn read(output: &str) -> Result<Self> {
        let mut measured = Self::default();
        for line in output.lines() {
            let words: Vec<_> = line.split_whitespace().collect();
            let number = |word: &str| word.parse().with_context(|| format!("a number in {line:?}"));
            match words[..] {
                ["cost", path, setup, count] => {
                    let path = measured.frames.entry(path.to_owned()).or_default();
                    path.insert(setup.to_owned(), number(count)?);
                }
                ["program", name, verified, bytes] => {
                    measured.verified.insert(name.to_owned(), number(verified)?);
                    measured.machine_code.insert(name.to_owned(), number(bytes)?);
                }
                _ => {}
            }
        }
        ensure!(!measured.frames.is_empty(), "nothing was counted:\n{output}");
        Ok(measured)
    }

    /// What a set-up adds to a frame without programs.
    pub(super) fn added(&self, path: &str, setup: &str) -> Option<u64> {
        let setups = self.frames.get(path)?;
        Some(setups.get(setup)?.saturating_sub(*setups.get("none")?))
    }

    /// Holds these numbers against recorded ones. What is not recorded is a fault, and so is what was not measured.
    pub(super) fn compare(&self, recorded: &Self) -> Compared {
        let mut compared = Compared {
            numbers: 0,
            faults: Vec::new(),
        };
        for (path, setups) in &self.frames {
            for setup in setups.keys().filter(|setup| *setup != "none") {
                let name = format!("{path} with {setup}: instructions over none");
                compared.hold(&name, self.added(path, setup), recorded.added(path, setup), SPREAD);
            }
        }
        for (program, count) in &self.verified {
            let recorded = recorded.verified.get(program).copied();
            compared.hold(&format!("{program}: instructions verified"), Some(*count), recorded, 0);
        }
        for (program, bytes) in &self.machine_code {
            let recorded = recorded.machine_code.get(program).copied();
            compared.hold(&format!("{program}: bytes of machine code"), Some(*bytes), recorded, 0);
        }
        for path in recorded.frames.keys().filter(|path| !self.frames.contains_key(*path)) {
            compared.faults.push(format!("{path} was not measured"));
        }
        compared
    }
}

impl Compared {
    fn hold(&mut self, what: &str, measured: Option<u64>, recorded: Option<u64>, spread: u64) {
        self.numbers += 1;
        let fault = match (measured, recorded) {
            (Some(measured), Some(recorded)) => {
                let most = (recorded + recorded * TOLERANCE / 100).max(recorded + spread);
                (measured > most).then(|| format!("{what}: {measured}, recorded {recorded}"))
            }
            (measured, recorded) => Some(format!("{what}: measured {measured:?}, recorded {recorded:?}")),
        };
        self.faults.extend(fault);
    }
}

#[cfg(test)]
mod tests {
    use super::Measured;

    const OUTPUT: &str =
        "up 6.12 after 3 s\ncost external none 2000\ncost external tc 2300\nprogram parent_ingress 900 1500\n";

    fn measured(output: &str) -> Measured {
        Measured::read(output).unwrap()
    }

    #[test]
    fn a_path_may_grow_by_three_per_cent_of_what_is_added() {
        let recorded = measured(OUTPUT);
        assert_eq!(recorded.added("external", "tc"), Some(300));
        assert_eq!(recorded.compare(&recorded).faults, Vec::<String>::new());
        assert_eq!(recorded.compare(&recorded).numbers, 3);
        let grown = |count: &str| measured(&OUTPUT.replace("2300", count)).compare(&recorded).faults;
        assert_eq!(grown("2309"), Vec::<String>::new());
        assert_eq!(
            grown("2310"),
            ["external with tc: instructions over none: 310, recorded 300"]
        );
    }

    #[test]
    fn a_program_may_grow_by_as_much() {
        let recorded = measured(OUTPUT);
        let faults = measured(&OUTPUT.replace("900", "928")).compare(&recorded).faults;
        assert_eq!(faults, ["parent_ingress: instructions verified: 928, recorded 900"]);
    }

    #[test]
    fn what_is_missing_on_either_side_is_a_fault() {
        let recorded = measured(OUTPUT);
        let other = measured(&OUTPUT.replace("external", "sibling"));
        assert_eq!(
            other.compare(&recorded).faults,
            [
                "sibling with tc: instructions over none: measured Some(300), recorded None",
                "external was not measured"
            ]
        );
        assert!(Measured::read("up 6.12 after 3 s\n").is_err());
    }
}
