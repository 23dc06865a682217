//! What is printed: a line for each number, which `cargo xtask bench` reads.

use std::io::{self, Write};

use anyhow::{Result, ensure};

/// A quantity that was measured several times.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Quartiles {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

impl Quartiles {
    /// Of at least one value.
    pub(crate) fn of(mut values: Vec<f64>) -> Result<Self> {
        ensure!(!values.is_empty(), "nothing was measured");
        values.sort_by(f64::total_cmp);
        let at = |quarter: usize| values[(values.len() - 1) * quarter / 4];
        Ok(Self {
            low: at(1),
            median: at(2),
            high: at(3),
        })
    }
}

/// A goal's number, in the unit of its row in `xtask/src/bench/goals.rs`.
pub(crate) fn goal(key: &str, value: f64) -> Result<()> {
    print(&format!("goal {key} {value:.4}"))
}

/// One of the quantities that a goal's number is made of; its name is one word.
pub(crate) fn side(key: &str, name: &str, quartiles: Quartiles) -> Result<()> {
    let Quartiles { low, median, high } = quartiles;
    print(&format!("side {key} {name} {low:.4} {median:.4} {high:.4}"))
}

/// A point of a curve: one picture for each `picture`, one line in it for each `series`.
pub(crate) fn point(picture: &str, series: &str, x: f64, y: f64) -> Result<()> {
    print(&format!("point {picture} {series} {x:.4} {y:.4}"))
}

/// Something that must be known with a goal's number.
pub(crate) fn note(key: &str, text: &str) -> Result<()> {
    print(&format!("note {key} {text}"))
}

fn print(line: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use super::Quartiles;

    #[test]
    fn quartiles_are_values_that_were_measured() {
        let quartiles = Quartiles::of(vec![5.0, 1.0, 4.0, 2.0, 3.0]).unwrap();
        assert_eq!((quartiles.low, quartiles.median, quartiles.high), (2.0, 3.0, 4.0));
        assert!(Quartiles::of(Vec::new()).is_err());
    }
}
