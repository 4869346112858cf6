//! Folders of pictures: one folder per class, named after it.
//!
//! A class is a folder, whatever is in it: one without a picture keeps its
//! number, since those behind it would move up without a word. What can't be
//! read is refused by name, and what is no picture is told of.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::error::DataError;
use super::files;
use super::pictures::{Kind, PictureOptions, Pictures, kind};
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

/// Folders within folders of a class; links may lead in a circle.
const DEPTH_MAX: usize = 16;

/// Bytes by which a file shows what it is.
const HEAD: usize = 64;

/// Names of one kind that a note repeats.
const NOTED_MAX: usize = 3;

/// A folder with a folder of pictures per class, or with `train` and others
/// that hold such folders.
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
        let mut left_out = LeftOut::default();
        let folders = folders(&self.path, &mut left_out)?;
        let named = |name: &str| folders.iter().any(|folder| files::name(folder) == name);
        if !named("train") {
            let is_split = |folder: &PathBuf| SPLITS.iter().any(|(name, _)| *name == files::name(folder));
            if !folders.is_empty() && folders.iter().all(is_split) {
                let what = "has folders named as splits and none named `train`; rename one, or name the folder of one \
                            split"
                    .to_owned();
                return Err(DataError::Stray { path: self.path.clone(), what });
            }
            return Ok(vec![self.part("", &self.path, folders, left_out)?]);
        }
        let mut splits = Vec::new();
        for folder in &folders {
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
        if let Some(pair) = splits.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            let what = format!("is the split {0} as `{1}` is; leave one", pair[0].0, files::name(pair[0].1));
            return Err(DataError::Stray { path: pair[1].1.clone(), what });
        }
        let mut parts = Vec::new();
        for (split, folder) in splits {
            let mut left_out = std::mem::take(&mut left_out);
            let classes = self::folders(folder, &mut left_out)?;
            parts.push(self.part(split, folder, classes, left_out)?);
        }
        Ok(parts)
    }

    fn part(
        &self,
        split: &'static str,
        folder: &Path,
        classes: Vec<PathBuf>,
        mut left_out: LeftOut,
    ) -> Result<Part, DataError> {
        let mut pictures = Pictures::new(self.pictures)?;
        let (mut labels, mut names) = (Vec::new(), Vec::new());
        let mut below = 0;
        for class in classes {
            let name = class.file_name().and_then(|name| name.to_str()).map(str::to_owned);
            let name = name.ok_or_else(|| stray(&class, "has a name that is no text; rename it"))?;
            let before = labels.len();
            let mut found = Vec::new();
            walk(&class, DEPTH_MAX, &mut found, &mut left_out)?;
            for file in found {
                pictures.push(&file, &files::read(&file)?)?;
                below += usize::from(file.parent() != Some(&class));
                labels.push(name.clone());
            }
            if labels.len() == before {
                left_out.note(Why::Empty, &class);
            }
            names.push(name);
        }
        if names.len() == 1 && below > 0 && below == labels.len() {
            let what = format!(
                "has one folder, `{0}`, and all pictures lie in folders below it; if those are the classes, name \
                 `{1}`",
                names[0],
                folder.join(&names[0]).display()
            );
            return Err(stray(folder, &what));
        }
        Ok(Part {
            path: folder.into(),
            split,
            features: pictures.into_tensor(folder.into())?,
            labels: Labels::Texts(labels),
            groups: None,
            columns: Vec::new(),
            classes: names,
            notes: left_out.notes(folder),
        })
    }
}

/// The folders in a folder; whatever else is there is no example.
fn folders(path: &Path, left_out: &mut LeftOut) -> Result<Vec<PathBuf>, DataError> {
    let mut folders = Vec::new();
    for entry in files::list(path)? {
        match look(&entry)? {
            Entry::Hidden => left_out.note(Why::Hidden, &entry),
            Entry::Folder => folders.push(entry),
            Entry::File(Kind::Other) => left_out.note(Why::Other, &entry),
            Entry::File(_) => {
                return Err(stray(&entry, "is a picture outside of all classes; move it into its class's folder"));
            }
        }
    }
    Ok(folders)
}

/// Pictures in a folder and in those below it, sorted by name.
fn walk(folder: &Path, levels: usize, found: &mut Vec<PathBuf>, left_out: &mut LeftOut) -> Result<(), DataError> {
    for entry in files::list(folder)? {
        match look(&entry)? {
            Entry::Hidden => left_out.note(Why::Hidden, &entry),
            Entry::Folder if levels == 0 => {
                return Err(stray(&entry, "lies too many folders deep; links may lead in a circle"));
            }
            Entry::Folder => walk(&entry, levels - 1, found, left_out)?,
            Entry::File(Kind::Picture) => found.push(entry),
            Entry::File(Kind::Unread) => {
                let what = "is a picture of a kind that isn't read (png, jpeg, bmp, gif, pnm, tiff and webp are); \
                            convert it, or remove it";
                return Err(stray(&entry, what));
            }
            Entry::File(Kind::Other) => left_out.note(Why::Other, &entry),
        }
    }
    Ok(())
}

/// What lies in a folder.
enum Entry {
    Hidden,
    Folder,
    File(Kind),
}

fn look(path: &Path) -> Result<Entry, DataError> {
    if files::is_hidden(path) {
        return Ok(Entry::Hidden);
    }
    let metadata = match path.metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(stray(path, "is a link to nothing; bring back what it leads to, or remove it"));
        }
        other => other.map_err(|source| DataError::Io { path: path.into(), source })?,
    };
    if metadata.is_dir() {
        return Ok(Entry::Folder);
    }
    if !metadata.is_file() {
        return Err(stray(path, "is neither a file nor a folder; remove it"));
    }
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(HEAD as u64).read_to_end(&mut head));
    read.map_err(|source| DataError::Io { path: path.into(), source })?;
    Ok(Entry::File(kind(path, &head)))
}

fn stray(path: &Path, what: &str) -> DataError {
    DataError::Stray { path: path.into(), what: what.to_owned() }
}

/// Why something is no example.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Why {
    Hidden,
    Other,
    Empty,
}

/// What is no example, by reason: how often, and a few of the names.
#[derive(Debug, Default)]
struct LeftOut(BTreeMap<Why, (usize, Vec<PathBuf>)>);

impl LeftOut {
    fn note(&mut self, why: Why, path: &Path) {
        let (count, some) = self.0.entry(why).or_default();
        *count += 1;
        if some.len() < NOTED_MAX {
            some.push(path.into());
        }
    }

    /// Sentences for people; paths as seen from the folder.
    fn notes(self, folder: &Path) -> Vec<String> {
        let sentence = |(why, (count, some)): (Why, (usize, Vec<PathBuf>))| {
            let short = |path: &PathBuf| format!("`{}`", path.strip_prefix(folder).unwrap_or(path).display());
            let more = if count > some.len() { format!(" and {} more", count - some.len()) } else { String::new() };
            let names = some.iter().map(short).collect::<Vec<_>>().join(", ") + &more;
            match why {
                Why::Hidden => format!("hidden, and left out: {names}"),
                Why::Other => format!("no pictures, and left out: {names}"),
                Why::Empty => format!("classes without a picture, which keep their numbers: {names}"),
            }
        };
        self.0.into_iter().map(sentence).collect()
    }
}
