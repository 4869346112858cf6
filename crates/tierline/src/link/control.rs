//! Changes a running link from another process: one JSON document a line,
//! answered by the link's state.

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::{Change, Counters, LinkConfig, LinkError, Shaper};

/// Longest line taken.
const LINE_BYTES_MAX: u64 = 4_096;

/// A link as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Where it listens.
    pub listen: String,
    /// What it is like.
    #[serde(flatten)]
    pub config: LinkConfig,
    /// What passed so far.
    #[serde(flatten)]
    pub counters: Counters,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Ok(State),
    Error(String),
}

impl Shaper {
    /// The link as it is.
    #[must_use]
    pub fn state(&self) -> State {
        State { listen: self.address().to_string(), config: self.config(), counters: self.counters() }
    }
}

/// Answers on `listener` until the task is dropped.
pub async fn serve(shaper: &Shaper, listener: TcpListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read.take(LINE_BYTES_MAX)).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let changed = serde_json::from_str::<Change>(&line)
                .map_err(|e| e.to_string())
                .and_then(|change| shaper.config().with(&change).map_err(|e| e.to_string()))
                .and_then(|config| shaper.set(config).map_err(|e| e.to_string()));
            let answer = match changed {
                Ok(()) => Answer::Ok(shaper.state()),
                Err(text) => Answer::Error(text),
            };
            let Ok(mut text) = serde_json::to_string(&answer) else { break };
            text.push('\n');
            if write.write_all(text.as_bytes()).await.is_err() {
                break;
            }
        }
    }
}

/// Changes the link that answers at `address`; gives its state.
///
/// # Errors
/// [`LinkError::Control`], [`LinkError::Refused`].
pub async fn change(address: &str, change: &Change) -> Result<State, LinkError> {
    let fail = |source| LinkError::Control { address: address.to_owned(), source };
    let mut line = serde_json::to_string(change).map_err(|e| LinkError::Refused(e.to_string()))?;
    line.push('\n');
    let mut stream = TcpStream::connect(address).await.map_err(fail)?;
    stream.write_all(line.as_bytes()).await.map_err(fail)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).await.map_err(fail)?;
    match serde_json::from_str(&answer) {
        Ok(Answer::Ok(state)) => Ok(state),
        Ok(Answer::Error(text)) => Err(LinkError::Refused(text)),
        Err(e) => Err(LinkError::Refused(e.to_string())),
    }
}
