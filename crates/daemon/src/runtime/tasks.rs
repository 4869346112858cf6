//! The tasks of a node. Nothing else in the daemon spawns: each task has a
//! name, and the node waits for it when it ends.
//!
//! A panic ends the task that it happens in, and nothing more. It is logged
//! with its place, counted and told as an event, and whoever waits for the
//! task gets a failure that names it. What has to go on as long as the node
//! does is begun again, after a pause that grows.
//!
//! Start at [`Tasks`].

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tierline_proto::v1::{Code, Failure, TaskInfo};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;

use super::events::Events;
use super::numbers;

/// Before a lasting task that broke off is begun again; doubles with every time.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// One that breaks off each time is tried again so often.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// One that went on for so long begins again after the first pause.
const STEADY: Duration = Duration::from_secs(60);

tokio::task_local! {
    /// For whoever reads of a panic.
    static NAME: &'static str;
}

/// A stream that holds something until it was read to its end, or whoever reads
/// it is gone: what waits in it still counts.
pub struct Holding<S, H> {
    stream: S,
    _held: H,
}

impl<S, H> Holding<S, H> {
    /// `stream`, which holds `held`.
    pub fn new(stream: S, held: H) -> Self {
        Self { stream, _held: held }
    }
}

impl<S: Stream + Unpin, H: Unpin> Stream for Holding<S, H> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        Pin::new(&mut self.stream).poll_next(cx)
    }
}

/// A future whose own type nothing is made for.
type Boxed<'f, T> = Pin<Box<dyn Future<Output = T> + Send + 'f>>;

/// Starts tasks, and waits for them; clones share them.
#[derive(Clone)]
pub struct Tasks(Arc<Inner>);

struct Inner {
    tracker: TaskTracker,
    stop: CancellationToken,
    events: Events,
    /// How many there are of each name.
    running: Mutex<BTreeMap<&'static str, usize>>,
    faults: Mutex<Faults>,
}

/// Times that tasks broke off, and were begun again, by name.
#[derive(Default)]
struct Faults {
    panics: BTreeMap<&'static str, u64>,
    restarts: BTreeMap<&'static str, u64>,
}

impl Tasks {
    /// None yet; their panics are told in `events`.
    #[must_use]
    pub fn new(events: Events) -> Self {
        Self(Arc::new(Inner {
            tracker: TaskTracker::new(),
            stop: CancellationToken::new(),
            events,
            running: Mutex::default(),
            faults: Mutex::default(),
        }))
    }

    /// How often tasks broke off, in Prometheus' text format.
    pub fn numbers(&self, out: &mut String) {
        let faults = self.0.faults.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, help, counts) in [
            ("tierline_task_panics_total", "Tasks that broke off by a fault of Tierline.", &faults.panics),
            ("tierline_task_restarts_total", "Lasting tasks that were begun again.", &faults.restarts),
        ] {
            numbers::labelled(out, (name, "counter", help), "task", counts.iter().map(|(task, n)| (*task, n)));
        }
    }

    /// What runs now, and what broke off so far, by name.
    #[must_use]
    pub fn list(&self) -> Vec<TaskInfo> {
        let mut tasks: BTreeMap<&'static str, TaskInfo> = BTreeMap::new();
        let running = self.0.running.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, count) in running.iter().filter(|(_, count)| **count > 0) {
            tasks.entry(name).or_default().running = *count as u64;
        }
        drop(running);
        let faults = self.0.faults.lock().unwrap_or_else(PoisonError::into_inner);
        faults.panics.iter().for_each(|(name, count)| tasks.entry(name).or_default().panics = *count);
        faults.restarts.iter().for_each(|(name, count)| tasks.entry(name).or_default().restarts = *count);
        tasks.into_iter().map(|(name, info)| TaskInfo { name: name.to_owned(), ..info }).collect()
    }

    fn count(&self, of: impl FnOnce(&mut Faults) -> &mut BTreeMap<&'static str, u64>, task: &'static str) {
        *of(&mut self.0.faults.lock().unwrap_or_else(PoisonError::into_inner)).entry(task).or_default() += 1;
    }

    /// Starts a task of one request, connection or message.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &'static str,
        future: impl Future<Output = T> + Send + 'static,
    ) -> TaskHandle<T> {
        self.spawn_boxed(name, Box::pin(future))
    }

    fn spawn_boxed<T: Send + 'static>(&self, name: &'static str, future: Boxed<'static, T>) -> TaskHandle<T> {
        let tasks = self.clone();
        self.track(name, Box::pin(async move { tasks.caught_boxed(name, future).await }))
    }

    /// As [`Tasks::spawn`]; what came of it is handed on, also when it broke
    /// off, so that nobody waits in vain.
    pub fn spawn_then<T, F>(
        &self,
        name: &'static str,
        future: impl Future<Output = T> + Send + 'static,
        then: impl FnOnce(Result<T, Failure>) -> F + Send + 'static,
    ) -> TaskHandle<()>
    where
        T: Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let (tasks, future) = (self.clone(), Box::pin(future));
        let run = async move {
            then(tasks.caught_boxed(name, future).await).await;
            Ok(())
        };
        self.track(name, Box::pin(run))
    }

    /// All that is made for each kind of task is its result: the runtime's code
    /// for a task is long.
    fn track<T: Send + 'static>(
        &self,
        name: &'static str,
        future: Boxed<'static, Result<T, Failure>>,
    ) -> TaskHandle<T> {
        let tasks = self.clone();
        let run = async move {
            let _running = tasks.enter(name);
            let stopped = || Failure::new(Code::Draining, "this node is shutting down");
            tasks.0.stop.run_until_cancelled(future).await.unwrap_or_else(|| Err(stopped()))
        };
        TaskHandle { name, handle: self.0.tracker.spawn(run) }
    }

    /// Starts work that computes for long or waits for the disk, on a thread
    /// for such. It can't be aborted.
    pub fn blocking<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> TaskHandle<T> {
        self.blocking_boxed(name, Box::new(work))
    }

    fn blocking_boxed<T: Send + 'static>(
        &self,
        name: &'static str,
        work: Box<dyn FnOnce() -> T + Send>,
    ) -> TaskHandle<T> {
        let tasks = self.clone();
        let run = move || {
            let _running = tasks.enter(name);
            tasks.guarded(name, work)
        };
        TaskHandle { name, handle: self.0.tracker.spawn_blocking(run) }
    }

    /// Keeps a task up for as long as the node lives: what breaks off or ends is
    /// begun again. `begin` makes what it needs anew, since a panic may have
    /// left anything half done.
    pub fn keep<F>(&self, name: &'static str, begin: impl Fn() -> F + Send + Sync + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.until_done(name, move || {
            let kept = begin();
            async {
                kept.await;
                ControlFlow::Continue(())
            }
        });
    }

    /// As [`Tasks::keep`], for one that may be done: it says so with
    /// [`ControlFlow::Break`].
    pub fn until_done<F>(&self, name: &'static str, begin: impl Fn() -> F + Send + Sync + 'static) -> TaskHandle<()>
    where
        F: Future<Output = ControlFlow<()>> + Send + 'static,
    {
        let begin = Arc::new(begin);
        self.until_done_boxed(
            name,
            Box::new(move || {
                let begin = Arc::clone(&begin);
                // Beginning may panic as well as what was begun.
                Box::pin(async move { begin().await })
            }),
        )
    }

    fn until_done_boxed(
        &self,
        name: &'static str,
        begin: Box<dyn Fn() -> Boxed<'static, ControlFlow<()>> + Send + Sync>,
    ) -> TaskHandle<()> {
        let tasks = self.clone();
        let run = async move {
            let mut pause = PAUSE_MIN;
            loop {
                let began = Instant::now();
                let why = match tasks.caught_boxed(name, begin()).await {
                    Ok(ControlFlow::Break(())) => return Ok(()),
                    Ok(ControlFlow::Continue(())) => format!("{name} has ended by itself"),
                    Err(failure) => failure.message,
                };
                if began.elapsed() >= STEADY {
                    pause = PAUSE_MIN;
                }
                tasks.count(|faults| &mut faults.restarts, name);
                let text = format!("{why}; it begins again in {} ms", pause.as_millis());
                tasks.0.events.record("fault", text, &serde_json::json!({ "task": name, "restarted": true }));
                tokio::time::sleep(pause).await;
                pause = (2 * pause).min(PAUSE_MAX);
            }
        };
        self.track(name, Box::pin(run))
    }

    /// A stream that a task of its own feeds, `ahead` messages before whoever
    /// reads it; ends with a failure when the task breaks off.
    pub fn stream<T, F>(
        &self,
        name: &'static str,
        ahead: usize,
        feed: impl FnOnce(mpsc::Sender<Result<T, Status>>) -> F,
    ) -> ReceiverStream<Result<T, Status>>
    where
        T: Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let (send, receive) = mpsc::channel(ahead);
        self.spawn_then(name, feed(send.clone()), |fed| async move {
            if let Err(failure) = fed {
                // Who has gone away doesn't want to know.
                let _ = send.send(Err(failure.into_status())).await;
            }
        });
        ReceiverStream::new(receive)
    }

    /// Runs a future as part of the caller's task; a panic in it becomes a
    /// failure.
    ///
    /// # Errors
    /// [`Code::Internal`] for a panic.
    pub fn caught<'f, T>(
        &'f self,
        name: &'static str,
        future: impl Future<Output = T> + Send + 'f,
    ) -> impl Future<Output = Result<T, Failure>> + Send {
        // Boxed at once: some are large, and would be moved from layer to layer.
        self.caught_boxed(name, Box::pin(future))
    }

    fn caught_boxed<'f, T>(
        &'f self,
        name: &'static str,
        mut future: Boxed<'f, T>,
    ) -> impl Future<Output = Result<T, Failure>> + Send {
        let mut begun = false;
        let polled = std::future::poll_fn(move |cx| {
            let poll = || {
                if !std::mem::replace(&mut begun, true) {
                    injected(name);
                }
                future.as_mut().poll(cx)
            };
            match catch_unwind(AssertUnwindSafe(poll)) {
                Ok(polled) => polled.map(Ok),
                Err(panic) => Poll::Ready(Err(self.broke_off(name, panic.as_ref()))),
            }
        });
        NAME.scope(name, polled)
    }

    /// As [`Tasks::caught`], for work on the caller's own thread.
    ///
    /// # Errors
    /// [`Code::Internal`] for a panic.
    pub fn guarded<T>(&self, name: &'static str, work: impl FnOnce() -> T) -> Result<T, Failure> {
        let work = || {
            injected(name);
            work()
        };
        NAME.sync_scope(name, || catch_unwind(AssertUnwindSafe(work)))
            .map_err(|panic| self.broke_off(name, panic.as_ref()))
    }

    /// Ends every task at the next point where it waits, and waits for that;
    /// what is still there after `limit` is named in the log and left behind.
    pub async fn end(&self, limit: Duration) {
        self.0.stop.cancel();
        self.0.tracker.close();
        if tokio::time::timeout(limit, self.0.tracker.wait()).await.is_err() {
            tracing::warn!(tasks = ?self.names(), "tasks that did not end in {limit:?} are left behind");
        }
    }

    /// Names of the tasks under way, and how many there are of each.
    #[must_use]
    pub fn names(&self) -> BTreeMap<&'static str, usize> {
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn enter(&self, name: &'static str) -> Running<'_> {
        *self.0.running.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
        Running { tasks: self, name }
    }

    fn broke_off(&self, name: &'static str, panic: &(dyn Any + Send)) -> Failure {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it does not say why");
        self.count(|faults| &mut faults.panics, name);
        let text = format!("{name} broke off: {said}");
        self.0.events.record("fault", text.clone(), &serde_json::json!({ "task": name }));
        Failure::new(Code::Internal, text)
            .with_help("this is a fault of Tierline; the node's log says where, please report it")
    }
}

struct Running<'t> {
    tasks: &'t Tasks,
    name: &'static str,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut running = self.tasks.0.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = running.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                running.remove(self.name);
            }
        }
    }
}

/// A task under way, to wait for. Dropping it lets the task go on; a failure
/// that nobody waits for is counted and told all the same.
pub struct TaskHandle<T> {
    name: &'static str,
    handle: JoinHandle<Result<T, Failure>>,
}

impl<T> TaskHandle<T> {
    /// Ends it when the owner goes.
    #[must_use]
    pub fn owned(self) -> Owned<T> {
        Owned(self)
    }

    /// Ends it by hand.
    #[must_use]
    pub fn abort_handle(&self) -> AbortHandle {
        self.handle.abort_handle()
    }

    /// Whether it has come to its end.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

impl<T> Future for TaskHandle<T> {
    type Output = Result<T, Failure>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let name = self.name;
        let ended = std::task::ready!(Pin::new(&mut self.handle).poll(cx));
        Poll::Ready(ended.unwrap_or_else(|_| Err(Failure::new(Code::Cancelled, format!("{name} was called off")))))
    }
}

/// A task that ends with its owner.
pub struct Owned<T>(TaskHandle<T>);

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        self.0.handle.abort();
    }
}

/// Does what waits for the disk, or computes for long, where the caller
/// stands: other tasks of its worker go on elsewhere.
pub fn in_place<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// As [`in_place`], for work that goes once over so many bytes: little of it is
/// done sooner than another thread is woken.
pub fn in_place_over<T>(bytes: u64, work: impl FnOnce() -> T) -> T {
    /// About 0.1 ms of copying.
    const LITTLE: u64 = 1 << 20;
    if bytes <= LITTLE { work() } else { in_place(work) }
}

/// Locks a machine. One in which a step has panicked may be half changed, and is
/// made `anew`.
pub fn sound<T>(machine: &Mutex<T>, anew: impl FnOnce(&mut T)) -> MutexGuard<'_, T> {
    machine.lock().unwrap_or_else(|broken| {
        let mut broken = broken.into_inner();
        anew(&mut broken);
        machine.clear_poison();
        broken
    })
}

/// From now on panics are logged as everything else is, with the task that
/// they happened in.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let task = NAME.try_with(|name| *name).unwrap_or("none");
        let thread = std::thread::current();
        let place = panic.location().map_or_else(String::new, ToString::to_string);
        let said = panic.payload_as_str().unwrap_or_default();
        tracing::error!(task, thread = thread.name(), place, "panic: {said}");
        let trace = std::backtrace::Backtrace::capture();
        if trace.status() == std::backtrace::BacktraceStatus::Captured {
            tracing::error!("{trace}");
        }
    }));
}

/// Panics where a test wants it: `TIERLINE_PANIC=NAME:TIMES,...` names tasks
/// that break off as they begin. Honoured by debug builds only.
fn injected(name: &str) {
    #[cfg(debug_assertions)]
    {
        use std::sync::LazyLock;
        static LEFT: LazyLock<Mutex<BTreeMap<String, u32>>> = LazyLock::new(|| {
            let wanted = std::env::var("TIERLINE_PANIC").unwrap_or_default();
            let times = |part: &str| part.split_once(':').and_then(|(n, t)| Some((n.to_owned(), t.parse().ok()?)));
            Mutex::new(wanted.split(',').filter_map(times).collect())
        });
        let mut all = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(left) = all.get_mut(name).filter(|left| **left > 0) {
            *left -= 1;
            drop(all);
            panic!("a test wants {name} to break off");
        }
    }
    #[cfg(not(debug_assertions))]
    let _ = name;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio_stream::StreamExt;

    fn tasks() -> (Tasks, Events) {
        let events = Events::default();
        (Tasks::new(events.clone()), events)
    }

    fn numbers(tasks: &Tasks) -> String {
        let mut out = String::new();
        tasks.numbers(&mut out);
        out
    }

    fn breaks() -> u32 {
        panic!("on purpose")
    }

    #[tokio::test]
    async fn whoever_waits_for_a_task_that_breaks_off_hears_why() {
        let (tasks, events) = tasks();
        let failures = [
            tasks.spawn("soft", async { breaks() }).await.unwrap_err(),
            tasks.blocking("hard", breaks).await.unwrap_err(),
            tasks.caught("here", async { breaks() }).await.unwrap_err(),
            tasks.guarded("there", breaks).unwrap_err(),
        ];
        for (failure, name) in failures.iter().zip(["soft", "hard", "here", "there"]) {
            assert_eq!(failure.code(), Code::Internal);
            assert_eq!(failure.message, format!("{name} broke off: on purpose"));
            let line = format!("tierline_task_panics_total{{task=\"{name}\"}} 1");
            assert!(numbers(&tasks).lines().any(|l| l == line), "{}", numbers(&tasks));
        }
        let told: Vec<String> = events.subscribe().0.into_iter().map(|event| event.text).collect();
        assert_eq!(told.len(), 4, "{told:?}");
        assert_eq!(tasks.spawn("next", async { 7 }).await.unwrap(), 7);
        assert!(tasks.names().is_empty(), "{:?}", tasks.names());
    }

    #[tokio::test]
    async fn a_lasting_task_that_breaks_off_begins_again() {
        let (tasks, events) = tasks();
        let begun = Arc::new(AtomicU32::new(0));
        let (steady, count) = (Arc::new(tokio::sync::Notify::new()), Arc::clone(&begun));
        let held = Arc::clone(&steady);
        tasks.keep("lamp", move || {
            let (turn, steady) = (count.fetch_add(1, Ordering::Relaxed), Arc::clone(&held));
            // Breaks off while it begins, then under way, then ends by itself.
            assert!(turn != 0, "no oil");
            async move {
                tokio::task::yield_now().await;
                assert!(turn != 1, "no wick");
                if turn > 2 {
                    steady.notify_one();
                    std::future::pending().await
                }
            }
        });
        steady.notified().await;
        assert_eq!(begun.load(Ordering::Relaxed), 4);
        let text = numbers(&tasks);
        for line in ["tierline_task_panics_total{task=\"lamp\"} 2", "tierline_task_restarts_total{task=\"lamp\"} 3"] {
            assert!(text.lines().any(|l| l == line), "{text}");
        }
        let told: Vec<String> = events.subscribe().0.into_iter().map(|event| event.text).collect();
        assert!(told.contains(&"lamp broke off: no wick; it begins again in 200 ms".to_owned()), "{told:?}");
        tasks.end(Duration::from_secs(1)).await;
        assert!(tasks.names().is_empty(), "{:?}", tasks.names());
    }

    #[tokio::test]
    async fn the_end_calls_off_what_waits_and_names_what_does_not_end() {
        let (tasks, _) = tasks();
        let waits = tasks.spawn("waits", std::future::pending::<()>());
        let (go, stuck) = std::sync::mpsc::channel::<()>();
        let computes = tasks.blocking("computes", move || stuck.recv().is_err());
        tokio::task::yield_now().await;
        tasks.end(Duration::from_millis(50)).await;
        assert_eq!(waits.await.unwrap_err().code(), Code::Draining);
        assert_eq!(tasks.names().into_iter().collect::<Vec<_>>(), [("computes", 1)]);
        drop(go);
        assert!(computes.await.unwrap());
    }

    #[tokio::test]
    async fn a_stream_whose_task_breaks_off_ends_with_the_reason() {
        let (tasks, _) = tasks();
        let mut stream = tasks.stream("feed", 4, |send| async move {
            let _ = send.send(Ok(1)).await;
            breaks();
        });
        assert_eq!(stream.next().await.unwrap().unwrap(), 1);
        let failure = Failure::from_status(&stream.next().await.unwrap().unwrap_err());
        assert_eq!((failure.code(), failure.message.as_str()), (Code::Internal, "feed broke off: on purpose"));
        assert!(stream.next().await.is_none());
    }

    #[test]
    fn a_machine_in_which_a_step_broke_off_is_made_anew() {
        let machine = Mutex::new((1, 1));
        let step = || {
            let mut both = sound(&machine, |both| *both = (0, 0));
            both.0 += 1;
            assert!(both.0 < 3, "the second step breaks off");
            both.1 += 1;
        };
        assert!(catch_unwind(step).is_ok() && catch_unwind(step).is_err());
        assert_eq!(*sound(&machine, |both| *both = (7, 7)), (7, 7));
        assert_eq!(*sound(&machine, |both| *both = (8, 8)), (7, 7), "it is sound again");
    }

    #[tokio::test]
    async fn an_owned_task_ends_with_its_owner() {
        let (tasks, _) = tasks();
        let (send, mut receive) = tokio::sync::mpsc::channel::<()>(1);
        let owned = tasks.spawn("owned", async move {
            let _held = send;
            std::future::pending::<()>().await;
        });
        drop(owned.owned());
        assert_eq!(receive.recv().await, None);
    }
}
