//! The listeners of a program that ends, which it may shut down before it is gone.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::{Listeners, Slots, lock};
use crate::sys::listens::listens;
use crate::sys::poll::{PollFd, PollFlags, poll};

/// How often it is looked whether a program still lives whose listeners are watched.
const LOOK: Duration = Duration::from_millis(20);

impl Listeners {
    /// Strangers are in the group, and the program may shut its listener down before it ends: then the last member takes its place, and new
    /// connections have to be steered anew, or the stranger gets them. Blocks while `lives`.
    pub(in crate::shim) fn steer_as_it_ends(&self, lives: impl Fn() -> bool) -> Result<(), String> {
        let Slots::Shared(shared) = &self.slots else { return Ok(()) };
        let mut watched: Vec<OwnedFd> = {
            let mut shared = lock(shared);
            let used = shared.used;
            let Some(pair) = &mut shared.pair else { return Ok(()) };
            pair.look();
            if !pair.has_strangers() {
                return Ok(());
            }
            let copies = pair.alive_listeners(used).map(OwnedFd::try_clone);
            copies.collect::<io::Result<_>>().map_err(|error| error.to_string())?
        };
        while lives() && !watched.is_empty() {
            let before = watched.len();
            wait_for_an_end(&watched);
            watched.retain(|listener| listens(listener) == Ok(true));
            if watched.len() < before {
                lock(shared).steer_at_once()?;
            }
        }
        Ok(())
    }
}

/// Returns when one of them is shut down, or after a moment.
fn wait_for_an_end(listeners: &[OwnedFd]) {
    let mut asked: Vec<_> = listeners.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::empty())).collect();
    // A failure is an interruption by a signal.
    let _ = poll(&mut asked, Some(LOOK));
}
