//! Whether a neighbour is worth asking: a circuit breaker (Nygard, 2007).
//!
//! Failures in a row that are the neighbour's or the link's open it: nothing
//! more is sent there, which would only cost requests their time. After a
//! while one request goes through as a probe; its answer closes the breaker,
//! its failure keeps it open for longer. Refusals count as answers: who says
//! that he is busy is there.
//!
//! Pure, one for each neighbour. Start at [`Breaker::may_ask`].

use std::time::Duration;

use tierline_proto::v1::Code;

use crate::time::Time;

/// Failures in a row that open it. Less would take a single hiccup for a fault.
pub const FAILURES_MAX: u32 = 5;

/// How long it is open at first.
pub const OPEN_FIRST: Duration = Duration::from_secs(1);

/// How long it is open at most: a neighbour that is well again isn't left
/// aside for longer.
pub const OPEN_MAX: Duration = Duration::from_secs(30);

/// Whoever didn't answer within this many times what was predicted is late, and
/// not merely asked too late ...
const LATE_FACTOR: u32 = 3;

/// ... nor within less than this.
const LATE_MIN: Duration = Duration::from_secs(1);

/// A probe that nothing was heard of for so long is forgotten.
const PROBE_MAX: Duration = Duration::from_secs(30);

/// What a breaker is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// All is well.
    Closed,
    /// Nothing is sent there.
    Open,
    /// One request is there, to see whether it answers.
    Probing,
}

impl State {
    /// Its name, for people and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::Probing => "probing",
        }
    }
}

/// Watches one neighbour.
#[derive(Debug, Default)]
pub struct Breaker {
    failures: u32,
    /// Until when it is open, and for how long it was opened.
    open: Option<(Time, Duration)>,
    probe: Option<Time>,
    opened: u64,
}

impl Breaker {
    /// Whether a request may be sent there now. One that finds it open for long
    /// enough is the probe, and its end must be told ([`Breaker::ended`]).
    pub fn may_ask(&mut self, now: Time) -> bool {
        match self.state(now) {
            State::Closed => true,
            State::Open => {
                let over = self.open.is_none_or(|(until, _)| now >= until);
                self.probe = over.then_some(now);
                over
            }
            State::Probing => false,
        }
    }

    /// A request that was sent there has ended: with an answer, or with this
    /// failure. `None` for one that was given up before: it says nothing.
    pub fn ended(&mut self, now: Time, result: Option<Result<(), Code>>) {
        match result {
            None => self.probe = None,
            Some(Err(code)) if is_fault(code) => self.failed(now),
            Some(_) => {
                (self.failures, self.open, self.probe) = (0, None, None);
            }
        }
    }

    /// A request that was sent there was given up after `given`, when its own
    /// time was over; an answer was `predicted` to take so long. A caller in too
    /// much of a hurry isn't the neighbour's fault, and must not close the way
    /// to it for others.
    pub fn lapsed(&mut self, now: Time, given: Duration, predicted: Duration) {
        let is_late = given >= predicted.saturating_mul(LATE_FACTOR).max(LATE_MIN);
        self.ended(now, is_late.then_some(Err(Code::DeadlineExceeded)));
    }

    fn failed(&mut self, now: Time) {
        self.failures = self.failures.saturating_add(1);
        let lasts = match (self.open, self.probe.take()) {
            (Some((_, lasted)), Some(_)) => (lasted * 2).min(OPEN_MAX),
            // Sent before it opened: nothing new.
            (Some(_), None) => return,
            (None, _) if self.failures >= FAILURES_MAX => OPEN_FIRST,
            (None, _) => return,
        };
        self.open = Some((now + lasts, lasts));
        self.opened += 1;
    }

    /// The connection is new: what was, says nothing of it.
    pub fn reset(&mut self) {
        *self = Self { opened: self.opened, ..Self::default() };
    }

    /// What it is at.
    #[must_use]
    pub fn state(&self, now: Time) -> State {
        match (self.open, self.probe) {
            (None, _) => State::Closed,
            (Some(_), Some(since)) if now.since(since) < PROBE_MAX => State::Probing,
            _ => State::Open,
        }
    }

    /// How often it opened.
    #[must_use]
    pub fn opened(&self) -> u64 {
        self.opened
    }
}

/// Whether a failure is the neighbour's own or the link's. Refusals for what a
/// request is, or because there is too much to do, are answers.
fn is_fault(code: Code) -> bool {
    matches!(code, Code::Unreachable | Code::DeadlineExceeded | Code::Corrupt | Code::Internal | Code::Engine)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: f64) -> Time {
        Time::ZERO + Duration::from_secs_f64(seconds)
    }

    const FAULT: Option<Result<(), Code>> = Some(Err(Code::Unreachable));

    fn opened() -> Breaker {
        let mut breaker = Breaker::default();
        for _ in 0..FAILURES_MAX {
            assert!(breaker.may_ask(s(0.0)));
            breaker.ended(s(0.0), FAULT);
        }
        breaker
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_probe_closes_it() {
        let mut breaker = opened();
        assert_eq!((breaker.state(s(0.1)), breaker.opened()), (State::Open, 1));
        assert!(!breaker.may_ask(s(0.9)));
        assert!(breaker.may_ask(s(1.0)), "one goes through");
        assert!(!breaker.may_ask(s(1.0)) && breaker.state(s(1.0)) == State::Probing, "and only one");
        breaker.ended(s(1.1), Some(Ok(())));
        assert!(breaker.state(s(1.1)) == State::Closed && breaker.may_ask(s(1.1)));
        breaker.ended(s(1.1), FAULT);
        assert_eq!(breaker.state(s(1.1)), State::Closed, "it counts from the start");
    }

    #[test]
    fn callers_in_a_hurry_close_the_way_for_nobody() {
        let mut breaker = Breaker::default();
        for _ in 0..100 {
            breaker.lapsed(s(0.0), Duration::from_millis(1), Duration::from_millis(20));
            breaker.lapsed(s(0.0), Duration::from_secs(20), Duration::from_secs(48));
        }
        assert_eq!(breaker.state(s(0.0)), State::Closed);
        for _ in 0..FAILURES_MAX {
            breaker.lapsed(s(0.0), LATE_MIN, Duration::from_millis(20));
        }
        assert_eq!(breaker.state(s(0.0)), State::Open);
    }

    #[test]
    fn a_probe_that_fails_keeps_it_open_for_longer() {
        let mut breaker = opened();
        let (mut now, mut waits) = (1.0, Vec::new());
        for _ in 0..8 {
            assert!(breaker.may_ask(s(now)));
            breaker.ended(s(now), FAULT);
            // What was sent before says nothing new.
            breaker.ended(s(now), FAULT);
            let wait = (1..).find(|wait| breaker.open.is_some_and(|(until, _)| s(now + f64::from(*wait)) >= until));
            waits.extend(wait);
            now += f64::from(wait.unwrap());
        }
        assert_eq!(waits, [2, 4, 8, 16, 30, 30, 30, 30]);
    }

    #[test]
    fn refusals_are_answers_and_what_is_given_up_says_nothing() {
        let mut breaker = Breaker::default();
        for _ in 0..20 {
            breaker.ended(s(0.0), FAULT);
            breaker.ended(s(0.0), Some(Err(Code::Overloaded)));
            breaker.ended(s(0.0), None);
        }
        assert_eq!(breaker.state(s(0.0)), State::Closed);
        let mut breaker = opened();
        assert!(breaker.may_ask(s(2.0)));
        breaker.ended(s(2.0), None);
        assert!(breaker.may_ask(s(2.0)), "the next one is the probe");
        assert!(breaker.may_ask(s(40.0)), "one that nothing was heard of is forgotten");
        breaker.reset();
        assert!(breaker.state(s(2.0)) == State::Closed && breaker.opened() == 1);
    }
}
