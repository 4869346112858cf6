//! Bytes to an accuracy: ways for updates and models to travel beside dense
//! FedAvg with the same work, on a hundred clients. Start at [`run`]; `ways`
//! lists what is compared.

use std::fmt;

use anyhow::Result;
use serde::Serialize;

use super::ways::{CLIENTS, RATES, WORKS, Way, Work};
use super::{Lab, Round};

/// Points of accuracy that may be lost against the end of the dense run.
const LOST_MAX: f64 = 0.5;

/// How many times fewer bytes we want of the best.
const GOAL: f64 = 600.0;

/// Rounds that accuracy is averaged over: few clients make it jump.
const SMOOTH: usize = 10;

const PARTITIONS: [(&str, &str); 2] =
    [("iid", "Examples shared out at random"), ("dirichlet:0.1", "Very uneven classes (Dirichlet 0.1)")];

/// What was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// By way of sharing examples out, then by work.
    pub tables: Vec<Vec<Table>>,
}

/// What came of one work.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Table {
    /// By way of travelling, then by seed.
    pub rows: Vec<Vec<Run>>,
    /// Rows of dense FedAvg that all are compared with, the best of them.
    pub dense: usize,
}

/// One simulation, round by round.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Run {
    /// Mean over the last rounds.
    pub accuracy: Vec<f64>,
    /// Of all clients since the beginning: up and down.
    pub bytes: Vec<[u64; 2]>,
}

/// Runs the benchmark.
///
/// # Errors
/// When the data can't be had, or a simulation fails.
pub fn run() -> Result<Report> {
    let lab = Lab::new("mlp", 1)?;
    let mut report = Report::default();
    for (partition, _) in PARTITIONS {
        let mut tables = Vec::new();
        for work in WORKS {
            let mut table = Table { dense: work.dense, ..Table::default() };
            for way in work.ways {
                eprintln!("  {partition}, {} clients a round, {}", work.per_round, way.name);
                let args = ["--ends", &CLIENTS.to_string(), "--partition", partition];
                let run = |seed: &u64| Ok(Run::of(&lab.simulate(&job(work, way, *seed), &args)?));
                table.rows.push(work.seeds.iter().map(run).collect::<Result<_>>()?);
            }
            tables.push(table);
        }
        report.tables.push(tables);
    }
    Ok(report)
}

fn job(work: &Work, way: &Way, seed: u64) -> String {
    let Work { per_round, rounds, epochs, .. } = work;
    let Way { rate, cloud, .. } = way;
    format!(
        "weights = \"fresh\"\nepochs = {epochs}\nseed = {seed}\n[data]\ntrain = \"fashion\"\ntest = \"fashion\"\n[batch]\n\
         size = 32\n[optimizer]\nkind = \"sgd\"\n[schedule]\nrate = {rate}\ndecay = {{ kind = \"cosine\" }}\n\
         [federation.cloud]\nrounds = {rounds}\nclients = {{ per_round = {per_round} }}\n{cloud}\n"
    )
}

impl Run {
    fn of(rounds: &[Round]) -> Self {
        let mean = |few: &[Round]| few.iter().map(|round| round.accuracy).sum::<f64>() / few.len() as f64;
        let so_far = |[up, down]: &mut [u64; 2], round: &Round| {
            (*up, *down) = (*up + round.bytes_up, *down + round.bytes_down);
            Some([*up, *down])
        };
        Self {
            accuracy: (1..=rounds.len()).map(|end| mean(&rounds[end.saturating_sub(SMOOTH)..end])).collect(),
            bytes: rounds.iter().scan([0, 0], so_far).collect(),
        }
    }

    /// Points, at the end.
    fn end(&self) -> f64 {
        100.0 * self.accuracy.last().copied().unwrap_or(f64::NAN)
    }

    /// Rounds and bytes until accuracy is where this dense run ends, less what
    /// may be lost, and stays there until the end; if it does.
    fn reached(&self, dense: &Self) -> Option<(usize, [u64; 2])> {
        let target = dense.end() - LOST_MAX;
        let below = self.accuracy.iter().rposition(|a| 100.0 * a < target).map_or(0, |at| at + 1);
        Some((below + 1, *self.bytes.get(below)?))
    }
}

impl Table {
    /// Dense FedAvg at the best of its rates.
    fn dense(&self) -> &[Run] {
        let mean = |row: &&Vec<Run>| row.iter().map(Run::end).sum::<f64>();
        let rows = self.rows.iter().take(self.dense);
        rows.max_by(|a, b| mean(a).total_cmp(&mean(b))).map_or(&[], Vec::as_slice)
    }
}

/// What is counted.
#[derive(Clone, Copy)]
enum Count {
    Up,
    Both,
}

impl Count {
    fn of(self, [up, down]: [u64; 2]) -> f64 {
        match self {
            Self::Up => up as f64,
            Self::Both => (up + down) as f64,
        }
    }
}

/// How many times as many bytes a dense run took as these, over the seeds that
/// both have; nothing unless each reached the target.
fn fewer(dense: &[Run], row: &[Run], count: Count) -> Option<[f64; 3]> {
    let pairs = dense.iter().zip(row);
    let ratio = |(a, b): (&Run, &Run)| Some(count.of(a.reached(a)?.1) / count.of(b.reached(a)?.1));
    Some(spread(&pairs.map(ratio).collect::<Option<Vec<f64>>>()?))
}

/// Mean, lowest, highest.
fn spread(values: &[f64]) -> [f64; 3] {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let pick = |of: fn(f64, f64) -> f64| values.iter().copied().reduce(of).unwrap_or(mean);
    [mean, pick(f64::min), pick(f64::max)]
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Bytes that {CLIENTS} clients send and get until Fashion-MNIST is known as well as at the end of dense FedAvg with the same\n\
             work, less {LOST_MAX} points, in simulation: a network of 784, 128 and 10 units (101,770 numbers), batches of 32, SGD\n\
             at rate {} that falls to zero over the rounds (cosine). Dense FedAvg also runs at rate {}: the first tables of a\n\
             partition compare with the same rate, which shows what a codec loses, the others with the better of the two. Accuracy\n\
             is the mean of the last {SMOOTH} rounds. A target counts as reached in the first round from which that mean stays there\n\
             until the end of the run. What doesn't travel is remembered and sent later (feedback)\n\
             unless another memory is named. DiLoCo: Nesterov's momentum at the server (its rate, its momentum). Models come\n\
             down whole unless `down` is named: then as differences, but for the first. With several seeds, each with weights,\n\
             partition and order of its own: means, lowest and highest in brackets; a row reaches a target if each seed does.",
            RATES[0], RATES[1]
        )?;
        for (tables, (_, heading)) in self.tables.iter().zip(PARTITIONS) {
            for (work, table) in WORKS.iter().zip(tables) {
                let first = (!std::ptr::eq(table, &tables[0])).then(|| tables[0].dense());
                let seeds = match work.seeds.len() {
                    1 => "one seed".to_owned(),
                    n => format!("{n} seeds"),
                };
                let target = spread(&table.dense().iter().map(|run| run.end() - LOST_MAX).collect::<Vec<_>>());
                writeln!(f, "\n{heading}; {}; {seeds}; target {}:\n", work.heading, percent(target))?;
                write!(
                    f,
                    "| updates | bytes up, of one | bytes down | accuracy at the end | rounds to target | MB up "
                )?;
                write!(f, "to target | dense / it, up | dense / it, both ways |")?;
                let more = if first.is_some() { " dense of the first table to its target / it, up |" } else { "" };
                writeln!(f, "{more}\n|{}", "---|".repeat(8 + usize::from(first.is_some())))?;
                for (way, row) in work.ways.iter().zip(&table.rows) {
                    write!(f, "| {} | {}", way.name, cells(work, table, row))?;
                    if let Some(first) = first {
                        write!(f, " {} |", times(fewer(first, row, Count::Up)))?;
                    }
                    writeln!(f)?;
                }
            }
            writeln!(f, "\n{}", verdict(tables))?;
        }
        Ok(())
    }
}

fn cells(work: &Work, table: &Table, row: &[Run]) -> String {
    let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / row.len() as f64;
    let updates = (work.rounds * work.per_round) as f64;
    let [up, down] = [0, 1].map(|way| {
        mean(&mut row.iter().map(|run| run.bytes.last().map_or(f64::NAN, |bytes| bytes[way] as f64 / updates)))
    });
    let dense = table.dense();
    let reached: Vec<_> = row.iter().zip(dense).filter_map(|(run, dense)| run.reached(dense)).collect();
    let when = match reached.len() {
        0 => "not reached | –".to_owned(),
        n if n < row.len() => format!("not reached by {} of {} seeds | –", row.len() - n, row.len()),
        _ => {
            let rounds = mean(&mut reached.iter().map(|(rounds, _)| *rounds as f64));
            let bytes = mean(&mut reached.iter().map(|(_, bytes)| Count::Up.of(*bytes)));
            format!("{rounds:.0} | {:.2}", bytes / 1e6)
        }
    };
    let accuracy = percent(spread(&row.iter().map(Run::end).collect::<Vec<_>>()));
    let [ratio_up, both] = [Count::Up, Count::Both].map(|count| times(fewer(dense, row, count)));
    format!("{up:.0} | {down:.0} | {accuracy} | {when} | {ratio_up} | {both} |")
}

fn percent([mean, low, high]: [f64; 3]) -> String {
    if low < high { format!("{mean:.2}% ({low:.1} to {high:.1})") } else { format!("{mean:.2}%") }
}

fn times(found: Option<[f64; 3]>) -> String {
    let Some([mean, low, high]) = found else { return "–".to_owned() };
    let digits = if mean < 20.0 { 1 } else { 0 };
    let range = if low < high { format!(" ({low:.digits$} to {high:.digits$})") } else { String::new() };
    format!("{mean:.digits$}{range}")
}

type Ratio<'a> = &'a dyn Fn(&Table, &[Run]) -> Option<[f64; 3]>;

/// Whether the goal is reached, by each way of counting, and what dense
/// updates make of the same work at best.
fn verdict(tables: &[Table]) -> String {
    let ways: Vec<(&Table, &Way, &[Run])> = WORKS
        .iter()
        .zip(tables)
        .flat_map(|(work, table)| work.ways.iter().zip(&table.rows).map(move |(way, row)| (table, way, row.as_slice())))
        .collect();
    let best = |ratio: Ratio<'_>| {
        let found = ways.iter().filter_map(|(table, way, row)| Some((ratio(table, row)?[0], way.name)));
        found.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((1.0, "dense"))
    };
    let own = best(&|table, row| fewer(table.dense(), row, Count::Up));
    let first = best(&|_, row| fewer(tables[0].dense(), row, Count::Up));
    let both = best(&|table, row| fewer(table.dense(), row, Count::Both));
    let say = |(times, name): (f64, &str)| {
        let reached = if times >= GOAL { "reached" } else { "missed" };
        format!("{reached}, {times:.0} at best ({name})")
    };
    format!(
        "The goal of {GOAL} times fewer bytes, up, against dense FedAvg with the same work: {}.\nAgainst the dense FedAvg \
         of the first table, to its target: {}.\nUp and down together, with the same work: {}.",
        say(own),
        say(first),
        say(both)
    )
}
