//! Elements as whole-number differences from those of the base.
//!
//! Floats are ordered by sign and magnitude, so that a difference counts the
//! floats between two of them. Differences away from zero are positive: where
//! weights shrink, they say so in one symbol. How large a difference is depends
//! on the exponent of what was there (a step of the same size is many floats
//! next to a small weight and few next to a large one), so that is the context
//! in which it is coded.
//!
//! Where most elements stay, [`encode_sparse`] says instead how many to skip.

use super::super::bytes::{Bytes, varint};
use super::super::element::{Element, load};
use super::super::error::DeltaError;
use super::entropy::{Reader, Writer};

/// How elements of `W` bytes become numbers: floats with `fraction` bits.
#[derive(Clone, Copy)]
struct Form<const W: usize> {
    fraction: Option<u32>,
}

impl<const W: usize> Form<W> {
    const BITS: u32 = 8 * W as u32;
    const MASK: u64 = u64::MAX >> (64 - Self::BITS);
    const TOP: u64 = 1 << (Self::BITS - 1);

    /// The difference as a number that is small when it is.
    #[inline]
    fn number(self, old: u64, new: u64) -> u64 {
        let mut by = if self.fraction.is_some() {
            Self::ordered(new).wrapping_sub(Self::ordered(old))
        } else {
            new.wrapping_sub(old)
        };
        if self.fraction.is_some() && old & Self::TOP != 0 {
            by = by.wrapping_neg();
        }
        by &= Self::MASK;
        let sign = if by & Self::TOP != 0 { Self::MASK } else { 0 };
        ((by << 1) & Self::MASK) ^ sign
    }

    /// The new element.
    #[inline]
    fn apply(self, old: u64, number: u64) -> u64 {
        let sign = if number & 1 != 0 { Self::MASK } else { 0 };
        let mut by = (number & Self::MASK) >> 1 ^ sign;
        if self.fraction.is_none() {
            return old.wrapping_add(by) & Self::MASK;
        }
        if old & Self::TOP != 0 {
            by = by.wrapping_neg();
        }
        Self::unordered(Self::ordered(old).wrapping_add(by) & Self::MASK)
    }

    /// Floats in their order.
    #[inline]
    fn ordered(bits: u64) -> u64 {
        if bits & Self::TOP != 0 { !bits & Self::MASK } else { bits | Self::TOP }
    }

    #[inline]
    fn unordered(ordered: u64) -> u64 {
        if ordered & Self::TOP != 0 { ordered ^ Self::TOP } else { !ordered & Self::MASK }
    }

    /// What differences from this element have in common.
    #[inline]
    fn context(self, old: u64) -> u8 {
        match self.fraction {
            // Eight bits below the sign: of doubles those, as they have eleven.
            Some(fraction) => {
                let exponent_bits = Self::BITS - 1 - fraction;
                ((old & !Self::TOP) >> (Self::BITS - 1 - exponent_bits.min(8))) as u8
            }
            None if W == 1 => old as u8,
            None => {
                let magnitude = if old & Self::TOP != 0 { !old & Self::MASK } else { old };
                (64 - magnitude.leading_zeros()) as u8
            }
        }
    }
}

/// Calls one of the generic functions below with the element's width.
macro_rules! by_width {
    ($element:expr, $function:ident($($argument:expr),*)) => {{
        let fraction = $element.fraction_bits();
        match $element.width() {
            1 => $function(Form::<1> { fraction }, $($argument),*),
            2 => $function(Form::<2> { fraction }, $($argument),*),
            4 => $function(Form::<4> { fraction }, $($argument),*),
            _ => $function(Form::<8> { fraction }, $($argument),*),
        }
    }};
}

/// Appends the differences; both are as long, a multiple of the width.
pub fn encode(old: &[u8], new: &[u8], element: Element, out: &mut Vec<u8>) {
    by_width!(element, encode_form(old, new, out));
}

/// Puts the new elements behind `new`.
pub fn decode(old: &[u8], element: Element, bytes: &mut Bytes<'_>, new: &mut Vec<u8>) -> Result<(), DeltaError> {
    by_width!(element, decode_form(old, bytes, new))
}

/// The same, naming changed elements alone.
pub fn encode_sparse(old: &[u8], new: &[u8], element: Element, out: &mut Vec<u8>) {
    by_width!(element, encode_sparse_form(old, new, out));
}

/// Puts the new elements behind `new`.
pub fn decode_sparse(old: &[u8], element: Element, bytes: &mut Bytes<'_>, new: &mut Vec<u8>) -> Result<(), DeltaError> {
    by_width!(element, decode_sparse_form(old, bytes, new))
}

fn encode_form<const W: usize>(form: Form<W>, old: &[u8], new: &[u8], out: &mut Vec<u8>) {
    let mut writer = Writer::with_capacity(new.len() / W);
    for (old, new) in old.chunks_exact(W).zip(new.chunks_exact(W)) {
        let (old, new) = (load::<W>(old), load::<W>(new));
        writer.put(form.context(old), form.number(old, new));
    }
    writer.finish(out);
}

fn decode_form<const W: usize>(
    form: Form<W>,
    old: &[u8],
    bytes: &mut Bytes<'_>,
    new: &mut Vec<u8>,
) -> Result<(), DeltaError> {
    let mut reader = Reader::new(bytes)?;
    new.reserve(old.len());
    for old in old.chunks_exact(W) {
        let old = load::<W>(old);
        let element = form.apply(old, reader.next(form.context(old))?);
        new.extend_from_slice(&element.to_le_bytes()[..W]);
    }
    reader.finish()
}

fn encode_sparse_form<const W: usize>(form: Form<W>, old: &[u8], new: &[u8], out: &mut Vec<u8>) {
    let (mut gaps, mut changes) = (Writer::default(), Writer::default());
    let (mut gap, mut count, mut context) = (0u64, 0u64, 0);
    for (old, new) in old.chunks_exact(W).zip(new.chunks_exact(W)) {
        if old == new {
            gap += 1;
            continue;
        }
        let (old, new) = (load::<W>(old), load::<W>(new));
        gaps.put(context, gap);
        changes.put(form.context(old), form.number(old, new) - 1);
        // Changes stand together, or they don't.
        context = u8::from(gap > 0);
        (gap, count) = (0, count + 1);
    }
    varint(count, out);
    gaps.finish(out);
    changes.finish(out);
}

fn decode_sparse_form<const W: usize>(
    form: Form<W>,
    old: &[u8],
    bytes: &mut Bytes<'_>,
    new: &mut Vec<u8>,
) -> Result<(), DeltaError> {
    const BEHIND: DeltaError = DeltaError::Corrupt("a change lies behind the end");
    let count = bytes.varint()?;
    if count > (old.len() / W) as u64 {
        return Err(BEHIND);
    }
    let mut gaps = Reader::new(bytes)?;
    let mut changes = Reader::new(bytes)?;
    let (begin, mut at, mut context) = (new.len(), 0usize, 0);
    new.extend_from_slice(old);
    for _ in 0..count {
        let gap = gaps.next(context)?;
        context = u8::from(gap > 0);
        at = usize::try_from(gap).ok().and_then(|gap| at.checked_add(gap)).ok_or(BEHIND)?;
        let place = at.checked_mul(W).filter(|place| *place < old.len()).ok_or(BEHIND)?;
        let element = load::<W>(&old[place..]);
        let number = changes.next(form.context(element))?.wrapping_add(1);
        let element = form.apply(element, number);
        new[begin + place..begin + place + W].copy_from_slice(&element.to_le_bytes()[..W]);
        at += 1;
    }
    gaps.finish()?;
    changes.finish()
}
