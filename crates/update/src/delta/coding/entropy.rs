//! Whole numbers as bytes, near their entropy.
//!
//! A number is a *token* and extra bits, as hybrid integers in JPEG XL
//! (ISO/IEC 18181-1): numbers below 16 are their own token; of others the
//! token holds the magnitude, the bit behind the leading one, and the lowest
//! bit, which in zigzag is the sign. Tokens are coded by range asymmetric
//! numeral systems (Duda 2013, arXiv:1311.2540) with one table for each
//! bucket of contexts; extra bits are stored as they are. Which contexts
//! share a bucket is decided by what it costs.
//!
//! Start at [`Writer`] and [`Reader`].

use super::super::bytes::{Bytes, varint};
use super::super::error::DeltaError;

/// Frequencies of a table sum to `1 << SCALE_BITS`.
const SCALE_BITS: u32 = 12;
const SCALE: u32 = 1 << SCALE_BITS;

/// States stay at or above it.
const STATE_MIN: u32 = 1 << 16;

/// Tables of a block at most: what they take must stay below what they save.
const BUCKETS_MAX: usize = 16;

/// Bits that a table costs for each token in it, about.
const TOKEN_COST_BITS: f64 = 11.0;

/// zstd's level for tables: they are short.
const TABLES_LEVEL: i32 = 12;

/// Bytes of all tables at most, before zstd.
const TABLES_BYTES_MAX: usize = BUCKETS_MAX * 600;

/// Token of a number, how many extra bits it has, and those.
#[inline]
fn split(z: u64) -> (u8, u32, u64) {
    if z < 16 {
        return (z as u8, 0, 0);
    }
    let n = 63 - z.leading_zeros();
    let token = 16 + (n - 4) * 4 + ((z >> (n - 1)) as u32 & 1) * 2 + (z as u32 & 1);
    let extra = n - 2;
    (token as u8, extra, (z >> 1) & ((1 << extra) - 1))
}

/// How many extra bits a token has.
#[inline]
fn extra_bits(token: u8) -> u32 {
    if token < 16 { 0 } else { (u32::from(token) - 16) / 4 + 2 }
}

/// What [`split`] took apart.
#[inline]
fn join(token: u8, extra: u64) -> u64 {
    if token < 16 {
        return u64::from(token);
    }
    let rest = u64::from(token) - 16;
    let n = rest / 4 + 4;
    (1 << n) | ((rest >> 1 & 1) << (n - 1)) | (extra << 1) | (rest & 1)
}

/// Collects numbers and their contexts.
#[derive(Default)]
pub struct Writer {
    tokens: Vec<u8>,
    contexts: Vec<u8>,
    bits: BitWriter,
}

impl Writer {
    /// With room for as many numbers.
    pub fn with_capacity(count: usize) -> Self {
        Self { tokens: Vec::with_capacity(count), contexts: Vec::with_capacity(count), bits: BitWriter::default() }
    }

    /// Adds a number; those of one context are alike.
    #[inline]
    pub fn put(&mut self, context: u8, number: u64) {
        let (token, extra, value) = split(number);
        self.tokens.push(token);
        self.contexts.push(context);
        self.bits.put(value, extra);
    }

    /// Appends all numbers to `out`.
    pub fn finish(self, out: &mut Vec<u8>) {
        let Self { tokens, contexts, bits } = self;
        let plan = Plan::of(&tokens, &contexts);
        let mut tables = Vec::new();
        plan.write(&mut tables);
        // zstd gives up only without memory; then they go as they are.
        let packed = zstd::bulk::compress(&tables, TABLES_LEVEL).unwrap_or_default();
        let smaller = !packed.is_empty() && packed.len() < tables.len();
        varint((tables.len() as u64) << 1 | u64::from(smaller), out);
        if smaller {
            varint(packed.len() as u64, out);
            out.extend_from_slice(&packed);
        } else {
            out.extend_from_slice(&tables);
        }
        let starts: Vec<[u32; 256]> = plan.tables.iter().map(starts).collect();
        let mut words = Vec::new();
        let mut states = [STATE_MIN; 2];
        for (at, (&token, &context)) in tokens.iter().zip(&contexts).enumerate().rev() {
            let bucket = usize::from(plan.lookup[usize::from(context)]);
            let frequency = u32::from(plan.tables[bucket][usize::from(token)]);
            let start = starts[bucket][usize::from(token)];
            let state = &mut states[at & 1];
            if u64::from(*state) >= u64::from(frequency) << 20 {
                words.push(*state as u16);
                *state >>= 16;
            }
            *state = ((*state / frequency) << SCALE_BITS) + *state % frequency + start;
        }
        for state in states {
            out.extend_from_slice(&state.to_le_bytes());
        }
        varint(words.len() as u64, out);
        out.extend(words.iter().rev().flat_map(|word| word.to_le_bytes()));
        let bits = bits.finish();
        varint(bits.len() as u64, out);
        out.extend_from_slice(&bits);
    }
}

/// Gives back what a [`Writer`] took.
pub struct Reader<'a> {
    lookup: [u8; 256],
    /// For each bucket and slot: token, frequency less one, offset within it.
    slots: Vec<u32>,
    words: std::slice::ChunksExact<'a, u8>,
    states: [u32; 2],
    turn: usize,
    bits: BitReader<'a>,
}

impl<'a> Reader<'a> {
    /// Reads tables and finds where the rest lies.
    pub fn new(bytes: &mut Bytes<'a>) -> Result<Self, DeltaError> {
        let head = bytes.varint()?;
        let length = usize::try_from(head >> 1).ok().filter(|n| *n <= TABLES_BYTES_MAX);
        let length = length.ok_or(DeltaError::Corrupt("its tables of frequencies are too large"))?;
        let unpacked;
        let tables = if head & 1 == 1 {
            let packed = bytes.counted()?;
            unpacked = zstd::bulk::decompress(packed, length)
                .map_err(|_| DeltaError::Corrupt("its tables of frequencies don't unpack"))?;
            &unpacked[..]
        } else {
            bytes.take(length)?
        };
        if tables.len() != length {
            return Err(DeltaError::Corrupt("its tables of frequencies don't unpack"));
        }
        let plan = Plan::read(&mut Bytes::new(tables))?;
        let mut slots = Vec::with_capacity(plan.tables.len() << SCALE_BITS);
        for table in &plan.tables {
            for (token, &frequency) in table.iter().enumerate() {
                let frequency = u32::from(frequency);
                slots.extend((0..frequency).map(|offset| (token as u32) << 24 | (frequency - 1) << 12 | offset));
            }
        }
        let mut states = [0; 2];
        for state in &mut states {
            *state = bytes.u32()?;
        }
        let words = bytes.varint()?;
        let words = usize::try_from(words).ok().and_then(|n| n.checked_mul(2));
        let words = bytes.take(words.ok_or(DeltaError::Truncated)?)?.chunks_exact(2);
        let bits = BitReader::new(bytes.counted()?);
        Ok(Self { lookup: plan.lookup, slots, words, states, turn: 0, bits })
    }

    /// The next number, of this context.
    #[inline]
    pub fn next(&mut self, context: u8) -> Result<u64, DeltaError> {
        let bucket = usize::from(self.lookup[usize::from(context)]);
        let mut state = self.states[self.turn];
        let slot = self.slots[bucket << SCALE_BITS | (state & (SCALE - 1)) as usize];
        let (token, frequency, offset) = ((slot >> 24) as u8, (slot >> 12 & 0xfff) + 1, slot & 0xfff);
        // States of a hostile file may be anything.
        state = frequency.wrapping_mul(state >> SCALE_BITS).wrapping_add(offset);
        if state < STATE_MIN {
            let word = self.words.next().ok_or(DeltaError::Truncated)?;
            state = state << 16 | u32::from(u16::from_le_bytes([word[0], word[1]]));
        }
        self.states[self.turn] = state;
        self.turn ^= 1;
        Ok(join(token, self.bits.take(extra_bits(token))?))
    }

    /// Whether nothing is left, and nothing was out of place.
    pub fn finish(mut self) -> Result<(), DeltaError> {
        let left = self.words.next().is_some() || !self.bits.bytes.is_empty() || self.bits.count >= 8;
        if left || self.states != [STATE_MIN; 2] {
            return Err(DeltaError::Corrupt("its numbers don't end where they should"));
        }
        Ok(())
    }
}

/// Which contexts share a table, and the tables.
struct Plan {
    /// The bucket of each context; buckets are runs of contexts.
    lookup: [u8; 256],
    /// For each bucket how often each token comes, of [`SCALE`].
    tables: Vec<[u16; 256]>,
}

impl Plan {
    /// Begins with a bucket for each context that occurs and joins neighbours
    /// while that saves bits.
    fn of(tokens: &[u8], contexts: &[u8]) -> Self {
        let mut counts = vec![[0u32; 256]; 256];
        for (&token, &context) in tokens.iter().zip(contexts) {
            counts[usize::from(context)][usize::from(token)] += 1;
        }
        let mut buckets: Vec<(usize, [u32; 256], f64)> = counts
            .into_iter()
            .enumerate()
            .filter(|(_, counts)| counts.iter().any(|n| *n > 0))
            .map(|(context, counts)| (context, counts, cost(&counts)))
            .collect();
        let joined = |a: &[u32; 256], b: &[u32; 256]| -> [u32; 256] { std::array::from_fn(|i| a[i] + b[i]) };
        let gain = |pair: &[(usize, [u32; 256], f64)]| pair[0].2 + pair[1].2 - cost(&joined(&pair[0].1, &pair[1].1));
        let mut gains: Vec<f64> = buckets.windows(2).map(gain).collect();
        while let Some((at, best)) = gains.iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1)) {
            if best <= 0.0 && buckets.len() <= BUCKETS_MAX {
                break;
            }
            let (_, counts, _) = buckets.remove(at + 1);
            let sum = joined(&buckets[at].1, &counts);
            buckets[at] = (buckets[at].0, sum, cost(&sum));
            gains.remove(at);
            if at > 0 {
                gains[at - 1] = gain(&buckets[at - 1..=at]);
            }
            if at < gains.len() {
                gains[at] = gain(&buckets[at..=at + 1]);
            }
        }
        let mut lookup = [0; 256];
        for (bucket, (first, ..)) in buckets.iter().enumerate() {
            lookup[*first..].fill(bucket as u8);
        }
        Self { lookup, tables: buckets.iter().map(|(_, counts, _)| normalised(counts)).collect() }
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.push(self.tables.len() as u8);
        for bucket in 1..self.tables.len() {
            let first = self.lookup.iter().position(|b| usize::from(*b) == bucket).unwrap_or_default();
            out.push(first as u8);
        }
        for table in &self.tables {
            let last = table.iter().rposition(|f| *f > 0).unwrap_or_default();
            out.push(last as u8);
            let mut token = 0;
            while token <= last {
                let zeros = table[token..=last].iter().take_while(|f| **f == 0).count();
                if zeros > 0 {
                    out.push(0);
                    out.push((zeros - 1) as u8);
                    token += zeros;
                } else {
                    varint(u64::from(table[token]), out);
                    token += 1;
                }
            }
        }
    }

    fn read(bytes: &mut Bytes<'_>) -> Result<Self, DeltaError> {
        const BROKEN: DeltaError = DeltaError::Corrupt("its tables of frequencies make no sense");
        let count = usize::from(bytes.u8()?);
        if count > BUCKETS_MAX {
            return Err(BROKEN);
        }
        let mut lookup = [0; 256];
        let mut before = 0;
        for bucket in 1..count {
            let first = usize::from(bytes.u8()?);
            if first <= before {
                return Err(BROKEN);
            }
            lookup[first..].fill(bucket as u8);
            before = first;
        }
        let mut tables = Vec::with_capacity(count.max(1));
        for _ in 0..count {
            let last = usize::from(bytes.u8()?);
            let (mut table, mut token, mut sum) = ([0u16; 256], 0, 0u32);
            while token <= last {
                match bytes.varint()? {
                    0 => token += usize::from(bytes.u8()?) + 1,
                    frequency if frequency <= u64::from(SCALE) => {
                        table[token] = frequency as u16;
                        sum += frequency as u32;
                        token += 1;
                    }
                    _ => return Err(BROKEN),
                }
            }
            if token != last + 1 || sum != SCALE {
                return Err(BROKEN);
            }
            tables.push(table);
        }
        if tables.is_empty() {
            // Of no numbers; whoever reads one all the same gets zeros.
            let mut table = [0; 256];
            table[0] = SCALE as u16;
            tables.push(table);
        }
        bytes.end()?;
        Ok(Self { lookup, tables })
    }
}

/// Bits for tokens that come as often, their table included; extra bits are the
/// same in every bucket.
fn cost(counts: &[u32; 256]) -> f64 {
    let sum = counts.iter().map(|n| f64::from(*n)).sum::<f64>();
    let log_sum = sum.log2();
    let coded = counts.iter().filter(|n| **n > 0).map(|n| {
        let n = f64::from(*n);
        // No token gets less than one slot.
        n * (log_sum - n.log2()).clamp(0.0, f64::from(SCALE_BITS)) + TOKEN_COST_BITS
    });
    coded.sum()
}

/// As shares of [`SCALE`], none of what occurs below one.
fn normalised(counts: &[u32; 256]) -> [u16; 256] {
    let sum: u64 = counts.iter().map(|n| u64::from(*n)).sum();
    let mut table = [0u16; 256];
    for (share, &count) in table.iter_mut().zip(counts) {
        if count > 0 {
            *share = ((u64::from(count) * u64::from(SCALE) + sum / 2) / sum).clamp(1, u64::from(SCALE)) as u16;
        }
    }
    let mut total: i64 = table.iter().map(|f| i64::from(*f)).sum();
    // What rounding has left over goes where it costs least.
    while total != i64::from(SCALE) {
        let step = (i64::from(SCALE) - total).signum();
        let change = |f: u16, n: u32| f64::from(n) * ((f64::from(f) + step as f64) / f64::from(f)).log2();
        let may = |f: u16| f > 0 && (step > 0 || f > 1);
        let best = (0..256)
            .filter(|&t| may(table[t]))
            .max_by(|&a, &b| change(table[a], counts[a]).total_cmp(&change(table[b], counts[b])));
        let Some(best) = best else { break };
        table[best] = (i64::from(table[best]) + step) as u16;
        total += step;
    }
    table
}

/// Where each token's slots begin.
fn starts(table: &[u16; 256]) -> [u32; 256] {
    let mut sum = 0;
    std::array::from_fn(|token| {
        let start = sum;
        sum += u32::from(table[token]);
        start
    })
}

/// Bits, the lowest first.
#[derive(Default)]
struct BitWriter {
    bytes: Vec<u8>,
    held: u128,
    count: u32,
}

impl BitWriter {
    #[inline]
    fn put(&mut self, value: u64, bits: u32) {
        self.held |= u128::from(value) << self.count;
        self.count += bits;
        if self.count >= 64 {
            self.bytes.extend_from_slice(&(self.held as u64).to_le_bytes());
            self.held >>= 64;
            self.count -= 64;
        }
    }

    fn finish(mut self) -> Vec<u8> {
        let left = self.count.div_ceil(8) as usize;
        self.bytes.extend_from_slice(&(self.held as u64).to_le_bytes()[..left]);
        self.bytes
    }
}

struct BitReader<'a> {
    bytes: &'a [u8],
    held: u64,
    count: u32,
}

impl<'a> BitReader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, held: 0, count: 0 }
    }

    #[inline]
    fn take(&mut self, bits: u32) -> Result<u64, DeltaError> {
        if bits > 32 {
            let low = self.take(32)?;
            return Ok(low | self.take(bits - 32)? << 32);
        }
        if self.count < bits {
            // Room for 32 bits more: fewer than 32 are held.
            if let Some((four, rest)) = self.bytes.split_first_chunk() {
                self.held |= u64::from(u32::from_le_bytes(*four)) << self.count;
                self.count += 32;
                self.bytes = rest;
            } else {
                while let Some((byte, rest)) = self.bytes.split_first() {
                    self.held |= u64::from(*byte) << self.count;
                    self.count += 8;
                    self.bytes = rest;
                }
                if self.count < bits {
                    return Err(DeltaError::Truncated);
                }
            }
        }
        let value = self.held & ((1 << bits) - 1);
        self.held >>= bits;
        self.count -= bits;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(numbers: &[(u8, u64)]) -> usize {
        let mut writer = Writer::default();
        numbers.iter().for_each(|&(context, number)| writer.put(context, number));
        let mut out = Vec::new();
        writer.finish(&mut out);
        let mut bytes = Bytes::new(&out);
        let mut reader = Reader::new(&mut bytes).unwrap();
        for &(context, number) in numbers {
            assert_eq!(reader.next(context).unwrap(), number);
        }
        reader.finish().unwrap();
        bytes.end().unwrap();
        out.len()
    }

    #[test]
    fn numbers_come_back() {
        let powers = (0..64).flat_map(|n| [1u64 << n, (1 << n) - 1, (1 << n) | 1]).chain([u64::MAX]);
        for number in powers.clone() {
            let (token, extra, value) = split(number);
            assert_eq!(extra_bits(token), extra);
            assert_eq!(join(token, value), number);
        }
        through(&[]);
        through(&[(255, 7)]);
        through(&powers.enumerate().map(|(at, z)| (at as u8, z)).collect::<Vec<_>>());
        let mut rng = fastrand::Rng::with_seed(1);
        for count in [2, 3, 1_000, 20_000] {
            through(&(0..count).map(|_| (rng.u8(..), rng.u64(..) >> rng.u32(..64))).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_comes_near_its_entropy() {
        let mut rng = fastrand::Rng::with_seed(2);
        // One of twenty, and nothing else, is 0.2864 bits a number.
        let rare: Vec<(u8, u64)> = (0..100_000).map(|_| (0, u64::from(rng.u8(..20) == 0))).collect();
        let length = through(&rare) as f64;
        assert!(length < 1.01 * 100_000.0 * 0.2864 / 8.0, "{length}");
        // The same number always is nearly nothing.
        assert!(through(&[(3, 9); 100_000]) < 40);
        // What the context tells costs nothing.
        let told: Vec<(u8, u64)> = (0..50_000).map(|_| rng.u8(..8)).map(|c| (c * 30, u64::from(c) * 2)).collect();
        assert!(through(&told) < 100);
        // Uniform below 2^17 is 17 bits.
        let even: Vec<(u8, u64)> = (0..50_000).map(|_| (0, rng.u64(..1 << 17))).collect();
        assert!((through(&even) as f64) < 1.005 * 50_000.0 * 17.0 / 8.0);
    }
}
