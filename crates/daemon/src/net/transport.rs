//! How nodes reach each other: gRPC over mTLS, two connections per pair so
//! that bulk never delays tensors; the second only while there is bulk.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tierline_proto::limits::{CONNECTION_WINDOW_BYTES, MESSAGE_BYTES_MAX, STREAM_WINDOW_BYTES};
use tierline_proto::v1::bulk_client::BulkClient;
use tierline_proto::v1::control_client::ControlClient;
use tierline_proto::v1::enrollment_client::EnrollmentClient;
use tierline_proto::v1::federate_client::FederateClient;
use tierline_proto::v1::infer_client::InferClient;
use tierline_proto::v1::{Failure, FetchChunk, FetchRequest};
use tierline_proto::{Digest, Sound};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Streaming;
use tonic::codegen::http::Uri;
use tonic::transport::Channel;

use super::uplink::Occupied;
use tierline_identity::tls::{self, LiveIdentity};
use tierline_identity::{Identity, IdentityError, SERVER_NAME};
use tierline_node::lease::LEASE_RANGE;

/// Time to connect and shake hands; on a 0.1 Mbit/s link the certificates
/// alone take half a second.
pub const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);

/// A connection on which nothing was heard for so long is pinged. Longer than
/// heartbeats are apart: where those come, no ping is needed.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The connection for bulk is let go of when nothing was asked on it for so
/// long: it costs both sides memory and pings.
const BULK_IDLE: Duration = Duration::from_secs(60);

/// A peer that answers no ping for so long is gone, even if TCP hasn't noticed.
/// As long as the longest lease: on a thin link a ping waits behind tensors.
const KEEP_ALIVE_MAX: Duration = LEASE_RANGE[1];

/// Headers of one request or answer; a failure travels in them, with its text.
pub const HEADER_BYTES_MAX: u32 = 32 << 10;

/// What a caller shows and trusts, or why there is nothing to show.
pub type Tls = Result<Arc<ClientConfig>, IdentityError>;

/// TLS of a caller: its own certificate, and the site's CA only.
pub fn client_tls(identity: &Identity) -> Tls {
    LiveIdentity::new(identity.clone()).and_then(|live| tls::client_config(&live))
}

/// An address that can't be called.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// It is none.
    #[error("`{url}` is no address; write https://host:port")]
    Address {
        /// What was given.
        url: String,
        /// What is wrong with it.
        source: tonic::transport::Error,
    },
    /// The caller's own identity is of no use.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Where a node can be reached, and how.
#[derive(Debug, Clone)]
pub struct Endpoint {
    inner: tonic::transport::Endpoint,
    dial: Dial,
}

/// How to reach `url` with `tls`: of [`client_tls`], [`tls::client_config`] or
/// [`tls::join_config`].
///
/// # Errors
/// [`EndpointError`].
pub fn endpoint(url: &str, tls: Tls) -> Result<Endpoint, EndpointError> {
    let inner = tonic::transport::Endpoint::from_shared(url.to_owned())
        .map_err(|source| EndpointError::Address { url: url.to_owned(), source })?
        .connect_timeout(CONNECT_TIME_MAX)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_MAX)
        .keep_alive_while_idle(true)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    Ok(Endpoint { inner, dial: Dial(tls?) })
}

impl Endpoint {
    /// Connects.
    ///
    /// # Errors
    /// When nobody answers there, or with a certificate that isn't the site's.
    pub async fn connect(&self) -> Result<Channel, tonic::transport::Error> {
        self.inner.connect_with_connector(self.dial.clone()).await
    }

    /// A channel that connects when it is first used.
    #[must_use]
    pub fn connect_lazy(&self) -> Channel {
        self.inner.connect_with_connector_lazy(self.dial.clone())
    }
}

/// Bytes that the kernel holds of what was written but not sent yet, and TLS
/// before it. Little: on a thin link a heartbeat waits behind them, and so does
/// the next request after one that was given up.
pub const UNSENT_BYTES_MAX: u32 = 16 << 10;

/// Prepares a connection for tensors and heartbeats side by side.
pub fn tune(stream: &TcpStream) {
    // Neither must wait to be batched.
    let _ = stream.set_nodelay(true);
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let _ = socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES_MAX);
}

/// Opens tuned connections with TLS. Ours rather than the gRPC library's: that
/// one would talk to servers that only know TLS 1.2.
#[derive(Clone)]
struct Dial(Arc<ClientConfig>);

impl std::fmt::Debug for Dial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Dial")
    }
}

impl tower_service::Service<Uri> for Dial {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = std::io::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = std::io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = TlsConnector::from(Arc::clone(&self.0));
        Box::pin(async move {
            let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
            let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(443))).await?;
            tune(&stream);
            let name = ServerName::try_from(SERVER_NAME).map_err(std::io::Error::other)?;
            let secured = connector.connect(name, stream).await;
            let mut stream = secured.map_err(|error| std::io::Error::other(tls::explain(&error, SERVER_NAME)))?;
            stream.get_mut().1.set_buffer_limit(Some(UNSENT_BYTES_MAX as usize));
            if stream.get_ref().1.alpn_protocol() != Some(tls::ALPN) {
                return Err(std::io::Error::other("the other side doesn't speak HTTP/2; check address and port"));
            }
            Ok(TokioIo::new(stream))
        })
    }
}

/// An artefact on its way.
pub struct Chunks {
    stream: Streaming<FetchChunk>,
    /// Who sends it, where that is known.
    pub(super) from: String,
    /// On a parent's link.
    pub(super) occupied: Option<Occupied>,
}

impl Chunks {
    /// The next piece, with its offset and the artefact's whole length; none
    /// behind the last one.
    ///
    /// # Errors
    /// When the transfer breaks.
    pub async fn next(&mut self) -> Result<Option<FetchChunk>, Failure> {
        let chunk = self.stream.message().await.map_err(|status| Failure::from_status(&status).at(&self.from))?;
        Ok(chunk.map(Sound::read).transpose()?.map(Sound::into_inner))
    }
}

/// The two connections to a parent.
#[derive(Debug, Clone)]
pub struct Pair {
    /// Control and tensors.
    first: Channel,
    /// Artefacts and probes.
    second: Arc<Second>,
}

/// A connection that is made when it is first needed (on a thin link two
/// handshakes at once would double the time to the first answer), and again
/// after it was let go of.
#[derive(Debug)]
struct Second {
    endpoint: Endpoint,
    /// And when it was last asked for.
    held: Mutex<Option<(Channel, Instant)>>,
}

impl Second {
    fn channel(&self) -> Channel {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let channel = held.take().map_or_else(|| self.endpoint.connect_lazy(), |(channel, _)| channel);
        *held = Some((channel.clone(), Instant::now()));
        channel
    }
}

impl Pair {
    /// Connects.
    ///
    /// # Errors
    /// When the peer can't be reached or its certificate isn't the site's.
    pub async fn connect(endpoint: &Endpoint) -> Result<Self, tonic::transport::Error> {
        let first = endpoint.connect().await?;
        Ok(Self { first, second: Arc::new(Second { endpoint: endpoint.clone(), held: Mutex::default() }) })
    }

    /// The connection for control and tensors.
    #[must_use]
    pub fn first(&self) -> Channel {
        self.first.clone()
    }

    /// The one for bulk, which is made now if it isn't there.
    #[must_use]
    pub fn second(&self) -> Channel {
        self.second.channel()
    }

    /// Lets go of the connection for bulk, where nothing was asked on it
    /// lately. What is under way on it comes to its end.
    pub fn rest(&self) {
        let mut held = self.second.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.take_if(|(_, asked)| asked.elapsed() >= BULK_IDLE);
    }

    /// Client of the control service.
    #[must_use]
    pub fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.first.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Client of the inference service.
    #[must_use]
    pub fn infer(&self) -> InferClient<Channel> {
        InferClient::new(self.first.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Client of the bulk service.
    #[must_use]
    pub fn bulk(&self) -> BulkClient<Channel> {
        BulkClient::new(self.second.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The same, for so many bytes at once: what is no more than may wait unsent
    /// anyway needs no connection of its own.
    #[must_use]
    pub fn bulk_of(&self, bytes: u64) -> BulkClient<Channel> {
        if bytes > u64::from(UNSENT_BYTES_MAX) {
            return self.bulk();
        }
        BulkClient::new(self.first.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Fetches an artefact from an offset on.
    ///
    /// # Errors
    /// When the peer has it not.
    pub async fn fetch(&self, digest: Digest, offset: u64) -> Result<Chunks, Failure> {
        let request = FetchRequest { digest: digest.to_bytes(), offset, length: 0 };
        let stream = self.bulk().fetch(request).await.map_err(|status| Failure::from_status(&status))?;
        Ok(Chunks { stream: stream.into_inner(), from: String::new(), occupied: None })
    }

    /// Client of the federation service: on the connection for bulk.
    #[must_use]
    pub fn federate(&self) -> FederateClient<Channel> {
        FederateClient::new(self.second.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Client of the enrollment service.
    #[must_use]
    pub fn enrollment(&self) -> EnrollmentClient<Channel> {
        EnrollmentClient::new(self.first.clone())
    }
}
