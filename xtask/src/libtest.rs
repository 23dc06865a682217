//! What Rust's test binaries print at their end.

use std::fmt;

/// Tests counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    /// How many binaries said a result; one that died said none.
    pub(crate) summaries: usize,
}

impl Tally {
    /// Sums the `test result:` lines of an output.
    pub(crate) fn read(output: &str) -> Self {
        let results = output.lines().filter_map(|line| line.strip_prefix("test result: "));
        results.fold(Self::default(), |sum, result| Self {
            passed: sum.passed + number_before(result, "passed"),
            failed: sum.failed + number_before(result, "failed"),
            summaries: sum.summaries + 1,
        })
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// The number in `ok. 5 passed; 0 failed; ...` that stands before a word.
fn number_before(result: &str, word: &str) -> usize {
    let mut words = result
        .split(|letter: char| letter == ';' || letter.is_whitespace())
        .filter(|word| !word.is_empty());
    let mut last = "";
    words
        .find_map(|next| {
            if next == word {
                last.parse().ok()
            } else {
                last = next;
                None
            }
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn results_of_several_binaries_are_summed() {
        let output = "running 5 tests\ntest result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\
                      test result: FAILED. 12 passed; 3 failed; 1 ignored; finished in 0.00s\n";
        assert_eq!(
            Tally::read(output),
            Tally {
                passed: 17,
                failed: 3,
                summaries: 2
            }
        );
    }

    #[test]
    fn a_binary_that_died_has_no_result() {
        assert_eq!(
            Tally::read("running 2 tests\ntest a ... ok\nthread panicked at"),
            Tally::default()
        );
    }
}
