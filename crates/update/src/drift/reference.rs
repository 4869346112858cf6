//! What a model saw and said when it was made: the compact document that ships
//! with it, which windows are compared with.
//!
//! It holds no example. Start at [`Builder`], then [`Window`](super::Window).

use serde::{Deserialize, Serialize};

use super::calibration::{Calibration, CalibrationError};
use super::grid::{Grid, GridError};
use super::mmd::{self, Frequencies, Traces};
use super::random::Random;
use super::sketch::{Sketch, SketchError};

/// The version of documents that this writes.
pub const VERSION: u32 = 1;

/// Bytes of a document at most; what [`Builder`] makes has some hundred KB.
pub const BYTES_MAX: usize = 16 << 20;

/// Examples that a builder keeps; of more, a uniform draw.
pub const EXAMPLES_MAX: usize = 1 << 17;

/// Classes at most.
pub const CLASSES_MAX: usize = 1 << 16;

/// Random frequencies at most.
const FREQUENCIES_MAX: usize = 1_024;

/// Examples that the spread of images is measured on.
const IMAGES: usize = 4_096;

/// Deviations from the mean beyond which a number is taken for this many.
const DEVIATIONS_MAX: f32 = 1_000.0;

/// One example as a model saw and answered it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Example<'a> {
    /// Features: of the input, or of a tensor within the model; as many as the
    /// reference's sketch takes.
    pub features: &'a [f32],
    /// What a classifier answered.
    pub answer: Option<Answer>,
    /// Whether it was right, where a label says so; learned from, never needed.
    pub right: Option<bool>,
}

/// A classifier's answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answer {
    /// The class.
    pub class: usize,
    /// Its probability, as the model has it.
    pub confidence: f64,
}

impl Answer {
    /// The answer of scores by class, which are probabilities or become such by
    /// softmax; none of no scores, or where one isn't finite.
    pub fn of(scores: &[f32]) -> Option<Self> {
        if scores.is_empty() || scores.iter().any(|x| !x.is_finite()) {
            return None;
        }
        let (mut class, mut top) = (0, scores[0]);
        for (i, &x) in scores.iter().enumerate() {
            if x > top {
                (class, top) = (i, x);
            }
        }
        let sum: f64 = scores.iter().map(|&x| f64::from(x)).sum();
        let probabilities = scores.iter().all(|&x| x >= 0.0) && (sum - 1.0).abs() < 1e-3;
        let confidence = if probabilities {
            f64::from(top)
        } else {
            1.0 / scores.iter().map(|&x| (f64::from(x) - f64::from(top)).exp()).sum::<f64>()
        };
        Some(Self { class, confidence: confidence.min(1.0) })
    }
}

/// What a reference is made with.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The model's digest, or what else names it.
    pub model: String,
    /// What the features are: `input`, or a tensor's name.
    pub source: String,
    /// Features of an example.
    pub features: usize,
    /// Numbers that they are sketched as; 64 unless said.
    pub numbers: usize,
    /// Classes; 0 of a model that isn't a classifier.
    pub classes: usize,
    /// Grid points of a distribution; 65 unless said.
    pub points: usize,
    /// Random frequencies; 64 unless said, 0 for none.
    pub frequencies: usize,
    /// Decides the sketch, the frequencies, and which examples are kept.
    pub seed: u64,
}

impl Settings {
    /// Settings for a model with this many features and classes.
    pub fn of(features: usize, classes: usize) -> Self {
        Self {
            model: String::new(),
            source: "input".to_owned(),
            features,
            numbers: 64,
            classes,
            points: 65,
            frequencies: 64,
            seed: 1,
        }
    }
}

/// The document. Made by a [`Builder`] or read by [`Reference::read`]; both
/// check it, and so nothing behind them does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Document", into = "Document")]
pub struct Reference {
    document: Document,
    frequencies: Option<Frequencies>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    model: String,
    source: String,
    examples: u64,
    sketch: Sketch,
    features: Vec<Grid>,
    confidence: Option<Grid>,
    classes: Vec<u64>,
    images: Option<Images>,
    calibration: Option<Calibration>,
}

/// Mean image of the reference's examples under random frequencies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Images {
    pub seed: u64,
    pub width: f64,
    pub mean: Vec<f64>,
    pub traces: Traces,
}

/// Why there is no reference.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// More bytes than any reference has.
    #[error("a reference has at most {BYTES_MAX} bytes; this has {0}")]
    TooLarge(usize),
    /// Written by a newer version.
    #[error(
        "the reference is of version {0}; this reads up to version {VERSION}: update tierline, or make the reference anew"
    )]
    Newer(u32),
    /// Not JSON, or not of this form.
    #[error("not a reference: {0}")]
    Unreadable(String),
    /// Parts that don't go together.
    #[error("the reference is unsound: {0}")]
    Unsound(&'static str),
    /// No usable example.
    #[error("a reference needs at least 2 usable examples; there were {usable}, and {refused} refused")]
    TooFew {
        /// Examples that were used.
        usable: u64,
        /// Examples that were refused.
        refused: u64,
    },
    /// A distribution that can't be.
    #[error(transparent)]
    Grid(#[from] GridError),
    /// A sketch that can't be.
    #[error(transparent)]
    Sketch(#[from] SketchError),
    /// A calibration that can't be.
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
    /// Settings out of bounds.
    #[error("{what} is {value}; it must be at most {max}")]
    Settings {
        /// Which.
        what: &'static str,
        /// What it is.
        value: usize,
        /// What it may be.
        max: usize,
    },
}

impl Reference {
    /// Reads the document.
    pub fn read(json: &[u8]) -> Result<Self, ReferenceError> {
        if json.len() > BYTES_MAX {
            return Err(ReferenceError::TooLarge(json.len()));
        }
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        // A newer document may have fields that this version doesn't know.
        let unreadable = |error: serde_json::Error| ReferenceError::Unreadable(error.to_string());
        let Version { version } = serde_json::from_slice(json).map_err(unreadable)?;
        if version > VERSION {
            return Err(ReferenceError::Newer(version));
        }
        serde_json::from_slice(json).map_err(unreadable)
    }

    /// The document as JSON.
    pub fn write(&self) -> Vec<u8> {
        // Strings, numbers and lists always can be written.
        serde_json::to_vec(&self.document).unwrap_or_default()
    }

    /// What names the model.
    pub fn model(&self) -> &str {
        &self.document.model
    }

    /// What the features are.
    pub fn source(&self) -> &str {
        &self.document.source
    }

    /// Examples that it was made of.
    pub fn examples(&self) -> u64 {
        self.document.examples
    }

    /// How features become numbers.
    pub fn sketch(&self) -> &Sketch {
        &self.document.sketch
    }

    /// Distribution of each number of the sketch.
    pub fn features(&self) -> &[Grid] {
        &self.document.features
    }

    /// Distribution of the confidence; none of a model that isn't a classifier.
    pub fn confidence(&self) -> Option<&Grid> {
        self.document.confidence.as_ref()
    }

    /// Answers by class; empty of a model that isn't a classifier.
    pub fn classes(&self) -> &[u64] {
        &self.document.classes
    }

    /// What a confidence is worth, where labelled examples were among them.
    pub fn calibration(&self) -> Option<&Calibration> {
        self.document.calibration.as_ref()
    }

    pub(super) fn images(&self) -> Option<(&Images, &Frequencies)> {
        self.document.images.as_ref().zip(self.frequencies.as_ref())
    }

    /// Replaces numbers of a sketch by their deviations from the mean.
    pub(super) fn standardise(&self, numbers: &mut [f32]) {
        standardise(&self.document.features, numbers);
    }
}

fn standardise(grids: &[Grid], numbers: &mut [f32]) {
    for (x, grid) in numbers.iter_mut().zip(grids) {
        let deviation = if grid.deviation() > 0.0 { grid.deviation() } else { 1.0 };
        let apart = ((f64::from(*x) - grid.mean()) / deviation) as f32;
        *x = apart.clamp(-DEVIATIONS_MAX, DEVIATIONS_MAX);
    }
}

impl TryFrom<Document> for Reference {
    type Error = ReferenceError;

    fn try_from(document: Document) -> Result<Self, ReferenceError> {
        let unsound = |fault| Err(ReferenceError::Unsound(fault));
        if document.version > VERSION {
            return Err(ReferenceError::Newer(document.version));
        }
        if document.model.len() > 1_024 || document.source.len() > 1_024 {
            return unsound("a name is longer than 1,024 bytes");
        }
        if document.features.len() != document.sketch.len() {
            return unsound("as many distributions as the sketch has numbers are needed");
        }
        if document.features.iter().any(|grid| grid.n() > document.examples) {
            return unsound("a distribution has more numbers than there are examples");
        }
        if document.classes.len() > CLASSES_MAX || document.classes.iter().any(|&n| n > 1 << 50) {
            return unsound("too many classes, or too many answers of one");
        }
        if document.confidence.is_some() == document.classes.is_empty() {
            return unsound("confidences and classes come together");
        }
        if document.confidence.as_ref().is_some_and(|grid| grid.points().iter().any(|x| !(0.0..=1.0).contains(x))) {
            return unsound("a confidence is not from 0 to 1");
        }
        let Some(images) = &document.images else { return Ok(Self { document, frequencies: None }) };
        let (count, dimensions) = (images.mean.len() / 2, document.features.len());
        if images.mean.is_empty() || images.mean.len() % 2 != 0 || count > FREQUENCIES_MAX || dimensions == 0 {
            return unsound("the mean image has no, odd or too many numbers");
        }
        // Images have length 1: no mean or trace is larger.
        let numbers_fit = images.mean.iter().all(|x| x.abs() <= 1.0) && images.width >= 1e-6 && images.width <= 1e9;
        if !numbers_fit || images.traces.iter().any(|x| !(-1e-9..=1.0 + 1e-9).contains(x)) {
            return unsound("the mean image is none of cosines and sines");
        }
        let frequencies = Frequencies::draw(images.seed, dimensions, count, images.width);
        Ok(Self { frequencies: Some(frequencies), document })
    }
}

impl From<Reference> for Document {
    fn from(reference: Reference) -> Self {
        reference.document
    }
}

/// Takes a model's examples, one by one, and makes the reference of them.
#[derive(Debug)]
pub struct Builder {
    settings: Settings,
    sketch: Sketch,
    random: Random,
    rows: Vec<Row>,
    usable: u64,
    refused: u64,
}

#[derive(Debug)]
struct Row {
    numbers: Vec<f32>,
    answer: Option<Answer>,
    right: Option<bool>,
}

impl Builder {
    /// A builder that has seen nothing.
    pub fn new(settings: Settings) -> Result<Self, ReferenceError> {
        let too_many = |what, value, max| Err(ReferenceError::Settings { what, value, max });
        if settings.classes > CLASSES_MAX {
            return too_many("the number of classes", settings.classes, CLASSES_MAX);
        }
        if settings.frequencies > FREQUENCIES_MAX {
            return too_many("the number of frequencies", settings.frequencies, FREQUENCIES_MAX);
        }
        let sketch = Sketch::new(settings.features, settings.numbers, settings.seed)?;
        let random = Random::new(settings.seed ^ 0x5EED);
        Ok(Self { settings, sketch, random, rows: Vec::new(), usable: 0, refused: 0 })
    }

    /// Takes one example; one that can't be used is counted and left out.
    pub fn push(&mut self, example: &Example<'_>) {
        if !usable(example, &self.sketch, self.settings.classes) {
            self.refused += 1;
            return;
        }
        self.usable += 1;
        let place = if self.rows.len() < EXAMPLES_MAX {
            self.rows.len()
        } else {
            // Every example stays with the same chance (Vitter, 1985).
            self.random.below(usize::try_from(self.usable).unwrap_or(usize::MAX))
        };
        if place >= EXAMPLES_MAX {
            return;
        }
        let mut numbers = vec![0.0; self.sketch.len()];
        self.sketch.write(example.features, &mut numbers);
        let row = Row { numbers, answer: example.answer, right: example.right };
        if place == self.rows.len() { self.rows.push(row) } else { self.rows[place] = row }
    }

    /// Examples that were refused.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Makes the reference.
    pub fn finish(self) -> Result<Reference, ReferenceError> {
        let Self { settings, sketch, mut rows, usable, refused, .. } = self;
        if rows.len() < 2 {
            return Err(ReferenceError::TooFew { usable, refused });
        }
        let grid = |mut column: Vec<f64>| Grid::of(&mut column, settings.points);
        let features = (0..sketch.len())
            .map(|i| grid(rows.iter().map(|row| f64::from(row.numbers[i])).collect()))
            .collect::<Result<Vec<_>, _>>()?;
        let answers: Vec<Answer> = rows.iter().filter_map(|row| row.answer).collect();
        let mut classes = vec![0u64; settings.classes];
        for answer in &answers {
            classes[answer.class] += 1;
        }
        let confidence = match classes.is_empty() {
            true => None,
            false => Some(grid(answers.iter().map(|answer| answer.confidence).collect())?),
        };
        let mut labelled: Vec<(f64, bool)> =
            rows.iter().filter_map(|row| Some((row.answer?.confidence, row.right?))).collect();
        let calibration = match labelled.is_empty() {
            true => None,
            false => Some(Calibration::learn(&mut labelled)?),
        };
        for row in &mut rows {
            standardise(&features, &mut row.numbers);
        }
        let images = (settings.frequencies > 0 && !sketch.is_empty()).then(|| images(&rows, &settings, sketch.len()));
        Reference::try_from(Document {
            version: VERSION,
            model: settings.model,
            source: settings.source,
            examples: rows.len() as u64,
            sketch,
            features,
            confidence,
            classes,
            images,
            calibration,
        })
    }
}

/// Whether an example fits a reference: numbers finite, as many as there must
/// be, and an answer exactly where there are classes.
pub(super) fn usable(example: &Example<'_>, sketch: &Sketch, classes: usize) -> bool {
    let answer_fits = match example.answer {
        None => classes == 0,
        Some(Answer { class, confidence }) => class < classes && (0.0..=1.0).contains(&confidence),
    };
    // A sketch adds up to 2^20 of these and stays finite.
    let finite = |x: &f32| x.abs() <= 1e30;
    answer_fits && example.features.len() == sketch.inputs() && example.features.iter().all(finite)
}

fn images(rows: &[Row], settings: &Settings, dimensions: usize) -> Images {
    // Rows come as the data did, perhaps by class: a median of the first would
    // be one of that class.
    let step = rows.len().div_ceil(IMAGES);
    let some: Vec<&Row> = rows.iter().step_by(step).collect();
    let spread: Vec<Vec<f64>> = some
        .iter()
        .step_by(some.len().div_ceil(400))
        .map(|row| row.numbers.iter().map(|&x| f64::from(x)).collect())
        .collect();
    let width = mmd::median_width(&spread).clamp(1e-6, 1e9);
    let seed = settings.seed ^ 0xF0F0;
    let frequencies = Frequencies::draw(seed, dimensions, settings.frequencies, width);
    let mut mean = vec![0.0; frequencies.len()];
    let n = rows.len() as f64;
    for row in rows {
        frequencies.image(&row.numbers, |i, x| mean[i] += x / n);
    }
    let images: Vec<Vec<f64>> = some
        .iter()
        .map(|row| {
            let mut image = vec![0.0; frequencies.len()];
            frequencies.image(&row.numbers, |i, x| image[i] = x);
            image
        })
        .collect();
    let traces = mmd::traces(&images, frequencies.len());
    Images { seed, width, mean, traces }
}
