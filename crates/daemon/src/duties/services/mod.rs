//! Several models under one name: cascades, ensembles, chains.
//!
//! The catalogue keeps what they are made of; `flow` has the path of a request
//! past the models, which are asked as ordinary requests.

mod counts;
pub mod examples;
mod explain;
mod flow;
mod following;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tierline_node::policy::{Roles, Rule};
use tierline_plan::service::{Kind, Member};
use tierline_proto::v1::{Failure, InferHeader};
use tierline_proto::{Digest, Encoded};

use self::counts::Numbers;
pub use self::counts::STEP;
use self::examples::Keeping;
use self::following::Following;
use super::artefacts::Artefacts;
use super::catalogue::{Catalogue, Composed};
use super::inference::Inference;
use super::inference::members::{self, Answering};
use super::planning::Planning;
use crate::device::budget::Held;
use crate::runtime::duty::{Assembly, Duty, Registration};
use crate::runtime::{Context, numbers};

/// Its line in the registry.
pub const DUTY: Registration = Registration {
    name: "services",
    tables: tierline_store::examples::TABLES,
    rules: &[
        Rule::new("/tierline.v1.Local/ExampleList", Roles::OPERATOR, Roles::NODES),
        Rule::new("/tierline.v1.Local/ExampleFetch", Roles::OPERATOR, Roles::NODES),
        Rule::new("/tierline.v1.Local/ExampleRemove", Roles::OPERATOR, Roles::NODES),
    ],
    make: |assembly| {
        let services = Services::new(assembly);
        Box::new(assembly.add(services))
    },
};

/// The duty.
pub struct Services {
    cx: Context,
    artefacts: Arc<Artefacts>,
    catalogue: Arc<Catalogue>,
    inference: Arc<Inference>,
    planning: Arc<Planning>,
    numbers: Numbers,
    keeping: Keeping,
    following: Following,
}

impl Services {
    fn new(assembly: &Assembly) -> Arc<Self> {
        let (cx, catalogue, inference): (_, _, Arc<Inference>) = (assembly.cx.clone(), assembly.get(), assembly.get());
        let (artefacts, planning) = (assembly.get(), assembly.get());
        let (numbers, keeping) = (Numbers::default(), Keeping::default());
        let services = Arc::new(Self {
            cx,
            artefacts,
            catalogue,
            inference,
            planning,
            numbers,
            keeping,
            following: Following::default(),
        });
        services.inference.serve_by(Arc::new(Named(Arc::clone(&services))));
        services
    }
}

/// Who answered for a cascade lately.
pub struct Lately {
    /// The service.
    pub name: String,
    /// Its members, the smallest first.
    pub members: Vec<String>,
    /// Answers of each in each of the last steps of [`STEP`], the one under way
    /// at the end.
    pub answers: Vec<Vec<u64>>,
}

impl Services {
    /// Who answered for each cascade lately.
    pub fn lately(&self) -> Vec<Lately> {
        let (services, now) = (self.catalogue.known.services(), self.cx.clock.now());
        let cascades = services.into_iter().filter(|composed| composed.service.kind == Kind::Cascade);
        let lately = |composed: Composed| {
            let members: Vec<&str> = composed.service.members.iter().map(Member::name).collect();
            let answers = self.numbers.lately(now, &composed.name, &members);
            let members = members.into_iter().map(str::to_owned).collect();
            Lately { members, answers, name: composed.name }
        };
        cascades.map(lately).collect()
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

#[tonic::async_trait]
impl Duty for Arc<Services> {
    async fn needs(&self, needed: &mut HashSet<Digest>) -> Result<(), Failure> {
        let rows = self.cx.state.with(|state| state.examples("")).await?;
        needed.extend(rows.into_iter().map(|row| row.artefact));
        Ok(())
    }

    fn numbers(&self, out: &mut String) {
        self.numbers.text(out);
        self.following.text(out);
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        let help = "Examples of services that were kept here.";
        numbers::single(out, "tierline_examples_kept_total", "counter", help, count(&self.keeping.kept));
        let help = "Examples that were picked and not kept: no room, or too many at once.";
        numbers::single(out, "tierline_examples_dropped_total", "counter", help, count(&self.keeping.dropped));
    }
}
