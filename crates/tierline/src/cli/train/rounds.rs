//! What a user sees of a federation's rounds, simulated or real.

use std::time::Instant;

use indicatif::ProgressBar;
use serde::Serialize;
use tierline_federate::RoundScores;
use tierline_train::chart::Point;

use super::Folder;
use crate::cli::Global;
use crate::models;
use crate::output::{self, Outcome};

/// One line of `--json`.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Line<'a> {
    Start {
        job: &'a str,
        rounds: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        ends: Option<usize>,
    },
    Round {
        #[serde(flatten)]
        round: &'a RoundScores,
    },
    Done {
        rounds: usize,
        accuracy: Option<f64>,
        loss: Option<f64>,
        bytes_up: u64,
        bytes_down: u64,
        seconds: f64,
        model: String,
        file: String,
    },
}

/// Tells a user of rounds as they end.
pub struct Rounds<'a> {
    global: &'a Global,
    bar: ProgressBar,
    total: u64,
    seen: Vec<RoundScores>,
    started: Instant,
}

impl<'a> Rounds<'a> {
    pub fn begin(global: &'a Global, job: &str, total: u64, ends: Option<usize>) -> Outcome<Self> {
        if global.json {
            global.output().event(&Line::Start { job, rounds: total, ends })?;
        } else {
            let ends = ends.map_or(String::new(), |ends| format!(", {ends} ends"));
            global.output().say(format!("{total} rounds{ends}"));
        }
        let bar = global.output().progress(total, "training");
        Ok(Self { global, bar, total, seen: Vec::new(), started: Instant::now() })
    }

    pub fn round(&mut self, round: &RoundScores) -> Outcome {
        self.seen.push(round.clone());
        if self.global.json {
            return self.global.output().event(&Line::Round { round });
        }
        let share =
            |accuracy: Option<f64>| accuracy.map_or(String::new(), |a| format!("  accuracy {:6.2}%", 100.0 * a));
        let held_out =
            round.loss.map_or(String::new(), |l| format!("   held out: loss {l:.4}{}", share(round.accuracy)));
        let text = format!(
            "round {:>3}/{}  loss {:.4}{held_out}   {} clients  {} up  {} down  {}",
            round.round,
            self.total,
            round.train_loss,
            round.clients,
            output::bytes(round.bytes_up),
            output::bytes(round.bytes_down),
            output::duration((round.seconds * 1e9) as u64)
        );
        self.bar.set_position(round.round);
        self.bar.set_message(format!("round {}/{}  loss {:.4}", round.round, self.total, round.train_loss));
        self.bar.suspend(|| output::line(&text))
    }

    /// The job goes on without a node.
    pub fn without(&self, what: &str, node: Option<&str>, reason: Option<&str>) {
        let (node, reason) = (node.unwrap_or("a node"), reason.unwrap_or("no reason was given"));
        self.bar.suspend(|| self.global.output().say(format!("{node} {what}: {reason}")));
    }

    /// Curves and the last line; the model is in the folder already.
    pub fn done(self, folder: &Folder, seconds: Option<f64>) -> Outcome {
        self.bar.finish_and_clear();
        let points: Vec<Point> = self.seen.iter().map(Point::from).collect();
        folder.curves(&points, "round")?;
        let file = folder.model();
        let model = models::digest(&std::fs::read(&file)?);
        let looked = self.seen.iter().rev().find(|r| r.loss.is_some());
        let (bytes_up, bytes_down) = self.seen.iter().fold((0, 0), |(u, d), r| (u + r.bytes_up, d + r.bytes_down));
        let took = self.started.elapsed().as_secs_f64();
        let seconds = seconds.unwrap_or(took);
        if self.global.json {
            return self.global.output().event(&Line::Done {
                rounds: self.seen.len(),
                accuracy: looked.and_then(|r| r.accuracy),
                loss: looked.and_then(|r| r.loss),
                bytes_up,
                bytes_down,
                seconds,
                model,
                file: file.display().to_string(),
            });
        }
        output::line(&format!(
            "\nmodel   {}\ndigest  {model}\ncurves  {}\nbytes   {} up, {} down\ntime    {}",
            file.display(),
            folder.0.join("curves.svg").display(),
            output::bytes(bytes_up),
            output::bytes(bytes_down),
            output::duration((seconds * 1e9) as u64)
        ))
    }
}
