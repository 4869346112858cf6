//! Numbers of services: who answered, in all and lately.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tierline_node::Time;

use crate::runtime::numbers;

/// Answers are counted together that come within this.
pub const STEP: Duration = Duration::from_secs(10);

/// Steps that are remembered: ten minutes.
pub const STEPS_MAX: usize = 60;

/// Answers, by `SERVICE/MEMBER`.
type Answers = BTreeMap<String, u64>;

#[derive(Default)]
struct Counted {
    all: Answers,
    /// The last steps in which there were some, by number, the oldest first.
    steps: VecDeque<(u64, Answers)>,
}

/// Counted so far: answers, by the member that they are of.
#[derive(Default)]
pub struct Numbers(Mutex<Counted>);

impl Numbers {
    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request was answered by these members.
    pub fn answered(&self, now: Time, service: &str, member: &str) {
        let (mut counted, member) = (self.lock(), format!("{service}/{member}"));
        *counted.all.entry(member.clone()).or_default() += 1;
        let number = step(now);
        if counted.steps.back().is_none_or(|(last, _)| *last != number) {
            if counted.steps.len() == STEPS_MAX {
                counted.steps.pop_front();
            }
            counted.steps.push_back((number, Answers::new()));
        }
        if let Some((_, answers)) = counted.steps.back_mut() {
            *answers.entry(member).or_default() += 1;
        }
    }

    /// Answers of a service that are of this member.
    pub fn of(&self, service: &str, member: &str) -> u64 {
        self.lock().all.get(&format!("{service}/{member}")).copied().unwrap_or_default()
    }

    /// Answers of a service.
    pub fn of_all(&self, service: &str) -> u64 {
        let counted = self.lock();
        let own = counted.all.iter().filter(|(member, _)| member.split_once('/').is_some_and(|(of, _)| of == service));
        own.map(|(_, count)| count).sum()
    }

    /// Answers of each of these members in each of the last steps, the one under
    /// way at the end.
    pub fn lately(&self, now: Time, service: &str, members: &[&str]) -> Vec<Vec<u64>> {
        let counted = self.lock();
        let keys: Vec<String> = members.iter().map(|member| format!("{service}/{member}")).collect();
        let last = step(now);
        let first = (last + 1).saturating_sub(STEPS_MAX as u64);
        let of = |number: u64| {
            let found = counted.steps.iter().find(|(at, _)| *at == number).map(|(_, answers)| answers);
            keys.iter().map(|key| found.and_then(|found| found.get(key)).copied().unwrap_or(0)).collect()
        };
        (first..=last).map(of).collect()
    }

    /// All of it, as Prometheus reads it.
    pub fn text(&self, out: &mut String) {
        let counted = self.lock();
        let help = "Answers of services, by the models that they are of.";
        let counts = counted.all.iter().map(|(member, count)| (member.as_str(), count));
        numbers::labelled(out, ("tierline_service_answers_total", "counter", help), "member", counts);
    }
}

/// The number of the step that a time falls into.
fn step(now: Time) -> u64 {
    now.ns() / STEP.as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_step_and_old_ones_go() {
        let numbers = Numbers::default();
        let at = |s: u64| Time::from_ns(s * 1_000_000_000);
        let members = ["small", "large"];
        assert_eq!(numbers.lately(at(3), "a", &members), [[0, 0]], "it began within this step");
        numbers.answered(at(3), "a", "small");
        numbers.answered(at(9), "a", "small");
        numbers.answered(at(9), "b", "small");
        numbers.answered(at(31), "a", "large");
        assert_eq!(numbers.lately(at(35), "a", &members), [[2, 0], [0, 0], [0, 0], [0, 1]]);
        let later = numbers.lately(at(600), "a", &members);
        assert_eq!((later.len(), &later[..4]), (STEPS_MAX, &[vec![0, 0], vec![0, 0], vec![0, 1], vec![0, 0]][..]));
        (0..200).for_each(|n| numbers.answered(at(10 * n), "a", "small"));
        assert_eq!(numbers.lock().steps.len(), STEPS_MAX);
        assert_eq!((numbers.of("a", "small"), numbers.of_all("a"), numbers.of_all("b")), (202, 203, 1));
    }
}
