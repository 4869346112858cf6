//! From a column of numbers or texts to classes or values.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tierline_graph::{DataType, Elements, Tensor};

use super::dataset::{Dataset, Groups, Store, Targets, check_features};
use super::elements::{append, check_finite, number, to_f32};
use super::error::DataError;

/// More classes than real data sets have; a larger label is a value, or no
/// label at all, and would cost memory per class everywhere.
pub const CLASSES_MAX: usize = 65_536;

/// How targets are to be taken.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TargetOptions {
    /// Classes or values. Left out, whole-number types and texts are classes,
    /// floats are values.
    pub kind: Option<TargetKind>,
    /// Number of classes, when more than the labels show; labels beyond are
    /// refused.
    pub classes: Option<usize>,
    /// Names of the classes, by index. Of text labels, these are the only ones.
    pub names: Vec<String>,
}

/// What a target is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum TargetKind {
    /// One class of several.
    Classes,
    /// Numbers.
    Values,
}

/// What a reader found for one split.
pub(super) struct Part {
    /// The file, for errors.
    pub path: PathBuf,
    /// Empty when the source has no splits.
    pub split: &'static str,
    /// `[n, ...]`.
    pub features: Tensor,
    pub labels: Labels,
    pub groups: Option<Vec<String>>,
    /// Names of the features, or empty.
    pub columns: Vec<String>,
    /// Classes there are by name, those without an example included.
    pub classes: Vec<String>,
    /// What was left out, for people.
    pub notes: Vec<String>,
}

/// Labels as a file has them.
pub(super) enum Labels {
    Numbers(Tensor),
    Texts(Vec<String>),
}

impl Labels {
    /// The narrowest reading that all texts have: whole numbers, numbers, texts.
    pub fn from_texts(texts: Vec<String>) -> Self {
        let whole: Option<Vec<i64>> = texts.iter().map(|text| text.parse().ok()).collect();
        if let Some(tensor) = whole.and_then(|v| Tensor::new([v.len()], Elements::I64(v)).ok()) {
            return Self::Numbers(tensor);
        }
        let floats: Option<Vec<f64>> = texts.iter().map(|text| text.parse().ok()).collect();
        match floats.and_then(|v| Tensor::new([v.len()], Elements::F64(v)).ok()) {
            Some(tensor) => Self::Numbers(tensor),
            None => Self::Texts(texts),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Numbers(tensor) => tensor.shape().first().copied().unwrap_or(0),
            Self::Texts(texts) => texts.len(),
        }
    }
}

impl From<Tensor> for Labels {
    fn from(tensor: Tensor) -> Self {
        match tensor.elements() {
            Elements::String(texts) => Self::Texts(texts.clone()),
            _ => Self::Numbers(tensor),
        }
    }
}

/// One data set of all parts, checked.
pub(super) fn assemble(name: &str, parts: Vec<Part>, options: &TargetOptions) -> Result<Dataset, DataError> {
    for part in &parts {
        let path = &part.path;
        check_features(path, &part.features, &part.columns)?;
        let (features, targets) = (part.features.shape()[0], part.labels.len());
        if features != targets {
            return Err(DataError::Pairs { path: path.clone(), features, targets });
        }
    }
    check_agreement(&parts)?;
    let targets = match kind(&parts, options) {
        TargetKind::Classes => classes(&parts, options)?,
        TargetKind::Values => values(&parts)?,
    };
    let (mut splits, mut groups, mut start) = (Vec::new(), Some(Vec::new()), 0);
    let mut joined: Option<(Vec<usize>, Elements)> = None;
    let columns = parts.first().map(|part| part.columns.clone()).unwrap_or_default();
    let mut notes = Vec::new();
    for part in parts {
        notes.extend(part.notes);
        let (shape, elements) = part.features.into_parts();
        let end = start + shape[0];
        splits.push((part.split.to_owned(), start..end));
        start = end;
        groups = groups.zip(part.groups).map(|(mut all, more)| {
            all.extend(more);
            all
        });
        match &mut joined {
            None => joined = Some((shape, elements)),
            Some((all, into)) => {
                all[0] = end;
                append(into, elements);
            }
        }
    }
    let (shape, elements) =
        joined.ok_or_else(|| DataError::Empty { path: name.into(), hint: "name a file that holds some" })?;
    splits.retain(|(split, _)| !split.is_empty());
    let groups = groups.map(|of_each| Groups::new(&of_each));
    Dataset::assembled(name, Store { features: Tensor::new(shape, elements)?, targets, groups, splits, columns, notes })
}

fn check_agreement(parts: &[Part]) -> Result<(), DataError> {
    let describe =
        |part: &Part| format!("{} examples of shape {:?}", part.features.dtype(), &part.features.shape()[1..]);
    let Some((first, rest)) = parts.split_first() else { return Ok(()) };
    match rest.iter().find(|part| describe(part) != describe(first)) {
        Some(part) => Err(DataError::Splits {
            path: part.path.clone(),
            split: part.split.to_owned(),
            expected: describe(first),
            actual: describe(part),
        }),
        None => Ok(()),
    }
}

fn kind(parts: &[Part], options: &TargetOptions) -> TargetKind {
    let float = |part: &Part| matches!(&part.labels, Labels::Numbers(tensor) if tensor.dtype().is_float());
    options.kind.unwrap_or(if parts.iter().any(float) { TargetKind::Values } else { TargetKind::Classes })
}

fn classes(parts: &[Part], options: &TargetOptions) -> Result<Targets, DataError> {
    let mut names = options.names.clone();
    if names.is_empty() {
        let texts = parts.iter().flat_map(|part| match &part.labels {
            Labels::Texts(texts) => texts.as_slice(),
            Labels::Numbers(_) => &[],
        });
        let known = parts.iter().flat_map(|part| &part.classes);
        names = texts.chain(known).collect::<BTreeSet<_>>().into_iter().cloned().collect();
        if let Some(name) = names.iter().find(|name| ["nan", "NaN"].contains(&name.as_str())) {
            let part = parts.iter().find(|part| matches!(&part.labels, Labels::Texts(texts) if texts.contains(name)));
            let path = part.map_or_else(PathBuf::new, |part| part.path.clone());
            let reason = "which data frames write for a label that is missing; remove such examples, or state the \
                          names of all classes"
                .to_owned();
            let example = part.map_or(0, |part| match &part.labels {
                Labels::Texts(texts) => texts.iter().position(|text| text == name).unwrap_or(0),
                Labels::Numbers(_) => 0,
            });
            return Err(DataError::Label { path, example, value: format!("`{name}`"), reason });
        }
    } else if let Some((part, class)) =
        parts.iter().find_map(|part| Some((part, part.classes.iter().find(|class| !names.contains(class))?)))
    {
        let what = format!("has the class `{class}`, which is not among the names given; add it to targets.names");
        return Err(DataError::Stray { path: part.path.clone(), what });
    }
    let stated = options.classes.or((!names.is_empty()).then_some(names.len()));
    if let Some(count) = stated.filter(|count| *count > CLASSES_MAX || (!names.is_empty() && *count != names.len())) {
        let reason = format!("{count} classes with {} names; at most {CLASSES_MAX}, each with a name", names.len());
        return Err(DataError::Option { option: "classes", reason });
    }
    let mut classes = Vec::new();
    for part in parts {
        match &part.labels {
            Labels::Numbers(tensor) => classes.extend(whole(&part.path, tensor, stated)?),
            Labels::Texts(texts) => classes.extend(named(&part.path, texts, &names)?),
        }
    }
    let largest = classes.iter().max().map_or(0, |&class| class as usize + 1);
    Ok(Targets::Classes { classes, count: stated.unwrap_or(largest), names })
}

fn whole(path: &Path, tensor: &Tensor, stated: Option<usize>) -> Result<Vec<u32>, DataError> {
    // One column is what Keras and scikit-learn write for a list of labels.
    if tensor.shape()[1..].iter().product::<usize>() != 1 {
        let reason =
            format!("targets of shape {:?} aren't one class per example; take the argmax first", tensor.shape());
        return Err(DataError::Option { option: "targets", reason });
    }
    let max = stated.unwrap_or(CLASSES_MAX);
    (0..tensor.len())
        .map(|example| {
            let value = number(tensor.elements(), example);
            let reason = if value.fract() != 0.0 {
                "not a whole number; for numbers to predict, set targets.kind = \"values\"".to_owned()
            } else if !(0.0..max as f64).contains(&value) {
                format!("outside the classes 0 to {}; renumber the labels, or set targets.kind", max - 1)
            } else {
                return Ok(value as u32);
            };
            Err(DataError::Label { path: path.into(), example, value: value.to_string(), reason })
        })
        .collect()
}

fn named(path: &Path, texts: &[String], names: &[String]) -> Result<Vec<u32>, DataError> {
    let index: std::collections::BTreeMap<&str, u32> = names.iter().map(String::as_str).zip(0..).collect();
    let class = |(example, text): (usize, &String)| {
        index.get(text.as_str()).copied().ok_or_else(|| DataError::Label {
            path: path.into(),
            example,
            value: format!("`{text}`"),
            reason: "not among the names given; add it to targets.names, or leave those out".to_owned(),
        })
    };
    texts.iter().enumerate().map(class).collect()
}

fn values(parts: &[Part]) -> Result<Targets, DataError> {
    let (mut all, mut shape) = (Vec::new(), Vec::new());
    for part in parts {
        let Labels::Numbers(tensor) = &part.labels else {
            return Err(DataError::Type { path: part.path.clone(), what: "targets", dtype: DataType::String });
        };
        let one = tensor.shape()[1..].to_vec();
        if !shape.is_empty() && shape[1..] != one {
            return Err(DataError::Splits {
                path: part.path.clone(),
                split: part.split.to_owned(),
                expected: format!("targets of shape {:?}", &shape[1..]),
                actual: format!("targets of shape {one:?}"),
            });
        }
        let numbers = Tensor::new(tensor.shape(), Elements::F32(to_f32(tensor.elements().clone())))?;
        // Looked at as f32: a double may be finite and its f32 not.
        check_finite(&part.path, &numbers, &["the target".to_owned()])?;
        let numbers = to_f32(numbers.into_parts().1);
        shape = [vec![all.len() / one.iter().product::<usize>().max(1) + tensor.shape()[0]], one].concat();
        all.extend(numbers);
    }
    Ok(Targets::Values(Tensor::new(shape, Elements::F32(all))?))
}
