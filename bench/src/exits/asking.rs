//! A client of a node that says where its requests are to run, as `tierline
//! infer` does, and counts what became of them.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tierline_daemon::duties::inference::wire;
use tierline_graph::{Elements, Tensor};
use tierline_proto::frame;
use tierline_proto::limits::CHUNK_BYTES;
use tierline_proto::v1::local_client::LocalClient;
use tierline_proto::v1::{Boundary, Code, InferChunk, InferHeader, Placement, Route, infer_chunk};
use tonic::transport::{Channel, Endpoint};

use super::nets::{END, INPUT};

/// Time for an answer.
const DEADLINE: Duration = Duration::from_secs(60);

/// Where requests are to run.
#[derive(Debug, Clone)]
pub struct Way {
    /// The model's or the service's name.
    pub model: String,
    /// The tier.
    pub placement: Placement,
    /// Segments that run where it is asked, where the placement is fixed.
    pub split: u32,
    /// The exit that answers at the latest, if it isn't left to the rules.
    pub exit: Option<u32>,
}

/// Pictures, and their classes.
pub struct Pictures {
    /// `[1, 1, 28, 28]` each.
    pub all: Vec<Tensor>,
    /// The same number.
    pub classes: Vec<usize>,
}

/// What became of one.
#[derive(Debug, Clone)]
pub struct Answered {
    /// Whether the class was right.
    pub right: bool,
    /// The exit that answered; 0: the end.
    pub exit: u32,
    /// Of a service: whose answer it is.
    pub member: String,
    /// Bytes of tensors that went up.
    pub sent: u64,
    /// Milliseconds.
    pub ms: f64,
}

/// Asks about the first `count` pictures, by so many clients at once.
pub async fn ask_all(
    socket: &Path,
    way: &Way,
    pictures: &Arc<Pictures>,
    count: usize,
    clients: usize,
) -> Result<Vec<Answered>> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
    let mut asking = tokio::task::JoinSet::new();
    for first in 0..clients {
        let (endpoint, way, pictures) = (endpoint.clone(), way.clone(), Arc::clone(pictures));
        asking.spawn(async move {
            let mut client = LocalClient::new(endpoint.connect().await?);
            let mut answers = Vec::new();
            for at in (first..count.min(pictures.all.len())).step_by(clients) {
                answers.push(ask(&mut client, &way, &pictures.all[at], pictures.classes[at]).await?);
            }
            Ok::<_, anyhow::Error>(answers)
        });
    }
    let answers = asking.join_all().await.into_iter().collect::<Result<Vec<_>>>()?;
    Ok(answers.into_iter().flatten().collect())
}

async fn ask(client: &mut LocalClient<Channel>, way: &Way, picture: &Tensor, class: usize) -> Result<Answered> {
    let packed = wire::pack(&[(INPUT.to_owned(), picture.clone())], |_| wire::raw().name())?;
    let boundary = || Boundary { cut: way.split.checked_sub(1), tensors: Vec::new() };
    let route = (way.placement == Placement::Fixed).then(|| Route { boundaries: vec![boundary()], ..Route::default() });
    let header = InferHeader {
        model: way.model.clone(),
        tensors: frame::declare(&packed.tensors),
        deadline_ms: DEADLINE.as_millis() as u64,
        placement: way.placement.into(),
        route,
        exit: way.exit,
        ..InferHeader::default()
    };
    let bodies: Vec<_> = std::iter::once(infer_chunk::Body::Header(header))
        .chain(frame::chunks(packed.tensors, CHUNK_BYTES).map(infer_chunk::Body::Tensor))
        .map(|body| InferChunk { body: Some(body) })
        .collect();
    let begun = Instant::now();
    let mut stream = client.infer(tokio_stream::iter(bodies)).await?.into_inner();
    let Some(InferChunk { body: Some(infer_chunk::Body::Reply(answer)) }) = stream.message().await? else {
        bail!("an answer without a reply");
    };
    let mut reply = answer.reply.context("an answer without a reply")?;
    if let Some(failure) = reply.failure.as_ref().filter(|failure| failure.code() != Code::Ok) {
        bail!("{}: {failure}", way.model);
    }
    let encoded = wire::collect(&mut stream, std::mem::take(&mut reply.tensors), |chunk| match chunk.body {
        Some(infer_chunk::Body::Tensor(tensor)) => Some(tensor),
        _ => None,
    });
    let (outputs, _) = wire::unpack(&encoded.await?)?;
    let ms = begun.elapsed().as_secs_f64() * 1e3;
    if let Some(degraded) = reply.degraded {
        bail!("{} was answered another way than asked for: {}", way.model, degraded.reason);
    }
    let scores = outputs.iter().find(|(name, _)| name == END).map(|(_, tensor)| tensor).context("no scores")?;
    let Elements::F32(scores) = scores.elements() else { bail!("scores that are no numbers") };
    ensure!(scores.len() == 10, "{} scores", scores.len());
    let said = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(class, _)| class);
    let sent = reply.stages.iter().map(|stage| stage.sent_bytes).sum();
    Ok(Answered { right: said == Some(class), exit: reply.exit, member: reply.member, sent, ms })
}
