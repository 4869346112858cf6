//! The guard before every call over gRPC at the applications' door.

use std::task::{Context, Poll};

use tonic::Code;
use tonic::codegen::http::{HeaderMap, Request, Response, header};

use super::asking::{Asker, Guard};
use super::door::Caller;

/// Calls that everybody is answered: they say nothing but whether the node
/// lives.
const FREE: [&str; 2] = ["/inference.GRPCInferenceService/ServerLive", "/inference.GRPCInferenceService/ServerReady"];

/// Makes [`Guarded`]s; a layer for the whole server.
#[derive(Clone)]
pub struct GuardLayer(pub Guard);

/// Wraps a service with the guard.
#[derive(Clone)]
pub struct Guarded<S> {
    inner: S,
    guard: Guard,
}

impl<S> tower_layer::Layer<S> for GuardLayer {
    type Service = Guarded<S>;
    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, guard: self.0.clone() }
    }
}

impl<S, B, R> tower_service::Service<Request<B>> for Guarded<S>
where
    S: tower_service::Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    R: Default + Send + 'static,
    B: Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        match admit(&self.guard, &mut request) {
            Err(status) => Box::pin(std::future::ready(Ok(status.into_http()))),
            Ok(asker) => {
                // Each request of a stream is judged and kept by itself.
                let asker = asker.filter(|_| !request.uri().path().ends_with(STREAM));
                let answer = self.inner.call(request);
                Box::pin(async move {
                    let answered = answer.await;
                    if let (Some(asker), Ok(response)) = (asker, &answered) {
                        record(&asker, response.headers());
                    }
                    answered
                })
            }
        }
    }
}

/// The call whose requests come one behind the other.
const STREAM: &str = "/ModelStreamInfer";

/// What is asked for by a path, in a word: as over HTTP.
fn call(path: &str) -> &'static str {
    match path.rsplit_once('/').map_or(path, |(_, last)| last) {
        "ModelInfer" | "ModelStreamInfer" => "infer",
        "ModelReady" => "ready",
        "ModelConfig" => "config",
        "ModelStatistics" => "statistics",
        "ModelMetadata" => "metadata",
        "ServerMetadata" => "server",
        "RepositoryIndex" => "index",
        _ => "other",
    }
}

/// What became of a call, for the audit log. One that failed says so in its
/// head.
fn record(asker: &Asker, headers: &HeaderMap) {
    let status = tonic::Status::from_header_map(headers);
    match status.filter(|status| status.code() != Code::Ok) {
        None => asker.record("ok", false),
        Some(status) => {
            let refused = matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated);
            asker.record(&format!("{:?}", status.code()), refused);
        }
    }
}

fn admit<B>(guard: &Guard, request: &mut Request<B>) -> Result<Option<Asker>, tonic::Status> {
    let broken = || tonic::Status::internal("nobody knows who called");
    let caller = request.extensions().get::<Caller>().ok_or_else(broken)?;
    caller.asks();
    if FREE.contains(&request.uri().path()) {
        return Ok(None);
    }
    let asker = guard.admit(call(request.uri().path()), request.headers(), caller.address, caller.peer.as_ref());
    let asker = asker.and_then(|asker| asker.count().map(|()| asker)).map_err(|why| why.status())?;
    request.extensions_mut().insert(asker.clone());
    // It is of no use behind the door.
    request.headers_mut().remove(header::AUTHORIZATION);
    Ok(Some(asker))
}
