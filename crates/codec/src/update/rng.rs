//! Random numbers that are part of the format: a receiver draws the mask that
//! the sender drew, so the generator can't change with a dependency.

/// SplitMix64 (Steele, Lea, Flood 2014).
pub struct Rng(u64);

/// What a stream of random numbers is for; streams of one seed differ by it.
#[derive(Clone, Copy)]
pub enum Purpose {
    Mask = 1,
    Rounding = 2,
    Start = 3,
}

impl Rng {
    pub fn new(seed: u64, purpose: Purpose) -> Self {
        // Mixed, since streams of neighbouring states overlap.
        let mut rng = Self(seed);
        let mixed = rng.next();
        Self(mixed ^ (purpose as u64).wrapping_mul(0xd1b5_4a32_d192_ed03))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to below `n`. Biased by n / 2^32 at most, which no mask shows.
    pub fn below(&mut self, n: u32) -> u32 {
        (((self.next() >> 32) * u64::from(n)) >> 32) as u32
    }
}
