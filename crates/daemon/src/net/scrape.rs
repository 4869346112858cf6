//! The door for Prometheus: the node's numbers over plain HTTP, at an address
//! of their own and only if one is configured.
//!
//! Speaks no more of HTTP/1.1 than a scrape needs: one GET per connection.

use std::sync::Arc;
use std::time::Duration;

use tierline_node::places::{Network, Shares};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::door::Room;
use crate::runtime::{Context, numbers};

/// A request's head; scrapes send a few hundred bytes.
const HEAD_BYTES_MAX: usize = 8 << 10;

/// A caller that takes longer for its request or the answer is hung up on.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connections at once, in all and of one address: who is slow makes room for
/// who isn't.
const PLACES: Shares =
    Shares { total: 32, kept_for_known: 0, each: 8, each_known: 8, grace: Duration::from_millis(500) };

/// Answers until the node ends.
pub async fn serve(cx: Context, listener: Arc<TcpListener>) {
    let room = Room::new(PLACES);
    loop {
        let Ok((stream, from)) = listener.accept().await else {
            // Out of file descriptors, most likely: they come back.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Some(held) = room.enter(Network::from(from.ip()), false) else { continue };
        let scraped = cx.clone();
        cx.tasks.spawn("scrape answer", async move {
            tokio::select! {
                // Who is too slow asks again.
                _ = tokio::time::timeout(PATIENCE, answer(&scraped, stream)) => {}
                () = held.asked_to_leave() => {}
            }
        });
    }
}

async fn answer(cx: &Context, mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() > HEAD_BYTES_MAX || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let (status, kind, body) = match respond(&head) {
        Ok(()) => ("200 OK", "text/plain; version=0.0.4; charset=utf-8", numbers::text(cx)),
        Err(status) => (status, "text/plain; charset=utf-8", "numbers are at /metrics\n".to_owned()),
    };
    let length = body.len();
    let reply = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    stream.write_all(reply.as_bytes()).await?;
    stream.shutdown().await
}

/// Whether a request is for the numbers; else what it gets.
fn respond(head: &[u8]) -> Result<(), &'static str> {
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|&byte| byte == b' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split(|&byte| byte == b'?').next().unwrap_or_default();
    match (method, path) {
        (b"GET", b"/metrics") => Ok(()),
        (b"GET", _) => Err("404 Not Found"),
        _ => Err("405 Method Not Allowed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_get_of_the_numbers_is_answered_with_them() {
        assert_eq!(respond(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"), Ok(()));
        assert_eq!(respond(b"GET /metrics?name[]=up HTTP/1.1\r\n\r\n"), Ok(()));
        assert_eq!(respond(b"GET / HTTP/1.1\r\n\r\n"), Err("404 Not Found"));
        assert_eq!(respond(b"POST /metrics HTTP/1.1\r\n\r\n"), Err("405 Method Not Allowed"));
        assert_eq!(respond(b"\r\n\r\n"), Err("405 Method Not Allowed"));
    }
}
