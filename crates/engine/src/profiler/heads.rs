//! What the heads of early exits add to the segments that they sit behind.

use std::time::Instant;

use tierline_graph::exits::{self, Exits, Part};
use tierline_graph::{Model, Tensor, infer_computed_types};

use super::ProfileOptions;
use super::chain::{Values, cannot, pick};
use super::measure::typical;
use crate::{Engine, EngineError, Session};

/// Rounds of a segment with its head and without, in turns.
const ROUNDS: usize = 15;

/// Measures the head of each exit of `model`: the difference that it makes to
/// the segment at whose end the exit is judged, nanoseconds, 0 or more. `None`
/// where the engine doesn't run it. `cuts` are the candidate cuts, `inputs` a
/// sample for every input; an exit behind the last cut takes no time, since
/// it isn't judged.
///
/// # Errors
/// [`EngineError::Prepare`] when the exits don't fit the cuts; what the engine
/// says when it runs no part before an exit, or is to stop.
pub fn heads(
    engine: &dyn Engine,
    model: &Model,
    stated: &Exits,
    cuts: &[Vec<String>],
    inputs: &[(String, Tensor)],
    options: &ProfileOptions,
) -> Result<Vec<Option<u64>>, EngineError> {
    let prepare = |e: &dyn std::fmt::Display| EngineError::Prepare { reason: e.to_string() };
    let places = exits::places(model, stated, cuts).map_err(|e| prepare(&e))?;
    let free = infer_computed_types(model).map_err(|e| prepare(&e))?;
    let load = |part: Part<'_>| {
        let slice = exits::slice(model, &free, stated, part).map_err(|e| prepare(&e))?;
        engine.load_until(&slice, &options.load, &options.stop)
    };
    // The frontier before segment `at`.
    let mut values: Values = inputs.iter().cloned().collect();
    let mut at = 0;
    let mut times = Vec::with_capacity(places.len());
    for (exit, &place) in places.iter().enumerate() {
        if place >= cuts.len() {
            times.push(Some(0));
            continue;
        }
        if place > at {
            let mut before = load(Part { cuts, from: at, to: place, exits: &[] })?;
            let outputs = run(before.as_mut(), &values, options)?;
            values = before.outputs().iter().map(|v| v.name.clone()).zip(outputs).collect();
            at = place;
        }
        let part = |exits| Part { cuts, from: place, to: place + 1, exits };
        let mut without = load(part(&[]))?;
        let head = load(part(&[exit])).and_then(|mut with| {
            let (mut plain, mut more) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                plain.push(timed(without.as_mut(), &values, options)?);
                more.push(timed(with.as_mut(), &values, options)?);
            }
            Ok(typical(&more).saturating_sub(typical(&plain)))
        });
        times.push(match head {
            Ok(ns) => Some(ns),
            Err(e) if cannot(&e) => None,
            Err(other) => return Err(other),
        });
    }
    Ok(times)
}

fn run(session: &mut dyn Session, values: &Values, options: &ProfileOptions) -> Result<Vec<Tensor>, EngineError> {
    let mut outputs = Vec::new();
    session.run_until(&pick(session, values), &mut outputs, &options.stop)?;
    Ok(outputs)
}

fn timed(session: &mut dyn Session, values: &Values, options: &ProfileOptions) -> Result<u64, EngineError> {
    let started = Instant::now();
    run(session, values, options)?;
    Ok(started.elapsed().as_nanos() as u64)
}
