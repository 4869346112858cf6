//! The protocol over HTTP.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use tierline_proto::limits::RUN_BYTES_MAX;
use tierline_proto::oip::rest::{self, JSON_LENGTH_HEADER};
use tierline_proto::v1::{Code, Failure};
use tokio_stream::StreamExt;

use super::answer::Asked;
use super::messages::HoldingBody;
use super::{PIECE_TIME_MAX, SMALL_BYTES_MAX, Serving, UnderWay, describe, told};
use crate::device::budget::Held;
use crate::net::asking::Asker;
use crate::net::encoding::{self, Encoding};
use crate::net::plain::refusal;
use crate::runtime::tasks::in_place_over;

/// Pieces of a body whose length nobody told beforehand.
const PIECES_MAX: usize = 65_536;

/// All of this and more, as OpenAPI has it.
const DESCRIPTION: &str = include_str!("openapi.json");

/// Whoever is busy is asked again after so long, seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

type Duty = State<Arc<Serving>>;

/// Who asks.
type By = Extension<Asker>;

/// A path's parts, where they are text.
type Parts<T> = Result<Path<T>, PathRejection>;

/// Every path of the protocol.
pub fn router(serving: &Arc<Serving>) -> Router {
    let mut router = Router::new()
        .route("/v2", get(async || json(&describe::server_json())))
        .route("/v2/", get(async || json(&describe::server_json())))
        .route("/v2/health/live", get(async || json(&json!({ "live": true }))))
        .route("/v2/health/ready", get(ready))
        .route("/v2/models/stats", get(all_statistics))
        .route("/v2/repository/index", post(index))
        .route("/openapi.json", get(async || ([(header::CONTENT_TYPE, "application/json")], DESCRIPTION)));
    // With a version in the path, and without.
    for model in ["/v2/models/{model}", "/v2/models/{model}/versions/{version}"] {
        router = router
            .route(model, get(metadata))
            .route(&format!("{model}/ready"), get(model_ready))
            .route(&format!("{model}/config"), get(config))
            .route(&format!("{model}/stats"), get(statistics))
            .route(&format!("{model}/infer"), post(infer));
    }
    router.with_state(Arc::clone(serving))
}

fn json(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// A failure, with its status.
fn failed(failure: &Failure) -> Response {
    let code = failure.code();
    if code.http_status() >= 500 {
        tracing::debug!(%failure, "an application's request failed");
    }
    let status = StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = refusal(status, &told(failure));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
    }
    response
}

fn answered(result: Result<Value, Failure>) -> Response {
    result.map_or_else(|failure| failed(&failure), |value| json(&value))
}

/// Model and version of a path; an empty version where it has none.
fn named(path: Parts<Vec<(String, String)>>) -> Result<(String, String), Failure> {
    let Path(parts) = path.map_err(|_| Failure::new(Code::InvalidInput, "the path is no text"))?;
    let of = |wanted: &str| parts.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone());
    Ok((of("model").unwrap_or_default(), of("version").unwrap_or_default()))
}

async fn ready(State(serving): Duty) -> Response {
    let ready = !serving.cx.end.has_begun();
    let body = json(&json!({ "ready": ready, "degraded": serving.cx.parents.are_cut_off() }));
    if ready { body } else { (StatusCode::SERVICE_UNAVAILABLE, body).into_response() }
}

async fn model_ready(State(serving): Duty, Extension(asker): By, path: Parts<Vec<(String, String)>>) -> Response {
    let found = named(path).and_then(|(model, version)| serving.model_for(&asker, &model, &version));
    match found {
        Ok(model) => {
            let ready = serving.is_ready(&model);
            let body = json(&json!({ "name": model.name, "ready": ready }));
            if ready { body } else { (StatusCode::SERVICE_UNAVAILABLE, body).into_response() }
        }
        Err(failure) => failed(&failure),
    }
}

async fn metadata(State(serving): Duty, Extension(asker): By, path: Parts<Vec<(String, String)>>) -> Response {
    let found = named(path).and_then(|(model, version)| serving.model_for(&asker, &model, &version));
    answered(found.map(|model| describe::metadata_json(&model)))
}

async fn config(State(serving): Duty, Extension(asker): By, path: Parts<Vec<(String, String)>>) -> Response {
    let found = named(path).and_then(|(model, version)| serving.model_for(&asker, &model, &version));
    answered(found.map(|model| describe::config_json(&model)))
}

async fn statistics(State(serving): Duty, Extension(asker): By, path: Parts<Vec<(String, String)>>) -> Response {
    let found = named(path).and_then(|(model, version)| serving.model_for(&asker, &model, &version));
    answered(found.map(|model| describe::statistics_json(serving.statistics(&asker, Some(&model)))))
}

async fn all_statistics(State(serving): Duty, Extension(asker): By) -> Response {
    json(&describe::statistics_json(serving.statistics(&asker, None)))
}

async fn index(State(serving): Duty, Extension(asker): By, request: Request<Body>) -> Response {
    let read = async {
        let held = serving.cx.device.budget.request(&asker.share());
        let body = match body(request, SMALL_BYTES_MAX, &held).await? {
            Ok(body) => body,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if body.iter().all(u8::is_ascii_whitespace) {
            return Ok(Ok(false));
        }
        let wrong = |_| Failure::new(Code::InvalidInput, "this is no request for the index of models");
        let asked: Value = serde_json::from_slice(&body).map_err(wrong)?;
        let wrong = || Failure::new(Code::InvalidInput, "`ready` is true or false");
        let Value::Object(asked) = asked else { return Err(wrong()) };
        asked.get("ready").map_or(Ok(false), |ready| ready.as_bool().ok_or_else(wrong)).map(Ok)
    };
    match read.await {
        Ok(Err(refusal)) => refusal,
        Ok(Ok(only_ready)) => json(&describe::index_json(serving.index(&asker, only_ready))),
        Err(failure) => failed(&failure),
    }
}

async fn infer(
    State(serving): Duty,
    Extension(asker): By,
    path: Parts<Vec<(String, String)>>,
    request: Request<Body>,
) -> Response {
    let arrived = Instant::now();
    match answer(&serving, &asker, path, request, arrived).await {
        Ok(response) => response,
        Err(failure) => failed(&failure),
    }
}

async fn answer(
    serving: &Arc<Serving>,
    asker: &Asker,
    path: Parts<Vec<(String, String)>>,
    request: Request<Body>,
    arrived: Instant,
) -> Result<Response, Failure> {
    let (model, version) = named(path)?;
    // Before a body is read for nothing.
    let found = match serving.model_for(asker, &model, &version) {
        Ok(found) => found,
        Err(failure) => {
            // A small one is read all the same: else its connection could carry no further request.
            let held = serving.cx.device.budget.request(&asker.share());
            let _ = whole(request, SMALL_BYTES_MAX, &held).await;
            return Err(failure);
        }
    };
    let under_way = UnderWay::new(serving, found.name, arrived);
    let answered = read_and_answer(serving, asker, (model, version), request, arrived).await;
    under_way.end(answered)
}

async fn read_and_answer(
    serving: &Arc<Serving>,
    asker: &Asker,
    (model, version): (String, String),
    request: Request<Body>,
    arrived: Instant,
) -> Result<Response, Failure> {
    let length = text(request.headers(), JSON_LENGTH_HEADER).map(str::to_owned);
    let trace = text(request.headers(), "traceparent").unwrap_or_default().to_owned();
    let held = serving.cx.device.budget.request(&asker.share());
    let wanted = Encoding::wanted(request.headers());
    let body = match body(request, RUN_BYTES_MAX, &held).await? {
        Ok(body) => body,
        Err(refusal) => return Ok(refusal),
    };
    // Text takes long to read; what lies behind it is only looked at.
    let text = length.as_deref().and_then(|length| length.parse().ok()).unwrap_or(body.len() as u64);
    let request = in_place_over(8 * text.min(body.len() as u64), || rest::read(&body, length.as_deref()))?;
    let wants = request.outputs.clone();
    let binary = request.binary;
    let asked = Asked { model, version, request, trace, patience: None, arrived, held };
    let (response, held) = serving.answer(asked).await?;
    let is_binary = |output: &str| {
        let wanted = wants.iter().find(|wanted| wanted.name == output);
        wanted.and_then(|wanted| wanted.binary).unwrap_or(binary)
    };
    let body = rest::write(&response, is_binary)?;
    let packed = wanted.and_then(|encoding| {
        let packed = in_place_over(8 * body.bytes.len() as u64, || encoding::pack(encoding, &body.bytes))?;
        Some((encoding, packed))
    });
    let (encoding, bytes) = packed.map_or((None, body.bytes), |(encoding, packed)| (Some(encoding), packed));
    let mut response = Response::new(Body::new(HoldingBody { body: Body::from(bytes), _held: held }));
    if let Some(encoding) = encoding {
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding.word()));
        response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    }
    let headers = response.headers_mut();
    let kind = if body.json.is_some() { "application/octet-stream" } else { "application/json" };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Some(length) = body.json {
        headers.insert(JSON_LENGTH_HEADER, length.into());
    }
    Ok(response)
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).map(|value| value.to_str().unwrap_or("?"))
}

/// A request's body as it was before it was packed, as far as it may hold it;
/// or a refusal, where it is packed in a way that isn't known here.
async fn body(request: Request<Body>, bytes_max: u64, held: &Held) -> Result<Result<Bytes, Response>, Failure> {
    let mut said = request.headers().get_all(header::CONTENT_ENCODING).iter();
    let name = said.next().map_or("", |value| value.to_str().unwrap_or("?"));
    let encoding = match Encoding::named(name) {
        Ok(encoding) if said.next().is_none() => encoding,
        unknown => {
            let unknown = unknown.err().unwrap_or_else(|| "several encodings".to_owned());
            let text = format!("bodies in `{unknown}` aren't taken: send it plain, or in gzip, deflate or zstd");
            let mut refused = refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, &text);
            refused.headers_mut().insert(header::ACCEPT_ENCODING, encoding::TAKEN);
            return Ok(Err(refused));
        }
    };
    let body = whole(request, bytes_max, held).await?;
    let Some(encoding) = encoding else { return Ok(Ok(body)) };
    let unpacked = in_place_over(64 * body.len() as u64, || encoding::unpack(encoding, &body, bytes_max, held))?;
    held.give_back(body.len() as u64);
    Ok(Ok(unpacked))
}

/// A request's body as it comes.
async fn whole(request: Request<Body>, bytes_max: u64, held: &Held) -> Result<Bytes, Failure> {
    let too_large = || Failure::new(Code::TooLarge, format!("a request has at most {bytes_max} bytes"));
    let declared = text(request.headers(), "content-length").and_then(|text| text.parse::<u64>().ok());
    if declared.is_some_and(|length| length > bytes_max) {
        return Err(too_large());
    }
    held.take(declared.unwrap_or(0))?;
    let mut body = BytesMut::with_capacity(declared.unwrap_or(0).min(1 << 20) as usize);
    let mut stream = request.into_body().into_data_stream();
    let mut pieces = 0usize;
    loop {
        let piece = tokio::time::timeout(PIECE_TIME_MAX, stream.next()).await;
        let late = |_| Failure::new(Code::DeadlineExceeded, "the request's body did not come in time");
        let Some(piece) = piece.map_err(late)? else { break };
        let piece = piece.map_err(|_| Failure::new(Code::Protocol, "the request's body broke off"))?;
        pieces += 1;
        if declared.is_none() {
            if pieces > PIECES_MAX {
                let text = format!("a body comes in at most {PIECES_MAX} chunks");
                return Err(Failure::new(Code::TooLarge, text));
            }
            held.take(piece.len() as u64)?;
        }
        if (body.len() + piece.len()) as u64 > bytes_max {
            return Err(too_large());
        }
        body.extend_from_slice(&piece);
    }
    Ok(body.freeze())
}
