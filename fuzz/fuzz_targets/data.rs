//! A data set from a stranger, one format by the first byte: a data set that
//! holds what it says, or an error; never a panic.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use tierline_train::data::{Dataset, Source};

/// Formats as configuration states them, with `$` for the folder; of two files
/// the second byte says where the first ends.
const SOURCES: &[(&str, &[&str])] = &[
    (r#"{"format": "idx", "images": "$/a", "labels": "$/b"}"#, &["a", "b"]),
    (r#"{"format": "npy", "features": "$/a", "labels": "$/b"}"#, &["a", "b"]),
    (r#"{"format": "npz", "path": "$/a"}"#, &["a"]),
    (r#"{"format": "npz", "path": "$/a", "layout": "channels-last"}"#, &["a"]),
    (r#"{"format": "csv", "path": "$/a"}"#, &["a"]),
    (r#"{"format": "csv", "path": "$/a", "header": false, "label": 0, "group": 1, "delimiter": "\t"}"#, &["a"]),
    (r#"{"format": "folder", "path": "$"}"#, &["x/1.png", "y/2.jpg"]),
    (r#"{"format": "folder", "path": "$", "pictures": {"size": [5, 3], "color": "grey"}}"#, &["x/1.jpg", "y/2.png"]),
    (r#"{"format": "parquet", "path": "$/a"}"#, &["a"]),
    (r#"{"format": "parquet", "path": "$/a", "label": "label", "pictures": {"size": [4, 4]}}"#, &["a"]),
];

fuzz_target!(|input: &[u8]| {
    let [choice, share, bytes @ ..] = input else { return };
    let (json, names) = SOURCES[usize::from(*choice) % SOURCES.len()];
    let first = bytes.len() * usize::from(*share) / 255;
    let parts = if names.len() == 2 { vec![&bytes[..first], &bytes[first..]] } else { vec![bytes] };
    let folder = tempfile::tempdir().expect("there is a folder for temporary files");
    for (name, part) in names.iter().zip(parts) {
        write(&folder.path().join(name), part);
    }
    let path = folder.path().to_str().expect("temporary folders have plain names");
    let source: Source = serde_json::from_str(&json.replace('$', path)).expect("a source that can be read");
    match source.load() {
        Ok(dataset) => check(&dataset),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});

fn write(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().expect("a file is in a folder")).expect("the folder is ours");
    std::fs::write(path, bytes).expect("the disk has room");
}

fn check(dataset: &Dataset) {
    assert!(!dataset.is_empty());
    let features = dataset.features(&[0, dataset.len() - 1]).expect("the first and the last example are there");
    assert_eq!(&features.shape()[1..], dataset.example_shape());
    if let (Some(classes), Some(count)) = (dataset.classes(), dataset.class_count()) {
        assert_eq!(classes.len(), dataset.len());
        assert!(classes.iter().all(|class| *class < count));
    }
    assert!(dataset.range().iter().all(|end| end.is_finite()));
}
