//! Classes by name: whoever has some of them, or lists them in another order,
//! numbers them as the job does.

use image::ImageFormat;
use tierline_codec::npy;
use tierline_graph::{Elements, Tensor};
use tierline_train::data::{DataError, Dataset, Others, Targets, names_together};
use tierline_train::federated::Share;
use tierline_train::{Job, TrainError};

use crate::samples::{counting, labels, load, parquet_pictures, picture, write};

fn names(of: &[&str]) -> Vec<String> {
    of.iter().map(|name| (*name).to_owned()).collect()
}

fn dataset(classes: &[u32], of: &[&str]) -> Dataset {
    let features = Tensor::new([classes.len(), 1], Elements::U8(vec![7; classes.len()])).unwrap();
    let count = if of.is_empty() { 1 + *classes.iter().max().unwrap() as usize } else { of.len() };
    Dataset::new("zoo", features, Targets::Classes { classes: classes.to_vec(), count, names: names(of) }).unwrap()
}

fn job(data: &str) -> Job {
    let text = format!(
        "model = 'm.onnx'\nepochs = 1\n[data]\ntrain = 'zoo'\n{data}\n[optimizer]\nkind = 'sgd'\n[schedule]\nrate = 0.1\n"
    );
    toml::from_str(&text).unwrap()
}

#[test]
fn an_end_that_lacks_a_class_keeps_the_others_numbers() {
    let all = names(&["ant", "bee", "cow"]);
    let own = dataset(&[0, 1, 1], &["bee", "cow"]).numbered(&all, Others::Refuse).unwrap();
    assert_eq!(own.classes(), Some(vec![1, 2, 2]));
    assert_eq!(own.targets(&[0, 2]).unwrap().as_i64(), Some(&[1i64, 2][..]));
    assert_eq!((own.class_count(), own.class_names()), (Some(3), Some(&all[..])));
    assert_eq!(own.counts(), Some(vec![0, 1, 2]));
    // Parts of it too, and in whatever order it lists them.
    assert_eq!(own.subset(&[2]).unwrap().classes(), Some(vec![2]));
    let turned = dataset(&[0, 1], &["cow", "ant"]).numbered(&all, Others::Refuse).unwrap();
    assert_eq!(turned.classes(), Some(vec![2, 0]));
    // Numbered once more, by another job.
    let again = turned.numbered(&names(&["x", "ant", "cow"]), Others::Refuse).unwrap();
    assert_eq!(again.classes(), Some(vec![2, 1]));
}

#[test]
fn a_class_that_the_job_does_not_know_is_refused_or_dropped() {
    let all = names(&["ant", "bee"]);
    let own = dataset(&[0, 1, 2, 1], &["ant", "dog", "bee"]);
    let refused = own.numbered(&all, Others::Refuse).unwrap_err();
    assert!(matches!(&refused, DataError::Unnamed { class, .. } if class == "dog"), "{refused}");
    assert!(refused.to_string().contains("`dog`") && refused.to_string().contains("ant, bee"), "{refused}");
    let left = own.numbered(&all, Others::Drop).unwrap();
    assert_eq!((left.len(), left.classes()), (2, Some(vec![0, 1])));
    assert!(dataset(&[0], &["dog"]).numbered(&all, Others::Drop).is_err(), "nothing is left");
    // A folder without a picture is no example.
    assert_eq!(dataset(&[1], &["dog", "bee"]).numbered(&all, Others::Refuse).unwrap().classes(), Some(vec![1]));
}

#[test]
fn classes_without_names_keep_their_numbers() {
    let own = dataset(&[0, 2], &[]);
    let same = own.numbered(&names(&["ant", "bee", "cow"]), Others::Refuse).unwrap();
    assert_eq!((same.classes(), same.class_names()), (Some(vec![0, 2]), None));
    // Unless the job's names are numbers: then a label is a name.
    let digits = own.numbered(&names(&["2", "0", "x"]), Others::Refuse).unwrap();
    assert_eq!(digits.classes(), Some(vec![1, 0]));
    assert!(own.numbered(&names(&["0", "1"]), Others::Refuse).is_err());
}

#[test]
fn names_that_are_agreed_on_have_all_of_them() {
    let together = |sets: &[&[&str]]| {
        let sets: Vec<Vec<String>> = sets.iter().map(|set| names(set)).collect();
        names_together(sets.iter().map(Vec::as_slice)).join(" ")
    };
    assert_eq!(together(&[&["bee", "cow"], &["ant", "bee"]]), "ant bee cow");
    assert_eq!(together(&[&["bee"], &["cow", "ant", "bee"]]), "cow ant bee", "who knows all says the order");
    assert_eq!(together(&[&["cow", "bee"], &["ant", "bee"]]), "cow bee ant", "an order that was stated stays");
    assert_eq!(together(&[&[], &["ant"]]), "ant");
    assert_eq!(together(&[]), "");
}

#[test]
fn a_share_has_the_jobs_numbers_in_both_its_parts() {
    let job = job("hold_out = 0.5\nclasses = ['ant', 'bee', 'cow']");
    let federated = Job { federation: Some(toml::from_str("evaluate_at = 'ends'").unwrap()), ..job.clone() };
    let share = Share::of(&dataset(&[1; 8], &["ant", "cow"]), &federated).unwrap();
    assert_eq!(share.seen.classes(), Some(vec![2; 4]));
    assert_eq!(share.held_out.unwrap().classes(), Some(vec![2; 4]));
    let refused = Share::of(&dataset(&[0], &["dog"]), &job).unwrap_err();
    assert!(matches!(refused, TrainError::Data(DataError::Unnamed { .. })), "{refused}");
}

#[test]
fn jobs_of_before_say_the_same_as_ever() {
    let text = toml::to_string(&job("")).unwrap();
    assert!(!text.contains("\nclasses") && !text.contains("other_classes"), "{text}");
    for wrong in ["classes = ['a', 'a']", "classes = ['']"] {
        let text = format!(
            "model = 'm'\nepochs = 1\n[data]\ntrain = 'd'\n{wrong}\n[optimizer]\nkind = 'sgd'\n[schedule]\nrate = 0.1\n"
        );
        assert!(toml::from_str::<Job>(&text).is_err(), "{wrong}");
    }
}

/// Folders, tables with texts and Parquet name their classes; NumPy doesn't.
#[test]
fn every_format_with_names_takes_the_jobs_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    let small = || picture(ImageFormat::Png, 2, 2, [0; 3]);
    write(place.join("zoo/bee/1.png"), &small());
    write(place.join("zoo/cow/1.png"), &small());
    write(place.join("t.csv"), b"x,label\n1,bee\n2,cow\n");
    write(place.join("t.parquet"), &parquet_pictures(&[(small(), Some("bee")), (small(), Some("cow"))]));
    let all = names(&["ant", "bee", "cow"]);
    for json in [
        r#"{"format": "folder", "path": "$/zoo"}"#,
        r#"{"format": "csv", "path": "$/t.csv"}"#,
        r#"{"format": "parquet", "path": "$/t.parquet"}"#,
    ] {
        let own = load(place, json).unwrap().numbered(&all, Others::Refuse).unwrap();
        assert_eq!(own.classes(), Some(vec![1, 2]), "{json}");
    }
    write(place.join("x.npy"), &npy::write(&counting(&[2, 3])).unwrap());
    write(place.join("y.npy"), &npy::write(&labels(&[0, 1])).unwrap());
    let plain = load(place, r#"{"format": "npy", "features": "$/x.npy", "labels": "$/y.npy"}"#).unwrap();
    assert_eq!(plain.numbered(&all, Others::Refuse).unwrap().classes(), Some(vec![0, 1]));
}
