//! `tierline model`: look into models, cut them, keep them in the store.

use std::path::PathBuf;

use serde::Serialize;
use tierline_daemon::models::{self, Prepared};
use tierline_graph::bottleneck::Bottleneck;
use tierline_graph::cuts::{Cut, cuts};
use tierline_graph::exits::{Exit, Exits, Rule, head_macs, macs_before};
use tierline_graph::slice::slice;
use tierline_graph::{Dim, Model, Types, ValueInfo, infer_computed_types};

use super::{Global, args, bottleneck, calibrate, catalogue, engines, exits, trainable, usage, versions, zoo};
use crate::output::{self, CommandResult, ExitCode, ExitWith};

#[derive(Debug, clap::Subcommand)]
pub enum ModelVerb {
    /// Print a model's inputs, outputs, cost and every cut
    Inspect(Inspect),
    /// Divide a model at cuts into models that run one after the other
    Slice(Slice),
    /// Turn a model into its training step, an ONNX file that any runtime takes
    Trainable(Box<trainable::Trainable>),
    /// Give a classifier early exits, fitted and calibrated on a data set
    AddExits(Box<exits::AddExits>),
    /// Give a classifier a learned code for what is sent at a cut, fitted and measured on a data set
    AddBottleneck(Box<bottleneck::AddBottleneck>),
    /// Draw a model's weights anew
    Init(trainable::Init),
    /// Write a known architecture as an ONNX file, with weights drawn at random
    Zoo(zoo::Zoo),
    /// Give a model to the site, under a name
    Add(catalogue::Add),
    /// List the models a node knows
    Ls(catalogue::Ls),
    /// Print what a node knows of a model
    Show(catalogue::Named),
    /// Take a model's name back, on the whole site
    Rm(catalogue::Named),
    /// Find a cascade's thresholds on examples with labels
    Calibrate(Box<calibrate::Calibrate>),
    /// Give a model another name
    Rename(catalogue::Rename),
    /// Give the site another version of a model, which runs nowhere before it is rolled out
    Push(Box<versions::Push>),
    /// Get the file that a version was made of
    Pull(versions::Pull),
    /// Give a version an alias, or take one away
    Tag(versions::Tag),
}

pub fn model(global: &Global, verb: ModelVerb) -> CommandResult {
    match verb {
        ModelVerb::Inspect(args) => inspect(global, &args),
        ModelVerb::Slice(args) => slice_model(global, &args),
        ModelVerb::Trainable(args) => trainable::trainable_model(global, &args),
        ModelVerb::AddExits(args) => exits::add_exits(global, &args),
        ModelVerb::AddBottleneck(args) => bottleneck::add_bottleneck(global, &args),
        ModelVerb::Init(args) => trainable::init_model(global, &args),
        ModelVerb::Zoo(args) => zoo::zoo(global, &args),
        ModelVerb::Add(args) => catalogue::add(global, &args),
        ModelVerb::Ls(args) => catalogue::ls(global, &args),
        ModelVerb::Show(args) => catalogue::show(global, &args),
        ModelVerb::Rm(args) => catalogue::rm(global, &args),
        ModelVerb::Calibrate(args) => calibrate::calibrate_service(global, &args),
        ModelVerb::Rename(args) => catalogue::rename(global, &args),
        ModelVerb::Push(args) => versions::push(global, &args),
        ModelVerb::Pull(args) => versions::pull(global, &args),
        ModelVerb::Tag(args) => versions::tag(global, &args),
    }
}

#[derive(Debug, clap::Args)]
pub struct Inspect {
    /// The ONNX file
    model: PathBuf,
    /// Fix an input's free axes: NAME=1,3,224,224
    #[arg(long = "shape", value_name = "NAME=DIMS")]
    shapes: Vec<String>,
}

#[derive(Serialize)]
struct Inspection {
    inputs: Vec<Value>,
    outputs: Vec<Value>,
    /// Nodes of the main graph as given.
    nodes: usize,
    parameters: u64,
    macs: Option<u64>,
    /// Nodes left after constant folding; the cuts are cuts of that graph.
    nodes_folded: usize,
    /// Early exits, in the order in which they are computed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    exits: Vec<ExitLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bottleneck: Option<Bottleneck>,
    /// Without heads of exits.
    cuts: Vec<CutLine>,
}

#[derive(Serialize)]
struct ExitLine {
    outputs: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<Rule>,
    /// Multiply-adds until what its head reads, and of the head.
    macs: Option<u64>,
    head_macs: Option<u64>,
}

/// The exits that a model's file tells of.
fn exit_lines(model: &Model, types: &Types, exits: &Exits) -> Vec<ExitLine> {
    let macs = macs_before(model, types, exits).into_iter().zip(head_macs(model, types, exits));
    let line = |(exit, (macs, head_macs)): (&Exit, _)| ExitLine {
        outputs: exit.names().map(str::to_owned).collect(),
        rule: exit.rule,
        macs,
        head_macs,
    };
    exits.exits.iter().zip(macs).map(line).collect()
}

#[derive(Serialize)]
struct Value {
    name: String,
    /// As NumPy names it.
    dtype: Option<&'static str>,
    shape: Option<Vec<Dim>>,
}

#[derive(Serialize)]
struct CutLine {
    tensors: Vec<String>,
    bytes: Option<u64>,
}

fn value(info: ValueInfo) -> Value {
    Value { name: info.name, dtype: info.dtype.map(tierline_graph::DataType::numpy), shape: info.shape }
}

fn inspect(global: &Global, args: &Inspect) -> CommandResult {
    let engine = engines::engine(global)?;
    let shapes = args::shapes(&args.shapes)?;
    let given = engines::load(global, &args.model)?;
    let nodes = given.graph().node.len();
    let prepared = Prepared::fold(given, &engine)?;
    let types = prepared.types(&shapes)?;
    let costs = tierline_graph::cost::cost(&prepared.model, &types);
    let exits = Exits::of(&prepared.model).exit_with(ExitCode::Failure)?;
    let trunk = exits.as_ref().map(|exits| exits.trunk(&prepared.model)).transpose()?;
    let trunk = trunk.unwrap_or_else(|| prepared.model.clone());
    let report = Inspection {
        inputs: prepared.model.inputs().into_iter().map(value).collect(),
        outputs: prepared.model.outputs().into_iter().map(value).collect(),
        nodes,
        parameters: tierline_graph::cost::parameters(&prepared.model),
        macs: tierline_graph::cost::total_macs(&costs),
        nodes_folded: prepared.model.graph().node.len(),
        exits: exits.as_ref().map_or_else(Vec::new, |exits| exit_lines(&prepared.model, &types, exits)),
        bottleneck: Bottleneck::of(&prepared.model).exit_with(ExitCode::Failure)?,
        cuts: cuts(&trunk, &types).into_iter().map(|Cut { tensors, bytes, .. }| CutLine { tensors, bytes }).collect(),
    };
    global.output().data(&report, |r| {
        let mut text = String::new();
        for (what, values) in [("input", &r.inputs), ("output", &r.outputs)] {
            for v in values {
                let dtype = v.dtype.unwrap_or("not a tensor");
                text.push_str(&format!("{what:<7} {}  {dtype} {}\n", v.name, models::shape_text(v.shape.as_ref())));
            }
        }
        let macs = r.macs.map_or("unknown: fix the free axes with --shape".into(), output::count);
        text.push_str(&format!(
            "\nnodes       {} ({} after constant folding)\nparameters  {}\nmultiply-adds {macs}\ncuts        {}\n\n",
            r.nodes,
            r.nodes_folded,
            output::count(r.parameters),
            r.cuts.len()
        ));
        if !r.exits.is_empty() {
            let rows: Vec<Vec<String>> = r.exits.iter().map(exit_row).collect();
            text.push_str(&output::table(&["exit", "rule", "multiply-adds", "of the head"], &rows));
            text.push('\n');
        }
        if let Some(bottleneck) = &r.bottleneck {
            text.push_str(&format!("bottleneck  {bottleneck}\n\n"));
        }
        let rows: Vec<Vec<String>> = r
            .cuts
            .iter()
            .enumerate()
            .map(|(i, c)| vec![i.to_string(), c.bytes.map_or("?".into(), output::bytes), args::join_names(&c.tensors)])
            .collect();
        text.push_str(&output::table(&["cut", "bytes", "tensors"], &rows));
        text
    })
}

fn exit_row(exit: &ExitLine) -> Vec<String> {
    let count = |n: Option<u64>| n.map_or("?".to_owned(), output::count);
    let rule =
        exit.rule.map_or("none".to_owned(), |r| format!("{} of at least {:.4}", r.criterion.name(), r.threshold));
    vec![args::join_names(&exit.outputs), rule, count(exit.macs), count(exit.head_macs)]
}

#[derive(Debug, clap::Args)]
pub struct Slice {
    /// The ONNX file
    model: PathBuf,
    /// A cut: its frontier's tensors, separated by commas; `\,` is a comma of a name (repeat for further cuts, in order)
    #[arg(long = "at", value_name = "T1[,T2...]", required = true)]
    at: Vec<String>,
    /// Folder for 0.onnx, 1.onnx, ...
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Fix an input's free axes: NAME=1,3,224,224
    #[arg(long = "shape", value_name = "NAME=DIMS")]
    shapes: Vec<String>,
}

#[derive(Serialize)]
struct Slices {
    slices: Vec<SliceLine>,
}

#[derive(Serialize)]
struct SliceLine {
    file: String,
    nodes: usize,
    inputs: Vec<String>,
    outputs: Vec<String>,
    bytes: u64,
}

fn slice_model(global: &Global, args: &Slice) -> CommandResult {
    let engine = engines::engine(global)?;
    let prepared = engines::prepared(global, &args.model, &engine)?;
    let shapes = args::shapes(&args.shapes)?;
    let types = prepared.types(&shapes)?;
    let model = if shapes.is_empty() { prepared.model } else { prepared.model.with_input_types(&types) };
    let types = infer_computed_types(&model)?;
    let known = |name: &str| types.get(name).is_some();
    let at = args.at.iter().map(|cut| args::split_names(cut, &known)).collect::<CommandResult<Vec<_>>>()?;
    if at.iter().flatten().any(String::is_empty) {
        return Err(usage("--at has an empty tensor name; write --at T1,T2")
            .hint(format!("tierline model inspect {}", args.model.display())));
    }
    let slices = slice(&model, &types, &at).map_err(|e| {
        crate::output::CommandError::new(ExitCode::Failure, e)
            .hint(format!("tierline model inspect {} lists every cut", args.model.display()))
    })?;
    std::fs::create_dir_all(&args.out)
        .map_err(|e| anyhow::anyhow!("cannot create {:?}: {e}", args.out))
        .exit_with(ExitCode::Failure)?;
    let mut lines = Vec::new();
    for (i, part) in slices.iter().enumerate() {
        let file = args.out.join(format!("{i}.onnx"));
        part.save(&file)?;
        lines.push(SliceLine {
            file: file.display().to_string(),
            nodes: part.graph().node.len(),
            inputs: part.inputs().into_iter().map(|v| v.name).collect(),
            outputs: part.outputs().into_iter().map(|v| v.name).collect(),
            bytes: std::fs::metadata(&file)?.len(),
        });
    }
    global.output().data(&Slices { slices: lines }, |r| {
        let rows: Vec<Vec<String>> = r
            .slices
            .iter()
            .map(|s| {
                vec![
                    s.file.clone(),
                    s.nodes.to_string(),
                    output::bytes(s.bytes),
                    args::join_names(&s.inputs),
                    args::join_names(&s.outputs),
                ]
            })
            .collect();
        output::table(&["file", "nodes", "bytes", "inputs", "outputs"], &rows)
    })
}
