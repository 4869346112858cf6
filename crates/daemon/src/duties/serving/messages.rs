//! What comes over gRPC, before anything is made of it: the service of the
//! protocol behind a guard that counts messages against the node's memory as
//! they come, and unpacks those that came packed.
//!
//! The library behind it collects messages whole; nothing reaches it that
//! isn't held. Start at [`Counted`].

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use hyper::body::{Frame, SizeHint};
use tierline_proto::failure::grpc_code;
use tierline_proto::oip::weigh::weigh;
use tierline_proto::v1::{Code, Failure};
use tokio::time::{Instant, Sleep};
use tonic::body::Body;
use tonic::codegen::http::{Extensions, Request, Response};
use tonic::server::NamedService;
use tonic::{Status, metadata::MetadataMap};
use tower_service::Service;

use super::grpc::caller;
use super::{MESSAGE_BYTES_MAX, PIECE_TIME_MAX, SMALL_BYTES_MAX, told};
use crate::device::budget::{Budget, Held};
use crate::net::encoding::{self, Encoding};
use crate::runtime::tasks::in_place_over;

/// A message is collected in blocks of this size, and handed on in them.
const BLOCK_BYTES: usize = 64 << 10;

/// Whether a message is packed, and its length.
const PREFIX_BYTES: usize = 5;

/// The service, which gets what is held only. Answers to what came packed are
/// packed as well: whoever packs nothing is on a link where it costs more than
/// it brings.
#[derive(Clone)]
pub struct Counted<S> {
    /// Answers as they are.
    pub plain: S,
    /// Packs them.
    pub packing: S,
    /// The node's memory for requests.
    pub budget: Budget,
}

impl<S: NamedService> NamedService for Counted<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        ready!(self.plain.poll_ready(cx))?;
        self.packing.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let said = request.headers_mut().remove("grpc-encoding");
        let said = said.as_ref().map_or("", |value| value.to_str().unwrap_or("?"));
        let encoding = match Encoding::named(said) {
            Ok(encoding) => encoding,
            Err(unknown) => {
                let mut taken = MetadataMap::new();
                if let Ok(names) = encoding::TAKEN.to_str().unwrap_or_default().parse() {
                    taken.insert("grpc-accept-encoding", names);
                }
                let text = format!("messages in `{unknown}` aren't taken: send them plain, or in gzip or deflate");
                let status = Status::with_metadata(tonic::Code::Unimplemented, text, taken);
                return Box::pin(std::future::ready(Ok(status.into_http())));
            }
        };
        let arrived = Arrived::default();
        let messages = Messages {
            inner: Body::empty(),
            caller: caller(request.extensions()),
            budget: self.budget.clone(),
            encoding,
            weighed: request.uri().path().ends_with("Infer"),
            arrived: arrived.clone(),
            prefix: Vec::with_capacity(PREFIX_BYTES),
            message: None,
            ready: VecDeque::new(),
            rest: Bytes::new(),
            late: Box::pin(tokio::time::sleep(PIECE_TIME_MAX)),
        };
        request.extensions_mut().insert(arrived);
        let service = if encoding.is_some() { &mut self.packing } else { &mut self.plain };
        let answer = service.call(request.map(|inner| Body::new(Messages { inner, ..messages })));
        Box::pin(async move {
            let mut response = answer.await?;
            Ok(match response.extensions_mut().remove::<Out>() {
                Some(Out(held)) => response.map(|body| Body::new(HoldingBody { body, _held: held })),
                None => response,
            })
        })
    }
}

/// What the messages of a call hold that came and that nobody asked for yet,
/// in their order.
#[derive(Clone, Default)]
pub struct Arrived(Arc<Mutex<VecDeque<(Held, u64)>>>);

impl Arrived {
    /// Those of a call.
    pub fn of(extensions: &Extensions) -> Self {
        extensions.get::<Self>().cloned().unwrap_or_default()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<(Held, u64)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the message holds that was read just now.
    pub fn next(&self) -> Option<Held> {
        let (held, spare) = self.lock().pop_front()?;
        held.give_back(spare);
        Some(held)
    }
}

/// What an answer holds until it is sent, handed on with it.
#[derive(Clone)]
pub struct Out(pub Arc<Held>);

/// A body that holds something until it was sent, or whoever reads it is gone.
pub struct HoldingBody<B, H> {
    /// The body.
    pub body: B,
    /// What it holds.
    pub _held: H,
}

impl<B: hyper::body::Body + Unpin, H: Unpin> hyper::body::Body for HoldingBody<B, H> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A message that isn't here whole.
struct Message {
    is_packed: bool,
    /// Bytes of it that are still to come.
    left: usize,
    block_bytes: usize,
    blocks: VecDeque<Vec<u8>>,
    held: Held,
}

/// A body of messages, each passed on once it is whole and held.
struct Messages {
    inner: Body,
    caller: String,
    budget: Budget,
    encoding: Option<Encoding>,
    /// Whether they are requests for inference.
    weighed: bool,
    arrived: Arrived,
    prefix: Vec<u8>,
    message: Option<Message>,
    /// To be handed on.
    ready: VecDeque<Bytes>,
    /// Came, and wasn't looked at.
    rest: Bytes,
    late: Pin<Box<Sleep>>,
}

impl Messages {
    /// Takes from what came; whether there is something to hand on.
    fn take(&mut self) -> Result<bool, Failure> {
        loop {
            if let Some(message) = &mut self.message {
                message.collect(&mut self.rest);
                if message.left > 0 {
                    return Ok(false);
                }
                if let Some(message) = self.message.take() {
                    self.hand_on(message)?;
                }
                return Ok(true);
            }
            let missing = (PREFIX_BYTES - self.prefix.len()).min(self.rest.len());
            self.prefix.extend_from_slice(&self.rest.split_to(missing));
            let [packed, length @ ..] = &self.prefix[..] else { return Ok(false) };
            let Ok(length) = <[u8; 4]>::try_from(length) else { return Ok(false) };
            let message = self.begin(*packed, u32::from_be_bytes(length) as usize)?;
            self.prefix.clear();
            self.message = Some(message);
        }
    }

    fn begin(&self, packed: u8, length: usize) -> Result<Message, Failure> {
        let most = if self.weighed { MESSAGE_BYTES_MAX } else { SMALL_BYTES_MAX as usize };
        if length > most {
            let text = format!("a message has at most {most} bytes");
            return Err(Failure::new(Code::TooLarge, text));
        }
        let is_packed = match (packed, self.encoding) {
            (0, _) => false,
            (1, Some(_)) => true,
            _ => return Err(Failure::new(Code::InvalidInput, "a message says that it is packed, and not how")),
        };
        let held = self.budget.request(&self.caller);
        held.take(length as u64)?;
        let block_bytes = if is_packed { length.max(1) } else { BLOCK_BYTES };
        Ok(Message { is_packed, left: length, block_bytes, blocks: VecDeque::new(), held })
    }

    fn hand_on(&mut self, message: Message) -> Result<(), Failure> {
        let Message { is_packed, mut blocks, held, .. } = message;
        let mut spare = 0;
        if let (true, Some(encoding)) = (is_packed, self.encoding) {
            let packed = blocks.pop_front().unwrap_or_default();
            let bytes = in_place_over(64 * packed.len() as u64, || {
                encoding::unpack(encoding, &packed, MESSAGE_BYTES_MAX as u64, &held)
            })?;
            held.give_back(packed.len() as u64);
            // As long as it is copied, it is there twice.
            spare = bytes.len() as u64;
            held.take(spare)?;
            blocks.extend([bytes.into()]);
        }
        if self.weighed {
            held.take(weigh(&mut Blocks::new(&blocks))?)?;
        }
        let length = blocks.iter().map(Vec::len).sum::<usize>();
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.ready.push_back(Bytes::from([&[0], &length.to_be_bytes()[..]].concat()));
        self.ready.extend(blocks.into_iter().filter(|block| !block.is_empty()).map(Bytes::from));
        self.arrived.lock().push_back((held, spare));
        Ok(())
    }
}

impl Message {
    fn collect(&mut self, rest: &mut Bytes) {
        while self.left > 0 && !rest.is_empty() {
            let is_full = self.blocks.back().is_none_or(|block| block.len() == self.block_bytes);
            if is_full {
                self.blocks.push_back(Vec::with_capacity(self.block_bytes.min(self.left)));
            }
            let Some(block) = self.blocks.back_mut() else { return };
            let step = rest.len().min(self.block_bytes - block.len()).min(self.left);
            block.extend_from_slice(&rest.split_to(step));
            self.left -= step;
        }
    }
}

impl hyper::body::Body for Messages {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let refused = |failure: &Failure| Poll::Ready(Some(Err(Status::new(grpc_code(failure.code()), told(failure)))));
        loop {
            if let Some(block) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(block))));
            }
            match this.take() {
                Ok(true) => continue,
                Ok(false) => {}
                Err(failure) => return refused(&failure),
            }
            let is_between = this.message.is_none() && this.prefix.is_empty();
            match Pin::new(&mut this.inner).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        this.rest = data;
                        this.late.as_mut().reset(Instant::now() + PIECE_TIME_MAX);
                    }
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Poll::Ready(Some(Err(status))) => return Poll::Ready(Some(Err(status))),
                Poll::Ready(None) if is_between => return Poll::Ready(None),
                Poll::Ready(None) => return refused(&Failure::new(Code::InvalidInput, "the message broke off")),
                // Between messages a stream may be silent.
                Poll::Pending if is_between => return Poll::Pending,
                Poll::Pending => {
                    ready!(this.late.as_mut().poll(cx));
                    return refused(&Failure::new(Code::DeadlineExceeded, "the message did not come in time"));
                }
            }
        }
    }
}

/// Blocks, as one.
struct Blocks<'b> {
    blocks: std::collections::vec_deque::Iter<'b, Vec<u8>>,
    first: &'b [u8],
    left: usize,
}

impl<'b> Blocks<'b> {
    fn new(blocks: &'b VecDeque<Vec<u8>>) -> Self {
        let left = blocks.iter().map(Vec::len).sum();
        let mut blocks = blocks.iter();
        let first = blocks.next().map_or(&[][..], |block| &block[..]);
        Self { blocks, first, left }
    }
}

impl Buf for Blocks<'_> {
    fn remaining(&self) -> usize {
        self.left
    }

    fn chunk(&self) -> &[u8] {
        self.first
    }

    fn advance(&mut self, mut count: usize) {
        self.left -= count;
        loop {
            let step = count.min(self.first.len());
            self.first = &self.first[step..];
            count -= step;
            if !self.first.is_empty() {
                return;
            }
            match self.blocks.next() {
                Some(block) => self.first = block,
                None => return,
            }
        }
    }
}
