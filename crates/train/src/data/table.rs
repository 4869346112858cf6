//! Tables: which column is what, and CSV.

use std::path::{Path, PathBuf};

use csv::{ReaderBuilder, StringRecord};
use tierline_graph::{Elements, Tensor};

use super::error::DataError;
use super::files;
use super::targets::{Labels, Part, TargetOptions};

/// Columns that are the label when none is stated.
const USUAL_LABELS: &[&str] = &["label", "labels", "class", "target", "y"];

/// A column, by name or by index from 0.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
pub enum Column {
    /// By index.
    Index(usize),
    /// By name.
    Name(String),
}

/// Comma-separated values: numbers, a label, perhaps a user.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Csv {
    /// The file.
    pub path: PathBuf,
    /// A file of the split `test`; the other is `train` then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<PathBuf>,
    /// Whether the first row names the columns.
    #[serde(default = "yes")]
    pub header: bool,
    /// What stands between cells: one ASCII character.
    #[serde(default = "comma")]
    pub delimiter: char,
    /// The column of targets. Left out, it is the one named `label`, `labels`,
    /// `class`, `target` or `y`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<Column>,
    /// The column that says whose an example is; no feature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Column>,
    /// Columns that are no features.
    #[serde(default)]
    pub drop: Vec<Column>,
    /// How labels are taken.
    #[serde(default)]
    pub targets: TargetOptions,
}

fn yes() -> bool {
    true
}

fn comma() -> char {
    ','
}

/// What a column is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Feature,
    Label,
    Group,
    Dropped,
}

/// The role of each column; the rest are features.
pub(super) fn roles(
    path: &Path,
    names: &[String],
    label: Option<&Column>,
    group: Option<&Column>,
    drop: &[Column],
) -> Result<Vec<Role>, DataError> {
    let missing = |name: String| DataError::Missing {
        path: path.into(),
        what: "column",
        name,
        available: if names.is_empty() { "none".to_owned() } else { names.join(", ") },
    };
    let find = |column: &Column| match column {
        Column::Index(index) if *index < names.len() => Ok(*index),
        Column::Index(index) => Err(missing(index.to_string())),
        Column::Name(name) => names.iter().position(|n| n == name).ok_or_else(|| missing(name.clone())),
    };
    let is_dropped = |at: usize| {
        drop.iter().any(|column| match column {
            Column::Index(index) => *index == at,
            Column::Name(name) => *name == names[at],
        })
    };
    // The second of two could be the label once more, among the features.
    let twice = |at: &usize| !names[*at].is_empty() && names[..*at].contains(&names[*at]) && !is_dropped(*at);
    if let Some(at) = (0..names.len()).find(twice) {
        let count = names.iter().filter(|name| **name == names[at]).count();
        return Err(DataError::Twice { path: path.into(), name: names[at].clone(), count });
    }
    let label = match label {
        Some(label) => find(label)?,
        None => {
            let usual = |name: &String| USUAL_LABELS.contains(&name.to_lowercase().as_str());
            let at = names.iter().position(usual).ok_or_else(|| missing("label (state which one it is)".to_owned()))?;
            if let Some(other) = names[at + 1..].iter().find(|name| usual(name)) {
                let reason = format!("both `{}` and `{other}` could be the label; state which one", names[at]);
                return Err(DataError::Option { option: "label", reason });
            }
            at
        }
    };
    let mut roles = vec![Role::Feature; names.len()];
    for column in drop {
        find(column)?;
    }
    (0..names.len()).filter(|at| is_dropped(*at)).for_each(|at| roles[at] = Role::Dropped);
    if let Some(group) = group {
        roles[find(group)?] = Role::Group;
    }
    roles[label] = Role::Label;
    if !roles.contains(&Role::Feature) {
        return Err(DataError::Empty { path: path.into(), hint: "every column is a label, a group or dropped" });
    }
    Ok(roles)
}

impl Csv {
    pub(super) fn read(&self) -> Result<Vec<Part>, DataError> {
        match &self.test {
            None => Ok(vec![self.part("", &self.path)?]),
            Some(test) => Ok(vec![self.part("train", &self.path)?, self.part("test", test)?]),
        }
    }

    fn part(&self, split: &'static str, path: &Path) -> Result<Part, DataError> {
        let bytes = files::read(path)?;
        let delimiter = u8::try_from(self.delimiter).ok().filter(u8::is_ascii).ok_or_else(|| {
            let reason = format!("`{}` is no ASCII character; files use `,`, `;` or a tab", self.delimiter);
            DataError::Option { option: "delimiter", reason }
        })?;
        let broken = |e: csv::Error| DataError::Format { path: path.into(), format: "CSV", reason: e.to_string() };
        // Flexible: rows of other lengths are refused below, by our own error.
        let mut reader =
            ReaderBuilder::new().has_headers(false).flexible(true).delimiter(delimiter).from_reader(&bytes[..]);
        let mut record = StringRecord::new();
        let nothing = || DataError::Empty { path: path.into(), hint: "the file has no rows below its header" };
        if !reader.read_record(&mut record).map_err(broken)? {
            return Err(nothing());
        }
        let names = self.names(path, &record)?;
        let roles = roles(path, &names, self.label.as_ref(), self.group.as_ref(), &self.drop)?;
        let (mut features, mut labels, mut groups, mut example) = (Vec::new(), Vec::new(), Vec::new(), 0);
        let mut more = !self.header || reader.read_record(&mut record).map_err(broken)?;
        while more {
            if record.len() != names.len() {
                let (expected, actual) = (names.len(), record.len());
                let what = "the row".to_owned();
                return Err(DataError::Ragged { path: path.into(), what, example, expected, actual });
            }
            for ((cell, role), name) in record.iter().map(str::trim).zip(&roles).zip(&names) {
                match role {
                    Role::Feature => features.push(feature(path, example, name, cell)?),
                    Role::Label if cell.is_empty() => return Err(cell_error(path, example, name, cell)),
                    Role::Label => labels.push(cell.to_owned()),
                    Role::Group => groups.push(cell.to_owned()),
                    Role::Dropped => {}
                }
            }
            example += 1;
            more = reader.read_record(&mut record).map_err(broken)?;
        }
        if example == 0 {
            return Err(nothing());
        }
        let per = features.len() / example;
        let named = roles.iter().zip(names).filter(|(role, _)| **role == Role::Feature);
        Ok(Part {
            path: path.into(),
            split,
            features: Tensor::new([example, per], Elements::F32(features))?,
            labels: Labels::from_texts(labels),
            groups: self.group.is_some().then_some(groups),
            columns: named.map(|(_, name)| name).collect(),
            classes: Vec::new(),
            notes: Vec::new(),
        })
    }

    /// Names of the columns: of the header, or their indices.
    fn names(&self, path: &Path, first: &StringRecord) -> Result<Vec<String>, DataError> {
        let indices: Vec<String> = (0..first.len()).map(|index| index.to_string()).collect();
        if !self.header {
            return Ok(indices);
        }
        let names: Vec<String> = first.iter().map(|name| name.trim().to_owned()).collect();
        // Numbers alone are an example, which would be lost; but for the
        // indices that data frames write for want of names.
        if names != indices && names.iter().all(|name| name.parse::<f64>().is_ok()) {
            let reason = format!("the first row of `{}` holds only numbers; set header = false", path.display());
            return Err(DataError::Option { option: "header", reason });
        }
        Ok(names)
    }
}

/// A feature: finite, as f32.
fn feature(path: &Path, example: usize, column: &str, cell: &str) -> Result<f32, DataError> {
    let value: f64 = cell.parse().map_err(|_| cell_error(path, example, column, cell))?;
    if !(value as f32).is_finite() {
        let column = format!("column `{column}`");
        return Err(DataError::NotFinite { path: path.into(), example, column, value });
    }
    Ok(value as f32)
}

fn cell_error(path: &Path, example: usize, column: &str, text: &str) -> DataError {
    /// Characters of a cell that an error repeats.
    const SHOWN_MAX: usize = 40;
    let text = text.chars().take(SHOWN_MAX).collect();
    DataError::Cell { path: path.into(), example, column: column.to_owned(), text }
}
