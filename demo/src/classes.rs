//! Small pictures of ten classes: Fashion-MNIST as Debian packages it, or the
//! handwritten digits of scikit-learn where that can't be had.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tierline_graph::{Elements, Tensor};
use tierline_train::data::{Column, Csv, Dataset, Format, Source, Targets};

const PACKAGE: &str = "dataset-fashion-mnist";

/// The package that holds the digits, pinned.
const DIGITS: &str = "scikit-learn==1.9.1";

/// Takes the digits out of the package.
const UNPACK: &str = "import gzip, glob, sys, zipfile
wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + '/scikit_learn-*.whl')[0])
open(sys.argv[2], 'wb').write(gzip.decompress(wheel.read('sklearn/datasets/data/digits.csv.gz')))";

/// Sides of the digits, and of the pictures made of them: each pixel becomes
/// three by three, and two are left free at each side.
const DIGIT: usize = 8;
const SIDE: usize = 28;

/// What Fashion-MNIST's classes are, in their order (Xiao et al., 2017).
const FASHION: [&str; 10] =
    ["T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"];

/// Pictures to learn from, and others.
pub struct Pictures {
    /// `[examples, 1, 28, 28]`, u8.
    pub train: Dataset,
    /// Alike.
    pub test: Dataset,
    /// For people.
    pub name: &'static str,
    /// Names of the classes, for people.
    pub classes: Vec<String>,
    /// Passes over its pictures that an end makes each round: many where they
    /// are few.
    pub epochs: usize,
}

/// Fetches them beside the assets where they aren't there; the digits if
/// `TIERLINE_DEMO_DIGITS` asks for those.
///
/// # Errors
/// When neither can be had.
pub fn fetch(assets: &Path) -> Result<Pictures> {
    let asked = std::env::var_os("TIERLINE_DEMO_DIGITS").map(|_| Err(anyhow::anyhow!("TIERLINE_DEMO_DIGITS is set")));
    match asked.unwrap_or_else(|| fashion(assets)) {
        Ok(all) => {
            let (train, test) = (all.named_split("train")?, all.named_split("test")?);
            Ok(Pictures { train, test, name: "Fashion-MNIST", classes: FASHION.map(str::to_owned).into(), epochs: 1 })
        }
        Err(error) => {
            eprintln!("no Fashion-MNIST here ({error:#}): small digits instead");
            let (test, train) = digits(assets)?.split(0.2, 1)?;
            Ok(Pictures {
                train,
                test,
                name: "handwritten digits",
                classes: (0..10).map(|digit| digit.to_string()).collect(),
                epochs: 8,
            })
        }
    }
}

/// The folder of Fashion-MNIST's four files, fetched where it isn't there.
///
/// # Errors
/// When the package can't be had.
pub fn fashion_files(assets: &Path) -> Result<PathBuf> {
    let folder = assets.with_file_name(PACKAGE);
    let files = folder.join("usr/share/datasets/fashion-mnist");
    if !files.exists() {
        // Beside its place: what an interrupted run leaves is not taken for all of it.
        let fetched = tempfile::tempdir_in(assets.parent().context("assets lie in a folder")?)?;
        let output = Command::new("apt-get").args(["download", "-q", PACKAGE]).current_dir(&fetched).output()?;
        ensure!(output.status.success(), "`apt-get download {PACKAGE}` failed; `apt-get update` may help");
        let package = std::fs::read_dir(&fetched)?.next().context("apt-get downloaded nothing")??.path();
        let whole = fetched.path().join("whole");
        let status = Command::new("dpkg").arg("-x").arg(package).arg(&whole).status()?;
        ensure!(status.success(), "`dpkg -x` failed");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::rename(&whole, &folder)?;
    }
    Ok(files)
}

fn fashion(assets: &Path) -> Result<Dataset> {
    Ok(Source::detect(&fashion_files(assets)?)?.load()?)
}

fn digits(assets: &Path) -> Result<Dataset> {
    let file = assets.with_file_name("digits.csv");
    if !file.exists() {
        let python =
            std::env::var_os("TIERLINE_PYTHON").context("TIERLINE_PYTHON is not set; run `cargo xtask demo`")?;
        let fetched = tempfile::tempdir_in(assets.parent().context("assets lie in a folder")?)?;
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", DIGITS, "--dest"]);
        ensure!(pip.arg(fetched.path()).status()?.success(), "`pip download {DIGITS}` failed");
        let table = fetched.path().join("digits.csv");
        let unpacked = Command::new(&python).args(["-c", UNPACK]).arg(fetched.path()).arg(&table).status()?;
        ensure!(unpacked.success(), "{DIGITS} doesn't hold the digits any more");
        std::fs::rename(&table, &file)?;
    }
    enlarged(&table(&file)?)
}

/// The digits as scikit-learn has them: pixels from 0 to 16, then the class.
fn table(file: &Path) -> Result<Dataset> {
    let Source::Csv(csv) = Source::of(Format::Csv, file)? else { unreachable!("asked for CSV") };
    Ok(Source::Csv(Csv { header: false, label: Some(Column::Index(DIGIT * DIGIT)), ..csv }).load()?)
}

/// Digits of a table as pictures.
fn enlarged(table: &Dataset) -> Result<Dataset> {
    let rows: Vec<usize> = (0..table.len()).collect();
    let cells = table.features(&rows)?;
    let values = cells.as_f32().context("the digits are no numbers")?;
    let mut pixels = vec![0u8; rows.len() * SIDE * SIDE];
    for (digit, picture) in values.chunks(DIGIT * DIGIT).zip(pixels.chunks_mut(SIDE * SIDE)) {
        for (at, pixel) in picture.iter_mut().enumerate() {
            let [y, x] = [at / SIDE, at % SIDE].map(|place| place.wrapping_sub(2) / 3);
            if y < DIGIT && x < DIGIT {
                *pixel = (digit[y * DIGIT + x] * 15.9) as u8;
            }
        }
    }
    let classes = table.classes().context("the digits have no classes")?;
    let classes = classes.into_iter().map(|class| class as u32).collect();
    let features = Tensor::new([rows.len(), 1, SIDE, SIDE], Elements::U8(pixels))?;
    Ok(Dataset::new("digits", features, Targets::Classes { classes, count: 10, names: Vec::new() })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_ends_in_the_class() {
        let file = tempfile::NamedTempFile::with_suffix(".csv").unwrap();
        let rows: Vec<String> = (0..4).map(|class| format!("{}{class}", "0,16,".repeat(DIGIT * DIGIT / 2))).collect();
        std::fs::write(file.path(), rows.join("\n")).unwrap();
        let read = table(file.path()).unwrap();
        assert_eq!((read.classes(), read.example_shape()), (Some(vec![0, 1, 2, 3]), &[DIGIT * DIGIT][..]));
        assert_eq!(enlarged(&read).unwrap().example_shape(), [1, SIDE, SIDE]);
    }

    #[test]
    fn digits_become_pictures_with_a_margin() {
        let mut cells = vec![0f32; 64];
        (cells[0], cells[63]) = (16.0, 8.0);
        let features = Tensor::new([1, 64], Elements::F32(cells)).unwrap();
        let targets = Targets::Classes { classes: vec![3], count: 10, names: Vec::new() };
        let pictures = enlarged(&Dataset::new("t", features, targets).unwrap()).unwrap();
        let tensor = pictures.features(&[0]).unwrap();
        let Elements::U8(pixels) = tensor.elements() else { panic!("no pixels") };
        assert_eq!(pixels.iter().filter(|p| **p == 254).count(), 9);
        assert_eq!(pixels.iter().filter(|p| **p == 127).count(), 9);
        assert_eq!((pixels[2 * 28 + 2], pixels[25 * 28 + 25], pixels[0], pixels[783]), (254, 127, 0, 0));
    }
}
