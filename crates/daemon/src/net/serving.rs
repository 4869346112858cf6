//! Where a node listens, and what answers there.

use std::net::{SocketAddr, UdpSocket};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tierline_identity::tls;
use tierline_node::policy::Rule;
use tierline_proto::Role;
use tierline_proto::limits::{
    CONNECTION_WINDOW_BYTES, MESSAGE_BYTES_MAX, RUNS_PER_CONNECTION_MAX, STREAM_WINDOW_BYTES,
};
use tierline_proto::v1::control_server::ControlServer;
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::service::{Routes, RoutesBuilder};
use tonic::transport::Server;

use super::Net;
use super::children::ControlService;
use super::door::Doors;
use super::gate::{Door, GateLayer};
use super::transport::HEADER_BYTES_MAX;
use crate::config::LISTEN_DEFAULT;
use crate::error::{ErrorKind, NodeError, NodeResult, OfKind};
use crate::runtime::tasks::TaskHandle;
use crate::runtime::{Context, End, Me};

/// A caller that answers no ping for so long is gone. Longer than a caller
/// waits for its node: behind a large answer on a thin link, a ping has to wait.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// HTTP/2 window of callers without a certificate, of a stream and in all.
const STRANGER_WINDOW_BYTES: u32 = 128 << 10;

/// Calls at once of a caller without a certificate.
const STRANGER_STREAMS_MAX: u32 = 4;

/// Where others reach a node that listens on this address: on every address of
/// the machine, that is the one from which it calls its parent.
#[must_use]
pub fn advertised(me: &Me, listens: SocketAddr) -> Option<String> {
    let parent = me.config().parents.first().and_then(|url| url.strip_prefix("https://"));
    let towards = |parent: &str| {
        // Sends nothing: the system only says which way it would go.
        let socket = UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        socket.connect(parent).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    let ip = match listens.ip() {
        ip if ip.is_unspecified() => parent.and_then(towards)?,
        ip => ip,
    };
    Some(format!("https://{}", SocketAddr::new(ip, listens.port())))
}

/// The network's door; ends have none.
///
/// # Errors
/// When the address can't be had.
pub async fn listen(me: &Me) -> NodeResult<Option<TcpListener>> {
    if me.role() == Role::End {
        return Ok(None);
    }
    let address = me.config().listen.clone().unwrap_or_else(|| LISTEN_DEFAULT.to_owned());
    let listener = TcpListener::bind(&address).await.map_err(|e| {
        NodeError::message(ErrorKind::Configuration, format!("cannot listen on {address}: {e}"))
            .hint("choose another address with --listen HOST:PORT")
    })?;
    Ok(Some(listener))
}

/// A server that has ended is done once the node is told to end; else it
/// begins again.
fn served(end: &End, result: &Result<(), Box<dyn std::error::Error + Send + Sync>>) -> ControlFlow<()> {
    if let Err(error) = result {
        tracing::warn!(error = %crate::words::chain(error.as_ref()), "a server has ended");
    }
    if end.has_begun() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// What answers at a door: every duty's calls there.
fn routes(cx: &Context, door: Door) -> Routes {
    let mut routes = RoutesBuilder::default();
    if door == Door::Network {
        let control = ControlServer::new(ControlService(cx.children.clone()));
        routes.add_service(control.max_decoding_message_size(MESSAGE_BYTES_MAX));
    }
    cx.duties.each(|duty| duty.serve(door, &mut routes));
    routes.routes()
}

/// Answers other nodes and operators from afar.
///
/// # Errors
/// When the node's identity is of no use.
pub fn serve_network(
    net: &Net,
    cx: &Context,
    doors: &Arc<Doors>,
    rules: &Arc<[Rule]>,
    listener: TcpListener,
) -> NodeResult<TaskHandle<()>> {
    let tls = tls::server_config(net.me.live_identity()).of_kind(ErrorKind::Verification)?;
    let gate = |door| GateLayer { net: net.clone(), door, rules: Arc::clone(rules) };
    let members = server()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(RUNS_PER_CONNECTION_MAX)
        .layer(gate(Door::Network))
        .add_routes(routes(cx, Door::Network));
    // Without a certificate there is one thing to do, and little to do it with.
    let strangers = server()
        .initial_stream_window_size(STRANGER_WINDOW_BYTES)
        .initial_connection_window_size(STRANGER_WINDOW_BYTES)
        .max_concurrent_streams(STRANGER_STREAMS_MAX)
        .layer(gate(Door::Strangers))
        .add_routes(routes(cx, Door::Strangers));
    let (doors, revoked, end, listener) =
        (Arc::clone(doors), net.revoked.clone(), cx.end.clone(), listener.into_std()?);
    Ok(net.tasks.until_done("network", move || {
        let (doors, tls, revoked, end) = (Arc::clone(&doors), Arc::clone(&tls), revoked.clone(), end.clone());
        let (members, strangers) = (members.clone(), strangers.clone());
        // The door stays open while whoever answers begins again.
        let listener = listener.try_clone().and_then(TcpListener::from_std);
        async move {
            let result = async {
                let callers = doors.listen(listener?, tls, move |peer| revoked.check(peer).is_err());
                let (inside, outside) = (ReceiverStream::new(callers.members), ReceiverStream::new(callers.strangers));
                tokio::try_join!(
                    members.serve_with_incoming_shutdown(inside, end.begun()),
                    strangers.serve_with_incoming_shutdown(outside, end.begun())
                )?;
                Ok(())
            };
            served(&end, &result.await)
        }
    }))
}

/// What every caller gets: it is asked now and then whether it is still there.
fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .http2_max_header_list_size(HEADER_BYTES_MAX)
}

/// Answers operators on this machine.
///
/// # Errors
/// When the socket can't be opened.
pub fn serve_socket(net: &Net, cx: &Context, rules: &Arc<[Rule]>, path: &Path) -> NodeResult<TaskHandle<()>> {
    // A dead node's socket is in the way of a new one.
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).map_err(|e| {
        NodeError::message(ErrorKind::Configuration, format!("cannot open the socket {}: {e}", path.display()))
            .hint("socket paths are limited to about 100 bytes; choose a shorter --data DIR")
    })?;
    // Whoever may open it is an operator.
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let gate = GateLayer { net: net.clone(), door: Door::Socket, rules: Arc::clone(rules) };
    let router = Server::builder().layer(gate).add_routes(routes(cx, Door::Socket));
    let (end, listener) = (cx.end.clone(), listener.into_std()?);
    Ok(net.tasks.until_done("socket", move || {
        let (end, router) = (end.clone(), router.clone());
        let listener = listener.try_clone().and_then(UnixListener::from_std);
        async move {
            let result = async {
                let connections = UnixListenerStream::new(listener?).then(async |connection| {
                    if connection.is_err() {
                        // Out of file descriptors, usually: let some close.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                    connection
                });
                let connections = std::pin::pin!(connections);
                router.serve_with_incoming_shutdown(connections, end.begun()).await?;
                Ok(())
            };
            served(&end, &result.await)
        }
    }))
}
