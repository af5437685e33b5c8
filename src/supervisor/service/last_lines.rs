//! The last lines of a process that failed, for the answer to an operation and for `status`.
//!
//! The keeper writes them, and a moment may pass until they are in the file. So the daemon asks the keeper first, and
//! then reads the file in a lane. An operation that failed is answered when both have answered, or their time is up.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use handoff_protocol::ids::HandoffId;
use handoff_protocol::reason::Reason;
use tokio::task::spawn_local;

use super::Service;
use crate::control::{Error, api};
use crate::supervisor::log_tail::{self, Writer};
use crate::supervisor::operations::Answer;
use crate::supervisor::process::Process;

/// How long the files may take to answer.
const READ_LIMIT: Duration = Duration::from_millis(500);
/// The processes that a handoff and a return to the version before can have.
const KNOWN_MAX: usize = 4;

/// The processes of a service of which lines may be wanted, and the lines of the last one that failed.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct LastLines {
    /// In the order in which they were started.
    known: VecDeque<KnownProcess>,
    /// The process to blame for the end of the operation in progress.
    blamed: Option<KnownProcess>,
    shown: Rc<RefCell<Shown>>,
}

#[derive(Debug, Clone)]
struct KnownProcess {
    handoff: HandoffId,
    writer: Writer,
}

#[derive(Debug, Default)]
struct Shown {
    /// Counts what was to be shown: an answer that comes late is not.
    turn: u64,
    lines: Option<api::LastLines>,
}

impl LastLines {
    /// The lines of the process that failed last, until one serves.
    pub(in crate::supervisor) fn shown(&self) -> Option<api::LastLines> {
        self.shown.borrow().lines.clone()
    }

    /// A process serves.
    pub(in crate::supervisor) fn serves(&self) {
        let mut shown = self.shown.borrow_mut();
        *shown = Shown { turn: shown.turn + 1, lines: None };
    }

    /// The newest process, if the reason is about it. The machine is at the next handoff by then, but has not started
    /// a process for that.
    fn newest(&self, reason: &Reason) -> Option<KnownProcess> {
        self.known.back().filter(|_| reason.blames_successor()).cloned()
    }

    fn of(&self, handoff: HandoffId) -> Option<KnownProcess> {
        self.known.iter().rev().find(|process| process.handoff == handoff).cloned()
    }
}

impl Service {
    /// Remembers a process that was started or taken over.
    pub(in crate::supervisor) fn remember_writer(&mut self, process: &Process) {
        let standing = self.journal.standing();
        // The intent of a process that has just been started may not be recorded.
        let generation = standing.generation_of(process.handoff).unwrap_or(standing.generation().next());
        let writer = Writer {
            service: self.name.to_string(),
            generation: Some(generation.0),
            pid: process.pid(),
            started_ms: process.started_at_unix_ms,
        };
        let known = &mut self.last_lines.known;
        known.push_back(KnownProcess { handoff: process.handoff, writer });
        // A new daemon does not take over the newest process last.
        known.make_contiguous().sort_by_key(|process| process.writer.generation);
        if known.len() > KNOWN_MAX {
            known.pop_front();
        }
    }

    /// A handoff has failed. If its new process is to blame, its lines will be shown; the first one is in the answer.
    pub(in crate::supervisor) fn blame_writer(&mut self, reason: &Reason) {
        if let Some(process) = self.last_lines.newest(reason) {
            if self.operations.all().next().is_some() {
                self.last_lines.blamed.get_or_insert(process.clone());
            }
            self.show_lines(process);
        }
    }

    /// The process of this handoff, which was to run, has ended.
    pub(in crate::supervisor) fn writer_died(&mut self, handoff: HandoffId) {
        if let Some(process) = self.last_lines.of(handoff) {
            self.show_lines(process);
        }
    }

    fn show_lines(&self, process: KnownProcess) {
        let read = self.read_lines(process);
        let shown = Rc::clone(&self.last_lines.shown);
        shown.borrow_mut().turn += 1;
        let turn = shown.borrow().turn;
        spawn_local(async move {
            let lines = read.await;
            let mut shown = shown.borrow_mut();
            if shown.turn == turn {
                shown.lines = lines;
            }
        });
    }

    /// Answers an operation that has ended. If it failed, with the lines of the process to blame, if there is one.
    pub(in crate::supervisor) fn answer(&mut self, answers: Vec<Answer>, failed: Option<&Reason>) {
        let blamed = self.last_lines.blamed.take();
        let blamed = failed.and_then(|reason| blamed.or_else(|| self.last_lines.newest(reason)));
        let Some(process) = blamed else {
            return answers.into_iter().for_each(|answer| answer.send(None));
        };
        let read = self.read_lines(process);
        spawn_local(async move {
            let lines = read.await;
            answers.into_iter().for_each(|answer| answer.send(lines.clone()));
        });
    }

    fn read_lines(&self, process: KnownProcess) -> impl Future<Output = Option<api::LastLines>> + use<> {
        let directory = self.log_directory();
        let (lane, what) = (self.lanes.logs.clone(), directory.display().to_string());
        let written = self.shared.keeper.caught_up();
        async move {
            written.await;
            let KnownProcess { writer, .. } = process;
            let (pid, generation) = (writer.pid, writer.generation);
            let read = lane.run_within(READ_LIMIT, what, move || log_tail::read(&directory, &writer)).await;
            let lines =
                read.inspect_err(|error| tracing::warn!(pid, %error, "its last lines are not shown")).ok()?;
            (!lines.is_empty()).then(|| api::LastLines { pid, generation: generation.unwrap_or(0), lines })
        }
    }
}

/// Adds the lines to an answer.
pub(in crate::supervisor) fn with_lines(
    answer: Result<api::Outcome, Error>,
    lines: Option<api::LastLines>,
) -> Result<api::Outcome, Error> {
    match answer {
        Ok(outcome) => Ok(api::Outcome { last_lines: lines, ..outcome }),
        Err(error) => Err(Error { last_lines: lines.map(Box::new), ..error }),
    }
}
