//! Several models under one name: whoever composes them is asked for the
//! service here, and asks for its members here.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use tierline_proto::v1::{Failure, InferHeader, Placement};
use tierline_proto::{Digest, Encoded};

use super::entry::{Entered, Prepared, prepare};
use super::{Inference, flow, wire};
use crate::device::budget::Held;

/// An answer that is being made.
pub type Answering<'s> = Pin<Box<dyn Future<Output = Entered> + Send + 's>>;

/// Answers for several models under one name.
pub trait Services: Send + Sync {
    /// Whether it answers for this name.
    fn has(&self, name: &str) -> bool;

    /// Answers a request for such a name.
    fn answer(
        &self,
        id: Vec<u8>,
        header: InferHeader,
        encoded: Vec<Encoded>,
        deadline: Instant,
        held: Arc<Held>,
    ) -> Answering<'_>;
}

/// A request to one member.
pub struct Asked {
    /// The model's name.
    pub model: String,
    /// Where it runs.
    pub placement: Placement,
    /// Its inputs.
    pub encoded: Vec<Encoded>,
    /// When it must be answered.
    pub deadline: Instant,
    /// What the whole request holds of the node's memory.
    pub held: Arc<Held>,
    /// Trace context.
    pub trace: String,
    /// How urgent the whole request is.
    pub priority: u32,
    /// As in a request's header.
    pub hedge: f64,
    /// Whether nearer nodes answer when its plan fails.
    pub recover: bool,
}

impl Inference {
    /// Lets `services` answer for the names that it has.
    pub fn serve_by(&self, services: Arc<dyn Services>) {
        // Once for each node.
        let _ = self.services.set(services);
    }

    pub(super) fn services(&self) -> Option<&Arc<dyn Services>> {
        self.services.get()
    }

    /// Asks a member, as an ordinary request with a plan of its own. Where
    /// nobody recovers, `on_silence` hears once when the node above shows no
    /// sign of life.
    pub async fn ask_member(self: &Arc<Self>, asked: Asked, on_silence: impl FnOnce(String) + Send) -> Entered {
        let begun = Instant::now();
        let id = fastrand::u128(..).to_be_bytes().to_vec();
        let Asked { model, placement, encoded, deadline, held, trace, priority, hedge, recover } = asked;
        let placement = placement.into();
        let header = InferHeader { model, placement, trace, priority, hedge, ..InferHeader::default() };
        let ahead = AtomicU64::new(wire::total(&encoded));
        let prepared = prepare(self, &header, encoded, deadline, &id, held).await;
        let Prepared { mut routed, inputs, predicted, plan, version, chosen: _chosen } = match prepared {
            Ok(prepared) => prepared,
            Err(failure) => return Entered::failed(id, Failure::at(failure, self.cx.me.name())),
        };
        routed.fallback = recover;
        let model = routed.program.manifest.digest.parse().map(Digest::to_bytes).unwrap_or_default();
        let uplink = routed.peer.filter(|_| !recover).and_then(|peer| self.cx.parents.get(peer).ok());
        let silence = async {
            match uplink {
                Some(uplink) => on_silence(uplink.silence(&ahead).await.1),
                None => std::future::pending().await,
            }
            std::future::pending().await
        };
        let answer = tokio::select! {
            answer = flow::answer(self, routed, inputs) => answer,
            never = silence => match never {},
        };
        self.health.observe(&model, begun.elapsed(), &answer.reply);
        self.planning.observe_answer(&header, &model, &plan, &answer.exits, begun.elapsed(), &answer.reply);
        Entered { predicted, plan, model, version, answer }
    }
}
