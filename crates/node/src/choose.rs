//! Which of several neighbours takes a request that any of them could.
//!
//! What is known of their loads is as old as their last word, and everybody
//! else knows the same: whoever looks least loaded would get all requests
//! until the next one. So a request goes to each with a probability, such that
//! what comes meanwhile evens out what was heard (Dahlin, 1999: interpreting
//! stale load information). The older the words and the busier all of them, the
//! more alike the chances; what this node has sent itself since then is counted
//! as it is.
//!
//! Pure: the shell says what it heard, draws nothing itself, and tells when
//! requests end. Start at [`Chooser::choose`].

use std::collections::BTreeMap;
use std::time::Duration;

use crate::Rng;
use crate::time::{Time, ns};

/// A word older than this says nothing of now.
pub const WORD_MAX: Duration = Duration::from_secs(10);

/// Neighbours whose words are remembered.
const NEIGHBOURS_MAX: usize = 1_024;

/// Requests that are out at once, of all neighbours; more aren't counted.
const OUT_MAX: usize = 4_096;

/// A neighbour that could take a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate<N> {
    /// Who.
    pub neighbour: N,
    /// Expected time until its answer is here, where nobody waits there.
    pub predicted: Duration,
    /// How long a request waited there, by its last word.
    pub wait: Duration,
    /// When that was heard.
    pub heard: Time,
    /// What the request adds to that wait.
    pub service: Duration,
}

/// A choice; the shell gives it back when the request has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Choice<N> {
    /// Whom.
    pub neighbour: N,
    at: Time,
}

/// How much the newest word counts in how busy neighbours are on the whole.
const NEWEST: f64 = 0.1;

/// Chooses, and remembers what is out.
#[derive(Debug)]
pub struct Chooser<N> {
    /// Since when, and how many.
    out: BTreeMap<Choice<N>, u32>,
    /// Part of their time that neighbours are busy, 0 to 1.
    busy: f64,
    /// The last words that it comes from.
    words: BTreeMap<N, Time>,
}

impl<N> Default for Chooser<N> {
    fn default() -> Self {
        Self { out: BTreeMap::new(), busy: 0.0, words: BTreeMap::new() }
    }
}

impl<N: Copy + Ord> Chooser<N> {
    /// Who takes a request now; `None` where there is nobody.
    pub fn choose(&mut self, now: Time, rng: &mut Rng, candidates: &[Candidate<N>]) -> Option<Choice<N>> {
        candidates.iter().for_each(|candidate| self.hear(candidate));
        let neighbour = pick(&self.chances(now, candidates), rng)?;
        let choice = Choice { neighbour, at: now };
        if self.out.len() < OUT_MAX {
            *self.out.entry(choice).or_default() += 1;
        }
        Some(choice)
    }

    /// Learns how busy they are from a word that is new: where requests come by
    /// chance and wait `w` for runs of `s`, the device is busy for `2w / (2w + s)`
    /// of its time (Pollaczek and Khinchine, for runs of equal length).
    fn hear(&mut self, candidate: &Candidate<N>) {
        let (wait, service) = (2.0 * ns(candidate.wait) as f64, ns(candidate.service).max(1) as f64);
        let before = self.words.insert(candidate.neighbour, candidate.heard);
        if before.is_none_or(|before| before < candidate.heard) {
            self.busy += NEWEST * (wait / (wait + service) - self.busy);
        }
        // Those that are no candidates any more.
        if self.words.len() > NEIGHBOURS_MAX {
            self.words.clear();
        }
    }

    /// The request that a choice was made for has ended.
    pub fn ended(&mut self, choice: Choice<N>) {
        if let Some(count) = self.out.get_mut(&choice) {
            *count -= 1;
            if *count == 0 {
                self.out.remove(&choice);
            }
        }
    }

    /// Requests of this node that are out at a neighbour.
    #[must_use]
    pub fn out(&self, neighbour: N) -> u32 {
        self.out.iter().filter(|(choice, _)| choice.neighbour == neighbour).map(|(_, count)| count).sum()
    }

    /// How likely each is to take a request now; together 1.
    #[must_use]
    pub fn chances(&self, now: Time, candidates: &[Candidate<N>]) -> Vec<(N, f64)> {
        let fresh = |candidate: &&Candidate<N>| now.since(candidate.heard) <= WORD_MAX;
        // Nothing heard of anybody: all words count the same, as they are.
        let any = candidates.iter().any(|candidate| fresh(&candidate));
        let known: Vec<&Candidate<N>> = candidates.iter().filter(|c| !any || fresh(c)).collect();
        let age = known.iter().map(|c| now.since(c.heard)).max().unwrap_or_default().min(WORD_MAX);
        let costs: Vec<f64> = known.iter().map(|candidate| self.cost(candidate)).collect();
        let least = known.iter().map(|candidate| ns(candidate.service)).min().unwrap_or(0).max(1);
        // What is likely to have come to all of them since, and this request.
        let come = known.len() as f64 * ns(age) as f64 * self.busy + least as f64;
        let level = level(&costs, come);
        known.iter().zip(&costs).map(|(c, cost)| (c.neighbour, (level - cost).max(0.0) / come)).collect()
    }

    /// Expected time at a neighbour, what was sent there since its last word
    /// included.
    fn cost(&self, candidate: &Candidate<N>) -> f64 {
        let since = |choice: &Choice<N>| choice.neighbour == candidate.neighbour && choice.at >= candidate.heard;
        let sent: u32 = self.out.iter().filter(|(choice, _)| since(choice)).map(|(_, count)| count).sum();
        ns(candidate.predicted) as f64 + ns(candidate.wait) as f64 + f64::from(sent) * ns(candidate.service) as f64
    }
}

/// Up to where `come` fills vessels whose floors are at `costs`.
fn level(costs: &[f64], come: f64) -> f64 {
    let mut floors = costs.to_vec();
    floors.sort_by(f64::total_cmp);
    let mut sum = 0.0;
    for (count, floor) in floors.iter().enumerate() {
        let filled = (sum + come) / count.max(1) as f64;
        if count > 0 && filled <= *floor {
            return filled;
        }
        sum += floor;
    }
    (sum + come) / floors.len().max(1) as f64
}

fn pick<N: Copy>(chances: &[(N, f64)], rng: &mut Rng) -> Option<N> {
    let mut at = rng.f64();
    for (neighbour, chance) in chances {
        at -= chance;
        if at < 0.0 {
            return Some(*neighbour);
        }
    }
    // What rounding left over.
    chances.iter().max_by(|a, b| a.1.total_cmp(&b.1)).map(|(neighbour, _)| *neighbour)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn at(neighbour: u32, wait: u64, heard: u64) -> Candidate<u32> {
        let heard = Time::ZERO + ms(heard);
        Candidate { neighbour, predicted: ms(10), wait: ms(wait), heard, service: ms(10) }
    }

    /// Where all of them are as busy as can be.
    fn chances(now: u64, candidates: &[Candidate<u32>]) -> Vec<f64> {
        let chooser = Chooser { busy: 1.0, ..Chooser::default() };
        let chances = chooser.chances(Time::ZERO + ms(now), candidates);
        chances.iter().map(|(_, chance)| (chance * 1_000.0).round() / 1_000.0).collect()
    }

    #[test]
    fn the_older_the_word_the_more_alike_the_chances() {
        assert_eq!(chances(0, &[at(0, 0, 0), at(1, 50, 0)]), [1.0, 0.0], "just heard: the least loaded");
        assert_eq!(chances(45, &[at(0, 0, 0), at(1, 50, 0)]), [0.75, 0.25]);
        assert_eq!(chances(1_000, &[at(0, 0, 0), at(1, 50, 0)]), [0.512, 0.488]);
        assert_eq!(chances(1_000, &[at(0, 7, 0), at(1, 7, 0), at(2, 7, 0)]), [0.333; 3]);
        // Nothing was heard of it for long.
        assert_eq!(chances(11_000, &[at(0, 9_000, 10_900), at(1, 0, 0)]), [1.0]);
        assert_eq!(chances(11_000, &[at(0, 0, 0), at(1, 0, 1)]), [0.5, 0.5], "nothing of anybody: as it comes");
        assert_eq!(Chooser::default().chances(Time::ZERO, &[]), Vec::<(u32, f64)>::new());
    }

    #[test]
    fn where_nobody_waits_the_fastest_is_asked() {
        let (mut chooser, mut rng) = (Chooser::default(), Rng::with_seed(1));
        let slow = Candidate { predicted: ms(40), service: ms(30), ..at(1, 0, 0) };
        for _ in 0..50 {
            let choice = chooser.choose(Time::ZERO + ms(900), &mut rng, &[at(0, 0, 0), slow]).unwrap();
            assert_eq!(choice.neighbour, 0);
            chooser.ended(choice);
        }
        for word in 1..50 {
            chooser.choose(Time::ZERO, &mut rng, &[at(0, 200, word), at(1, 200, word)]);
        }
        assert!((0.9..1.0).contains(&chooser.busy), "{}", chooser.busy);
    }

    #[test]
    fn what_is_out_counts_until_it_ends() {
        let (mut chooser, mut rng) = (Chooser::default(), Rng::with_seed(1));
        let both = [at(0, 0, 0), at(1, 0, 0)];
        let first = chooser.choose(Time::ZERO, &mut rng, &both).unwrap();
        let second = chooser.choose(Time::ZERO, &mut rng, &both).unwrap();
        assert_ne!(first.neighbour, second.neighbour);
        assert_eq!((chooser.out(0), chooser.out(1)), (1, 1));
        chooser.ended(first);
        chooser.ended(first);
        assert_eq!(chooser.out(first.neighbour), 0);
        assert_eq!(chooser.choose(Time::ZERO, &mut rng, &both).unwrap().neighbour, first.neighbour);
    }
}
