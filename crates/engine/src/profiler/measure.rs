//! Rounds of timing: sessions run in turns until their times are known.

use std::time::{Duration, Instant};

use tierline_graph::Tensor;

use super::chain::{Values, pick};
use crate::{EngineError, Session, Stop};

/// A session with what it is fed.
pub(super) struct Runner<'v> {
    session: &'v mut dyn Session,
    feed: Vec<(&'v str, &'v Tensor)>,
    outputs: Vec<Tensor>,
    stop: &'v Stop,
}

impl<'v> Runner<'v> {
    /// `session`, fed what it takes of `values`.
    pub(super) fn new(session: &'v mut dyn Session, values: &'v Values, stop: &'v Stop) -> Self {
        let feed = pick(session, values);
        Self { session, feed, outputs: Vec::new(), stop }
    }
}

/// One run, timed.
pub(super) trait Step {
    /// Nanoseconds it took.
    fn time(&mut self) -> Result<u64, EngineError>;
}

impl Step for Runner<'_> {
    fn time(&mut self) -> Result<u64, EngineError> {
        let start = Instant::now();
        self.session.run_until(&self.feed, &mut self.outputs, self.stop)?;
        Ok(start.elapsed().as_nanos() as u64)
    }
}

/// How many rounds to run.
pub(super) struct Rounds {
    pub(super) warm_up: usize,
    pub(super) min: usize,
    pub(super) max: usize,
    pub(super) budget: Duration,
    /// Rounds end after this time, though they be fewer than the least.
    pub(super) limit: Duration,
    /// Standard error over a time at which it is known.
    pub(super) precision: f64,
}

/// Times of each runner over the rounds, nanoseconds. Every round runs every
/// runner once, in order; `tell` hears how much is done after each.
pub(super) fn rounds(
    runners: &mut [&mut dyn Step],
    rounds: &Rounds,
    tell: &dyn Fn(f64),
) -> Result<Vec<Vec<u64>>, EngineError> {
    let started = Instant::now();
    let mut times = vec![Vec::new(); runners.len()];
    for _ in 0..rounds.warm_up {
        if started.elapsed() >= rounds.limit {
            break;
        }
        for runner in runners.iter_mut() {
            runner.time()?;
        }
    }
    for round in 1..=rounds.max.max(1) {
        for (runner, times) in runners.iter_mut().zip(&mut times) {
            times.push(runner.time()?);
        }
        let spent = started.elapsed().as_secs_f64() / rounds.budget.as_secs_f64().max(1e-9);
        tell(spent.min(round as f64 / rounds.min.max(1) as f64));
        let (enough, elapsed) = (round >= rounds.min, started.elapsed());
        // A model that takes seconds is known well enough after a few rounds.
        if enough && (elapsed >= rounds.budget || known(&times, rounds.precision)) || elapsed >= rounds.limit {
            break;
        }
    }
    Ok(times)
}

/// Whether every time is known to `precision` of itself, or of a tenth of the
/// largest for those that are small beside it.
fn known(times: &[Vec<u64>], precision: f64) -> bool {
    let largest = times.iter().map(|t| typical(t)).max().unwrap_or(0);
    times.iter().all(|t| error(t) <= precision * (typical(t) as f64).max(largest as f64 / 10.))
}

/// The standard error of [`typical`], nanoseconds.
pub(super) fn error(times: &[u64]) -> f64 {
    // 1.4826 makes a standard deviation of the median absolute one, 1.36
    // the standard error of a quartile of it (for normal noise).
    1.36 * 1.4826 * deviation(times) as f64 / (times.len().max(1) as f64).sqrt()
}

/// The lower quartile; 0 of nothing. Other processes only ever add time, so it
/// moves less than the median on a busy device, and is hardly different on an
/// idle one.
pub(super) fn typical(times: &[u64]) -> u64 {
    quantile(times, 1, 4)
}

/// The median absolute deviation from the median.
pub(super) fn deviation(times: &[u64]) -> u64 {
    let median = quantile(times, 1, 2);
    quantile(&times.iter().map(|t| t.abs_diff(median)).collect::<Vec<_>>(), 1, 2)
}

fn quantile(times: &[u64], numerator: usize, denominator: usize) -> u64 {
    if times.is_empty() {
        return 0;
    }
    let mut sorted = times.to_vec();
    let at = (times.len() - 1) * numerator / denominator;
    *sorted.select_nth_unstable(at).1
}
