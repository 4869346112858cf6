//! What can be wrong with a data set, or with what is asked of it.

use std::path::PathBuf;

use tierline_codec::npy::NpyError;
use tierline_graph::{DataType, TensorError};

/// Why a data set can't be read, batched or shared out.
///
/// Rows and examples count from 0; lines of a text file from 1.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused.
    #[error("cannot read `{path}`: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The format can't be told from the path.
    #[error(
        "cannot tell how to read `{path}`: {found}; name a format: idx, npz, npy, csv, folder (of pictures) or parquet"
    )]
    Unrecognised {
        /// The file or folder.
        path: PathBuf,
        /// What is there instead.
        found: String,
    },
    /// The bytes aren't the format.
    #[error("`{path}` is no readable {format} file: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// The format's name.
        format: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The bytes aren't a NumPy array.
    #[error("`{path}`: {source}")]
    Npy {
        /// The file, and the array inside.
        path: PathBuf,
        /// What is wrong.
        source: NpyError,
    },
    /// Fewer or more bytes than the header declares.
    #[error("`{path}` declares {expected} bytes of elements and holds {actual}; fetch it again")]
    Length {
        /// The file.
        path: PathBuf,
        /// Bytes declared.
        expected: u64,
        /// Bytes there are, of a compressed file at most one beyond the declared.
        actual: u64,
    },
    /// More than a limit allows.
    #[error("`{path}` needs {needed} {what}; the limit is {max}; split it, or load a part of it")]
    TooLarge {
        /// The file or folder.
        path: PathBuf,
        /// What is too many.
        what: &'static str,
        /// Needed.
        needed: u64,
        /// Allowed.
        max: u64,
    },
    /// No examples.
    #[error("`{path}` holds no examples; {hint}")]
    Empty {
        /// The file, folder or data set.
        path: PathBuf,
        /// What to look at.
        hint: &'static str,
    },
    /// Features and targets aren't pairs.
    #[error("`{path}` has {features} examples but {targets} targets; they must come in pairs")]
    Pairs {
        /// The file or data set.
        path: PathBuf,
        /// Examples.
        features: usize,
        /// Targets.
        targets: usize,
    },
    /// Parts of one data set differ.
    #[error("`{path}`: the split `{split}` has {actual}, the first split has {expected}; all splits must agree")]
    Splits {
        /// The data set.
        path: PathBuf,
        /// The split that differs.
        split: String,
        /// Of the first split.
        expected: String,
        /// Of this split.
        actual: String,
    },
    /// A label that is no class.
    #[error("`{path}`: the label of example {example} is {value}, {reason}")]
    Label {
        /// The file or data set.
        path: PathBuf,
        /// The example.
        example: usize,
        /// The label.
        value: String,
        /// Why it is no class, and what to do.
        reason: String,
    },
    /// An example of a class that a job doesn't know.
    #[error(
        "`{name}` has examples of the class `{class}`, which the job doesn't know ({known}); name all classes under \
         data.classes in the job's file, or leave such examples out with data.other_classes = \"drop\""
    )]
    Unnamed {
        /// The data set.
        name: String,
        /// Its class.
        class: String,
        /// Those that the job knows.
        known: String,
    },
    /// A column that comes twice.
    #[error("`{path}` has {count} columns named `{name}`; rename or drop them")]
    Twice {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
        /// How many there are.
        count: usize,
    },
    /// Something that lies where pictures are read, and can't be left out
    /// without changing what is learned.
    #[error("`{path}` {what}")]
    Stray {
        /// The file or folder.
        path: PathBuf,
        /// What it is, and what to do.
        what: String,
    },
    /// NaN, infinite, or beyond f32.
    #[error("`{path}`: {column} of example {example} is {value}; remove the example or fill in a finite f32")]
    NotFinite {
        /// The file or data set.
        path: PathBuf,
        /// The example.
        example: usize,
        /// The column or the element.
        column: String,
        /// The value.
        value: f64,
    },
    /// A cell that is no number.
    #[error("`{path}`: column `{column}` of example {example} is `{text}`, no number; drop the column or fix the cell")]
    Cell {
        /// The file.
        path: PathBuf,
        /// The example.
        example: usize,
        /// The column.
        column: String,
        /// What is there.
        text: String,
    },
    /// Rows of different lengths.
    #[error("`{path}`: {what} of example {example} has {actual} values; the ones before have {expected}")]
    Ragged {
        /// The file.
        path: PathBuf,
        /// Row or column.
        what: String,
        /// The example.
        example: usize,
        /// Values before.
        expected: usize,
        /// Values here.
        actual: usize,
    },
    /// Something named isn't there.
    #[error("`{path}` has no {what} `{name}`; there are: {available}")]
    Missing {
        /// The file or data set.
        path: PathBuf,
        /// Column, array or split.
        what: &'static str,
        /// What was asked for.
        name: String,
        /// What there is.
        available: String,
    },
    /// Pictures of different sizes, and no size stated.
    #[error(
        "`{path}` is {actual_height}x{actual_width} pixels, the pictures before are {height}x{width}; \
         state a `size` = [height, width] to resize all"
    )]
    PictureSizes {
        /// The first picture that differs.
        path: PathBuf,
        /// Pixels.
        height: u32,
        /// Pixels.
        width: u32,
        /// Pixels of this picture.
        actual_height: u32,
        /// Pixels of this picture.
        actual_width: u32,
    },
    /// A picture that can't be decoded.
    #[error("the picture `{path}` is broken: {reason}; remove it or fetch it again")]
    Picture {
        /// The picture.
        path: PathBuf,
        /// What the decoder says.
        reason: String,
    },
    /// A type that features or targets can't have.
    #[error("`{path}` has {what} of type {dtype}; numbers are needed")]
    Type {
        /// The file or data set.
        path: PathBuf,
        /// Features or targets.
        what: &'static str,
        /// The element type.
        dtype: DataType,
    },
    /// An option makes no sense, alone or with this data set.
    #[error("option `{option}`: {reason}")]
    Option {
        /// The option.
        option: &'static str,
        /// Why, and what would do.
        reason: String,
    },
    /// The operation works on pictures only.
    #[error(
        "the data set `{name}` holds {dtype} examples of shape {shape:?}; \
         this needs pictures: u8 of [channels, height, width] with 1 or 3 channels"
    )]
    NotPictures {
        /// The data set.
        name: String,
        /// Shape of an example.
        shape: Vec<usize>,
        /// Element type.
        dtype: DataType,
    },
    /// The operation needs classes.
    #[error("the data set `{name}` has numbers as targets; {what} needs classes")]
    NoClasses {
        /// The data set.
        name: String,
        /// The operation.
        what: &'static str,
    },
    /// Somebody would get nothing.
    #[error("{available} {unit} cannot be shared out to {clients} clients without an empty one; ask for fewer clients")]
    Clients {
        /// Clients asked for.
        clients: usize,
        /// How many there are to share out.
        available: usize,
        /// Examples, shards or groups.
        unit: &'static str,
    },
    /// The elements don't make a tensor.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}
