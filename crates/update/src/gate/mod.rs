//! Never worse: whether a candidate may replace the model that is deployed.
//!
//! Both models answer the same examples. A candidate passes when its gain on
//! the new domain is shown and its loss on every old one is shown to be within
//! a margin; where the examples show neither that nor the contrary, it is held;
//! no data never passes. Start at [`Policy::judge`].

mod paired;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use paired::{Answers, Evidence, Losses};

use paired::Bounds;

use crate::special::in_words;

/// Domains that are kept at most.
pub const DOMAINS_MAX: usize = 64;

/// What a candidate must show.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Chance that a candidate without gain, or with a loss beyond the margin,
    /// passes; 0.05 unless said.
    pub alpha: f64,
    /// Gain on the new domain that must be exceeded, as a share of answers; 0
    /// unless said.
    pub gain_min: f64,
    /// Loss on an old domain that is borne, as a share of answers; 0.01 unless
    /// said.
    pub margin: f64,
    /// Where losses are compared in place of answers: growth of the mean loss on
    /// an old domain that is borne, as a share of it; 0.02 unless said.
    pub loss_margin: f64,
    /// Examples of the new domain below which nothing is decided; 100 unless said.
    pub new_examples_min: u64,
    /// Examples of each old domain below which nothing is decided; 200 unless said.
    pub old_examples_min: u64,
    /// Examples of a domain with which a candidate that hasn't shown it is
    /// refused in place of held; 100,000 unless said.
    pub examples_max: u64,
    /// How often this candidate is judged while examples come in: each time
    /// takes its share of alpha; 1 unless said.
    pub looks: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            alpha: 0.05,
            gain_min: 0.0,
            margin: 0.01,
            loss_margin: 0.02,
            new_examples_min: 100,
            old_examples_min: 200,
            examples_max: 100_000,
            looks: 1,
        }
    }
}

/// A policy or evidence that can't be judged by.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GateError {
    /// One number of the policy is out of its range.
    #[error("`{option}` is {value}; it must be {range}")]
    Policy {
        /// Which.
        option: &'static str,
        /// What it is.
        value: f64,
        /// What it may be.
        range: &'static str,
    },
    /// More old domains than are kept.
    #[error("{0} old domains; at most {DOMAINS_MAX} are judged")]
    Domains(usize),
    /// The two models answered different numbers of examples.
    #[error("the deployed model has {old} answers and the candidate {new}: both must answer the same examples")]
    Unpaired {
        /// Of the deployed model.
        old: usize,
        /// Of the candidate.
        new: usize,
    },
    /// A loss that isn't finite, of the candidate or of the deployed model.
    #[error("example {0} has a loss that isn't a finite number of magnitude up to 1e100")]
    Loss(u64),
}

/// What two models did on one domain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Domain {
    /// Its name.
    pub name: String,
    /// What they did.
    pub evidence: Evidence,
}

/// What is decided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It may be rolled out.
    Pass,
    /// Nothing is shown yet.
    Hold(Vec<Reason>),
    /// It is worse, or nothing was shown with as many examples as there may be.
    Refuse(Vec<Reason>),
}

/// Why a candidate is held or refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Reason {
    /// No old domain to compare on: nothing says what is lost.
    NoOldDomain,
    /// Too few examples of a domain.
    TooFew {
        /// The domain.
        domain: String,
        /// Examples there are.
        examples: u64,
        /// Examples there must be.
        needed: u64,
    },
    /// The gain isn't shown.
    GainNotShown {
        /// The domain.
        domain: String,
        /// Examples there are.
        examples: u64,
        /// Examples that would show it if the difference stays; none if it can't.
        enough: Option<u64>,
    },
    /// The candidate is shown to gain too little, or to lose, on the new domain.
    NoGain {
        /// The domain.
        domain: String,
        /// Examples there are.
        examples: u64,
    },
    /// That the loss is within the margin isn't shown.
    LossNotBounded {
        /// The domain.
        domain: String,
        /// Examples there are.
        examples: u64,
        /// Examples that would show it if the difference stays; none if it can't.
        enough: Option<u64>,
    },
    /// The loss is shown to be beyond the margin.
    Worse {
        /// The domain.
        domain: String,
        /// Examples there are.
        examples: u64,
    },
}

/// The numbers of one domain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// The domain.
    pub domain: String,
    /// Examples that both models answered.
    pub examples: u64,
    /// Whether shares of right answers or mean losses are compared.
    pub measure: Measure,
    /// Of the deployed model.
    pub old: f64,
    /// Of the candidate.
    pub new: f64,
    /// How much better the candidate is; below 0 where it is worse.
    pub better: f64,
    /// Lower bound of that, missed with chance alpha.
    pub low: f64,
    /// Upper bound of that, missed with chance alpha.
    pub high: f64,
    /// What it must exceed.
    pub required: f64,
    /// Chance of this difference, or a larger one, where the true one is just
    /// what is required.
    pub p: f64,
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Measure {
    /// Share of right answers.
    Accuracy,
    /// Mean loss.
    Loss,
}

/// A verdict with everything that led to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// What is decided.
    pub verdict: Verdict,
    /// The new domain.
    pub gain: Finding,
    /// The old domains.
    pub losses: Vec<Finding>,
    /// What was asked.
    pub policy: Policy,
}

impl Policy {
    /// Refuses a policy that promises nothing.
    pub fn check(&self) -> Result<(), GateError> {
        let within = |option, value: f64, range, fits: bool| {
            if fits { Ok(()) } else { Err(GateError::Policy { option, value, range }) }
        };
        within("alpha", self.alpha, "above 0 and below 0.5", self.alpha > 0.0 && self.alpha < 0.5)?;
        within("gain_min", self.gain_min, "from 0 to 1", (0.0..=1.0).contains(&self.gain_min))?;
        within("margin", self.margin, "from 0 to 1", (0.0..=1.0).contains(&self.margin))?;
        within("loss_margin", self.loss_margin, "from 0 to 1", (0.0..=1.0).contains(&self.loss_margin))?;
        within("looks", self.looks.into(), "from 1 to 1,000", (1..=1_000).contains(&self.looks))?;
        let least = self.new_examples_min.min(self.old_examples_min);
        within("new_examples_min or old_examples_min", least as f64, "at least 2", least >= 2)
    }

    /// Judges a candidate by the new domain, on which it must gain, and the old
    /// ones, on each of which it must not lose more than the margin.
    ///
    /// Each domain is tested at alpha: a candidate passes only where all tests
    /// succeed, so a bad one passes with chance alpha at most, however many
    /// there are (Berger, 1982).
    pub fn judge(&self, new: &Domain, old: &[Domain]) -> Result<Decision, GateError> {
        self.check()?;
        if old.len() > DOMAINS_MAX {
            return Err(GateError::Domains(old.len()));
        }
        let (mut hold, mut refuse) = (Vec::new(), Vec::new());
        let gain = self.finding(new, |evidence| self.gain_required(evidence));
        let examples = gain.examples;
        let domain = || new.name.clone();
        if examples < self.new_examples_min {
            hold.push(Reason::TooFew { domain: domain(), examples, needed: self.new_examples_min });
        } else if !shown(&gain) {
            if gain.high <= gain.required {
                refuse.push(Reason::NoGain { domain: domain(), examples });
            } else {
                let reason = Reason::GainNotShown { domain: domain(), examples, enough: enough(&gain) };
                if examples < self.examples_max { hold.push(reason) } else { refuse.push(reason) }
            }
        }
        if old.is_empty() {
            hold.push(Reason::NoOldDomain);
        }
        let mut losses = Vec::with_capacity(old.len());
        for each in old {
            let loss = self.finding(each, |evidence| self.loss_required(evidence));
            let (domain, examples) = (each.name.clone(), loss.examples);
            if examples < self.old_examples_min {
                hold.push(Reason::TooFew { domain, examples, needed: self.old_examples_min });
            } else if !shown(&loss) {
                if loss.high <= loss.required {
                    refuse.push(Reason::Worse { domain, examples });
                } else {
                    let reason = Reason::LossNotBounded { domain, examples, enough: enough(&loss) };
                    if examples < self.examples_max { hold.push(reason) } else { refuse.push(reason) }
                }
            }
            losses.push(loss);
        }
        let verdict = match (refuse.is_empty(), hold.is_empty()) {
            (false, _) => Verdict::Refuse(refuse),
            (true, false) => Verdict::Hold(hold),
            (true, true) => Verdict::Pass,
        };
        Ok(Decision { verdict, gain, losses, policy: *self })
    }

    fn gain_required(&self, evidence: &Evidence) -> f64 {
        match evidence {
            Evidence::Answers(_) => self.gain_min,
            Evidence::Losses(losses) => self.gain_min * losses.of_old(),
        }
    }

    fn loss_required(&self, evidence: &Evidence) -> f64 {
        match evidence {
            Evidence::Answers(_) => -self.margin,
            Evidence::Losses(losses) => -self.loss_margin * losses.of_old().abs(),
        }
    }

    fn finding(&self, domain: &Domain, required: impl Fn(&Evidence) -> f64) -> Finding {
        let evidence = &domain.evidence;
        let required = required(evidence);
        let alpha = self.alpha / f64::from(self.looks);
        let (measure, examples, old, new, better) = match evidence {
            Evidence::Answers(answers) => (
                Measure::Accuracy,
                answers.n(),
                answers.of_old(),
                answers.of_new(),
                answers.of_new() - answers.of_old(),
            ),
            Evidence::Losses(losses) => {
                (Measure::Loss, losses.n(), losses.of_old(), losses.of_new(), losses.of_old() - losses.of_new())
            }
        };
        let Bounds { low, high, p } = evidence.bounds(required, alpha);
        Finding { domain: domain.name.clone(), examples, measure, old, new, better, low, high, required, p }
    }
}

/// Whether a difference is shown to exceed what is required; a bound alone must
/// say so as well as the test.
fn shown(finding: &Finding) -> bool {
    finding.low > finding.required
}

/// Examples with which the lower bound would reach what is required if the
/// difference and its spread stay: the distance to the bound shrinks with the
/// root of their number.
fn enough(finding: &Finding) -> Option<u64> {
    let (reach, room) = (finding.better - finding.low, finding.better - finding.required);
    if !(room > 0.0 && reach > 0.0) {
        return None;
    }
    let times = (reach / room).powi(2);
    let n = (finding.examples as f64 * times).ceil() + 1.0;
    (n < 1e12).then_some(n as u64)
}

impl Decision {
    /// Whether the candidate may be rolled out.
    pub fn passed(&self) -> bool {
        self.verdict == Verdict::Pass
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, examples, old, new, better, low, high, required, p, .. } = self;
        match self.measure {
            Measure::Accuracy => write!(
                f,
                "{domain}: {:.2}% before, {:.2}% now on {examples} examples, {:+.2} points \
                 (between {:+.2} and {:+.2}; above {:+.2} is required, p = {})",
                100.0 * old,
                100.0 * new,
                100.0 * better,
                100.0 * low,
                100.0 * high,
                100.0 * required,
                in_words(*p)
            ),
            Measure::Loss => write!(
                f,
                "{domain}: loss {old:.5} before, {new:.5} now on {examples} examples, better by {better:+.5} \
                 (between {low:+.5} and {high:+.5}; above {required:+.5} is required, p = {})",
                in_words(*p)
            ),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = |f: &mut fmt::Formatter<'_>, enough: &Option<u64>| match enough {
            Some(n) => write!(f, "; about {n} would show it, if the difference stays"),
            None => write!(f, "; with this difference no number would show it"),
        };
        match self {
            Self::NoOldDomain => write!(f, "there is no old domain to compare on, so nothing says what is lost"),
            Self::TooFew { domain, examples, needed } => {
                write!(f, "{domain} has {examples} examples of the {needed} that are needed")
            }
            Self::GainNotShown { domain, examples, enough } => {
                write!(f, "{examples} examples of {domain} don't show a gain")?;
                more(f, enough)
            }
            Self::NoGain { domain, examples } => {
                write!(f, "{examples} examples of {domain} show that the gain is too small, or a loss")
            }
            Self::LossNotBounded { domain, examples, enough } => {
                write!(f, "{examples} examples of {domain} don't show that the loss is within the margin")?;
                more(f, enough)
            }
            Self::Worse { domain, examples } => {
                write!(f, "{examples} examples of {domain} show a loss beyond the margin")
            }
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, reasons): (_, &[Reason]) = match &self.verdict {
            Verdict::Pass => ("passes", &[]),
            Verdict::Hold(reasons) => ("is held", reasons),
            Verdict::Refuse(reasons) => ("is refused", reasons),
        };
        writeln!(f, "The candidate {word}.")?;
        for reason in reasons {
            writeln!(f, "  {reason}.")?;
        }
        writeln!(f, "  new, {}", self.gain)?;
        for loss in &self.losses {
            writeln!(f, "  old, {loss}")?;
        }
        Ok(())
    }
}
