//! Data sets by name: added, listed, shown, taken back; broken ones refused.

use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use tierline_graph::{Elements, Tensor};

use crate::harness::{Ran, tierline};

/// A data folder, and files beside it.
struct DataFolder {
    folder: tempfile::TempDir,
}

impl DataFolder {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    /// `tierline data ARGS`, with `$` for the folder in arguments and answers.
    fn data(&self, args: &str) -> Ran {
        let here = self.folder.path().to_str().unwrap();
        let node = self.path("node");
        let args = args.split(' ').map(|arg| arg.replace('$', here));
        let ran = tierline(["--data", node.to_str().unwrap(), "data"].map(str::to_owned).into_iter().chain(args));
        Ran { stdout: ran.stdout.replace(here, "$"), stderr: ran.stderr.replace(here, "$"), ..ran }
    }

    /// What commands print, one after the other.
    fn transcript(&self, commands: &[&str]) -> String {
        let step = |command: &&str| {
            let Ran { code, stdout, stderr } = self.data(command);
            format!("> tierline data {command}\n{stdout}[{code}] {stderr}\n")
        };
        commands.iter().map(step).collect()
    }

    /// Six grey pictures in the classes 0 to 2, four to train and two to test.
    fn digits(&self) {
        for (split, count) in [("train", 4u8), ("t10k", 2)] {
            let pixels: Vec<u8> = (0..count * 12).map(|i| i * 5).collect();
            let labels: Vec<u8> = (0..count).map(|i| i % 3).collect();
            self.write(&format!("digits/{split}-images-idx3-ubyte"), &idx(&[count.into(), 4, 3], &pixels));
            self.write(&format!("digits/{split}-labels-idx1-ubyte"), &idx(&[count.into()], &labels));
        }
    }

    fn flowers(&self) {
        self.write(
            "flowers.csv",
            b"length,width,label,user\n5.1,3.5,setosa,ann\n6.0,2.2,virginica,bob\n4.9,3,setosa,ann\n",
        );
    }

    fn pictures(&self) {
        for (name, side) in [("cat/1.png", 4), ("cat/2.png", 4), ("dog/1.png", 4)] {
            self.write(&format!("pets/{name}"), &png(side, [200, 40, 10]));
        }
    }

    fn archive(&self) {
        let x = Tensor::new([3, 2], Elements::F32(vec![0.5, 1.0, -2.0, 4.0, 0.0, 1.5])).unwrap();
        let y = Tensor::new([3], Elements::F32(vec![0.25, 1.75, -1.0])).unwrap();
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for (name, tensor) in [("x.npy", &x), ("y.npy", &y)] {
            zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(&tierline_codec::npy::write(tensor).unwrap()).unwrap();
        }
        self.write("houses.npz", &zip.finish().unwrap().into_inner());
    }
}

fn idx(shape: &[u32], body: &[u8]) -> Vec<u8> {
    let sizes = shape.iter().flat_map(|size| size.to_be_bytes());
    [0, 0, 8, shape.len() as u8].into_iter().chain(sizes).chain(body.iter().copied()).collect()
}

fn png(side: u32, color: [u8; 3]) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::from(RgbImage::from_pixel(side, side, Rgb(color))).write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn files_in(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn every_format_is_added_listed_and_shown() {
    let folder = DataFolder::new();
    folder.digits();
    folder.flowers();
    folder.pictures();
    folder.archive();
    insta::assert_snapshot!(
        "data_text",
        folder.transcript(&[
            "ls",
            "add digits $/digits",
            "add flowers $/flowers.csv --group-column user",
            "add pets $/pets --size 2x3 --grey",
            "add houses $/houses.npz",
            "ls",
            "show digits",
            "show flowers",
            "show pets",
            "show houses",
            "rm pets",
            "ls --quiet",
        ])
    );
}

#[test]
fn documents_have_a_fixed_shape() {
    let folder = DataFolder::new();
    folder.digits();
    folder.flowers();
    folder.archive();
    insta::assert_snapshot!(
        "data_json",
        folder.transcript(&[
            "ls --json --quiet",
            "add digits $/digits --json",
            "add flowers $/flowers.csv --drop user --json",
            "add houses $/houses.npz --json",
            "ls --json",
            "show digits --json",
            "show flowers --json",
            "show houses --json",
            "rm houses --json",
        ])
    );
}

#[test]
fn a_pair_of_files_is_named_by_both() {
    let folder = DataFolder::new();
    folder.digits();
    let (images, labels) = ("$/digits/train-images-idx3-ubyte", "$/digits/train-labels-idx1-ubyte");
    folder.data(&format!("add digits {images}")).refused(2, "try: --labels FILE");
    let added = folder.data(&format!("add digits {images} --labels {labels} --classes 10 --json")).json();
    assert_eq!((&added["examples"], &added["classes"]), (&4.into(), &10.into()));
    let x = tierline_codec::npy::write(&Tensor::new([2, 1], Elements::F32(vec![1.0, 2.0])).unwrap()).unwrap();
    let y = tierline_codec::npy::write(&Tensor::new([2], Elements::I64(vec![0, 1])).unwrap()).unwrap();
    folder.write("a.npy", &x);
    folder.write("b.npy", &y);
    folder.data("add arrays $/a.npy").refused(2, "--labels FILE");
    let added = folder.data("add arrays $/a.npy --labels $/b.npy --values --json").json();
    assert_eq!(added["classes"], serde_json::Value::Null, "whole numbers, but values were asked for");
}

#[test]
fn paths_hold_wherever_one_stands() {
    let folder = DataFolder::new();
    folder.flowers();
    let run = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tierline"));
        let ran = command.current_dir(folder.folder.path()).arg("--data").arg("node").arg("data").args(args).output();
        assert!(ran.unwrap().status.success());
    };
    run(&["add", "flowers", "flowers.csv", "--drop", "user"]);
    assert_eq!(folder.data("show flowers --json").json()["examples"], 3);
}

#[test]
fn a_contact_sheet_is_a_png() {
    let folder = DataFolder::new();
    folder.digits();
    folder.flowers();
    assert_eq!(folder.data("add digits $/digits").code, 0);
    assert_eq!(folder.data("add flowers $/flowers.csv --drop user").code, 0);
    let shown = folder.data("show digits --picture $/sheet.png --per-class 2 --json").json();
    assert_eq!(shown["picture"], "$/sheet.png");
    let sheet = image::open(folder.path("sheet.png")).unwrap();
    // Two of 3 pixels, three classes of 4, sixteenfold, with gaps of 2.
    // Before them are the names, of one letter.
    assert_eq!((sheet.width(), sheet.height()), (2 + 16 + 8 + 2 + 2 * (3 * 16 + 2), 2 + 3 * (4 * 16 + 2)));
    folder.data("show digits --picture $/sheet.gif").refused(2, "end the name in .png");
    folder.data("show digits --picture $/sheet.png --per-class 0").refused(2, "--per-class N");
    folder.data("show digits --picture $/none/sheet.png").refused(1, "cannot write $/none/sheet.png");
    folder.data("show flowers --picture $/table.png").refused(1, "this needs pictures");
    assert!(!folder.path("table.png").exists());
}

#[test]
fn what_is_broken_is_not_registered() {
    let folder = DataFolder::new();
    folder.write("short/train-images-idx3-ubyte", &idx(&[2, 4, 4], &[0; 20]));
    folder.write("short/train-labels-idx1-ubyte", &idx(&[2], &[0, 1]));
    folder.write("nan.csv", b"x,label\n1,0\nNaN,1\n");
    folder.write("text.csv", b"x,label\n1,0\nred,1\n");
    folder.write("plain.csv", b"x,label\n1,0\n2,7\n");
    folder.write("numbers.csv", b"1,0\n2,1\n");
    folder.write("empty.csv", b"x,label\n");
    folder.write("colours.csv", b"x,colour\n1,red\n");
    folder.write("noise.npz", b"PK no archive");
    folder.write("noise.bin", b"noise");
    folder.write("pets/cat/1.png", &png(4, [0; 3]));
    folder.write("pets/cat/2.png", &png(5, [0; 3]));
    folder.write("holes/cat/1.png", b"no picture");
    insta::assert_snapshot!(
        "data_refused",
        folder.transcript(&[
            "add x $/absent.csv",
            "add x $/short",
            "add x $/nan.csv",
            "add x $/text.csv",
            "add x $/plain.csv --classes 5",
            "add x $/numbers.csv",
            "add x $/empty.csv",
            "add x $/colours.csv",
            "add x $/plain.csv --label-column lable",
            "add x $/noise.npz",
            "add x $/noise.bin",
            "add x $/pets",
            "add x $/holes",
            "add x $/plain.csv --size 4x4",
            "add ../x $/plain.csv",
        ])
    );
    assert_eq!(files_in(&folder.path("node/datasets")), [""; 0]);
    folder.data("add x $/plain.csv --format zip").refused(2, "there are: idx, npz, npy, csv, folder, parquet");
    folder.data("add x $/plain.csv --size 4").refused(2, "as in 32x32");
}

#[test]
fn a_name_is_given_once() {
    let folder = DataFolder::new();
    folder.flowers();
    folder.write("nan.csv", b"x,label\nNaN,1\n");
    folder.write("other.csv", b"x,label\n1,0\n");
    assert_eq!(folder.data("add flowers $/flowers.csv --drop user").code, 0);
    folder.data("add flowers $/other.csv").refused(1, "`flowers` already names a data set\n  try: add --replace");
    folder.data("add flowers $/nan.csv --replace").refused(1, "column `x` of example 0 is NaN");
    assert_eq!(folder.data("show flowers --json").json()["examples"], 3, "the one before stays");
    assert_eq!(folder.data("add flowers $/other.csv --replace").code, 0);
    assert_eq!(folder.data("show flowers --json").json()["examples"], 1);
    assert_eq!(files_in(&folder.path("node/datasets")), ["flowers.toml"], "nothing is left of passing files");
}

#[test]
fn an_unknown_name_comes_with_the_near_one() {
    let folder = DataFolder::new();
    folder.flowers();
    folder.data("show flowers").refused(1, "no data set `flowers` is known here\n  try: tierline data add NAME PATH");
    assert_eq!(folder.data("add flowers $/flowers.csv --drop user").code, 0);
    folder.data("show flower").refused(1, "did you mean `flowers`?");
    folder.data("rm Flowers").refused(1, "did you mean `flowers`?");
    folder.data("rm ../node").refused(1, "known data sets: flowers");
    assert_eq!(folder.data("rm flowers").code, 0);
    assert!(folder.path("flowers.csv").exists(), "only the name goes");
    folder.data("rm flowers").refused(1, "no data set `flowers`");
}

#[test]
fn files_that_change_later_are_said_to_have() {
    let folder = DataFolder::new();
    folder.flowers();
    assert_eq!(folder.data("add flowers $/flowers.csv --drop user").code, 0);
    folder.write("flowers.csv", b"length,width,label,user\n5.1,inf,setosa,ann\n");
    folder.data("show flowers").refused(1, "the data set `flowers`: `$/flowers.csv`: column `width`");
    std::fs::remove_file(folder.path("flowers.csv")).unwrap();
    folder.data("show flowers").refused(1, "tierline data add flowers PATH --replace");
    let listed = folder.data("ls");
    assert!(listed.code == 0 && listed.stderr.contains("flowers.csv is no longer there"), "{listed:?}");
    folder.write("node/datasets/broken.toml", b"[source]\nformat = \"csv\"\n");
    folder.data("show broken").refused(3, "try: tierline data rm broken");
    let listed = folder.data("ls --json").json();
    assert_eq!((&listed["datasets"][0]["name"], &listed["broken"][0]["name"]), (&"flowers".into(), &"broken".into()));
    assert_eq!(folder.data("rm broken").code, 0);
}
