//! How fast updates are added to an exact sum, one at a time and as a node
//! does, beside a plain copy and a plain sum of the same numbers. Start at
//! [`run`].

use std::fmt;
use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;
use tierline_federate::aggregate::{Aggregate, Weight};
use tierline_federate::sum::TOGETHER_MAX;
use tierline_federate::{Channel, Contribution, ExactSum, Layout, Mean, Part, Report as Said, Vectors};

use super::median;

const NUMBERS: [usize; 3] = [100_000, 1_000_000, 10_000_000];

/// Rounds in which all three take their turn.
const ROUNDS: usize = 25;

/// Share of the copy's bandwidth that we want.
const GOAL: f64 = 0.5;

/// What was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// One per length of an update.
    pub rows: Vec<Row>,
}

/// Medians for updates of one length, in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Numbers of an update.
    pub numbers: usize,
    /// Copying it.
    pub copy_ms: f64,
    /// Adding it, times a weight, to a sum in f64.
    pub plain_ms: f64,
    /// Adding it, times a weight, to an exact sum.
    pub exact_ms: f64,
    /// The same as a node does: some updates in one pass.
    pub node_ms: f64,
    /// Median over the rounds of that over copying.
    pub over_copy: f64,
}

/// Runs the benchmark.
///
/// # Errors
/// When a sum refuses what it is given.
pub fn run() -> Result<Report> {
    let rows = NUMBERS.into_iter().map(row).collect::<Result<_>>()?;
    Ok(Report { rows })
}

fn row(numbers: usize) -> Result<Row> {
    let update: Vec<f32> = (0..numbers).map(|i| (i % 1_000) as f32 * 1e-3 - 0.5).collect();
    let (mut copy, mut plain) = (vec![0f32; numbers], vec![0f64; numbers]);
    let mut exact = ExactSum::new(numbers);
    let layout = Layout { parameters: vec![Part { name: "w".to_owned(), shape: vec![numbers] }], ..Layout::default() };
    let mut mean = Mean::new(&layout, &[Channel::Model]);
    let weight = Weight { share: 3.0, factor: 1.0, fresh: 1.0 };
    // Short ones many times: the clock is not that fine.
    let times = (10_000_000 / numbers).next_multiple_of(TOGETHER_MAX);
    let mut rows: [Vec<f64>; 5] = Default::default();
    for round in 0..=ROUNDS {
        // Updates come decoded, one behind the other, and are handed over: none
        // of them is in the processor's caches.
        let one =
            || Contribution { vectors: Vectors::from([(Channel::Model, update.clone())]), report: Said::default() };
        let mut waiting: Vec<Contribution> = (0..times).map(|_| one()).collect();
        let mut next = waiting.iter();
        let copied = timed(times, || {
            let vector = next.next().and_then(|contribution| contribution.vectors.get(&Channel::Model));
            black_box(&mut copy).copy_from_slice(black_box(vector.context("as many as turns")?));
            Ok(())
        })?;
        let summed = timed(times, || {
            let update = black_box(&update);
            black_box(&mut plain).iter_mut().zip(update).for_each(|(s, x)| *s += 3.0 * f64::from(*x));
            Ok(())
        })?;
        let added = timed(times, || Ok(exact.add(black_box(3.0), black_box(&update))?))?;
        let by_node = timed(times, || Ok(mean.add(black_box(weight), waiting.pop().context("as many as turns")?)?))?;
        black_box(mean.finish()?);
        // The first touches memory for the first time.
        if round > 0 {
            let found = [copied, summed, added, by_node, by_node / copied];
            rows.iter_mut().zip(found).for_each(|(row, value)| row.push(value));
        }
    }
    let [copy_ms, plain_ms, exact_ms, node_ms, over_copy] = rows.map(|row| median(&row));
    Ok(Row { numbers, copy_ms, plain_ms, exact_ms, node_ms, over_copy })
}

/// Milliseconds of one of `times` turns.
fn timed(times: usize, mut turn: impl FnMut() -> Result<()>) -> Result<f64> {
    let begun = Instant::now();
    for _ in 0..times {
        turn()?;
    }
    Ok(begun.elapsed().as_secs_f64() * 1e3 / times as f64)
}

impl Row {
    /// Gigabytes that a node moves in a second, and a copy: an update of four
    /// bytes a number and its part of two sums of eight, there and back; over
    /// four each way.
    fn bandwidth(&self) -> (f64, f64) {
        let rate = |bytes: f64, ms: f64| bytes * self.numbers as f64 / ms / 1e6;
        (rate(4.0 + 32.0 / TOGETHER_MAX as f64, self.node_ms), rate(8.0, self.copy_ms))
    }

    /// Of the copy's bandwidth: by all that is moved, and by the update alone.
    fn shares(&self) -> [f64; 2] {
        let (node, copy) = self.bandwidth();
        [node / copy, 1.0 / self.over_copy]
    }
}

/// For which lengths the goal is reached.
fn verdict(rows: &[Row], share: impl Fn(&Row) -> f64) -> String {
    let of = |reached: bool| {
        let some = rows.iter().filter(|row| (share(row) >= GOAL) == reached);
        some.map(|row| row.numbers.to_string()).collect::<Vec<_>>()
    };
    match (of(true), of(false)) {
        (all, missed) if missed.is_empty() => format!("reached for {}", all.join(", ")),
        (reached, all) if reached.is_empty() => format!("missed for {}", all.join(", ")),
        (reached, missed) => format!("reached for {}, missed for {}", reached.join(", "), missed.join(", ")),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Adding an update, times its weight, to the sum that doesn't depend on the order of arrival, beside copying it\n\
             and beside a sum in f64 that does depend on it; one thread, in turns, medians of {ROUNDS} rounds. One at a time, an\n\
             update is looked through for its largest number first; a node has done that when it checked it, and adds\n\
             {TOGETHER_MAX} in a pass. Moved is what a node reads and writes, {} bytes a number and update, beside 8 for a copy. By the\n\
             update alone, both take in four.\n",
            4 + 32 / TOGETHER_MAX
        )?;
        writeln!(
            f,
            "| numbers | copy ms | f64 sum ms | exact, one at a time ms | exact, as a node ms | node / copy | node / f64 sum | GB/s moved, node | GB/s moved, copy | share of the copy's, moved | share, update alone |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|---|---|---|---|")?;
        for row in &self.rows {
            let ((node, copy), [moved, alone]) = (row.bandwidth(), row.shares());
            writeln!(
                f,
                "| {} | {:.3} | {:.3} | {:.3} | {:.3} | {:.2} | {:.2} | {node:.1} | {copy:.1} | {moved:.2} | {alone:.2} |",
                row.numbers,
                row.copy_ms,
                row.plain_ms,
                row.exact_ms,
                row.node_ms,
                row.over_copy,
                row.node_ms / row.plain_ms,
            )?;
        }
        writeln!(
            f,
            "\nThe goal of {GOAL} of the copy's bandwidth is, by bytes moved, {};\nby the bytes of the update alone, {}.",
            verdict(&self.rows, |row| row.shares()[0]),
            verdict(&self.rows, |row| row.shares()[1])
        )
    }
}
