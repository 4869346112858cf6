//! Idle ends by the thousand, in one process: each has an identity of the
//! site's authority and keeps its lease by a node's own code
//! (`tierline_daemon::net::Uplink`). None has an engine, a disk or duties.
//!
//! How many there are to be, lines on standard input say; each is answered by
//! a line ([`Said`]) once as many hold their leases. Start at [`run`].

use std::io::{BufRead, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use tierline_daemon::config::NodeConfig;
use tierline_daemon::net::{Net, Revoked, Uplink};
use tierline_daemon::runtime::duty::Duties;
use tierline_daemon::runtime::events::Events;
use tierline_daemon::runtime::tasks::Tasks;
use tierline_daemon::runtime::{Clock, Me};
use tierline_identity::tls::LiveIdentity;
use tierline_identity::{Ca, Grant, Identity, NODE_VALIDITY};
use tierline_node::Peer;
use tierline_node::request::Event;
use tierline_proto::Role;
use tierline_proto::envelope::SITE;
use tierline_proto::v1::{LoadReport, Offers, SiteReport, Subtree, site_report};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, broadcast};

/// Ends that connect at once. All at once they would only wait for each other.
const JOINING_MAX: usize = 64;

/// Of so many ends one is reached through a relay that counts its bytes.
pub const COUNTED: usize = 100;

/// The longest that a thousand ends may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Bytes that are relayed at once.
const PIECE_BYTES: usize = 16 << 10;

/// What there is.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Said {
    /// Ends that hold their leases.
    pub connected: usize,
    /// Leases lost so far.
    pub lost: u64,
    /// Bytes of TLS so far, of the ends that are counted: up and down.
    pub bytes: [u64; 2],
}

#[derive(Default)]
struct Counts {
    connected: AtomicUsize,
    lost: AtomicU64,
    bytes: [AtomicU64; 2],
}

impl Counts {
    fn said(&self) -> Said {
        let [up, down] = &self.bytes;
        Said {
            connected: self.connected.load(Ordering::Relaxed),
            lost: self.lost.load(Ordering::Relaxed),
            bytes: [up, down].map(|bytes| bytes.load(Ordering::Relaxed)),
        }
    }
}

/// Connects ends to the node at `url` as standard input says, until it ends.
///
/// # Errors
/// When the authority can't be read, or ends don't connect in time.
pub fn run(url: &str, authority: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let counts = Arc::<Counts>::default();
    let to: SocketAddr = url.trim_start_matches("https://").parse()?;
    let relay = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let urls = [url.to_owned(), format!("https://{}", relay.local_addr()?)];
    let _entered = runtime.enter();
    let _relay = tokio::spawn(relayed(relay, to, Arc::clone(&counts)));
    let events = Events::default();
    let all = Arc::new(Ends {
        authority: Ca::open(authority)?,
        urls,
        tasks: Tasks::new(events.clone()),
        events,
        joining: Semaphore::new(JOINING_MAX),
        counts,
    });
    let mut ends = 0;
    for line in std::io::stdin().lock().lines() {
        let wanted: usize = line?.trim().parse()?;
        for number in ends..wanted {
            let all = Arc::clone(&all);
            let _kept = tokio::spawn(async move {
                if let Err(error) = all.keep(number).await {
                    eprintln!("end {number}: {error:#}");
                }
            });
        }
        ends = ends.max(wanted);
        let begun = Instant::now();
        while all.counts.connected.load(Ordering::Relaxed) < ends {
            let connected = all.counts.said().connected;
            ensure!(begun.elapsed() < PATIENCE * (1 + ends as u32 / 1_000), "{connected} of {ends} ends are connected");
            std::thread::sleep(Duration::from_millis(5));
        }
        println!("{}", serde_json::to_string(&all.counts.said())?);
        std::io::stdout().flush()?;
    }
    Ok(())
}

struct Ends {
    authority: Ca,
    /// Straight to the node, and through the relay.
    urls: [String; 2],
    tasks: Tasks,
    events: Events,
    joining: Semaphore,
    counts: Arc<Counts>,
}

impl Ends {
    /// One end, for as long as the process lives.
    async fn keep(&self, number: usize) -> Result<()> {
        let turn = self.joining.acquire().await?;
        let (id, name) = (format!("{number:032x}"), format!("idle-{number}"));
        let grant = Grant { id: &id, role: Role::End, name: &name, validity: NODE_VALIDITY };
        let identity = LiveIdentity::new(Identity::issue(&self.authority, &grant, SystemTime::now())?)?;
        let changes = broadcast::channel(4).0;
        let mut heard = changes.subscribe();
        let net = Net {
            me: Arc::new(Me::new(NodeConfig { name, ..NodeConfig::default() }, identity, fastrand::u64(1..))),
            clock: Clock::start(),
            tasks: self.tasks.clone(),
            events: self.events.clone(),
            duties: Duties::default(),
            revoked: Revoked::default(),
            changes,
        };
        let url = &self.urls[usize::from(number.is_multiple_of(COUNTED))];
        let uplink = Arc::new(Uplink::new(Peer(0), url.clone(), net));
        let mut keeping = std::pin::pin!(Arc::clone(&uplink).keep());
        let mut turn = Some(turn);
        loop {
            let change = tokio::select! {
                () = &mut keeping => return Ok(()),
                change = heard.recv() => change,
            };
            match change {
                Ok(Event::PeerUp { .. }) => {
                    introduced(&uplink);
                    self.counts.connected.fetch_add(1, Ordering::Relaxed);
                    drop(turn.take());
                }
                Ok(Event::PeerDown { .. }) => {
                    self.counts.connected.fetch_sub(1, Ordering::Relaxed);
                    self.counts.lost.fetch_add(1, Ordering::Relaxed);
                }
                _ => {}
            }
        }
    }
}

/// What an end without models says of itself.
fn introduced(uplink: &Uplink) {
    use site_report::Body;
    let said = [Body::Offers(Offers::default()), Body::Load(LoadReport::default()), Body::Subtree(Subtree::default())];
    said.into_iter().for_each(|body| uplink.tell(SITE, &SiteReport { body: Some(body) }));
}

/// Passes connections on, and counts their bytes.
async fn relayed(listener: TcpListener, to: SocketAddr, counts: Arc<Counts>) {
    while let Ok((from, _)) = listener.accept().await {
        let counts = Arc::clone(&counts);
        let _connection = tokio::spawn(async move {
            let Ok(to) = TcpStream::connect(to).await else { return };
            let _ = (from.set_nodelay(true), to.set_nodelay(true));
            let ((from_read, from_write), (to_read, to_write)) = (from.into_split(), to.into_split());
            let [up, down] = &counts.bytes;
            tokio::join!(piped(from_read, to_write, up), piped(to_read, from_write, down));
        });
    }
}

/// Copies until either end is gone.
async fn piped(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, counted: &AtomicU64) {
    let mut piece = vec![0; PIECE_BYTES];
    while let Ok(read @ 1..) = from.read(&mut piece).await {
        counted.fetch_add(read as u64, Ordering::Relaxed);
        if to.write_all(&piece[..read]).await.is_err() {
            return;
        }
    }
}
