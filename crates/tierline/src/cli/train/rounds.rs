//! What a user sees of a federation's rounds, simulated or real.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tierline_daemon::models;
use tierline_federate::RoundScores;
use tierline_train::chart::Point;

use super::Folder;
use crate::cli::Global;
use crate::output::{self, CommandResult};

/// Between two drawings of the curves while rounds come: a picture may take
/// longer than a round.
const REDRAW: Duration = Duration::from_secs(2);

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
    Excluded {
        node: &'a str,
        reason: &'a str,
    },
    Unable {
        node: &'a str,
        reason: &'a str,
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

/// Why a job goes on without a node.
#[derive(Debug, Clone, Copy)]
pub enum Without {
    /// What it sent, or how it behaved.
    Excluded,
    /// It said so itself; it may come back.
    Unable,
}

/// Tells a user of rounds as they end.
pub struct Rounds<'a> {
    global: &'a Global,
    folder: Folder,
    bar: ProgressBar,
    total: u64,
    seen: Vec<RoundScores>,
    /// Rounds' seconds are made up: time left is measured here.
    simulated: Option<Instant>,
    drawn: Option<Instant>,
}

impl<'a> Rounds<'a> {
    /// Of a simulation with so many ends, or of a job on nodes.
    pub fn begin(
        global: &'a Global,
        job: &str,
        total: u64,
        ends: Option<usize>,
        folder: Folder,
    ) -> CommandResult<Self> {
        if global.json {
            global.output().event(&Line::Start { job, rounds: total, ends })?;
        } else {
            let ends = ends.map_or(String::new(), |ends| format!(", {ends} ends"));
            global.output().say(format!("{total} rounds{ends}"));
        }
        let bar = global.output().progress(total, "training");
        // Rounds that have passed come at once: a bar's own guess would be wrong.
        bar.set_style(ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}")?);
        let simulated = ends.map(|_| Instant::now());
        Ok(Self { global, folder, bar, total, seen: Vec::new(), simulated, drawn: None })
    }

    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    pub fn round(&mut self, round: &RoundScores) -> CommandResult {
        self.seen.push(round.clone());
        if self.drawn.is_none_or(|drawn| drawn.elapsed() > REDRAW) {
            self.draw()?;
        }
        if self.global.json {
            return self.global.output().event(&Line::Round { round });
        }
        let left = self.left().map_or(String::new(), |seconds| format!("  done in {}", output::time(seconds)));
        self.bar.set_message(format!("{}{left}", self.summary()));
        self.bar.set_position(round.round);
        self.bar.suspend(|| output::line(&format!("{}{left}", line(round, self.total, self.simulated.is_some()))))
    }

    /// Where the job is, in few words.
    fn summary(&self) -> String {
        let (up, down) = self.bytes();
        let loss = self.seen.last().map_or(String::new(), |round| format!("loss {:.4}  ", round.train_loss));
        let accuracy = self.seen.iter().rev().find_map(|round| round.accuracy);
        let bytes = format!("{} up  {} down", output::bytes(up), output::bytes(down));
        format!("{loss}{}{bytes}", accuracy.map_or(String::new(), |a| format!("accuracy {:.2}%  ", 100.0 * a)))
    }

    /// Of all rounds so far, up and down.
    fn bytes(&self) -> (u64, u64) {
        self.seen.iter().fold((0, 0), |(up, down), round| (up + round.bytes_up, down + round.bytes_down))
    }

    fn seconds(&self) -> f64 {
        self.seen.iter().map(|round| round.seconds).sum()
    }

    /// Seconds until the last round, if the others take as long.
    fn left(&self) -> Option<f64> {
        let ended = self.seen.last()?.round;
        let took = self.simulated.map_or_else(|| self.seconds(), |begun| begun.elapsed().as_secs_f64());
        (ended < self.total).then(|| took / self.seen.len() as f64 * (self.total - ended) as f64)
    }

    /// The job goes on without a node.
    pub fn without(&self, why: Without, node: Option<&str>, reason: Option<&str>) -> CommandResult {
        let (node, reason) = (node.unwrap_or("a node"), reason.unwrap_or("no reason was given"));
        if self.global.json {
            return self.global.output().event(&match why {
                Without::Excluded => Line::Excluded { node, reason },
                Without::Unable => Line::Unable { node, reason },
            });
        }
        let what = match why {
            Without::Excluded => "is left out",
            Without::Unable => "can't take part",
        };
        self.bar.suspend(|| self.global.output().say(format!("{node} {what}: {reason}")));
        Ok(())
    }

    /// Draws the curves of the rounds so far, however the job ended.
    pub fn draw(&mut self) -> CommandResult {
        if !self.seen.is_empty() {
            let points: Vec<Point> = self.seen.iter().map(Point::from).collect();
            self.folder.curves(&points, "round")?;
            self.drawn = Some(Instant::now());
        }
        Ok(())
    }

    /// The last line; the model is in the folder already.
    pub fn done(self) -> CommandResult {
        let file = self.folder.model();
        let model = models::digest(&std::fs::read(&file)?);
        let evaluated = self.seen.iter().rev().find(|r| r.loss.is_some());
        let ((bytes_up, bytes_down), seconds) = (self.bytes(), self.seconds());
        if self.global.json {
            return self.global.output().event(&Line::Done {
                rounds: self.seen.len(),
                accuracy: evaluated.and_then(|r| r.accuracy),
                loss: evaluated.and_then(|r| r.loss),
                bytes_up,
                bytes_down,
                seconds,
                model,
                file: file.display().to_string(),
            });
        }
        self.bar.finish_and_clear();
        output::line(&format!(
            "\nmodel   {}\ndigest  {model}\ncurves  {}\nbytes   {} up, {} down\ntime    {}",
            file.display(),
            self.folder.path().join("curves.svg").display(),
            output::bytes(bytes_up),
            output::bytes(bytes_down),
            output::time(seconds)
        ))
    }
}

impl Drop for Rounds<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// One round, for people.
/// A round, in a line. What it took is of the site: where that is simulated,
/// another time than the user's.
fn line(round: &RoundScores, total: u64, simulated: bool) -> String {
    let share = |accuracy: Option<f64>| accuracy.map_or(String::new(), |a| format!("  accuracy {:6.2}%", 100.0 * a));
    let held_out = round.loss.map_or(String::new(), |l| format!("   held out: loss {l:.4}{}", share(round.accuracy)));
    format!(
        "round {:>3}/{total}  loss {:.4}{held_out}   {} clients  {} up  {} down  {}{}",
        round.round,
        round.train_loss,
        round.clients,
        output::bytes(round.bytes_up),
        output::bytes(round.bytes_down),
        output::time(round.seconds),
        if simulated { " simulated" } else { "" }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_says_loss_accuracy_bytes_and_the_time_left() {
        let folder = tempfile::tempdir().unwrap();
        let global = Global { json: false, quiet: true, data: None, engine: "rten".to_owned() };
        let mut rounds =
            Rounds::begin(&global, "job", 10, None, Folder::take(folder.path().join("run")).unwrap()).unwrap();
        assert_eq!(rounds.left(), None);
        for (number, accuracy) in [(1, Some(0.5)), (2, None)] {
            let round = RoundScores {
                round: number,
                accuracy,
                loss: accuracy,
                train_loss: 1.25,
                bytes_up: 1_000_000,
                bytes_down: 2_000_000,
                seconds: 6.0,
                clients: 3,
            };
            rounds.seen.push(round);
        }
        assert_eq!(rounds.summary(), "loss 1.2500  accuracy 50.00%  2.0 MB up  4.0 MB down");
        assert_eq!(rounds.left().map(output::time).as_deref(), Some("48.0 s"));
        assert_eq!(
            line(&rounds.seen[0], 10, false),
            "round   1/10  loss 1.2500   held out: loss 0.5000  accuracy  50.00%   3 clients  1.0 MB up  2.0 MB down  6.0 s"
        );
        rounds.draw().unwrap();
        assert!(
            rounds.folder().path().join("curves.svg").exists() && rounds.folder().path().join("curves.png").exists()
        );
    }
}
