//! Whether anything is still on its way to a process that was replaced.

use std::collections::VecDeque;
use std::time::Duration;

use handoff_protocol::ids::HandoffId;
use handoff_protocol::supervisor::{Event, Leaving, Outgoing};
use tokio::task::spawn_local;
use tokio::time::sleep;

use crate::supervisor::input::Input;
use crate::supervisor::listening::ANSWER_MS;
use crate::supervisor::service::Service;

/// How often the queue of a slot is checked.
const TICK: Duration = Duration::from_millis(5);

impl Service {
    /// Waits until what was on its way to the slot of a replaced process has arrived and is accepted. Nothing more is
    /// steered there.
    pub(in crate::supervisor) fn await_quiet(&mut self, id: HandoffId, events: &mut VecDeque<Event>) {
        if self.is_quiet() {
            return events.push_back(Event::OutgoingQuiet(id));
        }
        self.schedule_quiet_check(id);
    }

    fn schedule_quiet_check(&self, id: HandoffId) {
        let inputs = self.inputs.clone();
        spawn_local(async move {
            sleep(TICK).await;
            inputs.send(Input::QuietDue(id));
        });
    }

    /// Checks again, as long as the machine waits for it.
    pub(in crate::supervisor) fn check_quiet(&mut self, id: HandoffId) {
        let step = self.machine.outgoing().filter(|outgoing| outgoing.handoff == id);
        if !matches!(step, Some(Outgoing { step: Leaving::Quieting { .. }, .. })) {
            return;
        }
        match self.is_quiet() {
            true => self.feed(Event::OutgoingQuiet(id)),
            false => self.schedule_quiet_check(id),
        }
    }

    fn is_quiet(&mut self) -> bool {
        let grace = Duration::from_millis(self.config.answer_grace_ms.unwrap_or(ANSWER_MS));
        let (Some(process), Some(listening)) = (self.processes.outgoing(), &mut self.listening) else {
            return true;
        };
        listening.is_quiet(process.slot, grace)
    }
}
