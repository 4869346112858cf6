//! Passes bytes on between two sockets, and counts them.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;

/// What went through: towards the server, and from it.
#[derive(Debug, Default)]
pub struct Counts {
    up: AtomicU64,
    down: AtomicU64,
}

impl Counts {
    /// Bytes up and down so far.
    pub fn now(&self) -> [u64; 2] {
        [self.up.load(Ordering::Relaxed), self.down.load(Ordering::Relaxed)]
    }
}

/// Listens for callers of `server` until the process ends.
///
/// # Errors
/// When nothing can listen.
pub fn start(server: SocketAddr) -> Result<(SocketAddr, Arc<Counts>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let counts = Arc::new(Counts::default());
    let counting = Arc::clone(&counts);
    std::thread::spawn(move || {
        for caller in listener.incoming().flatten() {
            let Ok(callee) = TcpStream::connect(server) else { continue };
            // Many small messages wait for answers.
            let _ = (caller.set_nodelay(true), callee.set_nodelay(true));
            let (Ok(from), Ok(to)) = (caller.try_clone(), callee.try_clone()) else { continue };
            let (up, down) = (Arc::clone(&counting), Arc::clone(&counting));
            std::thread::spawn(move || pass(from, to, &up.up));
            std::thread::spawn(move || pass(callee, caller, &down.down));
        }
    });
    Ok((address, counts))
}

fn pass(mut from: TcpStream, mut to: TcpStream, count: &AtomicU64) {
    let mut buffer = vec![0; 256 << 10];
    while let Ok(read) = from.read(&mut buffer) {
        if read == 0 || to.write_all(&buffer[..read]).is_err() {
            break;
        }
        count.fetch_add(read as u64, Ordering::Relaxed);
    }
    // The other direction ends when its own side does.
    let _ = to.shutdown(Shutdown::Write);
}
