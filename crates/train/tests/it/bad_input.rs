//! What data sets must not hold, and what the refusal says.

use image::ImageFormat;
use parquet::basic::Compression;
use tierline_codec::npy;
use tierline_graph::{Elements, Tensor};

use crate::samples::{counting, gzip, idx, labels, npz, parquet, parquet_pictures, picture, refusal, source, write};

const IDX: &str = r#"{"format": "idx", "images": "$/i", "labels": "$/l"}"#;
const NPY: &str = r#"{"format": "npy", "features": "$/x.npy", "labels": "$/y.npy"}"#;
const CSV: &str = r#"{"format": "csv", "path": "$/t.csv"}"#;
const PARQUET: &str = r#"{"format": "parquet", "path": "$/t.parquet"}"#;
const FOLDER: &str = r#"{"format": "folder", "path": "$"}"#;

#[track_caller]
fn check(files: &[(&str, Vec<u8>)], json: &str, expected: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        write(folder.path().join(name), bytes);
    }
    let said = refusal(folder.path(), json);
    for part in expected {
        assert!(said.contains(part), "`{said}` lacks `{part}`");
    }
}

fn csv(text: &str, expected: &[&str]) {
    check(&[("t.csv", text.into())], CSV, expected);
}

fn idx_pair(images: Vec<u8>, classes: Vec<u8>, expected: &[&str]) {
    check(&[("i", images), ("l", classes)], IDX, expected);
}

fn npy_pair(features: &Tensor, targets: &Tensor, expected: &[&str]) {
    check(&[("x.npy", npy::write(features).unwrap()), ("y.npy", npy::write(targets).unwrap())], NPY, expected);
}

#[test]
fn idx_files_that_are_broken() {
    let two = || idx(8, &[2], &[0, 1]);
    idx_pair(b"PNG".to_vec(), two(), &["`", "no readable IDX file", "header cannot be read"]);
    idx_pair(vec![1, 2, 8, 1, 0], two(), &["first two bytes"]);
    idx_pair(idx(7, &[1], &[0]), two(), &["element type 0x07 is unknown"]);
    idx_pair(idx(8, &[], &[]), two(), &["it has 0 axes; 1 to 8"]);
    idx_pair(idx(8, &[2, 2, 2], &[0; 7]), two(), &["declares 8 bytes", "holds 7", "fetch it again"]);
    idx_pair(idx(8, &[2, 2, 2], &[0; 9]), two(), &["declares 8 bytes", "holds 9"]);
    idx_pair(gzip(&idx(8, &[2, 2, 2], &[0; 7])), two(), &["declares 8 bytes", "holds 7"]);
    let packed = gzip(&idx(8, &[2, 2, 2], &[0; 8]));
    idx_pair(packed[..packed.len() - 4].to_vec(), two(), &["decompression fails"]);
    idx_pair(idx(8, &[2, 2, 2], &[0; 8]), idx(8, &[3], &[0, 1, 0]), &["2 examples but 3 targets"]);
    idx_pair(idx(8, &[0, 2, 2], &[]), idx(8, &[0], &[]), &["holds no examples"]);
}

#[test]
fn headers_that_declare_more_than_there_is() {
    let two = || idx(8, &[2], &[0, 1]);
    idx_pair(idx(8, &[u32::MAX; 8], &[]), two(), &["more elements than memory"]);
    idx_pair(idx(8, &[60_000, 1 << 20], &[]), two(), &["bytes; the limit is 8589934592"]);
    // Within the limit, but not there: nothing of that size is allocated.
    idx_pair(gzip(&idx(8, &[1 << 16, 1 << 16], &[])), two(), &["declares 4294967296 bytes", "holds 0"]);
    let mut array = npy::write(&counting(&[2, 3])).unwrap();
    let at = array.windows(4).position(|w| w == b"(2, ").unwrap();
    array[at + 1] = b'9';
    check(&[("x.npy", array), ("y.npy", npy::write(&labels(&[0, 1])).unwrap())], NPY, &["6 bytes", "27 were expected"]);
}

#[test]
fn labels_that_are_no_classes() {
    npy_pair(&counting(&[2, 3]), &labels(&[0, -1]), &["label of example 1 is -1", "outside the classes 0 to 65535"]);
    npy_pair(&counting(&[2, 3]), &labels(&[70_000, 1]), &["label of example 0 is 70000", "targets.kind"]);
    let one_hot = Tensor::new([2, 2], Elements::I64(vec![0, 1, 1, 0])).unwrap();
    npy_pair(&counting(&[2, 3]), &one_hot, &["shape [2, 2]", "take the argmax"]);
    let json = |targets: &str| CSV.replace('}', &format!(r#", "targets": {targets}}}"#));
    let table = |text: &str| [("t.csv", text.into())];
    let classes = r#"{"kind": "classes"}"#;
    check(&table("x,label\n1,0\n1,0.5\n"), &json(classes), &["example 1 is 0.5, not a whole number", "values"]);
    check(&table("x,label\n1,0\n1,3\n"), &json(r#"{"classes": 3}"#), &["example 1 is 3, outside the classes 0 to 2"]);
    let names = r#"{"names": ["cat", "dog"]}"#;
    check(&table("x,label\n1,cat\n1,cow\n"), &json(names), &["example 1 is `cow`, not among the names"]);
    check(
        &table("x,label\n1,0\n"),
        &json(r#"{"classes": 3, "names": ["a"]}"#),
        &["option `classes`: 3 classes with 1"],
    );
    check(&table("x,label\n1,cat\n"), &json(r#"{"kind": "values"}"#), &["targets of type string"]);
}

#[test]
fn numbers_that_are_none() {
    let nan = Tensor::new([2, 2, 2], Elements::F32(vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0, f32::NAN, 7.0])).unwrap();
    npy_pair(&nan, &labels(&[0, 1]), &["element [1, 0] of example 1 is NaN"]);
    let large = Tensor::new([1, 1], Elements::F64(vec![1e300])).unwrap();
    npy_pair(&large, &labels(&[0]), &["element [0] of example 0 is 1000", "finite f32"]);
    let infinite = Tensor::new([2], Elements::F32(vec![0.5, f32::INFINITY])).unwrap();
    npy_pair(&counting(&[2, 3]), &infinite, &["the target", "of example 1 is inf"]);
    csv("x,label\n1,0\nnan,0\n", &["column `x` of example 1 is NaN"]);
    csv("x,label\n1,0\n,0\n", &["column `x` of example 1 is ``, no number"]);
    csv("x,label\n1,0\nfast,0\n", &["column `x` of example 1 is `fast`", "drop the column"]);
}

#[test]
fn tables_that_are_ragged_or_empty_or_unclear() {
    csv("x,z,label\n1,2,0\n1,0\n", &["the row of example 1 has 2 values", "before have 3"]);
    csv("", &["holds no examples"]);
    csv("x,label\n", &["holds no examples"]);
    csv("label\n1\n", &["every column is a label"]);
    csv("1,2\n3,4\n", &["option `header`", "set header = false"]);
    csv("x,z\n1,2\n", &["no column `label", "there are: x, z"]);
    csv("y,label\n1,2\n", &["both `y` and `label`"]);
    let bytes = b"x,label\n\xff,1\n".to_vec();
    check(&[("t.csv", bytes)], CSV, &["no readable CSV file", "UTF-8"]);
    let named = CSV.replace('}', r#", "label": 7}"#);
    check(&[("t.csv", b"x,z\n1,2\n".to_vec())], &named, &["no column `7`; there are: x, z"]);
    let parted = CSV.replace('}', r#", "delimiter": "é"}"#);
    check(&[("t.csv", b"x,label\n1,2\n".to_vec())], &parted, &["option `delimiter`"]);
}

#[test]
fn pictures_that_differ_or_are_broken() {
    let small = || picture(ImageFormat::Png, 2, 2, [0; 3]);
    let large = picture(ImageFormat::Png, 4, 3, [0; 3]);
    let files = [("a/1.png", small()), ("b/2.png", large)];
    check(&files, FOLDER, &["b/2.png` is 4x3", "before are 2x2", "state a `size`"]);
    let broken = [("a/1.png", small()), ("b/2.png", small()[..40].to_vec())];
    check(&broken, FOLDER, &["b/2.png` is broken"]);
    check(&[("a/1.png", b"text".to_vec())], FOLDER, &["a/1.png` is broken"]);
    check(&[("a/notes.txt", b"text".to_vec())], FOLDER, &["holds no examples", "folder per class"]);
    check(&[("train/a/1.png", small()), ("extra/a/1.png", small())], FOLDER, &["no split `extra`"]);
    let zero = FOLDER.replace('}', r#", "pictures": {"size": [0, 3]}}"#);
    check(&[("a/1.png", small())], &zero, &["option `size`"]);
    // A header of a picture that would take gigabytes.
    let mut bomb = small();
    bomb[16..24].copy_from_slice(&[0, 0, 0x3f, 0xff, 0, 0, 0x3f, 0xff]);
    check(&[("a/1.png", bomb)], FOLDER, &["is broken"]);
    let hub = parquet_pictures(&[(small(), Some("a")), (b"no picture".to_vec(), Some("b"))]);
    check(&[("t.parquet", hub)], PARQUET, &["image[1]` is broken"]);
}

#[test]
fn parquet_files_that_lack_something() {
    let small = || picture(ImageFormat::Png, 2, 2, [0; 3]);
    let hub = parquet_pictures(&[(small(), Some("a")), (small(), None)]);
    check(&[("t.parquet", hub.clone())], PARQUET, &["column `label` of example 1 is `null`"]);
    let other = PARQUET.replace('}', r#", "label": "kind"}"#);
    check(&[("t.parquet", hub.clone())], &other, &["no column `kind`; there are: image, label"]);
    check(&[("t.parquet", hub[..hub.len() - 9].to_vec())], PARQUET, &["no readable Parquet file"]);
    let rows = parquet(&[(1.0, [0.0, f64::NAN], 0)], Compression::SNAPPY);
    check(&[("t.parquet", rows)], PARQUET, &["column `place` of example 0 is NaN"]);
}

#[test]
fn archives_that_lack_something() {
    let json = r#"{"format": "npz", "path": "$/a.npz"}"#;
    let archive = npz(&[("weights", counting(&[2, 2])), ("bias", counting(&[2]))]);
    check(&[("a.npz", archive.clone())], json, &["no array `x", "weights, bias"]);
    let half = json.replace('}', r#", "features": "weights"}"#);
    check(&[("a.npz", archive.clone())], &half, &["features and labels come together"]);
    let absent = json.replace('}', r#", "features": "weights", "labels": "names"}"#);
    check(&[("a.npz", archive)], &absent, &["no array `names`"]);
    check(&[("a.npz", b"PK".to_vec())], json, &["no readable npz file"]);
    let splits = [
        ("x_train", counting(&[2, 3])),
        ("y_train", labels(&[0, 1])),
        ("x_test", counting(&[2, 4])),
        ("y_test", labels(&[0, 1])),
    ];
    check(&[("a.npz", npz(&splits))], json, &["split `test` has u8 examples of shape [4]", "shape [3]"]);
    let unclear = npz(&[("x", counting(&[2, 8, 4, 4])), ("y", labels(&[0, 1]))]);
    check(&[("a.npz", unclear)], json, &["option `layout`", "channels-first or channels-last"]);
}

#[test]
fn files_that_are_not_there() {
    check(&[], CSV, &["cannot read", "t.csv"]);
}

#[test]
fn options_that_nobody_knows() {
    for json in [
        r#"{"format": "csv", "path": "t.csv", "lable": "x"}"#,
        r#"{"format": "csv", "path": "t.csv", "targets": {"knd": "classes"}}"#,
        r#"{"format": "idx", "images": "i", "labels": "l", "size": 3}"#,
        r#"{"format": "xlsx", "path": "t.xlsx"}"#,
    ] {
        assert!(serde_json::from_str::<tierline_train::data::Source>(json).is_err(), "{json}");
    }
    let kept = source(std::path::Path::new("/d"), IDX);
    let text = serde_json::to_string(&kept).unwrap();
    assert_eq!(serde_json::from_str::<tierline_train::data::Source>(&text).unwrap(), kept);
}
