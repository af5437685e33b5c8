//! What the adapter `inject` is told of the listeners, and what it tells of the program.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use super::inject::{Event, Slots, Watcher};
use super::listeners::Listeners;
use super::program::Program;
use crate::config::ListenAddress;
use crate::crash_points::crash_point;

/// The listeners that the program gets when it binds: those of the slot that counts at that moment.
pub(super) struct Swap {
    pub(super) listeners: Arc<Listeners>,
    /// Which party this process is for the crash tests.
    pub(super) party: &'static str,
}

impl Slots for Swap {
    fn configured(&self) -> Vec<(String, ListenAddress)> {
        self.listeners.configured()
    }

    fn current(&self, name: &str) -> io::Result<OwnedFd> {
        crash_point!("shim/{}/bind", self.party);
        self.listeners.current_of(name)
    }

    fn path_removed(&self, name: &str, path: &Path) {
        if let Err(error) = self.listeners.put_back(name) {
            eprintln!(
                "handoff: the program has removed {}, which cannot be put back: {error}",
                path.display()
            );
        }
    }
}

/// What the program does is what is known of it.
pub(super) struct Seen(pub(super) Arc<Program>);

impl Watcher for Seen {
    fn tell(&self, event: Event) {
        self.0.learn(|known| match &event {
            Event::Parked { name, .. } | Event::Bound { name, .. } | Event::Listening { name, .. } => {
                if !known.bound.contains(name) {
                    known.bound.push(name.clone());
                }
            }
            Event::Passed { .. } | Event::Failed { .. } => known.status = event.to_string(),
        });
        if let Event::Failed { .. } = event {
            eprintln!("handoff: {event}");
        }
    }
}
