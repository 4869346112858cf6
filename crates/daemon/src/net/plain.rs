//! Doors at addresses of their own: HTTP and gRPC for applications, HTTP for
//! Prometheus.
//!
//! Beyond this machine, those for applications speak TLS and ask who calls
//! ([`asking`](super::asking)). Whoever is slow makes room for who isn't: there are so many places, and so
//! many for one address; a request's head has to come within a time. What is
//! answered there, the duties say ([`Duty::http`](crate::runtime::duty::Duty::http)).

use std::convert::Infallible;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tierline_identity::tls;
use tierline_node::places::{Network, Shares};
use tierline_proto::Role;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::RoutesBuilder;
use tonic::transport::Server;
use tower_service::Service;

use super::asking::{Asker, Guard, Policy, Refused};
use super::asking_grpc::GuardLayer;
use super::door::{Caller, Connection, Held, Room};
use super::stream::Stream;
use super::transport::HEADER_BYTES_MAX;
use crate::config::{Required, ServeConfig, Tls, Wish};
use crate::error::{ErrorKind, NodeError, NodeResult, OfKind};
use crate::runtime::tasks::TaskHandle;
use crate::runtime::{Context, Me, numbers};

/// A request's head has to come within this, and a connection on which nothing
/// is asked is closed after it.
const HEAD_TIME_MAX: Duration = Duration::from_secs(30);

/// A caller that answers no ping for so long is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Calls at once on one connection.
const STREAMS_MAX: u32 = 128;

/// Connections that are accepted and that nobody serves yet.
const READY_MAX: usize = 64;

/// Connections at once, in all and of one address. Applications hold one for
/// each request under way, and many stand behind one address.
const PLACES: Shares =
    Shares { total: 1_024, kept_for_known: 0, each: 768, each_known: 768, grace: Duration::from_secs(2) };

/// The same where callers have to say who they are: some places are for
/// addresses from which somebody did.
const GUARDED: Shares = Shares { kept_for_known: 256, ..PLACES };

/// Those of Prometheus: a few.
const SCRAPES: Shares =
    Shares { total: 32, kept_for_known: 0, each: 8, each_known: 8, grace: Duration::from_millis(500) };

/// Paths that everybody is answered: they say nothing but whether the node
/// lives.
const FREE: [&str; 4] = ["/livez", "/readyz", "/v2/health/live", "/v2/health/ready"];

/// The page, which has nothing in it before somebody signs in, and looks after
/// itself.
const PAGE: &str = "/dashboard";

/// Where a caller is, for whom nobody asks who it is.
#[derive(Debug, Clone, Copy)]
pub struct From {
    /// On this machine.
    pub here: bool,
    /// What is sent here, nobody reads on the way.
    pub private: bool,
}

/// The doors of a node beside those for other nodes.
pub struct Plain {
    http: Option<Open>,
    grpc: Option<Open>,
    metrics: Option<TcpListener>,
}

/// One for applications.
struct Open {
    listener: TcpListener,
    policy: Policy,
    tls: Option<Arc<ServerConfig>>,
}

/// Where a node answers beside its door for other nodes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Places {
    /// HTTP, and whether over TLS.
    pub http: Option<(SocketAddr, bool)>,
    /// gRPC, and whether over TLS.
    pub grpc: Option<(SocketAddr, bool)>,
    /// Numbers only.
    pub metrics: Option<SocketAddr>,
}

impl Plain {
    /// Takes the addresses that the configuration names.
    ///
    /// # Errors
    /// When one can't be had that was asked for, or would be open to a network.
    pub async fn listen(me: &Me) -> NodeResult<Self> {
        let serve = &me.config().serve;
        let http = listen(me, serve.http(me.role()), "--http", tls::ALPN_HTTP).await?;
        let grpc = listen(me, serve.grpc(me.role()), "--grpc", tls::ALPN).await?;
        let metrics = match &me.config().metrics {
            None => None,
            Some(address) => Some(TcpListener::bind(address).await.map_err(|e| {
                NodeError::message(ErrorKind::Configuration, format!("cannot give numbers at {address}: {e}"))
                    .hint("choose another address with --metrics HOST:PORT")
            })?),
        };
        Ok(Self { http, grpc, metrics })
    }

    /// Where that is.
    #[must_use]
    pub fn places(&self) -> Places {
        let of = |door: &Option<Open>| {
            let door = door.as_ref()?;
            Some((door.listener.local_addr().ok()?, door.tls.is_some()))
        };
        let metrics = self.metrics.as_ref().and_then(|listener| listener.local_addr().ok());
        Places { http: of(&self.http), grpc: of(&self.grpc), metrics }
    }

    /// Answers there until the node ends; who is waited for then.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn serve(self, cx: &Context) -> NodeResult<Vec<TaskHandle<()>>> {
        let mut served = Vec::new();
        if let Some(listener) = self.metrics {
            served.push(serve_http(cx, "scrape", listener, scraped(cx), SCRAPES, Entrance::default())?);
        }
        if let Some(door) = self.http {
            let mut router = scraped(cx);
            for duty in cx.duties.all() {
                router = router.merge(duty.http());
            }
            let entrance = Entrance { guard: Some(Guard::new(cx, door.policy)), tls: door.tls.map(TlsAcceptor::from) };
            served.push(serve_http(cx, "http", door.listener, router, shares(door.policy), entrance)?);
        }
        if let Some(door) = self.grpc {
            served.push(serve_grpc(cx, door)?);
        }
        Ok(served)
    }
}

/// An address for applications; one that nobody asked for and that is taken is
/// gone without.
async fn listen(me: &Me, wish: Wish<'_>, flag: &str, alpn: &[u8]) -> NodeResult<Option<Open>> {
    let (address, asked) = match wish {
        Wish::Nowhere => return Ok(None),
        Wish::Default(address) => (address.to_owned(), false),
        Wish::At(address) => (address.to_owned(), true),
    };
    match TcpListener::bind(&address).await {
        Ok(listener) => {
            let local = listener.local_addr()?;
            let serve = &me.config().serve;
            let (policy, secured) = policy(serve, local, &address, me.role())?;
            let tls = secured.then(|| serving_tls(me, serve, alpn)).transpose()?;
            Ok(Some(Open { listener, policy, tls }))
        }
        Err(error) if !asked => {
            tracing::info!("applications aren't served at {address}: {error}");
            Ok(None)
        }
        Err(error) => Err(NodeError::message(
            ErrorKind::Configuration,
            format!("cannot serve applications at {address}: {error}"),
        )
        .hint(format!("choose another address with {flag} HOST:PORT"))),
    }
}

/// What a door at an address asks of whom, and whether it speaks TLS.
fn policy(serve: &ServeConfig, local: SocketAddr, address: &str, role: Role) -> NodeResult<(Policy, bool)> {
    let wrong = |text: String, hint: &str| Err(NodeError::message(ErrorKind::Configuration, text).hint(hint));
    let beyond = !local.ip().to_canonical().is_loopback();
    let all = serve.require == Some(Required::All);
    let own = serve.certificate.is_some();
    let tls = serve.tls.unwrap_or(if own || (beyond && !serve.open) { Tls::Own } else { Tls::None });
    if tls == Tls::None && beyond && !serve.open {
        return wrong(
            format!("{address} can be reached from the network, and tokens could be read on the way to it"),
            "leave `tls` in `[serve]` of node.toml away (with `tierline serve`, say --keep DIR), so that the node speaks \
             TLS; or say `tls = \"front\"` where something in front of it does; or choose 127.0.0.1. `open = true` lets \
             anybody in, without tokens",
        );
    }
    if tls == Tls::Own && role == Role::End && !own {
        return wrong(
            format!("{address} can be reached from the network, and an end's certificate is not good for TLS there"),
            "name others with `certificate` and `key` in `[serve]` of node.toml, or serve at an edge",
        );
    }
    let policy = Policy {
        open: serve.open,
        // Behind a proxy everybody looks as if on this machine.
        open_here: !all && tls != Tls::Front,
        private: tls != Tls::None,
    };
    Ok((policy, tls == Tls::Own))
}

fn serving_tls(me: &Me, serve: &ServeConfig, alpn: &[u8]) -> NodeResult<Arc<ServerConfig>> {
    let live = me.live_identity();
    let shown: Arc<dyn rustls::server::ResolvesServerCert> = match (&serve.certificate, &serve.key) {
        (Some(certificate), Some(key)) => {
            Arc::new(tls::CertificateFiles::open(certificate, key).of_kind(ErrorKind::Configuration)?)
        }
        _ => Arc::new(live.clone()),
    };
    tls::serving_config(live, shown, alpn).of_kind(ErrorKind::Verification)
}

/// Numbers, and whether the node lives.
fn scraped(cx: &Context) -> Router {
    let (numbers_of, parents, end) = (cx.clone(), cx.parents.clone(), cx.end.clone());
    Router::new()
        .route(
            "/metrics",
            get(move |asker: Option<Extension<Asker>>, headers: HeaderMap| async move {
                // Whoever reaches the address that is for numbers only may read them.
                if asker.is_some_and(|Extension(asker)| !asker.may_read_numbers()) {
                    return refusal(StatusCode::FORBIDDEN, "this application may not read numbers");
                }
                let text = numbers::text(&numbers_of);
                let accepted = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
                match accepted.is_some_and(|accept| accept.contains("application/openmetrics-text")) {
                    true => ([(header::CONTENT_TYPE, numbers::OPEN_METRICS)], numbers::open_metrics(&text)),
                    false => ([(header::CONTENT_TYPE, numbers::PLAIN)], text),
                }
                .into_response()
            }),
        )
        .route("/livez", get(|| async { "ok\n" }))
        .route(
            "/readyz",
            get(move || async move {
                let ready = !end.has_begun();
                let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                // Without the tiers above a node answers all the same, where it can.
                let body = serde_json::json!({ "ready": ready, "degraded": parents.are_cut_off() }).to_string();
                (status, [(header::CONTENT_TYPE, "application/json")], body)
            }),
        )
}

/// A failure as HTTP has it.
#[must_use]
pub fn refusal(status: StatusCode, error: &str) -> Response {
    let body = serde_json::json!({ "error": error }).to_string();
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// A refusal at the door, as HTTP has it.
fn refused(why: &Refused) -> Response {
    let status = StatusCode::from_u16(why.http_status()).unwrap_or(StatusCode::UNAUTHORIZED);
    let mut response = refusal(status, &why.failure().message);
    if let Some(challenge) = why.challenge() {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    }
    if let Some(seconds) = why.retry_after_s() {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// Places of a door.
fn shares(policy: Policy) -> Shares {
    if policy.open { PLACES } else { GUARDED }
}

/// What stands before who answers.
#[derive(Clone, Default)]
struct Entrance {
    guard: Option<Guard>,
    tls: Option<TlsAcceptor>,
}

fn serve_http(
    cx: &Context,
    name: &'static str,
    listener: TcpListener,
    router: Router,
    shares: Shares,
    entrance: Entrance,
) -> NodeResult<TaskHandle<()>> {
    let router = router
        .fallback(|| async { refusal(StatusCode::NOT_FOUND, "there is nothing at this path") })
        .method_not_allowed_fallback(|| async { refusal(StatusCode::METHOD_NOT_ALLOWED, "not by this method") });
    let (served, listener, room) = (cx.clone(), listener.into_std()?, Room::new(shares));
    Ok(cx.tasks.until_done(name, move || {
        let (cx, router, room, entrance) = (served.clone(), router.clone(), Arc::clone(&room), entrance.clone());
        // The door stays open while whoever answers begins again.
        let listener = listener.try_clone().and_then(TcpListener::from_std);
        async move {
            match listener {
                Ok(listener) => answer_all(&cx, &listener, &router, &room, &entrance).await,
                Err(error) => tracing::warn!(%error, "can't listen"),
            }
            if cx.end.has_begun() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    }))
}

/// Answers until the node is to end and every answer is out.
async fn answer_all(
    cx: &Context,
    listener: &TcpListener,
    router: &Router,
    room: &Arc<Room<Network>>,
    entrance: &Entrance,
) {
    let (alive, mut gone) = mpsc::channel::<()>(1);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = cx.end.begun() => break,
        };
        match accepted {
            Ok((stream, from)) => {
                let known = entrance.guard.as_ref().is_some_and(|guard| guard.knows(from.ip()));
                let Some(held) = room.enter(Network::from(from.ip()), known) else { continue };
                let (connected, router, alive, entrance) =
                    (cx.clone(), router.clone(), alive.clone(), entrance.clone());
                cx.tasks.spawn("http connection", async move {
                    let entered = tokio::select! {
                        entered = Stream::enter(stream, from, entrance.tls.as_ref()) => entered,
                        () = held.asked_to_leave() => None,
                        () = connected.end.begun() => None,
                    };
                    if let Some(stream) = entered {
                        connection(&connected, stream, from, &held, router, entrance.guard).await;
                    }
                    drop(alive);
                });
            }
            // Out of file descriptors, most likely: they come back.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    drop(alive);
    gone.recv().await;
}

async fn connection(
    cx: &Context,
    stream: Stream,
    from: SocketAddr,
    held: &Held<Network>,
    router: Router,
    guard: Option<Guard>,
) {
    // Requests under way: whoever has one may stay until it is answered.
    let busy = Arc::new(AtomicUsize::new(0));
    let (counted, tasks) = (Arc::clone(&busy), cx.tasks.clone());
    let door = Arc::new(guard.map(|guard| (guard, stream.peer().cloned())));
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        let (mut router, tasks, under_way) = (router.clone(), tasks.clone(), UnderWay::new(&counted));
        let door = Arc::clone(&door);
        async move {
            let answer = async {
                if let Some((guard, peer)) = door.as_ref() {
                    let from = from.ip().to_canonical();
                    request.extensions_mut().insert(From { here: from.is_loopback(), private: guard.is_private() });
                    if let Err(response) = admit(guard, from, peer.as_ref(), &mut request) {
                        return Ok(response);
                    }
                }
                let asker = request.extensions().get::<Asker>().cloned();
                let answered = router.call(request.map(Body::new)).await;
                if let (Some(asker), Ok(response)) = (asker, &answered) {
                    record(&asker, response.status());
                }
                answered
            };
            let answered = tasks.caught("call", answer).await;
            drop(under_way);
            let broken = |_| refusal(StatusCode::INTERNAL_SERVER_ERROR, "the node broke off; its log says where");
            Ok::<_, Infallible>(answered.map_or_else(broken, |Ok(answer)| answer))
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME_MAX).max_header_size(HEADER_BYTES_MAX as usize);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let (mut ending, mut leaving) = (false, false);
    loop {
        tokio::select! {
            _ = connection.as_mut() => return,
            () = cx.end.begun(), if !ending => {
                ending = true;
                connection.as_mut().graceful_shutdown();
            }
            () = held.asked_to_leave(), if !leaving => {
                leaving = true;
                if busy.load(Ordering::Relaxed) == 0 {
                    return;
                }
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Lets a request in that says who asks, where that is asked.
fn admit(
    guard: &Guard,
    from: std::net::IpAddr,
    peer: Option<&tierline_identity::Peer>,
    request: &mut hyper::Request<hyper::body::Incoming>,
) -> Result<(), Response> {
    let path = request.uri().path();
    if FREE.contains(&path) || path == "/" || path == PAGE || path.starts_with("/dashboard/") {
        return Ok(());
    }
    let is_counted = path.starts_with("/v2");
    let asker = guard.admit(call(path), request.headers(), from, peer).map_err(|why| refused(&why))?;
    if is_counted {
        asker.count().map_err(|why| refused(&why))?;
    }
    request.extensions_mut().insert(asker);
    // It is of no use behind the door.
    request.headers_mut().remove(header::AUTHORIZATION);
    Ok(())
}

/// What is asked for at a path, in a word.
fn call(path: &str) -> &'static str {
    let Some(of_model) = path.strip_prefix("/v2/models/") else {
        return match path {
            "/v2" | "/v2/" => "server",
            "/v2/repository/index" => "index",
            "/metrics" => "numbers",
            path if path.starts_with("/api/") => "dashboard",
            _ => "other",
        };
    };
    match of_model.rsplit_once('/').map_or(of_model, |(_, last)| last) {
        "infer" => "infer",
        "ready" => "ready",
        "config" => "config",
        "stats" => "statistics",
        _ => "metadata",
    }
}

/// What became of a request, for the audit log.
fn record(asker: &Asker, status: StatusCode) {
    let refused = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS);
    if status.is_client_error() || status.is_server_error() {
        asker.record(status.as_str(), refused);
    } else {
        asker.record("ok", refused);
    }
}

/// One request under way.
struct UnderWay(Arc<AtomicUsize>);

impl UnderWay {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn serve_grpc(cx: &Context, door: Open) -> NodeResult<TaskHandle<()>> {
    let Open { listener, policy, tls } = door;
    let tls = tls.map(TlsAcceptor::from);
    let guard = Guard::new(cx, policy);
    let mut routes = RoutesBuilder::default();
    cx.duties.each(|duty| duty.grpc(&mut routes));
    let router = Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .initial_stream_window_size(tierline_proto::limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(tierline_proto::limits::CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_MAX)
        .layer(GuardLayer(guard.clone()))
        .add_routes(routes.routes());
    let (served, listener, room) = (cx.clone(), listener.into_std()?, Room::new(shares(policy)));
    Ok(cx.tasks.until_done("grpc", move || {
        let (cx, router, room) = (served.clone(), router.clone(), Arc::clone(&room));
        let entrance = Entrance { guard: Some(guard.clone()), tls: tls.clone() };
        let listener = listener.try_clone().and_then(TcpListener::from_std);
        async move {
            let result = async {
                let connections = accepted(&cx, listener?, room, entrance);
                router.serve_with_incoming_shutdown(connections, cx.end.begun()).await?;
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
            };
            if let Err(error) = result.await {
                tracing::warn!(error = %crate::words::chain(error.as_ref()), "a server has ended");
            }
            if cx.end.has_begun() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    }))
}

/// Connections for gRPC, each with a place.
fn accepted(
    cx: &Context,
    listener: TcpListener,
    room: Arc<Room<Network>>,
    entrance: Entrance,
) -> ReceiverStream<std::io::Result<Connection<Stream>>> {
    let (send, receive) = mpsc::channel(READY_MAX);
    let tasks = cx.tasks.clone();
    cx.tasks.spawn("grpc door", async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = send.closed() => return,
            };
            match accepted {
                Ok((stream, from)) => {
                    let known = entrance.guard.as_ref().is_some_and(|guard| guard.knows(from.ip()));
                    let Some(held) = room.enter(Network::from(from.ip()), known) else { continue };
                    let (send, tls) = (send.clone(), entrance.tls.clone());
                    tasks.spawn("grpc handshake", async move {
                        let entered = tokio::select! {
                            entered = Stream::enter(stream, from, tls.as_ref()) => entered,
                            () = held.asked_to_leave() => None,
                        };
                        if let Some(stream) = entered {
                            let caller = Caller::new(stream.peer().cloned(), from.ip());
                            let _ = send.send(Ok(Connection::new(stream, caller, held, None))).await;
                        }
                    });
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    });
    ReceiverStream::new(receive)
}
