//! Detectors on one stream of numbers, each in constant memory.
//!
//! Not a test of whole windows against a reference, which [`drift`](super)
//! has beside this. A [`Method`] names a detector with its options; a
//! [`Detector`] made of it takes one number at a time and says whether the
//! stream is stable. After a drift it begins anew with the next number.
//!
//! | method | takes | notices |
//! | --- | --- | --- |
//! | `adwin` | numbers | a mean that moves either way |
//! | `hddm-a`, `hddm-w` | numbers in [0, 1] | a mean that grows, or either way |
//! | `page-hinkley` | numbers | a mean that moves either way |
//! | `kswin` | numbers | a distribution that changes |
//! | `ddm`, `eddm` | errors: 0 right, 1 wrong | errors that become more |

mod adwin;
mod ddm;
mod eddm;
mod hddm_a;
mod hddm_w;
mod kswin;
mod mean;
mod page_hinkley;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use adwin::Adwin;
pub use ddm::Ddm;
pub use eddm::Eddm;
pub use hddm_a::HddmA;
pub use hddm_w::HddmW;
pub use kswin::Kswin;
pub use page_hinkley::{Direction, PageHinkley};

/// Magnitude above which a number is refused: squares and sums of it would
/// leave the range of f64.
pub const MAGNITUDE_MAX: f64 = 1e100;

/// What a stream is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nothing has changed that the detector could tell.
    #[default]
    Stable,
    /// Something may have changed; only some methods say so.
    Warning,
    /// The stream has changed.
    Drift,
}

/// A detector's name and options. In a file: `{ method = "adwin", delta = 0.002 }`;
/// as a word: `adwin`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Method {
    /// Adaptive windows.
    Adwin(Adwin),
    /// Hoeffding's bound on averages.
    HddmA(HddmA),
    /// McDiarmid's bound on weighted averages.
    HddmW(HddmW),
    /// The Page-Hinkley test.
    PageHinkley(PageHinkley),
    /// Kolmogorov-Smirnov on a sliding window.
    Kswin(Kswin),
    /// Error rate against its lowest.
    Ddm(Ddm),
    /// Distance between errors against its largest.
    Eddm(Eddm),
}

impl Method {
    /// The methods' names, those used by default first.
    pub const NAMES: [&str; 7] = ["adwin", "hddm-w", "hddm-a", "page-hinkley", "kswin", "ddm", "eddm"];

    /// The name, as in [`Method::NAMES`].
    pub fn name(&self) -> &'static str {
        match self {
            Self::Adwin(_) => "adwin",
            Self::HddmA(_) => "hddm-a",
            Self::HddmW(_) => "hddm-w",
            Self::PageHinkley(_) => "page-hinkley",
            Self::Kswin(_) => "kswin",
            Self::Ddm(_) => "ddm",
            Self::Eddm(_) => "eddm",
        }
    }

    /// What numbers the method takes.
    pub fn domain(&self) -> Domain {
        match self {
            Self::Adwin(_) | Self::PageHinkley(_) | Self::Kswin(_) => Domain::Real,
            Self::HddmA(_) | Self::HddmW(_) => Domain::Unit,
            Self::Ddm(_) | Self::Eddm(_) => Domain::Error,
        }
    }
}

impl FromStr for Method {
    type Err = OptionsError;

    fn from_str(name: &str) -> Result<Self, OptionsError> {
        Ok(match name {
            "adwin" => Self::Adwin(Adwin::default()),
            "hddm-a" => Self::HddmA(HddmA::default()),
            "hddm-w" => Self::HddmW(HddmW::default()),
            "page-hinkley" => Self::PageHinkley(PageHinkley::default()),
            "kswin" => Self::Kswin(Kswin::default()),
            "ddm" => Self::Ddm(Ddm::default()),
            "eddm" => Self::Eddm(Eddm::default()),
            other => return Err(OptionsError::Unknown { name: other.chars().take(64).collect() }),
        })
    }
}

/// Which numbers a method takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    /// Finite numbers of magnitude up to [`MAGNITUDE_MAX`].
    Real,
    /// Numbers from 0 to 1: its bound holds for nothing else.
    Unit,
    /// 0 (right) or 1 (wrong).
    Error,
}

impl Domain {
    fn check(self, x: f64) -> Result<(), Refused> {
        let fits = match self {
            Self::Real => x.abs() <= MAGNITUDE_MAX,
            Self::Unit => (0.0..=1.0).contains(&x),
            Self::Error => x == 0.0 || x == 1.0,
        };
        if fits { Ok(()) } else { Err(Refused { x, domain: self }) }
    }
}

/// A number that the method doesn't take; the detector stays as it was and
/// counts it.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("{x} is not {}; it was left out", domain.words())]
pub struct Refused {
    /// The number.
    pub x: f64,
    /// What would be taken.
    pub domain: Domain,
}

impl Domain {
    fn words(self) -> &'static str {
        match self {
            Self::Real => "a finite number of magnitude up to 1e100",
            Self::Unit => "from 0 to 1",
            Self::Error => "0 (right) or 1 (wrong)",
        }
    }
}

/// Options that no detector can be made of.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// No method has this name.
    #[error("no drift detector is called `{name}`; there are {}", Method::NAMES.join(", "))]
    Unknown {
        /// What was asked for, cut at 64 characters.
        name: String,
    },
    /// One option is out of its range.
    #[error("{method}: `{option}` is {value}; it must be {range}")]
    Range {
        /// The method's name.
        method: &'static str,
        /// The option's name.
        option: &'static str,
        /// What it is.
        value: f64,
        /// What it may be.
        range: &'static str,
    },
}

/// Complains where an option's value isn't within its range.
fn within(
    method: &'static str,
    option: &'static str,
    value: f64,
    range: &'static str,
    fits: bool,
) -> Result<(), OptionsError> {
    // A NaN makes every comparison false, so it never fits.
    if fits { Ok(()) } else { Err(OptionsError::Range { method, option, value, range }) }
}

/// What a method does with numbers that its domain lets through.
trait Detect: fmt::Debug + Send + Sync {
    /// Takes one number and says what the stream is at.
    fn update(&mut self, x: f64) -> State;

    /// Forgets everything that was taken.
    fn reset(&mut self);
}

/// One stream under watch.
///
/// Every update takes constant time on average and no memory beyond what the
/// options fix.
#[derive(Debug)]
pub struct Detector {
    inner: Box<dyn Detect>,
    domain: Domain,
    state: State,
    taken: u64,
    refused: u64,
    drifts: u64,
}

impl Detector {
    /// A detector that has seen nothing. `seed` decides what a method draws
    /// that samples.
    pub fn new(method: &Method, seed: u64) -> Result<Self, OptionsError> {
        let inner: Box<dyn Detect> = match method {
            Method::Adwin(options) => Box::new(adwin::Windows::new(*options)?),
            Method::HddmA(options) => Box::new(hddm_a::Averages::new(*options)?),
            Method::HddmW(options) => Box::new(hddm_w::Averages::new(*options)?),
            Method::PageHinkley(options) => Box::new(page_hinkley::Sums::new(*options)?),
            Method::Kswin(options) => Box::new(kswin::Window::new(*options, seed)?),
            Method::Ddm(options) => Box::new(ddm::Rate::new(*options)?),
            Method::Eddm(options) => Box::new(eddm::Distances::new(*options)?),
        };
        Ok(Self { inner, domain: method.domain(), state: State::Stable, taken: 0, refused: 0, drifts: 0 })
    }

    /// Takes one number and says what the stream is at; a number outside the
    /// method's domain (NaN and infinities always) is refused, counted, and
    /// changes nothing else.
    pub fn update(&mut self, x: f64) -> Result<State, Refused> {
        if let Err(refused) = self.domain.check(x) {
            self.refused += 1;
            return Err(refused);
        }
        if self.state == State::Drift {
            self.inner.reset();
        }
        self.taken += 1;
        self.state = self.inner.update(x);
        self.drifts += u64::from(self.state == State::Drift);
        Ok(self.state)
    }

    /// What the last number left the stream at.
    pub fn state(&self) -> State {
        self.state
    }

    /// Numbers taken.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Numbers refused.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Drifts found.
    pub fn drifts(&self) -> u64 {
        self.drifts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_and_written_alike() {
        for name in Method::NAMES {
            let method: Method = name.parse().unwrap();
            assert_eq!(method.name(), name);
            let document = serde_json::to_value(&method).unwrap();
            assert_eq!(document["method"], name);
            let short: Method = serde_json::from_value(serde_json::json!({ "method": name })).unwrap();
            assert_eq!(short, method);
        }
        let error = "cusum".parse::<Method>().unwrap_err().to_string();
        assert!(error.contains("cusum") && error.contains("page-hinkley"), "{error}");
        let unknown = serde_json::json!({ "method": "adwin", "dleta": 0.1 });
        assert!(serde_json::from_value::<Method>(unknown).is_err());
    }

    #[test]
    fn unusable_numbers_are_counted_and_change_nothing() {
        for name in Method::NAMES {
            let method: Method = name.parse().unwrap();
            let (mut plain, mut mixed) = (Detector::new(&method, 1).unwrap(), Detector::new(&method, 1).unwrap());
            let mut refused = 0;
            for i in 0..3_000u64 {
                let x = f64::from(u8::from(i % 7 == 0 || i > 2_000 && i % 2 == 0));
                for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300] {
                    assert!(mixed.update(bad).is_err());
                    refused += 1;
                }
                assert_eq!(plain.update(x), mixed.update(x), "{name} at {i}");
            }
            assert_eq!((mixed.refused(), mixed.taken(), mixed.drifts()), (refused, 3_000, plain.drifts()), "{name}");
        }
    }

    #[test]
    fn domains_are_kept() {
        let mut hddm = Detector::new(&"hddm-w".parse().unwrap(), 0).unwrap();
        assert!(hddm.update(1.5).is_err() && hddm.update(-0.0).is_ok() && hddm.update(1.0).is_ok());
        let mut ddm = Detector::new(&"ddm".parse().unwrap(), 0).unwrap();
        assert_eq!(ddm.update(0.5).unwrap_err().to_string(), "0.5 is not 0 (right) or 1 (wrong); it was left out");
    }
}
