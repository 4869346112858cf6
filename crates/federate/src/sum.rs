//! Sums that don't depend on the order of what is added.
//!
//! Each term is split on a fixed grid into a coarse and a fine part; sums of
//! either are exact in f64, so additions commute and associate, whatever
//! arrives first and however partial sums are grouped (after Demmel and
//! Nguyen, "Fast reproducible floating-point summation", 2013, with the grid
//! fixed rather than found). A node that adds everything once more after it
//! was killed gets the same bits. Start at [`ExactSum`].

use pulp::{Arch, NullaryFnOnce};

/// Adding and subtracting it rounds to a multiple of 2^4: its last place.
const COARSE: f64 = 1.5 * (1u64 << 56) as f64;

/// Adding and subtracting it rounds to a multiple of 2^-44.
const FINE: f64 = 1.5 * (1u64 << 8) as f64;

/// Largest magnitude that all terms of one element may have together: beyond,
/// coarse parts would not be exact any more.
pub const SUM_MAX: f64 = (1u64 << 55) as f64;

/// Largest magnitude of any one term where as many are added as a coordinator
/// may have members: no member can then keep another's out of the sum. Weights
/// that change by 1 fit for 2^35 examples, variances that change by 10,000 for
/// three million.
pub const TERM_MAX: f64 = (1u64 << 35) as f64;

/// Fine parts are at most 2^3 each and exact up to 2^9 together: half of the
/// terms that would fit.
const TERMS_PER_CARRY: u32 = 1 << 5;

/// Vectors that are added in one pass: sums are four times as long as a vector
/// in bytes, and are read and written once for all of them.
pub const TOGETHER_MAX: usize = 4;

/// A weighted sum of vectors, exact to 2^-44 per element and term.
#[derive(Debug, Clone, PartialEq)]
pub struct ExactSum {
    coarse: Vec<f64>,
    fine: Vec<f64>,
    /// Terms since fine parts were last carried over.
    terms: u32,
    /// Bound on the magnitude of any element.
    largest: f64,
}

/// A term that a sum can't take.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SumError {
    /// Another length.
    #[error("a vector of {given} elements can't be added to a sum of {expected}")]
    Length {
        /// The sum's.
        expected: usize,
        /// The vector's.
        given: usize,
    },
    /// Something that isn't a finite number.
    #[error("element {index} is {value}")]
    NotFinite {
        /// Where.
        index: usize,
        /// What.
        value: f32,
    },
    /// More than one member may add.
    #[error("numbers of up to {largest:e} that count {weight} times are beyond {TERM_MAX:e}, what one member may add")]
    Term {
        /// The vector's largest magnitude.
        largest: f32,
        /// What it was to be multiplied by.
        weight: f64,
    },
    /// The sum would leave its range.
    #[error("elements of up to {largest:e}, {weight} times, would exceed what a sum can hold exactly ({SUM_MAX:e})")]
    Range {
        /// The vector's largest magnitude.
        largest: f32,
        /// What it was to be multiplied by.
        weight: f64,
    },
}

impl ExactSum {
    /// Zeros.
    #[must_use]
    pub fn new(length: usize) -> Self {
        Self { coarse: vec![0.0; length], fine: vec![0.0; length], terms: 0, largest: 0.0 }
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.coarse.len()
    }

    /// Whether it has no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.coarse.is_empty()
    }

    /// Whether `weight` times `vector` can be added, and the bound that the
    /// sum then has.
    ///
    /// # Errors
    /// When it can't.
    pub fn admits(&self, weight: f64, vector: &[f32]) -> Result<f64, SumError> {
        if vector.len() != self.len() {
            return Err(SumError::Length { expected: self.len(), given: vector.len() });
        }
        let largest = largest(vector)?;
        let reach = self.largest + f64::from(largest) * weight.abs();
        if reach.is_nan() || reach >= SUM_MAX {
            return Err(SumError::Range { largest, weight });
        }
        Ok(reach)
    }

    /// Whether `weight` times `vector` may be a member's: small enough that a
    /// sum takes those of all members there may be.
    ///
    /// # Errors
    /// [`SumError::Term`], or [`SumError::NotFinite`].
    pub fn admits_of_a_member(weight: f64, vector: &[f32]) -> Result<(), SumError> {
        let largest = largest(vector)?;
        let fits = f64::from(largest) * weight.abs() <= TERM_MAX;
        if fits { Ok(()) } else { Err(SumError::Term { largest, weight }) }
    }

    /// Adds `weight` times `vector`.
    ///
    /// # Errors
    /// When the vector doesn't fit; the sum is then what it was.
    pub fn add(&mut self, weight: f64, vector: &[f32]) -> Result<(), SumError> {
        self.add_all(&[(weight, vector)])
    }

    /// Adds several vectors, each times its weight, [`TOGETHER_MAX`] in a pass.
    ///
    /// # Errors
    /// When one of them doesn't fit; the sum is then what it was.
    pub fn add_all(&mut self, terms: &[(f64, &[f32])]) -> Result<(), SumError> {
        let before = self.largest;
        for (weight, vector) in terms {
            match self.admits(*weight, vector) {
                Ok(reach) => self.largest = reach,
                Err(error) => {
                    self.largest = before;
                    return Err(error);
                }
            }
        }
        self.put(terms);
        Ok(())
    }

    /// Counts on one more term that [`ExactSum::admits_of_a_member`].
    ///
    /// # Errors
    /// When there are as many as a sum takes.
    pub(crate) fn expect_one(&mut self) -> Result<(), SumError> {
        let reach = self.largest + TERM_MAX;
        if reach >= SUM_MAX {
            return Err(SumError::Range { largest: TERM_MAX as f32, weight: 1.0 });
        }
        self.largest = reach;
        Ok(())
    }

    /// Adds vectors times their weights that were admitted or expected, some in
    /// one pass.
    pub(crate) fn put(&mut self, terms: &[(f64, &[f32])]) {
        for some in terms.chunks(TOGETHER_MAX) {
            let count = some.len() as u32;
            if self.terms + count > TERMS_PER_CARRY {
                self.carry();
            }
            self.terms += count;
            let (coarse, fine) = (self.coarse.as_mut_slice(), self.fine.as_mut_slice());
            let arch = Arch::new();
            match *some {
                [a] => arch.dispatch(Pass { coarse, fine, terms: [a] }),
                [a, b] => arch.dispatch(Pass { coarse, fine, terms: [a, b] }),
                [a, b, c] => arch.dispatch(Pass { coarse, fine, terms: [a, b, c] }),
                [a, b, c, d] => arch.dispatch(Pass { coarse, fine, terms: [a, b, c, d] }),
                _ => {}
            }
        }
    }

    /// Adds what another sum holds.
    ///
    /// # Errors
    /// When it is of another length, or both together leave the range.
    pub fn merge(&mut self, other: &Self) -> Result<(), SumError> {
        if other.len() != self.len() {
            return Err(SumError::Length { expected: self.len(), given: other.len() });
        }
        let reach = self.largest + other.largest;
        if reach >= SUM_MAX {
            return Err(SumError::Range { largest: other.largest as f32, weight: 1.0 });
        }
        self.largest = reach;
        let mut other = other.clone();
        other.carry();
        self.carry();
        for (mine, theirs) in [(&mut self.coarse, &other.coarse), (&mut self.fine, &other.fine)] {
            mine.iter_mut().zip(theirs).for_each(|(a, b)| *a += b);
        }
        self.terms = 2;
        Ok(())
    }

    /// The sum, rounded to f64.
    #[must_use]
    pub fn exactly(&self) -> Vec<f64> {
        // Both parts are exact, so this is their exact sum rounded once,
        // however often one was carried over to the other.
        self.coarse.iter().zip(&self.fine).map(|(coarse, fine)| coarse + fine).collect()
    }

    /// The sum over `weight`.
    #[must_use]
    pub fn over(&self, weight: f64) -> Vec<f32> {
        self.coarse.iter().zip(&self.fine).map(|(coarse, fine)| ((coarse + fine) / weight) as f32).collect()
    }

    /// Back to zeros.
    pub fn clear(&mut self) {
        self.coarse.fill(0.0);
        self.fine.fill(0.0);
        (self.terms, self.largest) = (0, 0.0);
    }

    /// Moves what fine parts have gathered to the coarse ones: multiples of
    /// 2^4 go, less than half of that stays. Both stay exact.
    fn carry(&mut self) {
        for (coarse, fine) in self.coarse.iter_mut().zip(&mut self.fine) {
            (*coarse, *fine) = carried(*coarse, *fine);
        }
        self.terms = 1;
    }
}

/// Adds some vectors, as long as the sums, to both parts.
///
/// Compiled for the widest instructions there are: a type rather than a
/// closure, which the compiler would not always put where these are known.
/// Products aren't fused with sums, so every form gives the same bits.
struct Pass<'a, const N: usize> {
    coarse: &'a mut [f64],
    fine: &'a mut [f64],
    terms: [(f64, &'a [f32]); N],
}

impl<const N: usize> NullaryFnOnce for Pass<'_, N> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        pass(self.coarse, self.fine, self.terms);
    }
}

/// A function of its own: its arguments are known not to overlap.
#[inline(always)]
fn pass<const N: usize>(coarse: &mut [f64], fine: &mut [f64], terms: [(f64, &[f32]); N]) {
    let length = coarse.len();
    let fine = &mut fine[..length];
    let (weights, vectors) = (terms.map(|(weight, _)| weight), terms.map(|(_, vector)| &vector[..length]));
    for i in 0..length {
        let (mut high_sum, mut low_sum) = (coarse[i], fine[i]);
        for k in 0..N {
            let term = weights[k] * f64::from(vectors[k][i]);
            let high = (term + COARSE) - COARSE;
            high_sum += high;
            low_sum += ((term - high) + FINE) - FINE;
        }
        (coarse[i], fine[i]) = (high_sum, low_sum);
    }
}

/// Looks for the largest magnitude; compiled as [`Pass`] is.
struct Largest<'a>(&'a [f32]);

impl NullaryFnOnce for Largest<'_> {
    type Output = Result<f32, SumError>;

    #[inline(always)]
    fn call(self) -> Self::Output {
        largest_of(self.0)
    }
}

fn carried(coarse: f64, fine: f64) -> (f64, f64) {
    let high = (fine + COARSE) - COARSE;
    (coarse + high, fine - high)
}

/// The largest magnitude.
pub(crate) fn largest(vector: &[f32]) -> Result<f32, SumError> {
    Arch::new().dispatch(Largest(vector))
}

#[inline(always)]
fn largest_of(vector: &[f32]) -> Result<f32, SumError> {
    // In lanes, which the compiler keeps in one register.
    let mut lanes = [0f32; 16];
    let mut finite = [0f32; 16];
    let chunks = vector.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        for ((lane, bad), x) in lanes.iter_mut().zip(&mut finite).zip(chunk) {
            *lane = lane.max(x.abs());
            // Zero times infinity or not-a-number is not-a-number, and stays.
            *bad += x * 0.0;
        }
    }
    let whole = finite.iter().all(|x| x.is_finite()) && rest.iter().all(|x| x.is_finite());
    if !whole {
        let index = vector.iter().position(|x| !x.is_finite()).unwrap_or(0);
        return Err(SumError::NotFinite { index, value: vector[index] });
    }
    Ok(rest.iter().chain(&lanes).fold(0.0, |a, x| a.max(x.abs())))
}
