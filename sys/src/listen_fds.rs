//! The descriptors that a service manager gives a process when it starts it: sd_listen_fds(3).

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Takes what the service manager has given, with the names: `LISTEN_FDS` descriptors from number 3 on, if `LISTEN_PID` is
/// this process. All are close-on-exec then. Gives nothing the second time. Does not block.
///
/// The variables are left as they are: a process that is started with an environment of its own does not see them.
pub fn take_listen_fds() -> io::Result<Vec<(String, OwnedFd)>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);

    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let given = sd_notify::listen_fds_with_names()?;
    Ok(given
        .map(|(number, name)| {
            // SAFETY: the descriptor is open, or its flags could not have been changed; whoever set the variables gave it
            // to this process for exactly this call, which gets here once.
            (name, unsafe { OwnedFd::from_raw_fd(number) })
        })
        .collect())
}
