//! Where the crash tests hit the daemon: around each event and each action.

use handoff_protocol::supervisor::{Action, Event};

use super::Service;
use crate::crash_points::{crash_point, name};

impl Service {
    /// Returns the name of the event.
    pub(in crate::supervisor) fn at_event(&self, event: &Event) -> String {
        self.report_processes();
        let event = name(event);
        crash_point!("supervisor/{}/event.{event}", self.phase_name());
        event
    }

    pub(in crate::supervisor) fn after_event(&self, event: &str) {
        self.report_processes();
        crash_point!("supervisor/{}/after.{event}", self.phase_name());
    }

    pub(in crate::supervisor) fn at_action(&self, action: &Action) {
        self.report_processes();
        // A timer has no effect outside of this process, and neither has a reason.
        if !matches!(action, Action::Arm(..) | Action::Disarm(_) | Action::Failed(_)) {
            crash_point!("supervisor/{}/before.{}", self.phase_name(), name(action));
        }
    }

    /// Reports the processes that the harness can hit.
    fn report_processes(&self) {
        #[cfg(feature = "crash-points")]
        crate::crash_points::parties(
            [self.processes.incumbent(), self.processes.successor(), self.processes.outgoing()]
                .map(|process| process.map(|process| process.pid())),
        );
    }
}
