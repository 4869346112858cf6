//! The estimator on synthetic links: changes are noticed within a few
//! samples, noise raises no alarm, probes stay within their budget.

use std::time::Duration;

use tierline_node::estimate::{Action, Direction, Estimate, Estimator, Event, PROBE_BURST, PROBE_BYTES_PER_MINUTE};
use tierline_node::{Rng, Time};

use crate::harness::{ms, seeds};

/// Bytes per second of a link of `mbit` Mbit/s.
fn mbit(mbit: f64) -> f64 {
    mbit * 125_000.0
}

fn normal(rng: &mut Rng) -> f64 {
    (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (std::f64::consts::TAU * rng.f64()).cos()
}

/// A transfer of `bytes` at about `rate`.
fn flow(bytes: u64, rate: f64) -> Event {
    let elapsed = Duration::from_secs_f64(bytes as f64 / rate);
    Event::Flow { direction: Direction::Up, bytes, elapsed }
}

fn estimate(actions: &[Action]) -> Option<Estimate> {
    actions.iter().find_map(|action| match action {
        Action::Estimate(estimate) => Some(*estimate),
        Action::Probe { .. } => None,
    })
}

/// Feeds `samples` of one link, one a second; where it raised the alarm.
fn alarms(estimator: &mut Estimator, from: &mut Time, samples: &[f64]) -> Vec<usize> {
    let mut alarms = Vec::new();
    for (at, rate) in samples.iter().enumerate() {
        *from = *from + ms(1_000);
        if estimate(&estimator.step(*from, flow(500_000, *rate))).is_some_and(|estimate| estimate.changed) {
            alarms.push(at);
        }
    }
    alarms
}

fn near(estimate: Option<f64>, rate: f64, factor: f64) -> bool {
    estimate.is_some_and(|estimate| (estimate / rate).ln().abs() <= f64::ln(factor))
}

#[test]
fn steps_of_a_decade_are_noticed_at_the_second_sample() {
    let worst = std::cell::Cell::new(0);
    seeds(1_000, |rng| {
        let mut noisy = |rate: f64| -> Vec<f64> { (0..20).map(|_| rate * (0.7 + 0.6 * rng.f64())).collect() };
        let mut estimator = Estimator::default();
        let mut now = Time::ZERO;
        for (step, rate) in [100.0, 10.0, 1.0, 0.1, 10.0, 100.0].map(mbit).into_iter().enumerate() {
            let alarms = alarms(&mut estimator, &mut now, &noisy(rate));
            let expected = usize::from(step > 0);
            worst.set(worst.get().max(alarms[0]));
            assert!(alarms[0] <= expected + 1, "step {step}: noticed at sample {}", alarms[0]);
            // Right at once, and to stay: no second alarm for the same step.
            assert_eq!(alarms.len(), 1, "step {step}: {alarms:?}");
            assert!(near(estimator.estimate(now).up, rate, 1.35), "{:?}", estimator.estimate(now).up);
        }
    });
    assert_eq!(worst.get(), 1, "at the second sample after the step, every time");
}

#[test]
fn steps_by_half_and_double_are_noticed_within_ten_samples() {
    let (mut noticed, mut delay) = (0, 0);
    let mut rng = Rng::with_seed(5);
    for _ in 0..1_000 {
        let mut estimator = Estimator::default();
        let mut now = Time::ZERO;
        let factor = if rng.bool() { 2.0 } else { 0.5 };
        let mut noisy = |rate: f64| -> Vec<f64> { (0..40).map(|_| rate * (0.7 + 0.6 * rng.f64())).collect() };
        let _ = alarms(&mut estimator, &mut now, &noisy(mbit(10.0)));
        let found = alarms(&mut estimator, &mut now, &noisy(mbit(10.0) * factor));
        // Unnoticed, the mean has followed: the estimate is right either way.
        assert!(near(estimator.estimate(now).up, mbit(10.0) * factor, 1.25));
        if let Some(at) = found.first() {
            noticed += 1;
            delay += at + 1;
        }
    }
    let mean = delay as f64 / f64::from(noticed);
    eprintln!("a factor of two: noticed {noticed} of 1000, after {mean:.1} samples");
    assert!(noticed >= 600 && mean < 10.0, "{noticed}, {mean}");
}

/// Alarms per 100,000 samples of a link that does not change.
fn false_alarms(mut noise: impl FnMut() -> f64) -> usize {
    let mut estimator = Estimator::default();
    let mut now = Time::ZERO;
    let samples: Vec<f64> = (0..100_000).map(|_| mbit(10.0) * noise()).collect();
    // The first sample is news.
    let alarms = alarms(&mut estimator, &mut now, &samples).len() - 1;
    assert!(near(estimator.estimate(now).up, mbit(10.0), 1.4));
    alarms
}

#[test]
fn noise_raises_no_alarm() {
    let mut rng = Rng::with_seed(3);
    let uniform = false_alarms(|| 0.7 + 0.6 * rng.f64());
    let mut rng = Rng::with_seed(4);
    let lognormal = false_alarms(|| (0.25 * normal(&mut rng)).exp());
    let mut rng = Rng::with_seed(6);
    // One transfer in a hundred stalls for ten times as long.
    let outliers = false_alarms(|| (0.7 + 0.6 * rng.f64()) * if rng.u8(..100) == 0 { 0.1 } else { 1.0 });
    eprintln!("false alarms in 100,000: +-30% {uniform}; log-normal 25% {lognormal}; with 1% outliers {outliers}");
    assert_eq!(uniform, 0);
    assert!(lognormal <= 10, "{lognormal}");
    assert!(outliers <= 40, "{outliers}");
}

/// A link that answers the estimator's probes and carries nothing else.
struct Path {
    estimator: Estimator,
    rate: f64,
    now: Time,
    bytes: u64,
    /// The probe's answer, on its way.
    answer: Option<(Time, Event)>,
    estimates: Vec<(Time, Estimate)>,
    /// Whether somebody plans with it.
    wanted: bool,
}

const RTT: Duration = ms(20);

impl Path {
    fn new(rate: f64, wanted: bool) -> Self {
        let (estimator, now) = (Estimator::default(), Time::ZERO);
        let mut path = Self { estimator, rate, now, bytes: 0, answer: None, estimates: vec![], wanted };
        path.event(Event::LinkUp);
        path.event(Event::Rtt(RTT));
        path
    }

    fn event(&mut self, event: Event) {
        for action in self.estimator.step(self.now, event) {
            match action {
                Action::Estimate(estimate) => self.estimates.push((self.now, estimate)),
                Action::Probe { probe, up_bytes, down_bytes } => {
                    assert!(up_bytes <= 1 || down_bytes == 0, "one way at a time");
                    self.bytes += up_bytes + down_bytes;
                    let time = |bytes: u64| Duration::from_secs_f64(bytes as f64 / self.rate);
                    let (up, down) = (time(up_bytes), time(down_bytes));
                    // Three of four chunks, and nothing to see of small ones.
                    let seen = |bytes: u64, time: Duration| {
                        if bytes < 16 << 10 { (bytes * 3 / 4, Duration::ZERO) } else { (bytes * 3 / 4, time * 3 / 4) }
                    };
                    let event = Event::Probed { probe, up: seen(up_bytes, up), down: seen(down_bytes, down) };
                    self.answer = Some((self.now + RTT + up + down, event));
                }
            }
        }
    }

    fn run_until(&mut self, end: Time) {
        while self.wanted && self.now + ms(1_000) < end {
            self.event(Event::Wanted);
            self.quiet_until(self.now + ms(1_000));
        }
        self.quiet_until(end);
    }

    fn quiet_until(&mut self, end: Time) {
        for _ in 0..100_000 {
            let wake = self.estimator.wake().unwrap();
            let answer = self.answer.map(|(at, _)| at);
            let next = answer.map_or(wake, |at| at.min(wake));
            if next > end {
                self.now = end;
                return;
            }
            self.now = self.now.max(next);
            let event = self.answer.take_if(|(at, _)| *at == next).map_or(Event::Wake, |(_, event)| event);
            self.event(event);
        }
        panic!("it never sleeps");
    }
}

#[test]
fn an_idle_link_is_known_by_probes_within_their_budget() {
    for (speed, wanted) in [0.1, 1.0, 10.0, 100.0, 1_000.0].map(|s| [(s, true), (s, false)]).as_flattened() {
        let (speed, wanted) = (*speed, *wanted);
        let mut path = Path::new(mbit(speed), wanted);
        path.run_until(Time::ZERO + ms(5_000));
        let early = path.estimator.estimate(path.now);
        assert!(near(early.up, path.rate, 1.3) && near(early.down, path.rate, 1.3), "{speed} Mbit/s: {early:?}");
        let before = path.bytes;
        path.run_until(Time::ZERO + ms(605_000));
        let per_minute = (path.bytes - before) as f64 / 10.0;
        let [least, most] = PROBE_BYTES_PER_MINUTE.map(|bytes| bytes as f64);
        let budget = (path.rate * 60.0 * 0.01).clamp(least, most);
        eprintln!(
            "{speed} Mbit/s, wanted {wanted}: {:.0} KiB at first, then {:.0} KiB a minute ({:.2}% of one direction)",
            before as f64 / 1024.0,
            per_minute / 1024.0,
            per_minute / (path.rate * 60.0) * 100.0
        );
        assert!(per_minute <= if wanted { budget * 1.15 } else { 4.5 * 1024.0 }, "{per_minute} of {budget}");
        assert!(before <= 2 * PROBE_BURST);
        assert!(path.estimator.estimate(path.now).confidence > 0.5);
    }
}

#[test]
fn an_idle_link_that_recovers_is_noticed() {
    for (wanted, limit) in [(true, ms(15_000)), (false, ms(62_000))] {
        for (from, to) in [(100.0, 1.0), (1.0, 100.0), (0.1, 100.0), (100.0, 0.1), (0.1, 10.0), (10.0, 100.0)] {
            let mut path = Path::new(mbit(from), wanted);
            let change = Time::ZERO + ms(121_500);
            path.run_until(change);
            path.rate = mbit(to);
            path.estimates.clear();
            path.run_until(change + ms(120_000));
            let noticed = path.estimates.iter().find(|(_, e)| e.changed && near(e.up, mbit(to), 10.0));
            let right = path.estimates.iter().find(|(_, e)| near(e.up, mbit(to), 1.3));
            let delay = |found: Option<&(Time, Estimate)>| found.map(|found| found.0.since(change));
            let (noticed, right) = (delay(noticed), delay(right));
            eprintln!("{from} -> {to} Mbit/s, wanted {wanted}: noticed after {noticed:?}, right after {right:?}");
            // The smallest probe takes no longer at 10 Mbit/s than at 100.
            let is_seen = wanted || from.min(to) < 10.0;
            assert!(!is_seen || noticed.is_some_and(|delay| delay < limit), "{noticed:?}");
        }
    }
}

#[test]
fn what_is_known_too_slow_of_one_way_hides_nothing_of_the_other() {
    let (mut estimator, rtt) = (Estimator::default(), ms(12));
    let mut now = Time::ZERO;
    let _ = estimator.step(now, Event::Rtt(rtt));
    let exchange = |estimator: &mut Estimator, now: &mut Time, up: u64, down: u64, rate: f64| {
        *now = *now + ms(300);
        let network = rtt + Duration::from_secs_f64((up + down) as f64 / rate);
        let _ = estimator.step(*now, Event::Exchange { up, down, network });
    };
    (0..8).for_each(|_| exchange(&mut estimator, &mut now, 1_000, 50_000, mbit(4.0)));
    (0..8).for_each(|_| exchange(&mut estimator, &mut now, 50_000, 4_000, mbit(10.0)));
    // From here on 8 ms at 4 Mbit/s for 4,000 bytes can't be true.
    (0..4).for_each(|_| exchange(&mut estimator, &mut now, 50_000, 4_000, mbit(100.0)));
    let up = estimator.estimate(now).up;
    assert!(near(up, mbit(100.0), 1.35), "{up:?}");
}

#[test]
fn a_transfer_that_hangs_is_evidence_before_it_ends() {
    let mut estimator = Estimator::default();
    let mut now = Time::ZERO;
    let _ = alarms(&mut estimator, &mut now, &[mbit(100.0); 10]);
    let _ = estimator.step(now, Event::Rtt(ms(20)));
    // 1 MB, expected in 80 ms, is still out after 200, 400, 800 ms...
    let mut changed = None;
    for elapsed in [100, 200, 400, 800, 1_600] {
        let event = Event::Pending { direction: Direction::Up, bytes: 1_000_000, elapsed: ms(elapsed) };
        if estimate(&estimator.step(now + ms(elapsed), event)).is_some_and(|e| e.changed) {
            changed = Some(elapsed);
            break;
        }
    }
    assert!(changed.is_some_and(|elapsed| elapsed <= 800), "{changed:?}");
    // One that is in time says nothing.
    let mut fresh = Estimator::default();
    let mut now = Time::ZERO;
    let _ = alarms(&mut fresh, &mut now, &[mbit(100.0); 10]);
    let before = fresh.estimate(now);
    let _ = fresh.step(now, Event::Pending { direction: Direction::Up, bytes: 1_000_000, elapsed: ms(50) });
    assert_eq!(fresh.estimate(now), before);
}

#[test]
fn exchanges_tell_both_directions_apart() {
    let mut rng = Rng::with_seed(9);
    let mut estimator = Estimator::default();
    let mut now = Time::ZERO;
    let (up_rate, down_rate, rtt) = (mbit(8.0), mbit(40.0), ms(30));
    let _ = estimator.step(now, Event::Rtt(rtt));
    for round in 0..60 {
        now = now + ms(200);
        let (up, down) = if round % 2 == 0 { (200_000, 4_000) } else { (2_000, 800_000) };
        let wire = up as f64 / up_rate + down as f64 / down_rate;
        let network = rtt + Duration::from_secs_f64(wire * (0.9 + 0.2 * rng.f64()));
        let _ = estimator.step(now, Event::Exchange { up, down, network });
    }
    let estimate = estimator.estimate(now);
    assert!(near(estimate.up, up_rate, 1.15) && near(estimate.down, down_rate, 1.15), "{estimate:?}");
    assert_eq!(estimate.rtt, Some(rtt));
}

#[test]
fn round_trips_behind_tensors_do_not_raise_the_estimate() {
    let mut estimator = Estimator::default();
    for round in 0..100u64 {
        let queued = if round % 4 == 0 { 0 } else { 400 };
        let _ = estimator.step(Time::from_ns(round), Event::Rtt(ms(20 + queued)));
    }
    assert_eq!(estimator.estimate(Time::from_ns(100)).rtt, Some(ms(20)));
}

#[test]
fn any_events_in_any_order_keep_it_finite() {
    seeds(500, |rng| {
        let mut estimator = Estimator::with_prior(Some(0.0), Some(f64::MAX), None);
        let mut now = Time::ZERO;
        for _ in 0..300 {
            now = now + ms(rng.u64(0..3_000));
            let (short, long) = (rng.u32(1..45), rng.u32(1..60));
            let duration = Duration::from_nanos(rng.u64(0..1 << short));
            let bytes = rng.u64(0..1 << long);
            let direction = if rng.bool() { Direction::Up } else { Direction::Down };
            let event = match rng.u8(..10) {
                0 => Event::Flow { direction, bytes, elapsed: duration },
                1 => Event::Exchange { up: bytes, down: bytes / 3, network: duration },
                2 => Event::Pending { direction, bytes, elapsed: duration },
                3 => Event::Rtt(duration),
                4 => Event::Probed { probe: rng.u64(0..20), up: (bytes, duration), down: (0, duration) },
                5 if rng.bool() => Event::ProbeFailed { probe: rng.u64(0..20) },
                5 => Event::ProbeSkipped { probe: rng.u64(0..20) },
                6 => Event::LinkUp,
                7 => Event::LinkDown,
                8 => Event::Wanted,
                _ => Event::Wake,
            };
            let _ = estimator.step(now, event);
            let estimate = estimator.estimate(now);
            assert!(estimate.up.is_some_and(f64::is_finite) && estimate.down.is_some_and(f64::is_finite));
            assert!((0.0..=1.0).contains(&estimate.confidence), "{estimate:?}");
        }
    });
}

#[test]
fn a_probe_that_is_skipped_costs_nothing_and_comes_later() {
    let mut estimator = Estimator::default();
    let _ = estimator.step(Time::ZERO, Event::LinkUp);
    let number = |actions: &[Action]| {
        actions.iter().find_map(|action| match action {
            Action::Probe { probe, .. } => Some(*probe),
            Action::Estimate(_) => None,
        })
    };
    let first = number(&estimator.step(Time::ZERO, Event::Rtt(ms(10)))).expect("a new link is probed");
    assert!(estimator.probed_bytes() > 0);
    assert_eq!(number(&estimator.step(Time::ZERO, Event::ProbeSkipped { probe: first })), None, "not at once again");
    assert_eq!(estimator.probed_bytes(), 0);
    let late = (Time::ZERO + ms(1), (1 << 10, ms(1)));
    let _ = estimator.step(late.0, Event::Probed { probe: first, up: late.1, down: late.1 });
    assert_eq!(estimator.estimate(late.0).up, None, "what was skipped says nothing");
    let again = estimator.wake().expect("it is still to be known");
    assert!(number(&estimator.step(again, Event::Wake)).is_some_and(|probe| probe > first));
}
