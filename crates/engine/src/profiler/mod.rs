//! Measures a model on this device: the time of every fused segment between
//! candidate cuts, of the whole, of loading; and what codecs make of the
//! tensors at the cuts.
//!
//! Sessions are timed in turns, round after round, so that a noisy moment
//! touches all of them alike; the lower quartile counts. A segment by
//! itself takes longer than inside a stage, so segment times are fitted to the
//! whole and to its halves at some cuts (`spread.rs`); the numbers that decided
//! it are in docs/design/profiling.md.

mod chain;
mod measure;
mod memory;
mod spread;

use std::time::{Duration, Instant};

use tierline_graph::profile::{CodecProfile, ModelProfile, SegmentProfile};
use tierline_graph::{Model, Tensor, Types, cost};

use self::chain::{Chain, pick};
use self::measure::{Rounds, Runner, Step, deviation, typical};
use self::spread::Anchor;
use crate::{Engine, EngineError, LoadOptions, Session};

/// How to measure.
#[derive(Debug, Clone)]
pub struct ProfileOptions {
    /// The prepared model's digest, noted in the profile.
    pub digest: String,
    /// Threads, providers and the like.
    pub load: LoadOptions,
    /// Rounds before the first that counts.
    pub warm_up: usize,
    /// Rounds that are measured in any case.
    pub rounds_min: usize,
    /// Rounds after which it is enough.
    pub rounds_max: usize,
    /// Time for measuring; the minimum of rounds may take longer.
    pub budget: Duration,
    /// Measuring ends early when every time is known this well: its standard
    /// error over itself.
    pub precision: f64,
    /// Cuts at which the two halves of the model are timed against the whole;
    /// fewer where the budget doesn't allow them. 0 leaves segment times as
    /// measured alone.
    pub anchors_max: usize,
}

impl Default for ProfileOptions {
    fn default() -> Self {
        Self {
            digest: String::new(),
            load: LoadOptions::default(),
            warm_up: 2,
            rounds_min: 7,
            rounds_max: 300,
            budget: Duration::from_secs(12),
            precision: 0.003,
            anchors_max: 4,
        }
    }
}

/// Anchors that even a slow model gets.
const ANCHORS_MIN: usize = 2;

/// The part of the budget that goes to segments; anchors take the rest.
const SEGMENTS_SHARE: f64 = 0.3;

/// Measures codecs on the tensors of a cut. The binary joins engine and codecs
/// here; neither knows the other.
pub trait CodecProbe {
    /// What each codec makes of `value`, the tensor `tensor` on the sample
    /// input. `run_suffix` gives the model's outputs when the rest of the model
    /// gets another value for this tensor.
    fn probe(
        &mut self,
        tensor: &str,
        value: &Tensor,
        run_suffix: &mut dyn FnMut(&Tensor) -> Result<Vec<Tensor>, EngineError>,
    ) -> Vec<CodecProfile>;
}

/// Measures no codecs.
pub struct NoCodecs;

impl CodecProbe for NoCodecs {
    fn probe(
        &mut self,
        _tensor: &str,
        _value: &Tensor,
        _run_suffix: &mut dyn FnMut(&Tensor) -> Result<Vec<Tensor>, EngineError>,
    ) -> Vec<CodecProfile> {
        Vec::new()
    }
}

/// Slices a model at frontiers: `n` cuts give `n + 1` models.
pub type Slicer<'a> = dyn Fn(&[Vec<String>]) -> Result<Vec<Model>, EngineError> + 'a;

/// What is profiled.
pub struct Subject<'a> {
    /// The prepared model.
    pub model: &'a Model,
    /// Types of its tensors at the sample's shapes.
    pub types: &'a Types,
    /// Candidate cuts in topological order: the frontier's tensors.
    pub cuts: &'a [Vec<String>],
    /// How it is sliced.
    pub slice: &'a Slicer<'a>,
    /// A sample input.
    pub inputs: &'a [(String, Tensor)],
}

/// [`profile`] with the caller's own way of slicing.
///
/// # Errors
/// As [`profile`].
pub fn profile_with(
    engine: &dyn Engine,
    subject: &Subject,
    options: &ProfileOptions,
    codecs: &mut dyn CodecProbe,
) -> Result<ModelProfile, EngineError> {
    let Subject { model, types, cuts, slice, inputs } = *subject;
    let segments = slice(cuts)?;
    let whole = load(engine, model, options);
    let mut chain = Chain::new(engine, types, &segments, cuts, inputs, options)?;
    let timed = match whole {
        Ok((session, load_ns)) => time(engine, subject, session, load_ns, &mut chain, options)?,
        // Parts may run where the whole can't.
        Err(EngineError::Refused { .. }) if chain.links.iter().any(Result::is_err) => time_parts(&mut chain, options)?,
        Err(other) => return Err(other),
    };
    let links = chain.links.iter().map(|l| l.as_ref().err().cloned()).zip(&timed.segments);
    let profile = |(segment, (refused, &time_ns)): (&Model, (Option<String>, &Option<u64>))| SegmentProfile {
        time_ns,
        refused,
        memory_bytes: memory::bytes(segment, types),
        macs: cost::total_macs(&cost::cost(segment, types)),
    };
    let segments = segments.iter().zip(links).map(profile).collect();
    let input = chain.probe(0, inputs.iter().map(|(n, _)| n.as_str()), codecs);
    let cuts =
        cuts.iter().enumerate().map(|(i, cut)| chain.probe(i + 1, cut.iter().map(String::as_str), codecs)).collect();
    let sizes = |t: &Tensor| t.shape().iter().map(|&d| d as u64).collect();
    Ok(ModelProfile {
        model: options.digest.clone(),
        input_shapes: inputs.iter().map(|(name, t)| (name.clone(), sizes(t))).collect(),
        cuts,
        segments,
        whole_ns: timed.whole_ns,
        spread: timed.spread,
        load_ns: timed.load_ns,
        output_bytes: timed.output_bytes,
        input,
    })
}

/// The session and the typical time to create it, nanoseconds.
fn load(engine: &dyn Engine, model: &Model, options: &ProfileOptions) -> Result<(Box<dyn Session>, u64), EngineError> {
    /// A second load is a fair sample of a third; more only cost time.
    const LOADS: usize = 3;
    let mut times = Vec::with_capacity(LOADS);
    loop {
        let start = Instant::now();
        let session = engine.load(model, &options.load)?;
        times.push(start.elapsed().as_nanos() as u64);
        if times.len() == LOADS || start.elapsed() > Duration::from_secs(2) {
            return Ok((session, typical(&times)));
        }
    }
}

/// What timing gave.
struct Timed {
    whole_ns: u64,
    spread: f64,
    load_ns: u64,
    segments: Vec<Option<u64>>,
    output_bytes: u64,
}

impl ProfileOptions {
    fn rounds(&self, budget: Duration) -> Rounds {
        Rounds { warm_up: self.warm_up, min: self.rounds_min, max: self.rounds_max, budget, precision: self.precision }
    }
}

/// Times the whole, the segments, and the halves at the anchors.
fn time(
    engine: &dyn Engine,
    subject: &Subject,
    mut whole: Box<dyn Session>,
    load_ns: u64,
    chain: &mut Chain,
    options: &ProfileOptions,
) -> Result<Timed, EngineError> {
    let started = Instant::now();
    let feed = pick(whole.as_ref(), &chain.frontiers[0]);
    let mut whole = Runner::new(whole.as_mut(), feed);
    let budget = options.budget.mul_f64(if options.anchors_max == 0 { 1. } else { SEGMENTS_SHARE });
    let present: Vec<bool> = chain.links.iter().map(Result::is_ok).collect();
    let mut segments: Vec<Runner> = chain
        .links
        .iter_mut()
        .zip(&chain.frontiers)
        .filter_map(|(link, values)| {
            let session = link.as_mut().ok()?;
            let feed = pick(session.as_ref(), values);
            Some(Runner::new(session.as_mut(), feed))
        })
        .collect();
    let mut runners: Vec<&mut dyn Step> = vec![&mut whole];
    runners.extend(segments.iter_mut().map(|s| s as &mut dyn Step));
    let mut measured = measure::rounds(&mut runners, &options.rounds(budget))?.into_iter();
    let mut whole_times = measured.next().unwrap_or_default();
    // No times where there is no session.
    let times: Vec<Vec<u64>> =
        present.iter().map(|&p| if p { measured.next() } else { None }.unwrap_or_default()).collect();

    // Over the whole in the same rounds: a slow moment cancels out.
    let over_whole = |t: &[u64], whole: &[u64]| typical(t) as f64 / typical(whole).max(1) as f64;
    let alone: Vec<f64> = times.iter().map(|t| over_whole(t, &whole_times)).collect();
    let mut anchors = Vec::new();
    let places = spread::places(&alone, anchor_count(typical(&whole_times), load_ns, options));
    for (done, &cut) in places.iter().enumerate() {
        let left = options.budget.saturating_sub(started.elapsed()) / (places.len() - done) as u32;
        let halves = (subject.slice)(&subject.cuts[cut..=cut])?;
        let loaded: Result<Vec<_>, _> = halves.iter().map(|half| engine.load(half, &options.load)).collect();
        // What the engine takes in one piece or in many it may still refuse in two.
        let Ok(mut loaded) = loaded else { continue };
        let mut halves: Vec<Runner> = loaded
            .iter_mut()
            .zip([&chain.frontiers[0], &chain.frontiers[cut + 1]])
            .map(|(session, values)| {
                let feed = pick(session.as_ref(), values);
                Runner::new(session.as_mut(), feed)
            })
            .collect();
        let mut runners: Vec<&mut dyn Step> = vec![&mut whole];
        runners.extend(halves.iter_mut().map(|h| h as &mut dyn Step));
        let times = measure::rounds(&mut runners, &options.rounds(left))?;
        let [whole, before, after] = [&times[0], &times[1], &times[2]];
        anchors.push(Anchor { cut, before: over_whole(before, whole), after: over_whole(after, whole) });
        whole_times.extend(&times[0]);
    }

    let whole_ns = typical(&whole_times);
    let shares = if options.anchors_max == 0 { alone } else { spread::shares(&alone, &anchors) };
    let time = |(share, present): (f64, bool)| present.then(|| (share * whole_ns as f64).round() as u64);
    let segments = shares.into_iter().zip(present).map(time).collect();
    Ok(Timed {
        whole_ns,
        spread: deviation(&whole_times) as f64 / whole_ns.max(1) as f64,
        load_ns,
        segments,
        output_bytes: whole.outputs.iter().map(Tensor::byte_len).sum(),
    })
}

/// Times the segments that the engine takes, where it refuses the whole. The
/// whole's time is then the sum of theirs, its load time unknown (0).
fn time_parts(chain: &mut Chain, options: &ProfileOptions) -> Result<Timed, EngineError> {
    let present: Vec<bool> = chain.links.iter().map(Result::is_ok).collect();
    let mut segments: Vec<Runner> = chain
        .links
        .iter_mut()
        .zip(&chain.frontiers)
        .filter_map(|(link, values)| {
            let session = link.as_mut().ok()?;
            let feed = pick(session.as_ref(), values);
            Some(Runner::new(session.as_mut(), feed))
        })
        .collect();
    let mut runners: Vec<&mut dyn Step> = segments.iter_mut().map(|s| s as &mut dyn Step).collect();
    let mut times = measure::rounds(&mut runners, &options.rounds(options.budget))?.into_iter();
    let segments: Vec<Option<u64>> =
        present.iter().map(|&p| p.then(|| typical(&times.next().unwrap_or_default()))).collect();
    let whole_ns = segments.iter().flatten().sum();
    Ok(Timed { whole_ns, spread: 0., load_ns: 0, segments, output_bytes: 0 })
}

/// Anchors that the budget allows.
fn anchor_count(whole_ns: u64, load_ns: u64, options: &ProfileOptions) -> usize {
    let rounds = (options.warm_up + options.rounds_min) as u64;
    // Whole and halves take twice the whole's time, the halves load like it.
    let each = Duration::from_nanos((2 * whole_ns).saturating_mul(rounds) + load_ns);
    let afford = options.budget.mul_f64(1. - SEGMENTS_SHARE).as_secs_f64() / each.as_secs_f64().max(1e-9);
    (afford as usize).max(ANCHORS_MIN).min(options.anchors_max)
}
