//! The child's side: dial, hello, heartbeat, lose, back off, dial again.

use std::time::Duration;

use tierline_proto::{Code, Failure};

use super::{BACKOFF_BASE, BACKOFF_MAX, DIAL_TIMEOUT, HEARTBEAT, HEARTBEAT_MIN, HELLO_TIMEOUT, LEASE, LEASE_RANGE};
use crate::Rng;
use crate::time::{Time, ns};

/// Between heartbeats that somebody asks for: a parent that is gone answers
/// none of them.
const URGED_AGAIN: Duration = Duration::from_millis(20);

/// What a parent grants in its hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// The protocol version to speak.
    pub version: u32,
    /// Names the lease.
    pub session: u64,
    /// How long it lasts; zero means the default.
    pub lease: Duration,
    /// How often to renew it; zero means the default.
    pub heartbeat: Duration,
}

/// What happens to a child. `conn` is the number of the attempt that a
/// message belongs to; messages of earlier attempts are ignored.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Begin.
    Start,
    /// The connection stands.
    Connected {
        /// Attempt.
        conn: u64,
    },
    /// The connection did not come to stand, or ended.
    Disconnected {
        /// Attempt.
        conn: u64,
        /// Why.
        failure: Failure,
    },
    /// The hello was answered.
    Hello {
        /// Attempt.
        conn: u64,
        /// What the parent said.
        result: Result<Granted, Failure>,
    },
    /// A heartbeat was acknowledged.
    Ack {
        /// Attempt.
        conn: u64,
        /// The heartbeat's number.
        sequence: u64,
        /// How long the parent held it.
        held: Duration,
    },
    /// An acknowledgement names another length of the lease, or another time
    /// between heartbeats; comes before its `Ack`. Zero leaves it as it is.
    Lease {
        /// Attempt.
        conn: u64,
        /// How long the lease lasts from the acknowledged heartbeat on.
        lease: Duration,
        /// How often to renew it from now on.
        heartbeat: Duration,
    },
    /// The parent says goodbye.
    Goodbye {
        /// Attempt.
        conn: u64,
        /// Why.
        reason: Failure,
        /// Do not come back sooner.
        return_after: Duration,
    },
    /// Configuration, certificate or program changed: try again even after a
    /// final refusal.
    Reconfigured,
    /// Somebody wants to know now whether the parent is there: a heartbeat,
    /// unless one is on its way.
    Urge,
    /// Let go and stay away.
    Stop,
    /// The time [`Child::wake`] named.
    Wake,
}

/// What the shell shall do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Open connections; report `Connected` or `Disconnected`.
    Dial {
        /// Number of this attempt.
        conn: u64,
    },
    /// Send the hello; report `Hello`.
    SayHello {
        /// Attempt.
        conn: u64,
    },
    /// The lease is held from now on: open the session stream, tell other
    /// machines. The first heartbeat follows.
    Up {
        /// Attempt.
        conn: u64,
        /// What was granted.
        granted: Granted,
    },
    /// Send a heartbeat.
    Heartbeat {
        /// Attempt.
        conn: u64,
        /// The lease.
        session: u64,
        /// Its number.
        sequence: u64,
    },
    /// A round trip was measured.
    Rtt(Duration),
    /// The lease is lost: tell other machines.
    Down {
        /// Why.
        failure: Failure,
    },
    /// Close the attempt's connections, if there are any.
    Close {
        /// Attempt.
        conn: u64,
    },
    /// The parent will never take us as we are; no further attempts.
    Refused(Failure),
}

/// Where a child stands.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// Before `Start` and after `Stop`.
    Stopped,
    /// A connection is being opened.
    Dialling {
        /// When to give up.
        until: Time,
    },
    /// The hello is on its way.
    Greeting {
        /// When to give up.
        until: Time,
    },
    /// The lease is held.
    Held(Held),
    /// Pausing before the next attempt.
    Waiting {
        /// When it begins.
        until: Time,
        /// What went wrong last.
        failure: Failure,
    },
    /// Turned away for good, until reconfigured.
    Refused(Failure),
}

/// A lease that is held.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    granted: Granted,
    since: Time,
    /// When it is lost unless renewed.
    expires: Time,
    next_beat: Time,
    /// Number of the next heartbeat.
    sequence: u64,
    /// Heartbeats not yet acknowledged, oldest first, and when they were sent.
    sent: Vec<(u64, Time)>,
}

/// One parent as seen by its child.
#[derive(Debug)]
pub struct Child {
    state: State,
    conn: u64,
    /// Attempts in a row that did not lead to a lasting lease.
    failures: u32,
}

impl Default for Child {
    fn default() -> Self {
        Self { state: State::Stopped, conn: 0, failures: 0 }
    }
}

impl Child {
    /// One step.
    pub fn step(&mut self, now: Time, rng: &mut Rng, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        let out = &mut actions;
        match event {
            Event::Start if self.state == State::Stopped => self.dial(now, out),
            Event::Reconfigured if self.is_idle() => {
                self.failures = 0;
                self.dial(now, out);
            }
            Event::Start | Event::Reconfigured => {}
            Event::Stop => self.stop(out),
            Event::Wake => self.wake_up(now, rng, out),
            Event::Urge => {
                if let State::Held(held) = &mut self.state
                    && held.sent.last().is_none_or(|(_, sent)| now.since(*sent) >= URGED_AGAIN)
                {
                    held.next_beat = now;
                    self.wake_up(now, rng, out);
                }
            }
            Event::Connected { conn } if conn == self.conn => self.connected(now, out),
            Event::Hello { conn, result } if conn == self.conn => self.greeted(now, rng, result, out),
            Event::Ack { conn, sequence, held } if conn == self.conn => self.acknowledged(now, sequence, held, out),
            Event::Lease { conn, lease, heartbeat } if conn == self.conn => {
                if let State::Held(Held { granted, next_beat, .. }) = &mut self.state {
                    granted.lease = granted_or(lease, granted.lease).clamp(LEASE_RANGE[0], LEASE_RANGE[1]);
                    let heartbeat = granted_or(heartbeat, granted.heartbeat);
                    granted.heartbeat = heartbeat.clamp(HEARTBEAT_MIN, granted.lease / 3);
                    *next_beat = (*next_beat).min(now + granted.heartbeat);
                }
            }
            Event::Disconnected { conn, failure } if conn == self.conn => {
                self.lose(now, rng, failure, Duration::ZERO, out);
            }
            Event::Goodbye { conn, reason, return_after } if conn == self.conn => {
                if is_final(reason.code()) {
                    self.refuse(reason, out);
                } else {
                    self.lose(now, rng, reason, return_after, out);
                }
            }
            // An earlier attempt's.
            _ => {}
        }
        actions
    }

    /// When the machine wants `Wake`.
    #[must_use]
    pub fn wake(&self) -> Option<Time> {
        match &self.state {
            State::Stopped | State::Refused(_) => None,
            State::Dialling { until } | State::Greeting { until } | State::Waiting { until, .. } => Some(*until),
            State::Held(held) => Some(held.next_beat.min(held.expires)),
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Whether the lease is held at `now`.
    #[must_use]
    pub fn holds(&self, now: Time) -> bool {
        matches!(&self.state, State::Held(held) if now < held.expires)
    }

    fn is_idle(&self) -> bool {
        matches!(self.state, State::Waiting { .. } | State::Refused(_))
    }

    fn dial(&mut self, now: Time, out: &mut Vec<Action>) {
        self.conn += 1;
        self.state = State::Dialling { until: now + DIAL_TIMEOUT };
        out.push(Action::Dial { conn: self.conn });
    }

    fn connected(&mut self, now: Time, out: &mut Vec<Action>) {
        if matches!(self.state, State::Dialling { .. }) {
            self.state = State::Greeting { until: now + HELLO_TIMEOUT };
            out.push(Action::SayHello { conn: self.conn });
        }
    }

    fn greeted(&mut self, now: Time, rng: &mut Rng, result: Result<Granted, Failure>, out: &mut Vec<Action>) {
        let State::Greeting { until } = self.state else { return };
        match result {
            Err(failure) if is_final(failure.code()) => self.refuse(failure, out),
            Err(failure) => self.lose(now, rng, failure, Duration::ZERO, out),
            Ok(mut granted) => {
                granted.lease = granted_or(granted.lease, LEASE).clamp(LEASE_RANGE[0], LEASE_RANGE[1]);
                granted.heartbeat = granted_or(granted.heartbeat, HEARTBEAT).clamp(HEARTBEAT_MIN, granted.lease / 3);
                // The parent's lease began when it answered; ours counts from
                // when the question was sent, which is earlier.
                let asked = until - HELLO_TIMEOUT;
                let (expires, session) = (asked + granted.lease, granted.session);
                if expires <= now {
                    let text = format!("the hello took longer than the lease of {:?} it gave", granted.lease);
                    return self.lose(now, rng, Failure::new(Code::Unreachable, text), Duration::ZERO, out);
                }
                out.push(Action::Up { conn: self.conn, granted: granted.clone() });
                out.push(Action::Heartbeat { conn: self.conn, session, sequence: 0 });
                let next_beat = now + granted.heartbeat;
                let sent = vec![(0, now)];
                self.state = State::Held(Held { granted, since: now, expires, next_beat, sequence: 1, sent });
            }
        }
    }

    fn acknowledged(&mut self, now: Time, sequence: u64, held_up: Duration, out: &mut Vec<Action>) {
        let State::Held(held) = &mut self.state else { return };
        let Some(at) = held.sent.iter().position(|(number, _)| *number == sequence) else { return };
        let sent = held.sent[at].1;
        held.sent.drain(..=at);
        held.expires = held.expires.max(sent + held.granted.lease);
        if now.since(held.since) >= held.granted.lease {
            // It lasted: the next loss is a new story.
            self.failures = 0;
        }
        out.push(Action::Rtt(now.since(sent).saturating_sub(held_up)));
    }

    fn wake_up(&mut self, now: Time, rng: &mut Rng, out: &mut Vec<Action>) {
        match &mut self.state {
            State::Stopped | State::Refused(_) => {}
            State::Waiting { until, .. } if now >= *until => self.dial(now, out),
            State::Dialling { until } if now >= *until => {
                let failure = Failure::new(Code::Unreachable, format!("no connection within {DIAL_TIMEOUT:?}"));
                self.lose(now, rng, failure, Duration::ZERO, out);
            }
            State::Greeting { until } if now >= *until => {
                let failure = Failure::new(Code::Unreachable, format!("no answer to hello within {HELLO_TIMEOUT:?}"));
                self.lose(now, rng, failure, Duration::ZERO, out);
            }
            State::Held(held) if now >= held.expires => {
                let text = format!("no heartbeat was acknowledged within the lease of {:?}", held.granted.lease);
                self.lose(now, rng, Failure::new(Code::Unreachable, text), Duration::ZERO, out);
            }
            State::Held(held) if now >= held.next_beat => {
                let (session, sequence) = (held.granted.session, held.sequence);
                held.sent.push((sequence, now));
                held.sequence += 1;
                held.next_beat = now + held.granted.heartbeat;
                out.push(Action::Heartbeat { conn: self.conn, session, sequence });
            }
            State::Waiting { .. } | State::Dialling { .. } | State::Greeting { .. } | State::Held(_) => {}
        }
    }

    /// Lets go of the attempt and pauses before the next.
    ///
    /// Exponential backoff with full jitter (Brooker, 2015): uniform between
    /// zero and a bound that doubles, so that children of a parent that came
    /// back do not all dial at once.
    fn lose(&mut self, now: Time, rng: &mut Rng, failure: Failure, at_least: Duration, out: &mut Vec<Action>) {
        match self.state {
            State::Stopped | State::Refused(_) | State::Waiting { .. } => return,
            State::Held(_) => out.push(Action::Down { failure: failure.clone() }),
            State::Dialling { .. } | State::Greeting { .. } => {}
        }
        out.push(Action::Close { conn: self.conn });
        let bound = ns(BACKOFF_MAX).min(ns(BACKOFF_BASE) << self.failures.min(16));
        let pause = at_least.min(LEASE_RANGE[1]) + Duration::from_nanos(rng.u64(0..=bound));
        self.failures = self.failures.saturating_add(1);
        self.state = State::Waiting { until: now + pause, failure };
    }

    fn refuse(&mut self, failure: Failure, out: &mut Vec<Action>) {
        match self.state {
            State::Held(_) => out.push(Action::Down { failure: failure.clone() }),
            State::Dialling { .. } | State::Greeting { .. } => {}
            State::Stopped | State::Waiting { .. } | State::Refused(_) => return,
        }
        out.push(Action::Close { conn: self.conn });
        out.push(Action::Refused(failure.clone()));
        self.state = State::Refused(failure);
    }

    fn stop(&mut self, out: &mut Vec<Action>) {
        match self.state {
            State::Held(_) => {
                let failure = Failure::new(Code::Draining, "this node lets go of its parent");
                out.push(Action::Down { failure });
                out.push(Action::Close { conn: self.conn });
            }
            State::Dialling { .. } | State::Greeting { .. } => out.push(Action::Close { conn: self.conn }),
            State::Stopped | State::Waiting { .. } | State::Refused(_) => {}
        }
        self.state = State::Stopped;
    }
}

/// Zero on the wire means that the parent leaves it as it is.
fn granted_or(granted: Duration, default: Duration) -> Duration {
    if granted.is_zero() { default } else { granted }
}

/// Refusals that trying again cannot mend.
fn is_final(code: Code) -> bool {
    matches!(code, Code::VersionMismatch | Code::Unauthenticated | Code::Forbidden)
}
