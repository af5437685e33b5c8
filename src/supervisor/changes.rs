//! What a service does, and the way from its changes to the clients that have subscribed to them.

use tokio::sync::broadcast;

use super::daemon::Daemon;
use super::service::Service;
use crate::control::api::{Change, ServiceStatus, Subscribe, Subscription};
use crate::control::{CHANGES_KEPT, Error};
use crate::journal::unix_ms;

/// The way to the subscribers. Sending never waits.
#[derive(Debug)]
pub(super) struct Changes(broadcast::Sender<Change>);

impl Default for Changes {
    fn default() -> Self {
        Self(broadcast::channel(CHANGES_KEPT).0)
    }
}

impl Changes {
    pub(super) fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.0.subscribe()
    }

    fn has_subscribers(&self) -> bool {
        self.0.receiver_count() > 0
    }
}

impl Daemon {
    /// What the wanted services do now.
    pub(super) async fn subscribe(&self, wanted: &Subscribe) -> Result<Subscription, Error> {
        let mut states = Vec::new();
        if wanted.services.is_empty() {
            states.extend(self.all().await.iter().map(|handle| handle.with(|service| service.change())));
            states.extend(self.broken_statuses().iter().map(of_broken));
            states.sort_by(|one, other| one.service.cmp(&other.service));
        }
        for name in &wanted.services {
            let found = self.find(name).await;
            let broken = self.broken.borrow().get(name).map(|broken| of_broken(&broken.status(name)));
            states.push(match (found, broken) {
                (Ok(handle), _) => handle.with(|service| service.change()),
                (Err(_), Some(broken)) => broken,
                (Err(error), None) => return Err(error),
            });
        }
        Ok(Subscription { subscription: 0, states })
    }
}

fn of_broken(status: &ServiceStatus) -> Change {
    Change {
        service: status.service.clone(),
        at: unix_ms(),
        state: status.state,
        phase: None,
        detail: None,
        generation: status.generation,
        pid: None,
        problem: status.problem.clone(),
    }
}

impl Service {
    /// Sends what is new to the subscribers and to the status file. Without subscribers, this costs almost nothing.
    pub(super) fn publish(&mut self) {
        self.note_status();
        if !self.shared.changes.has_subscribers() {
            return;
        }
        let before = self.published.take();
        let change = self.change();
        if before.is_none_or(|before| !before.is_same(&change)) {
            // The last subscriber may just have left.
            let _ = self.shared.changes.0.send(change);
        }
    }

    /// What it does now. The next difference from that is sent.
    fn change(&mut self) -> Change {
        let pid = self.pid();
        let state = self.state(pid);
        let change = Change {
            service: self.name.clone(),
            at: unix_ms(),
            state,
            phase: self.shown_phase(state),
            detail: self.phase_status(),
            generation: self.journal.standing().generation(),
            pid,
            problem: self.shown_problem(),
        };
        self.published = Some(change.clone());
        change
    }
}
