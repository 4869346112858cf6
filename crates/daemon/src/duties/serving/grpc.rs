//! The protocol over gRPC.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tierline_proto::failure::grpc_code;
use tierline_proto::oip::grpc;
use tierline_proto::oip::messages::grpc_inference_service_server::GrpcInferenceService;
use tierline_proto::oip::messages::{
    ModelConfigRequest, ModelConfigResponse, ModelInferRequest, ModelInferResponse, ModelMetadataRequest,
    ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse, ModelStatisticsRequest, ModelStatisticsResponse,
    ModelStreamInferResponse, RepositoryIndexRequest, RepositoryIndexResponse, ServerLiveRequest, ServerLiveResponse,
    ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
};
use tierline_proto::v1::{Code, Failure};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Request, Response, Status, Streaming};

use super::answer::Asked;
use super::messages::{Arrived, Out};
use super::{Serving, UnderWay, describe, told};
use crate::device::budget::Held;
use crate::net::asking::Asker;
use crate::net::door::Caller;

/// Answers of a stream ahead of the connection.
const AHEAD_MAX: usize = 4;

/// The service.
pub struct Service(pub Arc<Serving>);

type Answer<T> = Result<Response<T>, Status>;

/// A failure, with its code.
fn failed(failure: &Failure) -> Status {
    let code = grpc_code(failure.code());
    if matches!(code, tonic::Code::Internal | tonic::Code::DataLoss | tonic::Code::Unavailable) {
        tracing::debug!(%failure, "an application's request failed");
    }
    Status::new(code, told(failure))
}

/// Who asks, as the door found.
fn asker(extensions: &Extensions) -> Result<Asker, Status> {
    extensions.get::<Asker>().cloned().ok_or_else(|| Status::internal("nobody knows who called"))
}

/// Whose share of memory a call uses.
pub fn caller(extensions: &Extensions) -> String {
    let address = || extensions.get::<Caller>().map_or_else(String::new, |caller| format!("{:?}", caller.from));
    extensions.get::<Asker>().map_or_else(address, Asker::share)
}

/// Time that a call is given by who makes it.
fn patience(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number.saturating_mul(3_600)),
        "M" => Duration::from_secs(number.saturating_mul(60)),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

impl Service {
    async fn answer(
        &self,
        message: ModelInferRequest,
        held: Held,
        asker: &Asker,
        (patience, trace): (Option<Duration>, String),
        arrived: Instant,
    ) -> Result<(ModelInferResponse, Arc<Held>), Failure> {
        let (model, version) = (message.model_name.clone(), message.model_version.clone());
        let under_way = UnderWay::new(&self.0, self.0.model_for(asker, &model, &version)?.name, arrived);
        let answer = async {
            let request = grpc::read(message)?;
            let asked = Asked { model, version, request, trace, patience, arrived, held };
            let (response, held) = self.0.answer(asked).await?;
            Ok((grpc::write(response), held))
        };
        let answered = self.0.cx.tasks.caught("call", answer).await.and_then(|answered| answered);
        under_way.end(answered)
    }

    /// What a message holds of the node's memory that was read just now.
    fn held(&self, arrived: &Arrived) -> Result<Held, Failure> {
        arrived.next().ok_or_else(|| Failure::new(Code::Internal, "a message came that nobody counted"))
    }
}

fn trace(metadata: &MetadataMap) -> String {
    metadata.get("traceparent").and_then(|text| text.to_str().ok()).unwrap_or_default().to_owned()
}

#[tonic::async_trait]
impl GrpcInferenceService for Service {
    type ModelStreamInferStream = ReceiverStream<Result<ModelStreamInferResponse, Status>>;

    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Answer<ServerLiveResponse> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Answer<ServerReadyResponse> {
        Ok(Response::new(ServerReadyResponse { ready: !self.0.cx.end.has_begun() }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Answer<ModelReadyResponse> {
        let asker = asker(request.extensions())?;
        let ModelReadyRequest { name, version } = request.into_inner();
        let found = self.0.model_for(&asker, &name, &version);
        if let Err(failure) = found.as_ref().map(drop)
            && failure.code() == Code::Forbidden
        {
            return Err(failed(failure));
        }
        let ready = found.is_ok_and(|model| self.0.is_ready(&model));
        Ok(Response::new(ModelReadyResponse { ready }))
    }

    async fn server_metadata(&self, _: Request<ServerMetadataRequest>) -> Answer<ServerMetadataResponse> {
        Ok(Response::new(describe::server()))
    }

    async fn model_metadata(&self, request: Request<ModelMetadataRequest>) -> Answer<ModelMetadataResponse> {
        let asker = asker(request.extensions())?;
        let ModelMetadataRequest { name, version } = request.into_inner();
        let model = self.0.model_for(&asker, &name, &version).map_err(|failure| failed(&failure))?;
        Ok(Response::new(describe::metadata(&model)))
    }

    async fn model_config(&self, request: Request<ModelConfigRequest>) -> Answer<ModelConfigResponse> {
        let asker = asker(request.extensions())?;
        let ModelConfigRequest { name, version } = request.into_inner();
        let model = self.0.model_for(&asker, &name, &version).map_err(|failure| failed(&failure))?;
        Ok(Response::new(ModelConfigResponse { config: Some(describe::config(&model)) }))
    }

    async fn model_statistics(&self, request: Request<ModelStatisticsRequest>) -> Answer<ModelStatisticsResponse> {
        let asker = asker(request.extensions())?;
        let ModelStatisticsRequest { name, version } = request.into_inner();
        let model = match name.is_empty() {
            true => None,
            false => Some(self.0.model_for(&asker, &name, &version).map_err(|failure| failed(&failure))?),
        };
        Ok(Response::new(ModelStatisticsResponse { model_stats: self.0.statistics(&asker, model.as_ref()) }))
    }

    async fn repository_index(&self, request: Request<RepositoryIndexRequest>) -> Answer<RepositoryIndexResponse> {
        let asker = asker(request.extensions())?;
        Ok(Response::new(RepositoryIndexResponse { models: self.0.index(&asker, request.into_inner().ready) }))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Answer<ModelInferResponse> {
        let arrived = Instant::now();
        let asker = asker(request.extensions())?;
        let context = (patience(request.metadata()), trace(request.metadata()));
        let answered = async {
            let held = self.held(&Arrived::of(request.extensions()))?;
            self.answer(request.into_inner(), held, &asker, context, arrived).await
        };
        let (message, held) = answered.await.map_err(|failure| failed(&failure))?;
        let mut response = Response::new(message);
        response.extensions_mut().insert(Out(held));
        Ok(response)
    }

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Answer<Self::ModelStreamInferStream> {
        let asker = asker(request.extensions())?;
        let messages = Arrived::of(request.extensions());
        let trace = trace(request.metadata());
        let service = Self(Arc::clone(&self.0));
        let mut requests = request.into_inner();
        let answers = self.0.cx.tasks.stream("stream of requests", AHEAD_MAX, |send| async move {
            // Those of answers that may not be sent yet.
            let mut held = VecDeque::new();
            loop {
                let message = match requests.message().await {
                    Ok(Some(message)) => message,
                    Ok(None) => return,
                    Err(status) => {
                        let _ = send.send(Err(status)).await;
                        return;
                    }
                };
                // Rights end while streams go on.
                let asker = match asker.again() {
                    Ok(asker) => asker,
                    Err(why) => {
                        let _ = send.send(Err(why.status())).await;
                        return;
                    }
                };
                let (id, arrived) = (message.id.clone(), Instant::now());
                let answer = async {
                    service.answer(message, service.held(&messages)?, &asker, (None, trace.clone()), arrived).await
                };
                let answer = tokio::select! {
                    answer = answer => answer,
                    // Nobody reads answers any more.
                    () = send.closed() => return,
                };
                let answer = match answer {
                    Ok((response, holds)) => {
                        asker.record("ok", false);
                        held.push_back(holds);
                        if held.len() > AHEAD_MAX + 1 {
                            held.pop_front();
                        }
                        ModelStreamInferResponse { error_message: String::new(), infer_response: Some(response) }
                    }
                    // Which request it was, its id says.
                    Err(failure) => {
                        asker.record(&format!("{:?}", grpc_code(failure.code())), failure.code() == Code::Forbidden);
                        ModelStreamInferResponse {
                            error_message: told(&failure),
                            infer_response: Some(ModelInferResponse { id, ..ModelInferResponse::default() }),
                        }
                    }
                };
                if send.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(answers))
    }
}
