//! A node's state, on the one thread that may touch it: a database waits for
//! its disk, and whoever runs tasks must not.
//!
//! Start at [`Records::with`].

use tierline_proto::v1::{Code, Failure};
use tierline_store::{State, StoreError};
use tokio::sync::{mpsc, oneshot};

use super::tasks::Tasks;

/// Requests that wait for the disk; others wait with theirs.
const REQUESTS_MAX: usize = 256;

/// Ends with an answer that nobody gave for who waits in vain.
type Request = Box<dyn FnOnce(&State) + Send>;

/// The way to a node's state; clones share it.
#[derive(Clone)]
pub struct Records(mpsc::Sender<Request>);

impl Records {
    /// Gives the state a thread.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn keep(state: State, tasks: Tasks) -> std::io::Result<Self> {
        let (door, mut requests) = mpsc::channel::<Request>(REQUESTS_MAX);
        std::thread::Builder::new().name("state".into()).spawn(move || {
            while let Some(request) = requests.blocking_recv() {
                // Counted and told; the database takes back what was half done.
                let _ = tasks.guarded("state", || request(&state));
            }
        })?;
        Ok(Self(door))
    }

    /// Reads or writes, behind what was asked for before; done even if the
    /// caller goes away.
    ///
    /// # Errors
    /// Those of the store.
    pub fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&State) -> Result<T, StoreError> + Send + 'static,
    ) -> impl Future<Output = Result<T, Failure>> + Send + '_ {
        let (reply, answer) = oneshot::channel();
        let request: Request = Box::new(move |state| {
            // Who has gone away doesn't want to know.
            let _ = reply.send(work(state));
        });
        self.answered(request, answer)
    }

    async fn answered<T: Send + 'static>(
        &self,
        request: Request,
        answer: oneshot::Receiver<Result<T, StoreError>>,
    ) -> Result<T, Failure> {
        let broke_off = || Failure::new(Code::Internal, "the node's state broke off; its log says where");
        self.0.send(request).await.map_err(|_| broke_off())?;
        Ok(answer.await.map_err(|_| broke_off())??)
    }
}

#[cfg(test)]
mod tests {
    use super::super::events::Events;
    use super::*;
    use tierline_proto::Digest;
    use tierline_store::models;
    use tierline_store::state::Tables;

    #[tokio::test]
    async fn a_request_that_breaks_off_leaves_the_state_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let state =
            State::open(&folder.path().join("state.db"), &[Tables { of: "catalogue", steps: models::TABLES }]).unwrap();
        let tasks = Tasks::new(Events::default());
        let records = Records::keep(state, tasks.clone()).unwrap();
        records.with(|state| state.set_name("kept", Digest([1; 32]))).await.unwrap();
        let broken = records.with(|state| {
            state.with::<()>(|connection| {
                let transaction = connection.transaction()?;
                transaction.execute("DELETE FROM names", [])?;
                panic!("on purpose")
            })
        });
        assert_eq!(broken.await.unwrap_err().code(), Code::Internal);
        assert_eq!(records.with(State::names).await.unwrap(), [("kept".to_owned(), Digest([1; 32]))]);
        let mut numbers = String::new();
        tasks.numbers(&mut numbers);
        assert!(numbers.contains("tierline_task_panics_total{task=\"state\"} 1"), "{numbers}");
    }
}
