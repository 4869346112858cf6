//! Profiles a model on this device, twice, and compares.
//!
//! ```console
//! $ cargo run --release --example profile -- model.onnx onnxruntime 6 x=1,3,640,640
//! ```
//!
//! The engine is `rten` or `onnxruntime`, the number the budget in seconds;
//! then the shapes of inputs that leave some open.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::time::Duration;

use tierline_engine::profiler::{NoCodecs, Phase, ProfileOptions, ProgressListener, profile};
use tierline_engine::{Evaluator, LoadOptions, onnxruntime, rten};
use tierline_graph::cuts::{candidates, cuts};
use tierline_graph::fold::fold;
use tierline_graph::profile::ModelProfile;
use tierline_graph::{DataType, Elements, Model, Tensor, infer_types_with};

/// Cuts worth profiling.
const CUTS_MAX: usize = 32;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: profile MODEL [ENGINE] [SECONDS] [INPUT=SHAPE]..")?;
    let engine = if args.next().is_none_or(|e| e == "rten") { rten() } else { onnxruntime(None)? };
    let budget = Duration::from_secs_f64(args.next().map_or(Ok(6.), |s| s.parse())?);
    let mut shapes: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for text in args {
        let (name, sizes) = text.split_once('=').ok_or("a shape is written NAME=1,3,640,640")?;
        shapes.insert(name.to_owned(), sizes.split(',').map(str::parse).collect::<Result<_, _>>()?);
    }

    let mut model = Model::load(Path::new(&path))?;
    fold(&mut model, &mut Evaluator(engine.clone()))?;
    let types = infer_types_with(&model, &shapes)?;
    let all = cuts(&model, &types);
    let chosen = candidates(&model, &types, &all, CUTS_MAX);
    let frontiers: Vec<Vec<String>> = chosen.iter().map(|c| c.tensors.clone()).collect();
    let inputs = model.inputs().iter().map(|v| sample(&v.name, v.dtype, &types)).collect::<Result<Vec<_>, _>>()?;

    let progress = ProgressListener::new(|p| {
        if p.phase == Phase::Halves || p.done == 1. {
            eprint!("\r{:<20}{:3.0} %", p.phase.to_string(), p.done * 100.);
        }
    });
    let load = LoadOptions { spin: false, ..LoadOptions::default() };
    let options = ProfileOptions { budget, progress, load, ..ProfileOptions::default() };
    let measure = || profile(engine.as_ref(), &model, &frontiers, &inputs, &options, &mut NoCodecs);
    let (first, second) = (measure()?, measure()?);
    eprintln!();
    show(&first, &second);
    Ok(())
}

/// Seeded noise, or ones for integers: they are valid as masks and tokens.
fn sample(name: &str, dtype: Option<DataType>, types: &tierline_graph::Types) -> Result<(String, Tensor), String> {
    let shape: Option<Vec<usize>> =
        types.get(name).and_then(|v| v.shape.as_ref()?.iter().map(|d| Some(d.known()? as usize)).collect());
    let shape = shape.ok_or_else(|| format!("give the shape of input `{name}`, such as {name}=1,3,224,224"))?;
    let count = shape.iter().product();
    let elements = match dtype {
        Some(DataType::I64) => Elements::I64(vec![1; count]),
        Some(DataType::I32) => Elements::I32(vec![1; count]),
        Some(DataType::F32) => {
            let mut rng = fastrand::Rng::with_seed(7);
            Elements::F32((0..count).map(|_| rng.f32() * 2. - 1.).collect())
        }
        other => return Err(format!("this example makes no samples of {other:?}, the type of `{name}`")),
    };
    Ok((name.to_owned(), Tensor::new(shape, elements).map_err(|e| e.to_string())?))
}

fn show(first: &ModelProfile, second: &ModelProfile) {
    println!("{:>3} {:>10} {:>10} {:>9} {:>10}  cut behind it", "", "first ms", "second ms", "memory kB", "sent kB");
    let ms = |ns: Option<u64>| ns.map_or_else(|| "refused".to_owned(), |ns| format!("{:.3}", ns as f64 / 1e6));
    for (i, (a, b)) in first.segments.iter().zip(&second.segments).enumerate() {
        let (tensors, bytes) = first.cuts.get(i).map_or_else(Default::default, |cut| {
            let names: Vec<&str> = cut.tensors.iter().map(|t| t.name.as_str()).collect();
            (names.join(" "), cut.tensors.iter().map(|t| t.bytes).sum::<u64>())
        });
        let (memory, sent) = (a.memory_bytes / 1024, bytes as f64 / 1024.);
        println!("{i:>3} {:>10} {:>10} {memory:>9} {sent:>10.1}  {tensors}", ms(a.time_ns), ms(b.time_ns));
    }
    let apart = |a: u64, b: u64| 100. * (a as f64 / b.max(1) as f64 - 1.);
    println!(
        "whole {:.3} and {:.3} ms ({:+.1} %), spread {:.1} %; loads in {:.1} ms",
        first.whole_ns as f64 / 1e6,
        second.whole_ns as f64 / 1e6,
        apart(first.whole_ns, second.whole_ns),
        100. * first.spread,
        first.load_ns as f64 / 1e6
    );
    // What a plan adds up: the time up to each cut.
    let up_to = |p: &ModelProfile| {
        p.segments
            .iter()
            .scan(0, |sum, s| {
                *sum += s.time_ns.unwrap_or(0);
                Some(*sum)
            })
            .collect::<Vec<u64>>()
    };
    let mut apart: Vec<f64> = up_to(first).iter().zip(up_to(second)).map(|(&a, b)| apart(a, b).abs()).collect();
    apart.sort_by(f64::total_cmp);
    println!(
        "time up to a cut differs by {:.1} % (median), {:.1} % (most)",
        apart[apart.len() / 2],
        apart[apart.len() - 1]
    );
}
