//! What chance decides in a federation: each draw by what it is for, so that
//! whoever does a thing again draws the same.

/// Keeps the seeds of exchanges apart from others.
const EXCHANGE: u64 = 0x6d65_6574;

/// Keeps the seeds of models apart from others.
const DOWN: u64 = 0x646f_776e;

/// Keeps the seeds of updates apart from others.
const UPDATE: u64 = 0x7570_6461_7465;

/// A seed for one purpose: equal words give equal seeds.
///
/// Each word goes through the finaliser of SplitMix64 (Steele, Lea and Flood,
/// 2014), so that neighbouring words share nothing.
#[must_use]
pub fn seed_of(words: &[u64]) -> u64 {
    words.iter().fold(0x6a09_e667_f3bc_c908, |state: u64, &word| {
        let mut z = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// Decides what the stages of an update draw.
#[must_use]
pub fn of_update(seed: u64, member: &str, task: u64) -> u64 {
    let mut words = vec![seed, UPDATE, task];
    words.extend(member.bytes().map(u64::from));
    seed_of(&words)
}

/// Decides what the stages of a model on its way down draw.
#[must_use]
pub fn of_model(seed: u64, version: u64) -> u64 {
    seed_of(&[seed, DOWN, version])
}

/// Decides which edges exchange models in a round of the cloud.
#[must_use]
pub fn of_exchange(seed: u64, round: u64) -> u64 {
    seed_of(&[seed, EXCHANGE, round])
}
