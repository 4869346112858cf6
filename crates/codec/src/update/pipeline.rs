//! Pipelines as they are written: `topk:0.01`, `int8`, `zstd`.

use super::precision::Precision;
use super::support::Support;

/// Every stage, in the order they run.
pub const STAGES: &str = "topk:F, random:F, powersgd:R (what survives), \
     fp16, int8, int4, qsgd:B, sign (how precisely), zstd (without loss)";

/// Largest rank of PowerSGD's factors: orthogonalising them takes its square,
/// and the paper's are 1 to 4.
pub const RANK_MAX: u8 = 64;

/// How a vector is written: what of it survives, in which precision, packed
/// how. By default all of it, in f32, as it is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Pipeline {
    pub(super) support: Support,
    pub(super) precision: Precision,
    pub(super) lossless: bool,
}

/// Why stages make no pipeline.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// No stage has this name.
    #[error("there is no stage `{stage}`; there are {STAGES}")]
    Unknown {
        /// As it was given.
        stage: String,
    },
    /// What follows the colon is wrong or missing.
    #[error("stage `{stage}` takes {takes}")]
    Option {
        /// As it was given.
        stage: String,
        /// What it takes instead.
        takes: String,
    },
    /// Two stages do the same.
    #[error("stages `{first}` and `{second}` both choose {what}; keep one of them")]
    Twice {
        /// The first of them.
        first: String,
        /// The other.
        second: String,
        /// What they choose.
        what: &'static str,
    },
    /// A stage behind one that it must precede.
    #[error("stage `{stage}` comes before `{behind}`, not after; the order is {STAGES}")]
    Order {
        /// The stage too late.
        stage: String,
        /// The stage it stands behind.
        behind: String,
    },
}

impl Pipeline {
    /// The pipeline of these stages, such as `["topk:0.01", "int8", "zstd"]`:
    /// at most one that chooses what survives, one that chooses the precision,
    /// and `zstd`, in this order.
    ///
    /// # Errors
    /// When a stage is unknown, its option out of range, or its place wrong.
    pub fn parse(stages: &[impl AsRef<str>]) -> Result<Self, PipelineError> {
        let mut pipeline = Self::default();
        let mut last: Option<(usize, &str)> = None;
        for given in stages {
            let given = given.as_ref().trim();
            let stage = Stage::parse(given)?;
            let place = stage.place();
            match last {
                Some((before, first)) if before == place => {
                    let what = ["what survives", "the precision", "how to pack"][place];
                    return Err(PipelineError::Twice { first: first.to_owned(), second: given.to_owned(), what });
                }
                Some((before, behind)) if before > place => {
                    return Err(PipelineError::Order { stage: given.to_owned(), behind: behind.to_owned() });
                }
                _ => last = Some((place, given)),
            }
            match stage {
                Stage::Support(support) => pipeline.support = support,
                Stage::Precision(precision) => pipeline.precision = precision,
                Stage::Zstd => pipeline.lossless = true,
            }
        }
        Ok(pipeline)
    }

    /// The stages, as [`Pipeline::parse`] takes them.
    #[must_use]
    pub fn stages(&self) -> Vec<String> {
        let stages = [self.support.stage(), self.precision.stage(), self.lossless.then(|| "zstd".to_owned())];
        stages.into_iter().flatten().collect()
    }
}

impl Pipeline {
    /// Whether every element travels by itself.
    #[must_use]
    pub fn sends_all(&self) -> bool {
        self.support == Support::All
    }

    /// The fraction of elements that is sent, where the others are not.
    #[must_use]
    pub fn fraction(&self) -> Option<f64> {
        match self.support {
            Support::TopK(fraction) | Support::Random(fraction) => Some(fraction),
            Support::All | Support::PowerSgd(_) => None,
        }
    }

    /// The same with another fraction, held within what one may be; the same
    /// where all elements are sent.
    #[must_use]
    pub fn with_fraction(&self, fraction: f64) -> Self {
        let fraction = fraction.clamp(f64::MIN_POSITIVE, 1.0);
        let support = match self.support {
            Support::TopK(_) => Support::TopK(fraction),
            Support::Random(_) => Support::Random(fraction),
            other => other,
        };
        Self { support, ..self.clone() }
    }

    /// Whether what arrives is right on average, however far off it is: so that
    /// nothing needs to be remembered of what was lost.
    #[must_use]
    pub fn is_unbiased(&self) -> bool {
        self.sends_all() && matches!(self.precision, Precision::F32 | Precision::Qsgd(_))
    }

    /// Whether what is lost is never longer than the vector, so that what is
    /// lost time and again doesn't grow.
    ///
    /// Rounding at random is off by `1 / (4 L^2)` of the largest square for
    /// each value of a block, for `L` levels to a side: less than the whole
    /// block's for sure with six bits or more.
    #[must_use]
    pub fn is_contraction(&self) -> bool {
        !matches!(self.precision, Precision::Qsgd(bits) if bits < 6)
    }

    /// For vectors that no memory makes up for: every element by itself, in
    /// this precision or in `int8`, if this one is coarser or rounds at random.
    #[must_use]
    pub fn rounded(&self) -> Self {
        let precision = match self.precision {
            fine @ (Precision::F32 | Precision::Fp16) => fine,
            _ => Precision::Int8,
        };
        Self { precision, lossless: self.lossless, ..Self::default() }
    }

    /// The same packing, with nothing lost before it.
    #[must_use]
    pub fn without_loss(&self) -> Self {
        Self { lossless: self.lossless, ..Self::default() }
    }
}

enum Stage {
    Support(Support),
    Precision(Precision),
    Zstd,
}

impl Stage {
    fn parse(given: &str) -> Result<Self, PipelineError> {
        let (name, option) = match given.split_once(':') {
            Some((name, option)) => (name, Some(option)),
            None => (given, None),
        };
        let refused = |takes: &str| PipelineError::Option { stage: given.to_owned(), takes: takes.to_owned() };
        let fraction = || {
            let read = option.and_then(|o| o.parse().ok()).filter(|f| *f > 0.0 && *f <= 1.0);
            read.ok_or_else(|| refused(&format!("a fraction above 0 and up to 1, like `{name}:0.01`")))
        };
        let number = |what: &str, range: std::ops::RangeInclusive<u8>| {
            let read = option.and_then(|o| o.parse().ok()).filter(|n| range.contains(n));
            let (low, high) = range.into_inner();
            read.ok_or_else(|| refused(&format!("{what} from {low} to {high}, like `{name}:4`")))
        };
        let plain = |stage: Self| match option {
            None => Ok(stage),
            Some(_) => Err(refused(&format!("no option; write `{name}`"))),
        };
        match name {
            "topk" => Ok(Self::Support(Support::TopK(fraction()?))),
            "random" => Ok(Self::Support(Support::Random(fraction()?))),
            "powersgd" => Ok(Self::Support(Support::PowerSgd(number("a rank", 1..=RANK_MAX)?))),
            "fp16" => plain(Self::Precision(Precision::Fp16)),
            "int8" => plain(Self::Precision(Precision::Int8)),
            "int4" => plain(Self::Precision(Precision::Int4)),
            "qsgd" => Ok(Self::Precision(Precision::Qsgd(number("bits", 2..=8)?))),
            "sign" => plain(Self::Precision(Precision::Sign)),
            "zstd" => plain(Self::Zstd),
            _ => Err(PipelineError::Unknown { stage: given.to_owned() }),
        }
    }

    /// Its place in the order.
    fn place(&self) -> usize {
        match self {
            Self::Support(_) => 0,
            Self::Precision(_) => 1,
            Self::Zstd => 2,
        }
    }
}
