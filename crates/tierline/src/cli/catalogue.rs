//! `tierline model add | ls | show | rm`: the models of a site.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use tierline_daemon::duties::catalogue::SERVICE_FILE;
use tierline_daemon::golden::{self, TOLERANCE_DEFAULT};
use tierline_daemon::models::{self, Manifest, PlacedExits};
use tierline_graph::exits::Exit;
use tierline_plan::Service;
use tierline_proto::Digest;
use tierline_proto::v1::local_client::LocalClient;
use tierline_proto::v1::{
    Empty, InputShape, ModelAddChunk, ModelAddHeader, ModelAddReply, ModelEntry, ModelFile, ModelRemoveRequest,
    ModelRenameRequest, ModelShowRequest, ModelState, ServiceInfo, model_add_chunk,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::{Global, args, client, engines, infer, versions};
use crate::output::{self, CommandResult, ExitCode, ExitWith};

#[derive(Debug, clap::Args)]
pub struct Add {
    #[command(flatten)]
    given: Given,
    /// Point the name at this model when it points at another, or at this one measured at other sizes
    #[arg(long)]
    replace: bool,
}

/// A model, and how it is measured and checked.
#[derive(Debug, clap::Args)]
pub struct Given {
    /// The ONNX file; or, to add, a TOML file that makes one service of several models
    model: PathBuf,
    /// The name it will be asked for by
    #[arg(long)]
    name: String,
    /// Sizes to profile for, where inputs have free axes: NAME=1,3,640,640
    #[arg(long = "shape", value_name = "NAME=DIMS")]
    shapes: Vec<String>,
    /// A real input to profile with: NAME=@FILE.npy
    #[arg(long = "sample", value_name = "NAME=@FILE")]
    samples: Vec<String>,
    /// An input of which the outputs are known: NAME=@FILE.npy. Every node checks them before it offers the model
    #[arg(long = "golden", value_name = "NAME=@FILE", requires = "expected")]
    golden: Vec<String>,
    /// An output that is expected of the golden inputs: NAME=@FILE.npy
    #[arg(long = "expect", value_name = "NAME=@FILE", id = "expected", requires = "golden")]
    expected: Vec<String>,
    /// How far an output may be from what is expected, as a part of its largest value
    #[arg(long, value_name = "X", default_value_t = TOLERANCE_DEFAULT, requires = "golden")]
    tolerance: f64,
    /// Consider at most so many cuts: fewer are measured sooner
    #[arg(long, default_value = "24", value_name = "N")]
    cuts: u32,
    /// Time to wait until every node that is connected knows the model; 0 s doesn't wait
    #[arg(long, default_value = "10 s", value_parser = infer::parse_time, value_name = "TIME")]
    wait: Duration,
    /// The node: https://host:port or unix:PATH
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct Named {
    /// The model's name or digest
    model: String,
    /// The node: https://host:port or unix:PATH
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct Ls {
    /// List the versions of this model, as the cloud keeps them
    model: Option<String>,
    /// The node: https://host:port or unix:PATH
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
}

/// A model that was added.
#[derive(Serialize)]
struct Added {
    #[serde(flatten)]
    model: ModelLine,
    /// Nodes that are connected, and know it by this name.
    known_by: usize,
    /// Those that are connected and didn't within the time.
    not_yet: Vec<String>,
}

/// Between two looks at who knows a model.
const LOOK: Duration = Duration::from_millis(100);

/// Waits until every node that is connected knows the same models as this
/// one; how many do, and the names of those that don't.
async fn spread(node: &mut LocalClient<Channel>, wait: Duration) -> CommandResult<(usize, Vec<String>)> {
    let begun = Instant::now();
    loop {
        let nodes = node.nodes(Empty {}).await.map_err(|s| client::refused(&s))?.into_inner().nodes;
        let own = nodes.first().map_or(0, |own| own.catalogue);
        // Older nodes don't tell, and count as those that don't know it yet.
        let here = nodes.into_iter().filter(|n| matches!(n.state.as_str(), "connected" | "doubled"));
        let (known, late): (Vec<_>, Vec<_>) = here.partition(|n| n.catalogue == own);
        if late.is_empty() || begun.elapsed() >= wait {
            return Ok((known.len(), late.into_iter().map(|n| n.node_name).collect()));
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[derive(Serialize)]
struct ModelLine {
    name: String,
    version: u64,
    digest: String,
    manifest: String,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    profiled: Option<bool>,
}

fn line(entry: ModelEntry) -> ModelLine {
    let hex = |b: &Bytes| Digest::try_from(b).map_or_else(|_| String::new(), |d| d.to_string());
    ModelLine {
        digest: hex(&entry.model),
        manifest: hex(&entry.manifest),
        name: entry.name,
        // Nodes from before versions know the first.
        version: entry.version.max(1),
        bytes: entry.bytes,
        state: None,
        profiled: None,
    }
}

/// A service that was added.
#[derive(Serialize)]
struct ServiceAdded {
    #[serde(flatten)]
    service: ServiceLine,
    /// Nodes that are connected, and know it by this name.
    known_by: usize,
    /// Those that are connected and didn't within the time.
    not_yet: Vec<String>,
}

#[derive(Serialize)]
struct ServiceLine {
    name: String,
    digest: String,
    kind: String,
    members: Vec<String>,
}

/// A version that is registered: nobody below knows it yet.
fn pushed(global: &Global, model: &ModelLine) -> CommandResult {
    global.output().data(model, |m| {
        format!("{}@{}  {}  {}", m.name, m.version, infer::short(&m.digest), output::bytes(m.bytes))
    })?;
    let (name, version) = (&model.name, model.version);
    global
        .output()
        .say(format!("it runs nowhere yet: `tierline rollout start {name} --to {version}` brings it to the nodes"));
    Ok(())
}

/// How many nodes know what was added, in words; nothing for a node alone.
fn said(known_by: usize, not_yet: &[String], next: &str) -> Option<String> {
    match (known_by + not_yet.len(), not_yet.is_empty()) {
        (1, _) => None,
        (all, true) => Some(format!("all {all} nodes know it{next}")),
        (all, false) => Some(format!("{known_by} of {all} nodes know it; not yet: {}", not_yet.join(", "))),
    }
}

fn add_service(global: &Global, args: &Given, replace: bool) -> CommandResult {
    if !args.shapes.is_empty() || !args.samples.is_empty() || !args.golden.is_empty() {
        return Err(super::usage(
            "--shape, --sample and --golden are for models; a service takes those of its members",
        ));
    }
    let text = std::fs::read_to_string(&args.model)
        .map_err(|e| anyhow::anyhow!("{}: {e}", args.model.display()))
        .exit_with(ExitCode::Usage)?;
    // A broken file is reported here, before anything is sent.
    let service = Service::parse(&text)
        .map_err(|e| anyhow::anyhow!("{}: {e}", args.model.display()))
        .exit_with(ExitCode::Configuration)?;
    let header = ModelAddHeader {
        name: args.name.clone(),
        files: vec![ModelFile { name: SERVICE_FILE.into(), length: text.len() as u64 }],
        replace,
        ..ModelAddHeader::default()
    };
    super::block_on(async {
        let mut node = client::connect(global, args.endpoint.as_deref()).await?;
        let bodies = [model_add_chunk::Body::Header(header), model_add_chunk::Body::Data(text.into())];
        let chunks = bodies.map(|body| ModelAddChunk { body: Some(body) });
        let reply = node.model_add(tokio_stream::iter(chunks)).await.map_err(|s| client::refused(&s))?.into_inner();
        let entry = reply.service.unwrap_or_default();
        let (known_by, not_yet) = spread(&mut node, args.wait).await?;
        let said = said(known_by, &not_yet, "");
        let service = ServiceLine {
            name: entry.name,
            digest: Digest::try_from(&entry.document).map_or_else(|_| String::new(), |d| d.to_string()),
            kind: service.kind.word().to_owned(),
            members: service.members.iter().map(|member| member.model.clone()).collect(),
        };
        global.output().data(&ServiceAdded { service, known_by, not_yet }, |added| {
            let s = &added.service;
            format!("{}  {}  {} of {}", s.name, infer::short(&s.digest), s.kind, s.members.join(", "))
        })?;
        if let Some(said) = said {
            global.output().say(said);
        }
        Ok(())
    })
}

/// Gives a node a model: its header's files, one after another.
pub async fn send(
    node: &mut LocalClient<Channel>,
    header: ModelAddHeader,
    parts: Vec<Bytes>,
) -> CommandResult<ModelAddReply> {
    let (send, receive) = tokio::sync::mpsc::channel(8);
    tokio::spawn(async move {
        let data = parts.into_iter().flat_map(infer::split).map(model_add_chunk::Body::Data);
        for body in std::iter::once(model_add_chunk::Body::Header(header)).chain(data) {
            if send.send(ModelAddChunk { body: Some(body) }).await.is_err() {
                return;
            }
        }
    });
    Ok(node.model_add(ReceiverStream::new(receive)).await.map_err(|s| client::refused(&s))?.into_inner())
}

pub fn add(global: &Global, args: &Add) -> CommandResult {
    if args.given.model.extension().is_some_and(|extension| extension == "toml") {
        return add_service(global, &args.given, args.replace);
    }
    give(global, &args.given, ModelAddHeader { replace: args.replace, ..ModelAddHeader::default() })
}

/// Gives the site a model, as `header` says.
pub fn give(global: &Global, args: &Given, header: ModelAddHeader) -> CommandResult {
    let shapes = args::shapes(&args.shapes)?;
    let samples = args::tensors(&args.samples)?;
    // A broken file is reported here, before anything is sent.
    let model = engines::load(global, &args.model)?;
    let bytes = Bytes::from(model.to_bytes()?);
    let mut files = vec![ModelFile { name: "model.onnx".into(), length: bytes.len() as u64 }];
    let mut parts = vec![bytes];
    let mut sample_files = Vec::new();
    for (name, tensor) in &samples {
        let npy = Bytes::from(tierline_codec::npy::write(tensor)?);
        sample_files.push(name.clone());
        files.push(ModelFile { name: format!("sample/{name}"), length: npy.len() as u64 });
        parts.push(npy);
    }
    for (start, given) in [(golden::INPUT, &args.golden), (golden::OUTPUT, &args.expected)] {
        for (name, tensor) in args::tensors(given)? {
            let npy = Bytes::from(tierline_codec::npy::write(&tensor)?);
            files.push(ModelFile { name: format!("{start}{name}"), length: npy.len() as u64 });
            parts.push(npy);
        }
    }
    let header = ModelAddHeader {
        name: args.name.clone(),
        golden_tolerance: if args.golden.is_empty() { 0.0 } else { args.tolerance },
        files,
        shapes: shapes.into_iter().map(|(name, shape)| InputShape { name, shape }).collect(),
        cuts_max: args.cuts.max(1),
        ..header
    };
    let push = header.push;
    super::block_on(async {
        let mut node = client::connect(global, args.endpoint.as_deref()).await?;
        let reply = send(&mut node, header, parts).await?;
        let model = line(reply.entry.unwrap_or_default());
        if push {
            return pushed(global, &model);
        }
        let (known_by, not_yet) = spread(&mut node, args.wait).await?;
        let said = said(known_by, &not_yet, ", and measure it next");
        global.output().data(&Added { model, known_by, not_yet }, |added| {
            let m = &added.model;
            format!("{}  {}  {}", m.name, infer::short(&m.digest), output::bytes(m.bytes))
        })?;
        if let Some(said) = said {
            global.output().say(said);
        }
        Ok(())
    })
}

#[derive(Serialize)]
struct Models {
    models: Vec<ModelLine>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    services: Vec<ServiceLine>,
}

pub fn ls(global: &Global, args: &Ls) -> CommandResult {
    super::block_on(async {
        let mut node = client::connect(global, args.endpoint.as_deref()).await?;
        if let Some(model) = &args.model {
            return versions::list(global, &mut node, model).await;
        }
        let reply = node.model_list(Empty {}).await.map_err(|s| client::refused(&s))?.into_inner();
        let models = reply
            .models
            .into_iter()
            .map(|m| {
                let state = match m.state() {
                    ModelState::Ready => "ready",
                    ModelState::Fetching => "fetching",
                    ModelState::Fetchable => "fetchable",
                    ModelState::Refused => "refused",
                    ModelState::Unspecified => "unknown",
                };
                ModelLine { state: Some(state), profiled: Some(m.profiled), ..line(m.entry.unwrap_or_default()) }
            })
            .collect();
        let service = |info: ServiceInfo| {
            let entry = info.entry.unwrap_or_default();
            ServiceLine {
                name: entry.name,
                digest: Digest::try_from(&entry.document).map_or_else(|_| String::new(), |d| d.to_string()),
                kind: info.kind,
                members: info.members,
            }
        };
        let services = reply.services.into_iter().map(service).collect();
        global.output().data(&Models { models, services }, |l| {
            let rows: Vec<Vec<String>> = l
                .models
                .iter()
                .map(|m| {
                    let profiled = if m.profiled == Some(true) { "yes" } else { "no" };
                    vec![
                        m.name.clone(),
                        m.version.to_string(),
                        m.digest.chars().take(12).collect(),
                        output::bytes(m.bytes),
                        m.state.unwrap_or("").into(),
                        profiled.into(),
                    ]
                })
                .collect();
            let mut text = output::table(&["name", "version", "digest", "bytes", "state", "profiled"], &rows);
            let rows: Vec<Vec<String>> = l
                .services
                .iter()
                .map(|s| {
                    vec![s.name.clone(), s.digest.chars().take(12).collect(), s.kind.clone(), s.members.join(", ")]
                })
                .collect();
            if !rows.is_empty() {
                text.push('\n');
                text.push_str(&output::table(&["service", "digest", "kind", "members"], &rows));
            }
            text
        })
    })
}

pub fn show(global: &Global, args: &Named) -> CommandResult {
    super::block_on(async {
        let mut node = client::connect(global, args.endpoint.as_deref()).await?;
        let reply = node
            .model_show(ModelShowRequest { model: args.model.clone() })
            .await
            .map_err(|s| client::refused(&s))?
            .into_inner();
        if !reply.service_json.is_empty() {
            let service: Service = serde_json::from_str(&reply.service_json)?;
            let text = service.write()?;
            return global.output().data(&service, |_| text);
        }
        let manifest: Manifest = serde_json::from_str(&reply.manifest_json)?;
        global.output().data(&manifest, |m| {
            let mut text = format!("{}@{}  {}\n", m.name, m.version, m.digest);
            for (what, values) in [("input", &m.inputs), ("output", &m.outputs)] {
                for v in values {
                    let dtype = v.dtype.map_or("not a tensor", tierline_graph::DataType::numpy);
                    let shape = models::shape_text(v.shape.as_ref());
                    text.push_str(&format!("{what:<7} {}  {dtype} {shape}\n", v.name));
                }
            }
            for (name, shape) in &m.input_shapes {
                text.push_str(&format!("profiled at {name} {shape:?}\n"));
            }
            if let Some(bottleneck) = &m.bottleneck {
                text.push_str(&format!("stands for {}: {bottleneck}\n", infer::short(&bottleneck.stands_for)));
            }
            let macs = m.macs.map_or("unknown".into(), output::count);
            text.push_str(&format!(
                "{} nodes, {} parameters, {macs} multiply-adds, {} candidate cuts\n",
                m.nodes,
                output::count(m.parameters),
                m.cuts.len()
            ));
            if let Some(golden) = &m.golden {
                let of: Vec<String> = golden.outputs.keys().cloned().collect();
                text.push_str(&format!(
                    "golden inputs, checked on every node: {} within {}\n",
                    args::join_names(&of),
                    golden.tolerance
                ));
            }
            if let Some(exits) = &m.exits {
                text.push('\n');
                text.push_str(&exits_text(exits, &m.cuts));
            }
            text
        })
    })
}

/// A model's early exits: where they are, when they answer, and what that is
/// worth as far as it is calibrated.
fn exits_text(exits: &PlacedExits, cuts: &[Vec<String>]) -> String {
    let percent = |share: f64| format!("{:.2}%", 100.0 * share);
    let point = exits.point();
    let row = |(index, (exit, &cut)): (usize, (&Exit, &usize))| {
        vec![
            (index + 1).to_string(),
            exit.outputs.get(&exits.judged).cloned().unwrap_or_default(),
            cuts.get(cut).map_or_else(|| "too late to spare anything".to_owned(), |cut| args::join_names(cut)),
            exit.rule.map_or("none".to_owned(), |r| format!("{} of at least {:.4}", r.criterion.name(), r.threshold)),
            point.and_then(|point| point.leave.get(index).copied()).map_or("?".to_owned(), percent),
        ]
    };
    let rows: Vec<Vec<String>> = exits.stated.exits.iter().zip(&exits.cuts).enumerate().map(row).collect();
    let mut text = output::table(&["exit", "output", "at the cut", "answers when", "leave"], &rows);
    match (point, &exits.stated.calibration) {
        (Some(point), Some(by)) => text.push_str(&format!(
            "calibrated on {}, {} examples: accuracy {} ({} at the end alone), {} of the multiply-adds\n",
            by.data,
            by.examples,
            percent(point.accuracy),
            percent(by.accuracy),
            percent(point.macs / by.macs.max(1.0))
        )),
        _ => text.push_str("not calibrated for these thresholds: what leaves, traffic shows\n"),
    }
    text
}

#[derive(Debug, clap::Args)]
pub struct Rename {
    /// The model's name or digest
    model: String,
    /// Its new name
    name: String,
    /// The node: https://host:port or unix:PATH
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
}

pub fn rename(global: &Global, args: &Rename) -> CommandResult {
    super::block_on(async {
        let mut node = client::connect(global, args.endpoint.as_deref()).await?;
        let request = ModelRenameRequest { model: args.model.clone(), name: args.name.clone() };
        node.model_rename(request).await.map_err(|s| client::refused(&s))?;
        global.output().say(format!("{} is called {} from now on; nothing is measured again", args.model, args.name));
        Ok(())
    })
}

pub fn rm(global: &Global, args: &Named) -> CommandResult {
    super::block_on(async {
        let mut node = client::connect(global, args.endpoint.as_deref()).await?;
        node.model_remove(ModelRemoveRequest { model: args.model.clone() }).await.map_err(|s| client::refused(&s))?;
        global.output().say(format!("{} is no longer known by that name", args.model));
        Ok(())
    })
}
