//! Connects the adapter `inject` with the listeners and the program.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::inject::{EventSink, InjectEvent, ListenerProvider, MismatchReason};
use super::listeners::Listeners;
use super::program::Program;
use super::unmatched::UnmatchedBind;
use crate::config::ListenAddress;
use crate::crash_points::crash_point;
use crate::slots::Access;

/// Maximum number of other addresses to remember.
const ELSEWHERE_MAX: usize = 256;

/// The listeners for the program's binds: those of the slot that is current at that moment.
pub(super) struct CurrentListeners {
    pub(super) listeners: Arc<Listeners>,
    /// The role of this process, for crash points.
    pub(super) role: &'static str,
}

impl ListenerProvider for CurrentListeners {
    fn configured(&self) -> Vec<(String, ListenAddress)> {
        self.listeners.configured()
    }

    fn current(&self, name: &str) -> io::Result<OwnedFd> {
        crash_point!("shim/{}/bind", self.role);
        self.listeners.current_of(name)
    }

    fn path_bound(&self, name: &str, access: Access) {
        if let Err(error) = self.listeners.set_first_access(name, access) {
            log_line!("{error}");
        }
    }

    fn path_removed(&self, name: &str, path: &Path) {
        if let Err(error) = self.listeners.put_back(name) {
            log_line!("cannot restore {}, which the program has removed: {error}", path.display());
        }
    }
}

/// Patience with a program whose bind was refused, for another bind.
const AFTER_REFUSAL: Duration = Duration::from_secs(1);

/// Patience with a program that has bound another address with a listener's port, until it binds the listener too.
const AFTER_NEAR: Duration = Duration::from_secs(10);

/// Records the program's actions in its known state.
pub(super) struct ProgramRecorder(pub(super) Arc<Program>);

impl EventSink for ProgramRecorder {
    fn record(&self, event: InjectEvent) {
        self.0.learn(|known| match &event {
            InjectEvent::Parked { name, .. }
            | InjectEvent::Bound { name, .. }
            | InjectEvent::Listening { name, .. } => {
                if !known.bound.contains(name) {
                    known.bound.push(name.clone());
                }
            }
            InjectEvent::Passed { instead, why, .. } => {
                known.status = event.to_string();
                let same_port = matches!(why, MismatchReason::Elsewhere(_) | MismatchReason::Several(_));
                let found = instead.clone().map(|address| UnmatchedBind { address, same_port });
                // Workers that bind it again add nothing new.
                let found = found.filter(|found| !known.unmatched.contains(found));
                known.unmatched.extend(found.filter(|_| known.unmatched.len() < ELSEWHERE_MAX));
            }
            InjectEvent::Failed { .. } => known.status = event.to_string(),
        });
        match &event {
            InjectEvent::Failed { .. } => {
                log_line!("{event}");
                self.0.learn(|known| known.failed = Some((event.to_string(), AFTER_REFUSAL)));
            }
            // It might be intended as a listener of the service.
            InjectEvent::Passed { why, .. } if why.is_near() => {
                self.0.learn(|known| {
                    known.failed.get_or_insert((event.to_string(), AFTER_NEAR));
                });
            }
            _ => {}
        }
    }
}
