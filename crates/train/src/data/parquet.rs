//! Parquet: numeric columns, lists of numbers, or one column of pictures.

use std::path::{Path, PathBuf};

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use tierline_graph::{Elements, Tensor};

use super::error::DataError;
use super::files;
use super::pages::checked;
use super::pictures::{PictureOptions, Pictures};
use super::table::{Column, Role, roles};
use super::targets::{Labels, Part, TargetOptions};

/// A Parquet file; uncompressed, or with Snappy or Zstandard.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parquet {
    /// The file.
    pub path: PathBuf,
    /// A file of the split `test`; the other is `train` then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<PathBuf>,
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
    /// What pictures are made into, where a column holds bytes of pictures
    /// (alone, or in a group with a field `bytes`).
    #[serde(default)]
    pub pictures: PictureOptions,
    /// How labels are taken.
    #[serde(default)]
    pub targets: TargetOptions,
}

/// What the rows give, column after column.
struct Rows<'a> {
    path: &'a Path,
    roles: Vec<Role>,
    names: Vec<String>,
    /// Numbers that each feature column gives per row.
    widths: Vec<usize>,
    numbers: Vec<f32>,
    pictures: Option<Pictures>,
    labels: Vec<String>,
    groups: Vec<String>,
    examples: usize,
}

impl Parquet {
    pub(super) fn read(&self) -> Result<Vec<Part>, DataError> {
        match &self.test {
            None => Ok(vec![self.part("", &self.path)?]),
            Some(test) => Ok(vec![self.part("train", &self.path)?, self.part("test", test)?]),
        }
    }

    fn part(&self, split: &'static str, path: &Path) -> Result<Part, DataError> {
        let broken = |e: parquet::errors::ParquetError| format_error(path, &e);
        let bytes = bytes::Bytes::from(files::read(path)?);
        let length = bytes.len() as u64;
        let file = SerializedFileReader::new(bytes).map_err(broken)?;
        let fields = file.metadata().file_metadata().schema().get_fields();
        let names: Vec<String> = fields.iter().map(|field| field.name().to_owned()).collect();
        let roles = roles(path, &names, self.label.as_ref(), self.group.as_ref(), &self.drop)?;
        let used: Vec<bool> = roles.iter().map(|role| *role != Role::Dropped).collect();
        let schema = checked(path, length, &file, &used)?;
        let (names, roles): (Vec<String>, Vec<Role>) =
            names.into_iter().zip(roles).filter(|(_, role)| *role != Role::Dropped).unzip();
        let mut rows = Rows {
            path,
            widths: vec![0; roles.len()],
            roles,
            names,
            numbers: Vec::new(),
            pictures: None,
            labels: Vec::new(),
            groups: Vec::new(),
            examples: 0,
        };
        for row in file.get_row_iter(Some(schema)).map_err(broken)? {
            rows.push(&row.map_err(broken)?, self.pictures)?;
        }
        rows.finish(split, self.group.is_some())
    }
}

pub(super) fn format_error(path: &Path, reason: &dyn std::fmt::Display) -> DataError {
    DataError::Format { path: path.into(), format: "Parquet", reason: reason.to_string() }
}

impl Rows<'_> {
    fn push(&mut self, row: &Row, options: PictureOptions) -> Result<(), DataError> {
        for (index, (_, field)) in row.get_column_iter().enumerate() {
            match self.roles.get(index) {
                Some(Role::Feature) => self.feature(index, field, options)?,
                Some(Role::Label) => self.labels.push(self.text(index, field)?),
                Some(Role::Group) => self.groups.push(self.text(index, field)?),
                Some(Role::Dropped) | None => {}
            }
        }
        self.examples += 1;
        // Labels count too: a few bytes of a file may repeat one a billion times.
        let bytes = self.numbers.len() * size_of::<f32>() + self.examples * size_of::<String>();
        files::limit(self.path, "bytes of numbers and labels", bytes as u64)
    }

    fn feature(&mut self, index: usize, field: &Field, options: PictureOptions) -> Result<(), DataError> {
        if let Some(encoded) = picture(field) {
            let place = self.path.join(format!("{}[{}]", self.names[index], self.examples));
            if self.pictures.is_none() {
                self.pictures = Some(Pictures::new(options)?);
            }
            return self.pictures.as_mut().map_or(Ok(()), |pictures| pictures.push(&place, encoded));
        }
        let before = self.numbers.len();
        match field {
            Field::ListInternal(list) => {
                list.elements().iter().try_for_each(|element| self.number(index, element))?;
            }
            scalar => self.number(index, scalar)?,
        }
        let width = self.numbers.len() - before;
        if self.examples == 0 {
            self.widths[index] = width;
        }
        if width != self.widths[index] {
            return Err(DataError::Ragged {
                path: self.path.into(),
                what: format!("column `{}`", self.names[index]),
                example: self.examples,
                expected: self.widths[index],
                actual: width,
            });
        }
        Ok(())
    }

    fn number(&mut self, index: usize, field: &Field) -> Result<(), DataError> {
        let value = number(field).ok_or_else(|| self.cell(index, field))?;
        if !(value as f32).is_finite() {
            let column = format!("column `{}`", self.names[index]);
            return Err(DataError::NotFinite { path: self.path.into(), example: self.examples, column, value });
        }
        self.numbers.push(value as f32);
        Ok(())
    }

    fn text(&self, index: usize, field: &Field) -> Result<String, DataError> {
        match field {
            Field::Str(text) => Ok(text.clone()),
            // Whole numbers stay whole, whatever their size.
            Field::Bool(truth) => Ok(u8::from(*truth).to_string()),
            Field::Long(whole) => Ok(whole.to_string()),
            Field::ULong(whole) => Ok(whole.to_string()),
            // A float says so by its point: it is a value, not a class.
            Field::Float16(_) | Field::Float(_) | Field::Double(_) => {
                number(field).map(|value| format!("{value:?}")).ok_or_else(|| self.cell(index, field))
            }
            other => number(other).map(|value| value.to_string()).ok_or_else(|| self.cell(index, other)),
        }
    }

    fn cell(&self, index: usize, field: &Field) -> DataError {
        let text = match field {
            Field::Null => "null",
            Field::Group(_) => "a group",
            Field::ListInternal(_) => "a list",
            Field::MapInternal(_) => "a map",
            Field::Str(_) => "a text",
            Field::Bytes(_) => "bytes",
            _ => "a date or a time",
        };
        let (example, column) = (self.examples, self.names[index].clone());
        DataError::Cell { path: self.path.into(), example, column, text: text.to_owned() }
    }

    fn finish(self, split: &'static str, grouped: bool) -> Result<Part, DataError> {
        let empty = || DataError::Empty { path: self.path.into(), hint: "the file has no rows" };
        if self.examples == 0 {
            return Err(empty());
        }
        let features: Vec<usize> = (0..self.roles.len()).filter(|&i| self.roles[i] == Role::Feature).collect();
        let mut columns = Vec::new();
        let features = match self.pictures {
            Some(_) if features.len() > 1 => {
                let others: Vec<&str> = features.iter().map(|&i| self.names[i].as_str()).collect();
                let reason =
                    format!("a column of pictures is the only feature; drop the others of {}", others.join(", "));
                return Err(DataError::Option { option: "drop", reason });
            }
            Some(pictures) => pictures.into_tensor(self.path.into())?,
            None => {
                if features.iter().all(|&i| self.widths[i] == 1) {
                    columns = features.iter().map(|&i| self.names[i].clone()).collect();
                }
                Tensor::new([self.examples, self.widths.iter().sum()], Elements::F32(self.numbers))?
            }
        };
        Ok(Part {
            path: self.path.into(),
            split,
            features,
            labels: Labels::from_texts(self.labels),
            groups: grouped.then_some(self.groups),
            columns,
            classes: Vec::new(),
            notes: Vec::new(),
        })
    }
}

/// The bytes of a picture: alone, or beside their name as data hubs store them.
fn picture(field: &Field) -> Option<&[u8]> {
    match field {
        Field::Bytes(bytes) => Some(bytes.data()),
        Field::Group(row) => row.get_column_iter().find_map(|(name, field)| match field {
            Field::Bytes(bytes) if name == "bytes" => Some(bytes.data()),
            _ => None,
        }),
        _ => None,
    }
}

fn number(field: &Field) -> Option<f64> {
    Some(match field {
        Field::Bool(v) => f64::from(u8::from(*v)),
        Field::Byte(v) => f64::from(*v),
        Field::Short(v) => f64::from(*v),
        Field::Int(v) => f64::from(*v),
        Field::Long(v) => *v as f64,
        Field::UByte(v) => f64::from(*v),
        Field::UShort(v) => f64::from(*v),
        Field::UInt(v) => f64::from(*v),
        Field::ULong(v) => *v as f64,
        Field::Float16(v) => f64::from(*v),
        Field::Float(v) => f64::from(*v),
        Field::Double(v) => *v,
        _ => return None,
    })
}
