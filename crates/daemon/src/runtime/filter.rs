//! What a node logs, changed while it runs: whoever started it holds the log,
//! and is asked.

use tierline_proto::v1::{Code, Failure};
use tokio::sync::{mpsc, oneshot};

/// Changes that wait; one at a time is the rule.
const WISHES_MAX: usize = 4;

/// A wish for another filter (empty: for none other), and where to say which
/// is in force then, or why it stays.
pub struct Wish {
    /// Levels, and targets with one.
    pub filter: String,
    /// Hears what came of it.
    pub told: oneshot::Sender<Result<String, String>>,
}

/// Asks for another filter; clones share it.
#[derive(Clone)]
pub struct Filter(mpsc::Sender<Wish>);

impl Filter {
    /// The asking side, and the one that does it.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Wish>) {
        let (wishes, asked) = mpsc::channel(WISHES_MAX);
        (Self(wishes), asked)
    }

    /// Logs by another filter from now on, and says which is in force; an empty
    /// one changes nothing.
    ///
    /// # Errors
    /// [`Code::InvalidInput`] for one that can't be read.
    pub async fn set(&self, filter: String) -> Result<String, Failure> {
        let ends = || Failure::new(Code::Draining, "the node ends");
        let (told, answer) = oneshot::channel();
        self.0.send(Wish { filter, told }).await.map_err(|_| ends())?;
        answer.await.map_err(|_| ends())?.map_err(|why| Failure::new(Code::InvalidInput, why))
    }
}
