//! Each format is read back as it was written.

use image::ImageFormat;
use proptest::prelude::*;
use tierline_codec::npy;
use tierline_graph::{DataType, Elements, Tensor};

use crate::samples::{counting, gzip, idx, labels, load, npz, picture, samples, write};

#[test]
fn every_sample_loads_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let seen: Vec<String> = samples(folder.path())
        .iter()
        .map(|sample| {
            let dataset = sample.source.load().unwrap();
            let names = dataset.class_names().map(|names| names.join(" ")).unwrap_or_default();
            let (counts, shape) = (dataset.counts().unwrap(), dataset.example_shape());
            format!("{}: {} {} {shape:?} {counts:?} {names}", sample.name, dataset.len(), dataset.dtype())
        })
        .collect();
    assert_eq!(
        seen,
        [
            "idx: 6 u8 [1, 4, 5] [2, 2, 2] ",
            "idx.gz: 6 u8 [1, 4, 5] [2, 2, 2] ",
            "npy: 6 u8 [3, 4, 4] [2, 2, 2] ",
            "npz: 8 u8 [3, 5, 5] [2, 4, 2] ",
            "csv: 6 f32 [2] [2, 2, 2] cat dog emu",
            "folder: 6 u8 [3, 8, 6] [3, 3] blue red",
            "parquet: 6 f32 [3] [2, 2, 2] ",
            "parquet, snappy: 6 f32 [3] [2, 2, 2] ",
            "parquet, zstd: 6 f32 [3] [2, 2, 2] ",
            "parquet of pictures: 6 u8 [1, 3, 2] [3, 3] dark light",
        ]
    );
}

#[test]
fn tables_keep_their_numbers_columns_and_users() {
    let folder = tempfile::tempdir().unwrap();
    let all = samples(folder.path());
    let table = all[4].source.load().unwrap();
    assert_eq!(table.columns(), ["size", "weight"]);
    assert_eq!(table.features(&[0, 3]).unwrap().as_f32().unwrap(), [1.0, 2.5, -1.0, 0.0]);
    assert_eq!(table.groups().unwrap().0, [0, 1, 0, 1, 2, 2]);
    let rows = all[6].source.load().unwrap();
    assert_eq!(rows.features(&[5]).unwrap().as_f32().unwrap(), [5.0, 2.5, 1.0]);
    assert_eq!(rows.targets(&[5]).unwrap().as_i64().unwrap(), [2]);
}

#[test]
fn pictures_are_planes_of_their_colours() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = samples(folder.path())[5].source.load().unwrap();
    let red = dataset.features(&[3]).unwrap();
    let Elements::U8(planes) = red.elements() else { panic!("{}", red.dtype()) };
    assert_eq!((planes[0], planes[48], planes[96]), (255, 0, 0));
}

#[test]
fn pictures_are_resized_when_a_size_is_stated() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path().join("a/1.png"), &picture(ImageFormat::Png, 8, 4, [9, 9, 9]));
    write(folder.path().join("b/1.png"), &picture(ImageFormat::Png, 2, 2, [80, 80, 80]));
    let json = r#"{"format": "folder", "path": "$", "pictures": {"size": [3, 5], "color": "grey"}}"#;
    let dataset = load(folder.path(), json).unwrap();
    let mut expected = vec![9; 15];
    expected.extend(vec![80; 15]);
    assert_eq!(dataset.features(&[0, 1]).unwrap(), Tensor::new([2, 1, 3, 5], Elements::U8(expected)).unwrap());
}

#[test]
fn folders_of_splits_are_splits() {
    let folder = tempfile::tempdir().unwrap();
    for (place, shade) in [("train/a", 1), ("train/b", 2), ("val/b", 3), ("test/a", 4)] {
        write(folder.path().join(place).join("1.png"), &picture(ImageFormat::Png, 2, 2, [shade; 3]));
    }
    let dataset = load(folder.path(), r#"{"format": "folder", "path": "$"}"#).unwrap();
    assert_eq!(dataset.splits(), ["train", "test", "validation"]);
    assert_eq!(dataset.named_split("validation").unwrap().classes().unwrap(), [1]);
}

#[test]
fn channels_last_are_turned_round() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path().join("a.npz"), &npz(&[("x", counting(&[1, 4, 4, 3])), ("y", labels(&[0]))]));
    let dataset = load(folder.path(), r#"{"format": "npz", "path": "$/a.npz"}"#).unwrap();
    let Elements::U8(planes) = dataset.features(&[0]).unwrap().into_parts().1 else { panic!() };
    assert_eq!(planes[..3], [0, 3, 6]);
    assert_eq!(planes[16..19], [1, 4, 7]);
}

#[test]
fn floats_are_values_and_keras_columns_are_classes() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path().join("x.npy"), &npy::write(&counting(&[2, 3])).unwrap());
    let json = r#"{"format": "npy", "features": "$/x.npy", "labels": "$/y.npy"}"#;
    let values = Tensor::new([2, 2], Elements::F64(vec![0.5, 1.5, 2.5, 3.5])).unwrap();
    write(folder.path().join("y.npy"), &npy::write(&values).unwrap());
    let dataset = load(folder.path(), json).unwrap();
    assert_eq!(dataset.class_count(), None);
    assert_eq!(dataset.targets(&[1]).unwrap(), Tensor::new([1, 2], Elements::F32(vec![2.5, 3.5])).unwrap());
    let column = Tensor::new([2, 1], Elements::I64(vec![1, 0])).unwrap();
    write(folder.path().join("y.npy"), &npy::write(&column).unwrap());
    assert_eq!(load(folder.path(), json).unwrap().classes().unwrap(), [1, 0]);
}

#[test]
fn tables_without_a_header_go_by_index() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path().join("t.csv"), b"7;0.5;1\n8;0.25;0\n");
    let json = r#"{"format": "csv", "path": "$/t.csv", "header": false, "delimiter": ";", "label": 2, "drop": [0]}"#;
    let dataset = load(folder.path(), json).unwrap();
    assert_eq!(dataset.features(&[0, 1]).unwrap(), Tensor::new([2, 1], Elements::F32(vec![0.5, 0.25])).unwrap());
    assert_eq!(dataset.classes().unwrap(), [1, 0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn idx_round_trips(n in 1usize..6, height in 1usize..7, width in 1usize..7, seed: u64, packed: bool) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let body: Vec<u8> = (0..n * height * width).map(|_| rng.u8(..)).collect();
        let classes: Vec<u8> = (0..n).map(|_| rng.u8(..10)).collect();
        let mut files = [idx(8, &[n as u32, height as u32, width as u32], &body), idx(8, &[n as u32], &classes)];
        if packed {
            files = files.map(|bytes| gzip(&bytes));
        }
        let folder = tempfile::tempdir().unwrap();
        write(folder.path().join("i"), &files[0]);
        write(folder.path().join("l"), &files[1]);
        let dataset = load(folder.path(), r#"{"format": "idx", "images": "$/i", "labels": "$/l"}"#).unwrap();
        let all: Vec<usize> = (0..n).collect();
        prop_assert_eq!(dataset.features(&all).unwrap(), Tensor::new([n, 1, height, width], Elements::U8(body)).unwrap());
        prop_assert_eq!(dataset.classes().unwrap(), classes.into_iter().map(usize::from).collect::<Vec<_>>());
    }

    #[test]
    fn npz_keeps_type_and_numbers(n in 1usize..6, per in 1usize..9, seed: u64, kind in 0usize..4) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let count = n * per;
        let elements = match kind {
            0 => Elements::F32((0..count).map(|_| rng.f32()).collect()),
            1 => Elements::F64((0..count).map(|_| rng.f64()).collect()),
            2 => Elements::I16((0..count).map(|_| rng.i16(..)).collect()),
            _ => Elements::U8((0..count).map(|_| rng.u8(..)).collect()),
        };
        let features = Tensor::new([n, per], elements).unwrap();
        let truth = labels(&(0..n as i64).collect::<Vec<_>>());
        let folder = tempfile::tempdir().unwrap();
        write(folder.path().join("a.npz"), &npz(&[("data", features.clone()), ("target", truth.clone())]));
        let dataset = load(folder.path(), r#"{"format": "npz", "path": "$/a.npz"}"#).unwrap();
        let all: Vec<usize> = (0..n).collect();
        prop_assert_eq!(dataset.features(&all).unwrap(), features);
        prop_assert_eq!(dataset.targets(&all).unwrap(), truth);
    }

    #[test]
    fn csv_round_trips(rows in proptest::collection::vec((any::<f32>().prop_filter("finite", |x| x.is_finite()), 0usize..4), 1..20)) {
        let lines: String = rows.iter().map(|(x, class)| format!("{x},{class}\n")).collect();
        let folder = tempfile::tempdir().unwrap();
        write(folder.path().join("t.csv"), format!("x,label\n{lines}").as_bytes());
        let dataset = load(folder.path(), r#"{"format": "csv", "path": "$/t.csv"}"#).unwrap();
        let all: Vec<usize> = (0..rows.len()).collect();
        let (xs, classes): (Vec<f32>, Vec<usize>) = rows.into_iter().unzip();
        prop_assert_eq!(dataset.dtype(), DataType::F32);
        let features = dataset.features(&all).unwrap();
        prop_assert_eq!(features.as_f32().unwrap(), &xs[..]);
        prop_assert_eq!(dataset.classes().unwrap(), classes);
    }
}
