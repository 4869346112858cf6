//! How fast is the link, and has it changed? From transfers that happen
//! anyway, and a few small probes when there are none.
//!
//! **Bandwidth**, per direction, from samples `x = ln(bytes / seconds)`.
//! Links differ by decades and noise is a factor, so all is done on
//! logarithms. The estimate is an exponentially weighted mean of `x`
//! (weight 1/4, more for the first samples: the plain mean).
//!
//! **Change**: two-sided CUSUM (Page, 1954) on the residual `r = x - base`
//! from a slower mean (weight 1/16), clipped to +-[`CLIP`] as Huber (1964)
//! does, so that one outlier alone never raises the alarm:
//!
//! ```text
//! up   = max(0, up   + clip(r) - DRIFT)      alarm when up   > ALARM
//! down = max(0, down - clip(r) - DRIFT)      alarm when down > ALARM
//! ```
//!
//! After an alarm both means restart from the median of the last three samples
//! since the sum left zero: those are after the change.
//!
//! **RTT**: the smallest of the last [`RTT_WINDOW`] round trips, since
//! waiting behind one's own tensors only adds to them.
//!
//! **Time on the wire** of a call or a probe is its whole time, less the RTT
//! and less what the other side says it spent. The time between the first and
//! the last chunk at the receiver is closer to the truth when it is there, but
//! small transfers arrive in one piece (one TLS record, one buffer of a
//! proxy): it is believed where it makes up at least half of the former.
//!
//! **Probes** go one way at a time, so that their time has one cause. They
//! are asked for when a direction has had no sample for a while, when a
//! sample looks like a change (to confirm it at once), and after a link came
//! up. They spend from a bucket of bytes that fills at [`PROBE_SHARE`] of the
//! estimated bandwidth within [`PROBE_BYTES_PER_MINUTE`], and grow while they
//! are too short to time.
//!
//! Start at [`Estimator`].

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::{Time, seconds};

/// Shift per sample, in logarithm, that is still noise: a factor of 1.42.
pub const DRIFT: f64 = 0.35;

/// Sum of residuals beyond the drift that means change.
pub const ALARM: f64 = 1.2;

/// Largest residual counted: below `ALARM + DRIFT`, so an alarm needs two.
pub const CLIP: f64 = 1.0;

/// Weight of a new sample in the estimate, once there are several.
const WEIGHT: f64 = 0.25;

/// Weight of a new sample in what changes are measured against: slow, so that
/// a change does not hide by being followed.
const BASE_WEIGHT: f64 = 1.0 / 16.0;

/// Round trips over which the smallest is taken.
pub const RTT_WINDOW: usize = 16;

/// Transfers with fewer bytes say more about delay than about bandwidth.
pub const PASSIVE_BYTES_MIN: u64 = 4 << 10;

/// Bytes between the first and the last chunk from which their time means
/// anything: four TLS records.
pub const FLOW_BYTES_MIN: u64 = 64 << 10;

/// A transfer shorter than this cannot be timed through schedulers and
/// buffers; it only shows that the link is at least that fast.
pub const TIMED_MIN: Duration = Duration::from_millis(1);

/// Smallest and largest probe.
pub const PROBE_BYTES: [u64; 2] = [1 << 10, 256 << 10];

/// Bytes beside those of a probe: frames of HTTP/2 and gRPC, a TLS record.
const PROBE_FRAMES: u64 = 64;

/// Time a probe should take on the link, so that it can be timed.
pub const PROBE_TARGET: Duration = Duration::from_millis(10);

/// Share of the estimated bandwidth that probes may use.
pub const PROBE_SHARE: f64 = 0.01;

/// Bytes that probes may cost in a minute, whatever the bandwidth: from 32
/// KiB (4% of a link of 0.1 Mbit/s) to 4 MiB (1% of 5 Mbit/s).
pub const PROBE_BYTES_PER_MINUTE: [u64; 2] = [32 << 10, 4 << 20];

/// Bytes in the bucket when a link comes up; once its bandwidth is known, the
/// bucket holds what a minute brings.
pub const PROBE_BURST: u64 = 1 << 20;

/// What a link that became faster carries in this time may go into probes at
/// once.
const RISE_TIME: Duration = Duration::from_millis(500);

/// A direction without a sample for so long is probed, while somebody plans
/// with the link ...
pub const PROBE_IDLE: Duration = Duration::from_secs(5);

/// ... and when nobody does, by the smallest probe: it finds a link that fell
/// to a crawl or came back from one, and ten thousand of them cost their parent
/// less than a megabyte per second.
pub const PROBE_UNWANTED: Duration = Duration::from_secs(30);

/// What is open about a link that nobody plans with, is settled by probes so far
/// apart ...
pub const PROBE_UNWANTED_OPEN: Duration = Duration::from_secs(10);

/// ... and of at most so many bytes: on a busy machine every probe raises another
/// question.
pub const PROBE_UNWANTED_BYTES: u64 = 8 << 10;

/// A link that came up is learned as if somebody planned with it.
pub const LEARNED_FOR: Duration = Duration::from_secs(5);

/// Somebody plans with a link for so long after the last sign of it.
pub const WANTED_FOR: Duration = Duration::from_secs(60);

/// Between probes, at least.
pub const PROBE_GAP: Duration = Duration::from_millis(250);

/// A probe without an answer for so long is given up (and says that the link
/// is slow).
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// Age at which an estimate is worth half as much.
const HALF_LIFE: Duration = Duration::from_secs(60);

/// Towards the parent, or from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Towards the parent.
    Up,
    /// From the parent.
    Down,
}

/// What was seen of a link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    /// `bytes` arrived within `elapsed`, first to last (a receiver's view;
    /// without the bytes of the first chunk).
    Flow {
        /// Which way.
        direction: Direction,
        /// Bytes after the first chunk.
        bytes: u64,
        /// From the first chunk to the last.
        elapsed: Duration,
    },
    /// A call sent `up` bytes and brought `down` back; `network` is its time
    /// less what the parent spent on it (the caller's view).
    Exchange {
        /// Bytes sent.
        up: u64,
        /// Bytes received.
        down: u64,
        /// Time on the wire, round trip included.
        network: Duration,
    },
    /// `bytes` have been under way for `elapsed` and are not through: the
    /// link is at most that fast.
    Pending {
        /// Which way.
        direction: Direction,
        /// Bytes handed to the link.
        bytes: u64,
        /// Since the first.
        elapsed: Duration,
    },
    /// A heartbeat's round trip.
    Rtt(Duration),
    /// Somebody plans with the link.
    Wanted,
    /// A probe was answered, just now.
    Probed {
        /// Its number.
        probe: u64,
        /// Padding that the parent received after the first chunk, and the
        /// time from the first chunk to the last; zeros where unknown.
        up: (u64, Duration),
        /// The same of padding received here.
        down: (u64, Duration),
    },
    /// A probe failed.
    ProbeFailed {
        /// Its number.
        probe: u64,
    },
    /// A probe was not sent: it would have shared the link with a transfer of
    /// our own, and would have measured that.
    ProbeSkipped {
        /// Its number.
        probe: u64,
    },
    /// The lease is held.
    LinkUp,
    /// The lease is lost.
    LinkDown,
    /// The time [`Estimator::wake`] named.
    Wake,
}

/// What the shell shall do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Action {
    /// Send padding, or ask for some; report `Probed`, `ProbeFailed` or
    /// `ProbeSkipped`.
    Probe {
        /// Its number.
        probe: u64,
        /// Padding to send.
        up_bytes: u64,
        /// Padding to ask for.
        down_bytes: u64,
    },
    /// The estimate is new or has moved. `changed`: by more than noise.
    Estimate(Estimate),
}

/// What is believed about a link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Bytes per second towards the parent, when known.
    pub up: Option<f64>,
    /// Bytes per second from the parent, when known.
    pub down: Option<f64>,
    /// Round trip without load, when known.
    pub rtt: Option<Duration>,
    /// 0 (a guess) to 1 (several fresh samples that agree), of the worse
    /// direction.
    pub confidence: f64,
    /// Whether a change was detected at this step.
    pub changed: bool,
}

/// One direction.
#[derive(Debug, Clone, Default)]
struct Track {
    mean: f64,
    base: f64,
    /// Mean of squared residuals.
    variance: f64,
    samples: u32,
    high: f64,
    low: f64,
    /// Samples since `high` or `low` left zero.
    since_high: Vec<f64>,
    since_low: Vec<f64>,
    last: Option<Time>,
    /// Nothing is known but that it is at least that fast.
    only_bound: bool,
    /// Bytes of the next probe, when the last was too short to time.
    probe_bytes: u64,
}

/// Most samples kept between the first hint of a change and the alarm.
const SUSPECTS_MAX: usize = 16;

impl Track {
    /// Takes a sample in bytes per second; true when it raised the alarm.
    fn sample(&mut self, now: Time, bytes_per_s: f64) -> bool {
        let x = bytes_per_s.max(1.0).ln();
        self.last = Some(now);
        if self.samples == 0 || self.only_bound {
            self.restart(&[x]);
            // The first knowledge of a link is news as well.
            return true;
        }
        let clipped = (x - self.base).clamp(-CLIP, CLIP);
        let grow = |sum: &mut f64, suspects: &mut Vec<f64>, step: f64| {
            *sum = (*sum + step - DRIFT).max(0.0);
            if *sum == 0.0 {
                suspects.clear();
            } else if suspects.len() < SUSPECTS_MAX {
                suspects.push(x);
            }
            *sum > ALARM
        };
        let rose = grow(&mut self.high, &mut self.since_high, clipped);
        let fell = grow(&mut self.low, &mut self.since_low, -clipped);
        if rose || fell {
            let suspects = std::mem::take(if rose { &mut self.since_high } else { &mut self.since_low });
            self.restart(&suspects);
            return true;
        }
        self.samples = self.samples.saturating_add(1);
        let count = 1.0 / f64::from(self.samples);
        // Clipped: an outlier moves the means no more than it moves the sum.
        let residual = (x - self.mean).clamp(-CLIP, CLIP);
        self.mean += WEIGHT.max(count) * residual;
        self.variance += WEIGHT.max(count) * (residual * residual - self.variance);
        self.base += BASE_WEIGHT.max(count) * clipped;
        false
    }

    /// At most `bytes_per_s`: a sample only where it contradicts the estimate.
    fn at_most(&mut self, now: Time, bytes_per_s: f64) -> bool {
        let contradicts = self.samples > 0 && bytes_per_s.max(1.0).ln() < self.mean - DRIFT;
        contradicts && self.sample(now, bytes_per_s)
    }

    /// At least `bytes_per_s`: a sample only where it contradicts.
    fn at_least(&mut self, now: Time, bytes_per_s: f64) -> bool {
        let contradicts = self.samples == 0 || bytes_per_s.max(1.0).ln() > self.mean + DRIFT;
        if !contradicts {
            self.last = Some(now);
            return false;
        }
        let bound = self.samples == 0 || self.only_bound;
        let changed = self.sample(now, bytes_per_s);
        self.only_bound = bound;
        changed
    }

    fn restart(&mut self, samples: &[f64]) {
        // The first of many may be noise from before the change.
        let mut sorted = samples[samples.len().saturating_sub(3)..].to_vec();
        sorted.sort_by(f64::total_cmp);
        let mean = match sorted[..] {
            [] => self.mean,
            [one] => one,
            [one, two] => f64::midpoint(one, two),
            [_, middle, ..] => middle,
        };
        let (last, samples) = (self.last, sorted.len() as u32);
        *self = Self { mean, base: mean, variance: DRIFT * DRIFT, samples, last, ..Self::default() };
    }

    /// The estimate, or less where the last sample says so.
    fn cautious(&self) -> Option<f64> {
        let suspect = self.since_low.last().map_or(self.mean, |x| x.min(self.mean));
        (self.samples > 0).then(|| suspect.exp())
    }

    /// The estimate, or more where the last sample says so; 0 when unknown.
    fn hopeful(&self) -> f64 {
        let suspect = self.since_high.last().map_or(self.mean, |x| x.max(self.mean));
        if self.samples > 0 { suspect.exp() } else { 0.0 }
    }

    fn is_suspicious(&self) -> bool {
        self.high > 0.0 || self.low > 0.0
    }

    fn bytes_per_s(&self) -> Option<f64> {
        (self.samples > 0).then(|| self.mean.exp())
    }

    /// More samples, fresher, closer together: surer.
    fn confidence(&self, now: Time) -> f64 {
        let Some(last) = self.last.filter(|_| self.samples > 0) else { return 0.0 };
        let count = f64::from(self.samples) / (f64::from(self.samples) + 1.0);
        let age = 0.5f64.powf(now.since(last).as_secs_f64() / HALF_LIFE.as_secs_f64());
        count * age / (1.0 + self.variance)
    }
}

/// A probe that could be sent.
struct Due {
    direction: Direction,
    at: Time,
    bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Probe {
    number: u64,
    sent: Time,
    direction: Direction,
    bytes: u64,
}

/// One link to a parent.
#[derive(Debug, Default)]
pub struct Estimator {
    up: Track,
    down: Track,
    rtts: VecDeque<Duration>,
    is_up: bool,
    bucket: f64,
    filled: Time,
    probe: Option<Probe>,
    next_probe: Time,
    wanted_until: Time,
    probes: u64,
    /// Bytes of all probes so far, both ways.
    probed_bytes: u64,
}

impl Estimator {
    /// An estimator that starts from what an earlier run of the node stored;
    /// zero confidence until confirmed.
    #[must_use]
    pub fn with_prior(up: Option<f64>, down: Option<f64>, rtt: Option<Duration>) -> Self {
        let track = |prior: Option<f64>| {
            let mut track = Track::default();
            if let Some(prior) = prior {
                track.restart(&[prior.max(1.0).ln()]);
            }
            track
        };
        Self { up: track(up), down: track(down), rtts: rtt.into_iter().collect(), ..Self::default() }
    }

    /// One step.
    pub fn step(&mut self, now: Time, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        let changed = match event {
            Event::Flow { direction, bytes, elapsed } => self.flow(now, direction, bytes, elapsed),
            Event::Exchange { up, down, network } => self.exchange(now, up, down, network),
            Event::Pending { direction, bytes, elapsed } => Some(self.pending(now, direction, bytes, elapsed)),
            Event::Rtt(rtt) => self.rtt_seen(rtt),
            Event::Probed { probe, up, down } => self.probed(now, probe, up, down),
            Event::ProbeFailed { probe } => {
                self.probe = self.probe.filter(|out| out.number != probe);
                None
            }
            Event::ProbeSkipped { probe } => {
                if let Some(skipped) = self.probe.take_if(|out| out.number == probe) {
                    self.bucket += skipped.bytes as f64;
                    self.probed_bytes -= skipped.bytes;
                }
                None
            }
            Event::Wanted => {
                self.wanted_until = now + WANTED_FOR;
                None
            }
            Event::LinkUp => {
                self.link_up(now);
                None
            }
            Event::LinkDown => {
                self.is_up = false;
                self.probe = None;
                None
            }
            Event::Wake => self.probe_timeout(now),
        };
        if let Some(changed) = changed {
            actions.push(Action::Estimate(Estimate { changed, ..self.estimate(now) }));
        }
        actions.extend(self.maybe_probe(now));
        actions
    }

    /// When the machine wants `Wake`.
    #[must_use]
    pub fn wake(&self) -> Option<Time> {
        if !self.is_up {
            return None;
        }
        match self.probe {
            Some(probe) => Some(probe.sent + PROBE_TIMEOUT),
            None if self.rtts.is_empty() => None,
            None => Some(self.due().at.max(self.affordable())),
        }
    }

    /// What is believed now.
    #[must_use]
    pub fn estimate(&self, now: Time) -> Estimate {
        Estimate {
            up: self.up.bytes_per_s(),
            down: self.down.bytes_per_s(),
            rtt: self.rtt(),
            confidence: self.up.confidence(now).min(self.down.confidence(now)),
            changed: false,
        }
    }

    /// Bytes that probes have cost so far, both ways.
    #[must_use]
    pub fn probed_bytes(&self) -> u64 {
        self.probed_bytes
    }

    fn rtt(&self) -> Option<Duration> {
        self.rtts.iter().min().copied()
    }

    fn rtt_seen(&mut self, rtt: Duration) -> Option<bool> {
        let before = self.rtt();
        self.rtts.push_back(rtt);
        if self.rtts.len() > RTT_WINDOW {
            self.rtts.pop_front();
        }
        // News when the smallest moves by a quarter and a millisecond.
        let (after, before) = (self.rtt()?, before.unwrap_or_default());
        let moved = after.abs_diff(before);
        (moved > Duration::from_millis(1) && moved * 4 > before).then_some(false)
    }

    fn track(&mut self, direction: Direction) -> &mut Track {
        match direction {
            Direction::Up => &mut self.up,
            Direction::Down => &mut self.down,
        }
    }

    fn flow(&mut self, now: Time, direction: Direction, bytes: u64, elapsed: Duration) -> Option<bool> {
        // Less arrives in one piece, whatever the link.
        (bytes >= FLOW_BYTES_MIN).then(|| self.timed(now, direction, bytes, elapsed, TIMED_MIN))
    }

    /// `bytes` took `wire`; below `shortest` that only says "at least".
    fn timed(&mut self, now: Time, direction: Direction, bytes: u64, wire: Duration, shortest: Duration) -> bool {
        let rate = |time: Duration| bytes as f64 / time.as_secs_f64();
        let track = self.track(direction);
        let before = track.bytes_per_s().unwrap_or_default();
        let changed = if wire < shortest { track.at_least(now, rate(shortest)) } else { track.sample(now, rate(wire)) };
        let after = track.bytes_per_s().unwrap_or_default();
        if changed && after > before {
            // How much faster it is, mustn't be found out at the old rate's expense.
            self.bucket = (self.bucket + after * RISE_TIME.as_secs_f64()).min(PROBE_BURST as f64);
        }
        self.doubt_other(direction, changed)
    }

    /// A link that changed one way has probably changed the other way too:
    /// that is looked into at once.
    fn doubt_other(&mut self, direction: Direction, changed: bool) -> bool {
        if changed {
            let other = if direction == Direction::Up { Direction::Down } else { Direction::Up };
            self.track(other).last = None;
        }
        changed
    }

    /// What a whole round trip cannot tell from the delay: its variation is
    /// taken for a quarter of it.
    fn shortest(&self) -> Duration {
        TIMED_MIN.max(self.rtt().unwrap_or_default() / 4)
    }

    /// Solves `network = rtt + up/bandwidth_up + down/bandwidth_down` for the
    /// direction that took most of it; the other's share comes from its
    /// estimate, or where that is too slow to be true, from both estimates.
    fn exchange(&mut self, now: Time, up: u64, down: u64, network: Duration) -> Option<bool> {
        let wire = network.saturating_sub(self.rtt()?).as_secs_f64();
        let share = |track: &Track, bytes: u64| track.bytes_per_s().map_or(0.0, |rate| bytes as f64 / rate);
        let (up_s, down_s) = (share(&self.up, up), share(&self.down, down));
        let up_leads = match (self.up.samples, self.down.samples) {
            (0, _) | (_, 0) => up >= down,
            _ => up_s >= down_s,
        };
        let (direction, bytes, own_s, other_s) =
            if up_leads { (Direction::Up, up, up_s, down_s) } else { (Direction::Down, down, down_s, up_s) };
        if bytes < PASSIVE_BYTES_MIN {
            return None;
        }
        // The other way can't have taken most of it: it is faster than thought as well.
        let rest = if other_s * 2.0 > wire { wire * own_s / (own_s + other_s) } else { wire - other_s };
        let rest = seconds(rest);
        Some(self.timed(now, direction, bytes, rest, self.shortest()))
    }

    fn pending(&mut self, now: Time, direction: Direction, bytes: u64, elapsed: Duration) -> bool {
        let seconds = elapsed.saturating_sub(self.rtt().unwrap_or_default()).as_secs_f64();
        let changed = seconds > 0.0 && self.track(direction).at_most(now, bytes as f64 / seconds);
        self.doubt_other(direction, changed)
    }

    fn probed(&mut self, now: Time, number: u64, up: (u64, Duration), down: (u64, Duration)) -> Option<bool> {
        let probe = self.probe.take_if(|probe| probe.number == number)?;
        let (direction, bytes) = (probe.direction, probe.bytes);
        let (flowed, between) = if direction == Direction::Up { up } else { down };
        let wire = now.since(probe.sent).saturating_sub(self.rtt().unwrap_or_default());
        // The receiver's time, stretched to the bytes of the first chunk.
        let share = flowed as f64 / bytes.max(1) as f64;
        let arrived = if share > 0.25 { between.div_f64(share.min(1.0)) } else { Duration::ZERO };
        let shortest = self.shortest();
        let (time, shortest) =
            if arrived * 2 >= wire && arrived > TIMED_MIN { (arrived, TIMED_MIN) } else { (wire, shortest) };
        let changed = self.timed(now, direction, bytes + PROBE_FRAMES, time, shortest);
        let wanted = now <= self.wanted_until;
        let track = self.track(direction);
        let is_open = wanted || changed || track.is_suspicious() || track.samples < 3 || track.only_bound;
        // Too short to time: the next one is eight times as long.
        let longer = if time < shortest && is_open { bytes.saturating_mul(8).min(PROBE_BYTES[1]) } else { 0 };
        // At its longest it has said what it can.
        track.probe_bytes = if longer == bytes { 0 } else { longer };
        Some(changed)
    }

    fn probe_timeout(&mut self, now: Time) -> Option<bool> {
        let probe = self.probe.take_if(|probe| now >= probe.sent + PROBE_TIMEOUT)?;
        Some(self.pending(now, probe.direction, probe.bytes, PROBE_TIMEOUT))
    }

    fn link_up(&mut self, now: Time) {
        self.is_up = true;
        self.probe = None;
        self.wanted_until = self.wanted_until.max(now + LEARNED_FOR);
        // Another network, perhaps: what was known is a hint only.
        self.rtts.clear();
        self.bucket = PROBE_BURST as f64;
        self.filled = now;
        self.next_probe = now;
        for track in [&mut self.up, &mut self.down] {
            track.last = None;
            track.probe_bytes = 0;
        }
    }

    /// The next probe, whatever it costs.
    fn due(&self) -> Due {
        let is_open = |track: &Track| track.is_suspicious() || track.probe_bytes > 0;
        let of = |track: &Track| match track.last {
            None => Time::ZERO,
            // An open question, or a probe that was too short, is settled at once.
            Some(last) if is_open(track) && last <= self.wanted_until => Time::ZERO,
            Some(last) if is_open(track) => last + PROBE_UNWANTED_OPEN,
            // The first samples come quickly, then the link is left alone.
            Some(last) if track.samples < 3 => last + PROBE_GAP,
            Some(last) if last + PROBE_IDLE <= self.wanted_until => last + PROBE_IDLE,
            Some(last) => last + PROBE_UNWANTED,
        };
        let (up, down) = (of(&self.up), of(&self.down));
        // With nothing between them, the one not heard of for longer.
        let direction = if (up, self.up.last) <= (down, self.down.last) { Direction::Up } else { Direction::Down };
        let (track, at) = (self.known(direction), up.min(down).max(self.next_probe));
        let wanted = track.samples < 3 || track.last.is_none() || at <= self.wanted_until;
        let target = track.cautious().map_or(0.0, |rate| rate * PROBE_TARGET.as_secs_f64()) as u64;
        let most = match (wanted, is_open(track)) {
            (true, _) => PROBE_BYTES[1],
            (false, true) => PROBE_UNWANTED_BYTES,
            (false, false) => PROBE_BYTES[0],
        };
        Due { direction, at, bytes: target.max(track.probe_bytes).clamp(PROBE_BYTES[0], most) }
    }

    /// When the bucket will hold the next probe.
    fn affordable(&self) -> Time {
        let missing = (self.due().bytes as f64 - self.bucket).max(0.0);
        self.filled + seconds(missing / self.refill())
    }

    /// Bytes per second at which the bucket fills: a share of what the way of
    /// the next probe seems able to carry.
    fn refill(&self) -> f64 {
        let seems = self.known(self.due().direction).hopeful();
        let [least, most] = PROBE_BYTES_PER_MINUTE.map(|bytes| bytes as f64 / 60.0);
        (seems * PROBE_SHARE).clamp(least, most)
    }

    fn known(&self, direction: Direction) -> &Track {
        match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        }
    }

    fn maybe_probe(&mut self, now: Time) -> Option<Action> {
        let gained = now.since(self.filled).as_secs_f64() * self.refill();
        self.filled = now;
        let Due { direction, at: due, bytes } = self.due();
        let known = self.up.samples > 1 && self.down.samples > 1;
        let most = if known { (self.refill() * 60.0).max(bytes as f64) } else { f64::MAX };
        self.bucket = (self.bucket + gained).min(most).min(PROBE_BURST as f64);
        // A hair's breadth of rounding must not cost another wake.
        let broke = self.bucket + 1.0 < bytes as f64;
        // Without a round trip to take off, its time would say too little.
        let ready = self.is_up && self.probe.is_none() && !self.rtts.is_empty();
        if !ready || now < due || broke {
            return None;
        }
        self.bucket = (self.bucket - bytes as f64).max(0.0);
        self.probes += 1;
        self.probed_bytes += bytes;
        self.next_probe = now + PROBE_GAP;
        self.probe = Some(Probe { number: self.probes, sent: now, direction, bytes });
        let (up_bytes, down_bytes) = match direction {
            Direction::Up => (bytes, 0),
            // One byte carries the question.
            Direction::Down => (1, bytes),
        };
        Some(Action::Probe { probe: self.probes, up_bytes, down_bytes })
    }
}
