//! `tierline infer`: one request, or many, to a node.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use tierline_daemon::duties::inference::wire;
use tierline_graph::Tensor;
use tierline_proto::limits::CHUNK_BYTES;
use tierline_proto::v1::local_client::LocalClient;
use tierline_proto::v1::{
    Boundary, Code, InferChunk, InferHeader, InferReply, Placement, Route, StageTiming, infer_chunk,
};
use tierline_proto::{Digest, frame};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::{Global, args, client};
use crate::output::{self, CommandError, CommandResult, ExitCode};

/// The verb's arguments.
#[derive(Debug, clap::Args)]
pub struct Infer {
    /// The model's name or digest
    #[arg(long)]
    model: String,
    /// An input: NAME=@FILE.npy (repeat for further inputs)
    #[arg(long = "input", value_name = "NAME=@FILE", required = true)]
    inputs: Vec<String>,
    /// The node to ask: https://host:port or unix:PATH
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Time to answer in, as in `500 ms`; a late plan is answered from nearer
    #[arg(long, value_name = "TIME", default_value = "10 s", value_parser = parse_time)]
    deadline: Duration,
    /// Run the plan in force, or everything on one tier
    #[arg(long, value_enum, default_value = "plan")]
    placement: PlacementArg,
    /// Hand on at these segments instead: 3,7 runs 0..3 here, 3..7 one tier up, the rest two up
    #[arg(long, value_name = "S1[,S2...]", value_delimiter = ',', conflicts_with = "placement")]
    split: Vec<u32>,
    /// Let this early exit answer at the latest, from 1; 0: none of them, but the model's end
    #[arg(long, value_name = "N")]
    exit: Option<u32>,
    /// Send a second copy another way once the first has taken longer than this share of recent answers did
    #[arg(
        long,
        value_name = "SHARE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "0.95",
        value_parser = share
    )]
    hedge: Option<f64>,
    /// Write each output as FOLDER/NAME.npy; in NAME, what files can't have is `%` and two digits
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Ask so many times and report each answer
    #[arg(long, default_value = "1")]
    repeat: u32,
}

/// Placements by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum PlacementArg {
    /// The plan in force
    Plan,
    /// All on the node that is asked
    Here,
    /// All on the edge
    Edge,
    /// All on the cloud
    Cloud,
}

impl From<PlacementArg> for Placement {
    fn from(arg: PlacementArg) -> Self {
        match arg {
            PlacementArg::Plan => Self::Plan,
            PlacementArg::Here => Self::Here,
            PlacementArg::Edge => Self::Edge,
            PlacementArg::Cloud => Self::Cloud,
        }
    }
}

/// A share between 0 and 1.
fn share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().ok().filter(|share| *share > 0.0 && *share < 1.0);
    share.ok_or_else(|| format!("`{text}` is no share between 0 and 1, as in 0.95"))
}

/// `500 ms`, `2 s`, `1.5s`, `2m`, `1h`, `90d` as a duration.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| format!("`{text}` is no time; write `500 ms`, `2 s` or `1 h`"))?;
    let seconds = match unit.trim() {
        "us" => 1e-6,
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        other => return Err(format!("`{other}` is no unit of time; use us, ms, s, min, h or d")),
    };
    Duration::try_from_secs_f64(number * seconds).map_err(|e| e.to_string())
}

/// One answer as it is printed.
#[derive(Debug, Serialize)]
pub struct Answered {
    /// The model asked for.
    pub model: String,
    /// Digest of the model that answered; empty where an older node answered.
    pub digest: String,
    /// Its version; none for a service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Whether it came another way than planned.
    pub degraded: bool,
    /// The early exit that answered, from 1; 0: the model's end.
    pub exit: u32,
    /// Why, when degraded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Of a service: the models that the answer is of.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub member: String,
    /// From the caller's first byte to the last, milliseconds.
    pub latency_ms: f64,
    /// The same as the entry node saw it.
    pub node_ms: f64,
    /// What the plan predicted; null without a profile.
    pub predicted_ms: Option<f64>,
    /// The plan in force.
    pub plan: String,
    /// Where which segments ran.
    pub stages: Vec<Stage>,
    /// Outputs.
    pub outputs: Vec<OutputLine>,
}

/// One stage of an answer.
#[derive(Debug, Serialize)]
pub struct Stage {
    node: String,
    segments: [u32; 2],
    queue_ms: f64,
    decode_ms: f64,
    compute_ms: f64,
    encode_ms: f64,
    upstream_ms: f64,
    sent_bytes: u64,
}

/// One output tensor.
#[derive(Debug, Serialize)]
pub struct OutputLine {
    /// Its name.
    pub name: String,
    /// Element type, as NumPy names it.
    pub dtype: &'static str,
    /// Shape.
    pub shape: Vec<usize>,
    /// The file it was written to, under `--out`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The values, when there are few and no file was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<serde_json::Value>,
}

/// Values printed at most when no file is asked for.
const VALUES_PRINTED_MAX: usize = 1_024;

pub(super) fn infer(global: &Global, args: &Infer) -> CommandResult {
    let inputs = args::tensors(&args.inputs)?;
    super::block_on(async {
        let mut node = client::connect(global, args.endpoint.as_deref()).await?;
        let wanted = if args.split.is_empty() { Wanted::at(args.placement.into()) } else { Wanted::split(&args.split) };
        let wanted = Wanted { exit: args.exit, hedge: args.hedge.unwrap_or(0.0), ..wanted };
        for _ in 0..args.repeat.max(1) {
            let answer = ask(&mut node, &args.model, &inputs, args.deadline, &wanted).await?;
            let line = line(answer, args)?;
            if args.repeat > 1 && global.json {
                global.output().event(&line)?;
            } else {
                global.output().data(&line, text)?;
            }
        }
        Ok(())
    })
}

/// An answer with its outputs.
pub struct Answer {
    /// The entry node's reply.
    pub reply: InferReply,
    /// Outputs by name.
    pub outputs: Vec<(String, Tensor)>,
    /// Time the caller waited.
    pub latency: Duration,
}

/// Where a request is to run.
#[derive(Debug, Clone)]
pub struct Wanted {
    placement: Placement,
    route: Option<Route>,
    exit: Option<u32>,
    /// 0: no second copy.
    hedge: f64,
}

impl Wanted {
    /// By the plan, or all on one tier.
    #[must_use]
    pub fn at(placement: Placement) -> Self {
        Self { placement, route: None, exit: None, hedge: 0.0 }
    }

    /// Handed on at these segments, nearest tier first.
    #[must_use]
    pub fn split(places: &[u32]) -> Self {
        let boundary = |place: &u32| Boundary { cut: place.checked_sub(1), tensors: Vec::new() };
        let route = Route { boundaries: places.iter().map(boundary).collect(), ..Route::default() };
        Self { placement: Placement::Fixed, route: Some(route), exit: None, hedge: 0.0 }
    }
}

/// Sends one request.
///
/// # Errors
/// When the node refuses it or can't be reached.
pub async fn ask(
    node: &mut LocalClient<Channel>,
    model: &str,
    inputs: &[(String, Tensor)],
    deadline: Duration,
    wanted: &Wanted,
) -> CommandResult<Answer> {
    let packed = wire::pack(inputs, |_| wire::raw().name()).map_err(|f| CommandError::of(&f))?;
    let header = InferHeader {
        model: model.to_owned(),
        tensors: frame::declare(&packed.tensors),
        deadline_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX).max(1),
        placement: wanted.placement.into(),
        route: wanted.route.clone(),
        exit: wanted.exit,
        hedge: wanted.hedge,
        ..InferHeader::default()
    };
    let bodies: Vec<infer_chunk::Body> = std::iter::once(infer_chunk::Body::Header(header))
        .chain(frame::chunks(packed.tensors, CHUNK_BYTES).map(infer_chunk::Body::Tensor))
        .collect();
    let started = Instant::now();
    let (send, receive) = tokio::sync::mpsc::channel(8);
    tokio::spawn(async move {
        for body in bodies {
            if send.send(InferChunk { body: Some(body) }).await.is_err() {
                return;
            }
        }
    });
    let mut stream = node.infer(ReceiverStream::new(receive)).await.map_err(|s| client::refused(&s))?.into_inner();
    let first = stream.message().await.map_err(|s| client::refused(&s))?;
    let Some(InferChunk { body: Some(infer_chunk::Body::Reply(mut answer)) }) = first else {
        return Err(CommandError::message(ExitCode::Failure, "the node's answer did not begin with a reply"));
    };
    let mut reply = answer.reply.take().unwrap_or_default();
    if let Some(failure) = reply.failure.as_ref().filter(|f| f.code() != Code::Ok) {
        return Err(CommandError::of(failure));
    }
    let declared = std::mem::take(&mut reply.tensors);
    let encoded = wire::collect(&mut stream, declared, |chunk| match chunk.body {
        Some(infer_chunk::Body::Tensor(t)) => Some(t),
        _ => None,
    })
    .await
    .map_err(|f| CommandError::of(&f))?;
    let latency = started.elapsed();
    let (outputs, _) = wire::unpack(&encoded).map_err(|f| CommandError::of(&f))?;
    answer.reply = Some(reply);
    Ok(Answer { reply: answer, outputs, latency })
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

fn line(answer: Answer, args: &Infer) -> CommandResult<Answered> {
    let reply = answer.reply.reply.unwrap_or_default();
    let mut outputs = Vec::new();
    for (name, tensor) in &answer.outputs {
        let file = match &args.out {
            None => None,
            Some(folder) => {
                std::fs::create_dir_all(folder)?;
                // A model may list an output twice; no name ends in `~` and a number.
                let before = outputs.iter().filter(|o: &&OutputLine| o.name == *name).count();
                let again = if before == 0 { String::new() } else { format!("~{}", before + 1) };
                let file = folder.join(format!("{}{again}.npy", output::file_name(name)));
                std::fs::write(&file, tierline_codec::npy::write(tensor)?)?;
                Some(file.display().to_string())
            }
        };
        let data = (file.is_none() && tensor.len() <= VALUES_PRINTED_MAX).then(|| values(tensor));
        outputs.push(OutputLine {
            name: name.clone(),
            dtype: tensor.dtype().numpy(),
            shape: tensor.shape().to_vec(),
            file,
            data,
        });
    }
    let stage = |s: &StageTiming| Stage {
        node: s.node.clone(),
        segments: [s.first_segment, s.last_segment],
        queue_ms: ms(s.queue_ns),
        decode_ms: ms(s.decode_ns),
        compute_ms: ms(s.compute_ns),
        encode_ms: ms(s.encode_ns),
        upstream_ms: ms(s.upstream_ns),
        sent_bytes: s.sent_bytes,
    };
    Ok(Answered {
        model: args.model.clone(),
        digest: Digest::try_from(&answer.reply.model).map_or_else(|_| String::new(), |d| d.to_string()),
        version: (answer.reply.version > 0).then_some(answer.reply.version),
        degraded: reply.degraded.is_some(),
        exit: reply.exit,
        reason: reply.degraded.map(|d| d.reason),
        member: reply.member,
        latency_ms: answer.latency.as_secs_f64() * 1e3,
        node_ms: ms(answer.reply.total_ns),
        predicted_ms: (answer.reply.predicted_ns > 0).then(|| ms(answer.reply.predicted_ns)),
        plan: answer.reply.plan,
        stages: reply.stages.iter().map(stage).collect(),
        outputs,
    })
}

fn values(tensor: &Tensor) -> serde_json::Value {
    use tierline_graph::Elements as E;
    match tensor.elements() {
        E::F32(v) => serde_json::json!(v),
        E::F64(v) => serde_json::json!(v),
        E::F16(v) => serde_json::json!(v.iter().map(|x| x.to_f32()).collect::<Vec<f32>>()),
        E::BF16(v) => serde_json::json!(v.iter().map(|x| x.to_f32()).collect::<Vec<f32>>()),
        E::I8(v) => serde_json::json!(v),
        E::I16(v) => serde_json::json!(v),
        E::I32(v) => serde_json::json!(v),
        E::I64(v) => serde_json::json!(v),
        E::U8(v) => serde_json::json!(v),
        E::U16(v) => serde_json::json!(v),
        E::U32(v) => serde_json::json!(v),
        E::U64(v) => serde_json::json!(v),
        E::Bool(v) => serde_json::json!(v.iter().map(|b| *b == 1).collect::<Vec<bool>>()),
        E::String(v) => serde_json::json!(v),
        _ => serde_json::Value::Null,
    }
}

/// As many digits of a digest as people compare.
pub(super) fn short(digest: &str) -> &str {
    &digest[..digest.len().min(12)]
}

fn text(a: &Answered) -> String {
    let mut text = format!("{} {}: {:.1} ms", a.model, short(&a.digest), a.latency_ms);
    if !a.member.is_empty() {
        text.push_str(&format!("  by {}", a.member));
    }
    if let Some(predicted) = a.predicted_ms {
        text.push_str(&format!(" (predicted {predicted:.1} ms)"));
    }
    if a.exit > 0 {
        text.push_str(&format!("  exit {}", a.exit));
    }
    if let Some(reason) = &a.reason {
        text.push_str(&format!("  degraded: {reason}"));
    }
    text.push_str(&format!("\nplan: {}\n", if a.plan.is_empty() { "none" } else { &a.plan }));
    let rows: Vec<Vec<String>> = a
        .stages
        .iter()
        .map(|s| {
            vec![
                s.node.clone(),
                format!("{}..{}", s.segments[0], s.segments[1]),
                format!("{:.1}", s.compute_ms),
                format!("{:.1}", s.queue_ms),
                format!("{:.1}", s.encode_ms + s.decode_ms),
                output::bytes(s.sent_bytes),
            ]
        })
        .collect();
    text.push_str(&output::table(&["node", "segments", "compute ms", "queue ms", "codec ms", "sent"], &rows));
    for o in &a.outputs {
        let tail = o.file.as_ref().map_or_else(String::new, |f| format!("  {f}"));
        text.push_str(&format!("output {}  {} {:?}{tail}\n", o.name, o.dtype, o.shape));
    }
    text
}

/// Bytes in chunks of one message each.
pub fn split(bytes: Bytes) -> impl Iterator<Item = Bytes> {
    (0..bytes.len().div_ceil(CHUNK_BYTES))
        .map(move |i| bytes.slice(i * CHUNK_BYTES..((i + 1) * CHUNK_BYTES).min(bytes.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        assert_eq!(parse_time("500 ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_time("2s"), Ok(Duration::from_secs(2)));
        assert!(parse_time("soon").is_err());
    }
}
