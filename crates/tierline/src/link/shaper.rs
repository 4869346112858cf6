//! The forwarding itself.
//!
//! Each direction has one clock that all its connections share: a chunk
//! leaves when the chunks before it have left and its own bits have passed.
//! Then it waits out the delay, in order, without holding up the clock. What
//! isn't read from the sender stays in its socket: back-pressure as on a real
//! link.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::config::SEGMENT_BYTES;
use super::{LinkConfig, LinkError};

/// Time that one chunk may take on the link: short ones keep small messages
/// from waiting behind large ones.
const CHUNK_TIME: f64 = 0.01;

/// Largest chunk, bytes.
const CHUNK_BYTES_MAX: usize = 64 << 10;

/// The timer's step. A chunk is waited for to the nearest step, not to the
/// next one.
const TIMER_STEP: Duration = Duration::from_millis(1);

/// A link that became free no longer ago than this was never idle: whoever
/// reads was woken late, and the next bits follow the last ones. Without it a
/// link of 100 Mbit/s carried 62.
const WOKEN_LATE_MAX: Duration = Duration::from_millis(4);

/// Chunks on their way per connection and direction; more than any delay
/// holds at the chunk times above.
const CHUNKS_UNDER_WAY_MAX: usize = 4_096;

/// Bytes the kernel may hold on the sender's behalf: little, so that what is
/// sent is on the link and not in a buffer before it.
const RECEIVE_BUFFER_BYTES: usize = 16 << 10;

/// What passed a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Bytes from the listening side to the target.
    pub up_bytes: u64,
    /// Bytes back.
    pub down_bytes: u64,
    /// Connections so far.
    pub connections: u64,
}

#[derive(Default)]
struct Shared {
    /// When each direction's last bit will have passed.
    clocks: [Mutex<Option<Instant>>; 2],
    bytes: [AtomicU64; 2],
    connections: AtomicU64,
}

/// A running link; it ends with the value.
pub struct Shaper {
    address: SocketAddr,
    config: watch::Sender<LinkConfig>,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Clone, Copy)]
enum Direction {
    Up = 0,
    Down = 1,
}

impl Shaper {
    /// Listens on `listen` and forwards every connection to `target`
    /// (`host:port`).
    ///
    /// # Errors
    /// [`LinkError::Listen`], [`LinkError::Value`].
    pub async fn start(listen: &str, target: String, config: LinkConfig) -> Result<Self, LinkError> {
        config.check()?;
        let fail = |source| LinkError::Listen { address: listen.to_owned(), source };
        let listener = TcpListener::bind(listen).await.map_err(fail)?;
        // Connections inherit it. Loopback's own segments of 64 KB would not
        // fit the small buffers below, and TCP would wait for timers.
        socket2::SockRef::from(&listener).set_tcp_mss(SEGMENT_BYTES as u32).map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        let (sender, settings) = watch::channel(config);
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(accept(listener, target, settings, Arc::clone(&shared)));
        Ok(Self { address, config: sender, shared, task })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// As it is now.
    #[must_use]
    pub fn config(&self) -> LinkConfig {
        self.config.borrow().clone()
    }

    /// Changes it from now on, for connections that are open as well.
    ///
    /// # Errors
    /// [`LinkError::Value`]; it stays as it was.
    pub fn set(&self, config: LinkConfig) -> Result<(), LinkError> {
        config.check()?;
        // Bits queued at the old rate count no more.
        for clock in &self.shared.clocks {
            *clock.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        self.config.send_replace(config);
        Ok(())
    }

    /// What passed so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let bytes = |d: Direction| self.shared.bytes[d as usize].load(Ordering::Relaxed);
        Counters {
            up_bytes: bytes(Direction::Up),
            down_bytes: bytes(Direction::Down),
            connections: self.shared.connections.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Shaper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, target: String, config: watch::Receiver<LinkConfig>, shared: Arc<Shared>) {
    // Connections end with the link.
    let mut open = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    shared.connections.fetch_add(1, Ordering::Relaxed);
                    open.spawn(connection(stream, target.clone(), config.clone(), Arc::clone(&shared)));
                }
                Err(error) => {
                    // Out of file descriptors, usually: let some close.
                    tracing::warn!(%error, "the link can't take a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = open.join_next() => {}
        }
    }
}

async fn connection(from: TcpStream, target: String, mut config: watch::Receiver<LinkConfig>, shared: Arc<Shared>) {
    // On a cut cable a call hangs; it isn't refused.
    until_whole(&mut config).await;
    let Ok(to) = connect(&target).await else { return };
    for stream in [&from, &to] {
        let _ = stream.set_nodelay(true);
        let _ = socket2::SockRef::from(stream).set_recv_buffer_size(RECEIVE_BUFFER_BYTES);
    }
    let (from_read, from_write) = from.into_split();
    let (to_read, to_write) = to.into_split();
    // One direction may end long before the other.
    tokio::join!(
        pump(from_read, to_write, Direction::Up, config.clone(), &shared),
        pump(to_read, from_write, Direction::Down, config, &shared),
    );
}

async fn connect(target: &str) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
    for address in tokio::net::lookup_host(target).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket2::SockRef::from(&socket).set_tcp_mss(SEGMENT_BYTES as u32)?;
        match socket.connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(e) => last = e,
        }
    }
    Err(last)
}

async fn until_whole(config: &mut watch::Receiver<LinkConfig>) {
    let _ = config.wait_for(|c| !c.cut).await;
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
    direction: Direction,
    mut config: watch::Receiver<LinkConfig>,
    shared: &Shared,
) {
    let (send, receive) = mpsc::channel(CHUNKS_UNDER_WAY_MAX);
    let writing = deliver(receive, to, config.clone(), &shared.bytes[direction as usize]);
    let reading = async move {
        let mut latest = Instant::now();
        let rate_of = |link: &LinkConfig| match direction {
            Direction::Up => link.rate(link.up_bits_per_s),
            Direction::Down => link.rate(link.down_bits_per_s),
        };
        loop {
            until_whole(&mut config).await;
            let rate = rate_of(&config.borrow());
            let size = rate.map_or(CHUNK_BYTES_MAX, |r| {
                ((r * CHUNK_TIME / 8.0) as usize).clamp(SEGMENT_BYTES / 2, CHUNK_BYTES_MAX)
            });
            let mut chunk = vec![0; size];
            let n = match from.read(&mut chunk).await {
                Ok(0) | Err(_) => return,
                Ok(n) => n,
            };
            chunk.truncate(n);
            // As the link is now: what was waited for may have come long after.
            let link = config.borrow().clone();
            let rate = rate_of(&link);
            let left = leave(&shared.clocks[direction as usize], Instant::now(), rate, n);
            until(left).await;
            let mut due = left + Duration::from_secs_f64(link.delay_s + link.jitter_s * fastrand::f64());
            let segments = n.div_ceil(SEGMENT_BYTES) as i32;
            if link.loss > 0.0 && fastrand::f64() > (1.0 - link.loss).powi(segments) {
                due += link.stall();
            }
            // TCP delivers in order: nobody overtakes a late segment.
            latest = latest.max(due);
            if send.send((latest, chunk)).await.is_err() {
                return;
            }
        }
    };
    // Reading owns the sender: its end ends the writing, once everything
    // under way has arrived.
    tokio::join!(reading, writing);
}

/// Until about then; what is due within half a step isn't waited for.
async fn until(due: Instant) {
    let soonest = due.checked_sub(TIMER_STEP / 2).unwrap_or(due);
    if soonest > Instant::now() {
        tokio::time::sleep_until(soonest).await;
    }
}

/// When a chunk's last bit leaves.
fn leave(clock: &Mutex<Option<Instant>>, now: Instant, rate: Option<f64>, bytes: usize) -> Instant {
    let Some(rate) = rate else { return now };
    let mut clock = clock.lock().unwrap_or_else(PoisonError::into_inner);
    let free = clock.filter(|free| now.saturating_duration_since(*free) <= WOKEN_LATE_MAX).unwrap_or(now);
    let left = free + Duration::from_secs_f64(bytes as f64 * 8.0 / rate);
    *clock = Some(left);
    left
}

async fn deliver(
    mut chunks: mpsc::Receiver<(Instant, Vec<u8>)>,
    mut to: impl AsyncWrite + Unpin,
    mut config: watch::Receiver<LinkConfig>,
    bytes: &AtomicU64,
) {
    while let Some((due, chunk)) = chunks.recv().await {
        until(due).await;
        until_whole(&mut config).await;
        if to.write_all(&chunk).await.is_err() {
            return;
        }
        bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
    }
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: f64 = 100e6;
    const BYTES: usize = 16 << 10;

    /// A reader that wakes so long after each chunk could leave; seconds that
    /// `chunks` of them took.
    fn carried(chunks: u32, late: Duration) -> f64 {
        let (clock, began) = (Mutex::new(None), Instant::now());
        let mut now = began;
        for _ in 0..chunks {
            now = leave(&clock, now, Some(RATE), BYTES) + late;
        }
        (now - late - began).as_secs_f64()
    }

    #[test]
    fn a_reader_that_is_woken_late_makes_the_link_no_slower() {
        let exact = 100.0 * BYTES as f64 * 8.0 / RATE;
        for late_us in [0, 300, 1_200, 2_500] {
            let took = carried(100, Duration::from_micros(late_us));
            assert!((took / exact - 1.0).abs() < 0.02, "{late_us} us late: {took} s instead of {exact}");
        }
    }

    #[test]
    fn what_comes_after_a_pause_gets_nothing_for_the_pause() {
        let (clock, began) = (Mutex::new(None), Instant::now());
        let first = leave(&clock, began, Some(RATE), BYTES);
        let later = first + Duration::from_secs(1);
        let second = leave(&clock, later, Some(RATE), BYTES);
        assert_eq!(second - later, first - began);
    }
}
