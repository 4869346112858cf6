//! Numbers of the jobs that this node coordinates.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tierline_federate::RoundScores;
use tierline_node::federation::{Progress, Verdict};
use tierline_proto::Digest;

use crate::runtime::numbers::{Histogram, escaped, head};

/// Upper bounds of the buckets for rounds, seconds.
const BUCKETS: [f64; 12] = [1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0, 14_400.0];

/// Jobs whose numbers are kept, those that are over included; the oldest goes.
const JOBS_MAX: usize = 256;

#[derive(Debug)]
struct Seconds(Histogram<12>);

impl Default for Seconds {
    fn default() -> Self {
        Self(Histogram::new(BUCKETS))
    }
}

#[derive(Debug, Default)]
struct Job {
    name: String,
    rounds: u64,
    seconds: Seconds,
    bytes_up: u64,
    bytes_down: u64,
    train_loss: Option<f64>,
    accuracy: Option<f64>,
    loss: Option<f64>,
    verdicts: BTreeMap<&'static str, u64>,
    members: usize,
    ready: usize,
}

/// Numbers of jobs.
#[derive(Debug, Default)]
pub(super) struct Numbers(Mutex<Recent>);

impl Numbers {
    fn lock(&self) -> MutexGuard<'_, Recent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A job is coordinated here, with these rounds behind it.
    pub(super) fn begin(&self, job: JobKey, name: &str, past: &[RoundScores]) {
        let mut kept = self.lock();
        kept.begin(job, name);
        past.iter().for_each(|scores| kept.round(job, scores));
    }

    /// A round of a job ended.
    pub(super) fn round(&self, job: JobKey, scores: &RoundScores) {
        self.lock().round(job, scores);
    }

    /// An update was answered.
    pub(super) fn answered(&self, job: JobKey, verdict: &Verdict) {
        self.lock().answered(job, verdict);
    }

    /// How far a job is.
    pub(super) fn progress(&self, job: JobKey, progress: &Progress) {
        self.lock().progress(job, progress);
    }

    /// All of it, as Prometheus reads it.
    pub(super) fn text(&self, out: &mut String) {
        self.lock().text(out);
    }
}

/// The oldest first.
#[derive(Debug, Default)]
struct Recent(BTreeMap<JobKey, Job>);

/// Names a job among the numbers: when it was given, and its digest.
pub(super) type JobKey = (u64, Digest);

impl Recent {
    fn of(&mut self, key: JobKey) -> &mut Job {
        if self.0.len() >= JOBS_MAX && !self.0.contains_key(&key) {
            self.0.pop_first();
        }
        self.0.entry(key).or_default()
    }

    fn begin(&mut self, key: JobKey, name: &str) {
        name.clone_into(&mut self.of(key).name);
    }

    fn round(&mut self, key: JobKey, scores: &RoundScores) {
        let job = self.of(key);
        // A round that is made once more after a crash replaces itself.
        if scores.round <= job.rounds {
            return;
        }
        job.rounds = scores.round;
        job.seconds.0.count(scores.seconds);
        job.bytes_up += scores.bytes_up;
        job.bytes_down += scores.bytes_down;
        job.train_loss = Some(scores.train_loss);
        // Not every round is evaluated.
        (job.accuracy, job.loss) = (scores.accuracy.or(job.accuracy), scores.loss.or(job.loss));
    }

    fn answered(&mut self, key: JobKey, verdict: &Verdict) {
        let verdict = match verdict {
            Verdict::Counted => "counted",
            Verdict::Late => "late",
            Verdict::Unknown => "unknown",
            Verdict::Refused { .. } => "refused",
        };
        *self.of(key).verdicts.entry(verdict).or_default() += 1;
    }

    fn progress(&mut self, key: JobKey, progress: &Progress) {
        let job = self.of(key);
        (job.members, job.ready) = (progress.members, progress.ready);
    }

    /// All of it, as Prometheus reads it.
    fn text(&self, out: &mut String) {
        if self.0.is_empty() {
            return;
        }
        let labelled = || self.0.iter().map(|((_, id), job)| (labels(*id, &job.name), job));
        let mut family = |name: &str, kind: &str, help: &str, lines: &mut dyn Iterator<Item = String>| {
            head(out, name, kind, help);
            lines.for_each(|line| {
                let _ = writeln!(out, "{name}{line}");
            });
        };
        family(
            "tierline_job_rounds_total",
            "counter",
            "Rounds of a job that have ended.",
            &mut labelled().map(|(l, job)| format!("{{{l}}} {}", job.rounds)),
        );
        let seconds = "tierline_job_round_seconds";
        head(out, seconds, "histogram", "Time between the ends of two rounds.");
        labelled().for_each(|(l, job)| job.seconds.0.text(out, seconds, &format!("{l},")));
        let mut family = |name: &str, kind: &str, help: &str, lines: &mut dyn Iterator<Item = String>| {
            head(out, name, kind, help);
            lines.for_each(|line| {
                let _ = writeln!(out, "{name}{line}");
            });
        };
        type Number = fn(&Job) -> Option<f64>;
        let gauges: [(&str, &str, Number); 5] = [
            ("tierline_job_accuracy", "Share of the examples held out that the newest model gets right.", |j| {
                j.accuracy
            }),
            ("tierline_job_loss", "Loss of the newest model on the examples held out.", |j| j.loss),
            ("tierline_job_train_loss", "Loss on members' own examples, in the last round.", |j| j.train_loss),
            ("tierline_job_members", "Members known.", |j| Some(j.members as f64)),
            ("tierline_job_members_ready", "Members that can work, or are at work.", |j| Some(j.ready as f64)),
        ];
        for (name, help, number) in gauges {
            let known = labelled().filter_map(|(l, job)| Some(format!("{{{l}}} {}", number(job)?)));
            family(name, "gauge", help, &mut known.collect::<Vec<_>>().into_iter());
        }
        family(
            "tierline_job_updates_total",
            "counter",
            "Answers to updates since this node's start, by verdict; one that is sent again is answered again.",
            &mut labelled().flat_map(|(l, job)| {
                let line = |(verdict, count): (&&str, &u64)| format!("{{{l},verdict=\"{verdict}\"}} {count}");
                job.verdicts.iter().map(line).collect::<Vec<_>>()
            }),
        );
        family(
            "tierline_job_bytes_total",
            "counter",
            "Bytes of updates (up) and models (down), on all hops of the job together.",
            &mut labelled().flat_map(|(l, job)| {
                [("up", job.bytes_up), ("down", job.bytes_down)]
                    .map(|(direction, bytes)| format!("{{{l},direction=\"{direction}\"}} {bytes}"))
            }),
        );
    }
}

/// A job's name may come twice; its digest doesn't.
fn labels(id: Digest, name: &str) -> String {
    format!("job=\"{}\",id=\"{}\"", escaped(name), id.short())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_that_is_made_again_counts_once() {
        let key = (1, Digest([7; 32]));
        let mut jobs = Recent::default();
        jobs.begin(key, "say \"hi\"");
        let scores = RoundScores {
            round: 1,
            accuracy: Some(0.5),
            loss: None,
            train_loss: 1.25,
            bytes_up: 10,
            bytes_down: 20,
            seconds: 3.0,
            clients: 2,
        };
        jobs.round(key, &scores);
        jobs.round(key, &scores);
        jobs.answered(key, &Verdict::Late);
        let mut text = String::new();
        jobs.text(&mut text);
        let label = format!("job=\"say \\\"hi\\\"\",id=\"{}\"", key.1.short());
        for line in [
            format!("tierline_job_rounds_total{{{label}}} 1"),
            format!("tierline_job_round_seconds_bucket{{{label},le=\"2.5\"}} 0"),
            format!("tierline_job_round_seconds_bucket{{{label},le=\"5.0\"}} 1"),
            format!("tierline_job_round_seconds_sum{{{label}}} 3"),
            format!("tierline_job_accuracy{{{label}}} 0.5"),
            format!("tierline_job_updates_total{{{label},verdict=\"late\"}} 1"),
            format!("tierline_job_bytes_total{{{label},direction=\"down\"}} 20"),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
        assert!(!text.contains("tierline_job_loss{"), "not evaluated yet:\n{text}");
    }
}
