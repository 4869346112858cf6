//! Differences of floats on a coarse grid: for a group of elements a scale,
//! for each element a whole number of steps.
//!
//! The scale is the largest difference of the group over the most steps that
//! there are, so no element is further from the truth than half a step, and
//! rounding in the element's own type. What is decoded is computed the same way
//! everywhere: one product and one sum in f32, then rounding to the type.

use half::{bf16, f16};

use super::super::bytes::Bytes;
use super::super::element::Element;
use super::super::error::DeltaError;
use super::entropy::{Reader, Writer};

/// Elements that share a scale.
const GROUP: usize = 1_024;

/// Whether differences of such elements can be on a grid.
pub fn takes(element: Element) -> bool {
    matches!(element, Element::F16 | Element::Bf16 | Element::F32)
}

/// Appends the steps, and gives what comes of them; `None` where a difference
/// is no finite number.
///
/// Elements reach `steps_max` steps in either direction.
pub fn encode(old: &[u8], new: &[u8], element: Element, steps_max: u8, out: &mut Vec<u8>) -> Option<Vec<u8>> {
    let width = element.width();
    let mut writer = Writer::with_capacity(new.len() / width);
    let mut scales = Vec::new();
    let mut made = Vec::with_capacity(new.len());
    for (old, new) in old.chunks(GROUP * width).zip(new.chunks(GROUP * width)) {
        let pairs =
            || old.chunks_exact(width).zip(new.chunks_exact(width)).map(|(a, b)| (read(a, element), read(b, element)));
        let largest = pairs()
            .map(|(old, new)| (new - old).abs())
            .fold(0f32, |max, by| if by.is_finite() { max.max(by) } else { f32::INFINITY });
        if !largest.is_finite() || pairs().any(|(old, new)| !old.is_finite() || !new.is_finite()) {
            return None;
        }
        let scale = largest / f32::from(steps_max);
        scales.extend_from_slice(&scale.to_le_bytes());
        for (old, new) in pairs() {
            let steps = if scale > 0.0 {
                ((new - old) / scale).round().clamp(-f32::from(steps_max), f32::from(steps_max))
            } else {
                0.0
            };
            writer.put(0, super::super::bytes::zigzag(steps as i64));
            let value = moved(old, steps, scale);
            if !write(value, element, &mut made) {
                return None;
            }
        }
    }
    out.extend_from_slice(&scales);
    writer.finish(out);
    Some(made)
}

/// Puts the new elements behind `new`.
pub fn decode(old: &[u8], element: Element, bytes: &mut Bytes<'_>, new: &mut Vec<u8>) -> Result<(), DeltaError> {
    if !takes(element) {
        return Err(DeltaError::Corrupt("differences on a grid are of floats"));
    }
    let width = element.width();
    let groups = (old.len() / width).div_ceil(GROUP);
    let scales = bytes.take(groups * 4)?;
    let mut reader = Reader::new(bytes)?;
    for (old, scale) in old.chunks(GROUP * width).zip(scales.chunks_exact(4)) {
        let scale = f32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]);
        for old in old.chunks_exact(width) {
            let steps = super::super::bytes::unzigzag(reader.next(0)?) as f32;
            write(moved(read(old, element), steps, scale), element, new);
        }
    }
    reader.finish()
}

/// So many steps away; of none, what it was, a negative zero included.
fn moved(old: f32, steps: f32, scale: f32) -> f32 {
    if steps == 0.0 { old } else { old + steps * scale }
}

/// The element's value.
pub fn read(bytes: &[u8], element: Element) -> f32 {
    match (element, bytes) {
        (Element::F32, [a, b, c, d]) => f32::from_le_bytes([*a, *b, *c, *d]),
        (Element::F16, [a, b]) => f16::from_le_bytes([*a, *b]).to_f32(),
        (_, [a, b, ..]) => bf16::from_le_bytes([*a, *b]).to_f32(),
        _ => 0.0,
    }
}

/// Appends the value as an element; whether it is finite.
fn write(value: f32, element: Element, out: &mut Vec<u8>) -> bool {
    match element {
        Element::F32 => out.extend_from_slice(&value.to_le_bytes()),
        Element::F16 => {
            out.extend_from_slice(&f16::from_f32(value).to_le_bytes());
            return f16::from_f32(value).is_finite();
        }
        _ => {
            out.extend_from_slice(&bf16::from_f32(value).to_le_bytes());
            return bf16::from_f32(value).is_finite();
        }
    }
    value.is_finite()
}
