//! Waits for files, off the daemon's thread.
//!
//! A file system may take seconds to answer, or never answer. So each service has lanes of its own, one for each kind
//! of work, and work in a lane delays nothing else. A lane is at most one thread. It starts with the first work, and
//! ends when it has been idle for a second. A thread that cannot be started is an error for the caller, never a
//! panic.
//!
//! A caller that gives up takes its work back, unless the thread has already begun it. If such work lasts longer than
//! a second, the lane refuses further work at once: the file system still does not answer. A caller that would block
//! the daemon's thread is refused behind any work that lasts that long. A lane in which too much waits takes no more.
//!
//! The thread of a lane for files has a descriptor table of its own (`sys::own_table`): the files that it has open
//! are not copied into the new processes of other services. So its work takes and gives no descriptor.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, ThreadId};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::sys::own_table::take_own_table;

/// An idle thread ends after this time.
const IDLE: Duration = Duration::from_secs(1);
/// If work that was given up lasts longer than this, its file system does not answer.
const STUCK: Duration = Duration::from_secs(1);
/// Maximum amount of work that waits in a lane.
const WAITING_MAX: usize = 256;

/// The lanes of one service.
#[derive(Debug, Clone)]
pub(super) struct Lanes {
    /// The journal, and the wait for the disk. Nothing else stands in the way of a commit.
    pub(super) journal: Lane,
    /// Records for users.
    pub(super) history: Lane,
    /// The service file, if it is a link.
    pub(super) file: Lane,
    /// Comparisons of what runs with the files that it came from.
    pub(super) comparisons: Lane,
    /// The program that is about to be started.
    pub(super) programs: Lane,
    /// Versions on their way in and out.
    pub(super) imports: Lane,
    /// The directories above a watched path.
    pub(super) watch: Lane,
    /// Starts of processes, and what is left of processes that have ended.
    pub(super) processes: Lane,
    /// Counts of connections.
    pub(super) counts: Lane,
    /// The directories of unix sockets.
    pub(super) paths: Lane,
    /// The files of its log.
    pub(super) logs: Lane,
}

impl Lanes {
    pub(super) fn new() -> Self {
        Self {
            // If the journal is on a distant file system, its lane takes its own table when it opens the file.
            journal: Lane::new("journal"),
            history: Lane::for_files("history"),
            file: Lane::for_files("file"),
            comparisons: Lane::for_files("look"),
            programs: Lane::for_files("program"),
            imports: Lane::for_files("import"),
            watch: Lane::new("watch"),
            processes: Lane::new("process"),
            counts: Lane::new("count"),
            paths: Lane::for_files("path"),
            logs: Lane::for_files("log"),
        }
    }
}

/// Runs work in order, on a thread of its own.
#[derive(Debug, Clone)]
pub(super) struct Lane(Arc<LaneShared>);

#[derive(Debug)]
struct LaneShared {
    name: &'static str,
    is_for_files: bool,
    state: Mutex<LaneState>,
    changed: Condvar,
}

#[derive(Default)]
struct LaneState {
    jobs: VecDeque<Job>,
    has_thread: bool,
    thread: Option<ThreadId>,
    /// How many holders want the thread to stay.
    holds: usize,
    /// The work that the thread does, and since when.
    current: Option<(Instant, Arc<AtomicBool>)>,
}

struct Job {
    work: Box<dyn FnOnce() -> Completion + Send>,
    given_up: Arc<AtomicBool>,
}

/// Delivers the result of some work. The thread has finished the work by then, so the receiver may ask for more at
/// once.
type Completion = Box<dyn FnOnce()>;

impl Lane {
    fn new(name: &'static str) -> Self {
        Self::with(name, false)
    }

    /// A lane for work that opens files, and neither takes nor gives a descriptor.
    pub(super) fn for_files(name: &'static str) -> Self {
        Self::with(name, true)
    }

    fn with(name: &'static str, is_for_files: bool) -> Self {
        Self(Arc::new(LaneShared { name, is_for_files, state: Mutex::default(), changed: Condvar::new() }))
    }

    /// Runs `work` and returns its result. The work is in the lane when this returns. Drop of the future gives the
    /// work up.
    pub(super) fn run<T: Send + 'static, W: FnOnce() -> T + Send + 'static>(
        &self,
        work: W,
    ) -> impl Future<Output = io::Result<T>> + use<T, W> {
        let (done, result) = oneshot::channel();
        let waiting = AbandonGuard(Arc::default());
        let given_up = Arc::clone(&waiting.0);
        let work = move || -> Completion {
            let result = work();
            Box::new(move || drop(done.send(result)))
        };
        let job = Job { work: Box::new(work), given_up };
        let queued = self.push(job);
        async move {
            let _waiting = waiting;
            queued?;
            result.await.map_err(|_| io::Error::other("the work was dropped"))
        }
    }

    /// The same. If no thread can be started, the work is done here, when the result is awaited.
    pub(super) fn run_anyway<T: Send + 'static, W: FnOnce() -> T + Send + 'static>(
        &self,
        work: W,
    ) -> impl Future<Output = io::Result<T>> + use<T, W> {
        let has_thread = self.0.have_thread(&mut self.0.lock()).is_ok();
        let begun = if has_thread { Ok(self.run(work)) } else { Err(work) };
        async move {
            match begun {
                Ok(result) => result.await,
                Err(work) => Ok(work()),
            }
        }
    }

    /// Like [`Lane::run`], but gives up after `limit`. The error begins with `what`: "… has not answered for 1 s".
    pub(super) fn run_within<T: Send + 'static, W: FnOnce() -> T + Send + 'static>(
        &self,
        limit: Duration,
        what: String,
        work: W,
    ) -> impl Future<Output = io::Result<T>> + use<T, W> {
        let result = self.run(work);
        async move {
            match timeout(limit, result).await {
                Ok(result) => result,
                Err(_) => {
                    let text = format!("{what} has not answered for {} s", limit.as_secs());
                    Err(io::Error::new(io::ErrorKind::TimedOut, text))
                }
            }
        }
    }

    /// The same, but blocks. Work from this lane's own thread is done at once.
    pub(super) fn wait<T: Send + 'static>(
        &self,
        limit: Duration,
        what: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        if self.0.lock().thread == Some(std::thread::current().id()) {
            return Ok(work());
        }
        let (done, result) = std::sync::mpsc::sync_channel(1);
        let waiting = AbandonGuard(Arc::default());
        let given_up = Arc::clone(&waiting.0);
        if let Some(since) = self.0.lock().stuck_since(true) {
            return Err(refused(since));
        }
        let work = move || -> Completion {
            let result = work();
            Box::new(move || drop(done.send(result)))
        };
        self.push(Job { work: Box::new(work), given_up })?;
        result.recv_timeout(limit).map_err(|_| {
            let text = format!("{what} has not answered for {} s", limit.as_secs());
            io::Error::new(io::ErrorKind::TimedOut, text)
        })
    }

    /// Runs `work` at some time. Its result is dropped, but a failure to run it is logged.
    pub(super) fn post(&self, work: impl FnOnce() + Send + 'static) {
        let work = move || -> Completion {
            work();
            Box::new(|| ())
        };
        let job = Job { work: Box::new(work), given_up: Arc::default() };
        if let Err(error) = self.push(job) {
            tracing::warn!(%error, "something was left undone");
        }
    }

    /// Keeps the thread, whatever the limits of this process become, until the result is dropped.
    pub(super) fn hold(&self) -> io::Result<ThreadHold> {
        let mut state = self.0.lock();
        self.0.have_thread(&mut state)?;
        state.holds += 1;
        // Room for the work of an upgrade, so that it needs no memory either.
        state.jobs.reserve(16);
        Ok(ThreadHold(Arc::clone(&self.0)))
    }

    fn push(&self, job: Job) -> io::Result<()> {
        let mut state = self.0.lock();
        if let Some(since) = state.stuck_since(false) {
            return Err(refused(since));
        }
        if state.jobs.len() >= WAITING_MAX {
            state.jobs.retain(|job| !job.given_up.load(Ordering::Relaxed));
        }
        if state.jobs.len() >= WAITING_MAX {
            let text = "too much waits for an earlier access that has not ended";
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        self.0.have_thread(&mut state)?;
        state.jobs.push_back(job);
        drop(state);
        self.0.changed.notify_one();
        Ok(())
    }
}

fn refused(since: Instant) -> io::Error {
    let text = format!("an earlier access has not ended for {} s", since.elapsed().as_secs());
    io::Error::new(io::ErrorKind::TimedOut, text)
}

/// A caller that waits. Drop gives its work up.
struct AbandonGuard(Arc<AtomicBool>);

impl Drop for AbandonGuard {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Keeps a thread.
#[derive(Debug)]
pub(super) struct ThreadHold(Arc<LaneShared>);

impl Drop for ThreadHold {
    fn drop(&mut self) {
        self.0.lock().holds -= 1;
        self.0.changed.notify_one();
    }
}

impl LaneState {
    /// Since when the thread has been busy for too long: with work that was given up, or with `any` work.
    fn stuck_since(&self, any: bool) -> Option<Instant> {
        let (since, given_up) = self.current.as_ref()?;
        ((any || given_up.load(Ordering::Relaxed)) && since.elapsed() > STUCK).then_some(*since)
    }
}

impl LaneShared {
    fn lock(&self) -> MutexGuard<'_, LaneState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn have_thread(self: &Arc<Self>, state: &mut LaneState) -> io::Result<()> {
        if state.has_thread {
            return Ok(());
        }
        let shared = Arc::clone(self);
        Builder::new().name(self.name.to_owned()).spawn(move || shared.work()).map_err(|error| {
            let text = format!("no thread can be started ({error}); raise the limits of the daemon");
            io::Error::new(error.kind(), text)
        })?;
        state.has_thread = true;
        Ok(())
    }

    /// The loop of the thread.
    fn work(&self) {
        if self.is_for_files {
            // Where the kernel cannot do this, the table stays shared.
            take_own_table();
        }
        let mut state = self.lock();
        state.thread = Some(std::thread::current().id());
        loop {
            if let Some(Job { work, given_up }) = state.jobs.pop_front() {
                if given_up.load(Ordering::Relaxed) {
                    continue;
                }
                state.current = Some((Instant::now(), given_up));
                drop(state);
                let tell = work();
                self.lock().current = None;
                tell();
                state = self.lock();
            } else if state.holds > 0 {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            } else {
                let waited = self.changed.wait_timeout(state, IDLE);
                let (woken, idle) = waited.unwrap_or_else(PoisonError::into_inner);
                state = woken;
                if idle.timed_out() && state.jobs.is_empty() && state.holds == 0 {
                    state.has_thread = false;
                    state.thread = None;
                    return;
                }
            }
        }
    }
}

impl std::fmt::Debug for LaneState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("jobs", &self.jobs.len())
            .field("holds", &self.holds)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "lane_tests.rs"]
mod tests;
