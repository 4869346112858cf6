//! Rules against harm: what becomes of a model when one end in five means
//! harm, by rule and by attack. Start at [`run`].

use std::fmt;

use anyhow::Result;
use serde::Serialize;

use super::{Lab, last};

const ENDS: usize = 20;
const SHARE: f64 = 0.2;
const ROUNDS: usize = 12;
const SEEDS: [u64; 3] = [1, 2, 3];

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

/// What a rule under attack is compared with: a site that nobody harms, and
/// that uses ...
#[derive(Clone, Copy)]
enum Clean {
    /// ... the mean.
    Mean,
    /// ... the same rule.
    Own,
}

const CLEAN: [(Clean, &str); 2] = [(Clean::Mean, "the clean mean"), (Clean::Own, "its own clean run")];

impl Table {
    /// Points of accuracy, one per seed.
    fn points(&self, rule: usize, attack: usize) -> impl Iterator<Item = f64> {
        self.accuracy[rule][attack].iter().map(|accuracy| 100.0 * accuracy)
    }

    fn mean(&self, rule: usize, attack: usize) -> f64 {
        self.points(rule, attack).sum::<f64>() / self.accuracy[rule][attack].len() as f64
    }

    /// Points gained, or lost, on average.
    fn gained(&self, clean: Clean, rule: usize, attack: usize) -> f64 {
        let clean = match clean {
            Clean::Mean => 0,
            Clean::Own => rule,
        };
        self.mean(rule, attack) - self.mean(clean, 0)
    }

    /// Accuracy with its range, and what was gained.
    fn cell(&self, rule: usize, attack: usize) -> String {
        let mean = self.mean(rule, attack);
        if !mean.is_finite() {
            return "diverges".to_owned();
        }
        let [low, high] = [f64::min, f64::max].map(|pick| self.points(rule, attack).reduce(pick).unwrap_or(mean));
        let gained = CLEAN.map(|(clean, _)| format!("{:+.2}", self.gained(clean, rule, attack)));
        // Without an attack, its own clean run is the run itself.
        let gained = if attack == 0 { gained[0].clone() } else { gained.join("; ") };
        format!("{mean:.2}% ({low:.1} to {high:.1}; {gained})")
    }

    /// Which rules lose little enough to one attack; the mean is none.
    fn verdict(&self, clean: Clean, attack: usize) -> String {
        let within: Vec<&str> = RULES
            .iter()
            .enumerate()
            .skip(1)
            .filter(|(rule, _)| self.gained(clean, *rule, attack) >= -GOAL)
            .map(|(_, (name, _))| *name)
            .collect();
        let reached = if within.len() >= 2 { "reached" } else { "missed" };
        let names = if within.is_empty() { "none".to_owned() } else { within.join(", ") };
        format!("{names} (goal of two {reached})")
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
                         decay = {{ kind = \"cosine\" }}\n[federation.cloud]\nrounds = {ROUNDS}\nrule = {{ {rule} }}\n"
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
             epoch at a rate that falls to zero (cosine), all ends in each, in simulation. Accuracy on the test set, means over the\n\
             last five rounds and {} seeds (each with partition, weights and attackers of its own). In brackets: lowest to highest\n\
             seed; points against the mean of a site that nobody harms (the clean mean); and under attack, points against the same\n\
             rule on such a site (its own clean run), which leaves out what the rule costs in any case. Rules are told the share\n\
             that does harm.",
            100.0 * SHARE,
            SEEDS.len()
        )?;
        for (table, (_, heading)) in self.tables.iter().zip(PARTITIONS) {
            writeln!(f, "\n{heading}:\n")?;
            writeln!(f, "| rule | {} |", ATTACKS.map(|(name, _)| name).join(" | "))?;
            writeln!(f, "|---|{}", "---|".repeat(ATTACKS.len()))?;
            for (rule, (name, _)) in RULES.iter().enumerate() {
                let cells: Vec<String> = (0..ATTACKS.len()).map(|attack| table.cell(rule, attack)).collect();
                writeln!(f, "| {name} | {} |", cells.join(" | "))?;
            }
            for (clean, words) in CLEAN {
                writeln!(f)?;
                for (attack, (name, _)) in ATTACKS.iter().enumerate().skip(1) {
                    let verdict = table.verdict(clean, attack);
                    writeln!(f, "Within {GOAL} point of {words} under {name}: {verdict}.")?;
                }
            }
        }
        Ok(())
    }
}
