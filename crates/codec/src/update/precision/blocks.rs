//! Codes of a few bits with one scale per block: how they are laid out, for
//! every quantiser.
//!
//! All scales first, then the codes of each block, filled up to a byte; a
//! segment (PowerSGD's factors are such) begins a block of its own, since
//! its magnitude is.

use crate::CodecError;
use crate::update::bits::Layout;

/// Values that share a scale: four bytes of it are a 32nd of a bit per value.
pub const BLOCK: usize = 1_024;

/// Values of a block to codes and back.
pub trait Quantiser {
    /// Bits of a code, 1 to 8.
    fn bits(&self) -> usize;

    /// Sets a code for each value (finite, [`BLOCK`] at most), and gives the
    /// block's scale, finite and not negative.
    fn quantise(&mut self, values: &[f32], codes: &mut [u8]) -> f32;

    /// Sets the value of each code; any code of so many bits may come.
    /// Finite for a finite scale.
    fn restore(&self, scale: f32, codes: &[u8], values: &mut [f32]);
}

/// The largest magnitude; infinite or NaN when a value is.
pub fn largest(values: &[f32]) -> f32 {
    // As integers, which the compiler vectorises without asking about NaN.
    f32::from_bits(values.iter().fold(0, |m, v| m.max(v.to_bits() & 0x7fff_ffff)))
}

/// Bytes that segments of these lengths take.
pub fn size(bits: usize, lens: &[usize], layout: Layout) -> usize {
    let segment = |&len: &usize| {
        let (full, rest) = (len / BLOCK, len % BLOCK);
        4 * len.div_ceil(BLOCK) + full * layout.bytes(BLOCK, bits) + layout.bytes(rest, bits)
    };
    lens.iter().map(segment).sum()
}

/// Appends scales and codes.
pub fn write(quantiser: &mut dyn Quantiser, values: &[f32], lens: &[usize], layout: Layout, out: &mut Vec<u8>) {
    let (bits, start, count) = (quantiser.bits(), out.len(), blocks(lens).count());
    out.resize(start + 4 * count, 0);
    let mut codes = [0; BLOCK];
    let mut rest = values;
    for (block, len) in blocks(lens).enumerate() {
        let (here, behind) = rest.split_at(len);
        rest = behind;
        let scale = quantiser.quantise(here, &mut codes[..len]);
        for (i, byte) in scale.to_le_bytes().into_iter().enumerate() {
            out[start + position(layout, count, block, i)] = byte;
        }
        layout.pack(&codes[..len], bits, out);
    }
}

/// Fills `values` from bytes of [`size`].
pub fn read(
    quantiser: &dyn Quantiser,
    bytes: &[u8],
    lens: &[usize],
    layout: Layout,
    values: &mut [f32],
) -> Result<(), CodecError> {
    let (bits, count) = (quantiser.bits(), blocks(lens).count());
    let (scales, mut packed) = bytes.split_at(4 * count);
    let mut codes = [0; BLOCK];
    let mut rest = values;
    for (block, len) in blocks(lens).enumerate() {
        let scale = f32::from_le_bytes(std::array::from_fn(|i| scales[position(layout, count, block, i)]));
        // Zero has one form, so that no zero decodes with a sign it never had.
        if !scale.is_finite() || scale.is_sign_negative() {
            return Err(CodecError::Corrupt("a block's scale is not a finite number"));
        }
        let (here, behind) = packed.split_at(layout.bytes(len, bits));
        packed = behind;
        layout.unpack(here, bits, &mut codes[..len]);
        let (here, behind) = rest.split_at_mut(len);
        rest = behind;
        quantiser.restore(scale, &codes[..len], here);
    }
    Ok(())
}

/// Lengths of the blocks of segments of these lengths.
fn blocks(lens: &[usize]) -> impl Iterator<Item = usize> {
    lens.iter().flat_map(|&len| (0..len).step_by(BLOCK).map(move |at| BLOCK.min(len - at)))
}

/// Where byte `i` of a block's scale lies among the scales.
fn position(layout: Layout, count: usize, block: usize, i: usize) -> usize {
    match layout {
        Layout::Packed => block * 4 + i,
        Layout::Aligned => i * count + block,
    }
}
