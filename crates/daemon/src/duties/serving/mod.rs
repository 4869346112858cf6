//! Applications: the Open Inference Protocol, over HTTP and gRPC.
//!
//! Both ways in read a request as `tierline_proto::oip` has it, go through
//! [`answer`], and are counted in [`counts`]. [`describe`] says what models
//! take and give.

mod answer;
mod counts;
mod describe;
mod grpc;
mod rest;
mod tensors;

use std::sync::Arc;

use axum::Router;
use tierline_proto::oip::VERSION;
use tierline_proto::oip::messages::grpc_inference_service_server::GrpcInferenceServiceServer;
use tierline_proto::v1::{Code, Failure};
use tonic::service::RoutesBuilder;

use self::counts::Counts;
use super::catalogue::{Catalogue, Change, Entry};
use super::inference::Inference;
use crate::runtime::Context;
use crate::runtime::duty::{Assembly, Duty, Registration};

/// Bytes of one gRPC message of an application: what needs more comes over
/// HTTP, which is read piece by piece.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Its line in the registry.
pub const DUTY: Registration =
    Registration { name: "serving", tables: &[], rules: &[], make: |assembly| Box::new(Serving::new(assembly)) };

/// The duty.
pub struct Serving {
    cx: Context,
    catalogue: Arc<Catalogue>,
    inference: Arc<Inference>,
    counts: Arc<Counts>,
}

impl Serving {
    fn new(assembly: &Assembly) -> Arc<Self> {
        let (cx, catalogue) = (assembly.cx.clone(), assembly.get::<Catalogue>());
        let counts = Arc::new(Counts::default());
        let (counted, known) = (Arc::clone(&counts), Arc::clone(&catalogue.known));
        catalogue.on_change(move |change| {
            if matches!(change, Change::Gone(_) | Change::Renamed) {
                counted.keep(|name| known.get(name).is_some());
            }
        });
        Arc::new(Self { cx, catalogue, inference: assembly.get(), counts })
    }

    /// The model of a name, at a version that it has; an empty version is any.
    fn entry(&self, name: &str, version: &str) -> Result<Entry, Failure> {
        let entry = self.catalogue.entry(name)?;
        if !version.is_empty() && version != VERSION {
            let version: String = version.chars().take(32).collect();
            let text = format!("model `{}` has version {VERSION}, and no `{version}`", entry.manifest.name);
            return Err(Failure::new(Code::UnknownModel, text));
        }
        Ok(entry)
    }

    /// Whether requests for a model are answered.
    fn is_ready(&self, entry: &Entry) -> bool {
        !self.cx.end.has_begun() && self.catalogue.known.check_fit(entry.model).is_ok()
    }
}

#[tonic::async_trait]
impl Duty for Arc<Serving> {
    fn http(&self) -> Router {
        rest::router(self)
    }

    fn grpc(&self, routes: &mut RoutesBuilder) {
        let service = GrpcInferenceServiceServer::new(grpc::Service(Arc::clone(self)));
        routes.add_service(service.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(usize::MAX));
    }

    fn numbers(&self, out: &mut String) {
        self.counts.text(out);
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
