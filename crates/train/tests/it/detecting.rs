//! What a path shows by its names, and what it doesn't.

use image::ImageFormat;
use tierline_codec::npy;
use tierline_train::data::{Format, Source};

use crate::samples::{counting, gzip, idx, labels, picture, write};

fn mnist(folder: &std::path::Path, split: &str, count: u8) {
    let images = idx(8, &[count.into(), 2, 2], &vec![7; usize::from(count) * 4]);
    write(folder.join(format!("{split}-images-idx3-ubyte.gz")), &gzip(&images));
    write(folder.join(format!("{split}-labels-idx1-ubyte")), &idx(8, &[count.into()], &vec![1; count.into()]));
}

#[test]
fn idx_files_in_the_usual_names_are_two_splits() {
    let folder = tempfile::tempdir().unwrap();
    mnist(folder.path(), "train", 5);
    mnist(folder.path(), "t10k", 2);
    let dataset = Source::detect(folder.path()).unwrap().load().unwrap();
    assert_eq!((dataset.len(), dataset.splits()), (7, vec!["train", "test"]));
    assert_eq!(dataset.named_split("test").unwrap().len(), 2);
    assert_eq!(dataset.name(), folder.path().file_name().unwrap().to_str().unwrap());
}

#[test]
fn other_folders_and_files_are_told_by_their_names() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path().join("arrays/x.npy"), &npy::write(&counting(&[2, 3])).unwrap());
    write(folder.path().join("arrays/y.npy"), &npy::write(&labels(&[0, 1])).unwrap());
    write(folder.path().join("pictures/a/1.png"), &picture(ImageFormat::Png, 2, 2, [0; 3]));
    write(folder.path().join("t.tsv"), b"x\tlabel\n1\t0\n");
    for (name, examples) in [("arrays", 2), ("pictures", 1), ("t.tsv", 1)] {
        let dataset = Source::detect(&folder.path().join(name)).unwrap().load().unwrap();
        assert_eq!(dataset.len(), examples, "{name}");
    }
}

#[test]
fn what_is_unclear_is_refused_with_the_choices() {
    let folder = tempfile::tempdir().unwrap();
    mnist(&folder.path().join("both"), "train", 1);
    write(folder.path().join("both/a/1.png"), &picture(ImageFormat::Png, 2, 2, [0; 3]));
    write(folder.path().join("none/notes.txt"), b"");
    write(folder.path().join("x.npy"), b"");
    for (name, expected) in [
        ("both", "IDX files and folders of pictures"),
        ("none", "neither IDX nor NumPy files"),
        ("none/notes.txt", "the name ends in none of"),
        ("x.npy", "one array has features or labels"),
    ] {
        let said = Source::detect(&folder.path().join(name)).unwrap_err().to_string();
        assert!(said.contains(expected) && said.contains("name a format: idx, npz"), "`{said}` lacks `{expected}`");
    }
    let said = Source::detect(&folder.path().join("absent")).unwrap_err().to_string();
    assert!(said.contains("cannot read"), "{said}");
}

#[test]
fn a_stated_format_settles_what_is_unclear() {
    let folder = tempfile::tempdir().unwrap();
    mnist(folder.path(), "train", 4);
    write(folder.path().join("a/1.png"), &picture(ImageFormat::Png, 2, 2, [0; 3]));
    write(folder.path().join("table.txt"), b"x,label\n1,0\n");
    for (format, name, examples) in [(Format::Idx, "", 4), (Format::Folder, "", 1), (Format::Csv, "table.txt", 1)] {
        let source = Source::of(format, &folder.path().join(name)).unwrap();
        assert_eq!((source.format(), source.load().unwrap().len()), (format, examples));
    }
    let said = Source::of(Format::Npy, folder.path()).unwrap_err().to_string();
    assert!(said.contains("no npy files in the usual names"), "{said}");
    let said = Source::of(Format::Idx, &folder.path().join("table.txt")).unwrap_err().to_string();
    assert!(said.contains("one of a pair of idx files"), "{said}");
}

#[test]
fn formats_are_named_as_configuration_names_them() {
    for format in Format::ALL {
        assert_eq!(serde_json::to_string(format).unwrap(), format!("\"{format}\""));
        assert_eq!(format.name().parse::<Format>().unwrap(), *format);
    }
    assert!("zip".parse::<Format>().unwrap_err().to_string().contains("there are: idx, npz"));
}
