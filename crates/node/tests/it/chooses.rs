//! Several edges, many ends, words about loads that are old: no herd forms,
//! and nobody who is slow or busy is asked as often as who isn't.

use std::time::Duration;

use tierline_node::choose::{Candidate, Choice, Chooser};
use tierline_node::{Rng, Time};

use crate::harness::{Schedule, ms, seeds};

/// How an end chooses.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    /// As the machine does.
    Chooser,
    /// Whoever looked least loaded.
    Least,
    /// Whoever comes.
    Random,
}

struct Site {
    /// What a request takes at each edge.
    service: Vec<Duration>,
    ends: usize,
    /// Between words about loads.
    words: Duration,
    /// Part of all edges' time that requests take.
    busy: f64,
}

enum Ev {
    Arrive,
    Word(usize),
    Answered(usize, Choice<usize>),
}

/// The mean and the longest time that requests took.
fn run(rng: &mut Rng, site: &Site, way: Way) -> (f64, f64) {
    const REQUESTS: usize = 6_000;
    let edges = site.service.len();
    let rate: f64 = site.service.iter().map(|service| site.busy / service.as_secs_f64()).sum();
    let mut schedule = Schedule::new();
    let mut free = vec![Time::ZERO; edges];
    let mut heard = vec![(Duration::ZERO, Time::ZERO); edges];
    let mut ends: Vec<Chooser<usize>> = (0..site.ends).map(|_| Chooser::default()).collect();
    for edge in 0..edges {
        schedule.after(site.words.mul_f64(rng.f64()), Ev::Word(edge));
    }
    schedule.after(ms(0), Ev::Arrive);
    let (mut arrived, mut took, mut owner) = (0, Vec::new(), Vec::new());
    while took.len() < REQUESTS {
        let event = schedule.next(Time::from_ns(u64::MAX)).expect("more to come");
        let now = schedule.now();
        match event {
            Ev::Word(edge) => {
                heard[edge] = (now.until(free[edge]), now);
                schedule.after(site.words, Ev::Word(edge));
            }
            Ev::Answered(request, choice) => {
                let end: usize = owner[request];
                ends[end].ended(choice);
            }
            Ev::Arrive => {
                let pause = Duration::from_secs_f64(-(1.0 - rng.f64()).ln() / rate);
                schedule.after(pause, Ev::Arrive);
                let end = rng.usize(..site.ends);
                let candidates: Vec<Candidate<usize>> = (0..edges)
                    .map(|neighbour| {
                        let (wait, at) = heard[neighbour];
                        let service = site.service[neighbour];
                        Candidate { neighbour, predicted: service, wait, heard: at, service }
                    })
                    .collect();
                let choice = match way {
                    Way::Chooser => ends[end].choose(now, rng, &candidates).expect("somebody"),
                    _ => {
                        let least = candidates.iter().min_by_key(|c| c.predicted + c.wait).expect("somebody");
                        let one = if way == Way::Least { *least } else { candidates[rng.usize(..edges)] };
                        ends[end].choose(now, rng, &[one]).expect("it")
                    }
                };
                let edge = choice.neighbour;
                let service = site.service[edge].mul_f64(0.5 + rng.f64());
                free[edge] = free[edge].max(now) + service;
                took.push(now.until(free[edge]).as_secs_f64());
                owner.push(end);
                schedule.at(free[edge], Ev::Answered(arrived, choice));
                arrived += 1;
            }
        }
    }
    took.sort_by(f64::total_cmp);
    (took.iter().sum::<f64>() / took.len() as f64, took[took.len() - 1])
}

fn means(site: &Site) -> [f64; 3] {
    const SEEDS: u64 = 12;
    let mut sums = [0.0; 3];
    let sums_of = std::cell::RefCell::new(&mut sums);
    seeds(SEEDS, |rng| {
        let seed = rng.u64(..);
        for (at, way) in [Way::Chooser, Way::Least, Way::Random].into_iter().enumerate() {
            sums_of.borrow_mut()[at] += run(&mut Rng::with_seed(seed), site, way).0 / SEEDS as f64;
        }
    });
    println!("{} edges, {} ends, words every {:?}: {sums:.4?} s", site.service.len(), site.ends, site.words);
    sums
}

#[test]
fn no_herd_forms_on_old_words() {
    for (edges, ends) in [(2, 20), (3, 10), (8, 40)] {
        let site = Site { service: vec![ms(20); edges], ends, words: ms(1_000), busy: 0.7 };
        let [chosen, least, random] = means(&site);
        assert!(chosen <= 1.05 * random, "worse than chance: {chosen} and {random}");
        assert!(chosen < 0.4 * least, "a herd: {chosen} and {least}");
    }
}

#[test]
fn fresh_words_are_used() {
    let site = Site { service: vec![ms(20); 3], ends: 3, words: ms(10), busy: 0.8 };
    let [chosen, _, random] = means(&site);
    assert!(chosen < 0.6 * random, "{chosen} and {random}");
}

#[test]
fn who_is_slower_is_asked_less() {
    let service = vec![ms(10), ms(10), ms(80)];
    let site = Site { service, ends: 20, words: ms(500), busy: 0.6 };
    let [chosen, _, random] = means(&site);
    assert!(chosen < 0.3 * random, "{chosen} and {random}");
}
