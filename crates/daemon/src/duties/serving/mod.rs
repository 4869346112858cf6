//! Applications: the Open Inference Protocol, over HTTP and gRPC.
//!
//! Both ways in read a request as `tierline_proto::oip` has it, go through
//! [`answer`], and are counted in [`counts`]. [`describe`] says what models
//! take and give.

mod answer;
mod counts;
mod describe;
mod grpc;
mod messages;
mod rest;
mod tensors;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use tierline_graph::ValueInfo;
use tierline_proto::Digest;
use tierline_proto::oip::VERSION;
use tierline_proto::oip::messages::grpc_inference_service_server::GrpcInferenceServiceServer;
use tierline_proto::v1::{Code, Failure};
use tonic::codec::CompressionEncoding;
use tonic::service::RoutesBuilder;

use self::counts::Counts;
use super::catalogue::{Catalogue, Change, Composed, Entry};
use super::inference::Inference;
use super::planning::Planning;
use crate::models::Manifest;
use crate::net::asking::Asker;
use crate::runtime::Context;
use crate::runtime::duty::{Assembly, Duty, Registration};

/// Bytes of one gRPC message of an application: what needs more comes over
/// HTTP, which is read piece by piece.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Each piece of a request has to come within this.
const PIECE_TIME_MAX: Duration = Duration::from_secs(10);

/// What says no more than which models are wanted.
const SMALL_BYTES_MAX: u64 = 64 << 10;

/// Its line in the registry.
pub const DUTY: Registration =
    Registration { name: "serving", tables: &[], rules: &[], make: |assembly| Box::new(Serving::new(assembly)) };

/// What applications know as a model: one of the catalogue, or several under
/// one name.
struct Model {
    name: String,
    /// Which version of it.
    version: String,
    /// All that can be asked for, the newest last.
    versions: Vec<String>,
    /// What a request for it asks the node for.
    asked: String,
    inputs: Vec<ValueInfo>,
    outputs: Vec<ValueInfo>,
    /// Of one that is no service.
    digest: Option<Digest>,
    /// How long a request waits for others that it may run with, where
    /// requests run as one here.
    batching: Option<Duration>,
}

/// The duty.
pub struct Serving {
    cx: Context,
    catalogue: Arc<Catalogue>,
    inference: Arc<Inference>,
    planning: Arc<Planning>,
    counts: Arc<Counts>,
}

impl Serving {
    fn new(assembly: &Assembly) -> Arc<Self> {
        let (cx, catalogue) = (assembly.cx.clone(), assembly.get::<Catalogue>());
        let counts = Arc::new(Counts::default());
        let (counted, known) = (Arc::clone(&counts), Arc::clone(&catalogue.known));
        catalogue.on_change(move |change| {
            if matches!(change, Change::Gone(_) | Change::Renamed) {
                counted.keep(|name| known.get(name).is_some() || known.service(name).is_some());
            }
        });
        Arc::new(Self { cx, catalogue, inference: assembly.get(), planning: assembly.get(), counts })
    }

    /// [`Serving::model`], of those that somebody may use; of others nobody is
    /// told whether there are such.
    fn model_for(&self, asker: &Asker, name: &str, version: &str) -> Result<Model, Failure> {
        asker.check_model(name)?;
        self.model(name, version)
    }

    /// The model or service of a name, at a version that it has; an empty
    /// version is any.
    fn model(&self, name: &str, version: &str) -> Result<Model, Failure> {
        let model = match self.catalogue.known.service(name) {
            Some(composed) => self.service(&composed)?,
            None => self.catalogued(self.catalogue.entry(name)?),
        };
        if version.is_empty() || version == model.version {
            return Ok(model);
        }
        let other = version.parse().ok().filter(|_| model.digest.is_some());
        match other.and_then(|version| self.catalogue.known.version(&model.name, version)) {
            Some(entry) => Ok(Model { asked: entry.versioned(), ..self.catalogued(entry) }),
            None => {
                let version: String = version.chars().take(32).collect();
                let text = format!("model `{}` has no version `{}`", model.name, version.escape_debug());
                Err(Failure::new(Code::UnknownModel, text).with_help(format!("it has {}", model.versions.join(", "))))
            }
        }
    }

    fn catalogued(&self, entry: Entry) -> Model {
        let Manifest { name, version, inputs, outputs, digest, .. } = entry.manifest;
        let bounds = self.cx.me.config().batching.bounds(&name);
        let batches = bounds.rows_max > 1 && self.cx.device.compute.runs_together(&digest);
        let batching = batches.then_some(bounds.delay);
        let versions = self.catalogue.known.versions_of(&name).iter().map(u64::to_string).collect();
        let (version, asked) = (version.to_string(), name.clone());
        Model { name, version, versions, asked, inputs, outputs, digest: Some(entry.model), batching }
    }

    fn service(&self, composed: &Composed) -> Result<Model, Failure> {
        let wiring = self.catalogue.wiring(&composed.service)?;
        Ok(Model {
            name: composed.name.clone(),
            version: VERSION.to_owned(),
            versions: vec![VERSION.to_owned()],
            asked: composed.name.clone(),
            inputs: wiring.inputs,
            outputs: wiring.outputs,
            digest: None,
            batching: None,
        })
    }

    /// All of them, by name; services whose members aren't all here are left out.
    fn models(&self) -> Vec<Model> {
        let known = &self.catalogue.known;
        let mut models: Vec<Model> = known.list().into_iter().map(|entry| self.catalogued(entry)).collect();
        models.extend(known.services().iter().filter_map(|composed| self.service(composed).ok()));
        models
    }

    /// Whether requests for a model are answered.
    fn is_ready(&self, model: &Model) -> bool {
        let fit = model.digest.is_none_or(|digest| self.catalogue.known.check_fit(digest).is_ok());
        fit && !self.is_warming(model) && !self.cx.end.has_begun()
    }

    /// Whether what its plan runs here is still being loaded.
    fn is_warming(&self, model: &Model) -> bool {
        model.digest.is_some_and(|digest| !self.planning.is_warm(digest))
    }
}

#[tonic::async_trait]
impl Duty for Arc<Serving> {
    fn http(&self) -> Router {
        rest::router(self)
    }

    fn grpc(&self, routes: &mut RoutesBuilder) {
        let service = GrpcInferenceServiceServer::new(grpc::Service(Arc::clone(self)))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(usize::MAX);
        let packing = service.clone().send_compressed(CompressionEncoding::Gzip);
        let packing = packing.send_compressed(CompressionEncoding::Deflate);
        let budget = self.cx.device.budget.clone();
        routes.add_service(messages::Counted { plain: service, packing, budget });
    }

    fn numbers(&self, out: &mut String) {
        self.counts.text(out);
    }
}

/// A request for a model, until it is answered: one that ends otherwise counts
/// as failed, and one whose caller went away as cancelled as well.
struct UnderWay<'s> {
    serving: &'s Serving,
    model: String,
    arrived: Instant,
    ended: bool,
}

impl<'s> UnderWay<'s> {
    fn new(serving: &'s Serving, model: String, arrived: Instant) -> Self {
        Self { serving, model, arrived, ended: false }
    }

    /// It was answered, or refused.
    fn end<T>(mut self, answer: Result<T, Failure>) -> Result<T, Failure> {
        self.ended = true;
        if answer.is_err() {
            self.serving.counts.failure(&self.model, self.arrived.elapsed());
        }
        answer
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.serving.counts.cancelled(&self.model, self.arrived.elapsed());
        }
    }
}

/// What an application hears of a failure: what it can do something about, and
/// nothing of this machine.
fn told(failure: &Failure) -> String {
    match failure.code() {
        Code::Engine => "the model failed on this input".to_owned(),
        Code::Internal | Code::Corrupt | Code::StorageFull | Code::Ok => "the node failed; its log says why".to_owned(),
        Code::UnknownModel => failure.message.clone(),
        _ if failure.help.is_empty() => failure.message.clone(),
        _ if failure.code() == Code::InvalidInput && !failure.help.contains("tierline ") => {
            format!("{}; {}", failure.message, failure.help)
        }
        _ => failure.message.clone(),
    }
}
