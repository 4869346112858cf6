//! Several models under one name: cascades, ensembles, chains.
//!
//! The catalogue keeps what they are made of; `flow` has the path of a request
//! past the models, which are asked as ordinary requests.

mod flow;
mod numbers;

use std::sync::Arc;
use std::time::Instant;

use tierline_proto::Encoded;
use tierline_proto::v1::InferHeader;

use self::numbers::Numbers;
use super::catalogue::Catalogue;
use super::inference::Inference;
use super::inference::members::{self, Answering};
use crate::device::budget::Held;
use crate::runtime::Context;
use crate::runtime::duty::{Assembly, Duty, Registration};

/// Its line in the registry.
pub const DUTY: Registration = Registration {
    name: "services",
    tables: &[],
    rules: &[],
    make: |assembly| {
        let services = Services::new(assembly);
        Box::new(assembly.add(services))
    },
};

/// The duty.
pub struct Services {
    cx: Context,
    catalogue: Arc<Catalogue>,
    inference: Arc<Inference>,
    numbers: Numbers,
}

impl Services {
    fn new(assembly: &Assembly) -> Arc<Self> {
        let (cx, catalogue, inference): (_, _, Arc<Inference>) = (assembly.cx.clone(), assembly.get(), assembly.get());
        let services = Arc::new(Self { cx, catalogue, inference, numbers: Numbers::default() });
        services.inference.serve_by(Arc::new(Named(Arc::clone(&services))));
        services
    }
}

/// Services, as requests ask for them.
struct Named(Arc<Services>);

impl members::Services for Named {
    fn has(&self, name: &str) -> bool {
        self.0.catalogue.known.service(name).is_some()
    }

    fn answer(
        &self,
        id: Vec<u8>,
        header: InferHeader,
        encoded: Vec<Encoded>,
        deadline: Instant,
        held: Arc<Held>,
    ) -> Answering<'_> {
        Box::pin(flow::answer(&self.0, id, header, encoded, deadline, held))
    }
}

impl Duty for Arc<Services> {
    fn numbers(&self, out: &mut String) {
        self.numbers.text(out);
    }
}
