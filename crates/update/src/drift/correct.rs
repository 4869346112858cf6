//! Many tests at once: p-values corrected so that what is called a change is
//! one at a stated rate.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How p-values are corrected for their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Correction {
    /// As they are: each test has its own false alarms.
    None,
    /// Times their number: at most one false alarm in 1 / alpha windows, whatever
    /// depends on what.
    Bonferroni,
    /// As Bonferroni's, in steps from the smallest (Holm, 1979): the same promise,
    /// never fewer findings.
    #[default]
    Holm,
    /// The share of false ones among findings is at most alpha (Benjamini,
    /// Hochberg, 1995), where tests are independent or depend positively.
    BenjaminiHochberg,
}

impl Correction {
    /// The corrected p-values, in the same order: a finding is one at most alpha.
    /// A p-value that is NaN counts as 1.
    pub fn adjust(self, p: &[f64]) -> Vec<f64> {
        let known: Vec<f64> = p.iter().map(|p| if p.is_nan() { 1.0 } else { p.clamp(0.0, 1.0) }).collect();
        let n = known.len();
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| known[a].total_cmp(&known[b]));
        let mut adjusted = vec![1.0; n];
        match self {
            Self::None => return known,
            Self::Bonferroni => return known.iter().map(|p| (p * n as f64).min(1.0)).collect(),
            Self::Holm => {
                let mut largest = 0.0f64;
                for (rank, &i) in order.iter().enumerate() {
                    largest = largest.max(known[i] * (n - rank) as f64).min(1.0);
                    adjusted[i] = largest;
                }
            }
            Self::BenjaminiHochberg => {
                let mut smallest = 1.0f64;
                for (rank, &i) in order.iter().enumerate().rev() {
                    smallest = smallest.min(known[i] * n as f64 / (rank + 1) as f64);
                    adjusted[i] = smallest;
                }
            }
        }
        adjusted
    }
}

impl FromStr for Correction {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Ok(match name {
            "none" => Self::None,
            "bonferroni" => Self::Bonferroni,
            "holm" => Self::Holm,
            "benjamini-hochberg" => Self::BenjaminiHochberg,
            _ => return Err("a correction is none, bonferroni, holm or benjamini-hochberg".to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of `statsmodels.stats.multitest.multipletests` 0.15.
    #[test]
    fn equals_statsmodels() {
        let p = [0.01, 0.04, 0.03, 0.005, 0.5, 0.04];
        for (correction, expected) in [
            (Correction::None, p),
            (Correction::Bonferroni, [0.06, 0.24, 0.18, 0.03, 1.0, 0.24]),
            (Correction::Holm, [0.05, 0.12, 0.12, 0.03, 0.5, 0.12]),
            (Correction::BenjaminiHochberg, [0.03, 0.048, 0.048, 0.03, 0.5, 0.048]),
        ] {
            for (found, expected) in correction.adjust(&p).iter().zip(expected) {
                assert!((found - expected).abs() < 1e-12, "{correction:?}: {found} for {expected}");
            }
            assert_eq!(correction.adjust(&[]), [0.0; 0]);
            assert_eq!(correction.adjust(&[f64::NAN]), [1.0]);
        }
    }
}
