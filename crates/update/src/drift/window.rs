//! A window of examples without labels, beside the reference that ships with
//! the model.
//!
//! Memory is fixed by the reference, whatever the window's length. Four
//! questions are asked of a window, each at its part of the error rate: did the
//! confidence change, the classes, any one feature, or the features together.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::calibration::Estimate;
use super::correct::Correction;
use super::grid::Counts;
use super::mmd;
use super::reference::{Example, Reference, usable};
use crate::special::{chi_squared_above, in_words};

/// Answers that a class must be expected to have to stand alone; rarer ones are
/// counted together (Cochran, 1954).
const EXPECTED_MIN: f64 = 5.0;

/// Features that are named at most.
const NAMED_MAX: usize = 8;

/// Distance that features are tested by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Distance {
    /// Kolmogorov-Smirnov's: the whole distribution, exact.
    #[default]
    Ks,
    /// Wasserstein-1: how far numbers moved; better at shifts, approximate.
    Wasserstein,
}

/// How windows are judged.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Chance that a window in which nothing changed is called drift, over all
    /// questions; 0.01 unless said.
    pub alpha: f64,
    /// How the features' p-values are corrected for their number.
    pub correction: Correction,
    /// Distance that features are tested by.
    pub distance: Distance,
    /// Examples below which a window isn't judged; 100 unless said.
    pub examples_min: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { alpha: 0.01, correction: Correction::default(), distance: Distance::default(), examples_min: 100 }
    }
}

/// Examples counted along a reference.
#[derive(Debug, Clone)]
pub struct Window {
    reference: Arc<Reference>,
    examples: u64,
    refused: u64,
    features: Vec<Counts>,
    confidence: Option<Counts>,
    classes: Vec<u64>,
    /// Sum of images under the random frequencies.
    images: Vec<f64>,
    /// Answers by step of the calibration.
    steps: Vec<u64>,
    numbers: Vec<f32>,
}

impl Window {
    /// An empty window.
    pub fn new(reference: Arc<Reference>) -> Self {
        Self {
            examples: 0,
            refused: 0,
            features: reference.features().iter().map(|grid| grid.counts()).collect(),
            confidence: reference.confidence().map(|grid| grid.counts()),
            classes: vec![0; reference.classes().len()],
            images: vec![0.0; reference.images().map_or(0, |(_, frequencies)| frequencies.len())],
            steps: reference.calibration().map_or_else(Vec::new, |calibration| calibration.counts()),
            numbers: vec![0.0; reference.sketch().len()],
            reference,
        }
    }

    /// Counts one example and says whether it could be; one with numbers that
    /// aren't finite, or not as many as there must be, is counted as refused.
    pub fn push(&mut self, example: &Example<'_>) -> bool {
        let reference = &*self.reference;
        if !usable(example, reference.sketch(), self.classes.len()) {
            self.refused += 1;
            return false;
        }
        self.examples += 1;
        reference.sketch().write(example.features, &mut self.numbers);
        for ((grid, counts), &x) in reference.features().iter().zip(&mut self.features).zip(&self.numbers) {
            grid.count(counts, f64::from(x));
        }
        if let Some(answer) = example.answer {
            self.classes[answer.class] += 1;
            if let Some((grid, counts)) = reference.confidence().zip(self.confidence.as_mut()) {
                grid.count(counts, answer.confidence);
            }
            if let Some(calibration) = reference.calibration() {
                self.steps[calibration.step(answer.confidence)] += 1;
            }
        }
        if let Some((_, frequencies)) = reference.images() {
            reference.standardise(&mut self.numbers);
            let images = &mut self.images;
            frequencies.image(&self.numbers, |i, x| images[i] += x);
        }
        true
    }

    /// Examples counted.
    pub fn examples(&self) -> u64 {
        self.examples
    }

    /// Examples refused.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// The reference.
    pub fn reference(&self) -> &Arc<Reference> {
        &self.reference
    }

    /// Empties the window.
    pub fn clear(&mut self) {
        (self.examples, self.refused) = (0, 0);
        self.features.iter_mut().chain(&mut self.confidence).for_each(Counts::clear);
        self.classes.fill(0);
        self.images.fill(0.0);
        self.steps.fill(0);
    }

    /// Judges the window.
    pub fn report(&self, options: &Options) -> Report {
        let reference = &*self.reference;
        let mut report = Report {
            verdict: Verdict::TooFew,
            examples: self.examples,
            refused: self.refused,
            alpha: options.alpha,
            confidence: None,
            classes: None,
            together: None,
            features: Vec::new(),
            changed: 0,
            estimate: reference.calibration().and_then(|calibration| calibration.estimate(&self.steps, MISS)),
            accuracy: reference.calibration().map(|calibration| calibration.accuracy()),
        };
        if self.examples < options.examples_min.max(1) {
            return report;
        }
        report.confidence = reference
            .confidence()
            .zip(self.confidence.as_ref())
            .map(|(grid, counts)| Test { distance: grid.ks(counts), p: grid.ks_p(counts) });
        report.classes = same_shares(reference.classes(), &self.classes);
        report.together = reference.images().map(|(images, _)| {
            let (n, m) = (reference.examples() as f64, self.examples as f64);
            let squared = images.mean.iter().zip(&self.images).map(|(a, b)| (a - b / m) * (a - b / m)).sum();
            Test { distance: squared, p: mmd::p_value(squared, n, m, images.traces) }
        });
        report.features = self.features(options);
        report.judge();
        report
    }

    fn features(&self, options: &Options) -> Vec<Feature> {
        let mut features: Vec<Feature> = self
            .reference
            .features()
            .iter()
            .zip(&self.features)
            .enumerate()
            .map(|(index, (grid, counts))| {
                let p = match options.distance {
                    Distance::Ks => grid.ks_p(counts),
                    Distance::Wasserstein => grid.wasserstein_p(counts),
                };
                let unit = if grid.deviation() > 0.0 { grid.deviation() } else { 1.0 };
                Feature { index, ks: grid.ks(counts), moved: grid.wasserstein(counts) / unit, p, adjusted: p }
            })
            .collect();
        let p: Vec<f64> = features.iter().map(|feature| feature.p).collect();
        for (feature, adjusted) in features.iter_mut().zip(options.correction.adjust(&p)) {
            feature.adjusted = adjusted;
        }
        features
    }
}

/// Chance that the estimated accuracy's bounds miss.
const MISS: f64 = 0.05;

/// Pearson's chi-squared test that two lists of counts have the same shares;
/// none where nothing could be told.
fn same_shares(reference: &[u64], window: &[u64]) -> Option<Test> {
    let sum = |counts: &[u64]| counts.iter().sum::<u64>() as f64;
    let (n, m) = (sum(reference), sum(window));
    if n == 0.0 || m == 0.0 {
        return None;
    }
    let mut cells: Vec<(f64, f64)> = Vec::new();
    let mut rest = (0.0, 0.0);
    for (&a, &b) in reference.iter().zip(window) {
        let (a, b) = (a as f64, b as f64);
        if (a + b) * m.min(n) / (n + m) < EXPECTED_MIN {
            rest = (rest.0 + a, rest.1 + b);
        } else {
            cells.push((a, b));
        }
    }
    if rest.0 + rest.1 > 0.0 {
        cells.push(rest);
    }
    if cells.len() < 2 {
        return None;
    }
    let statistic: f64 = cells
        .iter()
        .map(|(a, b)| {
            let (expected_a, expected_b) = ((a + b) * n / (n + m), (a + b) * m / (n + m));
            (a - expected_a).powi(2) / expected_a + (b - expected_b).powi(2) / expected_b
        })
        .sum();
    Some(Test { distance: statistic, p: chi_squared_above((cells.len() - 1) as f64, statistic) })
}

/// What a window says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Too few examples to say anything.
    TooFew,
    /// Nothing that chance doesn't explain.
    Stable,
    /// The window differs from the reference.
    Drift,
}

/// One question's answer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Test {
    /// Distance from the reference: of distributions (confidence), chi-squared
    /// (classes), squared discrepancy (features together).
    pub distance: f64,
    /// Chance of it, or of more, where nothing changed.
    pub p: f64,
}

/// One number of the sketch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Feature {
    /// Its place in the sketch.
    pub index: usize,
    /// Kolmogorov-Smirnov distance.
    pub ks: f64,
    /// Wasserstein-1 distance, in deviations of the reference.
    pub moved: f64,
    /// Chance of its distance where nothing changed.
    pub p: f64,
    /// The same, corrected for the number of features.
    pub adjusted: f64,
}

/// A window beside its reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What it says.
    pub verdict: Verdict,
    /// Examples that were judged.
    pub examples: u64,
    /// Examples that were refused.
    pub refused: u64,
    /// Chance of a false alarm that the verdict is held to.
    pub alpha: f64,
    /// Whether the confidence changed.
    pub confidence: Option<Test>,
    /// Whether the shares of classes changed.
    pub classes: Option<Test>,
    /// Whether the features changed, together.
    pub together: Option<Test>,
    /// Every feature.
    pub features: Vec<Feature>,
    /// Features that changed.
    pub changed: usize,
    /// Accuracy that is expected, where the reference is calibrated.
    pub estimate: Option<Estimate>,
    /// Accuracy on the reference's labelled examples.
    pub accuracy: Option<f64>,
}

impl Report {
    fn judge(&mut self) {
        let level = self.level();
        self.changed = self.features.iter().filter(|feature| feature.adjusted <= level).count();
        let one = [self.confidence, self.classes, self.together].into_iter().flatten().any(|test| test.p <= level);
        self.verdict = if one || self.changed > 0 { Verdict::Drift } else { Verdict::Stable };
    }

    /// Error rate of one question: the questions' together is at most alpha.
    pub fn level(&self) -> f64 {
        let asked =
            [self.confidence.is_some(), self.classes.is_some(), self.together.is_some(), !self.features.is_empty()];
        self.alpha / asked.iter().filter(|asked| **asked).count().max(1) as f64
    }

    /// One number for a gate: the smallest p-value, corrected for everything
    /// that was asked; 1 where nothing was.
    pub fn p(&self) -> f64 {
        let of_features = self.features.iter().map(|feature| feature.adjusted).fold(1.0, f64::min);
        let smallest = [self.confidence, self.classes, self.together]
            .iter()
            .flatten()
            .map(|test| test.p)
            .fold(of_features, f64::min);
        (smallest * self.alpha / self.level()).min(1.0)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let refused = match self.refused {
            0 => String::new(),
            n => format!(" ({n} more had numbers that can't be used)"),
        };
        match self.verdict {
            Verdict::TooFew => writeln!(f, "{} examples{refused}: too few to say anything.", self.examples)?,
            Verdict::Stable => {
                writeln!(
                    f,
                    "{} examples{refused}: stable, at a false alarm in {:.0} windows.",
                    self.examples,
                    1.0 / self.alpha
                )?;
            }
            Verdict::Drift => {
                writeln!(
                    f,
                    "{} examples{refused}: drift, at a false alarm in {:.0} windows.",
                    self.examples,
                    1.0 / self.alpha
                )?;
            }
        }
        let level = self.level();
        for (what, test) in
            [("confidence", self.confidence), ("classes", self.classes), ("features together", self.together)]
        {
            if let Some(test) = test {
                let word = if test.p <= level { "changed" } else { "as it was" };
                writeln!(f, "  {what}: {word} (p = {})", in_words(test.p))?;
            }
        }
        if !self.features.is_empty() {
            writeln!(f, "  single features: {} of {} changed", self.changed, self.features.len())?;
            let mut worst: Vec<&Feature> = self.features.iter().filter(|feature| feature.adjusted <= level).collect();
            worst.sort_by(|a, b| a.adjusted.total_cmp(&b.adjusted).then(b.moved.total_cmp(&a.moved)));
            for feature in worst.iter().take(NAMED_MAX) {
                writeln!(
                    f,
                    "    {}: moved by {:.2} deviations (p = {})",
                    feature.index,
                    feature.moved,
                    in_words(feature.adjusted)
                )?;
            }
            if worst.len() > NAMED_MAX {
                writeln!(f, "    and {} more", worst.len() - NAMED_MAX)?;
            }
        }
        if let (Some(estimate), Some(accuracy)) = (&self.estimate, self.accuracy) {
            writeln!(
                f,
                "  expected accuracy: {:.1}% (between {:.1}% and {:.1}%); it was {:.1}%",
                100.0 * estimate.accuracy,
                100.0 * estimate.low,
                100.0 * estimate.high,
                100.0 * accuracy
            )?;
        }
        Ok(())
    }
}
