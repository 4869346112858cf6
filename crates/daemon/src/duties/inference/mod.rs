//! Requests: run here, in part or whole, and handed on.
//!
//! `exits` judges early exits. `entry` has those that enter the site here, `service` those that children
//! hand on, `flow` the path of each. `wire` makes bytes of tensors, and tensors
//! of bytes.

mod calls;
mod entry;
mod exits;
mod flow;
pub mod members;
mod numbers;
mod service;
pub mod wire;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tierline_node::policy::{Roles, Rule};
use tierline_proto::limits::MESSAGE_BYTES_MAX;
use tierline_proto::v1::Reply;
use tierline_proto::v1::infer_server::InferServer;
use tokio::sync::watch;
use tonic::service::RoutesBuilder;

pub use self::entry::{Answered, Entered, ask, infer};
use self::exits::DeepBudget;
pub use self::flow::Answer;
use self::members::Services;
use self::numbers::Numbers;
use self::service::InferService;
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
        Rule::new("/tierline.v1.Infer/Run", Roles::CHILDREN, Roles::PARENTS),
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
    /// How many inferences of each caller may go past the exits.
    deep: DeepBudget,
    /// Whoever answers for several models under one name.
    services: OnceLock<Arc<dyn Services>>,
    /// Requests under way here.
    under_way: watch::Sender<usize>,
}

impl Inference {
    fn new(assembly: &Assembly) -> Arc<Self> {
        let (cx, catalogue, planning) = (assembly.cx.clone(), assembly.get(), assembly.get());
        let deep = DeepBudget::new(cx.me.config().deep_per_minute);
        Arc::new(Self {
            cx,
            catalogue,
            planning,
            numbers: Numbers::default(),
            deep,
            services: OnceLock::new(),
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

    fn drain(&self) {
        self.cx.device.compute.drain();
    }

    async fn drained(&self) {
        // The sender lives as long as this does.
        let _ = self.under_way.subscribe().wait_for(|under_way| *under_way == 0).await;
    }

    fn numbers(&self, out: &mut String) {
        self.numbers.text(out);
    }
}
