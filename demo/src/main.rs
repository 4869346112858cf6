//! The demonstration: a cloud, an edge and two ends as real processes, a real
//! model on real pictures, over a link that gets slower, breaks, and comes back;
//! then two edges with four ends each, which train a model together.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use image::RgbImage;
use image::imageops::{crop_imm, rotate180};
use serde_json::{Value, json};
use tierline_graph::Model;

use tierline_demo::screen::Screen;
use tierline_demo::site::{Link, Node, Tierline, wait};
use tierline_demo::table::{Table, milliseconds};
use tierline_demo::{boxes, detector, draw, federation, picture};

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

/// What training, serving included, may add to the demonstration, seconds.
const TRAINING_LIMIT_S: u64 = 120;

/// A picture made of the scanned page.
type View = fn(&RgbImage) -> RgbImage;

/// The scanned page as a camera may see it: whole, upside down, and from nearer.
const VIEWS: [(&str, View); 3] = [
    ("page", RgbImage::clone),
    ("page-turned", rotate180),
    ("page-part", |page| crop_imm(page, 0, 0, page.width() / 2, page.height() / 2).to_image()),
];

fn main() -> Result<()> {
    let variable = |name: &str| {
        std::env::var_os(name).map(PathBuf::from).with_context(|| format!("{name} is not set; run `cargo xtask demo`"))
    };
    let assets = variable("TIERLINE_ASSETS")?;
    let output = std::env::args().nth(1).map_or(variable("TIERLINE_REPOSITORY")?.join("demo-output"), PathBuf::from);
    std::fs::create_dir_all(&output)?;
    let begun = Instant::now();
    let folder = tempfile::tempdir()?;
    let screen = Screen::default();
    let binary = variable("TIERLINE_BINARY")?;
    let demo = Demo::start(binary.clone(), &assets, folder.path(), &screen)?;
    let rows = demo.degrade(&screen)?;
    let breakage = demo.cut(&screen)?;
    let found = demo.read(&assets, &output, &screen)?;
    drop(demo);
    let inferred = begun.elapsed();
    let federation = federation::run(binary, &assets, &output, &screen)?;
    screen.done();

    let mut table = Table::new([
        "link to the edge",
        "end only",
        "edge only",
        "cloud only",
        "the plan",
        "predicted",
        "the plan runs as",
    ]);
    for row in &rows {
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
    println!(
        "\nOne answer of the text detector, median, end to end (gateway {EDGE_SLOWER}x, board {END_SLOWER}x slower than the cloud):\n"
    );
    println!("{table}");
    println!(
        "Link cut:   answered by {} in {}, degraded: {}",
        breakage.node,
        milliseconds(Some(breakage.latency)),
        breakage.reason
    );
    println!("            meanwhile the other end was answered by {}", breakage.other);
    println!("Link back:  answered as planned again after {:.1} s\n", breakage.recovery.as_secs_f64());
    for (file, boxes) in &found {
        let boxes = if *boxes == 0 { "no printed text".to_owned() } else { format!("{boxes} lines of text, boxed") };
        println!("{}: {boxes}", file.display());
    }
    println!("\n{federation}");
    let report = json!({
        "links": rows.iter().map(Row::json).collect::<Vec<_>>(), "cut": breakage.json(), "federation": federation,
    });
    std::fs::write(output.join("report.json"), serde_json::to_string_pretty(&report)?)?;
    println!(
        "\nDone in {:.0} s, of which training {:.0} s (the limit is {TRAINING_LIMIT_S}). Next: docs/guide/first-site.md sets this up on your own machines.",
        begun.elapsed().as_secs_f64(),
        (begun.elapsed() - inferred).as_secs_f64()
    );
    Ok(())
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
        let detector = detector::with_pixels(&Model::load(&assets.join("models/ppocr-det.onnx"))?, CANVAS)?;
        let model = folder.join("detector.onnx");
        detector.save(&model)?;
        let input = prepare("page", &picture::load(&assets.join("pictures/page.png"))?, folder)?;
        cloud.ask(&["model", "add", &model.to_string_lossy(), "--name", "text", "--sample", &input, "--cuts", "10"])?;
        let demo =
            Self { cloud, edge, end, other_end, link, _links: [wan, other_link], input, folder: folder.to_owned() };
        demo.show_nodes(screen)?;
        screen.doing("every node measures the model, one after the other");
        for (node, name) in
            [(&demo.cloud, "cloud"), (&demo.edge, "gateway"), (&demo.end, "board"), (&demo.other_end, "other-board")]
        {
            let profile = wait(Duration::from_secs(90), || {
                let shown = node.ask(&["model", "ls"]).ok()?;
                (shown["models"][0]["profiled"] == true).then_some(())
            });
            profile.with_context(|| format!("{name} did not measure the model in time"))?;
            screen.doing(format!("{name} has measured the model"));
        }
        let plan = wait(Duration::from_secs(30), || {
            let plan = demo.end.ask(&["explain", "text"]).ok()?;
            (plan["tiers"].as_array()?.len() == 3 && plan["unmeasured"].as_array()?.is_empty()).then_some(plan)
        })
        .context("the board has no plan")?;
        screen.say(format!("plan of the board: {}", plan["placement"].as_str().unwrap_or_default()));
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
            screen.say(format!("the board's link is {link} from now on"));
            self.link.set(&["--bandwidth", bandwidth])?;
            self.settle(screen, link)?;
            screen.doing(format!("{link}: measuring every placement"));
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
                "  {} answers in {} ({} predicted)",
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
                screen.say(format!("  another plan: {plan}"));
            }
            same = if plan == last { same + 1 } else { 0 };
            last = plan;
        }
        Ok(())
    }

    /// Cuts the link, and mends it.
    fn cut(&self, screen: &Screen) -> Result<Breakage> {
        self.link.set(&["--bandwidth", "100mbit"])?;
        screen.doing("100 Mbit/s: until the plan uses the gateway again");
        let shared = || {
            self.end
                .ask(&["explain", "text"])
                .ok()
                .filter(|p| p["in_force"].as_str().is_some_and(|f| f.starts_with("segment")))
        };
        wait(Duration::from_secs(30), shared).context("the plan did not follow the link back up")?;
        screen.say("the board's cable is pulled");
        self.link.set(&["--cut"])?;
        let answer = self.infer(&self.end, &["--deadline", "5 s"])?;
        let other = self.infer(&self.other_end, &["--deadline", "5 s"])?;
        screen.say(format!(
            "  answered by {}, degraded: {}",
            last_node(&answer),
            answer["reason"].as_str().unwrap_or("no")
        ));
        self.link.set(&["--restore"])?;
        let mended = Instant::now();
        screen.say("the cable is back");
        wait(Duration::from_secs(60), || {
            let answer = self.infer(&self.end, &["--placement", "edge", "--deadline", "5 s"]).ok()?;
            (answer["degraded"] == false).then_some(())
        })
        .context("the board did not find back to its edge")?;
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
        let page = picture::load(&assets.join("pictures/page.png"))?;
        for (name, view) in VIEWS {
            screen.doing(format!("reading {name}"));
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
