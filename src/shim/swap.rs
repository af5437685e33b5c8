//! What the adapter `inject` is told of the listeners, and what it tells of the program.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::elsewhere::Elsewhere;
use super::inject::{Event, Slots, Watcher, Why};
use super::listeners::Listeners;
use super::program::Program;
use crate::config::ListenAddress;
use crate::crash_points::crash_point;
use crate::slots::Access;

/// More of what a program binds elsewhere is not remembered.
const ELSEWHERE_MAX: usize = 256;

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

    fn path_bound(&self, name: &str, access: Access) {
        if let Err(error) = self.listeners.set_first_access(name, access) {
            say!("{error}");
        }
    }

    fn path_removed(&self, name: &str, path: &Path) {
        if let Err(error) = self.listeners.put_back(name) {
            say!("the program has removed {}, which cannot be put back: {error}", path.display());
        }
    }
}

/// One whose bind was refused has so long for another one.
const AFTER_REFUSAL: Duration = Duration::from_secs(1);

/// One that has bound something else at the port of a listener has so long to bind the listener too.
const AFTER_NEAR: Duration = Duration::from_secs(10);

/// What the program does is what is known of it.
pub(super) struct Watched(pub(super) Arc<Program>);

impl Watcher for Watched {
    fn tell(&self, event: Event) {
        self.0.learn(|known| match &event {
            Event::Parked { name, .. } | Event::Bound { name, .. } | Event::Listening { name, .. } => {
                if !known.bound.contains(name) {
                    known.bound.push(name.clone());
                }
            }
            Event::Passed { instead, why, .. } => {
                known.status = event.to_string();
                let same_port = matches!(why, Why::Elsewhere(_) | Why::Several(_));
                let found = instead.clone().map(|address| Elsewhere { address, same_port });
                // Workers that bind it once more have nothing new to tell.
                let found = found.filter(|found| !known.elsewhere.contains(found));
                known.elsewhere.extend(found.filter(|_| known.elsewhere.len() < ELSEWHERE_MAX));
            }
            Event::Failed { .. } => known.status = event.to_string(),
        });
        match &event {
            Event::Failed { .. } => {
                say!("{event}");
                self.0.learn(|known| known.failed = Some((event.to_string(), AFTER_REFUSAL)));
            }
            // One that could be meant for a listener of the service.
            Event::Passed { why, .. } if why.is_near() => {
                self.0.learn(|known| {
                    known.failed.get_or_insert((event.to_string(), AFTER_NEAR));
                });
            }
            _ => {}
        }
    }
}
