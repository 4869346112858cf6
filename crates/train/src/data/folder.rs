//! Folders of pictures: one folder per class, named after it.

use std::path::{Path, PathBuf};

use super::error::DataError;
use super::files;
use super::pictures::{PictureOptions, Pictures};
use super::targets::{Labels, Part, TargetOptions};

/// Folders that are splits rather than classes, when `train` is among them,
/// and the split each becomes.
const SPLITS: &[(&str, &str)] = &[
    ("train", "train"),
    ("test", "test"),
    ("val", "validation"),
    ("valid", "validation"),
    ("validation", "validation"),
];

/// A folder with a folder of PNG or JPEG files per class, or with `train` and
/// others that hold such folders.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Folder {
    /// The folder.
    pub path: PathBuf,
    /// What pictures are made into.
    #[serde(default)]
    pub pictures: PictureOptions,
    /// Which folders are classes, and in which order; sorted when left out.
    #[serde(default)]
    pub targets: TargetOptions,
}

impl Folder {
    pub(super) fn read(&self) -> Result<Vec<Part>, DataError> {
        let entries = files::list(&self.path)?;
        if !entries.iter().any(|entry| entry.is_dir() && files::name(entry) == "train") {
            return Ok(vec![self.part("", &self.path)?]);
        }
        let mut splits = Vec::new();
        for folder in entries.iter().filter(|entry| entry.is_dir()) {
            let known = SPLITS.iter().find(|(name, _)| *name == files::name(folder));
            let (_, split) = known.ok_or_else(|| DataError::Missing {
                path: self.path.clone(),
                what: "split",
                name: files::name(folder),
                available: "train, test and val".to_owned(),
            })?;
            splits.push((*split, folder));
        }
        // Train first, then the others by name.
        splits.sort_by_key(|(split, _)| (*split != "train", *split));
        splits.into_iter().map(|(split, folder)| self.part(split, folder)).collect()
    }

    fn part(&self, split: &'static str, folder: &Path) -> Result<Part, DataError> {
        let mut pictures = Pictures::new(self.pictures)?;
        let mut labels = Vec::new();
        for class in files::list(folder)?.iter().filter(|entry| entry.is_dir()) {
            for file in files::list(class)?.iter().filter(|file| is_picture(file)) {
                pictures.push(file, &files::read(file)?)?;
                labels.push(files::name(class));
            }
        }
        Ok(Part {
            path: folder.into(),
            split,
            features: pictures.into_tensor(folder.into())?,
            labels: Labels::Texts(labels),
            groups: None,
            columns: Vec::new(),
        })
    }
}

/// Whether the name says PNG or JPEG.
pub(super) fn is_picture(path: &Path) -> bool {
    let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    matches!(extension.as_deref(), Some("png" | "jpg" | "jpeg")) && path.is_file()
}
