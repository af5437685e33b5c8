//! The wait for the disk at a commit, and what happens if the disk does not answer.

use std::collections::VecDeque;
use std::io;

use handoff_protocol::ids::HandoffId;
use handoff_protocol::record::Fact;
use handoff_protocol::supervisor::{DurableFact, Event};
use tokio::task::{AbortHandle, spawn_local};

use super::Service;
use crate::journal::PendingRecord;
use crate::supervisor::input::Input;
use crate::supervisor::lane::ThreadHold;
use crate::supervisor::process::Token;

impl Service {
    pub(in crate::supervisor) fn record_durably(
        &mut self,
        id: HandoffId,
        fact: DurableFact,
        events: &mut VecDeque<Event>,
    ) {
        let record = match fact {
            DurableFact::Commit => {
                self.operations.timeline_mut().gap_ends();
                Fact::Committed { handoff: id }
            }
            DurableFact::Revert => Fact::Reverted { handoff: id },
        };
        // Folded once it is on disk, not before.
        let pending = match self.journal.prepare(record) {
            Ok(pending) => pending,
            Err(error) => return events.push_back(Event::NotDurable(error.to_string())),
        };
        let token = self.next_token();
        let task = self.wait_for_disk(token);
        self.disk.recording = Some(Recording { token, fact, pending, task });
    }

    fn wait_for_disk(&self, token: Token) -> AbortHandle {
        let (storage, inputs) = (self.journal.storage(), self.inputs.clone());
        let synced = self.lanes.journal.run(move || storage.sync());
        let task = spawn_local(async move {
            inputs.send(Input::Synced(token, synced.await.and_then(|synced| synced)));
        });
        task.abort_handle()
    }

    /// Handles the answer of the disk.
    pub(in crate::supervisor) fn synced(&mut self, token: Token, synced: io::Result<()>) {
        let Some(mut recording) = self.disk.recording.take_if(|it| it.token == token) else { return };
        if self.journal.waits_again(&mut recording.pending) {
            recording.task = self.wait_for_disk(token);
            self.disk.recording = Some(recording);
            return;
        }
        match self.journal.settle(recording.pending, synced) {
            Ok(()) => {
                if recording.fact == DurableFact::Revert {
                    self.note_undone();
                }
                self.note_generation();
                self.feed(Event::Durable);
            }
            Err(error) => {
                tracing::error!(%error, "not durable");
                self.problems.not_recorded(&error);
                self.feed(Event::NotDurable(error.to_string()));
            }
        }
    }

    /// Ends the machine's wait for the disk. A later answer is dropped, and the record is cut off then.
    pub(in crate::supervisor) fn give_up_record(&mut self) {
        let Some((error, cut)) = self.journal.give_up() else { return };
        tracing::error!(%error, "not durable");
        self.problems.not_recorded(&error);
        // Posted before the wait ends: a lane takes no more work behind work that was given up.
        self.lanes.journal.post(cut);
        if let Some(recording) = self.disk.recording.take() {
            recording.task.abort();
        }
    }
}

/// What is on its way to the disk.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct PendingWrites {
    /// The durable fact of a commit.
    recording: Option<Recording>,
    /// Whether a shorter journal is on its way.
    is_compacting: bool,
    /// What a commit needs, reserved while an attempt is in progress.
    reserved: Option<ThreadHold>,
}

impl PendingWrites {
    /// Reserves what the commit of an attempt needs.
    pub(in crate::supervisor) fn reserve(&mut self, means: ThreadHold) {
        self.reserved = Some(means);
    }

    /// Releases what was reserved: no attempt is in progress.
    pub(in crate::supervisor) fn release(&mut self) {
        self.reserved = None;
    }

    /// Whether a shorter journal is on its way.
    pub(in crate::supervisor) fn is_compacting(&self) -> bool {
        self.is_compacting
    }

    /// Records whether a shorter journal is on its way.
    pub(in crate::supervisor) fn compacts(&mut self, does: bool) {
        self.is_compacting = does;
    }
}

/// A durable fact on its way to the disk.
#[derive(Debug)]
struct Recording {
    token: Token,
    fact: DurableFact,
    pending: PendingRecord,
    task: AbortHandle,
}
