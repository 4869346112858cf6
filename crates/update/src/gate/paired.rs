//! Two models on the same examples: what is counted, and bounds of their
//! difference.

use serde::{Deserialize, Serialize};

use super::GateError;
use crate::special::{
    binomial_at_least, bisect, normal_above, normal_quantile_above, student_above, student_quantile_above,
};

/// Answers or losses of the same examples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Evidence {
    /// Answers that are right or wrong.
    Answers(Answers),
    /// Losses, lower is better.
    Losses(Losses),
}

/// How often each model was right, together and alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answers {
    /// Both were right.
    pub both: u32,
    /// Only the candidate was.
    pub only_new: u32,
    /// Only the deployed model was.
    pub only_old: u32,
    /// Neither was.
    pub neither: u32,
}

impl Answers {
    /// Counts answers, example by example.
    pub fn of(old_right: &[bool], new_right: &[bool]) -> Result<Self, GateError> {
        if old_right.len() != new_right.len() || u32::try_from(old_right.len()).is_err() {
            return Err(GateError::Unpaired { old: old_right.len(), new: new_right.len() });
        }
        let mut counts = Self::default();
        for (old, new) in old_right.iter().zip(new_right) {
            counts.push(*old, *new);
        }
        Ok(counts)
    }

    /// Counts one more example; counters stay at their largest.
    pub fn push(&mut self, old_right: bool, new_right: bool) {
        let count = match (old_right, new_right) {
            (true, true) => &mut self.both,
            (false, true) => &mut self.only_new,
            (true, false) => &mut self.only_old,
            (false, false) => &mut self.neither,
        };
        *count = count.saturating_add(1);
    }

    /// Examples.
    pub fn n(&self) -> u64 {
        [self.both, self.only_new, self.only_old, self.neither].into_iter().map(u64::from).sum()
    }

    /// Share that the deployed model answered rightly; 0 of none.
    pub fn of_old(&self) -> f64 {
        (f64::from(self.both) + f64::from(self.only_old)) / self.n().max(1) as f64
    }

    /// Share that the candidate answered rightly; 0 of none.
    pub fn of_new(&self) -> f64 {
        (f64::from(self.both) + f64::from(self.only_new)) / self.n().max(1) as f64
    }

    /// Chance of so many examples that only the candidate answers rightly, or
    /// more, where both are right equally often: McNemar's test, exact and
    /// one-sided.
    pub fn mcnemar(&self) -> f64 {
        binomial_at_least(u64::from(self.only_new) + u64::from(self.only_old), self.only_new.into(), 0.5)
    }

    /// How many deviations the difference of shares lies above `difference`, by
    /// the score of Tango, "Equivalence test and confidence interval for the
    /// difference in proportions for the paired-sample design", 1998.
    pub fn score(&self, difference: f64) -> f64 {
        let n = self.n() as f64;
        let (gained, lost) = (f64::from(self.only_new), f64::from(self.only_old));
        // Likeliest share of examples that only the old answers, given the difference.
        let b = -gained - lost + (2.0 * n - gained + lost) * difference;
        let c = -lost * difference * (1.0 - difference);
        let share = ((b * b - 8.0 * n * c).max(0.0).sqrt() - b) / (4.0 * n);
        let above = gained - lost - n * difference;
        let variance = n * (2.0 * share + difference * (1.0 - difference));
        // Where the difference can't be otherwise, any distance from it is far.
        if variance > 1e-9 {
            above / variance.sqrt()
        } else if above.abs() < 1e-9 {
            0.0
        } else {
            above.signum() * f64::INFINITY
        }
    }
}

/// Moments of paired losses.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "Moments", into = "Moments")]
pub struct Losses {
    moments: Moments,
}

#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Moments {
    n: u64,
    /// Mean loss of the deployed model.
    old: f64,
    /// Mean of the old loss less the new one.
    better: f64,
    /// Sum of squared deviations from that.
    squares: f64,
}

impl Losses {
    /// Takes one example's losses.
    pub fn push(&mut self, old: f64, new: f64) -> Result<(), GateError> {
        let fits = |x: f64| x.abs() <= 1e100;
        if !fits(old) || !fits(new) {
            return Err(GateError::Loss(self.moments.n));
        }
        let Moments { n, old: mean, better, squares } = &mut self.moments;
        *n += 1;
        let count = *n as f64;
        *mean += (old - *mean) / count;
        let apart = old - new - *better;
        *better += apart / count;
        *squares += apart * (old - new - *better);
        Ok(())
    }

    /// Counts losses, example by example.
    pub fn of(old: &[f64], new: &[f64]) -> Result<Self, GateError> {
        if old.len() != new.len() {
            return Err(GateError::Unpaired { old: old.len(), new: new.len() });
        }
        let mut losses = Self::default();
        for (old, new) in old.iter().zip(new) {
            losses.push(*old, *new)?;
        }
        Ok(losses)
    }

    /// Examples.
    pub fn n(&self) -> u64 {
        self.moments.n
    }

    /// Mean loss of the deployed model.
    pub fn of_old(&self) -> f64 {
        self.moments.old
    }

    /// Mean loss of the candidate.
    pub fn of_new(&self) -> f64 {
        self.moments.old - self.moments.better
    }

    /// Standard error of the mean difference; none of fewer than 2 examples.
    fn error(&self) -> Option<f64> {
        let n = self.moments.n as f64;
        (self.moments.n >= 2).then(|| (self.moments.squares / (n - 1.0) / n).sqrt())
    }
}

impl TryFrom<Moments> for Losses {
    type Error = GateError;

    fn try_from(moments: Moments) -> Result<Self, GateError> {
        let fits = [moments.old, moments.better].iter().all(|x| x.abs() <= 1e100) && moments.squares >= 0.0;
        if fits { Ok(Self { moments }) } else { Err(GateError::Loss(moments.n)) }
    }
}

impl From<Losses> for Moments {
    fn from(losses: Losses) -> Self {
        losses.moments
    }
}

/// Bounds of how much better the candidate is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub low: f64,
    pub high: f64,
    pub p: f64,
}

impl Evidence {
    /// One-sided bounds, each missed with chance `alpha`, and the chance of this
    /// difference or a larger one where the true one is `required`.
    pub(super) fn bounds(&self, required: f64, alpha: f64) -> Bounds {
        match self {
            Self::Answers(answers) => of_answers(answers, required, alpha),
            Self::Losses(losses) => of_losses(losses, required, alpha),
        }
    }
}

fn of_answers(answers: &Answers, required: f64, alpha: f64) -> Bounds {
    if answers.n() == 0 {
        return Bounds { low: -1.0, high: 1.0, p: 1.0 };
    }
    let z = normal_quantile_above(alpha);
    let low = bisect(-1.0, 1.0, |difference| answers.score(difference) > z);
    let high = bisect(-1.0, 1.0, |difference| answers.score(difference) > -z);
    if required != 0.0 {
        return Bounds { low, high, p: normal_above(answers.score(required)) };
    }
    // Against no difference there is an exact test; a bound doesn't contradict it.
    let p = answers.mcnemar();
    let low = if p <= alpha { low.max(f64::MIN_POSITIVE) } else { low.min(0.0) };
    Bounds { low, high, p }
}

fn of_losses(losses: &Losses, required: f64, alpha: f64) -> Bounds {
    let better = losses.moments.better;
    let Some(error) = losses.error() else {
        return Bounds { low: f64::MIN, high: f64::MAX, p: 1.0 };
    };
    if error == 0.0 {
        return Bounds { low: better, high: better, p: if better > required { 0.0 } else { 1.0 } };
    }
    let freedom = losses.n() as f64 - 1.0;
    let reach = student_quantile_above(freedom, alpha) * error;
    Bounds { low: better - reach, high: better + reach, p: student_above(freedom, (better - required) / error) }
}
