//! When each phase of an operation began, for `status`, progress and the outcome.

use std::cell::Cell;
use std::time::Instant;

use handoff_protocol::ids::HandoffId;
use tokio::sync::oneshot;

use super::recording::RequestedOperation;
use crate::control::{Error, ProgressSink, api};

/// An operation that a client waits for.
#[derive(Debug)]
pub(in crate::supervisor) struct Operation {
    pub(in crate::supervisor) reply: oneshot::Sender<Result<api::Outcome, Error>>,
    pub(in crate::supervisor) progress: Option<ProgressSink>,
    /// What the history records of it. `None` if it only calls off another operation.
    pub(in crate::supervisor) requested: Option<RequestedOperation>,
}

/// The clock of the operation in progress.
#[derive(Debug)]
pub(in crate::supervisor) struct Timeline {
    began: Instant,
    phases: Vec<(String, u64)>,
    sealed_at: Option<Instant>,
    /// The process that served when it began, and the process of its program.
    old_process: Option<(u32, Option<u32>)>,
    /// The connections of that process when it was asked to end.
    connections: Option<api::Connections>,
    /// Datagrams that no program has read.
    lost: u64,
    /// How many datagrams had found no room before it was asked to end. Only for sockets that both processes share.
    without_room: Cell<Option<u64>>,
    gap_us: Option<u64>,
    /// When the outcome was decided. After that only the old process leaves.
    decided_us: Option<u64>,
    /// When the end was reported, so that all clients get the same durations.
    reported_us: Option<u64>,
}

impl Timeline {
    pub(in crate::supervisor) fn begin() -> Self {
        Self {
            began: Instant::now(),
            phases: Vec::new(),
            sealed_at: None,
            old_process: None,
            connections: None,
            lost: 0,
            without_room: Cell::default(),
            gap_us: None,
            decided_us: None,
            reported_us: None,
        }
    }

    /// How long after the request the clock started, in microseconds.
    pub(super) fn waited_us(&self, requested: Instant) -> u64 {
        micros(self.began.saturating_duration_since(requested))
    }

    /// How long ago the clock started, in microseconds.
    pub(in crate::supervisor) fn age_us(&self) -> u64 {
        micros(self.began.elapsed())
    }

    /// Enters a phase. Returns when it began.
    pub(in crate::supervisor) fn enter(&mut self, phase: &str) -> u64 {
        let at_us = self.age_us();
        self.phases.push((phase.to_owned(), at_us));
        at_us
    }

    /// Begins the accept gap: the incumbent was asked to stop accepting, or is gone. Only the first call counts.
    pub(in crate::supervisor) fn gap_begins(&mut self) {
        self.sealed_at.get_or_insert_with(Instant::now);
    }

    /// Records the serving process, and the process of its program. Only the first call counts.
    pub(in crate::supervisor) fn note_old(&mut self, pid: u32, program: Option<u32>) {
        self.old_process.get_or_insert((pid, program));
    }

    /// Whether another process serves than at the beginning.
    pub(in crate::supervisor) fn is_another(&self, pid: u32, program: Option<u32>) -> bool {
        self.old_process.is_some_and(|old| old != (pid, program))
    }

    /// Records the connections that the old process had when it was asked to end.
    pub(in crate::supervisor) fn note_connections(&mut self, connections: api::Connections) {
        self.connections = Some(connections);
    }

    pub(in crate::supervisor) fn connections(&self) -> Option<api::Connections> {
        self.connections
    }

    /// Counts lost datagrams.
    pub(in crate::supervisor) fn note_lost(&mut self, count: u64) {
        self.lost = self.lost.saturating_add(count);
    }

    /// Records how many datagrams had found no room at sockets that both processes share, when the old process
    /// stopped reading them. Only the first call counts.
    pub(in crate::supervisor) fn note_without_room(&self, count: u64) {
        self.without_room.set(self.without_room.get().or(Some(count)));
    }

    /// Takes the same number at the end of the operation. The datagrams in between were lost.
    pub(in crate::supervisor) fn count_without_room(&mut self, count: u64) {
        if let Some(before) = self.without_room.take() {
            self.note_lost(count.saturating_sub(before));
        }
    }

    /// The number of lost datagrams.
    pub(in crate::supervisor) fn lost(&self) -> u64 {
        self.lost
    }

    /// Ends the accept gap: a process accepts again.
    pub(in crate::supervisor) fn gap_ends(&mut self) {
        if let Some(sealed_at) = self.sealed_at.take() {
            self.gap_us = Some(micros(sealed_at.elapsed()));
        }
    }

    /// Records that the outcome is decided.
    pub(in crate::supervisor) fn decided(&mut self) {
        let now = self.age_us();
        self.decided_us.get_or_insert(now);
    }

    /// Records that the end is reported: the last phase lasts until now.
    pub(in crate::supervisor) fn reported(&mut self) {
        self.reported_us = Some(self.age_us());
    }

    /// Records that the outcome is not decided after all.
    pub(in crate::supervisor) fn undecided(&mut self) {
        self.decided_us = None;
    }

    pub(in crate::supervisor) fn took_us(&self) -> u64 {
        self.decided_us.unwrap_or_else(|| self.age_us())
    }

    pub(in crate::supervisor) fn gap_us(&self) -> Option<u64> {
        self.gap_us
    }

    /// The phases with their durations. The last one lasts until the end was reported, or until now.
    pub(in crate::supervisor) fn phases(&self) -> Vec<api::PhaseTime> {
        let ends = self
            .phases
            .iter()
            .skip(1)
            .map(|(_, started)| *started)
            .chain([self.reported_us.unwrap_or_else(|| self.age_us())]);
        let times = self.phases.iter().zip(ends).map(|((phase, started_us), end)| api::PhaseTime {
            phase: phase.clone(),
            started_us: *started_us,
            took_us: end.saturating_sub(*started_us),
        });
        times.collect()
    }
}

/// The progress message of a new phase.
pub(in crate::supervisor) fn progress(
    service: &handoff_protocol::ids::ServiceName,
    handoff: Option<HandoffId>,
    phase: &str,
    at_us: u64,
    detail: Option<String>,
) -> api::Progress {
    api::Progress { service: service.clone(), handoff, phase: phase.to_owned(), at_us, detail }
}

fn micros(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
