//! Whether anything is still on its way to a process that was replaced.

use std::collections::VecDeque;
use std::time::Duration;

use handoff_protocol::ids::HandoffId;
use handoff_protocol::supervisor::{Event, Leaving, Outgoing};
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::listening::ANSWER_MS;
use super::service::Service;

/// How often the queue of a slot is looked at.
const TICK: Duration = Duration::from_millis(5);

impl Service {
    /// Nothing is steered to the slot of a process that was replaced; what was on its way arrives and is accepted.
    pub(super) fn await_quiet(&mut self, id: HandoffId, events: &mut VecDeque<Event>) {
        if self.is_quiet() {
            return events.push_back(Event::OutgoingQuiet(id));
        }
        let this = self.this.clone();
        spawn_local(async move {
            loop {
                sleep(TICK).await;
                let Some(service) = this.upgrade() else { return };
                let mut service = service.borrow_mut();
                let step = service.machine.outgoing().filter(|retiree| retiree.handoff == id);
                if !matches!(step, Some(Outgoing { step: Leaving::Quieting { .. }, .. })) {
                    return;
                }
                if service.is_quiet() {
                    return service.feed(Event::OutgoingQuiet(id));
                }
            }
        });
    }

    fn is_quiet(&mut self) -> bool {
        let grace = Duration::from_millis(self.config.answer_grace_ms.unwrap_or(ANSWER_MS));
        let (Some(party), Some(listening)) = (&self.retiree, &mut self.listening) else { return true };
        listening.is_quiet(party.slot, grace)
    }
}
