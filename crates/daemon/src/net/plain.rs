//! Doors without TLS, at addresses of their own: HTTP for applications and for
//! Prometheus, gRPC for applications.
//!
//! Whoever is slow makes room for who isn't: there are so many places, and so
//! many for one address; a request's head has to come within a time. What is
//! answered there, the duties say ([`Duty::http`](crate::runtime::duty::Duty::http)).

use std::convert::Infallible;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tierline_node::places::{Network, Shares};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::RoutesBuilder;
use tonic::transport::Server;
use tower_service::Service;

use super::door::{Caller, Connection, Held, Room};
use super::transport::{self, HEADER_BYTES_MAX};
use crate::config::{ServeConfig, Wish};
use crate::error::{ErrorKind, NodeError, NodeResult};
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

/// Those of Prometheus: a few.
const SCRAPES: Shares =
    Shares { total: 32, kept_for_known: 0, each: 8, each_known: 8, grace: Duration::from_millis(500) };

/// Who calls, for those who answer.
#[derive(Debug, Clone, Copy)]
pub struct From(pub Network);

/// Whether the caller is on this machine.
#[derive(Debug, Clone, Copy)]
pub struct FromHere(pub bool);

/// The plain doors of a node.
pub struct Plain {
    http: Option<TcpListener>,
    grpc: Option<TcpListener>,
    metrics: Option<TcpListener>,
}

/// Where a node answers without TLS.
#[derive(Debug, Clone, Copy, Default)]
pub struct Places {
    /// HTTP.
    pub http: Option<SocketAddr>,
    /// gRPC.
    pub grpc: Option<SocketAddr>,
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
        let http = listen(serve, serve.http(me.role()), "--http").await?;
        let grpc = listen(serve, serve.grpc(me.role()), "--grpc").await?;
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
        let of = |listener: &Option<TcpListener>| listener.as_ref().and_then(|l| l.local_addr().ok());
        Places { http: of(&self.http), grpc: of(&self.grpc), metrics: of(&self.metrics) }
    }

    /// Answers there until the node ends; who is waited for then.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn serve(self, cx: &Context) -> NodeResult<Vec<TaskHandle<()>>> {
        let mut served = Vec::new();
        if let Some(listener) = self.metrics {
            served.push(serve_http(cx, "scrape", listener, scraped(cx), SCRAPES)?);
        }
        if let Some(listener) = self.http {
            let mut router = scraped(cx);
            for duty in cx.duties.all() {
                router = router.merge(duty.http());
            }
            served.push(serve_http(cx, "http", listener, router, PLACES)?);
        }
        if let Some(listener) = self.grpc {
            served.push(serve_grpc(cx, listener)?);
        }
        Ok(served)
    }
}

/// An address for applications; one that nobody asked for and that is taken is
/// gone without.
async fn listen(serve: &ServeConfig, wish: Wish<'_>, flag: &str) -> NodeResult<Option<TcpListener>> {
    let (address, asked) = match wish {
        Wish::Nowhere => return Ok(None),
        Wish::Default(address) => (address.to_owned(), false),
        Wish::At(address) => (address.to_owned(), true),
    };
    match TcpListener::bind(&address).await {
        Ok(listener) => {
            let local = listener.local_addr()?;
            if !local.ip().is_loopback() && !serve.open {
                let text = format!("{address} can be reached from the network, by anybody");
                return Err(NodeError::message(ErrorKind::Configuration, text)
                    .hint("`open = true` in `[serve]` of node.toml says that this is meant; or choose 127.0.0.1"));
            }
            Ok(Some(listener))
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

/// Numbers, and whether the node lives.
fn scraped(cx: &Context) -> Router {
    let (numbers_of, end) = (cx.clone(), cx.end.clone());
    Router::new()
        .route(
            "/metrics",
            get(move || async move {
                ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], numbers::text(&numbers_of))
            }),
        )
        .route("/livez", get(|| async { "ok\n" }))
        .route(
            "/readyz",
            get(move || async move {
                if end.has_begun() { (StatusCode::SERVICE_UNAVAILABLE, "ending\n") } else { (StatusCode::OK, "ok\n") }
            }),
        )
}

/// A failure as HTTP has it.
#[must_use]
pub fn refusal(status: StatusCode, error: &str) -> Response {
    let body = serde_json::json!({ "error": error }).to_string();
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn serve_http(
    cx: &Context,
    name: &'static str,
    listener: TcpListener,
    router: Router,
    shares: Shares,
) -> NodeResult<TaskHandle<()>> {
    let router = router
        .fallback(|| async { refusal(StatusCode::NOT_FOUND, "there is nothing at this path") })
        .method_not_allowed_fallback(|| async { refusal(StatusCode::METHOD_NOT_ALLOWED, "not by this method") });
    let (served, listener, room) = (cx.clone(), listener.into_std()?, Room::new(shares));
    Ok(cx.tasks.until_done(name, move || {
        let (cx, router, room) = (served.clone(), router.clone(), Arc::clone(&room));
        // The door stays open while whoever answers begins again.
        let listener = listener.try_clone().and_then(TcpListener::from_std);
        async move {
            match listener {
                Ok(listener) => answer_all(&cx, &listener, &router, &room).await,
                Err(error) => tracing::warn!(%error, "can't listen"),
            }
            if cx.end.has_begun() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    }))
}

/// Answers until the node is to end and every answer is out.
async fn answer_all(cx: &Context, listener: &TcpListener, router: &Router, room: &Arc<Room<Network>>) {
    let (alive, mut gone) = mpsc::channel::<()>(1);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = cx.end.begun() => break,
        };
        match accepted {
            Ok((stream, from)) => {
                let Some(held) = room.enter(Network::from(from.ip()), false) else { continue };
                let (connected, router, alive) = (cx.clone(), router.clone(), alive.clone());
                cx.tasks.spawn("http connection", async move {
                    connection(&connected, stream, from, &held, router).await;
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

async fn connection(cx: &Context, stream: TcpStream, from: SocketAddr, held: &Held<Network>, router: Router) {
    transport::tune(&stream);
    // Requests under way: whoever has one may stay until it is answered.
    let busy = Arc::new(AtomicUsize::new(0));
    let (counted, tasks) = (Arc::clone(&busy), cx.tasks.clone());
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(From(Network::from(from.ip())));
        request.extensions_mut().insert(FromHere(from.ip().to_canonical().is_loopback()));
        let (mut router, tasks, under_way) = (router.clone(), tasks.clone(), UnderWay::new(&counted));
        async move {
            let answer = async { router.call(request.map(Body::new)).await };
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

fn serve_grpc(cx: &Context, listener: TcpListener) -> NodeResult<TaskHandle<()>> {
    let mut routes = RoutesBuilder::default();
    cx.duties.each(|duty| duty.grpc(&mut routes));
    let router = Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .initial_stream_window_size(tierline_proto::limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(tierline_proto::limits::CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_MAX)
        .add_routes(routes.routes());
    let (served, listener, room) = (cx.clone(), listener.into_std()?, Room::new(PLACES));
    Ok(cx.tasks.until_done("grpc", move || {
        let (cx, router, room) = (served.clone(), router.clone(), Arc::clone(&room));
        let listener = listener.try_clone().and_then(TcpListener::from_std);
        async move {
            let result = async {
                let connections = accepted(&cx, listener?, room);
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
) -> ReceiverStream<std::io::Result<Connection<TcpStream>>> {
    let (send, receive) = mpsc::channel(READY_MAX);
    cx.tasks.spawn("grpc door", async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = send.closed() => return,
            };
            match accepted {
                Ok((stream, from)) => {
                    let network = Network::from(from.ip());
                    let Some(held) = room.enter(network, false) else { continue };
                    transport::tune(&stream);
                    let connection = Connection::new(stream, Caller::plain(network), held, None);
                    if send.send(Ok(connection)).await.is_err() {
                        return;
                    }
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    });
    ReceiverStream::new(receive)
}
