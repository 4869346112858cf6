//! Sums: exact, and the same in any order and grouping.

use proptest::prelude::*;
use tierline_federate::ExactSum;
use tierline_federate::sum::SumError;

fn terms() -> impl Strategy<Value = Vec<(f64, Vec<f32>)>> {
    let value = prop_oneof![-1f32..1.0, -1e4f32..1e4, -1e-6f32..1e-6, Just(0.0), Just(f32::MIN_POSITIVE)];
    let term = (prop_oneof![1.0f64..1e5, 1e-3f64..1.0], proptest::collection::vec(value, 19));
    proptest::collection::vec(term, 1..40)
}

fn sum<'a>(terms: impl IntoIterator<Item = &'a (f64, Vec<f32>)>) -> ExactSum {
    let mut sum = ExactSum::new(19);
    terms.into_iter().for_each(|(weight, vector)| sum.add(*weight, vector).unwrap());
    sum
}

proptest! {
    #[test]
    fn order_and_grouping_change_no_bit(terms in terms(), seed: u64, at in 0usize..40) {
        let there = sum(&terms);
        let mut shuffled = terms.clone();
        fastrand::Rng::with_seed(seed).shuffle(&mut shuffled);
        prop_assert_eq!(there.exactly(), sum(&shuffled).exactly());
        let (left, right) = shuffled.split_at(at.min(shuffled.len()));
        let mut merged = sum(left);
        merged.merge(&sum(right)).unwrap();
        prop_assert_eq!(there.exactly(), merged.exactly());
        prop_assert_eq!(there.over(3.0), merged.over(3.0));
        let mut together = ExactSum::new(19);
        for some in [left, right] {
            let some: Vec<(f64, &[f32])> = some.iter().map(|(weight, vector)| (*weight, vector.as_slice())).collect();
            together.add_all(&some).unwrap();
        }
        prop_assert_eq!(there.exactly(), together.exactly());
    }

    #[test]
    fn sums_are_within_a_grid_step_per_term_of_the_truth(terms in terms()) {
        let found = sum(&terms).exactly();
        for (i, found) in found.iter().enumerate() {
            // In integers of 2^-100: products of f64 and f32 that are no smaller fit.
            let exact: f64 = terms.iter().map(|(w, v)| w * f64::from(v[i])).fold(Kahan::default(), Kahan::plus).total();
            let bound = terms.len() as f64 * 2f64.powi(-44) + exact.abs() * 2f64.powi(-50);
            prop_assert!((found - exact).abs() <= bound, "{found} for {exact}");
        }
    }
}

/// Neumaier's compensated sum, as the reference.
#[derive(Default)]
struct Kahan {
    sum: f64,
    rest: f64,
}

impl Kahan {
    fn plus(self, x: f64) -> Self {
        let sum = self.sum + x;
        let lost = if self.sum.abs() >= x.abs() { (self.sum - sum) + x } else { (x - sum) + self.sum };
        Self { sum, rest: self.rest + lost }
    }

    fn total(self) -> f64 {
        self.sum + self.rest
    }
}

#[test]
fn many_small_terms_are_not_lost() {
    let mut sum = ExactSum::new(1);
    sum.add(1.0, &[1e6]).unwrap();
    for _ in 0..100_000 {
        sum.add(1.0, &[1e-6]).unwrap();
    }
    let expected = 1e6 + 100_000.0 * f64::from(1e-6f32);
    assert!((sum.exactly()[0] - expected).abs() < 1e-9, "{}", sum.exactly()[0]);
}

#[test]
fn what_cannot_be_added_leaves_no_trace() {
    let mut sum = ExactSum::new(3);
    sum.add(2.0, &[1.0, 2.0, 3.0]).unwrap();
    let before = sum.exactly();
    assert_eq!(sum.add(1.0, &[1.0]), Err(SumError::Length { expected: 3, given: 1 }));
    assert!(matches!(sum.add(1.0, &[0.0, f32::NAN, 0.0]), Err(SumError::NotFinite { index: 1, .. })));
    assert!(matches!(sum.add(1.0, &[0.0, 0.0, f32::INFINITY]), Err(SumError::NotFinite { index: 2, .. })));
    assert!(matches!(sum.add(1.0, &[1e20, 0.0, 0.0]), Err(SumError::Range { .. })));
    assert!(matches!(sum.add(f64::NAN, &[1.0, 0.0, 0.0]), Err(SumError::Range { .. })));
    let some: [(f64, &[f32]); 2] = [(1.0, &[1.0, 1.0, 1.0]), (1.0, &[1e20, 0.0, 0.0])];
    assert!(matches!(sum.add_all(&some), Err(SumError::Range { .. })));
    assert_eq!(sum.exactly(), before);
}

#[test]
fn values_that_are_not_finite_are_found_wherever_they_are() {
    for index in 0..50 {
        let mut vector = vec![1.0f32; 50];
        vector[index] = f32::NEG_INFINITY;
        let error = ExactSum::new(50).add(1.0, &vector).unwrap_err();
        assert_eq!(error, SumError::NotFinite { index, value: f32::NEG_INFINITY });
    }
}
