//! The running mean that several methods share.

/// Mean of the numbers so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Mean {
    pub n: f64,
    pub mean: f64,
}

impl Mean {
    pub fn update(&mut self, x: f64) {
        self.n += 1.0;
        self.mean += (1.0 / self.n) * (x - self.mean);
    }
}
