//! Tells a supervisor how the process is: the protocol of systemd's
//! `sd_notify(3)`, datagrams of `KEY=value` lines to the socket that
//! `NOTIFY_SOCKET` names. Says nothing where nobody asked.
//!
//! Start at [`Supervisor::from_environment`].

use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Characters of a status at most: it is one line of a list.
const STATUS_CHARS_MAX: usize = 200;

/// Who wants to know how this process is.
#[derive(Debug)]
pub struct Supervisor {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// It ends a process that says nothing for so long.
    pub watchdog: Option<Duration>,
}

impl Supervisor {
    /// The one that started this process, if it wants to know.
    #[must_use]
    pub fn from_environment() -> Self {
        let variable = |name: &str| std::env::var(name).ok();
        let socket = variable("NOTIFY_SOCKET").and_then(|name| open(&name));
        // A variable that a parent process left is not for this one.
        let ours = variable("WATCHDOG_PID").is_none_or(|id| id == std::process::id().to_string());
        let watchdog = variable("WATCHDOG_USEC").filter(|_| ours && socket.is_some()).and_then(|us| us.parse().ok());
        Self { socket, watchdog: watchdog.filter(|us| *us > 0).map(Duration::from_micros) }
    }

    /// It serves from now on.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", line(status)));
    }

    /// It reads its configuration again; [`ready`](Self::ready) ends that.
    pub fn reloading(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.tv_sec * 1_000_000 + now.tv_nsec / 1_000));
    }

    /// What it is at, in a sentence.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={}", line(status)));
    }

    /// It ends.
    pub fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=stopping");
    }

    /// Says that it lives, for as long as tasks get their turn; for ever.
    pub async fn keep_alive(&self) {
        let Some(limit) = self.watchdog else { return std::future::pending().await };
        // Twice as often as asked, as the protocol recommends.
        let mut turns = tokio::time::interval((limit / 2).max(Duration::from_millis(1)));
        loop {
            turns.tick().await;
            // A task of its own: where the workers are stuck, nothing is sent.
            if tokio::spawn(async {}).await.is_ok() {
                self.send("WATCHDOG=1");
            }
        }
    }

    fn send(&self, text: &str) {
        if let Some((socket, address)) = &self.socket {
            // A supervisor that doesn't listen must not keep a node from its work.
            let _ = socket.send_to_addr(text.as_bytes(), address);
        }
    }
}

/// A path, or behind `@` a name without a file.
fn open(name: &str) -> Option<(UnixDatagram, SocketAddr)> {
    let address = match name.strip_prefix('@') {
        Some(name) => abstract_address(name)?,
        None if name.starts_with('/') => SocketAddr::from_pathname(name).ok()?,
        None => return None,
    };
    let socket = UnixDatagram::unbound().ok()?;
    socket.set_nonblocking(true).ok()?;
    Some((socket, address))
}

#[cfg(target_os = "linux")]
fn abstract_address(name: &str) -> Option<SocketAddr> {
    <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name).ok()
}

#[cfg(not(target_os = "linux"))]
fn abstract_address(_name: &str) -> Option<SocketAddr> {
    None
}

/// A status of one line.
fn line(status: &str) -> String {
    let one: String = status.chars().take(STATUS_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
    one.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_one_line() {
        assert_eq!(line("ready\nREADY=1"), "ready READY=1");
        assert_eq!(line(&"x".repeat(1_000)).len(), STATUS_CHARS_MAX);
    }

    #[test]
    fn sockets_have_paths_or_names() {
        assert!(open("/run/x").is_some() && open("@tierline/x").is_some());
        assert!(open("vsock:2:1").is_none() && open("").is_none() && open("run/x").is_none());
    }
}
