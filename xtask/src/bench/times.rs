//! What `macvlan-measure` prints: times and memory, read from its lines and kept in a file.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

const HEAD: &str = "\
# Written by `cargo xtask bench`: what was measured in time and memory, on one machine in one run. A side is told by its
# quartiles, in the unit of the goal's sides; a point of a curve by x and y.

";

/// What was measured on one machine.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Times {
    pub(super) machine: String,
    /// Parts that were not measured, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) faults: BTreeMap<String, String>,
    pub(super) goals: BTreeMap<String, Measure>,
    /// Points by picture and line.
    pub(super) pictures: BTreeMap<String, BTreeMap<String, Vec<(f64, f64)>>>,
}

/// What stands behind one goal.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Measure {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) value: Option<f64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) notes: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) sides: BTreeMap<String, [f64; 3]>,
}

impl Times {
    pub(super) fn read(text: &str) -> Result<Self> {
        toml::from_str(text).context("the record of times")
    }

    pub(super) fn text(&self) -> Result<String> {
        Ok(HEAD.to_owned() + &toml::to_string(self).context("write the record of times")?)
    }

    /// Takes in what a part printed.
    pub(super) fn take_in(&mut self, output: &str) -> Result<()> {
        for line in output.lines() {
            let of = |key: &str| key.to_owned();
            let number = |word: &str| word.parse::<f64>().with_context(|| format!("a number in {line:?}"));
            let words: Vec<_> = line.split_whitespace().collect();
            match words[..] {
                ["goal", key, value] => self.goals.entry(of(key)).or_default().value = Some(number(value)?),
                ["side", key, name, low, median, high] => {
                    let quartiles = [number(low)?, number(median)?, number(high)?];
                    let sides = &mut self.goals.entry(of(key)).or_default().sides;
                    sides.insert(name.to_owned(), quartiles);
                }
                ["point", picture, series, x, y] => {
                    let lines = self.pictures.entry(of(picture)).or_default();
                    lines.entry(of(series)).or_default().push((number(x)?, number(y)?));
                }
                ["note", key, ..] => {
                    let text = words[2..].join(" ");
                    self.goals.entry(of(key)).or_default().notes.push(text);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Times;

    const OUTPUT: &str = "a word for people\nside 4 none 160.5 163 170\ngoal 4 18.25\nnote 4 300 rounds\n\
                          point frames none 10 163\npoint frames none 100 170\n";

    #[test]
    fn lines_become_a_record_that_reads_back() {
        let mut times = Times::default();
        times.take_in(OUTPUT).unwrap();
        let measure = &times.goals["4"];
        assert_eq!(
            (measure.value, measure.sides["none"]),
            (Some(18.25), [160.5, 163.0, 170.0])
        );
        assert_eq!(measure.notes, ["300 rounds"]);
        assert_eq!(times.pictures["frames"]["none"], [(10.0, 163.0), (100.0, 170.0)]);
        assert_eq!(Times::read(&times.text().unwrap()).unwrap(), times);
        assert!(times.take_in("goal 4 fast").is_err());
    }
}
