//! Watches the listeners of a program that ends, which it may shut down before it is gone.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::{Listeners, Slots, lock};
use crate::sys::listens::listens;
use crate::sys::poll::{PollFd, PollFlags, poll};

/// Interval of the check whether a watched program still lives.
const LOOK: Duration = Duration::from_millis(20);

impl Listeners {
    /// For groups with foreign sockets: if the program shuts its listener down before it ends, the last member takes
    /// its index, and steering must be repeated, or the foreign socket gets the new connections. Blocks while `lives`
    /// returns `true`.
    pub(in crate::shim) fn steer_as_it_ends(&self, lives: impl Fn() -> bool) -> Result<(), String> {
        let Slots::Shared(shared) = &self.slots else { return Ok(()) };
        let mut watched: Vec<OwnedFd> = {
            let mut shared = lock(shared);
            let used = shared.used;
            let Some(pair) = &mut shared.pair else { return Ok(()) };
            pair.look();
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
                let mut shared = lock(shared);
                if let Some(state) = shared.pair.as_ref().map(|pair| pair.state().clone()) {
                    shared.change_to(state)?;
                }
            }
        }
        Ok(())
    }
}

/// Returns when a listener is shut down, or after a short time.
fn wait_for_an_end(listeners: &[OwnedFd]) {
    let mut asked: Vec<_> = listeners.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::empty())).collect();
    // The only error is EINTR.
    let _ = poll(&mut asked, Some(LOOK));
}
