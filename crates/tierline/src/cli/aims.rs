//! What thresholds of exits must keep to, and what reaching an exit costs in
//! its unit: multiply-adds, time on this device, bytes that go on. Start at
//! [`Aim::costs`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tierline_daemon::models::{Manifest, Prepared};
use tierline_daemon::profiling::{Measuring, Work, measure, synthetic};
use tierline_engine::profiler::ProgressListener;
use tierline_engine::{Engine, LoadOptions, Stop};
use tierline_graph::exits::{Exits, head_macs, macs_before, trunk_macs};
use tierline_graph::{DataType, Model, infer_types_with};
use tierline_plan::exits::calibrate::{Costs, Target};
use tierline_train::data::Dataset;

use crate::output::{self, CommandError, CommandResult, ExitCode};

/// What is bounded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Aim {
    /// Accuracy below the end's, as a share.
    Loss(f64),
    /// Multiply-adds of the average example, as a share of the model's.
    Macs(f64),
    /// Time that the average example takes on this device.
    Latency(Duration),
    /// Bytes of the average example that go on behind the last exit, as a share
    /// of its input's.
    Bytes(f64),
}

impl Aim {
    /// What it costs to get an answer, in its own unit, and the bound in that
    /// unit. `macs` are the multiply-adds.
    pub fn costs(
        self,
        engine: &Arc<dyn Engine>,
        model: &Model,
        data: &Dataset,
        load: &LoadOptions,
        macs: &Costs,
    ) -> CommandResult<(Costs, Target)> {
        Ok(match self {
            Self::Loss(share) => (macs.clone(), Target::Loss(share)),
            Self::Macs(share) => (macs.clone(), Target::Cost(share * macs.end)),
            Self::Latency(most) => (times(engine, model, data, load)?, Target::Cost(most.as_nanos() as f64)),
            Self::Bytes(share) => {
                let (costs, input) = bytes(engine, model, data)?;
                (costs, Target::Cost(share * input))
            }
        })
    }

    /// What the average example costs, in words; none where it is told anyway.
    pub fn words(self, cost: f64) -> Option<String> {
        match self {
            Self::Loss(_) | Self::Macs(_) => None,
            Self::Latency(_) => Some(output::duration(cost as u64) + " on this device"),
            Self::Bytes(_) => Some(format!("{cost:.0} bytes go on")),
        }
    }
}

/// Sizes of one example, where the model leaves them free.
fn shapes(model: &Model, data: &Dataset) -> BTreeMap<String, Vec<u64>> {
    let example: Vec<u64> = std::iter::once(1).chain(data.example_shape().iter().map(|&n| n as u64)).collect();
    let of = |declared: Option<Vec<tierline_graph::Dim>>| {
        // Pictures may be taken as rows; only what is free needs the data's sizes.
        let declared = declared.unwrap_or_default();
        let known: Option<Vec<u64>> =
            declared.iter().enumerate().map(|(i, d)| if i == 0 { Some(1) } else { d.known() }).collect();
        known.filter(|s| !s.is_empty()).unwrap_or_else(|| example.clone())
    };
    model.inputs().into_iter().map(|input| (input.name, of(input.shape))).collect()
}

/// Multiply-adds on the way to each exit, for one example.
pub fn macs(model: &Model, exits: &Exits, data: &Dataset) -> CommandResult<Costs> {
    let types = infer_types_with(model, &shapes(model, data))?;
    let unknown =
        || CommandError::message(ExitCode::Failure, "the model's multiply-adds can't be told from its shapes");
    let list = |macs: Vec<Option<u64>>| {
        macs.into_iter().map(|m| m.map(|m| m as f64)).collect::<Option<Vec<f64>>>().ok_or_else(unknown)
    };
    Ok(Costs {
        before: list(macs_before(model, &types, exits))?,
        heads: list(head_macs(model, &types, exits))?,
        end: trunk_macs(model, &types, exits).ok_or_else(unknown)? as f64,
    })
}

/// The model as nodes have it, and the places of its exits, for one example.
fn placed(engine: &Arc<dyn Engine>, model: &Model, data: &Dataset) -> CommandResult<(Prepared, Manifest, Vec<usize>)> {
    let prepared = Prepared::fold(model.clone(), engine)?;
    let manifest = prepared.manifest("exits", String::new(), shapes(model, data), 0)?;
    let places = manifest.exits.as_ref().map(|exits| exits.cuts.clone()).unwrap_or_default();
    Ok((prepared, manifest, places))
}

/// Time on the way to each exit on this device, nanoseconds, for one example:
/// measured in segments with heads, as nodes run them.
fn times(engine: &Arc<dyn Engine>, model: &Model, data: &Dataset, load: &LoadOptions) -> CommandResult<Costs> {
    let (prepared, manifest, places) = placed(engine, model, data)?;
    let mut inputs = Vec::new();
    for input in &manifest.inputs {
        let shape = manifest.input_shapes.get(&input.name).cloned().unwrap_or_default();
        let value = synthetic(input.dtype.unwrap_or(DataType::F32), &shape);
        inputs.push((input.name.clone(), value.map_err(|e| CommandError::message(ExitCode::Failure, e))?));
    }
    let work = Work { engine: Arc::clone(engine), model: &prepared.model, manifest: &manifest, inputs: &inputs };
    let progress = ProgressListener::default();
    let profile = measure(&work, Measuring { load: load.clone(), slowdown: 1.0, progress, stop: Stop::never() })?;
    let refused = || CommandError::message(ExitCode::Failure, "the engine doesn't run every part, so nothing is timed");
    let segments: Vec<f64> =
        profile.segments.iter().map(|s| s.time_ns.map(|ns| ns as f64)).collect::<Option<_>>().ok_or_else(refused)?;
    Ok(Costs {
        before: places.iter().map(|&cut| segments.iter().take(cut + 1).sum()).collect(),
        heads: profile.head_ns.iter().map(|ns| ns.map(|ns| ns as f64)).collect::<Option<_>>().ok_or_else(refused)?,
        end: segments.iter().sum(),
    })
}

/// Bytes that go on where the device before the link judges every exit, and
/// those of the input, for one example: who leaves sends nothing.
fn bytes(engine: &Arc<dyn Engine>, model: &Model, data: &Dataset) -> CommandResult<(Costs, f64)> {
    let (prepared, manifest, places) = placed(engine, model, data)?;
    let types = infer_types_with(&prepared.model, &manifest.input_shapes)?;
    let of = |names: &[String]| names.iter().map(|name| types.get(name)?.bytes()).sum::<Option<u64>>();
    let behind = places.last().and_then(|&cut| manifest.cuts.get(cut)).ok_or_else(|| {
        let text = "no cut lies behind the last exit, so nothing would go on there";
        CommandError::message(ExitCode::Failure, text).hint("put the exits earlier with --at, or bound --cost")
    })?;
    let inputs: Vec<String> = manifest.inputs.iter().map(|input| input.name.clone()).collect();
    let unknown = || CommandError::message(ExitCode::Failure, "bytes can't be told from the model's shapes");
    let (behind, input) = (of(behind).ok_or_else(unknown)?, of(&inputs).ok_or_else(unknown)?);
    let none = vec![0.0; places.len()];
    Ok((Costs { before: none.clone(), heads: none, end: behind as f64 }, input as f64))
}
