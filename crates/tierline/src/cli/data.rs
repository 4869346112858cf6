//! `tierline data`: name data sets on this device, and look into them.

use std::path::{Path, PathBuf};

use serde::Serialize;
use tierline_daemon::datasets::{Datasets, DatasetsError, Found, Listed, Record};
use tierline_store::disk::Existing;
use tierline_train::data::{
    Color, Column, DataError, Dataset, Format, Idx, Layout, Npy, PictureOptions, Source, TargetKind, TargetOptions,
    sheet_png,
};

use super::{Global, usage};
use crate::output::{self, CommandError, CommandResult, ExitCode};

#[derive(Debug, clap::Subcommand)]
pub enum DataVerb {
    /// Check a data set and give it a name
    Add(Box<Add>),
    /// List the data sets that have a name
    Ls,
    /// Print what a data set holds, and draw samples of it
    Show(Show),
    /// Take a data set's name back; its files stay
    Rm(Rm),
}

pub fn data(global: &Global, verb: DataVerb) -> CommandResult {
    let datasets = Datasets::of(&global.data_folder());
    match verb {
        DataVerb::Add(args) => add(global, &datasets, &args),
        DataVerb::Ls => ls(global, &datasets),
        DataVerb::Show(args) => show(global, &datasets, &args),
        DataVerb::Rm(args) => rm(global, &datasets, &args),
    }
}

#[derive(Debug, clap::Args)]
pub struct Add {
    /// The name it will be asked for by
    name: String,
    /// The file or folder; of a pair of files, the one with features
    path: PathBuf,
    /// How it is stored, where names don't show it: idx, npz, npy, csv, folder (of pictures), parquet
    #[arg(long)]
    format: Option<Format>,
    /// Point the name at this data set when it points at another
    #[arg(long)]
    replace: bool,
    /// Targets are this many classes, also if no example shows the last
    #[arg(long, value_name = "N", conflicts_with = "values")]
    classes: Option<usize>,
    /// Names of the classes, in their order
    #[arg(long, value_name = "A,B,...", value_delimiter = ',', conflicts_with = "values")]
    class_names: Vec<String>,
    /// Targets are numbers to predict
    #[arg(long)]
    values: bool,
    /// idx, npy: the file of labels; npz: the array of labels
    #[arg(long, value_name = "FILE|ARRAY", help_heading = "Some formats")]
    labels: Option<PathBuf>,
    /// npz: the array of features
    #[arg(long, value_name = "ARRAY", requires = "labels", help_heading = "Some formats")]
    features: Option<String>,
    /// All but folder: the file or array of examples for tests
    #[arg(long, value_name = "FILE|ARRAY", help_heading = "Some formats")]
    test: Option<PathBuf>,
    /// idx, npy, npz: the file or array of labels for tests
    #[arg(long, value_name = "FILE|ARRAY", requires = "test", help_heading = "Some formats")]
    test_labels: Option<PathBuf>,
    /// npy, npz: where pictures have their channels: channels-first or channels-last
    #[arg(long, value_parser = layout, help_heading = "Some formats")]
    layout: Option<Layout>,
    /// csv, parquet: the column to predict, by name; without a header, by its number from 0
    #[arg(long, value_name = "COLUMN", help_heading = "Some formats")]
    label_column: Option<String>,
    /// csv, parquet: the column that says whose an example is
    #[arg(long, value_name = "COLUMN", help_heading = "Some formats")]
    group_column: Option<String>,
    /// csv, parquet: a column to leave out (repeat for more)
    #[arg(long, value_name = "COLUMN", help_heading = "Some formats")]
    drop: Vec<String>,
    /// csv: the first row is an example
    #[arg(long, help_heading = "Some formats")]
    no_header: bool,
    /// csv: what stands between cells
    #[arg(long, value_name = "CHARACTER", help_heading = "Some formats")]
    delimiter: Option<char>,
    /// folder, parquet: resize pictures to this height and width, as in 32x32
    #[arg(long, value_name = "HxW", value_parser = size, help_heading = "Some formats")]
    size: Option<[u32; 2]>,
    /// folder, parquet: pictures get one channel
    #[arg(long, help_heading = "Some formats")]
    grey: bool,
}

fn layout(text: &str) -> Result<Layout, &'static str> {
    match text {
        "channels-first" => Ok(Layout::ChannelsFirst),
        "channels-last" => Ok(Layout::ChannelsLast),
        _ => Err("it is channels-first or channels-last"),
    }
}

fn size(text: &str) -> Result<[u32; 2], &'static str> {
    let sides = text.split_once('x').and_then(|(height, width)| Some([height.parse().ok()?, width.parse().ok()?]));
    sides.ok_or("write height and width in pixels, as in 32x32")
}

impl Add {
    /// Where the data set is and how it is read.
    fn source(&self) -> CommandResult<Source> {
        let mut source = self.detected().map_err(|e| failure(e.into()))?;
        self.check_options(source.format())?;
        match &mut source {
            Source::Idx(idx) => {
                set(&mut idx.labels, self.labels.clone());
                set(&mut idx.test_images, self.test.clone().map(Some));
                set(&mut idx.test_labels, self.test_labels.clone().map(Some));
            }
            Source::Npy(npy) => {
                set(&mut npy.labels, self.labels.clone());
                set(&mut npy.test_features, self.test.clone().map(Some));
                set(&mut npy.test_labels, self.test_labels.clone().map(Some));
                npy.layout = self.layout;
            }
            Source::Npz(npz) => {
                let array = |path: &Option<PathBuf>| path.as_ref().map(|name| name.to_string_lossy().into_owned());
                npz.features.clone_from(&self.features);
                npz.labels = array(&self.labels);
                npz.test_features = array(&self.test);
                npz.test_labels = array(&self.test_labels);
                npz.layout = self.layout;
            }
            Source::Csv(csv) => {
                csv.test.clone_from(&self.test);
                (csv.label, csv.group, csv.drop) = self.columns();
                csv.header = !self.no_header;
                set(&mut csv.delimiter, self.delimiter);
            }
            Source::Parquet(parquet) => {
                parquet.test.clone_from(&self.test);
                (parquet.label, parquet.group, parquet.drop) = self.columns();
                parquet.pictures = self.pictures();
            }
            Source::Folder(folder) => folder.pictures = self.pictures(),
            _ => {}
        }
        *source.targets_mut() = self.targets();
        Ok(source)
    }

    /// The data set as its path and its format show it.
    fn detected(&self) -> Result<Source, DataError> {
        let pair = || {
            let name = self.path.file_name()?.to_str()?;
            let idx = name.ends_with("-ubyte") || name.ends_with("-ubyte.gz");
            if idx { Some(Format::Idx) } else { name.ends_with(".npy").then_some(Format::Npy) }
        };
        let format = self.format.or_else(|| pair().filter(|_| self.path.is_file()));
        let (features, targets) = (self.path.clone(), TargetOptions::default());
        match (format, self.labels.clone()) {
            (Some(Format::Idx), Some(labels)) if !self.path.is_dir() => {
                Ok(Source::Idx(Idx { images: features, labels, test_images: None, test_labels: None, targets }))
            }
            (Some(Format::Npy), Some(labels)) if !self.path.is_dir() => {
                Ok(Source::Npy(Npy { features, labels, test_features: None, test_labels: None, layout: None, targets }))
            }
            (Some(format), _) => Source::of(format, &self.path),
            (None, _) => Source::detect(&self.path),
        }
    }

    /// Refuses options that this format would ignore.
    fn check_options(&self, format: Format) -> CommandResult {
        use Format::{Csv, Folder, Idx, Npy, Npz, Parquet};
        let options: [(&str, bool, &[Format]); 12] = [
            ("--labels", self.labels.is_some(), &[Idx, Npy, Npz]),
            ("--features", self.features.is_some(), &[Npz]),
            ("--test", self.test.is_some(), &[Idx, Npy, Npz, Csv, Parquet]),
            ("--test-labels", self.test_labels.is_some(), &[Idx, Npy, Npz]),
            ("--layout", self.layout.is_some(), &[Npy, Npz]),
            ("--label-column", self.label_column.is_some(), &[Csv, Parquet]),
            ("--group-column", self.group_column.is_some(), &[Csv, Parquet]),
            ("--drop", !self.drop.is_empty(), &[Csv, Parquet]),
            ("--no-header", self.no_header, &[Csv]),
            ("--delimiter", self.delimiter.is_some(), &[Csv]),
            ("--size", self.size.is_some(), &[Folder, Parquet]),
            ("--grey", self.grey, &[Folder, Parquet]),
        ];
        match options.iter().find(|(_, given, formats)| *given && !formats.contains(&format)) {
            Some((option, _, formats)) => {
                let formats: Vec<&str> = formats.iter().map(|format| format.name()).collect();
                let path = self.path.display();
                Err(usage(format!("{option} is for {}; {path} is read as {format}", formats.join(", "))))
            }
            None => Ok(()),
        }
    }

    fn columns(&self) -> (Option<Column>, Option<Column>, Vec<Column>) {
        let column = |name: &String| Column::Name(name.clone());
        (
            self.label_column.as_ref().map(column),
            self.group_column.as_ref().map(column),
            self.drop.iter().map(column).collect(),
        )
    }

    fn pictures(&self) -> PictureOptions {
        PictureOptions { size: self.size, color: if self.grey { Color::Grey } else { Color::Rgb } }
    }

    fn targets(&self) -> TargetOptions {
        let stated = self.classes.is_some() || !self.class_names.is_empty();
        let kind = if self.values { Some(TargetKind::Values) } else { stated.then_some(TargetKind::Classes) };
        TargetOptions { kind, classes: self.classes, names: self.class_names.clone() }
    }
}

fn set<T>(place: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *place = given;
    }
}

/// A data set, in a line.
#[derive(Serialize)]
struct Line {
    name: String,
    format: Format,
    path: PathBuf,
    examples: usize,
    /// Null when targets are numbers.
    classes: Option<usize>,
    shape: Vec<usize>,
    dtype: String,
    /// A file or folder of it that is no longer there.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<PathBuf>,
    /// What lay beside the examples and is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

impl Line {
    fn new(name: &str, mut record: Record) -> Self {
        let missing = record.source.paths_mut().into_iter().find(|path| !path.exists()).map(|path| path.clone());
        let Found { examples, classes, shape, dtype, notes } = record.found;
        let (format, path) = (record.source.format(), record.source.path().to_owned());
        Self { name: name.to_owned(), format, path, examples, classes, shape, dtype, missing, notes }
    }
}

fn add(global: &Global, datasets: &Datasets, args: &Add) -> CommandResult {
    let existing = if args.replace { Existing::Replace } else { Existing::Keep };
    let record = datasets.add(&args.name, args.source()?, existing).map_err(failure)?;
    record.found.notes.iter().for_each(|note| global.output().say(format!("{}: {note}", args.name)));
    global.output().data(&Line::new(&args.name, record), |line| {
        let targets =
            line.classes.map_or("numbers as targets".to_owned(), |classes| counted(classes, "class", "classes"));
        let examples = counted(line.examples, "example", "examples");
        format!("{}  {}  {examples} of {} {:?}, {targets}", line.name, line.format, line.dtype, line.shape)
    })
}

/// `1 class`, `2 classes`.
fn counted(count: usize, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}

#[derive(Serialize)]
struct Lines {
    datasets: Vec<Line>,
    /// Those whose record can't be read.
    broken: Vec<Broken>,
}

#[derive(Serialize)]
struct Broken {
    name: String,
    reason: String,
}

fn ls(global: &Global, datasets: &Datasets) -> CommandResult {
    let mut lines = Lines { datasets: Vec::new(), broken: Vec::new() };
    for Listed { name, record } in datasets.list().map_err(failure)? {
        match record {
            Ok(record) => lines.datasets.push(Line::new(&name, record)),
            Err(e) => lines.broken.push(Broken { name, reason: e.to_string() }),
        }
    }
    let out = global.output();
    out.data(&lines, |lines| {
        let row = |line: &Line| {
            vec![
                line.name.clone(),
                line.format.to_string(),
                line.examples.to_string(),
                line.classes.map_or("-".to_owned(), |classes| classes.to_string()),
                format!("{:?}", line.shape),
                line.path.display().to_string(),
            ]
        };
        let rows: Vec<Vec<String>> = lines.datasets.iter().map(row).collect();
        output::table(&["name", "format", "examples", "classes", "shape", "path"], &rows)
    })?;
    for line in &lines.datasets {
        if let Some(missing) = &line.missing {
            out.say(format!("{}: {} is no longer there", line.name, missing.display()));
        }
    }
    for Broken { name, reason } in &lines.broken {
        out.say(format!("{name}: {reason}\n  try: tierline data rm {name}, and add it again"));
    }
    if lines.datasets.is_empty() && lines.broken.is_empty() {
        out.say("no data set has a name here yet: tierline data add NAME PATH");
    }
    Ok(())
}

#[derive(Debug, clap::Args)]
pub struct Show {
    /// The data set's name
    dataset: String,
    /// Draw samples of each class into this PNG file
    #[arg(long, value_name = "FILE.png")]
    picture: Option<PathBuf>,
    /// Samples of each class in the picture
    #[arg(long, value_name = "N", default_value = "10", requires = "picture")]
    per_class: usize,
}

#[derive(Serialize)]
struct Report {
    name: String,
    format: Format,
    path: PathBuf,
    examples: usize,
    shape: Vec<usize>,
    dtype: &'static str,
    /// The smallest and the largest value of all features.
    range: [f64; 2],
    /// Empty when the source has none.
    splits: Vec<Count>,
    /// Null when targets are numbers.
    classes: Option<Vec<Count>>,
    /// Null when targets are classes.
    targets: Option<Numbers>,
    /// Names of the features, where they have any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    columns: Vec<String>,
    /// Of how many users or devices the examples are, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    groups: Option<usize>,
    /// What lies beside the examples and is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    picture: Option<PathBuf>,
}

/// How many examples something has.
#[derive(Serialize)]
struct Count {
    name: String,
    examples: usize,
}

/// Targets that are numbers.
#[derive(Serialize)]
struct Numbers {
    /// Of one example's target.
    shape: Vec<usize>,
    range: [f64; 2],
}

impl Report {
    fn new(source: &Source, dataset: &Dataset) -> Result<Self, DataError> {
        let split = |name: &&str| {
            Ok::<_, DataError>(Count { name: (*name).to_owned(), examples: dataset.named_split(name)?.len() })
        };
        let named = |(class, examples)| Count { name: dataset.class_name(class), examples };
        let classes = dataset.counts().map(|counts| counts.into_iter().enumerate().map(named).collect());
        Ok(Self {
            name: dataset.name().to_owned(),
            format: source.format(),
            path: source.path().to_owned(),
            examples: dataset.len(),
            shape: dataset.example_shape().to_vec(),
            dtype: dataset.dtype().numpy(),
            range: dataset.range(),
            splits: dataset.splits().iter().map(split).collect::<Result<_, _>>()?,
            targets: if classes.is_none() { Some(Numbers::of(dataset)?) } else { None },
            classes,
            columns: dataset.columns().to_vec(),
            groups: dataset.groups().map(|(_, names)| names.len()),
            notes: dataset.notes().to_vec(),
            picture: None,
        })
    }
}

impl Numbers {
    fn of(dataset: &Dataset) -> Result<Self, DataError> {
        let targets = dataset.targets(&(0..dataset.len()).collect::<Vec<_>>())?;
        let widen = |[low, high]: [f64; 2], value: &f32| [low.min(f64::from(*value)), high.max(f64::from(*value))];
        let range = targets.as_f32().unwrap_or_default().iter().fold([f64::INFINITY, f64::NEG_INFINITY], widen);
        Ok(Self { shape: targets.shape()[1..].to_vec(), range })
    }
}

fn show(global: &Global, datasets: &Datasets, args: &Show) -> CommandResult {
    let record = datasets.record(&args.dataset).map_err(failure)?;
    let dataset = datasets.open(&args.dataset).map_err(failure)?;
    let mut report = Report::new(&record.source, &dataset)?;
    if let Some(file) = &args.picture {
        draw(&dataset, args.per_class, file)?;
        report.picture = Some(file.clone());
    }
    global.output().data(&report, text)
}

fn draw(dataset: &Dataset, per_class: usize, file: &Path) -> CommandResult {
    if !file.extension().is_some_and(|e| e.eq_ignore_ascii_case("png")) {
        return Err(usage(format!("--picture {}: a PNG is written; end the name in .png", file.display())));
    }
    let png = sheet_png(dataset, per_class).map_err(|e| failure(e.into()))?;
    let failed = |e| CommandError::message(ExitCode::Failure, format!("cannot write {}: {e}", file.display()));
    std::fs::write(file, png).map_err(failed)
}

fn text(report: &Report) -> String {
    // As f32, in which training computes: 2.2 rather than 2.200000047683716.
    let range = |[low, high]: [f64; 2]| {
        let (low, high) = (low as f32, high as f32);
        if low == high { format!("all {low}") } else { format!("{low} to {high}") }
    };
    let mut text = format!("{}  {}  {}\n", report.name, report.format, report.path.display());
    let splits: Vec<String> = report.splits.iter().map(|s| format!("{} {}", s.name, s.examples)).collect();
    let splits = if splits.is_empty() { String::new() } else { format!(" ({})", splits.join(", ")) };
    text.push_str(&format!("examples  {}{splits}\n", report.examples));
    text.push_str(&format!("features  {} {:?}, {}\n", report.dtype, report.shape, range(report.range)));
    if !report.columns.is_empty() {
        text.push_str(&format!("columns   {}\n", report.columns.join(", ")));
    }
    if let Some(groups) = report.groups {
        text.push_str(&format!("groups    {groups}\n"));
    }
    for note in &report.notes {
        text.push_str(&format!("note      {note}\n"));
    }
    if let Some(targets) = &report.targets {
        text.push_str(&format!("targets   float32 {:?}, {}\n", targets.shape, range(targets.range)));
    }
    if let Some(file) = &report.picture {
        text.push_str(&format!("picture   {}\n", file.display()));
    }
    if let Some(classes) = &report.classes {
        let rows: Vec<Vec<String>> = classes.iter().map(|c| vec![c.name.clone(), c.examples.to_string()]).collect();
        text.push_str(&format!("\n{}", output::table(&["class", "examples"], &rows)));
    }
    text
}

#[derive(Debug, clap::Args)]
pub struct Rm {
    /// The data set's name
    dataset: String,
}

#[derive(Serialize)]
struct Removed {
    removed: String,
}

fn rm(global: &Global, datasets: &Datasets, args: &Rm) -> CommandResult {
    datasets.remove(&args.dataset).map_err(failure)?;
    if global.json {
        return global.output().data(&Removed { removed: args.dataset.clone() }, |_| String::new());
    }
    global.output().say(format!("{} is no longer known; its files stay where they are", args.dataset));
    Ok(())
}

/// The error with its exit code and what to do next on the command line.
fn failure(error: DatasetsError) -> CommandError {
    let exit = match &error {
        DatasetsError::Name { .. } => ExitCode::Usage,
        DatasetsError::Record { .. } => ExitCode::Configuration,
        DatasetsError::Data(DataError::Unrecognised { .. } | DataError::Option { .. } | DataError::Missing { .. }) => {
            ExitCode::Usage
        }
        _ => ExitCode::Failure,
    };
    let hint = match &error {
        DatasetsError::Data(error) => option(error).map(str::to_owned),
        other => other.help(),
    };
    CommandError { hint, ..CommandError::new(exit, error) }
}

/// The option that helps against an error; errors speak of configuration.
fn option(error: &DataError) -> Option<&'static str> {
    Some(match error {
        DataError::Unrecognised { .. } => "--format FORMAT, and for a pair of files --labels FILE",
        DataError::PictureSizes { .. } => "--size HxW resizes all pictures",
        DataError::Cell { .. } => "--drop COLUMN leaves a column out",
        DataError::Label { .. } => "--classes N if there are more classes, --values for numbers to predict",
        DataError::Missing { what: "column", .. } => "--label-column COLUMN",
        DataError::Missing { what: "array", .. } => "--features ARRAY --labels ARRAY",
        DataError::Option { option: "label", .. } => "--label-column COLUMN",
        DataError::Option { option: "labels", .. } => "--labels FILE",
        DataError::Option { option: "header", .. } => "--no-header",
        DataError::Option { option: "layout", .. } => "--layout channels-first, or --layout channels-last",
        DataError::Option { option: "features", .. } => "--features with --labels, --test with --test-labels",
        DataError::Option { option: "test_images", .. } => "--test FILE --test-labels FILE",
        DataError::Option { option: "per_class", .. } => "--per-class N",
        _ => return None,
    })
}
