//! Watches the listeners of a program that ends, which it may shut down before it is gone.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::{ListenerSlots, Listeners, SharedSlots, lock};
use crate::sys::listens::listens;
use crate::sys::poll::{PollFd, PollFlags, poll};

/// Interval of the check whether a watched program still lives.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

impl Listeners {
    /// For groups with foreign sockets: if the program shuts its listener down before it ends, the last member takes
    /// its index, and steering must be repeated, or the foreign socket gets the new connections. Blocks while `lives`
    /// returns `true`.
    pub(in crate::shim) fn steer_as_it_ends(&self, lives: impl Fn() -> bool) -> Result<(), String> {
        let ListenerSlots::Shared(shared) = &self.slots else { return Ok(()) };
        let mut watched: Vec<OwnedFd> = {
            let mut shared = lock(shared);
            let used = shared.used;
            let Some(pair) = &mut shared.pair else { return Ok(()) };
            pair.update_order();
            if !pair.has_foreign_sockets() {
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

impl SharedSlots {
    /// Applies the state again after a listener has left its group: until then, the foreign socket gets new
    /// connections. Writes the state only afterwards, because the disk can be slow, and a reader of the earlier state
    /// checks which listeners are alive.
    fn steer_at_once(&mut self) -> Result<(), String> {
        let Some(pair) = &mut self.pair else { return Ok(()) };
        let applied = pair.apply(pair.state().clone()).map(drop).map_err(|error| error.to_string());
        let reached = pair.state().clone();
        let written = self.write_down(&reached);
        applied.and(written)
    }
}

/// Returns when a listener is shut down, or after a short time.
fn wait_for_an_end(listeners: &[OwnedFd]) {
    let mut asked: Vec<_> = listeners.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::empty())).collect();
    // The only error is EINTR.
    let _ = poll(&mut asked, Some(CHECK_INTERVAL));
}
