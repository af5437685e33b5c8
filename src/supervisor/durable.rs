//! The wait for the disk at a commit, and what becomes of it if the disk does not answer.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;

use handoff_protocol::ids::HandoffId;
use handoff_protocol::record::Fact;
use handoff_protocol::supervisor::{DurableFact, Event};
use tokio::task::spawn_local;

use super::service::Service;

impl Service {
    pub(super) fn record_durably(
        &mut self,
        id: HandoffId,
        lasting: DurableFact,
        events: &mut VecDeque<Event>,
    ) {
        let fact = match lasting {
            DurableFact::Commit => {
                self.timeline.gap_ends();
                Fact::Committed { handoff: id }
            }
            DurableFact::Revert => Fact::Reverted { handoff: id },
        };
        // Folded when it is on the disk, not before.
        let mut pending = match self.journal.prepare(fact) {
            Ok(pending) => pending,
            Err(error) => return events.push_back(Event::NotDurable(error.to_string())),
        };
        let is_commit = lasting == DurableFact::Commit;
        let (storage, this) = (self.journal.storage(), self.this.clone());
        let mut waiting: Pin<Box<dyn Future<Output = io::Result<io::Result<()>>>>> =
            Box::pin(self.lanes.journal.run(move || storage.sync()));
        let task = spawn_local(async move {
            let (service, synced) = loop {
                let synced = waiting.await.and_then(|synced| synced);
                let Some(service) = this.upgrade() else { return };
                if !service.borrow().journal.waits_again(&mut pending) {
                    break (service, synced);
                }
                let storage = service.borrow().journal.storage();
                waiting = Box::pin(service.borrow().lanes.journal.run(move || storage.sync()));
            };
            let mut service = service.borrow_mut();
            match service.journal.settle(pending, synced) {
                Ok(()) => {
                    if is_commit {
                        service.note_generation();
                    }
                    service.feed(Event::Durable);
                }
                Err(error) => {
                    tracing::error!(service = %service.name, %error, "not durable");
                    service.problem = Some(error.to_string());
                    service.feed(Event::NotDurable(error.to_string()));
                }
            }
        });
        self.recording = Some(task.abort_handle());
    }

    /// The machine waits no longer. What the disk answers later is heard by none, and the record is cut off then.
    pub(super) fn give_up_record(&mut self) {
        let Some((error, cut)) = self.journal.give_up() else { return };
        tracing::error!(service = %self.name, %error, "not durable");
        self.problem = Some(error.to_string());
        // Before the wait ends: behind work that was given up a lane takes no more.
        self.lanes.journal.post(cut);
        if let Some(recording) = self.recording.take() {
            recording.abort();
        }
    }
}
