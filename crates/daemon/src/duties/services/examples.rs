//! Examples that the first model of a cascade wasn't sure of: kept on this node
//! within a quota, as the service's policy allows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tierline_graph::Tensor;
use tierline_plan::exits::classes;
use tierline_plan::service::{Examples, Member, Policy};
use tierline_proto::Digest;
use tierline_proto::limits::CHUNK_BYTES;
use tierline_proto::v1::{
    Code, ExampleInfo, ExampleListReply, ExampleListRequest, ExampleRemoveReply, Failure, FetchChunk,
};
use tierline_store::State;
use tierline_store::examples::{ExampleRow, Quota};
use tokio::sync::Semaphore;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::Services;
use crate::device::program::Named;
use crate::examples::{Said, write};
use crate::runtime::events::now_ms;

/// Examples that wait for the disk; further ones aren't kept.
const PENDING_MAX: usize = 16;

/// A list waits so long at most for what isn't on the disk yet.
const PENDING_TIME_MAX: Duration = Duration::from_secs(1);

/// Chunks of an example ahead of the connection.
const AHEAD_MAX: usize = 4;

/// Examples in one list.
const LISTED_MAX: usize = 10_000;

/// A stream of one example's bytes.
pub type Sent = ReceiverStream<Result<FetchChunk, Status>>;

/// What is kept, and what wasn't.
pub struct Keeping {
    places: Arc<Semaphore>,
    /// Kept so far.
    pub kept: AtomicU64,
    /// For want of a place, of room, or of a form.
    pub dropped: AtomicU64,
}

impl Default for Keeping {
    fn default() -> Self {
        let places = Arc::new(Semaphore::new(PENDING_MAX));
        Self { places, kept: AtomicU64::new(0), dropped: AtomicU64::new(0) }
    }
}

/// An example that a miner picked.
pub struct Mined {
    /// The service's name.
    pub service: String,
    /// What may be kept.
    pub rules: Examples,
    /// Why it was picked.
    pub why: &'static str,
    /// How sure the first model was.
    pub sureness: f64,
    /// The request's inputs, where they may be kept.
    pub inputs: Option<Arc<Named>>,
    /// What models answered, the first model first.
    pub answers: Vec<(Member, Named)>,
}

impl Services {
    /// Keeps an example, beside the request that it is of; whoever asked waits
    /// for nothing.
    pub(super) fn keep(self: &Arc<Self>, mined: Mined) {
        if mined.rules.policy == Policy::None {
            return;
        }
        let Ok(place) = Arc::clone(&self.keeping.places).try_acquire_owned() else {
            self.keeping.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let services = Arc::clone(self);
        let keep = async move {
            let _place = place;
            if let Err(failure) = services.kept(mined).await {
                services.keeping.dropped.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%failure, "an example isn't kept");
            }
        };
        self.cx.tasks.spawn("example keeping", keep);
    }

    async fn kept(&self, mined: Mined) -> Result<(), Failure> {
        let quota = Quota {
            count: mined.rules.max_count as u64,
            bytes: (mined.rules.max_mb * 1e6) as u64,
            of_all: self.cx.me.config().examples_bytes(),
        };
        let (service, node) = (mined.service.clone(), self.cx.me.name().to_owned());
        let (why, time_ms) = (mined.why, now_ms());
        let policy = if mined.rules.policy == Policy::Raw { "raw" } else { "features" };
        let said_by = |place: usize| mined.answers.get(place).and_then(|(member, outputs)| said(member, outputs));
        let last = mined.answers.len().checked_sub(1).filter(|last| *last > 0);
        let said = Said {
            service: service.clone(),
            time_ms,
            node: node.clone(),
            why,
            policy,
            labels: last.and_then(said_by).unwrap_or_default(),
            guesses: said_by(0).unwrap_or_default(),
            sureness: mined.sureness,
        };
        let mut tensors: Vec<(String, String, Tensor)> = Vec::new();
        let named = |member: &str, (name, tensor): (String, Tensor)| (member.to_owned(), name, tensor);
        let inputs = mined.inputs.iter().flat_map(|inputs| inputs.iter().cloned());
        tensors.extend(inputs.map(|input| named("", input)));
        for (member, outputs) in mined.answers {
            tensors.extend(outputs.into_iter().map(|output| named(member.name(), output)));
        }
        let written = self.cx.tasks.blocking("example", move || write(said, &tensors)).await?;
        let written = written.map_err(|text| Failure::new(Code::InvalidInput, text))?;
        let bytes = written.len() as u64;
        let most = quota.bytes.min(quota.of_all);
        if bytes > most || quota.count == 0 {
            let text = format!("{bytes} bytes, and the service's examples may have {most}");
            return Err(Failure::new(Code::TooLarge, text));
        }
        // Stored and not named yet: a removal must not take it meanwhile.
        let turn = self.artefacts.naming.lock().await;
        let artefact = self.artefacts.put(Bytes::from(written)).await?;
        let row = ExampleRow {
            id: 0,
            service,
            time_ms,
            why: why.to_owned(),
            policy: policy.to_owned(),
            node,
            artefact,
            bytes,
        };
        let keep = move |state: &State| state.keep_example(&row, quota, |below| fastrand::u64(..below.max(1)));
        let kept = self.cx.state.with(keep).await;
        drop(turn);
        self.artefacts
            .remove_unneeded(match &kept {
                Ok(gone) => gone.clone(),
                Err(_) => vec![artefact],
            })
            .await?;
        kept?;
        self.keeping.kept.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Examples that are kept here.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn example_list(&self, request: ExampleListRequest) -> Result<ExampleListReply, Failure> {
        // Whoever asked a moment ago expects to find it.
        let pending = || self.keeping.places.available_permits() < PENDING_MAX;
        let until = Instant::now() + PENDING_TIME_MAX;
        while pending() && Instant::now() < until {
            tokio::time::sleep(PENDING_TIME_MAX / 100).await;
        }
        let rows = self.rows(request).await?;
        let info = |row: ExampleRow| ExampleInfo {
            example: row.id,
            service: row.service,
            time_ms: row.time_ms,
            why: row.why,
            policy: row.policy,
            bytes: row.bytes,
            node: row.node,
        };
        Ok(ExampleListReply { examples: rows.into_iter().take(LISTED_MAX).map(info).collect() })
    }

    async fn rows(&self, request: ExampleListRequest) -> Result<Vec<ExampleRow>, Failure> {
        let ExampleListRequest { service, examples } = request;
        let mut rows = self.cx.state.with(move |state| state.examples(&service)).await?;
        rows.retain(|row| examples.is_empty() || examples.contains(&row.id));
        Ok(rows)
    }

    /// One example's bytes.
    ///
    /// # Errors
    /// [`Code::NotFound`].
    pub async fn example_fetch(&self, example: u64) -> Result<Sent, Failure> {
        let row = self.rows(ExampleListRequest { service: String::new(), examples: vec![example] }).await?;
        let row = row.into_iter().next().ok_or_else(|| {
            let text = format!("there is no example {example} on {}", self.cx.me.name());
            Failure::new(Code::NotFound, text).with_help("`tierline examples ls` lists them")
        })?;
        let bytes = self.artefacts.get(row.artefact).await?;
        Ok(self.cx.tasks.stream("example sending", AHEAD_MAX, |send| async move {
            let total = bytes.len() as u64;
            for offset in (0..bytes.len()).step_by(CHUNK_BYTES) {
                let data = bytes.slice(offset..(offset + CHUNK_BYTES).min(bytes.len()));
                if send.send(Ok(FetchChunk { total, offset: offset as u64, data })).await.is_err() {
                    return;
                }
            }
        }))
    }

    /// Removes examples.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn example_remove(&self, request: ExampleListRequest) -> Result<ExampleRemoveReply, Failure> {
        let rows = self.rows(request).await?;
        let ids: Vec<u64> = rows.iter().map(|row| row.id).collect();
        let removed = ids.len() as u64;
        let artefacts: Vec<Digest> = rows.into_iter().map(|row| row.artefact).collect();
        let _turn = self.artefacts.naming.lock().await;
        self.cx.state.with(move |state| state.remove_examples(&ids)).await?;
        self.artefacts.remove_unneeded(artefacts).await?;
        Ok(ExampleRemoveReply { removed })
    }
}

/// The class of each example, where a model says one for each.
pub(super) fn said(member: &Member, outputs: &Named) -> Option<Vec<u64>> {
    let classes = classes(member.judged(outputs).ok()?, member.reading()).ok()?;
    classes.into_iter().map(|places| if let [Some(class)] = places[..] { Some(class as u64) } else { None }).collect()
}
