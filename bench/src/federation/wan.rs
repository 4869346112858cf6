//! Edges that average beside edges that pass on, measured: a site of processes
//! whose edges reach the cloud over shaped links, and the same site as it is
//! simulated. Start at [`run`].

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;
use tierline_codec::npy;
use tierline_demo::site::{Link, Node, Tierline};
use tierline_train::data::{Dataset, Source, partition};

use super::{Lab, Round, median};
use crate::training::fashion;

const ENDS: usize = 8;
const EDGES: usize = 2;
const PARTITION: &str = "dirichlet:0.5";

/// Few: ends share this machine's cores, and links are to decide.
const EXAMPLES: usize = 8_000;
const HELD_OUT: usize = 2_000;

/// The accuracy to reach.
const GOAL: f64 = 0.66;

/// In which every way takes its turn.
const TURNS: usize = 3;

const SEED: u64 = 1;

/// Rounds without shaping that tell how fast ends are.
const FREE_ROUNDS: usize = 10;

/// Mbit/s both ways, round trip in milliseconds.
const LINKS: [(f64, f64); 2] = [(2.0, 80.0), (20.0, 40.0)];

/// Ways to run the job: name, and what an edge does.
const WAYS: [(&str, &str); 3] = [
    ("flat", ""),
    ("hierarchical, 1 round of edges", "[federation.edge]\nrounds = 1\nclients = { min = 4 }\n"),
    ("hierarchical, 2 rounds of edges", "[federation.edge]\nrounds = 2\nclients = { min = 4 }\n"),
];

/// What was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// Seconds of a round without shaping.
    pub free_s: f64,
    /// Examples a second of an end that follow from it, as simulations want.
    pub speed: f64,
    /// By link, then by way.
    pub cells: Vec<Vec<Cell>>,
}

/// One way over one link.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Cell {
    /// Rounds of the cloud and seconds to the goal of each turn.
    pub measured: Vec<(usize, f64)>,
    /// The same in simulation.
    pub simulated: (usize, f64),
}

impl Cell {
    /// Seconds, the median of the turns.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        median(&self.measured.iter().map(|(_, seconds)| *seconds).collect::<Vec<_>>())
    }
}

/// Measures, and simulates the same.
///
/// # Errors
/// When the data can't be had, the site can't be started, or a job doesn't
/// reach the goal.
pub fn run(lab: &Lab) -> Result<Report> {
    let whole = Source::detect(&fashion::data()?)?.load()?;
    let [train, test] = [("train", EXAMPLES), ("test", HELD_OUT)]
        .map(|(name, count)| -> Result<Dataset> { Ok(whole.named_split(name)?.subset(&rows(count))?) });
    let (train, test) = (train?, test?);
    let folder = lab.folder.path();
    let add = |node: &dyn Fn(&[&str]) -> Result<()>, name: &str, data: &Dataset, file: &str| {
        let [features, labels] = ["features", "labels"].map(|what| folder.join(format!("{file}-{what}.npy")));
        let all = rows(data.len());
        std::fs::write(&features, npy::write(&data.features(&all)?)?)?;
        std::fs::write(&labels, npy::write(&data.targets(&all)?)?)?;
        let (features, labels) = (features.to_string_lossy(), labels.to_string_lossy());
        node(&["data", "add", name, &features, "--labels", &labels, "--classes", "10"])
    };
    let own = |args: &[&str]| {
        let status = lab.tierline().args(args).stdout(std::process::Stdio::null()).status()?;
        ensure!(status.success(), "`tierline {}` failed", args.join(" "));
        Ok(())
    };
    add(&own, "pictures", &train, "pictures")?;
    add(&own, "held-out", &test, "held-out")?;

    let site = Site::start(&Tierline::new(lab.binary.clone(), folder))?;
    let shares = partition(&train, &PARTITION.parse()?, ENDS, SEED)?;
    for (number, (end, share)) in site.ends.iter().zip(&shares).enumerate() {
        let ask = |args: &[&str]| end.ask(args).map(drop);
        add(&ask, "pictures", &train.subset(share)?, &format!("share-{number}"))?;
    }
    add(&|args| site.cloud.ask(args).map(drop), "held-out", &test, "held-out")?;

    let free = site.train(folder, "free", &job(FREE_ROUNDS, None, ""))?;
    // The first waits for the job and its model.
    let free_s = median(&free.iter().skip(1).map(|round| round.seconds).collect::<Vec<_>>());
    let largest = shares.iter().map(Vec::len).max().unwrap_or_default();
    let mut report = Report { free_s, speed: largest as f64 / free_s, cells: Vec::new() };
    for (mbit, rtt_ms) in LINKS {
        site.shape(mbit, rtt_ms)?;
        let mut cells = vec![Cell::default(); WAYS.len()];
        for turn in 0..TURNS {
            for (way, (name, edge)) in WAYS.iter().enumerate() {
                eprintln!("  {mbit} Mbit/s, {rtt_ms} ms, turn {}: {name}", turn + 1);
                let rounds =
                    site.train(folder, &format!("wan-{mbit}-{turn}-{way}"), &job(ROUNDS_MAX, Some(GOAL), edge))?;
                cells[way].measured.push(reached(&rounds)?);
            }
        }
        for ((_, edge), cell) in WAYS.iter().zip(&mut cells) {
            let (ends, edges, speed) = (ENDS.to_string(), EDGES.to_string(), report.speed.to_string());
            let link = format!("{mbit},{mbit},{rtt_ms}");
            let site = ["--ends", &ends, "--edges", &edges, "--partition", PARTITION, "--speed", &speed];
            let args = [&site[..], &["--edge-link", &link]].concat();
            cell.simulated = reached(&lab.simulate(&job(ROUNDS_MAX, Some(GOAL), edge), &args)?)?;
        }
        report.cells.push(cells);
    }
    Ok(report)
}

/// Rounds in which the goal is reached, or not at all.
const ROUNDS_MAX: usize = 30;

fn rows(count: usize) -> Vec<usize> {
    (0..count).collect()
}

fn job(rounds: usize, goal: Option<f64>, edge: &str) -> String {
    let stop = goal.map_or(String::new(), |goal| format!("[federation.stop]\naccuracy = {goal}\n"));
    let members = if edge.is_empty() { ENDS } else { EDGES };
    format!(
        "weights = \"fresh\"\nepochs = 1\nseed = {SEED}\n[data]\ntrain = \"pictures\"\ntest = \"held-out\"\n[batch]\nsize = 32\n\
         [optimizer]\nkind = \"sgd\"\nmomentum = 0.9\n[schedule]\nrate = 0.02\n{stop}[federation.cloud]\nrounds = {rounds}\n\
         clients = {{ min = {members} }}\n{edge}"
    )
}

/// Rounds and seconds to the goal.
fn reached(rounds: &[Round]) -> Result<(usize, f64)> {
    let at = rounds.iter().position(|round| round.accuracy >= GOAL).context("the goal was not reached")?;
    Ok((at + 1, rounds[..=at].iter().map(|round| round.seconds).sum()))
}

/// Processes: a cloud, edges behind links, ends beside their edges.
struct Site {
    cloud: Node,
    links: Vec<Link>,
    _edges: Vec<Node>,
    ends: Vec<Node>,
}

impl Site {
    /// Names are those of simulations: what is drawn depends on them.
    fn start(tierline: &Tierline) -> Result<Self> {
        let cloud = tierline.node("cloud", &["--role", "cloud", "--listen", "127.0.0.1:0"])?;
        let (mut links, mut edges, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..EDGES {
            let link = tierline.link(&format!("link-{number}"), &cloud.url, &[])?;
            let name = format!("edge-{number:02}");
            let edge = tierline.join(&cloud, "edge", &name, &link.url(), &["--listen", "127.0.0.1:0"])?;
            for end in number * ENDS / EDGES..(number + 1) * ENDS / EDGES {
                ends.push(tierline.join(&cloud, "end", &format!("end-{end:03}"), &edge.url, &[])?);
            }
            links.push(link);
            edges.push(edge);
        }
        Ok(Self { cloud, links, _edges: edges, ends })
    }

    fn shape(&self, mbit: f64, rtt_ms: f64) -> Result<()> {
        let (bandwidth, delay) = (format!("{mbit}mbit"), format!("{} ms", rtt_ms / 2.0));
        self.links.iter().try_for_each(|link| link.set(&["--bandwidth", &bandwidth, "--delay", &delay]))
    }

    /// Runs a job; its name is its file's.
    fn train(&self, folder: &Path, name: &str, job: &str) -> Result<Vec<Round>> {
        let file = folder.join(format!("{name}.toml"));
        std::fs::write(&file, format!("model = \"network.onnx\"\n{job}"))?;
        let lines = self.cloud.ask(&["train", &file.to_string_lossy(), "--replace"])?;
        let lines = lines.as_array().context("a line for each round")?;
        let rounds = lines.iter().filter(|line: &&Value| line["event"] == "round").cloned();
        Ok(rounds.map(serde_json::from_value).collect::<Result<_, _>>()?)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Measured: a site of processes on this machine, {ENDS} ends (`{PARTITION}`, {EXAMPLES} examples together) beside {EDGES} edges,\n\
             each of which reaches the cloud over a link that shapes what passes; the same network, to {:.0}%. Seconds, medians of\n\
             {TURNS} turns, with all turns and the rounds of the cloud in brackets. Simulated is the same site with the same examples,\n\
             whose ends learn from {:.0} examples a second: what a round without shaping takes ({:.3} s) when all is put down to them.\n\
             Measured first rounds include that the site fetches the job.\n",
            100.0 * GOAL,
            self.speed,
            self.free_s
        )?;
        writeln!(
            f,
            "| link of an edge | edges | measured | simulated | simulated / measured | flat / it, measured | simulated |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|")?;
        let mut worst: f64 = 1.0;
        for ((mbit, rtt_ms), cells) in LINKS.iter().zip(&self.cells) {
            for ((name, _), cell) in WAYS.iter().zip(cells) {
                let (seconds, simulated) = (cell.seconds(), cell.simulated.1);
                let turns: Vec<String> = cell.measured.iter().map(|(_, s)| format!("{s:.1}")).collect();
                let rounds = cell.measured.first().map_or(0, |(rounds, _)| *rounds);
                let off = simulated / seconds;
                worst = if off.ln().abs() > worst.ln().abs() { off } else { worst };
                writeln!(
                    f,
                    "| {mbit} Mbit/s, {rtt_ms} ms | {name} | {seconds:.1} ({}; {rounds}) | {simulated:.1} ({}) | {off:.2} | {:.1}x | {:.1}x |",
                    turns.join(", "),
                    cell.simulated.0,
                    cells[0].seconds() / seconds,
                    cells[0].simulated.1 / simulated
                )?;
            }
        }
        writeln!(f, "\nThe simulation's time is {worst:.2} of the measured one where it is furthest off.")
    }
}
