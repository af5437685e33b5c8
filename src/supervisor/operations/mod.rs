//! The operations of a service: the clients that wait for them, their progress, and their entries in the history.

mod recording;
mod request;
mod timeline;

pub(in crate::supervisor) use recording::{LOST_BEFORE, Recorder, RequestedOperation, merged};
pub(in crate::supervisor) use request::{OperationRequest, StoppedBy, UpgradeLimits};
pub(in crate::supervisor) use timeline::{Operation, Timeline, progress};

use tokio::sync::oneshot;

use crate::control::{Error, api};
use crate::history::Entry;
use crate::supervisor::service::with_lines;

/// The operations of a service: those in progress, and the outcome of the last one.
#[derive(Debug)]
pub(in crate::supervisor) struct Operations {
    under_way: Vec<Operation>,
    /// The operation that the machine is being asked for.
    incoming: Option<Operation>,
    /// Whether the machine has refused it.
    was_refused: bool,
    timeline: Timeline,
    /// The phase that was last shown, and its share.
    shown: (&'static str, u8),
    /// Whether an earlier daemon began the upgrade in progress, so that only its commit is left.
    completes: bool,
    last: Option<api::Outcome>,
    recorder: Recorder,
    /// An operation that an earlier daemon had committed and not completed. The recovery may undo it.
    committed_before: Option<Entry>,
}

/// The answer to a client, on its way.
#[derive(Debug)]
pub(in crate::supervisor) struct Answer {
    reply: oneshot::Sender<Result<api::Outcome, Error>>,
    answer: Result<api::Outcome, Error>,
}

impl Answer {
    /// Sends it, with the last lines of a process that failed.
    pub(in crate::supervisor) fn send(self, lines: Option<api::LastLines>) {
        // The client may have hung up.
        let _ = self.reply.send(with_lines(self.answer, lines));
    }
}

/// What a request has replaced. It is restored if the machine refuses the request.
#[derive(Debug)]
pub(in crate::supervisor) struct EarlierOperation {
    timeline: Timeline,
    shown: (&'static str, u8),
    completes: bool,
}

impl Operations {
    pub(in crate::supervisor) fn new(recorder: Recorder) -> Self {
        Self {
            under_way: Vec::new(),
            incoming: None,
            was_refused: false,
            timeline: Timeline::begin(),
            shown: ("", 0),
            completes: false,
            last: None,
            recorder,
            committed_before: None,
        }
    }

    /// Prepares a request to the machine, and restarts the clock.
    pub(in crate::supervisor) fn request_begins(&mut self, operation: Operation) -> EarlierOperation {
        self.incoming = Some(operation);
        self.was_refused = false;
        EarlierOperation {
            timeline: std::mem::replace(&mut self.timeline, Timeline::begin()),
            shown: std::mem::take(&mut self.shown),
            completes: std::mem::take(&mut self.completes),
        }
    }

    /// Finishes a request to the machine. Returns `false` if it was refused: then the operation in progress
    /// continues, with its clock and its phases.
    pub(in crate::supervisor) fn request_ended(&mut self, before: EarlierOperation) -> bool {
        self.under_way.extend(self.incoming.take());
        if self.was_refused {
            let EarlierOperation { timeline, shown, completes } = before;
            (self.timeline, self.shown, self.completes) = (timeline, shown, completes);
        }
        !self.was_refused
    }

    /// Prepares to call off the operation in progress. That is no operation of its own, so the clock continues.
    pub(in crate::supervisor) fn call_off_begins(&mut self, operation: Operation) {
        self.incoming = Some(operation);
    }

    /// Finishes calling off.
    pub(in crate::supervisor) fn call_off_ended(&mut self) {
        self.under_way.extend(self.incoming.take());
    }

    /// Refuses the request to the machine. Returns the operation that asked for it.
    pub(in crate::supervisor) fn refuse(&mut self) -> Option<Operation> {
        self.was_refused = true;
        self.incoming.take()
    }

    /// Continues an operation that an earlier daemon has not finished, as if a client waited for it.
    pub(in crate::supervisor) fn resume(&mut self, operation: Operation) {
        self.under_way.push(operation);
    }

    /// Records that an operation continues under this daemon. `completes`: only its commit is left.
    pub(in crate::supervisor) fn recovered(&mut self, completes: bool) {
        self.completes = completes;
    }

    /// Records an operation that an earlier daemon had committed, and that may be undone.
    pub(in crate::supervisor) fn keep_committed_entry(&mut self, entry: Entry) {
        self.committed_before = Some(entry);
    }

    /// That operation, once.
    pub(in crate::supervisor) fn take_committed_entry(&mut self) -> Option<Entry> {
        self.committed_before.take()
    }

    /// Whether an earlier daemon began the operation that has just ended.
    pub(in crate::supervisor) fn take_completes(&mut self) -> bool {
        std::mem::take(&mut self.completes)
    }

    /// Prepares the start of a process. If no client waits, its phases are not shown, and would pile up in a crash
    /// loop.
    pub(in crate::supervisor) fn start_begins(&mut self) {
        if self.all().next().is_none() {
            self.timeline = Timeline::begin();
        }
    }

    /// Shows this phase, unless it is already shown. Returns when it began, by the clock of the operation in
    /// progress.
    pub(in crate::supervisor) fn show(&mut self, phase: &'static str, share: u8) -> Option<u64> {
        if self.shown == (phase, share) {
            return None;
        }
        self.shown = (phase, share);
        Some(self.timeline.enter(phase))
    }

    /// All operations that a client waits for, including the one that the machine is being asked for.
    pub(in crate::supervisor) fn all(&self) -> impl Iterator<Item = &Operation> {
        self.under_way.iter().chain(&self.incoming)
    }

    /// What the history records of them.
    pub(in crate::supervisor) fn requested(&self) -> impl Iterator<Item = &RequestedOperation> {
        self.all().filter_map(|operation| operation.requested.as_ref())
    }

    pub(in crate::supervisor) fn requested_mut(&mut self) -> impl Iterator<Item = &mut RequestedOperation> {
        let all = self.under_way.iter_mut().chain(&mut self.incoming);
        all.filter_map(|operation| operation.requested.as_mut())
    }

    /// Ends all operations in progress. Returns their answers.
    pub(in crate::supervisor) fn end_all(&mut self, answer: &Result<api::Outcome, Error>) -> Vec<Answer> {
        let ended = self.under_way.drain(..).chain(self.incoming.take());
        let answers = ended.map(|operation| {
            let mut answer = answer.clone();
            if let (Ok(outcome), Some(asked)) = (&mut answer, &operation.requested) {
                (outcome.took_us, outcome.phases) = asked.times(&self.timeline);
            }
            Answer { reply: operation.reply, answer }
        });
        answers.collect()
    }

    /// How long the operation in progress has taken so far, and its phases: since the first client asked for it, or
    /// since it began without a client.
    pub(in crate::supervisor) fn times(&self) -> (u64, Vec<api::PhaseTime>) {
        let times = self.requested().next().map(|asked| asked.times(&self.timeline));
        times.unwrap_or_else(|| (self.timeline.took_us(), self.timeline.phases()))
    }

    /// The outcome of the last operation.
    pub(in crate::supervisor) fn last(&self) -> Option<&api::Outcome> {
        self.last.as_ref()
    }

    pub(in crate::supervisor) fn ended(&mut self, outcome: api::Outcome) {
        self.last = Some(outcome);
    }

    /// The clock of the operation in progress.
    pub(in crate::supervisor) fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    pub(in crate::supervisor) fn timeline_mut(&mut self) -> &mut Timeline {
        &mut self.timeline
    }

    /// The history.
    pub(in crate::supervisor) fn recorder(&self) -> &Recorder {
        &self.recorder
    }
}
