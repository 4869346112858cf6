//! Rules against harm: what becomes of a model when one end in five means
//! harm, by rule and by attack. Start at [`run`].

use std::fmt;

use anyhow::Result;
use serde::Serialize;

use super::{Lab, last};

const ENDS: usize = 20;
const SHARE: f64 = 0.2;
const ROUNDS: usize = 12;
const SEEDS: [u64; 1] = [1];

/// Points of accuracy that may be lost.
const GOAL: f64 = 1.0;

const PARTITIONS: [(&str, &str); 2] =
    [("iid", "Examples shared out at random"), ("dirichlet:0.5", "Uneven classes (Dirichlet 0.5)")];

const RULES: [(&str, &str); 7] = [
    ("mean", "kind = \"mean\""),
    ("median", "kind = \"median\""),
    ("trimmed mean", "kind = \"trimmed\", share = 0.2"),
    ("Krum", "kind = \"krum\", share = 0.2"),
    ("Multi-Krum", "kind = \"multikrum\", share = 0.2"),
    ("Bulyan", "kind = \"bulyan\", share = 0.2"),
    ("norm bounding", "kind = \"bounded\", times = 1.0"),
];

const ATTACKS: [(&str, Option<&str>); 4] = [
    ("nobody", None),
    ("sign flip", Some("sign-flip:0.2")),
    ("label flip", Some("label-flip:0.2")),
    ("scaling by 10", Some("scale:0.2:10")),
];

/// What was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// One per way of sharing examples out.
    pub tables: Vec<Table>,
}

/// Rules by attacks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Table {
    /// How examples are shared out.
    pub partition: String,
    /// By rule, then by attack: the accuracy of each seed; none where the
    /// model went out of bounds.
    pub accuracy: Vec<Vec<Vec<f64>>>,
}

impl Table {
    fn points(&self, rule: usize, attack: usize) -> f64 {
        let of = &self.accuracy[rule][attack];
        100.0 * of.iter().sum::<f64>() / of.len() as f64
    }

    /// Points behind the mean of a site that nobody harms.
    fn lost(&self, rule: usize, attack: usize) -> f64 {
        self.points(0, 0) - self.points(rule, attack)
    }
}

/// Runs the benchmark.
///
/// # Errors
/// When the data can't be had, or a simulation fails.
pub fn run() -> Result<Report> {
    let lab = Lab::new("mlp", 1)?;
    let mut report = Report::default();
    for (partition, _) in PARTITIONS {
        let mut accuracy = Vec::new();
        for (name, rule) in RULES {
            eprintln!("  {partition}, {name}");
            let mut of_rule = Vec::new();
            for (_, attack) in ATTACKS {
                let run = |seed: &u64| -> Result<f64> {
                    let job = format!(
                        "weights = \"fresh\"\nepochs = 1\nseed = {seed}\n[data]\ntrain = \"fashion\"\ntest = \"fashion\"\n\
                         [batch]\nsize = 32\n[optimizer]\nkind = \"sgd\"\nmomentum = 0.9\n[schedule]\nrate = 0.02\n\
                         [federation.cloud]\nrounds = {ROUNDS}\nrule = {{ {rule} }}\n"
                    );
                    let ends = ENDS.to_string();
                    let mut args = vec!["--ends", &ends, "--partition", partition];
                    args.extend(attack.iter().flat_map(|attack| ["--attack", *attack]));
                    match lab.simulate(&job, &args) {
                        Ok(rounds) => Ok(last(&rounds)),
                        // Weights beyond what a sum can hold.
                        Err(error) if error.to_string().contains("exceed") => Ok(f64::NAN),
                        Err(error) => Err(error),
                    }
                };
                of_rule.push(SEEDS.iter().map(run).collect::<Result<Vec<_>>>()?);
            }
            accuracy.push(of_rule);
        }
        report.tables.push(Table { partition: partition.to_owned(), accuracy });
    }
    Ok(report)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Fashion-MNIST on {ENDS} ends, of which {:.0}% do harm: a network of 784, 128 and 10 units, {ROUNDS} rounds of one\n\
             epoch, all ends in each, in simulation. Accuracy on the test set, of {} seed, means over the last five\n\
             rounds; in brackets, points against the mean of a site that nobody harms. Rules are told the share of\n\
             those that do harm.",
            100.0 * SHARE,
            SEEDS.len()
        )?;
        for (table, (_, heading)) in self.tables.iter().zip(PARTITIONS) {
            writeln!(f, "\n{heading}:\n")?;
            writeln!(f, "| rule | {} |", ATTACKS.map(|(name, _)| name).join(" | "))?;
            writeln!(f, "|---|{}", "---|".repeat(ATTACKS.len()))?;
            for (r, (name, _)) in RULES.iter().enumerate() {
                let cell = |a: usize| match table.points(r, a) {
                    points if points.is_finite() => format!("{points:.2}% ({:+.2})", 0.0 - table.lost(r, a)),
                    _ => "diverges".to_owned(),
                };
                writeln!(f, "| {name} | {} |", (0..ATTACKS.len()).map(cell).collect::<Vec<_>>().join(" | "))?;
            }
            writeln!(f)?;
            for (a, (attack, _)) in ATTACKS.iter().enumerate().skip(1) {
                let within: Vec<&str> = RULES
                    .iter()
                    .enumerate()
                    .filter(|(r, _)| table.lost(*r, a) <= GOAL)
                    .map(|(_, (name, _))| *name)
                    .collect();
                let verdict = if within.len() >= 2 { "goal of two reached" } else { "goal of two missed" };
                let names = if within.is_empty() { "none".to_owned() } else { within.join(", ") };
                writeln!(f, "Within {GOAL} point under {attack}: {names} ({verdict}).")?;
            }
        }
        Ok(())
    }
}
