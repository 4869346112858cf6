//! Folders of pictures: nothing is left out without a word, and no class moves
//! up into the place of another.

use std::path::Path;

use image::codecs::gif::GifEncoder;
use image::{DynamicImage, ImageFormat, RgbImage};
use tierline_train::data::Dataset;

use crate::samples::{load, picture, refusal, write};

const FOLDER: &str = r#"{"format": "folder", "path": "$"}"#;

/// Three classes, the first one as the test wants it.
fn zoo(place: &Path) {
    std::fs::create_dir_all(place.join("ant")).unwrap();
    for class in ["bee", "cow"] {
        write(place.join(class).join("1.png"), &picture(ImageFormat::Png, 2, 2, [9; 3]));
    }
}

fn counts(dataset: &Dataset) -> Vec<(String, usize)> {
    let counts = dataset.counts().unwrap();
    counts.into_iter().enumerate().map(|(class, count)| (dataset.class_name(class), count)).collect()
}

#[track_caller]
fn three(place: &Path, ants: usize) -> Dataset {
    let dataset = load(place, FOLDER).unwrap();
    let expected = [("ant", ants), ("bee", 1), ("cow", 1)].map(|(name, count)| (name.to_owned(), count));
    assert_eq!(counts(&dataset), expected);
    dataset
}

#[test]
fn pictures_of_all_usual_formats_are_read() {
    let formats = [
        (ImageFormat::Bmp, "bmp"),
        (ImageFormat::Gif, "gif"),
        (ImageFormat::Tiff, "TIF"),
        (ImageFormat::WebP, "webp"),
        (ImageFormat::Pnm, "ppm"),
        (ImageFormat::Jpeg, "jfif"),
        (ImageFormat::Png, ""),
    ];
    for (format, extension) in formats {
        let folder = tempfile::tempdir().unwrap();
        zoo(folder.path());
        write(folder.path().join("ant/1").with_extension(extension), &picture(format, 2, 2, [9; 3]));
        let dataset = three(folder.path(), 1);
        let pixels = dataset.features(&[0]).unwrap();
        let near = pixels.elements().as_bytes().unwrap().iter().all(|p| p.abs_diff(9) < 3);
        assert!(near, "{format:?}");
        assert!(dataset.notes().is_empty());
    }
}

#[test]
fn a_class_without_pictures_stays_a_class() {
    let folder = tempfile::tempdir().unwrap();
    zoo(folder.path());
    let dataset = three(folder.path(), 0);
    assert_eq!(dataset.notes(), ["classes without a picture, which keep their numbers: `ant`"]);
    // Of a split as well: the classes are those of all splits.
    let folder = tempfile::tempdir().unwrap();
    zoo(&folder.path().join("train"));
    write(folder.path().join("test/dog/1.png"), &picture(ImageFormat::Png, 2, 2, [9; 3]));
    let dataset = load(folder.path(), FOLDER).unwrap();
    assert_eq!(dataset.class_names().unwrap(), ["ant", "bee", "cow", "dog"]);
}

#[test]
fn pictures_in_deeper_folders_are_their_classes() {
    let folder = tempfile::tempdir().unwrap();
    zoo(folder.path());
    write(folder.path().join("ant/more/still more/1.png"), &picture(ImageFormat::Png, 2, 2, [9; 3]));
    write(folder.path().join("ant/2.png"), &picture(ImageFormat::Png, 2, 2, [9; 3]));
    three(folder.path(), 2);
    // A folder around the classes is none of them.
    let outer = tempfile::tempdir().unwrap();
    zoo(&outer.path().join("zoo"));
    let said = refusal(outer.path(), FOLDER);
    assert!(said.contains("all pictures lie in folders below it") && said.contains("zoo"), "{said}");
}

#[test]
fn what_cannot_be_read_is_refused_by_name() {
    let check = |make: &dyn Fn(&Path), expected: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        zoo(folder.path());
        make(folder.path());
        let said = refusal(folder.path(), FOLDER);
        assert!(expected.iter().all(|part| said.contains(part)), "{said}");
    };
    let link = |to: &'static str, at: &'static str| {
        move |place: &Path| std::os::unix::fs::symlink(to, place.join(at)).unwrap()
    };
    check(&link("/nowhere.png", "ant/1.png"), &["ant/1.png", "link to nothing"]);
    check(&link("/nowhere", "dog"), &["dog", "link to nothing"]);
    check(&link("..", "ant/all"), &["too many folders deep"]);
    check(&link("/dev/null", "ant/1.png"), &["ant/1.png", "neither a file nor a folder"]);
    let file = |name: &'static str, bytes: &'static [u8]| move |place: &Path| drop(write(place.join(name), bytes));
    check(&file("ant/1.heic", b"anything"), &["ant/1.heic", "isn't read", "convert it"]);
    check(&file("1.png", b"anything"), &["1.png", "outside of all classes"]);
    check(&file("ant/1.jpg", b"anything"), &["ant/1.jpg", "broken"]);
    let split = tempfile::tempdir().unwrap();
    for name in ["test", "val"] {
        zoo(&split.path().join(name));
    }
    assert!(refusal(split.path(), FOLDER).contains("none named `train`"));
}

#[test]
fn what_is_no_picture_is_told_of() {
    let folder = tempfile::tempdir().unwrap();
    zoo(folder.path());
    write(folder.path().join("ant/1.png"), &picture(ImageFormat::Png, 2, 2, [9; 3]));
    for name in ["README.md", "ant/notes.txt", "bee/Thumbs.db", "cow/a.txt", "ant/.DS_Store", ".git/1.png"] {
        write(folder.path().join(name), b"text");
    }
    let dataset = three(folder.path(), 1);
    assert_eq!(
        dataset.notes(),
        [
            "hidden, and left out: `.git`, `ant/.DS_Store`",
            "no pictures, and left out: `README.md`, `ant/notes.txt`, `bee/Thumbs.db` and 1 more"
        ]
    );
}

#[test]
fn an_example_is_one_picture() {
    let folder = tempfile::tempdir().unwrap();
    zoo(folder.path());
    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new(&mut bytes);
    for shade in [0, 255] {
        let frame = DynamicImage::from(RgbImage::from_pixel(2, 2, image::Rgb([shade; 3]))).to_rgba8();
        encoder.encode_frame(image::Frame::new(frame)).unwrap();
    }
    drop(encoder);
    write(folder.path().join("ant/1.gif"), &bytes);
    let said = refusal(folder.path(), FOLDER);
    assert!(said.contains("ant/1.gif") && said.contains("several pictures"), "{said}");
}

#[test]
fn what_a_header_declares_takes_no_memory() {
    let folder = tempfile::tempdir().unwrap();
    zoo(folder.path());
    // 65,535 pixels each way, a palette of two colours, and an image as large.
    let huge: &[u8] =
        b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff\x2c\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x44\x01\0\x3b";
    write(folder.path().join("ant/1.gif"), huge);
    let said = refusal(folder.path(), FOLDER);
    assert!(said.contains("ant/1.gif") && !said.contains("several pictures"), "{said}");
}

#[test]
fn a_turned_picture_is_seen_as_it_was_taken() {
    let folder = tempfile::tempdir().unwrap();
    // Left white, right black, and the camera was held upright.
    let turned = RgbImage::from_fn(8, 8, |x, _| image::Rgb([if x < 4 { 255 } else { 0 }; 3]));
    let mut plain = std::io::Cursor::new(Vec::new());
    DynamicImage::from(turned).write_to(&mut plain, ImageFormat::Jpeg).unwrap();
    let plain = plain.into_inner();
    // An APP1 segment with one entry: orientation 6, a quarter turn clockwise.
    let exif: &[u8] = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let mut bytes = plain[..2].to_vec();
    bytes.extend([0xff, 0xe1]);
    bytes.extend((exif.len() as u16 + 2).to_be_bytes());
    bytes.extend(exif);
    bytes.extend(&plain[2..]);
    write(folder.path().join("a/1.jpg"), &bytes);
    write(folder.path().join("b/1.jpg"), &plain);
    let dataset = load(folder.path(), FOLDER).unwrap();
    let pixels = |example: usize| dataset.features(&[example]).unwrap().elements().as_bytes().unwrap()[..64].to_vec();
    let (upright, lying) = (pixels(0), pixels(1));
    assert!(lying[0] > 200 && lying[7] < 50 && lying[56] > 200, "{lying:?}");
    assert!(upright[0] > 200 && upright[7] > 200 && upright[56] < 50, "{upright:?}");
}
