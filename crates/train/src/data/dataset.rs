//! A data set in memory: examples, their targets, named splits.
//!
//! Parts of a data set are views: they share the elements and hold only which
//! examples are theirs. Start at [`Dataset`].

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use tierline_graph::{DataType, Elements, Tensor};

use super::elements::{check_finite, number, take};
use super::error::DataError;
use super::random::generator;

/// Examples and their targets, in memory, checked: at least one example,
/// every number finite, every class in range.
///
/// Features keep the type they are stored in, so a picture takes a byte per
/// pixel and channel; [`Batches`](super::Batches) makes f32 of them. A clone,
/// a [`subset`](Self::subset) or a [`split`](Self::split) shares the elements.
#[derive(Debug, Clone)]
pub struct Dataset {
    name: String,
    store: Arc<Store>,
    /// Places in the store; all of them in order when `None`.
    rows: Option<Arc<[usize]>>,
    /// Which classes they are for a job; those of the store when `None`.
    numbering: Option<Arc<Numbering>>,
}

#[derive(Debug)]
pub(super) struct Store {
    /// `[n, ...]`.
    pub features: Tensor,
    pub targets: Targets,
    pub groups: Option<Groups>,
    pub splits: Vec<(String, Range<usize>)>,
    /// Names of the features, when each has one.
    pub columns: Vec<String>,
    /// What isn't in it though it lay beside the rest.
    pub notes: Vec<String>,
}

/// Numbers that a job gives to the classes of a store.
#[derive(Debug)]
struct Numbering {
    /// Of each class in the store; of those that the job doesn't know there is
    /// no example.
    of: Vec<u32>,
    /// The job's.
    names: Vec<String>,
}

/// What becomes of examples whose class a job doesn't know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Others {
    /// The data set is refused.
    #[default]
    Refuse,
    /// They are left out, as long as others are left.
    Drop,
}

/// Names that a message repeats.
const LISTED_MAX: usize = 12;

/// What a model should give for each example.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Targets {
    /// One class of `count` per example.
    Classes {
        /// The class of each example, below `count`.
        classes: Vec<u32>,
        /// Number of classes, those without an example included.
        count: usize,
        /// A name per class, or empty.
        names: Vec<String>,
    },
    /// Numbers, f32 of `[n, ...]`.
    Values(Tensor),
}

/// Who or what each example came from, as a user or a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Groups {
    /// Distinct names, sorted.
    pub names: Vec<String>,
    /// Of each example, an index into `names`.
    pub of: Vec<u32>,
}

impl Groups {
    /// Groups of equal names.
    #[must_use]
    pub fn new(of_each: &[String]) -> Self {
        let mut names = of_each.to_vec();
        names.sort_unstable();
        names.dedup();
        let of = of_each.iter().map(|name| names.binary_search(name).unwrap_or(0) as u32).collect();
        Self { names, of }
    }
}

impl Targets {
    fn len(&self) -> usize {
        match self {
            Self::Classes { classes, .. } => classes.len(),
            Self::Values(values) => values.shape().first().copied().unwrap_or(0),
        }
    }
}

impl Dataset {
    /// A data set of `[n, ...]` features and n targets.
    ///
    /// # Errors
    /// When it is empty, the lengths differ, a number isn't finite, a class is
    /// out of range, or the features are strings.
    pub fn new(name: &str, features: Tensor, targets: Targets) -> Result<Self, DataError> {
        check_features(Path::new(name), &features, &[])?;
        if let Targets::Values(values) = &targets {
            if values.as_f32().is_none() {
                return Err(DataError::Type { path: name.into(), what: "targets", dtype: values.dtype() });
            }
            check_finite(Path::new(name), values, &[])?;
        }
        if let Targets::Classes { classes, count, names } = &targets {
            if let Some(example) = classes.iter().position(|&class| class as usize >= *count) {
                let reason = format!("beyond the {count} classes there are");
                let value = classes[example].to_string();
                return Err(DataError::Label { path: name.into(), example, value, reason });
            }
            if !names.is_empty() && names.len() != *count {
                let reason = format!("{} names for {count} classes; give each class one", names.len());
                return Err(DataError::Option { option: "names", reason });
            }
        }
        Self::assembled(
            name,
            Store { features, targets, groups: None, splits: Vec::new(), columns: Vec::new(), notes: Vec::new() },
        )
    }

    /// Of parts that were checked one by one.
    pub(super) fn assembled(name: &str, store: Store) -> Result<Self, DataError> {
        let features = store.features.shape()[0];
        let lengths = [store.targets.len(), store.groups.as_ref().map_or(features, |groups| groups.of.len())];
        match lengths.into_iter().find(|&length| length != features) {
            Some(targets) => Err(DataError::Pairs { path: name.into(), features, targets }),
            None => Ok(Self { name: name.to_owned(), store: Arc::new(store), rows: None, numbering: None }),
        }
    }

    /// Says which group each example of the whole data set belongs to.
    ///
    /// # Errors
    /// When there isn't one per example, or this is a part of a data set that
    /// others share.
    pub fn with_groups(mut self, of_each: &[String]) -> Result<Self, DataError> {
        let examples = self.store.features.shape()[0];
        if of_each.len() != examples {
            return Err(DataError::Pairs { path: self.name.into(), features: examples, targets: of_each.len() });
        }
        let store = Arc::get_mut(&mut self.store).ok_or_else(|| DataError::Option {
            option: "groups",
            reason: "the elements are shared; state groups before taking parts".to_owned(),
        })?;
        store.groups = Some(Groups::new(of_each));
        Ok(self)
    }

    /// The same under another name, as errors and people call it.
    #[must_use]
    pub fn with_name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Its name: of the file or folder, unless it was given another.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of examples; never 0.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.as_ref().map_or(self.store.features.shape()[0], |rows| rows.len())
    }

    /// Whether there are no examples: never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shape of one example: `[channels, height, width]` for pictures.
    #[must_use]
    pub fn example_shape(&self) -> &[usize] {
        &self.store.features.shape()[1..]
    }

    /// Type in which features are stored.
    #[must_use]
    pub fn dtype(&self) -> DataType {
        self.store.features.dtype()
    }

    /// Names of the features, in their order; empty when they have none.
    #[must_use]
    pub fn columns(&self) -> &[String] {
        &self.store.columns
    }

    /// What was found beside the examples and is none, for people.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.store.notes
    }

    /// Number of classes; `None` when targets are numbers.
    #[must_use]
    pub fn class_count(&self) -> Option<usize> {
        match (&self.store.targets, &self.numbering) {
            (Targets::Values(_), _) => None,
            (Targets::Classes { .. }, Some(numbering)) => Some(numbering.names.len()),
            (Targets::Classes { count, .. }, None) => Some(*count),
        }
    }

    /// A name per class, when they are known.
    #[must_use]
    pub fn class_names(&self) -> Option<&[String]> {
        match (&self.store.targets, &self.numbering) {
            (Targets::Classes { .. }, Some(numbering)) => Some(&numbering.names),
            (Targets::Classes { names, .. }, None) if !names.is_empty() => Some(names),
            _ => None,
        }
    }

    /// What people call a class: its name, or its index.
    #[must_use]
    pub fn class_name(&self, class: usize) -> String {
        self.class_names().and_then(|names| names.get(class).cloned()).unwrap_or_else(|| class.to_string())
    }

    /// The class of each example; `None` when targets are numbers.
    #[must_use]
    pub fn classes(&self) -> Option<Vec<usize>> {
        match &self.store.targets {
            Targets::Classes { classes, .. } => {
                Some((0..self.len()).map(|i| self.number(classes[self.row(i)]) as usize).collect())
            }
            Targets::Values(_) => None,
        }
    }

    /// Examples of each class; `None` when targets are numbers.
    #[must_use]
    pub fn counts(&self) -> Option<Vec<usize>> {
        let mut counts = vec![0; self.class_count()?];
        self.classes()?.into_iter().for_each(|class| counts[class] += 1);
        Some(counts)
    }

    /// The group of each example, and the groups' names.
    #[must_use]
    pub fn groups(&self) -> Option<(Vec<usize>, &[String])> {
        let groups = self.store.groups.as_ref()?;
        Some(((0..self.len()).map(|i| groups.of[self.row(i)] as usize).collect(), &groups.names))
    }

    /// One feature of every example, by its place in the flattened example.
    ///
    /// # Errors
    /// When examples have fewer features.
    pub fn feature(&self, feature: usize) -> Result<Vec<f64>, DataError> {
        let per = self.example_len();
        if feature >= per {
            let available = if per == 0 { "none".to_owned() } else { format!("0 to {}", per - 1) };
            let name = feature.to_string();
            return Err(DataError::Missing { path: self.name.clone().into(), what: "feature", name, available });
        }
        let elements = self.store.features.elements();
        Ok((0..self.len()).map(|i| number(elements, self.row(i) * per + feature)).collect())
    }

    /// The smallest and the largest number among all features.
    #[must_use]
    pub fn range(&self) -> [f64; 2] {
        let (per, elements) = (self.example_len(), self.store.features.elements());
        let places = (0..self.len()).flat_map(|example| {
            let first = self.row(example) * per;
            first..first + per
        });
        places
            .map(|place| number(elements, place))
            .fold([f64::INFINITY, f64::NEG_INFINITY], |[low, high], value| [low.min(value), high.max(value)])
    }

    /// Features of these examples, `[examples, ...]` in the stored type.
    ///
    /// # Errors
    /// When an example isn't there.
    pub fn features(&self, examples: &[usize]) -> Result<Tensor, DataError> {
        let rows = self.places(examples)?;
        let shape = [&[rows.len()], self.example_shape()].concat();
        Ok(Tensor::new(shape, take(self.store.features.elements(), self.example_len(), &rows)?)?)
    }

    /// Targets of these examples: i64 classes `[examples]`, or f32
    /// `[examples, ...]`.
    ///
    /// # Errors
    /// When an example isn't there.
    pub fn targets(&self, examples: &[usize]) -> Result<Tensor, DataError> {
        let rows = self.places(examples)?;
        Ok(match &self.store.targets {
            Targets::Classes { classes, .. } => {
                let classes = rows.iter().map(|&row| i64::from(self.number(classes[row]))).collect();
                Tensor::new([rows.len()], Elements::I64(classes))?
            }
            Targets::Values(values) => {
                let per = values.shape()[1..].iter().product();
                let shape = [&[rows.len()], &values.shape()[1..]].concat();
                Tensor::new(shape, take(values.elements(), per, &rows)?)?
            }
        })
    }

    /// The same examples with other classes: `of` gets each class and their
    /// number.
    ///
    /// # Errors
    /// When targets are numbers, or a class is out of range.
    pub fn relabelled(&self, of: impl Fn(usize, usize) -> usize) -> Result<Self, DataError> {
        let name = self.name().to_owned();
        let (Some(classes), Some(count)) = (self.classes(), self.class_count()) else {
            return Err(DataError::NoClasses { name, what: "another labelling" });
        };
        let rows: Vec<usize> = (0..self.len()).collect();
        let classes = classes.into_iter().map(|class| of(class, count) as u32).collect();
        let names = self.class_names().unwrap_or_default().to_vec();
        Self::new(&name, self.features(&rows)?, Targets::Classes { classes, count, names })
    }

    /// The same examples with the numbers that a job gives to classes of these
    /// names; a class that has no example here keeps its number. Classes
    /// without names keep theirs, unless the job's names are numbers.
    ///
    /// # Errors
    /// [`DataError::Unnamed`] when an example is of a class that the job
    /// doesn't know, unless such examples are dropped and others are left.
    pub fn numbered(&self, names: &[String], others: Others) -> Result<Self, DataError> {
        let Targets::Classes { classes, count, names: own } = &self.store.targets else { return Ok(self.clone()) };
        if names.is_empty() || own == names || own.is_empty() && !names.iter().any(|name| is_number(name)) {
            return Ok(Self { numbering: None, ..self.clone() });
        }
        let index: HashMap<&str, u32> = names.iter().map(String::as_str).zip(0..).collect();
        let name = |class: usize| own.get(class).cloned().unwrap_or_else(|| class.to_string());
        let numbers: Vec<Option<u32>> = (0..*count).map(|class| index.get(name(class).as_str()).copied()).collect();
        let known = |example: &usize| numbers[classes[self.row(*example)] as usize].is_some();
        let left: Vec<usize> = (0..self.len()).filter(known).collect();
        let unknown = (left.len() < self.len()).then(|| (0..self.len()).find(|example| !known(example))).flatten();
        let part = match unknown {
            None => self.clone(),
            Some(_) if others == Others::Drop && !left.is_empty() => self.subset(&left)?,
            Some(example) => {
                let (class, known) = (name(classes[self.row(example)] as usize), list(names));
                return Err(DataError::Unnamed { name: self.name.clone(), class, known });
            }
        };
        let of = numbers.into_iter().map(|number| number.unwrap_or(0)).collect();
        Ok(Self { numbering: Some(Arc::new(Numbering { of, names: names.to_vec() })), ..part })
    }

    /// The job's number of a class of the store.
    fn number(&self, class: u32) -> u32 {
        self.numbering.as_ref().map_or(class, |numbering| numbering.of[class as usize])
    }

    /// Only these examples, in this order; one may come more than once.
    ///
    /// # Errors
    /// When there are none, or one isn't there.
    pub fn subset(&self, examples: &[usize]) -> Result<Self, DataError> {
        if examples.is_empty() {
            return Err(DataError::Empty { path: self.name.clone().into(), hint: "name at least one example" });
        }
        let rows = self.places(examples)?;
        Ok(Self { rows: Some(rows.into()), ..self.clone() })
    }

    /// Two parts drawn at random, the first with `fraction` of the examples.
    ///
    /// # Errors
    /// When the fraction isn't between 0 and 1, or leaves a part empty.
    pub fn split(&self, fraction: f64, seed: u64) -> Result<(Self, Self), DataError> {
        let first = (self.len() as f64 * fraction).round() as usize;
        if !(fraction > 0.0 && fraction < 1.0) || first == 0 || first >= self.len() {
            let reason = format!(
                "{fraction} of {} examples leaves a part empty; give a fraction between 0 and 1, or more examples",
                self.len()
            );
            return Err(DataError::Option { option: "fraction", reason });
        }
        let mut order: Vec<usize> = (0..self.len()).collect();
        generator(&[seed]).shuffle(&mut order);
        Ok((self.subset(&order[..first])?, self.subset(&order[first..])?))
    }

    /// Names of the splits that the source has, as in `train`, `test`.
    #[must_use]
    pub fn splits(&self) -> Vec<&str> {
        // A part of a data set is no longer what the source split.
        let whole = self.rows.is_none();
        self.store.splits.iter().filter(|_| whole).map(|(name, _)| name.as_str()).collect()
    }

    /// The split of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn named_split(&self, name: &str) -> Result<Self, DataError> {
        let found = self.store.splits.iter().find(|(split, _)| self.rows.is_none() && split == name);
        let Some((_, range)) = found else {
            let splits = self.splits();
            let available = if splits.is_empty() { "none".to_owned() } else { splits.join(", ") };
            let path = self.name.clone().into();
            return Err(DataError::Missing { path, what: "split", name: name.to_owned(), available });
        };
        self.subset(&range.clone().collect::<Vec<_>>())
    }

    /// `[channels, height, width]` when examples are pictures.
    ///
    /// # Errors
    /// When they aren't u8 of that shape with 1 or 3 channels.
    pub fn picture_shape(&self) -> Result<[usize; 3], DataError> {
        match *self.example_shape() {
            [channels @ (1 | 3), height, width] if self.dtype() == DataType::U8 => Ok([channels, height, width]),
            _ => Err(DataError::NotPictures {
                name: self.name.clone(),
                shape: self.example_shape().to_vec(),
                dtype: self.dtype(),
            }),
        }
    }

    /// Elements of one example.
    pub(super) fn example_len(&self) -> usize {
        self.example_shape().iter().product()
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// Where an example is in the store.
    pub(super) fn row(&self, example: usize) -> usize {
        self.rows.as_ref().map_or(example, |rows| rows[example])
    }

    fn places(&self, examples: &[usize]) -> Result<Vec<usize>, DataError> {
        match examples.iter().find(|&&example| example >= self.len()) {
            Some(example) => Err(DataError::Missing {
                path: self.name.clone().into(),
                what: "example",
                name: example.to_string(),
                available: format!("0 to {}", self.len() - 1),
            }),
            None => Ok(examples.iter().map(|&example| self.row(example)).collect()),
        }
    }
}

/// Whether a class of this name could be a label that is a number.
fn is_number(name: &str) -> bool {
    name.parse::<u32>().is_ok_and(|number| number.to_string() == name)
}

/// Some names, for a message.
pub(super) fn list(names: &[String]) -> String {
    let more = names.len().saturating_sub(LISTED_MAX);
    let shown = names[..names.len() - more].join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

/// One list of names for data sets that are learned from and looked at
/// together: that of a set which has all of them; else all of them, sorted if
/// each set's are, or the first set's and behind them what the others add.
/// Empty when no set names its classes.
#[must_use]
pub fn names_together<'d>(sets: impl IntoIterator<Item = &'d [String]>) -> Vec<String> {
    let sets: Vec<&[String]> = sets.into_iter().filter(|names| !names.is_empty()).collect();
    let all: BTreeSet<&String> = sets.iter().copied().flatten().collect();
    if let Some(whole) = sets.iter().find(|names| names.len() == all.len()) {
        return whole.to_vec();
    }
    if sets.iter().all(|names| names.is_sorted()) {
        return all.into_iter().cloned().collect();
    }
    let mut names = sets.first().map_or_else(Vec::new, |names| names.to_vec());
    let added = all.into_iter().filter(|name| !sets[0].contains(name)).cloned();
    names.extend(added.collect::<Vec<_>>());
    names
}

/// Numbers, at least one example of at least one element, all finite.
pub(super) fn check_features(path: &Path, features: &Tensor, columns: &[String]) -> Result<(), DataError> {
    if features.dtype() == DataType::String {
        return Err(DataError::Type { path: path.into(), what: "features", dtype: DataType::String });
    }
    if features.is_empty() || features.shape().is_empty() {
        return Err(DataError::Empty {
            path: path.into(),
            hint: "features need a shape [examples, ...] without zeros",
        });
    }
    check_finite(path, features, columns)
}
