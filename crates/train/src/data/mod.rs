//! Data sets: read from files, cut into batches, shared out to clients.
//!
//! A [`Source`] says where a data set is and how it is read; it loads a
//! [`Dataset`], which is in memory and checked. [`Batches`] makes the tensors
//! a step graph takes, ahead of it and reproducibly. [`partition`] shares a
//! data set out for federated experiments, and [`sheet`] shows it to people.
//!
//! Files come from strangers: sizes are compared with what is there before
//! anything is allocated, and whatever the bytes are, the answer is a data set
//! or a [`DataError`].
//!
//! # Adding a format
//!
//! 1. Write `mine.rs` with an options struct (serde, unknown keys refused) and
//!    `read(&self) -> Result<Vec<Part>, DataError>`: features `[n, ...]` and
//!    labels per split. `idx.rs` is the example to follow. Names, classes and
//!    finite numbers are checked for all formats in `targets.rs`.
//! 2. Add it to [`Source`], and to [`Source::detect`] if a path shows it.
//! 3. Add a sample to `tests/it/samples.rs`: the laws there (round trip, every
//!    truncation and mutation an error or a data set) hold for all of them.

mod augment;
mod batches;
mod dataset;
mod elements;
mod error;
mod files;
mod folder;
mod idx;
mod numpy;
mod pages;
mod parquet;
mod partition;
mod pictures;
mod random;
mod sheet;
mod source;
mod table;
mod targets;

pub use augment::Augment;
pub use batches::{BATCHES_AHEAD, Batch, BatchOptions, Batches, Last, Normalize, Position};
pub use dataset::{Dataset, Groups, Others, Targets, names_together};
pub use error::DataError;
pub use files::DATASET_BYTES_MAX;
pub use folder::Folder;
pub use idx::Idx;
pub use numpy::{Layout, Npy, Npz};
pub use parquet::Parquet;
pub use partition::{Partition, partition};
pub use pictures::{Color, PICTURE_SIDE_MAX, PictureOptions};
pub use sheet::{SHEET_SIDE_MAX, sheet, sheet_png};
pub use source::{Format, Source};
pub use table::{Column, Csv};
pub use targets::{CLASSES_MAX, TargetKind, TargetOptions};
pub use tierline_federate::seed::seed_of;
