//! Measures a model on this device: the time of every fused segment between
//! candidate cuts, of the whole, of loading; and what codecs make of the
//! tensors at the cuts.
//!
//! Call [`profile`] with an engine, a prepared model, its cuts and a sample
//! input; [`ProfileOptions`] holds the budget and who hears of progress,
//! [`CodecProbe`] measures codecs. [`profile_with`] is the same for callers
//! that know the types already. A profile of one device stands in for another
//! by [`DeviceProfile::scaled`](tierline_graph::profile::DeviceProfile::scaled).
//!
//! Sessions are timed in turns, round after round, so that a noisy moment
//! touches all of them alike; the lower quartile counts. A segment by
//! itself takes longer than inside a stage, so segment times are fitted to the
//! whole and to its halves at some cuts (`spread.rs`).

mod chain;
mod heads;
mod measure;
pub(crate) mod memory;
mod progress;
mod spread;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tierline_graph::profile::{CodecProfile, ModelProfile, SegmentProfile};
use tierline_graph::slice::slice;
use tierline_graph::{Model, Tensor, Types, cost, infer_computed_types, infer_types_with};

use self::chain::{Chain, Values, cannot, pick};
pub use self::heads::heads;
use self::measure::{Rounds, Runner, Step, deviation, error, typical};
pub use self::progress::{Phase, Progress, ProgressListener};
use self::spread::Anchor;
use crate::{Engine, EngineError, LoadOptions, Session, Stop};

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
    /// Time for loading and measuring; the minimum of rounds may take longer,
    /// and codecs come on top.
    pub budget: Duration,
    /// Measuring ends early when every time is known this well: its standard
    /// error over itself.
    pub precision: f64,
    /// Cuts at which the two halves of the model are timed against the whole;
    /// fewer where the budget doesn't allow them. 0 leaves segment times as
    /// measured alone.
    pub anchors_max: usize,
    /// Who is told how far it is.
    pub progress: ProgressListener,
    /// Ends it: profiling then fails with [`EngineError::Stopped`].
    pub stop: Stop,
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
            progress: ProgressListener::default(),
            stop: Stop::never(),
        }
    }
}

/// Anchors that even a slow model gets.
const ANCHORS_MIN: usize = 2;

/// Rounds that take this many budgets end although they be few: a model that
/// takes seconds is known well enough after a handful.
const LIMIT_FACTOR: u32 = 4;

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

/// Measures `model` on `engine`, cut at `cuts`.
///
/// `model` is the prepared (folded) model, `cuts` its candidate cuts in
/// topological order, each a frontier's tensors
/// ([`tierline_graph::cuts::candidates`]), `inputs` a sample for every input.
/// `n` cuts give `n + 1` segments; what the engine refuses has no time and the
/// reason. Blocks for about [`ProfileOptions::budget`], plus what `codecs`
/// take ([`NoCodecs`] for none). Segment times add up to the whole's.
///
/// Segments that run are timed in turns with the whole and fitted to it, see
/// the head of this module.
///
/// # Errors
/// [`EngineError::Prepare`] when the model can't be cut there or contradicts
/// itself at these shapes; what the engine says when it runs neither the model
/// nor any part; an input that is missing, unknown or of another type.
pub fn profile(
    engine: &dyn Engine,
    model: &Model,
    cuts: &[Vec<String>],
    inputs: &[(String, Tensor)],
    options: &ProfileOptions,
    codecs: &mut dyn CodecProbe,
) -> Result<ModelProfile, EngineError> {
    let prepare = |e: &dyn std::fmt::Display| EngineError::Prepare { reason: e.to_string() };
    let types = infer_types_with(model, &shapes(inputs)).map_err(|e| prepare(&e))?;
    // Slices as nodes run them: with the model's free axes.
    let free = infer_computed_types(model).map_err(|e| prepare(&e))?;
    let slice = |at: &[Vec<String>]| slice(model, &free, at).map_err(|e| prepare(&e));
    let subject = Subject { model, types: &types, cuts, slice: &slice, inputs };
    profile_with(engine, &subject, options, codecs)
}

/// [`profile`] with types that are known already and the caller's own way of
/// slicing.
///
/// # Errors
/// As [`profile`].
pub fn profile_with(
    engine: &dyn Engine,
    subject: &Subject,
    options: &ProfileOptions,
    codecs: &mut dyn CodecProbe,
) -> Result<ModelProfile, EngineError> {
    let started = Instant::now();
    let Subject { model, types, cuts, slice, inputs } = *subject;
    let segments = slice(cuts)?;
    options.progress.report(Phase::Load, 0.);
    let given: Values = inputs.iter().cloned().collect();
    let whole = load(engine, model, &given, options);
    let mut chain = Chain::new(engine, subject, &segments, options)?;
    let timed = match whole {
        Ok((session, load_ns)) => time(engine, subject, session, load_ns, &mut chain, options, started)?,
        // Parts may run where the whole can't.
        Err(e) if cannot(&e) && chain.links.iter().any(Result::is_ok) => time_parts(&mut chain, options, started)?,
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
    let output_bytes = match &chain.outputs {
        Some(outputs) => outputs.iter().map(Tensor::byte_len).sum(),
        None => model.outputs().iter().filter_map(|v| types.get(&v.name)?.bytes()).sum(),
    };
    let points = cuts.len() + 1;
    let tell = |point: usize| options.progress.report(Phase::Codecs, point as f64 / points as f64);
    tell(0);
    let input = chain.probe(0, inputs.iter().map(|(n, _)| n.as_str()), codecs);
    let mut probed = Vec::with_capacity(cuts.len());
    for (i, cut) in cuts.iter().enumerate() {
        tell(i + 1);
        probed.push(chain.probe(i + 1, cut.iter().map(String::as_str), codecs));
    }
    let output = chain.probe_outputs(model.outputs().iter().map(|v| v.name.as_str()), codecs);
    tell(points);
    Ok(ModelProfile {
        model: options.digest.clone(),
        input_shapes: shapes(inputs),
        cuts: probed,
        segments,
        whole_ns: timed.whole_ns,
        spread: timed.spread,
        load_ns: timed.load_ns,
        output_bytes,
        output,
        input,
        head_ns: Vec::new(),
    })
}

fn shapes(inputs: &[(String, Tensor)]) -> BTreeMap<String, Vec<u64>> {
    inputs.iter().map(|(name, t)| (name.clone(), t.shape().iter().map(|&d| d as u64).collect())).collect()
}

/// The session, run once, and the typical time to create it, nanoseconds.
fn load(
    engine: &dyn Engine,
    model: &Model,
    given: &Values,
    options: &ProfileOptions,
) -> Result<(Box<dyn Session>, u64), EngineError> {
    /// A second load is a fair sample of a third; more only cost time.
    const LOADS: usize = 3;
    /// A load that takes this part of the budget isn't repeated.
    const LOAD_SHARE_MAX: f64 = 0.05;
    let mut times = Vec::with_capacity(LOADS);
    loop {
        let start = Instant::now();
        let mut session = engine.load_until(model, &options.load, &options.stop)?;
        let took = start.elapsed();
        times.push(took.as_nanos() as u64);
        if times.len() == LOADS || took > options.budget.mul_f64(LOAD_SHARE_MAX) {
            let given = pick(session.as_ref(), given);
            session.run_until(&given, &mut Vec::new(), &options.stop)?;
            return Ok((session, typical(&times)));
        }
    }
}

/// What timing gave.
struct Timed {
    whole_ns: u64,
    spread: f64,
    load_ns: u64,
    /// No time where there is no session.
    segments: Vec<Option<u64>>,
}

impl ProfileOptions {
    fn rounds(&self, budget: Duration) -> Rounds {
        Rounds {
            warm_up: self.warm_up,
            min: self.rounds_min,
            max: self.rounds_max,
            budget,
            limit: self.budget.saturating_mul(LIMIT_FACTOR),
            precision: self.precision,
        }
    }

    /// What is left of the budget.
    fn left(&self, started: Instant) -> Duration {
        self.budget.saturating_sub(started.elapsed())
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
    started: Instant,
) -> Result<Timed, EngineError> {
    let given: Values = chain.frontiers[0].clone();
    let mut whole = Runner::new(whole.as_mut(), &given, &options.stop);
    let anchors_max = options.anchors_max.min(subject.cuts.len());
    let share = if anchors_max == 0 { 1. } else { SEGMENTS_SHARE };
    let rounds = options.rounds(options.left(started).mul_f64(share));
    let present: Vec<bool> = chain.links.iter().map(Result::is_ok).collect();
    let mut segments = chain.runners(&options.stop);
    let mut runners: Vec<&mut dyn Step> = vec![&mut whole];
    runners.extend(segments.iter_mut().map(|s| s as &mut dyn Step));
    let mut measured = measure::rounds(&mut runners, &rounds, &|done| options.progress.report(Phase::Segments, done))?;
    let mut whole_times = measured.remove(0);
    let mut measured = measured.into_iter();
    let times: Vec<Vec<u64>> =
        present.iter().map(|&p| if p { measured.next() } else { None }.unwrap_or_default()).collect();

    // Over the whole in the same rounds: a slow moment cancels out.
    let over_whole = |t: &[u64], whole: &[u64]| typical(t) as f64 / typical(whole).max(1) as f64;
    let part = |t: &[u64]| error(t) / typical(t).max(1) as f64;
    let relative_error = |t: &[u64], whole: &[u64]| part(t).hypot(part(whole));
    let alone: Vec<f64> = times.iter().map(|t| over_whole(t, &whole_times)).collect();
    let mut anchors = Vec::new();
    let places = match anchors_max {
        0 => Vec::new(),
        max => spread::places(&alone, anchor_count(typical(&whole_times), load_ns, options).min(max)),
    };
    for (nth, &cut) in places.iter().enumerate() {
        let tell = |done| options.progress.report(Phase::Halves, (nth as f64 + done) / places.len() as f64);
        let left = options.left(started) / (places.len() - nth) as u32;
        let halves = (subject.slice)(&subject.cuts[cut..=cut])?;
        let load = |half| engine.load_until(half, &options.load, &options.stop);
        let loaded: Result<Vec<_>, _> = halves.iter().map(load).collect();
        // What the engine takes in one piece or in many it may still refuse in two.
        let Ok(mut loaded) = loaded else { continue };
        let values = [&chain.frontiers[0], &chain.frontiers[cut + 1]];
        let mut halves: Vec<Runner> =
            loaded.iter_mut().zip(values).map(|(half, v)| Runner::new(half.as_mut(), v, &options.stop)).collect();
        let mut runners: Vec<&mut dyn Step> = vec![&mut whole];
        runners.extend(halves.iter_mut().map(|h| h as &mut dyn Step));
        let times = measure::rounds(&mut runners, &options.rounds(left), &tell)?;
        let [whole, before, after] = [&times[0], &times[1], &times[2]];
        let (up_to, beyond) = (over_whole(before, whole), over_whole(after, whole));
        let error = (up_to * relative_error(before, whole)).hypot(beyond * relative_error(after, whole)) / 2.;
        anchors.push(Anchor { cut, before: up_to, after: beyond, error });
        whole_times.extend(&times[0]);
    }

    let whole_ns = typical(&whole_times);
    let shares = if options.anchors_max == 0 { alone } else { spread::shares(&alone, &anchors) };
    let time = |(share, present): (f64, bool)| present.then(|| (share * whole_ns as f64).round() as u64);
    let segments = shares.into_iter().zip(present).map(time).collect();
    Ok(Timed { whole_ns, spread: deviation(&whole_times) as f64 / whole_ns.max(1) as f64, load_ns, segments })
}

/// Times the segments that the engine takes, where it refuses the whole. The
/// whole's time is then the sum of theirs, its load time unknown (0).
fn time_parts(chain: &mut Chain, options: &ProfileOptions, started: Instant) -> Result<Timed, EngineError> {
    let present: Vec<bool> = chain.links.iter().map(Result::is_ok).collect();
    let mut segments = chain.runners(&options.stop);
    let mut runners: Vec<&mut dyn Step> = segments.iter_mut().map(|s| s as &mut dyn Step).collect();
    let rounds = options.rounds(options.left(started));
    let tell = |done| options.progress.report(Phase::Segments, done);
    let mut times = measure::rounds(&mut runners, &rounds, &tell)?.into_iter();
    let segments: Vec<Option<u64>> =
        present.iter().map(|&p| p.then(|| typical(&times.next().unwrap_or_default()))).collect();
    let whole_ns = segments.iter().flatten().sum();
    Ok(Timed { whole_ns, spread: 0., load_ns: 0, segments })
}

/// Anchors that the budget allows.
fn anchor_count(whole_ns: u64, load_ns: u64, options: &ProfileOptions) -> usize {
    let rounds = (options.warm_up + options.rounds_min) as u64;
    // Whole and halves take twice the whole's time, the halves load like it.
    let each = Duration::from_nanos((2 * whole_ns).saturating_mul(rounds) + load_ns);
    let afford = options.budget.mul_f64(1. - SEGMENTS_SHARE).as_secs_f64() / each.as_secs_f64().max(1e-9);
    (afford as usize).max(ANCHORS_MIN).min(options.anchors_max)
}
