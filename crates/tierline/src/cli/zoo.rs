//! `tierline model zoo`: known architectures with weights drawn at random, to
//! try things on.

use std::path::{Path, PathBuf};

use serde::Serialize;
use tierline_daemon::profiling;
use tierline_graph::{DataType, Model};
use tierline_zoo::{Batch, Bn, MODELS, Options, by_name, half, quantize};

use super::{Global, usage};
use crate::output::{self, CommandResult, ExitCode, ExitWith};

#[derive(Debug, clap::Args)]
pub struct Zoo {
    /// The architecture; without one, all are listed
    #[arg(requires = "out")]
    name: Option<String>,
    /// Where to write it
    #[arg(long, value_name = "FILE", requires = "name")]
    out: Option<PathBuf>,
    /// Fix the batch axis, which is free otherwise
    #[arg(long, value_name = "N")]
    batch: Option<u64>,
    /// Height and width of pictures, where the architecture takes any
    #[arg(long, value_name = "PIXELS")]
    image: Option<u64>,
    /// Fold batch normalisation into the convolutions, as exports for inference have it
    #[arg(long)]
    folded: bool,
    /// Quantise weights and activations to 8 bits
    #[arg(long, conflicts_with = "fp16")]
    int8: bool,
    /// Keep weights and activations in 16 bits
    #[arg(long)]
    fp16: bool,
    /// Write numbers at random for each of its inputs, as FOLDER/NAME.npy
    #[arg(long, value_name = "FOLDER", requires = "out")]
    sample: Option<PathBuf>,
    /// Where weights come from: the same seed gives the same file
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Serialize)]
struct Written {
    file: String,
    inputs: Vec<tierline_graph::ValueInfo>,
    parameters: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Listed {
    architectures: Vec<&'static str>,
}

pub fn zoo(global: &Global, args: &Zoo) -> CommandResult {
    let names: Vec<&str> = MODELS.iter().map(|(name, _)| *name).collect();
    let (Some(name), Some(out)) = (&args.name, &args.out) else {
        return global.output().data(&Listed { architectures: names }, |l| l.architectures.join("\n"));
    };
    if args.batch == Some(0) || args.image == Some(0) {
        return Err(usage("--batch and --image are at least 1"));
    }
    let options = Options {
        bn: if args.folded { Bn::Folded } else { Bn::Kept },
        batch: args.batch.map_or(Batch::Free, Batch::Fixed),
        image: args.image,
        seed: args.seed,
    };
    let model = by_name(name, &options)
        .ok_or_else(|| usage(format!("`{name}` is no architecture here; there are {}", names.join(", "))))?;
    let model = match (args.int8, args.fp16) {
        (true, _) => quantize::qdq(&model),
        (_, true) => half::fp16(&model),
        _ => model,
    };
    if let Some(folder) = out.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)?;
    }
    model.save(out).exit_with(ExitCode::Failure)?;
    if let Some(folder) = &args.sample {
        write_sample(&model, folder)?;
    }
    let written = Written {
        file: out.display().to_string(),
        inputs: model.inputs(),
        parameters: tierline_graph::cost::parameters(&model),
        bytes: model.byte_len(),
    };
    global.output().data(&written, |w| {
        format!(
            "{}  {} parameters, {}; its weights are random, so its answers mean nothing yet",
            w.file,
            output::count(w.parameters),
            output::bytes(w.bytes)
        )
    })
}

/// An example of each input, its free axes one long.
fn write_sample(model: &Model, folder: &Path) -> CommandResult {
    std::fs::create_dir_all(folder)?;
    for input in model.inputs() {
        let shape: Vec<u64> = input.shape.iter().flatten().map(|axis| axis.known().unwrap_or(1)).collect();
        let tensor = profiling::synthetic(input.dtype.unwrap_or(DataType::F32), &shape).map_err(usage)?;
        let file = folder.join(format!("{}.npy", output::file_name(&input.name)));
        std::fs::write(&file, tierline_codec::npy::write(&tensor)?)
            .map_err(|e| anyhow::anyhow!("cannot write {}: {e}", file.display()))?;
    }
    Ok(())
}
