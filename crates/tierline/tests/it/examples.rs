//! The example jobs on small made-up data, simulated and on nodes; the commands
//! of all pages are understood (that they run, `guides.rs` shows).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::CommandFactory;
use serde_json::Value;
use tierline::cli::Cli;
use tierline_zoo::{Batch, Bn, Options};

use crate::federation::{packed, part};
use crate::harness::{Node, Ran, Site};

/// What each job must get right of the examples held out; by chance it is a
/// tenth.
const FLOOR: f64 = 0.8;

/// What runs every job is done in so many tests, each with its share of the
/// jobs: on a busy machine one alone would take minutes.
const PARTS: usize = 4;

/// Each a test of one part.
macro_rules! in_parts {
    ($test:ident) => {
        mod $test {
            #[test]
            fn first() {
                super::$test(0);
            }

            #[test]
            fn second() {
                super::$test(1);
            }

            #[test]
            fn third() {
                super::$test(2);
            }

            #[test]
            fn fourth() {
                super::$test(super::PARTS - 1);
            }
        }
    };
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The example jobs and their networks in `examples/jobs`, and small data as
/// Debian packages Fashion-MNIST in `fashion` and `examples/fashion`.
struct Place(tempfile::TempDir);

impl Place {
    fn new(examples: usize) -> Self {
        let it = Self(tempfile::tempdir().unwrap());
        for folder in ["fashion", "examples/fashion"] {
            part(&it.path(folder), "train", examples, 1);
            part(&it.path(folder), "t10k", 200, 2);
            packed(&it.path(folder));
        }
        std::fs::create_dir_all(it.path("examples/jobs")).unwrap();
        for (name, text) in jobs() {
            std::fs::write(it.path("examples/jobs").join(name), text).unwrap();
        }
        let options = Options { bn: Bn::Kept, batch: Batch::Free, image: None, seed: 3 };
        for name in ["lenet", "mlp"] {
            let file = it.path("examples/jobs").join(name).with_extension("onnx");
            tierline_zoo::by_name(name, &options).unwrap().save(&file).unwrap();
        }
        it
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs a command in one of its folders.
    fn run(&self, folder: &str, args: &[&str]) -> Ran {
        let output = Command::new(env!("CARGO_BIN_EXE_tierline"))
            .args(args)
            .current_dir(self.path(folder))
            .env("TIERLINE_ENGINE", "rten")
            .env("TIERLINE_DATA", self.path(folder).join("data"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        Ran::of(output)
    }

    /// Smaller batches and larger steps: few examples teach little otherwise.
    fn hurry(&self) {
        for (name, text) in jobs() {
            assert!(text.contains("size = 32"), "{text}");
            let text = text.replace("size = 32", "size = 4").replace("rate = 0.05", "rate = 0.1");
            std::fs::write(self.path("examples/jobs").join(name), text).unwrap();
        }
    }
}

/// Names and texts of the example jobs.
fn jobs() -> Vec<(String, String)> {
    let files = std::fs::read_dir(root().join("examples/jobs")).unwrap().map(|entry| entry.unwrap().path());
    let mut jobs: Vec<_> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(&path).unwrap()))
        .collect();
    jobs.sort();
    assert!(jobs.len() >= 8, "{jobs:?}");
    jobs
}

/// A command as a page shows it.
struct Shown {
    line: String,
}

impl Shown {
    fn words(&self) -> Vec<&str> {
        let parts = self.line.split('"').enumerate();
        parts.flat_map(|(i, part)| if i % 2 == 1 { vec![part] } else { part.split_whitespace().collect() }).collect()
    }
}

/// Commands in a page's blocks, without prompts and remarks.
fn commands(page: &str) -> Vec<Shown> {
    let blocks = page.split("```").skip(1).step_by(2);
    let lines = blocks.filter_map(|block| block.split_once('\n')).flat_map(|(_, body)| body.lines());
    let begins = |line: &str| ["tierline ", "cargo ", "apt-get ", "dpkg "].iter().any(|word| line.starts_with(word));
    lines
        .map(|line| {
            let line = match line.split_once("$ ") {
                Some((node, rest)) if node.chars().all(char::is_alphabetic) => rest,
                _ => line,
            };
            let line = line.split(" #").next().unwrap_or(line);
            let line = line.split(" > ").next().unwrap_or(line).trim_end().trim_end_matches('&');
            Shown { line: line.trim().to_owned() }
        })
        .filter(|shown| begins(&shown.line))
        .collect()
}

fn page(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

#[test]
fn commands_of_all_pages_are_understood() {
    let guide = page("docs/guide/federations.md");
    for (job, _) in jobs() {
        assert!(guide.contains(&job), "{job} is in no command of the guide");
    }
    let mut seen = 0;
    let guides = std::fs::read_dir(root().join("docs/guide")).unwrap().map(|entry| entry.unwrap().path());
    let jobs = jobs().into_iter().map(|(_, text)| text.replace("#   ", "")).map(|text| format!("```sh\n{text}```"));
    let pages = guides.map(|path| std::fs::read_to_string(path).unwrap()).chain([page("README.md")]).chain(jobs);
    for page in pages {
        for shown in commands(&page).iter().filter(|shown| shown.line.starts_with("tierline ")) {
            if let Err(error) = Cli::command().try_get_matches_from(shown.words()) {
                panic!("{}: {error}", shown.line);
            }
            seen += 1;
        }
    }
    assert!(seen > 60, "{seen}");
}

fn last(ran: &Ran) -> Value {
    assert_eq!(ran.code, 0, "{ran:?}");
    serde_json::from_str(ran.stdout.lines().last().unwrap()).unwrap()
}

in_parts!(every_example_job_learns_with_as_many_edges_as_it_needs);

fn every_example_job_learns_with_as_many_edges_as_it_needs(part: usize) {
    let place = Place::new(480);
    place.hurry();
    let add = |args: &[&str]| assert_eq!(place.run("examples", &[&["data", "add"], args].concat()).code, 0);
    add(&["fashion-mnist", "fashion"]);
    let public = ["fashion/t10k-images-idx3-ubyte.gz", "--labels", "fashion/t10k-labels-idx1-ubyte.gz"];
    add(&[&["fashion-public"], &public[..]].concat());
    for (job, _) in jobs().into_iter().skip(part).step_by(PARTS) {
        let file = format!("jobs/{job}");
        let ran = place.run("examples", &["train", &file, "--sim", "8", "--json", "--quiet"]);
        let done = last(&ran);
        assert_eq!(done["event"], "done", "{job}");
        assert!(done["accuracy"].as_f64().unwrap() >= FLOOR, "{job}: {done}");
        if job == "hierarchical.toml" {
            let more = place
                .run("examples", &["train", &file, "--sim", "8", "--edges", "4", "--json", "--quiet", "--replace"]);
            assert_ne!(last(&more)["model"], done["model"], "{job}: other edges, another model");
        }
    }
}

#[test]
fn a_job_with_too_few_ends_is_refused() {
    let place = Place::new(480);
    assert_eq!(place.run("examples", &["data", "add", "fashion-mnist", "fashion"]).code, 0);
    let few = place.run("examples", &["train", "jobs/fedavg.toml", "--sim", "3"]);
    few.refused(5, "the cloud waits for 5 ends, with 3 simulated");
    let few = place.run("examples", &["train", "jobs/hierarchical.toml", "--sim", "5", "--edges", "3"]);
    few.refused(5, "an edge waits for 2 ends, with 1 simulated");
    place.run("examples", &["train", "jobs/fedavg.toml", "--edges", "2"]).refused(2, "--sim");
}

#[test]
fn example_jobs_learn_on_nodes() {
    let (site, place) = (Site::new(), Place::new(200));
    place.hurry();
    let edges: Vec<Node> = (0..2).map(|i| site.edge(&format!("edge-{i:02}"))).collect();
    let ends: Vec<Node> = (0..4).map(|i| site.end(&format!("end-{i:03}"), &edges[i / 2].url, &[])).collect();
    let add = |node: &Node, folder: &Path| {
        let ran = node.ask(&["data", "add", "fashion-mnist", folder.to_str().unwrap()]);
        assert_eq!(ran.code, 0, "{ran:?}");
    };
    add(&site.cloud, &place.path("fashion"));
    for (number, end) in (10..).zip(&ends) {
        let own = place.path(&format!("own-{number}"));
        part(&own, "train", 60, number);
        add(end, &own);
    }
    for job in ["hierarchical", "asynchronous", "compressed"] {
        let file = place.path("examples/jobs").join(job).with_extension("toml");
        let ran = site.cloud.ask(&["train", file.to_str().unwrap(), "--json"]);
        let done = last(&ran);
        assert!(done["accuracy"].as_f64().unwrap() >= FLOOR, "{job}: {done}");
        assert_eq!(done["rounds"], if job == "asynchronous" { 60 } else { ran.stdout.lines().count() as u64 - 2 });
        let run = file.with_extension("run");
        let size = |name: &str| run.join(name).metadata().unwrap().len();
        assert!(size("model.onnx") > 1_000 && size("curves.svg") > 1_000 && size("curves.png") > 1_000, "{job}");
    }
}
