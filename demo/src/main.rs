//! The demonstration: a cloud, an edge and two ends as real processes, a real
//! model on real pictures, over a link that gets slower, breaks, and comes back;
//! an application beside a board, whose cable is cut under its requests; then two
//! edges with four ends each, which train a model together.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use image::imageops::{crop_imm, rotate180};
use serde_json::{Value, json};
use tierline_graph::Model;

use tierline_demo::cache::{CachedRun, digest};
use tierline_demo::screen::Screen;
use tierline_demo::site::{Link, Node, Tierline, wait};
use tierline_demo::table::{Table, milliseconds};
use tierline_demo::{applications, boxes, detector, draw, federation, picture};

/// The detector's canvas, `[height, width]`: the scanned page fits it.
const CANVAS: [u32; 2] = [256, 480];

/// The link to the edge, as it is changed: name, and `link set`'s bandwidth.
const LINKS: [(&str, &str); 4] =
    [("100 Mbit/s", "100mbit"), ("10 Mbit/s", "10mbit"), ("1 Mbit/s", "1mbit"), ("0.1 Mbit/s", "0.1mbit")];

/// How much slower than this machine the devices are.
const EDGE_SLOWER: &str = "2";
const END_SLOWER: &str = "8";

/// The same seen from the edge.
const OTHER_END_SCALE: &str = "4";

/// Time for the plan to follow a change of the link.
const SETTLE: Duration = Duration::from_secs(8);

/// Longest wait for one answer.
const ANSWER: &str = "25 s";

/// What the federation, serving included, may add to the demonstration, seconds.
const TRAINING_LIMIT_S: u64 = 120;

/// A picture made of the scanned page.
type View = fn(&RgbImage) -> RgbImage;

/// The scanned page as a camera may see it: whole, upside down, and from nearer.
const VIEWS: [(&str, View); 3] = [
    ("page", RgbImage::clone),
    ("page-turned", rotate180),
    ("page-part", |page| crop_imm(page, 0, 0, page.width() / 2, page.height() / 2).to_image()),
];

/// The text detector and the page, in the assets.
const DETECTOR: &str = "models/ppocr-det.onnx";
const PAGE: &str = "pictures/page.png";

/// Runs although nothing has changed.
const AGAIN: &str = "--again";

fn main() -> Result<()> {
    let variable = |name: &str| {
        std::env::var_os(name).map(PathBuf::from).with_context(|| format!("{name} is not set; run `cargo xtask demo`"))
    };
    let assets = variable("TIERLINE_ASSETS")?;
    let repository = variable("TIERLINE_REPOSITORY")?;
    let (flags, words): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|arg| arg.starts_with("--"));
    ensure!(flags.iter().all(|flag| flag == AGAIN), "the demonstration takes a folder for what it makes, and {AGAIN}");
    let output = words.first().map_or(repository.join("demo-output"), PathBuf::from);
    std::fs::create_dir_all(&output)?;
    let binary = variable("TIERLINE_BINARY")?;
    let key = key(&binary, &assets)?;
    let next = next_steps(&binary, &repository, &assets);
    if let Some(kept) = CachedRun::find(&output, &key).filter(|_| flags.is_empty()) {
        println!("{}\n", kept.text);
        println!(
            "These are the results of a run that ended {}: program, model and pictures are the same. \
             `cargo xtask demo {AGAIN}` measures anew.\n\n{next}",
            kept.age()
        );
        return Ok(());
    }
    let run = Run::new(binary, &assets, &output)?;
    println!("\n{}\n\n{next}", run.text);
    CachedRun::of(&key, &run.text, &run.files)?.keep(&output)
}

/// Names everything that the results come from, the machine aside.
fn key(binary: &Path, assets: &Path) -> Result<String> {
    let mut files = vec![binary.to_owned(), std::env::current_exe()?, assets.join(DETECTOR), assets.join(PAGE)];
    files.extend(std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from).filter(|path| path.is_file()));
    let digits = std::env::var_os("TIERLINE_DEMO_DIGITS").is_some();
    Ok(format!("{}{}", digest(&files)?, if digits { "-digits" } else { "" }))
}

/// What to try with the binary that is there now.
fn next_steps(binary: &Path, repository: &Path, assets: &Path) -> String {
    let here = |path: &Path| path.strip_prefix(repository).unwrap_or(path).display().to_string();
    let (tierline, model) = (here(binary), assets.join(DETECTOR).display().to_string());
    let steps = [
        ("which engines work on this machine", "doctor".to_owned()),
        ("where the text detector can be cut, and what a cut sends", format!("model inspect {model}")),
        ("latency of each of its segments here", format!("profile {model} --out here.toml")),
        ("a network to train", "model zoo lenet --out examples/jobs/lenet.onnx".to_owned()),
    ];
    let mut text = "Next, from the repository's root:\n\n".to_owned();
    for (what, command) in steps {
        text += &format!("  # {what}\n  {tierline} {command}\n");
    }
    text + "\ndocs/guide/first-site.md sets a site up on machines of your own; docs/guide/training.md trains on your own\n\
            pictures; docs/guide/federations.md trains across nodes."
}

/// What a run found.
struct Run {
    text: String,
    files: Vec<PathBuf>,
}

impl Run {
    fn new(binary: PathBuf, assets: &Path, output: &Path) -> Result<Self> {
        let begun = Instant::now();
        let folder = tempfile::tempdir()?;
        let screen = Screen::default();
        let demo = Demo::start(binary.clone(), assets, folder.path(), &screen)?;
        let rows = demo.degrade(&screen)?;
        let breakage = demo.cut(&screen)?;
        let found = demo.read(assets, output, &screen)?;
        drop(demo);
        let applications = applications::run(binary.clone(), assets, output, &screen)?;
        let federation = federation::run(binary, assets, output, &screen)?;
        screen.done();

        let report = output.join("report.json");
        let json = json!({
            "links": rows.iter().map(Row::json).collect::<Vec<_>>(), "cut": breakage.json(), "applications": applications,
            "federation": federation,
        });
        std::fs::write(&report, serde_json::to_string_pretty(&json)?)?;
        let mut text = latencies(&rows).to_string();
        text += &format!("\n{breakage}\n\n");
        for (file, boxes) in &found {
            let boxes =
                if *boxes == 0 { "no printed text".to_owned() } else { format!("{boxes} lines of text, boxed") };
            text += &format!("{}: {boxes}\n", file.display());
        }
        text += &format!(
            "\n{applications}\n\n{federation}\n\nDone in {:.0} s, of which the federation {:.0} s (goal: {TRAINING_LIMIT_S} s).",
            begun.elapsed().as_secs_f64(),
            federation.seconds
        );
        let mut files: Vec<PathBuf> = found.into_iter().map(|(file, _)| file).collect();
        files.extend(applications.page);
        files.extend([report, federation.sheet, federation.curves]);
        Ok(Self { text, files })
    }
}

/// Latency of every placement on every link.
fn latencies(rows: &[Row]) -> impl std::fmt::Display {
    let mut table =
        Table::new(["uplink", "end only", "edge only", "cloud only", "planned", "predicted", "placement of the plan"]);
    for row in rows {
        let late = |ns: Option<u64>| ns.map_or_else(|| format!("> {ANSWER}"), |ns| milliseconds(Some(ns)));
        table.row([
            row.link.to_owned(),
            late(row.end),
            late(row.edge),
            late(row.cloud),
            late(row.plan),
            milliseconds(row.predicted),
            row.placement.clone(),
        ]);
    }
    format!(
        "End-to-end latency of the text detector, medians (gateway {EDGE_SLOWER}x, board {END_SLOWER}x slower than the \
         cloud):\n\n{table}"
    )
}

/// The site and what is sent to it.
struct Demo {
    cloud: Node,
    edge: Node,
    end: Node,
    other_end: Node,
    link: Link,
    _links: [Link; 2],
    /// `--input`'s value.
    input: String,
    folder: PathBuf,
}

/// One link condition, measured; nanoseconds, none where no answer came in time.
struct Row {
    link: &'static str,
    end: Option<u64>,
    edge: Option<u64>,
    cloud: Option<u64>,
    plan: Option<u64>,
    predicted: Option<u64>,
    placement: String,
}

impl Row {
    fn json(&self) -> Value {
        let ms = |ns: Option<u64>| ns.map(|ns| ns as f64 / 1e6);
        json!({
            "link": self.link, "end_ms": ms(self.end), "edge_ms": ms(self.edge), "cloud_ms": ms(self.cloud),
            "plan_ms": ms(self.plan), "predicted_ms": ms(self.predicted), "placement": self.placement,
        })
    }
}

/// What happened when the link was cut.
struct Breakage {
    node: String,
    latency: u64,
    reason: String,
    other: String,
    recovery: Duration,
}

impl std::fmt::Display for Breakage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "Link down:  fell back to {} in {}, degraded: {}",
            self.node,
            milliseconds(Some(self.latency)),
            self.reason
        )?;
        writeln!(f, "            the other board, on a link of its own, was answered by {}", self.other)?;
        write!(f, "Link up:    answered as planned again after {:.1} s", self.recovery.as_secs_f64())
    }
}

impl Breakage {
    fn json(&self) -> Value {
        json!({
            "answered_by": self.node, "latency_ms": self.latency as f64 / 1e6, "reason": self.reason,
            "other_end_answered_by": self.other, "recovery_s": self.recovery.as_secs_f64(),
        })
    }
}

fn ns(milliseconds: &Value) -> Option<u64> {
    milliseconds.as_f64().map(|ms| (ms * 1e6) as u64)
}

fn last_node(answer: &Value) -> String {
    let stages = answer["stages"].as_array().map(Vec::as_slice).unwrap_or_default();
    stages.last().and_then(|s| s["node"].as_str()).unwrap_or("nobody").to_owned()
}

impl Demo {
    fn start(binary: PathBuf, assets: &Path, folder: &Path, screen: &Screen) -> Result<Self> {
        let tierline = Tierline::new(binary, folder);
        screen.doing("starting a cloud, an edge and two ends");
        let cloud = tierline.node("cloud", &["--role", "cloud", "--listen", "127.0.0.1:0"])?;
        let wan = tierline.link("wan", &cloud.url, &["--bandwidth", "50mbit", "--delay", "10 ms"])?;
        let edge = tierline.join(
            &cloud,
            "edge",
            "gateway",
            &wan.url(),
            &["--listen", "127.0.0.1:0", "--slowdown", EDGE_SLOWER],
        )?;
        let link = tierline.link("lan", &edge.url, &["--bandwidth", "100mbit", "--delay", "2 ms"])?;
        let other_link = tierline.link("other-lan", &edge.url, &["--bandwidth", "100mbit", "--delay", "2 ms"])?;
        let end = tierline.join(&cloud, "end", "board", &link.url(), &["--slowdown", END_SLOWER])?;
        // The second board is like the first: its profile is stated, not measured.
        let like = ["--slowdown", END_SLOWER, "--scale-of-parent", OTHER_END_SCALE];
        let other_end = tierline.join(&cloud, "end", "other-board", &other_link.url(), &like)?;

        screen.doing("adding the model: PP-OCRv4 text detection");
        let detector = detector::with_pixels(&Model::load(&assets.join(DETECTOR))?, CANVAS)?;
        let model = folder.join("detector.onnx");
        detector.save(&model)?;
        let input = prepare("page", &picture::load(&assets.join(PAGE))?, folder)?;
        cloud.ask(&["model", "add", &model.to_string_lossy(), "--name", "text", "--sample", &input, "--cuts", "10"])?;
        let demo =
            Self { cloud, edge, end, other_end, link, _links: [wan, other_link], input, folder: folder.to_owned() };
        demo.show_nodes(screen)?;
        screen.doing("profiling the model on every node, one at a time");
        for (node, name) in
            [(&demo.cloud, "cloud"), (&demo.edge, "gateway"), (&demo.end, "board"), (&demo.other_end, "other-board")]
        {
            let profile = wait(Duration::from_secs(90), || {
                let shown = node.ask(&["model", "ls"]).ok()?;
                (shown["models"][0]["profiled"] == true).then_some(())
            });
            profile.with_context(|| format!("{name} did not profile the model in time"))?;
            screen.doing(format!("{name} has profiled the model"));
        }
        let plan = wait(Duration::from_secs(30), || {
            let plan = demo.end.ask(&["explain", "text"]).ok()?;
            (plan["tiers"].as_array()?.len() == 3 && plan["unmeasured"].as_array()?.is_empty()).then_some(plan)
        })
        .context("the board has no plan")?;
        screen.say(format!("the board's plan: {}", plan["placement"].as_str().unwrap_or_default()));
        Ok(demo)
    }

    fn show_nodes(&self, screen: &Screen) -> Result<()> {
        let nodes = self.cloud.ask(&["nodes"])?;
        let names: Vec<String> = nodes["nodes"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|n| format!("{} ({})", n["name"].as_str().unwrap_or_default(), n["role"].as_str().unwrap_or_default()))
            .collect();
        screen.say(format!("the site: {}", names.join(", ")));
        Ok(())
    }

    fn infer(&self, node: &Node, args: &[&str]) -> Result<Value> {
        let out = self.folder.join("answers").to_string_lossy().into_owned();
        let common = ["infer", "--model", "text", "--input", &self.input, "--out", &out];
        node.ask(&[&common[..], args].concat())
    }

    /// Median time of answers by one placement; none when one is late.
    fn measure(&self, placement: &str, requests: usize) -> Option<u64> {
        let mut times = Vec::new();
        for _ in 0..requests {
            let answer = self.infer(&self.end, &["--placement", placement, "--deadline", ANSWER]).ok()?;
            if answer["degraded"] == true {
                return None;
            }
            times.push(ns(&answer["latency_ms"])?);
            // A slow answer is no less sure, only slow.
            if times.iter().sum::<u64>() > 3_000_000_000 {
                break;
            }
        }
        times.sort_unstable();
        times.get(times.len() / 2).copied()
    }

    /// Makes the link slower and slower under live requests.
    fn degrade(&self, screen: &Screen) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (link, bandwidth) in LINKS {
            screen.say(format!("uplink of the board: {link}"));
            self.link.set(&["--bandwidth", bandwidth])?;
            self.settle(screen, link)?;
            screen.doing(format!("{link}: latency of every placement"));
            let end = self.measure("here", 5);
            let edge = self.measure("edge", 5);
            let cloud = self.measure("cloud", 5);
            // The heavy placements filled the link; give the plan a quiet one.
            self.settle(screen, link)?;
            let explained = self.end.ask(&["explain", "text"])?;
            let plan = self.measure("plan", 5);
            let answer = self.infer(&self.end, &["--deadline", ANSWER])?;
            let row = Row {
                link,
                end,
                edge,
                cloud,
                plan,
                predicted: ns(&answer["predicted_ms"]),
                placement: explained["in_force"].as_str().unwrap_or_default().to_owned(),
            };
            screen.say(format!(
                "  {}: {} measured, {} predicted",
                row.placement,
                milliseconds(row.plan),
                milliseconds(row.predicted)
            ));
            rows.push(row);
        }
        Ok(rows)
    }

    /// Live requests until the plan in force stays the same.
    fn settle(&self, screen: &Screen, link: &str) -> Result<()> {
        let begun = Instant::now();
        let (mut last, mut same) = (String::new(), 0);
        while begun.elapsed() < SETTLE && same < 12 {
            let answer = self.infer(&self.end, &["--deadline", ANSWER])?;
            let plan = answer["plan"].as_str().unwrap_or_default().to_owned();
            let late = if answer["degraded"] == true { ", degraded" } else { "" };
            screen.doing(format!("{link}: {plan} in {}{late}", milliseconds(ns(&answer["latency_ms"]))));
            if !last.is_empty() && plan != last {
                screen.say(format!("  replanned: {plan}"));
            }
            same = if plan == last { same + 1 } else { 0 };
            last = plan;
        }
        Ok(())
    }

    /// Cuts the link, and mends it.
    fn cut(&self, screen: &Screen) -> Result<Breakage> {
        self.link.set(&["--bandwidth", "100mbit"])?;
        screen.doing("100 Mbit/s: until the plan offloads to the gateway again");
        let shared = || {
            self.end
                .ask(&["explain", "text"])
                .ok()
                .filter(|p| p["in_force"].as_str().is_some_and(|f| f.starts_with("segment")))
        };
        wait(Duration::from_secs(60), shared).context("the plan did not follow the link back up")?;
        screen.say("uplink of the board: down");
        self.link.set(&["--cut"])?;
        let answer = self.infer(&self.end, &["--deadline", "5 s"])?;
        let other = self.infer(&self.other_end, &["--deadline", "5 s"])?;
        screen.say(format!(
            "  fell back to {}, degraded: {}",
            last_node(&answer),
            answer["reason"].as_str().unwrap_or("no")
        ));
        self.link.set(&["--restore"])?;
        let mended = Instant::now();
        screen.say("uplink of the board: up again");
        wait(Duration::from_secs(60), || {
            let answer = self.infer(&self.end, &["--placement", "edge", "--deadline", "5 s"]).ok()?;
            (answer["degraded"] == false).then_some(())
        })
        .context("the board did not reconnect to its edge")?;
        Ok(Breakage {
            node: last_node(&answer),
            latency: ns(&answer["latency_ms"]).unwrap_or_default(),
            reason: answer["reason"].as_str().unwrap_or("no").to_owned(),
            other: last_node(&other),
            recovery: mended.elapsed(),
        })
    }

    /// Finds the text in every view of the page, and draws boxes around it.
    fn read(&self, assets: &Path, output: &Path, screen: &Screen) -> Result<Vec<(PathBuf, usize)>> {
        let mut found = Vec::new();
        let page = picture::load(&assets.join(PAGE))?;
        for (name, view) in VIEWS {
            screen.doing(format!("detecting text in {name}"));
            let picture = view(&page);
            let input = prepare(name, &picture, &self.folder)?;
            let answer = self.end.ask(&[
                "infer",
                "--model",
                "text",
                "--input",
                &input,
                "--out",
                &self.folder.join("maps").to_string_lossy(),
            ])?;
            let map = answer["outputs"][0]["file"].as_str().context("no map of text")?;
            let map = tierline_codec::npy::read(&std::fs::read(map)?)?;
            let fitted = picture::fit(&picture, CANVAS)?;
            let values = map.as_f32().context("the map holds no floats")?;
            let boxes: Vec<_> = boxes::find(boxes::Map { values, width: CANVAS[1] as usize })
                .into_iter()
                .map(|b| b.scaled(fitted.scale))
                .collect();
            let file = output.join(name).with_extension("png");
            draw::boxes(&picture, &boxes).save(&file)?;
            found.push((file, boxes.len()));
        }
        Ok(found)
    }
}

/// A picture as the detector takes it, in a file; gives `--input`'s value.
fn prepare(name: &str, picture: &RgbImage, folder: &Path) -> Result<String> {
    let fitted = picture::fit(picture, CANVAS)?;
    let file = folder.join(name).with_extension("npy");
    std::fs::write(&file, tierline_codec::npy::write(&fitted.tensor)?)?;
    Ok(format!("{}=@{}", detector::INPUT, file.display()))
}
