//! The gate in front of every service: who calls, and may they?
//!
//! TLS has already refused foreign and expired certificates. Here the role
//! policy and the revocation list decide, for every call, by its path.

use std::sync::Arc;
use std::task::{Context, Poll};

use tierline_identity::Peer;
use tierline_node::policy::{self, Caller, Rule};
use tierline_proto::v1::{Code, Failure};
use tonic::codegen::http::{Request, Response};

use super::{Net, door};

/// Where a listener's callers come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// The network: callers are who their certificates say.
    Network,
    /// The network, for callers without a certificate that counts.
    Strangers,
    /// The Unix socket: callers are whom the file system lets in.
    Socket,
}

/// Wraps a service with the gate.
#[derive(Clone)]
pub struct Gate<S> {
    inner: S,
    net: Net,
    door: Door,
    rules: Arc<[Rule]>,
}

/// Makes [`Gate`]s; a layer for the whole server.
#[derive(Clone)]
pub struct GateLayer {
    /// The node's.
    pub net: Net,
    /// The listener.
    pub door: Door,
    /// Who may call what.
    pub rules: Arc<[Rule]>,
}

impl<S> tower_layer::Layer<S> for GateLayer {
    type Service = Gate<S>;
    fn layer(&self, inner: S) -> Gate<S> {
        Gate { inner, net: self.net.clone(), door: self.door, rules: Arc::clone(&self.rules) }
    }
}

impl<S, B, R> tower_service::Service<Request<B>> for Gate<S>
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
        let admitted = admit(&self.net, self.door, &self.rules, &mut request);
        match admitted {
            Err(failure) => {
                let status = failure.at(self.net.me.name()).into_status();
                Box::pin(std::future::ready(Ok(status.into_http())))
            }
            Ok(()) => {
                let (net, answer) = (self.net.clone(), self.inner.call(request));
                // A call that breaks off is answered, and its connection lives.
                Box::pin(async move {
                    let answered = net.tasks.caught("call", answer).await;
                    answered.unwrap_or_else(|failure| Ok(failure.at(net.me.name()).into_status().into_http()))
                })
            }
        }
    }
}

fn admit<B>(net: &Net, door: Door, rules: &[Rule], request: &mut Request<B>) -> Result<(), Failure> {
    let rpc = request.uri().path().to_owned();
    let caller = match door {
        Door::Socket => Caller::Socket,
        Door::Network | Door::Strangers => match peer(request) {
            None => Caller::Anonymous,
            Some(peer) => {
                net.revoked.check(&peer)?;
                // TLS looked once; connections live longer than certificates.
                if std::time::SystemTime::now() > peer.not_after {
                    let text = format!("the certificate of {} has expired", peer.name);
                    return Err(Failure::new(Code::Unauthenticated, text).with_help("join again with a new token"));
                }
                let role = peer.role;
                request.extensions_mut().insert(peer);
                Caller::Identified(role)
            }
        },
    };
    policy::check(rules, &rpc, caller, net.me.role())
}

/// Who is at the other end of the connection, which is in use from now on.
fn peer<B>(request: &Request<B>) -> Option<Peer> {
    let caller = request.extensions().get::<door::Caller>()?;
    caller.asks();
    caller.peer.clone()
}

/// The caller, behind the gate.
///
/// # Errors
/// When the caller came without a certificate.
pub fn caller<T>(request: &tonic::Request<T>) -> Result<Peer, Failure> {
    request
        .extensions()
        .get::<Peer>()
        .cloned()
        .ok_or_else(|| Failure::new(Code::Unauthenticated, "this call needs a node's certificate"))
}
