//! `tierline examples`: what services kept to train on.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use tierline_daemon::examples::{self, Example};
use tierline_graph::{Elements, Tensor};
use tierline_proto::v1::local_client::LocalClient;
use tierline_proto::v1::{ExampleInfo, ExampleListRequest, ExampleRequest};
use tonic::transport::Channel;

use super::{Global, block_on, client, usage};
use crate::output::{self, CommandError, CommandResult, ExitCode, ExitWith};

/// Bytes of one example that are taken from a node.
const EXAMPLE_BYTES_MAX: u64 = 1 << 30;

#[derive(Debug, clap::Subcommand)]
pub enum ExamplesVerb {
    /// List the examples that a node keeps
    Ls(Of),
    /// Print what an example holds
    Show(One),
    /// Write examples as a folder that `tierline data add` takes
    Export(Export),
    /// Remove examples
    Rm(Rm),
}

#[derive(Debug, clap::Args)]
pub struct Of {
    /// Those of this service; all without one
    service: Option<String>,
    /// The node: https://host:port or unix:PATH
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct One {
    /// Its number, as `examples ls` prints it
    example: u64,
    /// The node: https://host:port or unix:PATH
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct Export {
    /// The service
    service: String,
    /// Folder for features.npy and labels.npy
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// The input that is the features, where there are several; of examples without inputs, the output
    #[arg(long, value_name = "NAME")]
    tensor: Option<String>,
    /// The node: https://host:port or unix:PATH
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct Rm {
    /// Their numbers, as `examples ls` prints them
    #[arg(required_unless_present = "service")]
    examples: Vec<u64>,
    /// All of this service
    #[arg(long, value_name = "NAME", conflicts_with = "examples")]
    service: Option<String>,
    /// The node: https://host:port or unix:PATH
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
}

pub fn examples(global: &Global, verb: ExamplesVerb) -> CommandResult {
    match verb {
        ExamplesVerb::Ls(args) => ls(global, &args),
        ExamplesVerb::Show(args) => show(global, &args),
        ExamplesVerb::Export(args) => export(global, &args),
        ExamplesVerb::Rm(args) => rm(global, &args),
    }
}

#[derive(Serialize)]
struct Listed {
    examples: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    example: u64,
    service: String,
    node: String,
    why: String,
    policy: String,
    bytes: u64,
    time_ms: u64,
}

async fn list(node: &mut LocalClient<Channel>, service: &str) -> CommandResult<Vec<ExampleInfo>> {
    let request = ExampleListRequest { service: service.to_owned(), examples: Vec::new() };
    Ok(node.example_list(request).await.map_err(|s| client::refused(&s))?.into_inner().examples)
}

fn ls(global: &Global, args: &Of) -> CommandResult {
    block_on(async {
        let mut node = client::connect(global, args.endpoint.as_deref()).await?;
        let found = list(&mut node, args.service.as_deref().unwrap_or_default()).await?;
        let line = |info: ExampleInfo| Line {
            example: info.example,
            service: info.service,
            node: info.node,
            why: info.why,
            policy: info.policy,
            bytes: info.bytes,
            time_ms: info.time_ms,
        };
        global.output().data(&Listed { examples: found.into_iter().map(line).collect() }, |l| {
            let row = |line: &Line| {
                let bytes = output::bytes(line.bytes);
                vec![line.example.to_string(), line.service.clone(), line.node.clone(), line.why.clone(), bytes]
            };
            output::table(
                &["example", "service", "node", "why", "bytes"],
                &l.examples.iter().map(row).collect::<Vec<_>>(),
            )
        })
    })
}

async fn fetch(node: &mut LocalClient<Channel>, example: u64) -> CommandResult<Example> {
    let mut stream =
        node.example_fetch(ExampleRequest { example }).await.map_err(|s| client::refused(&s))?.into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.message().await.map_err(|s| client::refused(&s))? {
        if chunk.total > EXAMPLE_BYTES_MAX || chunk.offset != bytes.len() as u64 {
            return Err(CommandError::message(ExitCode::Failure, format!("example {example} does not come whole")));
        }
        bytes.extend_from_slice(&chunk.data);
    }
    examples::read(&bytes).map_err(|e| CommandError::message(ExitCode::Failure, format!("example {example}: {e}")))
}

#[derive(Serialize)]
struct Shown {
    service: String,
    node: String,
    why: String,
    sureness: f64,
    /// As a later model says; empty where none answered.
    labels: Vec<u64>,
    /// As the first model says.
    guesses: Vec<u64>,
    tensors: Vec<Held>,
}

#[derive(Serialize)]
struct Held {
    /// Empty: an input.
    member: String,
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
}

fn show(global: &Global, args: &One) -> CommandResult {
    block_on(async {
        let mut node = client::connect(global, args.endpoint.as_deref()).await?;
        let Example { head, tensors } = fetch(&mut node, args.example).await?;
        let held = |(part, tensor): &(examples::Part, Tensor)| Held {
            member: part.member.clone(),
            name: part.name.clone(),
            dtype: tensor.dtype().numpy(),
            shape: tensor.shape().to_vec(),
        };
        let shown = Shown {
            service: head.service,
            node: head.node,
            why: head.why,
            sureness: head.sureness,
            labels: head.labels,
            guesses: head.guesses,
            tensors: tensors.iter().map(held).collect(),
        };
        global.output().data(&shown, |s| {
            let said = |classes: &[u64]| match classes {
                [] => "nothing".to_owned(),
                all => all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            };
            let mut text = format!("{} on {}: {}, {:.3} sure\n", s.service, s.node, s.why, s.sureness);
            text.push_str(&format!("first model   {}\nlater model   {}\n", said(&s.guesses), said(&s.labels)));
            for held in &s.tensors {
                let of = if held.member.is_empty() { "input".to_owned() } else { format!("of {}", held.member) };
                text.push_str(&format!("{of}  {}  {} {:?}\n", held.name, held.dtype, held.shape));
            }
            text
        })
    })
}

#[derive(Serialize)]
struct Exported {
    folder: String,
    examples: usize,
    shape: Vec<usize>,
    /// Without a later model's answer, or of another shape.
    left_out: usize,
}

fn export(global: &Global, args: &Export) -> CommandResult {
    block_on(async {
        let mut node = client::connect(global, args.endpoint.as_deref()).await?;
        let found = list(&mut node, &args.service).await?;
        let (mut features, mut labels, mut left_out) = (Features::default(), Vec::new(), 0);
        for info in &found {
            let example = fetch(&mut node, info.example).await?;
            if features.take(&example, args.tensor.as_deref())? {
                labels.extend(example.head.labels.iter().map(|label| *label as i64));
            } else {
                left_out += 1;
            }
        }
        let Some(features) = features.tensor()? else {
            let text = format!("none of {} examples of `{}` has a later model's answer", found.len(), args.service);
            return Err(CommandError::message(ExitCode::Failure, text).hint("tierline examples ls"));
        };
        let rows = labels.len();
        let labels = Tensor::new(vec![rows], Elements::I64(labels))?;
        std::fs::create_dir_all(&args.out)
            .map_err(|e| anyhow::anyhow!("cannot create {}: {e}", args.out.display()))
            .exit_with(ExitCode::Failure)?;
        std::fs::write(args.out.join("features.npy"), tierline_codec::npy::write(&features)?)?;
        std::fs::write(args.out.join("labels.npy"), tierline_codec::npy::write(&labels)?)?;
        let shape = features.shape().to_vec();
        let folder = args.out.display().to_string();
        global.output().data(&Exported { folder, examples: rows, shape, left_out }, |e| {
            format!("{}  {} examples of shape {:?}", e.folder, e.examples, &e.shape[1..])
        })?;
        if left_out > 0 {
            global
                .output()
                .say(format!("{left_out} have no later model's answer, or another shape, and were left out"));
        }
        Ok(())
    })
}

/// Features of examples, put together.
#[derive(Default)]
struct Features {
    /// Name, type and shape behind the batch, of the first.
    like: Option<(String, tierline_graph::DataType, Vec<usize>)>,
    rows: usize,
    bytes: Vec<u8>,
}

impl Features {
    /// Takes an example's; whether it has a label for each, and fits the others.
    fn take(&mut self, example: &Example, wanted: Option<&str>) -> CommandResult<bool> {
        let first =
            example.tensors.iter().find(|(part, _)| !part.member.is_empty()).map(|(part, _)| part.member.clone());
        let has_inputs = example.tensors.iter().any(|(part, _)| part.member.is_empty());
        let of = if has_inputs { String::new() } else { first.unwrap_or_default() };
        let all: BTreeMap<&str, &Tensor> = example
            .tensors
            .iter()
            .filter(|(part, _)| part.member == of)
            .map(|(part, t)| (part.name.as_str(), t))
            .collect();
        let name = match (wanted, all.len()) {
            (Some(name), _) => name,
            (None, 1) => all.keys().next().copied().unwrap_or_default(),
            _ => {
                let names: Vec<&str> = all.keys().copied().collect();
                return Err(usage(format!("say which is the features: --tensor {}", names.join(" or --tensor "))));
            }
        };
        let Some(tensor) = all.get(name) else {
            let names: Vec<&str> = all.keys().copied().collect();
            return Err(usage(format!("the examples have no `{name}`; they have {}", names.join(", "))));
        };
        let [rows, rest @ ..] = tensor.shape() else { return Ok(false) };
        if example.head.labels.len() != *rows || *rows == 0 {
            return Ok(false);
        }
        let own = (name.to_owned(), tensor.dtype(), rest.to_vec());
        let like = self.like.get_or_insert_with(|| own.clone());
        let Some(bytes) = tensor.elements().as_bytes().filter(|_| *like == own) else { return Ok(false) };
        self.bytes.extend_from_slice(bytes);
        self.rows += rows;
        Ok(true)
    }

    fn tensor(self) -> CommandResult<Option<Tensor>> {
        let Some((_, dtype, rest)) = self.like.filter(|_| self.rows > 0) else { return Ok(None) };
        let shape: Vec<usize> = std::iter::once(self.rows).chain(rest).collect();
        Ok(Some(Tensor::from_bytes(dtype, shape, &self.bytes)?))
    }
}

fn rm(global: &Global, args: &Rm) -> CommandResult {
    block_on(async {
        let mut node = client::connect(global, args.endpoint.as_deref()).await?;
        let request =
            ExampleListRequest { service: args.service.clone().unwrap_or_default(), examples: args.examples.clone() };
        let removed = node.example_remove(request).await.map_err(|s| client::refused(&s))?.into_inner().removed;
        global.output().say(format!("{removed} examples removed"));
        Ok(())
    })
}
