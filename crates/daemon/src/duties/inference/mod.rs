//! Requests: run here, in part or whole, and handed on.
//!
//! `exits` judges early exits. `entry` has those that enter the site here, `service` those that children
//! hand on, `flow` the path of each. `wire` makes bytes of tensors, and tensors
//! of bytes.

mod calls;
mod entry;
mod exits;
mod flow;
pub mod health;
pub mod members;
mod nearby;
mod numbers;
mod service;
mod siblings;
pub mod wire;

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tierline_node::Peer;
use tierline_node::choose::Chooser;
use tierline_node::policy::{Roles, Rule};
use tierline_proto::limits::MESSAGE_BYTES_MAX;
use tierline_proto::v1::infer_server::InferServer;
use tierline_proto::v1::{Failure, Reply};
use tokio::sync::watch;
use tonic::service::RoutesBuilder;

pub use self::entry::{Answered, Entered, ask, infer};
use self::exits::DeepBudget;
pub use self::flow::Answer;
use self::members::Services;
use self::numbers::Numbers;
use self::service::InferService;
use self::siblings::Siblings;
use super::catalogue::Catalogue;
use super::planning::Planning;
use crate::net::gate::Door;
use crate::runtime::Context;
use crate::runtime::duty::{Assembly, Duty, Registration};

/// Its line in the registry.
pub const DUTY: Registration = Registration {
    name: "inference",
    tables: &[],
    rules: &[
        // An edge's parents, and its siblings.
        Rule::new("/tierline.v1.Infer/Run", Roles::CHILDREN, Roles::PARENTS),
        Rule::new("/tierline.v1.Infer/Load", Roles::EDGE, Roles::EDGE),
        Rule::new("/tierline.v1.Local/Infer", Roles::OPERATOR, Roles::NODES),
    ],
    make: |assembly| {
        let inference = Inference::new(assembly);
        Box::new(assembly.add(inference))
    },
};

/// The duty.
pub struct Inference {
    cx: Context,
    catalogue: Arc<Catalogue>,
    planning: Arc<Planning>,
    numbers: Numbers,
    /// How models do that somebody watches.
    pub health: health::Watched,
    /// How many inferences of each caller may go past the exits.
    deep: DeepBudget,
    /// Whoever answers for several models under one name.
    services: OnceLock<Arc<dyn Services>>,
    /// Which of several parents takes a request.
    chooser: Mutex<Chooser<Peer>>,
    /// Edges that this one helps, and that help it.
    siblings: Siblings,
    /// Requests under way here.
    under_way: watch::Sender<usize>,
}

impl Inference {
    fn new(assembly: &Assembly) -> Arc<Self> {
        let (cx, catalogue, planning) = (assembly.cx.clone(), assembly.get(), assembly.get());
        let siblings = Siblings::new(&cx.me.config().siblings);
        let deep = DeepBudget::new(cx.me.config().deep_per_minute);
        Arc::new(Self {
            cx,
            catalogue,
            planning,
            numbers: Numbers::default(),
            health: health::Watched::default(),
            deep,
            services: OnceLock::new(),
            chooser: Mutex::default(),
            siblings,
            under_way: watch::Sender::default(),
        })
    }

    /// A request that entered here ended.
    fn count_request(&self, total: Duration, reply: &Reply) {
        self.numbers.request(total, reply);
        if let Some(degraded) = &reply.degraded {
            let json = serde_json::json!({ "cause": degraded.cause().as_str_name(), "node": degraded.node });
            self.cx.events.record("degraded", format!("degraded answer: {}", degraded.reason), &json);
        }
    }
}

#[tonic::async_trait]
impl Duty for Arc<Inference> {
    fn serve(&self, door: Door, routes: &mut RoutesBuilder) {
        if door == Door::Network {
            let service = InferServer::new(InferService(Arc::clone(self)));
            routes.add_service(service.max_decoding_message_size(MESSAGE_BYTES_MAX));
        }
    }

    async fn begin(&self) -> Result<(), Failure> {
        self.keep_siblings();
        Ok(())
    }

    fn drain(&self) {
        self.cx.device.compute.drain();
    }

    async fn drained(&self) {
        // The sender lives as long as this does.
        let _ = self.under_way.subscribe().wait_for(|under_way| *under_way == 0).await;
    }

    fn numbers(&self, out: &mut String) {
        self.numbers.text(out);
        self.siblings.text(self.cx.clock.now(), out);
    }
}
