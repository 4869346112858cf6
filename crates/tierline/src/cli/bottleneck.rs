//! `tierline model add-bottleneck`: a learned code for what is sent, fitted
//! and measured.

use std::path::PathBuf;

use serde::Serialize;
use tierline_daemon::models::{self, Prepared};
use tierline_engine::LoadOptions;
use tierline_graph::bottleneck::{Bottleneck, Coder, Measured, Wanted, attach, best};
use tierline_graph::cost::{cost, total_macs};
use tierline_graph::exits::{Answer, answer, one_example};
use tierline_graph::{Model, infer_types_with};
use tierline_plan::exits::{Reading, classes};
use tierline_train::Event;
use tierline_train::bottleneck as fitting;
use tierline_train::data::BatchOptions;
use tierline_train::exits::{Fitting, Steps, answers};

use super::{Global, engines, exits, usage};
use crate::output::{self, CommandError, CommandResult, ExitCode, ExitWith};

#[derive(Debug, clap::Args)]
pub struct AddBottleneck {
    /// The ONNX file of a trained classifier
    model: PathBuf,
    /// The tensor that is sent; chosen by the work before it and the bytes of its code unless said
    #[arg(long, value_name = "TENSOR")]
    at: Option<String>,
    /// The data set: its split `train` is learned from, its split `test` held out, or a fifth of it
    #[arg(long, value_name = "NAME")]
    dataset: String,
    /// How many times fewer bytes than the tensor's own are to be sent
    #[arg(long, value_name = "N", default_value_t = 64.0)]
    times: f64,
    /// Points of accuracy that may be lost; where more are, no file is written
    #[arg(long, value_name = "POINTS", default_value_t = 2.0)]
    loss: f64,
    /// Where the model with the bottleneck goes
    #[arg(long, value_name = "FILE.onnx")]
    out: PathBuf,
    /// What the model takes out of its input: `measured` on the training examples, or MEAN,..:STD,..
    #[arg(long, value_name = "NUMBERS")]
    normalize: Option<String>,
    /// What steps train: the code alone, or with it what lies behind
    #[arg(long, value_name = "WHAT", default_value = "code", value_parser = ["code", "behind"])]
    fit: String,
    /// How often every example is seen; 0 takes the principal components as they are
    #[arg(long, value_name = "N", default_value_t = 4)]
    epochs: u64,
    /// Learning rate of Adam, which falls to 0
    #[arg(long = "lr", value_name = "X", default_value_t = 0.004)]
    rate: f64,
    /// Examples of a batch
    #[arg(long, value_name = "N", default_value_t = 64)]
    batch: usize,
    /// Decides the order of examples
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads; every core unless said
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

#[derive(Serialize)]
struct Report {
    file: String,
    digest: String,
    /// Digest of the file that it is a variant of.
    stands_for: String,
    data: String,
    tensor: String,
    bytes_before: u64,
    bytes: u64,
    times: f64,
    fitted_on: usize,
    measured_on: usize,
    /// What answers are held against: the data's classes, or what the model says without it.
    against: &'static str,
    accuracy_before: f64,
    accuracy: f64,
    points_lost: f64,
    /// Multiply-adds of the model without it, of the encoder, and of the decoder.
    macs: Option<u64>,
    encoder_macs: u64,
    decoder_macs: u64,
}

pub fn add_bottleneck(global: &Global, args: &AddBottleneck) -> CommandResult {
    if !(0.0..=100.0).contains(&args.loss) {
        return Err(usage(format!("--loss is {}; it must be 0 to 100", args.loss)));
    }
    let engine = engines::engine(global)?;
    let given = engines::load(global, &args.model)?;
    let stands_for = models::digest_of(&given);
    let before = models::for_training(given, &engine)?;
    answer(&before).map_err(|e| {
        CommandError::new(ExitCode::Failure, e).hint("what a bottleneck loses is counted in classes answered rightly")
    })?;
    let hint = format!("tierline model inspect {}", args.model.display());
    let refused = |e| CommandError::new(ExitCode::Failure, e).hint(hint.clone());
    let at = match &args.at {
        Some(at) => at.clone(),
        None => best(&before, args.times).map_err(refused)?,
    };
    let wanted = Wanted { at, times: args.times, stands_for };
    let (model, bottleneck, coder) = attach(&before, &wanted).map_err(refused)?;

    let (seen, held_out) = exits::data(global, &args.dataset, args.seed)?;
    let normalize = exits::normalize(args.normalize.as_deref(), &seen)?;
    let batch = BatchOptions { size: args.batch, seed: args.seed, normalize, ..BatchOptions::default() };
    let load = LoadOptions::with_threads(args.threads);
    let with = Fitting { engine: engine.clone(), load, data: &seen, batch };
    let model = fitted(global, args, &with, &before, &model, &coder)?;

    let held = Fitting { data: &held_out, ..with.clone() };
    let model = bottleneck.write(&model).exit_with(ExitCode::Failure)?;
    // As nodes run it.
    let run = |model: &Model| Ok::<_, CommandError>(Prepared::fold(model.clone(), &engine)?.model);
    let (measured, against) = measured(args, &held, &run(&before)?, &run(&model)?)?;
    let points_lost = measured.points_lost();
    if !measured.keeps_to(args.loss) {
        let text = format!(
            "at {:.0} times fewer bytes of `{}` {points_lost:.2} points are lost on {} examples held out ({:.2}% of {:.2}%), \
             and --loss allows {}; nothing is written",
            bottleneck.times(),
            bottleneck.of,
            measured.examples,
            100.0 * measured.accuracy,
            100.0 * measured.accuracy_before,
            args.loss
        );
        return Err(CommandError::message(ExitCode::Failure, text)
            .hint("fewer --times, a later tensor with --at, or more --epochs"));
    }
    let bottleneck = Bottleneck { measured: Some(measured.clone()), ..bottleneck };
    let model = bottleneck.write(&model).exit_with(ExitCode::Failure)?;
    model.save(&args.out)?;
    let report = Report {
        file: args.out.display().to_string(),
        digest: models::digest_of(&model),
        stands_for: bottleneck.stands_for.clone(),
        data: args.dataset.clone(),
        tensor: bottleneck.of.clone(),
        bytes_before: bottleneck.bytes_before,
        bytes: bottleneck.bytes,
        times: bottleneck.times(),
        fitted_on: seen.len(),
        measured_on: held_out.len(),
        against,
        accuracy_before: measured.accuracy_before,
        accuracy: measured.accuracy,
        points_lost,
        macs: total_macs(&cost(&before, &infer_types_with(&before, &one_example(&before))?)),
        encoder_macs: coder.macs,
        decoder_macs: coder.macs,
    };
    global.output().data(&report, told)
}

fn told(r: &Report) -> String {
    let percent = |share: f64| format!("{:.2}%", 100.0 * share);
    format!(
        "`{}` is sent as {}, {:.1} times fewer than its {}\naccuracy    {} of {} examples held out ({} without, {:.2} points \
         lost)\nright means {}\nencoder     {} multiply-adds, decoder {}, of {} of the model\nmodel       {}\ndigest      {}\n\
         stands for  {}\n",
        r.tensor,
        output::bytes(r.bytes),
        r.times,
        output::bytes(r.bytes_before),
        percent(r.accuracy),
        r.measured_on,
        percent(r.accuracy_before),
        r.points_lost,
        r.against,
        output::count(r.encoder_macs),
        output::count(r.decoder_macs),
        r.macs.map_or_else(|| "an unknown number".to_owned(), output::count),
        r.file,
        r.digest,
        r.stands_for
    )
}

/// The model with its coder's weights fitted.
fn fitted(
    global: &Global,
    args: &AddBottleneck,
    with: &Fitting<'_>,
    before: &Model,
    model: &Model,
    coder: &Coder,
) -> CommandResult<Model> {
    let model = fitting::principal(with, model, coder, args.seed)?;
    if args.epochs == 0 {
        return Ok(model);
    }
    let bar = global.output().progress(args.epochs, "fitting the bottleneck");
    let steps = Steps { epochs: args.epochs, rate: args.rate, seed: args.seed };
    let how = (steps, args.fit == "behind");
    let trained = fitting::train(with, before, &model, coder, how, &mut |event| {
        if let Event::Epoch(epoch) = event {
            bar.set_position(epoch.epoch);
            bar.set_message(format!("loss {:.4}", epoch.loss));
        }
        Ok(())
    });
    bar.finish_and_clear();
    Ok(trained?)
}

/// What is lost of the examples held out, and what counts as right.
fn measured(
    args: &AddBottleneck,
    held: &Fitting<'_>,
    before: &Model,
    model: &Model,
) -> CommandResult<(Measured, &'static str)> {
    let (output, form, _, scores) = answer(before)?;
    let reading = Reading { axis: if form == Answer::Map { 1 } else { -1 }, scores };
    let said = |model: &Model| {
        let (tensors, targets) = answers(held, model, &[&output.name])?;
        let said = tensors.first().map(|tensor| classes(tensor, reading)).transpose();
        Ok::<_, CommandError>((said.exit_with(ExitCode::Failure)?.unwrap_or_default(), targets))
    };
    let ((without, targets), (with, _)) = (said(before)?, said(model)?);
    let one = form == Answer::Class && targets.iter().any(Option::is_some);
    let accuracy = |said: &[Vec<Option<usize>>]| {
        let of = |example: usize| match &said[example][..] {
            [class] if one => f64::from(u8::from(class.is_some() && *class == targets[example])),
            places => {
                let same = places.iter().zip(&without[example]).filter(|(a, b)| a.is_some() && a == b).count();
                same as f64 / places.len().max(1) as f64
            }
        };
        (0..said.len()).map(of).sum::<f64>() / said.len().max(1) as f64
    };
    let measured = Measured {
        data: args.dataset.clone(),
        examples: targets.len() as u64,
        accuracy_before: accuracy(&without),
        accuracy: accuracy(&with),
    };
    Ok((measured, if one { "the class of the data set" } else { "the class that the model says without it" }))
}
