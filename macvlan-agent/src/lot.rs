//! For tests: numbers as good as drawn by lot, the same ones each time.

/// Knuth's MMIX.
pub(crate) struct Lot(u64);

impl Lot {
    pub(crate) fn new() -> Self {
        Self(1)
    }

    /// One below `below`.
    pub(crate) fn draw(&mut self, below: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}
