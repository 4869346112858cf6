//! The doors of a node: how many connections there are, whose, and how long
//! one may be silent.
//!
//! Whoever connects goes through two rooms. While TLS is under way it is
//! *arriving*; then it is a *member*, with a certificate of the site, or a
//! *stranger* without one, who may ask to join and has to leave soon. Each
//! room has its own places, so that those who have no business here keep out
//! nobody who has ([`tierline_node::places`]). Start at [`Doors::listen`].

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use tierline_identity::Peer;
use tierline_identity::tls;
use tierline_node::Time;
use tierline_node::places::{Entry, Network, Place, Places, Shares};
use tierline_proto::Role;
use tierline_proto::limits::CHILDREN_MAX;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::runtime::tasks::Tasks;

/// Connections whose handshake is over and that nobody serves yet.
const READY_MAX: usize = 64;

/// A place is safe for so long: time for a handshake on a thin link.
const GRACE: Duration = Duration::from_secs(2);

/// A connection on which nothing has been asked for so long is closed.
const FIRST_REQUEST_MAX: Duration = Duration::from_secs(10);

/// A stranger is let go after this: joining takes seconds, also through an
/// edge that has to look for its cloud.
const STRANGER_LIFE_MAX: Duration = Duration::from_secs(30);

/// An address from which somebody came who is known counts as known for so long.
const KNOWN_FOR: Duration = Duration::from_secs(15 * 60);

/// Addresses that are remembered.
const KNOWN_MAX: usize = 4_096;

/// Children for every four places: each has a connection for tensors, and one
/// in three one for bulk besides, which there is only while bulk is.
const CHILDREN_IN_FOUR: usize = 3;

/// Connections of one node: it has two to each parent, and those of an earlier
/// start may not be known to be dead yet. Each may have some megabytes on its
/// way that nobody reads.
const EACH_NODE_MAX: usize = 8;

/// Connections of one operator: one for every command under way.
const EACH_OPERATOR_MAX: usize = 256;

/// Places that no node takes, so that an operator can always look and act.
const OPERATORS_KEPT: usize = 16;

/// Descriptors for everything else: files, the state, engines, connections of
/// this node's own.
const OTHER_DESCRIPTORS: usize = 192;

/// How many places each room has.
#[derive(Debug, Clone, Copy)]
pub struct Rooms {
    /// Whose handshakes are under way.
    pub arrivals: Shares,
    /// Without a certificate.
    pub strangers: Shares,
    /// With one; operators are those who are known there.
    pub members: Shares,
    /// Children for which there is room among the members.
    pub children: usize,
}

impl Rooms {
    /// Rooms that fit a process with so many descriptors.
    #[must_use]
    pub fn within(descriptors: usize) -> Self {
        let open = descriptors.saturating_sub(OTHER_DESCRIPTORS).max(16);
        // Two connections of every child, and as many of operators.
        let members = (open / 4 * 3).min(4 * CHILDREN_MAX);
        let kept = OPERATORS_KEPT.min(members / 4);
        let arrivals = (open / 6).clamp(4, 512);
        let strangers = (open / 12).clamp(4, 256);
        Self {
            arrivals: Shares {
                total: arrivals,
                kept_for_known: arrivals / 4,
                each: arrivals / 4,
                each_known: arrivals * 3 / 4,
                grace: GRACE,
            },
            strangers: Shares {
                total: strangers,
                kept_for_known: 0,
                each: strangers * 3 / 8,
                each_known: strangers * 3 / 8,
                grace: GRACE,
            },
            members: Shares {
                total: members,
                kept_for_known: kept,
                each: EACH_NODE_MAX.min(members / 4),
                each_known: EACH_OPERATOR_MAX.min(members / 4),
                grace: Duration::ZERO,
            },
            children: ((members - kept) / 4 * CHILDREN_IN_FOUR).clamp(1, CHILDREN_MAX),
        }
    }
}

/// One room: its places, and how to ask those who hold them to leave.
pub struct Room<H> {
    inner: Mutex<Inner<H>>,
    opened: Instant,
}

struct Inner<H> {
    places: Places<H>,
    leave: HashMap<Place, CancellationToken>,
}

/// A place in a room, for as long as it is held.
pub struct Held<H: Ord + Clone> {
    room: Arc<Room<H>>,
    place: Place,
    leave: CancellationToken,
}

impl<H: Ord + Clone> Room<H> {
    /// An empty room.
    #[must_use]
    pub fn new(shares: Shares) -> Arc<Self> {
        let inner = Inner { places: Places::new(shares), leave: HashMap::new() };
        Arc::new(Self { inner: Mutex::new(inner), opened: Instant::now() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner<H>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for `holder`; another may have to leave for it. None when all
    /// are taken by others with as much right to them.
    pub fn enter(self: &Arc<Self>, holder: H, known: bool) -> Option<Held<H>> {
        let now = Time::ZERO + self.opened.elapsed();
        let mut inner = self.lock();
        let place = match inner.places.enter(now, holder, known) {
            Entry::Enter(place) => place,
            Entry::Instead { place, of } => {
                if let Some(leave) = inner.leave.remove(&of) {
                    leave.cancel();
                }
                place
            }
            Entry::Refused => return None,
        };
        let leave = CancellationToken::new();
        inner.leave.insert(place, leave.clone());
        Some(Held { room: Arc::clone(self), place, leave })
    }

    /// Asks every holder to leave of whom `is_out` is true.
    fn clear(&self, is_out: impl Fn(&H) -> bool) {
        let inner = self.lock();
        let out = inner.places.iter().filter(|(_, holder)| is_out(holder));
        out.filter_map(|(place, _)| inner.leave.get(&place)).for_each(CancellationToken::cancel);
    }

    /// Places taken.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().places.len()
    }

    /// Whether nobody is here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<H: Ord + Clone> Held<H> {
    /// When the place has to be left.
    pub async fn asked_to_leave(&self) {
        self.leave.cancelled().await;
    }
}

impl<H: Ord + Clone> Drop for Held<H> {
    fn drop(&mut self) {
        let mut inner = self.room.lock();
        inner.leave.remove(&self.place);
        inner.places.leave(self.place);
    }
}

/// Who is at the other end of a connection, for the gate.
#[derive(Debug, Clone)]
pub struct Caller {
    /// From its certificate; none without one.
    pub peer: Option<Peer>,
    /// Its address.
    pub address: IpAddr,
    /// Whom it counts as, of those without a certificate.
    pub from: Network,
    requests: Arc<AtomicU64>,
}

impl Caller {
    /// Somebody at an address, with a certificate or none.
    #[must_use]
    pub fn new(peer: Option<Peer>, address: IpAddr) -> Self {
        Self { peer, address, from: Network::from(address), requests: Arc::default() }
    }

    /// It asked for something.
    pub fn asks(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }
}

/// A connection, after its handshake where it has one. Ends by itself when its place is given
/// to another, when nothing is asked of it, or when a stranger's time is over.
pub struct Connection<S = TlsStream<TcpStream>> {
    stream: S,
    caller: Caller,
    end: Pin<Box<dyn Future<Output = &'static str> + Send>>,
}

impl<S> Connection<S> {
    /// A connection that holds a place, and may stay for so long.
    #[must_use]
    pub fn new<H: Ord + Clone + Send + Sync + 'static>(
        stream: S,
        caller: Caller,
        held: Held<H>,
        life: Option<Duration>,
    ) -> Self {
        let requests = Arc::clone(&caller.requests);
        let end = Box::pin(async move {
            let unused = async {
                tokio::time::sleep(FIRST_REQUEST_MAX).await;
                if requests.load(Ordering::Relaxed) > 0 {
                    std::future::pending::<()>().await;
                }
            };
            let over = async {
                match life {
                    Some(life) => tokio::time::sleep(life).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = held.asked_to_leave() => "the place is needed for another connection",
                () = unused => "nothing was asked",
                () = over => "callers without a certificate may not stay",
            }
        });
        Self { stream, caller, end }
    }

    /// Who called.
    #[must_use]
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    fn ended(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.end.as_mut().poll(cx) {
            Poll::Ready(why) => {
                // What is polled once more after its end must not panic.
                self.end = Box::pin(std::future::ready(why));
                Err(io::Error::new(io::ErrorKind::TimedOut, why))
            }
            Poll::Pending => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.ended(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.ended(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Who reads nothing more must not keep the connection by that.
        self.ended(cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

/// What comes out of the doors, ready for gRPC.
pub struct Callers {
    /// With a certificate of the site that isn't revoked.
    pub members: mpsc::Receiver<io::Result<Connection>>,
    /// Without one, or with one that is.
    pub strangers: mpsc::Receiver<io::Result<Connection>>,
}

/// Addresses from which somebody came lately who is known, and when.
#[derive(Default)]
pub struct Familiar(Mutex<HashMap<Network, Instant>>);

impl Familiar {
    /// Whether somebody did.
    #[must_use]
    pub fn knows(&self, from: Network) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&from).is_some_and(|at| at.elapsed() < KNOWN_FOR)
    }

    /// Somebody does.
    pub fn remember(&self, from: Network) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN_MAX && !known.contains_key(&from) {
            known.retain(|_, at| at.elapsed() < KNOWN_FOR);
        }
        if known.len() < KNOWN_MAX || known.contains_key(&from) {
            known.insert(from, Instant::now());
        }
    }
}

/// The doors of a node.
pub struct Doors {
    arrivals: Arc<Room<Network>>,
    strangers: Arc<Room<Network>>,
    members: Arc<Room<String>>,
    /// Addresses from which members came.
    familiar: Familiar,
    tasks: Tasks,
}

impl Doors {
    /// Nobody is there yet.
    #[must_use]
    pub fn new(rooms: Rooms, tasks: Tasks) -> Arc<Self> {
        Arc::new(Self {
            arrivals: Room::new(rooms.arrivals),
            strangers: Room::new(rooms.strangers),
            members: Room::new(rooms.members),
            familiar: Familiar::default(),
            tasks,
        })
    }

    /// Takes connections and finishes their handshakes side by side, so that a
    /// slow caller delays nobody. Ends, and so do the receivers, when one of
    /// them is dropped.
    /// `is_out` says whose certificate counts no more.
    #[must_use]
    pub fn listen(
        self: &Arc<Self>,
        listener: TcpListener,
        config: Arc<ServerConfig>,
        is_out: impl Fn(&Peer) -> bool + Send + Sync + 'static,
    ) -> Callers {
        let (members, to_members) = mpsc::channel(READY_MAX);
        let (strangers, to_strangers) = mpsc::channel(READY_MAX);
        let (doors, acceptor) = (Arc::clone(self), TlsAcceptor::from(config));
        let hall = Arc::new(Hall { is_out: Box::new(is_out), members, strangers });
        self.tasks.spawn("doors", async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = hall.members.closed() => return,
                    () = hall.strangers.closed() => return,
                };
                match accepted {
                    Ok((stream, from)) => doors.arrives(&acceptor, &hall, stream, from),
                    Err(error) => {
                        // Out of file descriptors, usually: let some close.
                        tracing::warn!(%error, "can't take a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        });
        Callers { members: to_members, strangers: to_strangers }
    }

    fn arrives(self: &Arc<Self>, acceptor: &TlsAcceptor, hall: &Arc<Hall>, stream: TcpStream, from: SocketAddr) {
        let network = Network::from(from.ip());
        let Some(arriving) = self.arrivals.enter(network, self.familiar.knows(network)) else {
            tracing::debug!(%from, "connection closed: too many are arriving");
            return;
        };
        let (doors, acceptor, hall) = (Arc::clone(self), acceptor.clone(), Arc::clone(hall));
        self.tasks.spawn("handshake", async move {
            let secured = tokio::select! {
                secured = handshake(&acceptor, stream, from) => secured,
                () = arriving.asked_to_leave() => {
                    tracing::info!(%from, "connection dropped: it did nothing, and others are waiting");
                    None
                }
            };
            if let Some(stream) = secured {
                doors.enters(&hall, stream, from.ip()).await;
            }
        });
    }

    /// Leads a caller to the room it belongs to.
    async fn enters(&self, hall: &Hall, stream: TlsStream<TcpStream>, address: IpAddr) {
        let from = Network::from(address);
        let peer = match tls::caller(&stream) {
            Ok(peer) => peer,
            Err(error) => {
                tracing::info!(?from, %error, "connection refused");
                return;
            }
        };
        // Applications have doors of their own.
        let is_in = |peer: &&Peer| peer.role != Role::Application && !(hall.is_out)(peer);
        let member = peer.as_ref().filter(is_in).map(|peer| (peer.id.clone(), peer.role));
        let caller = Caller::new(peer, address);
        let (to, connection) = match member {
            Some((id, role)) => {
                self.familiar.remember(from);
                let held = self.members.enter(id, role == Role::Operator);
                (&hall.members, held.map(|held| Connection::new(stream, caller, held, None)))
            }
            None => {
                let held = self.strangers.enter(from, false);
                (&hall.strangers, held.map(|held| Connection::new(stream, caller, held, Some(STRANGER_LIFE_MAX))))
            }
        };
        match connection {
            Some(connection) => {
                let _ = to.send(Ok(connection)).await;
            }
            None => tracing::info!(?from, "connection closed: there are too many"),
        }
    }

    /// Closes the connections of those who are members no more.
    pub fn shut(&self, out: &HashSet<String>) {
        self.members.clear(|id| out.contains(id));
    }

    /// Connections: arriving, of members, of strangers.
    #[must_use]
    pub fn counts(&self) -> [usize; 3] {
        [self.arrivals.len(), self.members.len(), self.strangers.len()]
    }
}

/// Where the doors lead to.
struct Hall {
    is_out: Box<dyn Fn(&Peer) -> bool + Send + Sync>,
    members: mpsc::Sender<io::Result<Connection>>,
    strangers: mpsc::Sender<io::Result<Connection>>,
}

async fn handshake(acceptor: &TlsAcceptor, stream: TcpStream, from: SocketAddr) -> Option<TlsStream<TcpStream>> {
    super::transport::tune(&stream);
    match tokio::time::timeout(tls::HANDSHAKE_TIME_MAX, acceptor.accept(stream)).await {
        Ok(Ok(mut stream)) => {
            stream.get_mut().1.set_buffer_limit(Some(super::transport::UNSENT_BYTES_MAX as usize));
            Some(stream)
        }
        Ok(Err(error)) => {
            tracing::info!(%from, error = %tls::explain(&error, &from.to_string()), "connection refused");
            None
        }
        Err(_) => {
            tracing::info!(%from, "connection dropped: no handshake within {:?}", tls::HANDSHAKE_TIME_MAX);
            None
        }
    }
}

/// Most descriptors that are asked for: those of the most children, and of all
/// who arrive.
const DESCRIPTORS_WANTED: u64 = 65_536;

/// Raises the soft limit of descriptors as far as the system lets a process
/// do by itself; how many there are now.
pub fn raise_descriptors() -> usize {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(u64::MAX).min(DESCRIPTORS_WANTED);
    if limit.current.is_some_and(|now| now < wanted) {
        let before = limit.current;
        limit.current = Some(wanted);
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "the limit of open files stays at {before:?}");
            limit.current = before;
        }
    }
    usize::try_from(limit.current.unwrap_or(DESCRIPTORS_WANTED)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_fit_the_descriptors() {
        for descriptors in [0, 256, 1_024, 4_096, 65_536, usize::MAX] {
            let rooms = Rooms::within(descriptors);
            let all = [rooms.arrivals, rooms.strangers, rooms.members];
            assert!(all.iter().all(|shares| shares.each > 0 && shares.each_known <= shares.total), "{rooms:?}");
            let sum: usize = all.iter().map(|shares| shares.total).sum();
            assert!(sum <= descriptors.saturating_sub(OTHER_DESCRIPTORS).max(32), "{rooms:?}");
        }
        assert_eq!(Rooms::within(65_536).children, CHILDREN_MAX);
        assert_eq!([0, 1_024, 20_000].map(|files| Rooms::within(files).children), [6, 456, 11_130]);
    }
}
