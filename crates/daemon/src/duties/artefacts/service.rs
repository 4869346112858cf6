//! Artefacts by range, and padding to measure a link with.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tierline_proto::limits::{CHUNK_BYTES, PROBE_BYTES_MAX};
use tierline_proto::v1::bulk_server::Bulk;
use tierline_proto::v1::{Code, Failure, FetchChunk, FetchRequest, ProbeChunk, StatReply, StatRequest};
use tierline_proto::{Digest, Sound};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Artefacts;
use crate::net::gate;
use crate::runtime::tasks::Holding;

/// Chunks read ahead of the connection.
const CHUNKS_AHEAD_MAX: usize = 2;

/// Artefacts on their way to one caller at once: an edge fetches two for
/// itself and passes on a few. Each keeps some chunks in memory until they are read.
const SENDING_EACH_MAX: usize = 8;

/// Artefacts on their way to all callers at once; further ones wait their turn.
const SENDING_MAX: usize = 256;

/// Whoever takes no chunk for so long has gone, or holds a place for nothing; on
/// a link where that isn't so, the caller has given up.
const SENDING_PATIENCE: Duration = Duration::from_secs(60);

/// A child that hears nothing for 15 s takes the transfer for broken.
const FETCH_PATIENCE: Duration = Duration::from_secs(8);

/// A probe takes no longer, both ways together: on a link where it would, the
/// child has given up on it.
const PROBE_TIME_MAX: Duration = Duration::from_secs(30);

/// Probes at once; each keeps a few chunks in memory until they are read.
const PROBES_MAX: usize = 16;

/// What probes are filled with.
static PADDING: [u8; CHUNK_BYTES] = [0; CHUNK_BYTES];

/// The probes under way.
static PROBES: Semaphore = Semaphore::const_new(PROBES_MAX);

/// An artefact on its way to a caller, which counts as long as it isn't read.
type Sent = Holding<ReceiverStream<Result<FetchChunk, Status>>, OwnedSemaphorePermit>;

/// The service.
pub struct BulkService {
    artefacts: Arc<Artefacts>,
    sending: Sending,
}

/// The artefacts on their way out.
#[derive(Debug)]
struct Sending {
    all: Arc<Semaphore>,
    /// By caller; those to whom nothing is on its way aren't kept.
    callers: Mutex<HashMap<String, Weak<Semaphore>>>,
}

impl Sending {
    /// Of what one caller asks for: nobody waits behind who asks for much.
    fn own(&self, caller: &str) -> Arc<Semaphore> {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        callers.retain(|_, own| own.strong_count() > 0);
        callers.get(caller).and_then(Weak::upgrade).unwrap_or_else(|| {
            let own = Arc::new(Semaphore::new(SENDING_EACH_MAX));
            callers.insert(caller.to_owned(), Arc::downgrade(&own));
            own
        })
    }
}

/// Waits for a turn, until `ends`.
async fn turn(
    of: &Arc<Semaphore>,
    ends: tokio::time::Instant,
    artefacts: &Artefacts,
) -> Result<OwnedSemaphorePermit, Failure> {
    let turn = tokio::time::timeout_at(ends, Arc::clone(of).acquire_owned()).await;
    turn.ok().and_then(Result::ok).ok_or_else(|| {
        Failure::new(Code::ModelNotReady, "as many artefacts as it can send are on their way")
            .at(artefacts.cx.me.name())
    })
}

/// Hands on a chunk; whether it was taken in time.
async fn taken(send: &mpsc::Sender<Result<FetchChunk, Status>>, chunk: Result<FetchChunk, Status>) -> bool {
    matches!(tokio::time::timeout(SENDING_PATIENCE, send.send(chunk)).await, Ok(Ok(())))
}

fn digest(bytes: &Bytes) -> Result<Digest, Failure> {
    Digest::try_from(bytes).map_err(|e| Failure::new(Code::Protocol, e.to_string()))
}

impl BulkService {
    /// Nothing is on its way yet.
    #[must_use]
    pub fn new(artefacts: Arc<Artefacts>) -> Self {
        let sending = Sending { all: Arc::new(Semaphore::new(SENDING_MAX)), callers: Mutex::default() };
        Self { artefacts, sending }
    }

    /// Hands on an artefact for which there is no room here, as it comes from above.
    async fn pass(
        &self,
        wanted: Digest,
        offset: u64,
        length: u64,
        own: OwnedSemaphorePermit,
    ) -> Result<Response<Sent>, Status> {
        let (turn, mut passing) =
            self.artefacts.pass(wanted, offset).await.map_err(|f| f.at(self.artefacts.cx.me.name()))?;
        let end = if length == 0 { u64::MAX } else { offset.saturating_add(length) };
        let name = self.artefacts.cx.me.name().to_owned();
        let passed = self.artefacts.cx.tasks.stream("artefact passing", CHUNKS_AHEAD_MAX, |send| async move {
            let _turn = turn;
            // All of it, or nobody can say whether it is right.
            let mut hasher = (offset == 0).then(blake3::Hasher::new);
            loop {
                let mut chunk = match passing.next().await {
                    Ok(Some(piece)) if piece.offset < end => Ok(piece),
                    Ok(_) => return,
                    Err(failure) => Err(Status::from(failure)),
                };
                if let (Some(hasher), Ok(piece)) = (&mut hasher, &chunk) {
                    hasher.update(&piece.data);
                    let is_last = piece.offset + piece.data.len() as u64 == piece.total;
                    if is_last && hasher.finalize().as_bytes() != &wanted.0 {
                        let text = format!("artefact {} comes damaged from above {name}", wanted.short());
                        chunk = Err(Failure::new(Code::Corrupt, text).into());
                    }
                }
                let broken = chunk.is_err();
                if !taken(&send, chunk).await || broken {
                    return;
                }
            }
        });
        Ok(Response::new(Holding::new(passed, own)))
    }
}

#[tonic::async_trait]
impl Bulk for BulkService {
    type FetchStream = Sent;
    type ProbeStream = ReceiverStream<Result<ProbeChunk, Status>>;

    async fn stat(&self, request: Request<StatRequest>) -> Result<Response<StatReply>, Status> {
        let digest = digest(&Sound::read(request.into_inner())?.digest)?;
        let length = self.artefacts.length(digest).await?;
        Ok(Response::new(StatReply { found: length.is_some(), length: length.unwrap_or(0) }))
    }

    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let caller = gate::caller(&request)?.id;
        let FetchRequest { digest: wanted, offset, length } = Sound::read(request.into_inner())?.into_inner();
        let wanted = digest(&wanted)?;
        let ends = tokio::time::Instant::now() + FETCH_PATIENCE;
        let own = turn(&self.sending.own(&caller), ends, &self.artefacts).await?;
        // An edge that lacks it fetches it first: the site downloads it once.
        // It goes on fetching while the child is told to come back.
        let artefacts = Arc::clone(&self.artefacts);
        let fetching =
            self.artefacts.cx.tasks.spawn("fetch for a child", async move { artefacts.ensure(wanted).await });
        match tokio::time::timeout_at(ends, fetching).await {
            Ok(Ok(Err(failure))) if failure.code() == Code::StorageFull && !self.artefacts.cx.parents.is_empty() => {
                return self.pass(wanted, offset, length, own).await;
            }
            Ok(fetched) => fetched??,
            Err(_) => {
                let text = format!("artefact {} is on its way to {}", wanted.short(), self.artefacts.cx.me.name());
                return Err(Failure::new(Code::ModelNotReady, text).into());
            }
        }
        let total = self
            .artefacts
            .length(wanted)
            .await?
            .ok_or_else(|| Failure::new(Code::NotFound, format!("artefact {} is not here", wanted.short())))?;
        if offset > total {
            return Err(Failure::new(
                Code::Protocol,
                format!("offset {offset} lies behind the artefact's {total} bytes"),
            )
            .into());
        }
        let end = if length == 0 { total } else { total.min(offset.saturating_add(length)) };
        let artefacts = Arc::clone(&self.artefacts);
        let turn = turn(&self.sending.all, ends, &self.artefacts).await?;
        let sending = self.artefacts.cx.tasks.stream("artefact sending", CHUNKS_AHEAD_MAX, |send| async move {
            let _turn = turn;
            let mut at = offset;
            // At least one chunk, though it be empty: who has all the bytes, but
            // died before it hashed them, learns here that it has.
            loop {
                let next = end.min(at + CHUNK_BYTES as u64);
                let chunk = artefacts.range(wanted, at..next).await.map(|data| FetchChunk { total, offset: at, data });
                let broken = chunk.is_err();
                at = next;
                if !taken(&send, chunk.map_err(Failure::into_status)).await || broken || at >= end {
                    return;
                }
            }
        });
        Ok(Response::new(Holding::new(sending, own)))
    }

    async fn probe(&self, request: Request<Streaming<ProbeChunk>>) -> Result<Response<Self::ProbeStream>, Status> {
        let busy = || Failure::new(Code::Overloaded, format!("{PROBES_MAX} links are being measured already"));
        let turn = PROBES.try_acquire().map_err(|_| busy().at(self.artefacts.cx.me.name()))?;
        let ends = tokio::time::Instant::now() + PROBE_TIME_MAX;
        let late = || Failure::new(Code::DeadlineExceeded, format!("a probe takes {PROBE_TIME_MAX:?} at most"));
        let mut stream = request.into_inner();
        let (mut received, mut want, mut first) = (0u64, 0u64, None);
        while let Some(chunk) = tokio::time::timeout_at(ends, stream.message()).await.map_err(|_| late())?? {
            let chunk = Sound::read(chunk)?;
            want = want.max(chunk.want_bytes);
            received += chunk.padding.len() as u64;
            if received > PROBE_BYTES_MAX || want > PROBE_BYTES_MAX {
                return Err(Failure::new(
                    Code::TooLarge,
                    format!("a probe carries at most {PROBE_BYTES_MAX} bytes each way"),
                )
                .into());
            }
            first.get_or_insert_with(Instant::now);
        }
        let received_ns = first.map_or(0, |f| u64::try_from(f.elapsed().as_nanos()).unwrap_or(u64::MAX));
        let answer = self.artefacts.cx.tasks.stream("probe answer", CHUNKS_AHEAD_MAX, |send| async move {
            // Whoever doesn't read what it asked for gets no more of it.
            let _ = tokio::time::timeout_at(ends, probe_answer(send, received, received_ns, want)).await;
            drop(turn);
        });
        Ok(Response::new(answer))
    }
}

async fn probe_answer(
    send: mpsc::Sender<Result<ProbeChunk, Status>>,
    received_bytes: u64,
    received_ns: u64,
    want: u64,
) {
    let head = ProbeChunk { received_bytes, received_ns, ..ProbeChunk::default() };
    if send.send(Ok(head)).await.is_err() {
        return;
    }
    let mut left = usize::try_from(want).unwrap_or(0);
    while left > 0 {
        let size = left.min(CHUNK_BYTES);
        let chunk = ProbeChunk { padding: Bytes::from_static(&PADDING[..size]), ..ProbeChunk::default() };
        if send.send(Ok(chunk)).await.is_err() {
            return;
        }
        left -= size;
    }
}
