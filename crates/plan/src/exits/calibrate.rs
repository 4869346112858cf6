//! Thresholds of exits from held-out examples, and what each choice is worth.
//!
//! Pure: what every example's exits said, and what reaching them costs, go in;
//! thresholds and their curve come out. Thresholds found on some examples do
//! better on those than on others: [`measure`] them on examples that had no
//! part. Start at [`calibrate`].

use tierline_graph::exits::Criterion;

/// Combinations times examples that a search looks at; thresholds are taken
/// from a grid of quantiles as fine as this allows.
const WORK_MAX: usize = 50_000_000;

/// Thresholds tried at an exit, at most.
const GRID_MAX: usize = 256;

/// Rounds of refinement behind the grid.
const ROUNDS_MAX: usize = 8;

/// What held-out examples said at each exit.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples {
    /// For each exit, how sure each example was; what is no number is never sure.
    pub sureness: Vec<Vec<f64>>,
    /// For each exit, the share of each example's places with the right class
    /// (0 or 1 for a classifier).
    pub right: Vec<Vec<f64>>,
    /// The same at the model's end.
    pub end: Vec<f64>,
}

/// What it costs to get an answer: multiply-adds, nanoseconds, bytes, as long
/// as all are the same.
#[derive(Debug, Clone, PartialEq)]
pub struct Costs {
    /// Of the model itself until each exit.
    pub before: Vec<f64>,
    /// Of each exit's head, spent by everyone who comes by and isn't spent
    /// where the exit has no threshold.
    pub heads: Vec<f64>,
    /// Of the model until its end.
    pub end: f64,
}

/// What a choice of thresholds must keep to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// Accuracy at most this share below the end's; costs as little as can be.
    Loss(f64),
    /// The average cost at most this; as accurate as can be.
    Cost(f64),
}

/// Thresholds, and what they are worth on some examples.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// One for each exit; an exit that isn't used has none.
    pub thresholds: Vec<Option<f64>>,
    /// Share of right answers.
    pub accuracy: f64,
    /// Share of the examples that leave at each exit.
    pub leave: Vec<f64>,
    /// Share of right answers among those that leave at each exit, and at the
    /// end; none where nobody does.
    pub right: Vec<Option<f64>>,
    /// Cost of the average example.
    pub cost: f64,
}

/// Why nothing can be calibrated.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrateError {
    /// No examples.
    #[error("there are no examples to calibrate exits on")]
    Empty,
    /// Numbers that don't belong together.
    #[error("{what}: {found} where there are {expected}")]
    Length {
        /// Of what.
        what: &'static str,
        /// How many.
        found: usize,
        /// How many there should be.
        expected: usize,
    },
    /// A number that none is.
    #[error("{what} is {value}; it must be a number of 0 or more")]
    Value {
        /// What.
        what: &'static str,
        /// The number.
        value: f64,
    },
}

/// The best choices of thresholds on these examples: none is both dearer and
/// less accurate than another. From little cost to much; the last uses no
/// exit unless exits answer better than the end.
///
/// Thresholds are those of each exit by itself, found together on grids of
/// quantiles and then refined one by one; with few examples every choice there
/// is was looked at. For [`Criterion::Patience`] all exits share one.
///
/// # Errors
/// [`CalibrateError`].
pub fn calibrate(samples: &Samples, costs: &Costs, criterion: Criterion) -> Result<Vec<Choice>, CalibrateError> {
    check(samples, costs)?;
    let exits = samples.sureness.len();
    let candidates = if criterion == Criterion::Patience {
        (1..=exits + 1).map(|patience| vec![Some(patience as f64); exits]).chain([vec![None; exits]]).collect()
    } else {
        let mut search = Search::new(samples, costs);
        search.grid();
        search.refine();
        search.best.into_iter().flatten().map(|found| found.thresholds).collect::<Vec<_>>()
    };
    let mut choices: Vec<Choice> = candidates.iter().map(|t| measured(samples, costs, t)).collect();
    choices.sort_by(|a, b| a.cost.total_cmp(&b.cost).then(b.accuracy.total_cmp(&a.accuracy)));
    let mut most = f64::NEG_INFINITY;
    choices.retain(|choice| {
        let better = choice.accuracy > most;
        most = most.max(choice.accuracy);
        better
    });
    Ok(choices)
}

/// The best of a curve's choices that keeps to a target; `None` when none does.
/// `end` is the accuracy of the model's end alone.
#[must_use]
pub fn choose(curve: &[Choice], end: f64, target: Target) -> Option<&Choice> {
    // Sums of shares lose digits.
    const SLACK: f64 = 1e-9;
    match target {
        Target::Loss(loss) => curve.iter().find(|choice| choice.accuracy + loss + SLACK >= end),
        Target::Cost(most) => curve.iter().rev().find(|choice| choice.cost <= most * (1.0 + SLACK)),
    }
}

/// At most `max` choices evenly along a curve, its ends and the chosen one
/// among them: by that one nodes know how many leave.
#[must_use]
pub fn kept<'c>(curve: &'c [Choice], chosen: &'c Choice, max: usize) -> Vec<&'c Choice> {
    let evenly = |count: usize| (0..count).map(move |i| &curve[i * (curve.len() - 1) / (count - 1).max(1)]);
    let has = |choices: &[&Choice]| choices.iter().any(|choice| choice.thresholds == chosen.thresholds);
    let kept: Vec<&Choice> = evenly(curve.len().min(max)).collect();
    if has(&kept) {
        return kept;
    }
    let mut kept: Vec<&Choice> = evenly(curve.len().min(max.saturating_sub(1))).collect();
    kept.insert(kept.partition_point(|choice| choice.cost < chosen.cost), chosen);
    kept
}

/// What thresholds are worth on some examples.
///
/// # Errors
/// [`CalibrateError`].
pub fn measure(samples: &Samples, costs: &Costs, thresholds: &[Option<f64>]) -> Result<Choice, CalibrateError> {
    check(samples, costs)?;
    equal("thresholds", thresholds.len(), samples.sureness.len())?;
    Ok(measured(samples, costs, thresholds))
}

/// Share of right answers at the end alone.
#[must_use]
pub fn accuracy(right: &[f64]) -> f64 {
    right.iter().sum::<f64>() / right.len().max(1) as f64
}

fn equal(what: &'static str, found: usize, expected: usize) -> Result<(), CalibrateError> {
    if found == expected { Ok(()) } else { Err(CalibrateError::Length { what, found, expected }) }
}

fn check(samples: &Samples, costs: &Costs) -> Result<(), CalibrateError> {
    let (exits, examples) = (samples.sureness.len(), samples.end.len());
    if examples == 0 {
        return Err(CalibrateError::Empty);
    }
    equal("exits with answers", samples.right.len(), exits)?;
    equal("costs until exits", costs.before.len(), exits)?;
    equal("costs of heads", costs.heads.len(), exits)?;
    for list in &samples.sureness {
        equal("examples with a sureness", list.len(), examples)?;
    }
    for list in &samples.right {
        equal("examples with an answer", list.len(), examples)?;
    }
    for &value in costs.before.iter().chain(&costs.heads).chain([&costs.end]) {
        if !(value.is_finite() && value >= 0.0) {
            return Err(CalibrateError::Value { what: "a cost", value });
        }
    }
    let shares = samples.right.iter().flatten().chain(&samples.end);
    if let Some(&value) = shares.into_iter().find(|share| !(0.0..=1.0).contains(*share)) {
        return Err(CalibrateError::Value { what: "a share of right places", value });
    }
    Ok(())
}

fn measured(samples: &Samples, costs: &Costs, thresholds: &[Option<f64>]) -> Choice {
    let (exits, examples) = (thresholds.len(), samples.end.len());
    let mut count = vec![0usize; exits + 1];
    let mut right = vec![0f64; exits + 1];
    for example in 0..examples {
        let leaves = |&exit: &usize| thresholds[exit].is_some_and(|t| is_sure(samples.sureness[exit][example], t));
        let exit = (0..exits).find(leaves).unwrap_or(exits);
        count[exit] += 1;
        right[exit] += samples.right.get(exit).map_or(samples.end[example], |list| list[example]);
    }
    let mut heads = 0.0;
    let mut cost = 0.0;
    for exit in 0..exits {
        if thresholds[exit].is_some() {
            heads += costs.heads[exit];
            cost += count[exit] as f64 * (costs.before[exit] + heads);
        }
    }
    cost += count[exits] as f64 * (costs.end + heads);
    let all = examples as f64;
    Choice {
        thresholds: thresholds.to_vec(),
        accuracy: right.iter().sum::<f64>() / all,
        leave: count[..exits].iter().map(|&n| n as f64 / all).collect(),
        right: count.iter().zip(&right).map(|(&n, right)| (n > 0).then(|| right / n as f64)).collect(),
        cost: cost / all,
    }
}

/// Thresholds found, with their sums over all examples.
#[derive(Debug, Clone)]
struct Found {
    thresholds: Vec<Option<f64>>,
    right: f64,
    cost: f64,
}

/// Looks for thresholds, keeping the cheapest of each accuracy.
struct Search<'s> {
    samples: &'s Samples,
    costs: &'s Costs,
    /// By right answers, rounded down.
    best: Vec<Option<Found>>,
    /// At each exit, thresholds from high to low.
    grids: Vec<Vec<f64>>,
    /// At each exit, of each example the first threshold of the grid that it
    /// reaches.
    levels: Vec<Vec<usize>>,
}

impl<'s> Search<'s> {
    fn new(samples: &'s Samples, costs: &'s Costs) -> Self {
        let (exits, examples) = (samples.sureness.len(), samples.end.len());
        // All exits but the last are tried one combination at a time.
        let mut size = GRID_MAX;
        let work = |size: usize| (1..exits).try_fold(examples, |work, _| work.checked_mul(size + 1));
        while size > 2 && work(size).is_none_or(|work| work > WORK_MAX) {
            size -= 1;
        }
        let grids: Vec<Vec<f64>> = samples.sureness.iter().map(|list| grid(list, size)).collect();
        let level = |grid: &Vec<f64>, s: f64| grid.partition_point(|t| !is_sure(s, *t));
        let levels =
            grids.iter().zip(&samples.sureness).map(|(grid, list)| list.iter().map(|s| level(grid, *s)).collect());
        Self { samples, costs, best: vec![None; examples + 1], levels: levels.collect(), grids }
    }

    fn keep(&mut self, right: f64, cost: f64, thresholds: impl FnOnce() -> Vec<Option<f64>>) {
        let slot = &mut self.best[(right + 1e-9) as usize];
        let better = |found: &Found| (cost, found.right) < (found.cost, right) || cost < found.cost;
        if slot.as_ref().is_none_or(better) {
            *slot = Some(Found { thresholds: thresholds(), right, cost });
        }
    }

    /// Every combination of the grids.
    fn grid(&mut self) {
        let all: Vec<usize> = (0..self.samples.end.len()).collect();
        self.at(0, &all, &mut Vec::new(), (0.0, 0.0, 0.0));
    }

    /// Tries every threshold of an exit for those that come by, the exits
    /// before it being settled; `sums` are right answers and cost of those who
    /// left, and what heads cost so far.
    fn at(&mut self, exit: usize, here: &[usize], settled: &mut Vec<Option<f64>>, sums: (f64, f64, f64)) {
        let (right, cost, heads) = sums;
        if exit == self.grids.len() {
            let right = right + here.iter().map(|&e| self.samples.end[e]).sum::<f64>();
            let cost = cost + here.len() as f64 * (self.costs.end + heads);
            self.keep(right, cost, || settled.clone());
            return;
        }
        if exit + 1 == self.grids.len() {
            self.last(exit, here, settled, sums);
            return;
        }
        settled.push(None);
        self.at(exit + 1, here, settled, sums);
        settled.pop();
        let heads = heads + self.costs.heads[exit];
        for level in 0..self.grids[exit].len() {
            let (mut left, mut rest, mut won) = (0usize, Vec::with_capacity(here.len()), 0.0);
            for &example in here {
                if self.levels[exit][example] <= level {
                    left += 1;
                    won += self.samples.right[exit][example];
                } else {
                    rest.push(example);
                }
            }
            let spent = left as f64 * (self.costs.before[exit] + heads);
            settled.push(Some(self.grids[exit][level]));
            self.at(exit + 1, &rest, settled, (right + won, cost + spent, heads));
            settled.pop();
        }
    }

    /// The last exit: all its thresholds in one pass.
    fn last(&mut self, exit: usize, here: &[usize], settled: &[Option<f64>], sums: (f64, f64, f64)) {
        let (right, cost, heads) = sums;
        let levels = self.grids[exit].len();
        // Who leaves at each level, and what they win here over the end.
        let (mut count, mut gain) = (vec![0usize; levels + 1], vec![0f64; levels + 1]);
        let mut at_end = 0.0;
        for &example in here {
            let level = self.levels[exit][example];
            let end = self.samples.end[example];
            at_end += end;
            count[level] += 1;
            gain[level] += self.samples.right[exit][example] - end;
        }
        let all = here.len();
        let unused = cost + all as f64 * (self.costs.end + heads);
        self.keep(right + at_end, unused, || settled.iter().copied().chain([None]).collect());
        let heads = heads + self.costs.heads[exit];
        let (mut left, mut won) = (0usize, right + at_end);
        for level in 0..levels {
            left += count[level];
            won += gain[level];
            let spent =
                left as f64 * (self.costs.before[exit] + heads) + (all - left) as f64 * (self.costs.end + heads);
            let threshold = self.grids[exit][level];
            self.keep(won, cost + spent, || settled.iter().copied().chain([Some(threshold)]).collect());
        }
    }

    /// Moves one threshold at a time to wherever it does better, of every
    /// choice that nothing found so far beats.
    fn refine(&mut self) {
        let fine = self.grids.iter().zip(&self.samples.sureness).all(|(grid, list)| grid.len() >= distinct(list));
        if fine {
            return;
        }
        let sorted: Vec<Vec<usize>> = self.samples.sureness.iter().map(|list| by_sureness(list)).collect();
        for _ in 0..ROUNDS_MAX {
            let before: Vec<Option<f64>> = self.best.iter().map(|f| f.as_ref().map(|f| f.cost)).collect();
            for found in self.front() {
                for (exit, order) in sorted.iter().enumerate() {
                    self.sweep(&found, exit, order);
                }
            }
            if self.best.iter().map(|f| f.as_ref().map(|f| f.cost)).eq(before) {
                return;
            }
        }
    }

    /// Choices that no other beats, at most as many as a curve needs.
    fn front(&self) -> Vec<Found> {
        let mut front: Vec<&Found> = Vec::new();
        for found in self.best.iter().rev().flatten() {
            if front.last().is_none_or(|last| found.cost < last.cost) {
                front.push(found);
            }
        }
        let step = front.len().div_ceil(GRID_MAX).max(1);
        front.into_iter().step_by(step).cloned().collect()
    }

    /// Tries every threshold of one exit, the others staying as they are.
    fn sweep(&mut self, found: &Found, exit: usize, order: &[usize]) {
        let (samples, costs, thresholds) = (self.samples, self.costs, &found.thresholds);
        let exits = thresholds.len();
        let used = |e: usize| if e == exit { Some(f64::INFINITY) } else { thresholds[e] };
        let mut heads = vec![0.0; exits + 1];
        for e in 0..exits {
            heads[e + 1] = heads[e] + if used(e).is_some() { costs.heads[e] } else { 0.0 };
        }
        let outcome = |e: usize, example: usize| match samples.right.get(e) {
            Some(right) => (right[example], costs.before[e] + heads[e + 1]),
            None => (samples.end[example], costs.end + heads[exits]),
        };
        let leaves = |e: usize, example: usize| used(e).is_some_and(|t| is_sure(samples.sureness[e][example], t));
        // Where each goes when nobody leaves at this exit.
        let without: Vec<usize> = (0..samples.end.len())
            .map(|example| (0..exits).find(|&e| e != exit && leaves(e, example)).unwrap_or(exits))
            .collect();
        let (mut right, mut cost) = (0.0, 0.0);
        for (example, &e) in without.iter().enumerate() {
            let (r, c) = outcome(e, example);
            right += r;
            cost += c;
        }
        let mut from = 0;
        while from < order.len() {
            let threshold = samples.sureness[exit][order[from]];
            let same = order[from..].iter().take_while(|&&e| samples.sureness[exit][e] >= threshold).count();
            for &example in &order[from..from + same] {
                if without[example] > exit {
                    let (r, c) = outcome(without[example], example);
                    let (own, spent) = outcome(exit, example);
                    right += own - r;
                    cost += spent - c;
                }
            }
            from += same;
            self.keep(right, cost, || {
                let mut changed = thresholds.clone();
                changed[exit] = Some(threshold);
                changed
            });
        }
    }
}

fn is_sure(sureness: f64, threshold: f64) -> bool {
    sureness.is_finite() && sureness >= threshold
}

/// Examples from sure to unsure, those that are never sure left out.
fn by_sureness(list: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..list.len()).filter(|&e| list[e].is_finite()).collect();
    order.sort_by(|&a, &b| list[b].total_cmp(&list[a]));
    order
}

fn distinct(list: &[f64]) -> usize {
    let mut sorted: Vec<f64> = list.iter().copied().filter(|s| s.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    sorted.dedup();
    sorted.len()
}

/// Up to `size` values of a list at even ranks, from high to low: all of them
/// where there are no more.
fn grid(list: &[f64], size: usize) -> Vec<f64> {
    let mut sorted: Vec<f64> = list.iter().copied().filter(|s| s.is_finite()).collect();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let mut values = sorted.clone();
    values.dedup();
    if values.len() <= size {
        return values;
    }
    let mut chosen: Vec<f64> = (0..size).map(|i| sorted[(i * (sorted.len() - 1)) / (size - 1).max(1)]).collect();
    chosen.dedup();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(rng: &mut fastrand::Rng, exits: usize, examples: usize, values: u32) -> Samples {
        let mut bit = |p: f64| if rng.f64() < p { 1.0 } else { 0.0 };
        let right = (0..exits).map(|e| (0..examples).map(|_| bit(0.4 + 0.15 * e as f64)).collect()).collect();
        let end = (0..examples).map(|_| bit(0.8)).collect();
        let mut sure = || if rng.u32(0..12) == 0 { f64::NAN } else { f64::from(rng.u32(0..values)) / 16.0 };
        let sureness = (0..exits).map(|_| (0..examples).map(|_| sure()).collect()).collect();
        Samples { sureness, right, end }
    }

    fn costs(exits: usize) -> Costs {
        Costs {
            before: (0..exits).map(|e| 10.0 * (e + 1) as f64).collect(),
            heads: (0..exits).map(|e| 1.0 + e as f64).collect(),
            end: 100.0,
        }
    }

    #[test]
    fn the_chosen_thresholds_are_among_those_that_are_kept() {
        let choice = |n: usize| Choice {
            thresholds: vec![Some(n as f64)],
            accuracy: 0.5,
            leave: vec![0.5],
            right: vec![None, None],
            cost: n as f64,
        };
        for all in [1, 2, 63, 64, 65, 1_000] {
            let curve: Vec<Choice> = (0..all).map(choice).collect();
            for chosen in curve.iter().chain([&Choice { cost: 500.5, ..choice(2_000) }]) {
                let kept = kept(&curve, chosen, 64);
                assert!(kept.iter().any(|kept| kept.thresholds == chosen.thresholds), "{all}");
                assert!(kept.is_sorted_by_key(|kept| kept.cost) && kept.len() <= 64, "{all}");
                assert_eq!(kept[0].cost, 0.0, "{all}");
            }
        }
    }

    /// Every threshold that could matter, by the definition.
    fn brute_force(samples: &Samples, costs: &Costs) -> Vec<(f64, f64)> {
        let mut all: Vec<Vec<Option<f64>>> = vec![Vec::new()];
        for list in &samples.sureness {
            let values = list.iter().copied().filter(|s| !s.is_nan()).map(Some).chain([None]);
            all = values.flat_map(|t| all.iter().map(move |before| [&before[..], &[t]].concat())).collect();
        }
        let mut found: Vec<(f64, f64)> = Vec::new();
        for thresholds in all {
            let (mut right, mut cost) = (0.0, 0.0);
            for example in 0..samples.end.len() {
                let mut spent = 0.0;
                let mut answer = None;
                for (exit, threshold) in thresholds.iter().enumerate() {
                    let Some(threshold) = *threshold else { continue };
                    spent += costs.heads[exit];
                    if samples.sureness[exit][example] >= threshold {
                        answer = Some((samples.right[exit][example], costs.before[exit]));
                        break;
                    }
                }
                let (won, trunk) = answer.unwrap_or((samples.end[example], costs.end));
                right += won;
                cost += spent + trunk;
            }
            found.push((cost / samples.end.len() as f64, right / samples.end.len() as f64));
        }
        found
    }

    #[test]
    fn of_few_examples_no_choice_is_better_than_those_found() {
        let mut rng = fastrand::Rng::with_seed(7);
        for case in 0..400 {
            let (exits, examples) = (case % 4, 1 + case % 9);
            let values = if case % 2 == 0 { 3 } else { 16 };
            let (samples, costs) = (samples(&mut rng, exits, examples, values), costs(exits));
            let curve = calibrate(&samples, &costs, Criterion::Entropy).unwrap();
            let all = brute_force(&samples, &costs);
            for choice in &curve {
                assert_eq!(*choice, measure(&samples, &costs, &choice.thresholds).unwrap());
                let same = |(cost, right): &(f64, f64)| {
                    (cost - choice.cost).abs() < 1e-9 && (right - choice.accuracy).abs() < 1e-9
                };
                assert!(all.iter().any(same), "case {case}: {choice:?} is no choice there is");
            }
            for (cost, right) in all {
                let found = curve.iter().any(|c| c.cost <= cost + 1e-9 && c.accuracy >= right - 1e-9);
                assert!(found, "case {case}: {right} at {cost} beats {curve:?}");
            }
        }
    }

    #[test]
    fn many_examples_are_searched_as_well_as_one_exit_can_be() {
        // Coarse grids of three exits: behind the refinement, no threshold
        // moved by itself does better.
        let mut rng = fastrand::Rng::with_seed(3);
        let examples = 3_000;
        let hard: Vec<f64> = (0..examples).map(|_| rng.f64()).collect();
        let mut of = |skill: f64| -> (Vec<f64>, Vec<f64>) {
            hard.iter()
                .map(|h| {
                    let chance = (1.2 - h * (1.6 - skill)).clamp(0.05, 1.0);
                    (chance * (0.9 + 0.1 * rng.f64()), if rng.f64() < chance { 1.0 } else { 0.0 })
                })
                .unzip()
        };
        let exits: Vec<(Vec<f64>, Vec<f64>)> = [0.3, 0.6, 0.8].map(&mut of).into();
        let (sureness, right) = exits.into_iter().unzip();
        let samples = Samples { sureness, right, end: of(1.0).1 };
        let costs = costs(3);
        let curve = calibrate(&samples, &costs, Criterion::Confidence).unwrap();
        let end = accuracy(&samples.end);
        let choice = choose(&curve, end, Target::Loss(0.005)).unwrap();
        assert!(choice.accuracy >= end - 0.005 - 1e-9 && choice.cost < 100.0, "{choice:?}");
        for exit in 0..3 {
            for &threshold in samples.sureness[exit].iter().step_by(10) {
                let mut moved = choice.thresholds.clone();
                moved[exit] = Some(threshold);
                let other = measure(&samples, &costs, &moved).unwrap();
                assert!(
                    other.accuracy < end - 0.005 - 1e-9 || other.cost >= choice.cost - 1e-9,
                    "{choice:?} {other:?}"
                );
            }
        }
        // A cost that is asked for is kept to, and more of it is never worse.
        let accuracy = [20.0, 40.0, 60.0, 80.0].map(|most| {
            let choice = choose(&curve, end, Target::Cost(most)).unwrap();
            assert!(choice.cost <= most + 1e-6);
            choice.accuracy
        });
        assert!(accuracy.is_sorted(), "{accuracy:?}");
    }

    #[test]
    fn thresholds_are_each_exits_own() {
        // Sure at the first exit means nothing, at the second everything.
        let samples = Samples {
            sureness: vec![vec![0.9, 0.9, 0.9, 0.9], vec![0.9, 0.9, 0.1, 0.1]],
            right: vec![vec![0.0; 4], vec![1.0, 1.0, 0.0, 0.0]],
            end: vec![1.0; 4],
        };
        let curve = calibrate(&samples, &costs(2), Criterion::Margin).unwrap();
        let choice = choose(&curve, 1.0, Target::Loss(0.0)).unwrap();
        assert_eq!(choice.thresholds, [None, Some(0.9)]);
        assert_eq!(choice.leave, [0.0, 0.5]);
        assert_eq!(choice.right, [None, Some(1.0), Some(1.0)]);
        assert_eq!(choice.cost, (2.0 * 22.0 + 2.0 * 102.0) / 4.0);
    }

    #[test]
    fn an_exit_that_is_better_than_the_end_takes_everybody() {
        let samples = Samples { sureness: vec![vec![0.1, 0.2]], right: vec![vec![1.0, 1.0]], end: vec![0.0, 1.0] };
        let curve = calibrate(&samples, &costs(1), Criterion::Confidence).unwrap();
        assert_eq!(curve.len(), 1);
        assert_eq!(curve[0].thresholds, [Some(0.1)]);
        assert_eq!(choose(&curve, 0.5, Target::Loss(0.0)), Some(&curve[0]));
    }

    #[test]
    fn ties_leave_together_and_nobody_unsure_of_anything_leaves() {
        let samples = Samples {
            sureness: vec![vec![0.5, 0.5, f64::NAN, f64::NEG_INFINITY]],
            right: vec![vec![1.0, 0.0, 0.0, 0.0]],
            end: vec![1.0; 4],
        };
        let curve = calibrate(&samples, &costs(1), Criterion::Confidence).unwrap();
        let leave: Vec<f64> = curve.iter().map(|c| c.leave[0]).collect();
        assert_eq!(leave, [0.5, 0.0]);
    }

    #[test]
    fn patience_is_one_for_all_exits() {
        let samples = Samples {
            sureness: vec![vec![1.0, 1.0], vec![2.0, 1.0]],
            right: vec![vec![0.0, 0.0], vec![1.0, 0.0]],
            end: vec![1.0, 1.0],
        };
        let curve = calibrate(&samples, &costs(2), Criterion::Patience).unwrap();
        let choice = choose(&curve, 1.0, Target::Loss(0.0)).unwrap();
        assert_eq!(choice.thresholds, [Some(2.0), Some(2.0)]);
        assert_eq!(choice.leave, [0.0, 0.5]);
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let good = Samples { sureness: vec![vec![0.5]], right: vec![vec![1.0]], end: vec![1.0] };
        let refused =
            |samples: &Samples, costs: &Costs| calibrate(samples, costs, Criterion::Entropy).unwrap_err().to_string();
        assert!(refused(&Samples::default(), &costs(0)).contains("no examples"));
        assert!(refused(&good, &costs(2)).contains("costs until exits: 2 where there are 1"));
        let short = Samples { right: vec![vec![]], ..good.clone() };
        assert!(refused(&short, &costs(1)).contains("examples with an answer"));
        let wrong = Samples { end: vec![f64::NAN], ..good.clone() };
        assert!(refused(&wrong, &costs(1)).contains("share"));
        assert!(refused(&good, &Costs { end: f64::NAN, ..costs(1) }).contains("a cost"));
        assert!(measure(&good, &costs(1), &[]).is_err());
    }
}
