//! What a side that coordinates asks of the world around it.

use std::collections::BTreeSet;
use std::time::Duration;

use tierline_federate::{Contribution, FederateError, Layout, RoundScores, Vectors};

use super::super::{Assignment, Coordinator, Record, Task, Update, Verdict};
use crate::Time;

/// What a member's task begins with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Start {
    /// There is no task.
    #[default]
    Nothing,
    /// What is said of the member's own examples, where each side trains a part
    /// of the model.
    Said,
    /// A model.
    Model {
        /// Its number.
        version: u64,
        /// Versions that a difference leads to, one behind the other up to this
        /// one; none where the model travels whole.
        differences: Vec<u64>,
        /// Of an edge that gossips: whom it exchanges models with.
        neighbours: Vec<String>,
    },
}

/// A model that members may have from now on.
#[derive(Debug)]
pub struct Published<'a> {
    /// Its number.
    pub version: u64,
    /// What its vectors are.
    pub layout: &'a Layout,
    /// The model that members start from.
    pub held: &'a Vectors,
    /// The model itself, where members hold another one.
    pub own: Option<&'a Vectors>,
    /// What takes members there from the version before, where they hold
    /// another one.
    pub difference: Option<Vec<u8>>,
    /// What the strategy remembers with it.
    pub kept: &'a std::collections::BTreeMap<String, Vec<f32>>,
}

/// Whom an edge exchanges models with, as its parent last said. Of one task,
/// neighbours only become more: a parent that has just started hasn't heard of
/// all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Neighbourhood {
    /// Since which task.
    pub task: Task,
    /// The parent's round.
    pub round: u64,
    /// In the order in which they are asked.
    pub neighbours: Vec<String>,
}

/// How a model does on the examples held out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Averaged over them.
    pub loss: f64,
    /// Share of them that were right, where targets are classes.
    pub accuracy: Option<f64>,
}

/// What people should hear of.
#[derive(Debug)]
pub enum News<'a> {
    /// A round of which all is known.
    Round(&'a RoundScores),
    /// A round has ended of which members say the rest with their next answers.
    Pending(&'a RoundScores),
    /// A member is left out.
    Excluded {
        /// Who.
        member: &'a str,
        /// Why.
        reason: &'a str,
    },
    /// An exchange goes on without a neighbour.
    Absent {
        /// Who.
        neighbour: &'a str,
        /// Why.
        reason: &'a str,
    },
}

/// The world around a side that coordinates: where it stores, how it sends, who
/// trains, what time it is. A node's is its disk and its links, a simulation's
/// a virtual clock.
///
/// What stores is done, through to the disk, when the call comes back. What
/// sends may be lost; whoever didn't hear asks again.
pub trait Effects: Send {
    /// What can go wrong.
    type Error: Send;

    /// The error for a model that can't be made of what came.
    fn failed(error: FederateError) -> Self::Error;

    // Time.

    /// Now.
    fn now(&self) -> Time;

    /// Does what takes the processor for long.
    fn compute<T>(work: impl FnOnce() -> T) -> T {
        work()
    }

    // Store.

    /// Writes records to the journal, all or none.
    fn keep(&mut self, records: Vec<Record>) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Keeps a model, for members to fetch; its bytes as it travels whole.
    fn keep_model(&mut self, model: Published<'_>) -> impl Future<Output = Result<u64, Self::Error>> + Send;

    /// Lets go of all models but these, and of all differences but those that
    /// lead to these versions, if there are any.
    fn retain(
        &mut self,
        models: &BTreeSet<u64>,
        differences: Option<&[u64]>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// A model that was kept: itself, not the one that members hold. Version 0
    /// is the job's first.
    fn load_model(&mut self, version: u64) -> impl Future<Output = Result<Vectors, Self::Error>> + Send;

    /// An update's bytes, which came before a restart.
    fn load_update(&mut self, update: &Update) -> impl Future<Output = Result<Vec<u8>, Self::Error>> + Send;

    /// An update's bytes are of no use any more: the journal has all it says.
    fn forget_update(&mut self, update: &Update);

    /// Nor are those of tasks that the coordinator doesn't need.
    fn sweep(&mut self, coordinator: &Coordinator);

    // Send.

    /// Tells a member what is wanted of it.
    fn tell(&mut self, member: &str, assignment: Assignment, start: Start) -> impl Future<Output = ()> + Send;

    /// Answers a member that sent an update.
    fn answer(&mut self, member: &str, task: Task, verdict: &Verdict);

    /// Whether a member exchanges models with others of its kind.
    fn gossips(&self, member: &str) -> bool;

    /// Of an edge that gossips: whom with.
    fn neighbourhood(&self) -> Option<Neighbourhood>;

    /// Lets neighbours have this edge's model of an exchange; those of exchanges
    /// before `oldest` are needed no more.
    fn offer(
        &mut self,
        exchange: u64,
        oldest: u64,
        model: Vec<u8>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Asks a neighbour for its model of an exchange, and waits so long; then
    /// [`Coordination::heard`](super::Coordination::heard).
    fn ask(&mut self, exchange: u64, neighbour: &str, patience: Duration);

    /// The neighbour that was asked is not waited for any more.
    fn ask_no_more(&mut self);

    /// Of an edge: its task is done.
    fn gathered(&mut self, task: Task, contribution: Contribution) -> impl Future<Output = ()> + Send;

    /// Of the cloud: the job is done, and this is its model.
    fn finished(&mut self, version: u64, model: &Vectors) -> impl Future<Output = Result<(), Self::Error>> + Send;

    // Train.

    /// Takes down what a member's contribution says of public examples, or of
    /// its own, to learn of. `held` is what it started from.
    ///
    /// # Errors
    /// When it doesn't fit.
    fn listen(&mut self, member: &str, held: &Vectors, contribution: &Contribution) -> Result<(), Self::Error>;

    /// Has the new model learn of that, and keeps what members' next tasks begin
    /// with, where that isn't a model; `None` where nothing is learned so.
    fn teach(
        &mut self,
        version: u64,
        round: u64,
        model: &Vectors,
        layout: &Layout,
    ) -> impl Future<Output = Result<Option<Vectors>, Self::Error>> + Send;

    /// Bytes of what a member's next task begins with, where that isn't a model.
    fn said_bytes(&self, member: &str) -> u64;

    /// How a model does on the examples held out here; `None` where there are
    /// none.
    ///
    /// # Errors
    /// When it can't be run.
    fn evaluate(&mut self, model: &Vectors) -> Result<Option<Evaluation>, Self::Error>;

    // Say.

    /// Says what happened.
    fn note(&mut self, news: News<'_>) -> impl Future<Output = Result<(), Self::Error>> + Send;
}
