//! Gradients of networks that PyTorch exported: of torchvision's and of those
//! that users write, by its newest and its legacy exporter.
//!
//! PyTorch is one process that exports and compares; this side makes the
//! training steps. Start at [`run`].

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tierline_engine::Evaluator;
use tierline_graph::Model;
use tierline_graph::fold::{Purpose, fold_for};
use tierline_graph::step::{self, Loss, Recipe, Role, Step};

use super::Peer;

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// PyTorch's version.
    pub pytorch: String,
    /// One per network and exporter.
    pub rows: Vec<Row>,
}

/// One export.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The network.
    pub network: String,
    /// The exporter.
    pub exporter: String,
    /// What came of it.
    pub outcome: ExportResult,
}

/// What came of an export.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportResult {
    /// Its gradients, compared.
    Trains(Compared),
    /// Tierline's reason why it can't be trained.
    Refused(String),
    /// The exporter's own failure.
    NotExported(String),
}

/// A training step's gradients beside PyTorch's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compared {
    /// Kinds of operators in the export.
    pub operators: usize,
    /// Nodes of the export.
    pub nodes: usize,
    /// Nodes of the training step.
    pub step_nodes: usize,
    /// Tensors that the step trains.
    pub trained: usize,
    /// How they compare.
    #[serde(flatten)]
    pub said: Said,
}

/// PyTorch's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Said {
    /// Worst relative error of a weight's gradient, ours in f32 against
    /// PyTorch's in f64.
    pub ours: f64,
    /// PyTorch's own, in f32.
    pub pytorch: f64,
    /// The weight that is worst in ours.
    pub weight: String,
    /// Weights of the module that have a gradient.
    pub weights: usize,
    /// Those that the step doesn't train.
    pub missing: Vec<String>,
    /// What the step trains and the module doesn't have.
    pub unknown: Vec<String>,
}

#[derive(Deserialize)]
struct Hello {
    version: String,
    networks: Vec<String>,
    exporters: Vec<String>,
}

/// What an exporter said.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Exported {
    Loss(String),
    Failure(String),
    /// It gives another network, for this reason.
    Other(String),
}

/// Runs the benchmark.
///
/// # Errors
/// When PyTorch can't be installed, or fails other than in an export.
pub fn run() -> Result<Report> {
    let python = super::pytorch()?;
    let folder = tempfile::tempdir()?;
    let script = folder.path().join("exports.py");
    std::fs::write(&script, include_str!("exports.py"))?;
    let mut peer = Peer::spawn(Command::new(python).arg(script))?;
    let hello: Hello = peer.ask(&serde_json::json!({}))?;
    let mut rows = Vec::new();
    for network in &hello.networks {
        for exporter in &hello.exporters {
            let file = folder.path().join("export.onnx");
            let request = serde_json::json!({ "network": network, "exporter": exporter, "file": file });
            let outcome = match peer.ask(&request)? {
                Exported::Loss(loss) => compared(&mut peer, network, &file, &loss)?,
                Exported::Failure(reason) => ExportResult::NotExported(reason),
                Exported::Other(reason) => {
                    eprintln!("  {network} ({exporter}): left out, {reason}");
                    continue;
                }
            };
            eprintln!("  {network} ({exporter}): {outcome}");
            rows.push(Row { network: network.clone(), exporter: exporter.clone(), outcome });
        }
    }
    Ok(Report { pytorch: hello.version, rows })
}

/// The gradients of one export, or why there are none.
fn compared(peer: &mut Peer, network: &str, file: &Path, loss: &str) -> Result<ExportResult> {
    let mut model = Model::load(file)?;
    let mut kinds: Vec<String> = model.graph().node.iter().map(|n| n.op_type().to_owned()).collect();
    let nodes = kinds.len();
    kinds.sort_unstable();
    kinds.dedup();
    fold_for(&mut model, &mut Evaluator(tierline_engine::rten()), Purpose::Training)?;
    let loss = match loss {
        "cross-entropy" => Recipe::default().loss,
        "mse" => Loss::Mse,
        other => bail!("no loss `{other}`"),
    };
    let step = match step::trainable(&model, &Recipe { loss, ..Recipe::default() }) {
        Ok(step) => step,
        Err(error) => return Ok(ExportResult::Refused(error.to_string())),
    };
    let (forward, gradients) = (file.with_extension("forward"), file.with_extension("gradients"));
    model.save(&forward)?;
    step_gradients(&step)?.save(&gradients)?;
    let trained: Vec<&str> = parameters(&step).map(|s| s.input.as_str()).collect();
    let said = peer.ask(&serde_json::json!({
        "network": network, "forward": forward, "gradients": gradients, "trained": trained,
    }))?;
    let step_nodes = step.model.graph().node.len();
    Ok(ExportResult::Trains(Compared { operators: kinds.len(), nodes, step_nodes, trained: trained.len(), said }))
}

fn parameters(step: &Step) -> impl Iterator<Item = &step::Slot> {
    step.spec.state.iter().filter(|s| s.role == Role::Parameter)
}

/// The step with the weights' gradients as its only outputs, in order.
pub(super) fn step_gradients(step: &Step) -> Result<Model> {
    let mut proto = step.model.proto().clone();
    let graph = proto.graph.as_mut().context("a model has a graph")?;
    graph.output = parameters(step)
        .map(|slot| {
            let mut output = graph.output.iter().find(|o| o.name() == slot.output).cloned().unwrap_or_default();
            output.name.clone_from(&slot.gradient);
            output
        })
        .collect();
    Ok(Model::from_proto(proto)?)
}

impl fmt::Display for ExportResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trains(c) => {
                let Said { ours, pytorch, weight, weights, missing, unknown } = &c.said;
                write!(
                    f,
                    "{ours:.1e} beside {pytorch:.1e} ({weight}); {} of {weights} weights",
                    weights - missing.len()
                )?;
                if !missing.is_empty() {
                    write!(f, ", not {}", missing.join(", "))?;
                }
                if !unknown.is_empty() {
                    write!(f, "; and {}", unknown.join(", "))?;
                }
                Ok(())
            }
            Self::Refused(reason) => write!(f, "refused: {reason}"),
            Self::NotExported(reason) => write!(f, "not exported: {reason}"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Networks with random weights, exported by PyTorch {} with a free batch size; gradients by stock ONNX\n\
             Runtime. Errors are the worst relative error of any weight against PyTorch in double precision (weights\n\
             without a gradient, such as biases in front of a normalisation, left out). A Relu that rounding tips over zero\n\
             shifts every gradient before it, PyTorch's in single precision as well as ours: each weight counts with the best\n\
             of two to seven batches, the same ones for both. The newest exporter merges\n\
             normalisations into convolutions unless it is told `optimize=False`; networks that have any are exported so.\n",
            self.pytorch
        )?;
        writeln!(
            f,
            "| network | exporter | kinds of operators | nodes | nodes of the step | weights trained | ours | PyTorch f32 \
             | ours / PyTorch |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|---|---|")?;
        for Row { network, exporter, outcome } in &self.rows {
            write!(f, "| {network} | {exporter} |")?;
            match outcome {
                ExportResult::Trains(c) => {
                    let Said { ours, pytorch, weights, missing, .. } = &c.said;
                    let ratio = ours / pytorch;
                    let there = weights - missing.len();
                    write!(f, " {} | {} | {} | {there} of {weights} |", c.operators, c.nodes, c.step_nodes)?;
                    writeln!(f, " {ours:.1e} | {pytorch:.1e} | {ratio:.2} |")?;
                }
                other => writeln!(f, " {other} | | | | | | |")?,
            }
        }
        let unknown = self.rows.iter().filter_map(|row| match &row.outcome {
            ExportResult::Trains(c) if !c.said.unknown.is_empty() => {
                Some(format!("{} ({}): {}", row.network, row.exporter, c.said.unknown.join(", ")))
            }
            _ => None,
        });
        let unknown: Vec<String> = unknown.collect();
        if !unknown.is_empty() {
            writeln!(f, "\nTrained besides, though PyTorch doesn't: {}.", unknown.join("; "))?;
        }
        Ok(())
    }
}
