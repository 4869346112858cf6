//! Edges that gossip: what they offer each other, and how one gets to a
//! neighbour's model.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tierline_node::federation::exchange::ANSWER_PATIENCE;
use tierline_node::federation::{Task, coordination};
use tierline_proto::limits::UPDATE_BYTES_MAX;
use tierline_proto::v1::{Code, Failure, MeetReply, MeetRequest, Neighbour};
use tierline_proto::{Digest, Sound};
use tierline_store::State;
use tierline_store::jobs::Side;

use super::{Folder, messages};
use crate::duties::federation::Jobs;
use crate::net::transport::{self, Pair};

/// Whom an edge exchanges models with, as its parent last said: outlives the process, since
/// edges go on without their parent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Neighbourhood {
    pub(super) task: u64,
    /// The parent's.
    pub(super) round: u64,
    /// Names, and where they are reached.
    neighbours: Vec<(String, String)>,
}

impl Neighbourhood {
    /// As the exchange wants it: in the order in which they are asked.
    pub(super) fn for_exchange(&self) -> coordination::Neighbourhood {
        let neighbours = self.neighbours.iter().map(|(name, _)| name.clone()).collect();
        coordination::Neighbourhood { task: Task(self.task), round: self.round, neighbours }
    }
}

/// What is known of a job's neighbourhood; none where its edges don't gossip.
pub(super) fn neighbourhood(folder: &Folder) -> Option<Neighbourhood> {
    serde_json::from_slice(&folder.read(&folder.neighbours()).ok()?).ok()
}

/// Keeps what a parent says. Of one task, neighbours only become more: a parent
/// that has just started hasn't heard of all.
pub(super) fn remember(folder: &Folder, task: Task, round: u64, neighbours: &[Neighbour]) -> Result<(), Failure> {
    let before = neighbourhood(folder);
    let said = neighbours.iter().map(|n| (n.name.clone(), n.url.clone()));
    let mut all: std::collections::BTreeMap<_, _> = match &before {
        Some(neighbourhood) if neighbourhood.task == task.0 => neighbourhood.neighbours.iter().cloned().collect(),
        _ => Default::default(),
    };
    all.extend(said);
    let neighbourhood = Neighbourhood { task: task.0, round, neighbours: all.into_iter().collect() };
    if before.as_ref() == Some(&neighbourhood) {
        return Ok(());
    }
    let json = serde_json::to_vec(&neighbourhood).map_err(messages::internal)?;
    folder.write(&folder.neighbours(), &json)
}

/// An edge on its way to a neighbour's model.
pub(super) struct Fetch {
    pub(super) jobs: Arc<Jobs>,
    pub(super) id: Digest,
    pub(super) folder: Folder,
    pub(super) exchange: u64,
    /// How long the neighbour may take to answer.
    pub(super) patience: Duration,
}

impl Fetch {
    /// A neighbour's model, as it travels.
    pub(super) async fn model_of(&self, name: &str) -> Result<Vec<u8>, Failure> {
        let unreachable = |text: String| Failure::new(Code::Unreachable, text);
        // Its address may have changed since the last try.
        let known = neighbourhood(&self.folder).into_iter().flat_map(|neighbourhood| neighbourhood.neighbours);
        let url = known.filter(|(known, _)| known == name).map(|(_, url)| url).next();
        let url = url.ok_or_else(|| unreachable(format!("nobody says where {name} is")))?;
        let cannot = |e: &dyn std::error::Error| {
            unreachable(format!("cannot reach {name} at {url}: {}", crate::words::chain(e)))
        };
        let endpoint = transport::endpoint(&url, transport::client_tls(&self.jobs.cx.me.identity()));
        let pair = Pair::connect(&endpoint.map_err(|e| cannot(&e))?).await.map_err(|e| cannot(&e))?;
        let request = MeetRequest { job: self.id.to_bytes(), exchange: self.exchange };
        let asked = async { pair.federate().meet(request).await.map_err(|status| Failure::from_status(&status)) };
        let late = |_| Failure::new(Code::DeadlineExceeded, format!("the model of {name} isn't made yet"));
        let reply = tokio::time::timeout(self.patience, asked).await.map_err(late)??.into_inner();
        let MeetReply { offer, node } = Sound::read(reply)?.into_inner();
        if node != name {
            return Err(unreachable(format!("it is {node} that answers at {url}, not {name}")));
        }
        let digest = messages::digest(&offer)?;
        let mut bytes = Vec::new();
        let mut chunks = pair.fetch(digest, 0).await?;
        while let Some(chunk) = chunks.next().await? {
            let total = chunk.total;
            if total > UPDATE_BYTES_MAX || (bytes.len() + chunk.data.len()) as u64 > total {
                return Err(Failure::new(Code::TooLarge, format!("a model of {total} bytes")));
            }
            bytes.extend_from_slice(&chunk.data);
        }
        if blake3::hash(&bytes).as_bytes() != &digest.0 {
            return Err(Failure::new(Code::Corrupt, format!("the model of {name} came damaged")));
        }
        Ok(bytes)
    }
}

impl Jobs {
    /// This edge's model of an exchange, once it is made.
    ///
    /// # Errors
    /// [`Code::ModelNotReady`] when it takes long, [`Code::NotFound`] when there
    /// won't be one any more, or the job is none in which edges gossip.
    pub async fn meet(&self, caller: &str, request: &MeetRequest) -> Result<MeetReply, Failure> {
        let id = messages::digest(&request.job)?;
        let patience = tokio::time::sleep(ANSWER_PATIENCE);
        tokio::pin!(patience);
        loop {
            let offered = self.offered.notified();
            tokio::pin!(offered);
            // From here on no offer is missed.
            offered.as_mut().enable();
            let offers = self.cx.state.with(move |state| state.versions(id, Side::Offers)).await?;
            if let Some((_, offer)) = offers.iter().find(|(number, _)| *number == request.exchange) {
                return Ok(MeetReply { offer: offer.to_bytes(), node: self.cx.me.name().to_owned() });
            }
            if let Some((newest, _)) = offers.last().filter(|(number, _)| *number > request.exchange) {
                let text =
                    format!("{} is at exchange {newest}; {caller} asks for {}", self.cx.me.name(), request.exchange);
                return Err(Failure::new(Code::NotFound, text));
            }
            if self.cx.state.with(State::jobs).await?.iter().any(|row| row.job == id && row.ended.is_some()) {
                return Err(Failure::new(Code::NotFound, format!("the job is over on {}", self.cx.me.name())));
            }
            let not_ready = || {
                let text = format!("{} has not made its model of exchange {} yet", self.cx.me.name(), request.exchange);
                Failure::new(Code::ModelNotReady, text)
            };
            tokio::select! {
                () = offered => {}
                () = &mut patience => return Err(not_ready()),
            }
        }
    }
}
