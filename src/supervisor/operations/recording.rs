//! The daemon's side of a service's history: which caller asked for an operation, and how it ended.
//!
//! Another thread writes the entries, in order. A disk that is full or hangs holds nothing up: entries that could not
//! be written wait for the next one, and are reported all the same.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use handoff_protocol::ids::{Generation, HandoffId};
use handoff_protocol::record::{Binary, Standing};
use handoff_protocol::supervisor::Target;
use tokio::sync::{Notify, oneshot};
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::timeline::{Operation, Timeline};
use crate::control::{Caller, api};
use crate::history::{self, ENTRIES_MAX, Ending, Entry, History, Version};
use crate::journal::unix_ms;
use crate::supervisor::lane::Lane;
use crate::supervisor::service::Service;

/// Maximum number of entries that wait for a disk that takes none.
const WAITING_MAX: usize = 50;
/// How long a caller waits for a disk that hangs.
const TIMEOUT: Duration = Duration::from_secs(1);

/// What is known of an operation when it is requested. The history reports it when the operation has ended.
#[derive(Debug, Clone)]
pub(in crate::supervisor) struct RequestedOperation {
    pub(in crate::supervisor) operation: history::Operation,
    pub(in crate::supervisor) requester: Caller,
    /// The version that the new binary reports.
    pub(in crate::supervisor) version: Option<String>,
    /// The phases before the machine was asked, counted from the request.
    pub(in crate::supervisor) before: Vec<api::PhaseTime>,
    pub(in crate::supervisor) at_unix_ms: u64,
    since: Instant,
    /// Its first handoff. A start that fails is tried again, in further handoffs.
    id: Option<HandoffId>,
    from: Option<Version>,
    to: Option<Version>,
}

impl RequestedOperation {
    /// A request that is made now.
    pub(in crate::supervisor) fn new(what: history::Operation, by: Caller) -> Self {
        Self {
            operation: what,
            requester: by,
            version: None,
            before: Vec::new(),
            at_unix_ms: unix_ms(),
            since: Instant::now(),
            id: None,
            from: None,
            to: None,
        }
    }

    /// Records the version reported by the process that was started for it in this handoff.
    pub(in crate::supervisor) fn learn_version(&mut self, handoff: HandoffId, version: &str) {
        if self.id == Some(handoff) {
            self.version = Some(version.to_owned());
            self.to.iter_mut().for_each(|to| to.version = Some(version.to_owned()));
        }
    }

    /// How long after the request the clock of the operation started, in microseconds.
    pub(in crate::supervisor) fn waited_us(&self, timeline: &Timeline) -> u64 {
        timeline.waited_us(self.since)
    }

    /// How long it took, and its phases. Every answer, `status` and the history report these.
    pub(super) fn times(&self, timeline: &Timeline) -> (u64, Vec<api::PhaseTime>) {
        let waited_us = self.waited_us(timeline);
        let later = timeline
            .phases()
            .into_iter()
            .map(|phase| api::PhaseTime { started_us: phase.started_us.saturating_add(waited_us), ..phase });
        let phases = self.before.iter().cloned().chain(later).collect();
        (waited_us.saturating_add(timeline.took_us()), phases)
    }

    /// Microseconds since the request.
    pub(in crate::supervisor) fn elapsed_us(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// The history file of one service, and the entries on their way to it.
#[derive(Debug, Clone)]
pub(in crate::supervisor) struct Recorder {
    directory: PathBuf,
    lane: Lane,
    file: Arc<Mutex<History>>,
    queue: Rc<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    entries: RefCell<VecDeque<Entry>>,
    is_writing: RefCell<bool>,
    written: Notify,
}

impl Recorder {
    pub(in crate::supervisor) fn new(directory: PathBuf, lane: Lane) -> Self {
        let file = Arc::new(Mutex::new(History::open(&directory)));
        Self { directory, lane, file, queue: Rc::default() }
    }

    /// Queues an entry for the history. Never blocks or fails.
    pub(in crate::supervisor) fn append(&self, entry: Entry) {
        let mut entries = self.queue.entries.borrow_mut();
        if entries.len() >= WAITING_MAX {
            entries.pop_front();
        }
        entries.push_back(entry);
        if !self.queue.is_writing.replace(true) {
            spawn_local(self.clone().write_all());
        }
    }

    /// Writes the entry that stands for an attempt if this daemon ends before it records more. Never blocks or fails.
    pub(in crate::supervisor) fn prepare(&self, entry: Entry) {
        let directory = self.directory.clone();
        self.lane.post(move || {
            if let Err(error) = history::prepare(&directory, &entry) {
                tracing::warn!(service = %entry.service, %error, "the next daemon would not tell of this attempt");
            }
        });
    }

    /// Removes that entry once everything recorded since is written.
    pub(in crate::supervisor) fn forget(&self, id: HandoffId) {
        let recorder = self.clone();
        spawn_local(async move {
            recorder.flushed().await;
            // On a full disk, that entry is all that the next daemon finds.
            if !recorder.queue.entries.borrow().is_empty() {
                return;
            }
            let directory = recorder.directory.clone();
            // If it stays, the next daemon sees that the attempt was recorded.
            recorder.lane.post(move || _ = history::forget(&directory, id));
        });
    }

    /// Returns when everything that can be written is written, or the disk has had its time.
    pub(in crate::supervisor) async fn flushed(&self) {
        let flushed = async {
            loop {
                let written = self.queue.written.notified();
                if !*self.queue.is_writing.borrow() {
                    return;
                }
                written.await;
            }
        };
        let _ = timeout(TIMEOUT, flushed).await;
    }

    /// The last `limit` entries, newest last, including those that could not be written.
    pub(in crate::supervisor) async fn read(&self, limit: usize) -> Vec<Entry> {
        self.flushed().await;
        let directory = self.directory.clone();
        let found = timeout(TIMEOUT, self.lane.run(move || History::read(&directory, limit))).await;
        let mut entries = found.ok().and_then(Result::ok).and_then(Result::ok).unwrap_or_default();
        self.queue.entries.borrow().iter().for_each(|entry| history::put(&mut entries, entry.clone()));
        entries.drain(..entries.len().saturating_sub(limit));
        entries
    }

    async fn write_all(self) {
        loop {
            let next = self.queue.entries.borrow().front().cloned();
            let Some(entry) = next else { break };
            let (file, line) = (Arc::clone(&self.file), entry.clone());
            let append = move || file.lock().unwrap_or_else(PoisonError::into_inner).append(&line);
            if let Err(error) = self.lane.run(append).await.and_then(|written| written) {
                let path = self.directory.display();
                tracing::warn!(service = %entry.service, %error, "the history in {path} is not written; it is tried again with the next entry");
                break;
            }
            // It may have been dropped meanwhile, because there were too many.
            let mut entries = self.queue.entries.borrow_mut();
            if entries.front() == Some(&entry) {
                entries.pop_front();
            }
        }
        self.queue.is_writing.replace(false);
        self.queue.written.notify_waiters();
    }
}

impl Service {
    /// The version that was last committed.
    pub(in crate::supervisor) fn current_version(&self) -> Option<Version> {
        self.current_binary().map(|binary| self.history_version(binary))
    }

    /// Records what runs now as the version that the operation starts from.
    pub(in crate::supervisor) fn record_request(&self, operation: &mut Operation) {
        if let Some(asked) = &mut operation.requested
            && asked.operation != history::Operation::Start
        {
            asked.from = self.current_version();
        }
    }

    /// Records that the operations in progress are about to start a process of this binary.
    pub(in crate::supervisor) fn record_launch(&mut self, id: HandoffId, binary: &Binary) {
        let mut begun = Vec::new();
        let to = self.history_version(binary);
        for asked in self.operations.requested_mut() {
            if asked.id.is_some() {
                continue;
            }
            asked.id = Some(id);
            asked.to = Some(to.clone());
            begun.push(asked.clone());
        }
        for asked in begun {
            self.operations.recorder().append(self.entry(&asked, Ending::UnderWay, None));
        }
    }

    /// Records the end of the operations in progress.
    pub(in crate::supervisor) fn record_end(&self, ending: Ending, reason: Option<&str>) {
        for asked in self.operations.requested() {
            self.operations.recorder().append(self.entry(asked, ending, reason));
        }
    }

    /// The history entry of an operation, as of now.
    pub(in crate::supervisor) fn entry(
        &self,
        asked: &RequestedOperation,
        outcome: Ending,
        reason: Option<&str>,
    ) -> Entry {
        let (took_us, phases) = asked.times(self.operations.timeline());
        // Of a version that was not started, only the path is known.
        let candidate = || {
            let path = self.path_of(Target::Candidate);
            Version { path, sha256: None, version: asked.version.clone() }
        };
        Entry {
            id: asked.id.unwrap_or_else(|| self.machine.handoff()),
            service: self.name.clone(),
            operation: asked.operation,
            mode: self.config.mode,
            from: asked.from.clone(),
            to: asked.to.clone().or_else(|| (asked.operation != history::Operation::Stop).then(candidate)),
            by: asked.requester.clone(),
            at: asked.at_unix_ms,
            took_us,
            phases,
            accept_gap_us: self.operations.timeline().gap_us(),
            restarted: outcome == Ending::RolledBack && self.was_restarted(),
            connections: self.operations.timeline().connections(),
            lost_datagrams: self.operations.timeline().lost(),
            outcome,
            reason: reason.map(str::to_owned),
            generation: self.journal.standing().generation(),
            killed: self.problems.killed(),
        }
    }

    /// Takes care of the attempts that an earlier daemon has not finished. The upgrade that is still in progress
    /// continues, as if a client waited for it. The others have ended as the journal says, once it can be read. Waits
    /// a moment for the file.
    pub(in crate::supervisor) fn recall_attempts(&mut self, under_way: Option<HandoffId>) {
        if self.journal.refused().is_some() {
            return;
        }
        let entries = self.recall_entries(under_way);
        let directory = self.shared.dirs.service_state(&self.name);
        let prepared = self.wait_for_history(move || history::prepared(&directory)).flatten();
        self.recall_prepared(prepared, &entries, under_way);
    }

    /// The same for attempts that had begun. Returns the whole history.
    pub(in crate::supervisor) fn recall_entries(&mut self, under_way: Option<HandoffId>) -> Vec<Entry> {
        let directory = self.shared.dirs.service_state(&self.name);
        let read = move || History::read(&directory, ENTRIES_MAX).unwrap_or_default();
        let entries = self.wait_for_history(read).unwrap_or_default();
        for entry in entries.iter().filter(|entry| entry.outcome == Ending::UnderWay).cloned() {
            if self.is_recorded_here(entry.id) {
                continue;
            }
            if under_way == Some(entry.id) {
                self.operations.resume(resumed(entry));
                continue;
            }
            let committed = committed(self.journal.standing(), entry.id);
            let (outcome, reason) = match (committed.is_some(), entry.operation) {
                (true, history::Operation::Start) => (Ending::Started, LOST_AFTER),
                (true, _) => (Ending::Committed, LOST_AFTER),
                (false, history::Operation::Start) => (Ending::Failed, LOST_BEFORE),
                (false, _) => (Ending::RolledBack, LOST_BEFORE),
            };
            let mut ended = Entry { outcome, reason: Some(reason.to_owned()), ..entry };
            if let Some((generation, at_unix_ms)) = committed {
                // The phases end where the earlier daemon wrote them down.
                ended.phases = Vec::new();
                ended.took_us = at_unix_ms.saturating_sub(ended.at).saturating_mul(1_000);
                ended.generation = generation;
                self.operations.keep_committed_entry(ended.clone());
            }
            self.operations.recorder().append(ended);
        }
        entries
    }

    /// Records that the recovery undoes an operation of an earlier daemon, which had committed it.
    pub(in crate::supervisor) fn record_undone(&mut self) {
        let Some(entry) = self.operations.take_committed_entry() else { return };
        let generation = self.journal.standing().generation().next();
        let reason = Some(LOST_UNDONE.to_owned());
        let undone = Entry { outcome: Ending::RolledBack, reason, generation, ..entry };
        self.operations.recorder().append(undone);
    }

    /// Works on the history files, in their lane. Blocks only for a moment.
    fn wait_for_history<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let what = self.shared.dirs.service_state(&self.name).display().to_string();
        self.lanes.history.wait(TIMEOUT, &what, work).ok()
    }

    /// Whether this daemon records the attempt itself, so it is not left over from an earlier one.
    fn is_recorded_here(&self, id: HandoffId) -> bool {
        let waits = |recorder: &Recorder| recorder.queue.entries.borrow().iter().any(|entry| entry.id == id);
        self.operations.requested().any(|asked| asked.id == Some(id)) || waits(self.operations.recorder())
    }

    /// Records an attempt that an earlier daemon was about to begin, if none of the entries covers it. If the journal
    /// has an attempt that the history lacks, this one had begun, and only the history could not be written.
    fn recall_prepared(&mut self, left: Option<Entry>, entries: &[Entry], under_way: Option<HandoffId>) {
        let Some(left) = left else { return };
        let request = |entry: &Entry| (entry.at, entry.operation, entry.by.clone());
        let prepared = left.id;
        let is_told = entries.iter().any(|entry| request(entry) == request(&left));
        let begun = under_way.filter(|id| !is_told && entries.iter().all(|entry| entry.id != *id));
        match begun {
            Some(id) => {
                let begun = Entry { id, phases: Vec::new(), ..left };
                self.operations.recorder().append(Entry {
                    outcome: Ending::UnderWay,
                    reason: None,
                    ..begun.clone()
                });
                self.operations.resume(resumed(begun));
            }
            None if is_told => {}
            None => self.operations.recorder().append(left),
        }
        self.operations.recorder().forget(prepared);
    }
}

const LOST_AFTER: &str = "the daemon was lost after it had committed this";
const LOST_UNDONE: &str =
    "the daemon was lost after it had committed this; the new process was gone, and the old one served";
pub(in crate::supervisor) const LOST_BEFORE: &str = "the daemon was lost in the middle of it";

/// Timed by the wall clock, since the clock of the earlier daemon is gone.
fn resumed(entry: Entry) -> Operation {
    let ago = Duration::from_millis(unix_ms().saturating_sub(entry.at));
    let (reply, _) = oneshot::channel();
    let asked = RequestedOperation {
        operation: entry.operation,
        requester: entry.by,
        version: entry.to.as_ref().and_then(|to| to.version.clone()),
        before: entry.phases,
        at_unix_ms: entry.at,
        since: Instant::now().checked_sub(ago).unwrap_or_else(Instant::now),
        id: Some(entry.id),
        from: entry.from,
        to: entry.to,
    };
    Operation { reply, progress: None, requested: Some(asked) }
}

/// The generation that a handoff has become, and when. `None` if it was not committed, or was undone.
fn committed(standing: &Standing, handoff: HandoffId) -> Option<(Generation, u64)> {
    let previous = standing.previous.as_ref().filter(|_| !standing.reverted);
    let all = [standing.current.as_ref(), previous, standing.leaving.as_ref()];
    let found = all.into_iter().flatten().find(|current| current.handoff == handoff)?;
    Some((found.generation, found.since_unix_ms))
}

/// The entries of several services ordered by time, newest last. Those of a single service keep the order in which
/// they were written, whatever the clock said.
pub(in crate::supervisor) fn merged(histories: Vec<Vec<Entry>>, limit: usize) -> Vec<Entry> {
    let is_one = histories.len() == 1;
    let mut entries = histories.concat();
    if !is_one {
        entries.sort_by_key(|entry| entry.at);
    }
    entries.drain(..entries.len().saturating_sub(limit));
    entries
}
