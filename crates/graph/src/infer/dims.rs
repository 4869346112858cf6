//! Arithmetic of axes and shapes, known and symbolic. `None` as a result
//! means a contradiction; what isn't known is [`Dim::Unknown`].

use crate::types::Dim;

pub(super) type Shape = Vec<Dim>;

pub(super) const ONE: Dim = Dim::Known(1);

pub(super) fn known(n: u64) -> Dim {
    Dim::Known(n)
}

pub(super) fn unknown(rank: usize) -> Shape {
    vec![Dim::Unknown; rank]
}

/// Sizes when all axes are fixed.
pub(super) fn fixed(shape: &[Dim]) -> Option<Vec<u64>> {
    shape.iter().map(Dim::known).collect()
}

/// The more specific of two statements about one axis.
pub(super) fn meet(a: &Dim, b: &Dim) -> Option<Dim> {
    Some(match (a, b) {
        (Dim::Known(x), Dim::Known(y)) if x != y => return None,
        (Dim::Known(_), _) | (Dim::Symbol(_), Dim::Symbol(_) | Dim::Unknown) => a.clone(),
        _ => b.clone(),
    })
}

/// The more specific of two statements about one shape.
pub(super) fn meet_shapes(a: &[Dim], b: &[Dim]) -> Option<Shape> {
    if a.len() != b.len() {
        return None;
    }
    a.iter().zip(b).map(|(a, b)| meet(a, b)).collect()
}

/// What holds of both of two possible shapes; `None` when ranks differ.
pub(super) fn join_shapes(a: &[Dim], b: &[Dim]) -> Option<Shape> {
    (a.len() == b.len()).then(|| a.iter().zip(b).map(|(a, b)| if a == b { a.clone() } else { Dim::Unknown }).collect())
}

/// NumPy broadcasting of one axis.
pub(super) fn broadcast_dim(a: &Dim, b: &Dim) -> Option<Dim> {
    Some(match (a, b) {
        (Dim::Known(1), other) | (other, Dim::Known(1)) => other.clone(),
        (Dim::Known(x), Dim::Known(y)) if x != y => return None,
        // An axis of fixed size n > 1 decides: the other is n or 1.
        (Dim::Known(_), _) => a.clone(),
        (_, Dim::Known(_)) => b.clone(),
        (Dim::Symbol(x), Dim::Symbol(y)) if x == y => a.clone(),
        _ => Dim::Unknown,
    })
}

/// NumPy broadcasting.
pub(super) fn broadcast(a: &[Dim], b: &[Dim]) -> Option<Shape> {
    let rank = a.len().max(b.len());
    let at = |s: &[Dim], i: usize| (i + s.len()).checked_sub(rank).map_or(ONE, |i| s[i].clone());
    (0..rank).map(|i| broadcast_dim(&at(a, i), &at(b, i))).collect()
}

/// Sum of axes, as for concatenation.
pub(super) fn add(a: &Dim, b: &Dim) -> Dim {
    match (a, b) {
        (Dim::Known(x), Dim::Known(y)) => x.checked_add(*y).map_or(Dim::Unknown, known),
        (Dim::Known(0), other) | (other, Dim::Known(0)) => other.clone(),
        _ => Dim::Unknown,
    }
}

/// An axis changed by a signed amount; `None` when it would be negative.
pub(super) fn offset(a: &Dim, by: i64) -> Option<Dim> {
    Some(match a {
        Dim::Known(n) => known(u64::try_from(i64::try_from(*n).ok()?.checked_add(by)?).ok()?),
        other if by == 0 => other.clone(),
        _ => Dim::Unknown,
    })
}

pub(super) fn mul(a: &Dim, b: &Dim) -> Dim {
    match (a, b) {
        (Dim::Known(x), Dim::Known(y)) => x.checked_mul(*y).map_or(Dim::Unknown, known),
        (Dim::Known(1), other) | (other, Dim::Known(1)) => other.clone(),
        (Dim::Known(0), _) | (_, Dim::Known(0)) => known(0),
        _ => Dim::Unknown,
    }
}

/// Exact division; `None` when it leaves a remainder.
pub(super) fn div_exact(a: &Dim, by: u64) -> Option<Dim> {
    match a {
        Dim::Known(n) => (by != 0 && n.is_multiple_of(by)).then(|| known(n / by)),
        other if by == 1 => Some(other.clone()),
        _ => Some(Dim::Unknown),
    }
}

pub(super) fn product(dims: &[Dim]) -> Dim {
    dims.iter().fold(ONE, |n, d| mul(&n, d))
}

/// The missing axis of a reshape: `from`'s elements over `rest`'s, symbols
/// cancelled by name. `None` when the division leaves a remainder.
pub(super) fn quotient(from: &[Dim], rest: &[Dim]) -> Option<Dim> {
    let mut symbols: Vec<&Dim> = from.iter().filter(|d| d.known().is_none()).collect();
    let mut open = symbols.iter().any(|d| **d == Dim::Unknown);
    for d in rest.iter().filter(|d| d.known().is_none()) {
        match symbols.iter().position(|s| *s == d && *d != Dim::Unknown) {
            Some(i) => drop(symbols.swap_remove(i)),
            None => open = true,
        }
    }
    let factor = |dims: &[Dim]| dims.iter().filter_map(Dim::known).try_fold(1u64, |n, d| n.checked_mul(d));
    let (Some(numerator), Some(denominator)) = (factor(from), factor(rest)) else { return Some(Dim::Unknown) };
    if open || denominator == 0 {
        return Some(Dim::Unknown);
    }
    match symbols[..] {
        [] => numerator.is_multiple_of(denominator).then(|| known(numerator / denominator)),
        [one] if numerator == denominator => Some(one.clone()),
        _ => Some(Dim::Unknown),
    }
}

/// An axis index, possibly negative, as a position below `rank`.
pub(crate) fn axis_index(axis: i64, rank: usize) -> Option<usize> {
    let axis = if axis < 0 { axis.checked_add(rank as i64)? } else { axis };
    usize::try_from(axis).ok().filter(|a| *a < rank)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims(text: &str) -> Shape {
        text.split_whitespace()
            .map(|d| match d.parse() {
                Ok(n) => known(n),
                Err(_) if d == "?" => Dim::Unknown,
                Err(_) => Dim::Symbol(d.to_owned()),
            })
            .collect()
    }

    #[test]
    fn broadcasting_keeps_symbols_and_finds_contradictions() {
        assert_eq!(broadcast(&dims("N 1 4"), &dims("3 1")), Some(dims("N 3 4")));
        assert_eq!(broadcast(&dims("N 4"), &dims("N 4")), Some(dims("N 4")));
        assert_eq!(broadcast(&dims("N 4"), &dims("M 1")), Some(dims("? 4")));
        assert_eq!(broadcast(&dims("3"), &dims("4")), None);
    }

    #[test]
    fn a_reshape_cancels_symbols() {
        assert_eq!(quotient(&dims("N S 768"), &dims("N 12 64")), Some(dims("S").remove(0)));
        assert_eq!(quotient(&dims("N S 768"), &dims("12 64")), Some(Dim::Unknown));
        assert_eq!(quotient(&dims("2 3 4"), &dims("6")), Some(known(4)));
        assert_eq!(quotient(&dims("2 3 4"), &dims("5")), None);
        assert_eq!(quotient(&dims("? 4"), &dims("2")), Some(Dim::Unknown));
    }
}
