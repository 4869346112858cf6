//! Parts of data sets, and the sheet that shows them.

use image::Rgb;
use tierline_graph::{Elements, Tensor};
use tierline_train::data::{Dataset, Targets, sheet};

use crate::samples::{counting, samples};

fn four() -> Dataset {
    let names = vec!["a".to_owned(), "b".to_owned()];
    let targets = Targets::Classes { classes: vec![0, 1, 1, 0], count: 2, names };
    Dataset::new("four", counting(&[4, 3, 2, 2]), targets).unwrap()
}

#[test]
fn a_subset_of_a_subset_is_of_the_whole() {
    let part = four().subset(&[3, 1, 2]).unwrap().subset(&[2, 0]).unwrap();
    assert_eq!(part.features(&[0, 1]).unwrap(), four().features(&[2, 3]).unwrap());
    assert_eq!((part.len(), part.counts().unwrap()), (2, vec![1, 1]));
    assert_eq!(part.class_name(1), "b");
}

#[test]
fn a_split_has_every_example_in_one_part() {
    let (first, second) = four().split(0.75, 9).unwrap();
    let all = |part: &Dataset| (0..part.len()).map(|i| part.feature(0).unwrap()[i] as u8).collect::<Vec<_>>();
    let mut firsts = [all(&first), all(&second)].concat();
    firsts.sort_unstable();
    assert_eq!((first.len(), second.len(), firsts), (3, 1, vec![0, 12, 24, 36]));
    let said = four().split(0.01, 0).unwrap_err().to_string();
    assert!(said.contains("option `fraction`") && said.contains("leaves a part empty"), "{said}");
    assert!(four().split(f64::NAN, 0).is_err());
}

#[test]
fn named_splits_are_found_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let archive = samples(folder.path())[3].source.load().unwrap();
    assert_eq!(archive.splits(), ["train", "test"]);
    let test = archive.named_split("test").unwrap();
    assert_eq!((test.len(), test.classes().unwrap(), test.splits().len()), (2, vec![1, 1], 0));
    let said = archive.named_split("dev").unwrap_err().to_string();
    assert!(said.contains("no split `dev`; there are: train, test"), "{said}");
}

#[test]
fn what_a_data_set_must_not_be() {
    let classes = |classes: Vec<u32>| Targets::Classes { classes, count: 2, names: Vec::new() };
    let said = |features: Tensor, targets| Dataset::new("it", features, targets).unwrap_err().to_string();
    let texts = Tensor::new([1], Elements::String(vec!["x".into()])).unwrap();
    let scalar = Tensor::new([], Elements::F32(vec![f32::NAN])).unwrap();
    for (said, expected) in [
        (said(counting(&[2, 2]), classes(vec![0, 2])), "example 1 is 2, beyond the 2 classes"),
        (said(counting(&[2, 2]), classes(vec![0])), "2 examples but 1 targets"),
        (said(counting(&[0, 2]), classes(vec![])), "holds no examples"),
        (said(texts, classes(vec![0])), "features of type string"),
        (said(counting(&[1, 2]), Targets::Values(scalar)), "is NaN"),
        (said(counting(&[1, 2]), Targets::Values(counting(&[1]))), "targets of type u8"),
    ] {
        assert!(said.contains(expected), "`{said}` lacks `{expected}`");
    }
    for said in [four().subset(&[]).unwrap_err(), four().subset(&[4]).unwrap_err()].map(|e| e.to_string()) {
        assert!(said.contains("at least one") || said.contains("there are: 0 to 3"), "{said}");
    }
}

#[test]
fn a_sheet_has_a_row_per_class() {
    let sheet = sheet(&four(), 3).unwrap();
    // Pictures of 2 by 2 are enlarged 24 times, with 2 pixels around each.
    // Before them are the names, of one letter here.
    let left = 2 + 16 + 8;
    assert_eq!(sheet.dimensions(), (left + 3 * 50 + 2, 2 * 50 + 2));
    assert_eq!(sheet.get_pixel(left + 2, 2), &Rgb([0, 4, 8]));
    assert_eq!(sheet.get_pixel(left + 52 + 47, 2 + 47), &Rgb([39, 43, 47]));
    assert_eq!(sheet.get_pixel(left + 2, 52), &Rgb([12, 16, 20]));
    // Neither class has a third picture.
    assert_eq!(sheet.get_pixel(left + 110, 20), sheet.get_pixel(0, 0));
    let inked = |rows: std::ops::Range<u32>| {
        rows.map(|y| (0..left).filter(|x| sheet.get_pixel(*x, y).0[0] > 200).count()).sum::<usize>()
    };
    assert!(inked(2..50) > 20 && inked(52..100) > 20, "each row has its name");
}

#[test]
fn sheets_of_tables_and_of_nothing_are_refused() {
    let targets = Targets::Classes { classes: vec![0; 2], count: 1, names: Vec::new() };
    let table = Dataset::new("table", counting(&[2, 3]), targets).unwrap();
    let said = sheet(&table, 3).unwrap_err().to_string();
    assert!(said.contains("`table` holds u8 examples of shape [3]") && said.contains("needs pictures"), "{said}");
    for per_class in [0, 1_000, usize::MAX] {
        assert!(sheet(&four(), per_class).unwrap_err().to_string().contains("option `per_class`"));
    }
}
