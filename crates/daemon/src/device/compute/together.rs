//! Several runs as one: which are of a kind, their inputs behind each other,
//! their outputs apart again, and trials of that.
//!
//! What may run so, and when, decides the queue (`tierline_node::batch`); that
//! a model's rows stay apart says its graph (`tierline_graph::rows`). Here it
//! is done, and where anything is not as it should be, every request runs by
//! itself.

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use tierline_engine::{EngineError, Stop};
use tierline_graph::{Dim, ValueInfo, rows};
use tierline_node::admit::Event;
use tierline_node::batch::{Bounds, Kind, Trial};

use super::sessions::{Due, Sessions, Warm};
use super::{ComputeError, Computed, Job, Work};
use crate::device::program::{Named, Part, SliceKey};
use crate::profiling::synthetic;

/// A trial of a size that takes less than this is run twice: the first run of
/// a shape makes things ready.
const TWICE_BELOW: Duration = Duration::from_millis(50);

/// Runs by themselves that a trial compares with, beyond small sizes: the
/// first, one between, the last.
const COMPARED: usize = 3;

/// Sizes up to which each row is compared.
const ALL_COMPARED: usize = 4;

/// Whoever runs as part of others in the budget of memory.
const CALLER: &str = "requests that run as one";

/// What a job's inputs are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Like {
    pub(super) kind: Kind,
    /// Rows of each of them.
    pub(super) rows: u32,
    pub(super) bytes: u64,
    pub(super) bounds: Bounds,
}

/// What inputs are like; `None` where they have no rows, or differ in them.
pub(super) fn like(keyed: &RandomState, key: &SliceKey, inputs: &Named, bounds: Bounds) -> Option<Like> {
    if bounds.rows_max < 2 {
        return None;
    }
    let rows = rows::count(&inputs.first()?.1).filter(|rows| *rows > 0)?;
    if inputs.iter().any(|(_, tensor)| rows::count(tensor) != Some(rows)) {
        return None;
    }
    let mut shapes: Vec<_> = inputs.iter().map(|(name, t)| (name.as_str(), t.dtype(), &t.shape()[1..])).collect();
    shapes.sort_unstable();
    let kind = Kind(keyed.hash_one((key, shapes)));
    let bytes = inputs.iter().map(|(_, tensor)| tensor.byte_len()).sum();
    Some(Like { kind, rows: u32::try_from(rows).ok()?, bytes, bounds })
}

/// What a run shows of its kind.
pub(super) struct Took {
    pub(super) kind: Kind,
    pub(super) rows: u32,
    pub(super) took: Duration,
}

/// How several runs as one ended.
pub(super) enum Ended {
    /// As one; it took so long, where that says something.
    Together(Option<Took>),
    /// Each by itself, because they couldn't, now or at all.
    Apart { ever: bool },
}

impl Sessions<'_> {
    /// Runs jobs of one kind as one, and tells whoever waits for each.
    pub(super) fn perform_together(&self, jobs: Vec<Job>) -> Ended {
        let queued: Vec<Duration> = jobs.iter().map(|job| job.queued.elapsed()).collect();
        match self.guarded("compute", &jobs[0].key.clone(), |s| s.run_together(&jobs)) {
            Ok((parts, took)) => {
                for ((job, part), queued) in jobs.into_iter().zip(parts).zip(queued) {
                    if let Work::Run { reply, .. } = job.work {
                        let _ = reply.send(Ok(Computed { queued, ..part }));
                    }
                }
                Ended::Together(took)
            }
            Err(error) => {
                let key = &jobs[0].key;
                tracing::warn!(model = key.digest, key.from, key.to, %error, "requests don't run as one; each runs by itself");
                let ever = lasts(&error);
                for job in jobs {
                    self.perform(job);
                }
                Ended::Apart { ever }
            }
        }
    }

    fn run_together(&self, jobs: &[Job]) -> Result<(Vec<Computed>, Option<Took>), ComputeError> {
        let key = &jobs[0].key;
        let failed =
            |why: &str, now: bool| ComputeError::Together { from: key.from, to: key.to, why: why.to_owned(), now };
        let broken = |why: &str| failed(why, false);
        let inputs: Vec<&Named> = jobs.iter().filter_map(|job| job.inputs()).collect();
        let rows: Vec<usize> = inputs.iter().filter_map(|inputs| rows::count(&inputs.first()?.1)).collect();
        if inputs.len() != jobs.len() || rows.len() != jobs.len() {
            return Err(broken("they have no rows"));
        }
        let part = jobs.iter().find_map(|job| job.part.as_ref().filter(|part| part.source.is_some()));
        let part = part.or(jobs[0].part.as_ref()).ok_or_else(|| broken("there is no model"))?;
        // Whoever has the most time: the others give up by themselves.
        let deadline = jobs.iter().map(|job| job.deadline).max().unwrap_or_else(Instant::now);
        let due = Due { stop: &Stop::at(deadline), deadline };
        let was_warm = self.is_warm(key);
        let warm = self.session(part, key, due.stop)?;
        let began = Instant::now();
        let held = self.options.budget.request(CALLER);
        held.take(jobs.iter().filter_map(|job| job.like).map(|like| like.bytes).sum())
            .map_err(|failure| failed(&failure.message, true))?;
        let all = behind(&inputs).ok_or_else(|| broken("their inputs aren't of one kind"))?;
        let computed = self.run_warm(&warm, key, &all, &due)?;
        let mut parts: Vec<Named> = jobs.iter().map(|_| Vec::with_capacity(computed.outputs.len())).collect();
        for (name, output) in computed.outputs {
            let own = rows::parted(&output, &rows).ok_or_else(|| broken("an output has other rows"))?;
            parts.iter_mut().zip(own).for_each(|(part, tensor)| part.push((name.clone(), tensor)));
        }
        let (took, total) = (began.elapsed(), rows.iter().sum::<usize>() as u32);
        let of = |outputs| Computed {
            outputs,
            queued: Duration::ZERO,
            compute: computed.compute,
            batch: Some((jobs.len() as u32, total)),
        };
        // What loaded it first says nothing of the next.
        let shown = jobs[0].like.filter(|_| was_warm).map(|like| Took { kind: like.kind, rows: total, took });
        Ok((parts.into_iter().map(of).collect(), shown))
    }

    /// Loads a session and runs it once on made-up inputs, and two rows of them
    /// together, where their shapes are known: so the first requests find it
    /// as later ones do.
    pub(super) fn warm_up(&self, part: &Part, key: &SliceKey, bounds: Bounds, stop: &Stop) -> Option<Event> {
        let was_warm = self.is_warm(key);
        let warm = self.guarded("session", key, |s| s.session(part, key, stop)).ok().filter(|_| !was_warm)?;
        let inputs = made_up(part, key.from)?;
        let due = Due { stop, deadline: Instant::now() + TRIAL_MAX };
        // What is made up may not be what the model takes: that is for requests to say.
        let ran = self.guarded("warm-up", key, |s| s.run_warm(&warm, key, &inputs, &due));
        let took = match ran {
            Ok(computed) => computed.compute,
            Err(error) => {
                tracing::debug!(model = key.digest, key.from, key.to, %error, "it doesn't run on made-up inputs");
                return None;
            }
        };
        let of = like(self.keyed, key, &inputs, bounds).filter(|_| warm.row_by_row && bounds.may_gain(took))?;
        let trial = self.try_together(key, &inputs, 2, stop);
        Some(Event::Tried { kind: of.kind, rows: 2, bounds, trial })
    }

    /// Tries so many rows together, made of `inputs`, against each by itself.
    pub(super) fn try_together(&self, key: &SliceKey, inputs: &Named, rows: usize, stop: &Stop) -> Trial {
        let Some(warm) = self.warm_session(key) else { return Trial::NotDone };
        if !warm.row_by_row {
            return Trial::Broken;
        }
        let tried = self.guarded("warm-up", key, |s| Ok(s.trial(&warm, key, inputs, rows, stop)));
        match tried {
            Ok(Ok(trial)) => trial,
            Ok(Err(why)) => {
                tracing::info!(
                    model = key.digest,
                    key.from,
                    key.to,
                    rows,
                    why,
                    "requests for these segments run each by itself"
                );
                Trial::Broken
            }
            Err(_) => Trial::Broken,
        }
    }

    fn trial(&self, warm: &Warm, key: &SliceKey, inputs: &Named, rows: usize, stop: &Stop) -> Result<Trial, String> {
        let held = self.options.budget.request(CALLER);
        let bytes: u64 = inputs.iter().map(|(_, tensor)| tensor.byte_len()).sum();
        if held.take(bytes.saturating_mul(2 * rows as u64)).is_err() {
            return Ok(Trial::NotDone);
        }
        let members = single_rows(inputs, rows).ok_or("its inputs have no rows")?;
        let due = Due { stop, deadline: Instant::now() + TRIAL_MAX };
        let timed = |inputs: &Named| {
            let began = Instant::now();
            self.run_warm(warm, key, inputs, &due).map(|computed| (computed, began.elapsed()))
        };
        let compared: Vec<usize> = match rows {
            0..=ALL_COMPARED => (0..rows).collect(),
            _ => (0..COMPARED).map(|i| i * (rows - 1) / (COMPARED - 1)).collect(),
        };
        let mut alone: Option<Duration> = None;
        let mut apart = Vec::new();
        for member in &compared {
            let (computed, took) = match timed(&members[*member]) {
                Ok(done) => done,
                // What doesn't run by itself says nothing of others.
                Err(_) => return Ok(Trial::NotDone),
            };
            alone = Some(alone.map_or(took, |least| least.min(took)));
            apart.push(computed.outputs);
        }
        let began = Instant::now();
        let all = behind(&members.iter().collect::<Vec<_>>()).ok_or("its inputs aren't of one kind")?;
        let joining = began.elapsed();
        let stopped = |error: ComputeError| match stop.is_pulled() {
            true => Ok(Trial::NotDone),
            false => Err(error.to_string()),
        };
        let (computed, mut together) = match timed(&all) {
            Ok(done) => done,
            Err(error) => return stopped(error),
        };
        if together < TWICE_BELOW {
            match timed(&all) {
                Ok((_, again)) => together = together.min(again),
                Err(error) => return stopped(error),
            }
        }
        let began = Instant::now();
        let mut parts: Vec<Vec<_>> = members.iter().map(|_| Vec::new()).collect();
        for (name, output) in &computed.outputs {
            let own = rows::parted(output, &vec![1; rows]).ok_or_else(|| format!("output `{name}` has other rows"))?;
            parts.iter_mut().zip(own).for_each(|(part, tensor)| part.push(tensor));
        }
        let parting = began.elapsed();
        for (member, apart) in compared.iter().zip(&apart) {
            let differs = apart.iter().zip(&parts[*member]).find(|((_, apart), part)| !rows::alike(part, apart));
            if let Some(((name, _), _)) = differs {
                return Err(format!("row {member} of `{name}` differs with others beside it"));
            }
        }
        let alone = alone.unwrap_or(together);
        Ok(Trial::Held { together: together + joining + parting, alone })
    }
}

/// Whether a failure of several as one is to be expected again.
fn lasts(error: &ComputeError) -> bool {
    match error {
        ComputeError::Engine(error) => !matches!(error, EngineError::Stopped { .. }),
        ComputeError::Together { now, .. } => !now,
        ComputeError::Panicked { .. } => true,
        _ => false,
    }
}

/// A trial takes no longer.
pub(super) const TRIAL_MAX: Duration = Duration::from_secs(10);

/// One row of noise in the shapes that are known of what enters a segment.
fn made_up(part: &Part, from: usize) -> Option<Named> {
    let shapes = &part.program.manifest.input_shapes;
    let input = |value: ValueInfo| {
        let said = shapes.get(&value.name).filter(|_| from == 0);
        let axis = |(at, dim): (usize, &Dim)| match (dim.known(), said.and_then(|shape| shape.get(at)), at) {
            (Some(known), ..) => Some(known),
            (None, Some(said), _) => Some(*said),
            (None, None, 0) => Some(1),
            _ => None,
        };
        let shape: Vec<u64> = value.shape.as_ref()?.iter().enumerate().map(axis).collect::<Option<_>>()?;
        Some((value.name, synthetic(value.dtype?, &shape).ok()?))
    };
    part.program.taken(from).into_iter().map(input).collect()
}

/// Inputs of several behind each other.
fn behind(inputs: &[&Named]) -> Option<Named> {
    let names = inputs.first()?.iter().map(|(name, _)| name);
    let of = |name: &String| {
        let own = inputs.iter().map(|inputs| inputs.iter().find(|(n, _)| n == name).map(|(_, tensor)| tensor));
        Some((name.clone(), rows::joined(&own.collect::<Option<Vec<_>>>()?)?))
    };
    names.map(of).collect()
}

/// So many different inputs of one row, made of those given.
fn single_rows(inputs: &Named, rows: usize) -> Option<Vec<Named>> {
    let given = rows::count(&inputs.first()?.1).filter(|given| *given > 0)?;
    let mut members: Vec<Named> = vec![Vec::new(); rows];
    for (name, tensor) in inputs {
        let own = rows::parted(tensor, &vec![1; given])?;
        for (at, member) in members.iter_mut().enumerate() {
            member.push((name.clone(), rows::varied(&own[at % given], at / given)?));
        }
    }
    Some(members)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tierline_engine::{Engine, LoadOptions, Session};
    use tierline_graph::{DataType, Elements, Model, Tensor, emit, infer_types, slice};
    use tierline_node::admit::{Class, Priority};

    use super::super::tests::started;
    use super::super::{Compute, Turn};
    use super::*;
    use crate::device::program::{Program, Source};
    use crate::models::Prepared;

    /// What the engine of a test does with many rows.
    #[derive(Clone, Copy, PartialEq)]
    enum Manner {
        Sound,
        /// Rows get something of each other, whatever the graph says.
        Mixes,
        /// After so many runs of several rows they fail.
        FailsAfter(usize),
    }

    /// Every run takes as long, whatever its rows.
    struct Slow {
        manner: Manner,
        together: Arc<AtomicUsize>,
    }

    struct Ready {
        inputs: Vec<ValueInfo>,
        outputs: Vec<ValueInfo>,
        slow: Slow,
    }

    impl Engine for Slow {
        fn name(&self) -> &'static str {
            "slow"
        }

        fn version(&self) -> String {
            "1".to_owned()
        }

        fn load_until(&self, model: &Model, _: &LoadOptions, _: &Stop) -> Result<Box<dyn Session>, EngineError> {
            let slow = Slow { manner: self.manner, together: Arc::clone(&self.together) };
            Ok(Box::new(Ready { inputs: model.inputs(), outputs: model.outputs(), slow }))
        }
    }

    impl Session for Ready {
        fn inputs(&self) -> &[ValueInfo] {
            &self.inputs
        }

        fn outputs(&self) -> &[ValueInfo] {
            &self.outputs
        }

        fn run_until(
            &mut self,
            inputs: &[(&str, &Tensor)],
            outputs: &mut Vec<Tensor>,
            _: &Stop,
        ) -> Result<(), EngineError> {
            std::thread::sleep(Duration::from_millis(2));
            let given = inputs[0].1;
            let mut values = given.as_f32().unwrap().to_vec();
            if given.shape()[0] > 1 {
                let before = self.slow.together.fetch_add(1, Ordering::SeqCst);
                match self.slow.manner {
                    Manner::Mixes => values.rotate_left(1),
                    Manner::FailsAfter(count) if before >= count => {
                        return Err(EngineError::MissingInput { name: "x".to_owned(), inputs: Vec::new() });
                    }
                    _ => {}
                }
            }
            *outputs = vec![Tensor::new(given.shape(), Elements::F32(values)).unwrap()];
            Ok(())
        }
    }

    fn part() -> (Part, SliceKey) {
        let axes = || Some(vec![Dim::Known(1), Dim::Known(4)]);
        let info = |name: &str| {
            slice::value_info_proto(&ValueInfo { name: name.into(), dtype: Some(DataType::F32), shape: axes() })
        };
        let graph = tierline_graph::onnx::GraphProto {
            name: Some("g".into()),
            node: vec![emit::node("Relu", &["x"], &["y"], &[])],
            input: vec![info("x")],
            output: vec![info("y")],
            ..Default::default()
        };
        let opset = tierline_graph::onnx::OperatorSetIdProto { version: Some(13), ..Default::default() };
        let model = Model::from_proto(tierline_graph::onnx::ModelProto {
            ir_version: Some(8),
            opset_import: vec![opset],
            graph: Some(graph).into(),
            ..Default::default()
        });
        let prepared = Prepared::fold(model.unwrap(), &tierline_engine::rten()).unwrap();
        let manifest = prepared.manifest("m", String::new(), BTreeMap::new(), 0).unwrap();
        let types = infer_types(&prepared.model).unwrap();
        let (digest, to) = (manifest.digest.clone(), manifest.cuts.len() + 1);
        let source = Arc::new(Source { model: prepared.model, types });
        let program = Arc::new(Program::new(manifest, &source));
        (Part { program, source: Some(source) }, SliceKey { digest, from: 0, to })
    }

    /// The runs, once the last is counted: whoever is answered may look before.
    async fn settled(compute: &Compute) -> super::super::Runs {
        let mut before = compute.runs();
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let now = compute.runs();
            if now == before {
                return now;
            }
            before = now;
        }
    }

    /// Requests of many callers at once, some of which go away; each answer is
    /// its own. Gives the runs.
    async fn load(manner: Manner, budget: u64) -> super::super::Runs {
        let engine = Arc::new(Slow { manner, together: Arc::default() });
        let compute = started(engine, budget, true);
        let (part, key) = part();
        let mut requests = Vec::new();
        for caller in 0..16u32 {
            let (compute, part, key) = (compute.clone(), part.clone(), key.clone());
            requests.push(tokio::spawn(async move {
                for round in 0..30u32 {
                    let values = vec![caller as f32, round as f32, 1.0, 2.0];
                    let tensor = Tensor::new([1, 4], Elements::F32(values.clone())).unwrap();
                    let turn = Turn {
                        caller: caller.to_string().into(),
                        class: Class::Interactive,
                        priority: Priority::NONE,
                        deadline: Instant::now() + Duration::from_secs(30),
                        service: Duration::from_millis(2),
                        after: Duration::ZERO,
                        bounds: Some(Bounds::default()),
                    };
                    let inputs = Arc::new(vec![("x".to_owned(), tensor)]);
                    let run = compute.run(part.clone(), key.clone(), inputs, turn);
                    // Some don't wait for their answers.
                    let patience = Duration::from_millis(if caller == 0 { 3 } else { 30_000 });
                    if let Ok(answer) = tokio::time::timeout(patience, run).await {
                        let answer = answer.unwrap();
                        assert_eq!(answer.outputs[0].1.as_f32(), Some(&values[..]));
                    }
                }
            }));
        }
        for request in requests {
            request.await.unwrap();
        }
        settled(&compute).await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_waits_runs_together_and_gets_its_own() {
        let runs = load(Manner::Sound, 1 << 20).await;
        assert!(runs.batches > 0 && runs.batched > 2 * runs.batches && runs.trials >= 3, "{runs:?}");
        assert!(runs.single + runs.batched <= 16 * 30, "each once: {runs:?}");
        assert!(runs.single + runs.batched >= 15 * 30, "nobody is forgotten: {runs:?}");
        assert_eq!(runs.at_once, 0, "a run of milliseconds isn't brief");
    }

    /// Requests of a model that takes microseconds, of so many callers, each of
    /// which waits for one before it sends the next.
    async fn brief(callers: u32) -> super::super::Runs {
        let compute = started(tierline_engine::rten(), 1 << 20, false);
        let (part, key) = part();
        let mut requests = Vec::new();
        for caller in 0..callers {
            let (compute, part, key) = (compute.clone(), part.clone(), key.clone());
            requests.push(tokio::spawn(async move {
                for round in 0..200u32 {
                    let values = vec![caller as f32, round as f32, -1.0, 2.0];
                    let tensor = Tensor::new([1, 4], Elements::F32(values)).unwrap();
                    let turn = Turn {
                        caller: caller.to_string().into(),
                        class: Class::Interactive,
                        priority: Priority::NONE,
                        deadline: Instant::now() + Duration::from_secs(30),
                        service: Duration::ZERO,
                        after: Duration::ZERO,
                        bounds: None,
                    };
                    let inputs = Arc::new(vec![("x".to_owned(), tensor)]);
                    let answer = compute.run(part.clone(), key.clone(), inputs, turn).await.unwrap();
                    let expected = [caller as f32, round as f32, 0.0, 2.0];
                    assert_eq!(answer.outputs[0].1.as_f32(), Some(&expected[..]));
                }
            }));
        }
        for request in requests {
            request.await.unwrap();
        }
        settled(&compute).await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn brief_runs_take_no_other_thread_where_the_device_is_free() {
        let alone = brief(1).await;
        assert!(alone.single == 200 && alone.at_once > 0 && alone.at_once < 200, "the first is loaded: {alone:?}");
        let many = brief(8).await;
        assert_eq!(many.single, 8 * 200, "each once: {many:?}");
    }

    #[tokio::test]
    async fn where_there_is_one_thread_only_it_is_never_kept() {
        assert_eq!(brief(1).await.at_once, 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_engine_that_mixes_rows_is_found_out_before_anybody_sees_it() {
        let runs = load(Manner::Mixes, 1 << 20).await;
        assert!(runs.batches == 0 && runs.trials == 1, "{runs:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_fails_together_runs_apart() {
        // Five trials and some batches go well.
        let runs = load(Manner::FailsAfter(12), 1 << 20).await;
        assert!(runs.batches < 12 && runs.trials >= 1, "{runs:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn without_memory_for_it_each_runs_by_itself() {
        let runs = load(Manner::Sound, 64).await;
        assert!(runs.batches == 0 && runs.single >= 15 * 30, "{runs:?}");
    }
}
