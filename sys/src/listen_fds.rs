//! Descriptors passed by a service manager at start: sd_listen_fds(3).

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Takes the descriptors from the service manager with their names: `LISTEN_FDS` descriptors from number 3 on, if
/// `LISTEN_PID` is this process. Makes all close-on-exec. Returns nothing the second time. Does not block.
///
/// Leaves the variables set: the daemon starts each process with an explicit environment, so no process inherits them.
pub fn take_listen_fds() -> io::Result<Vec<(String, OwnedFd)>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);

    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let given = sd_notify::listen_fds_with_names()?;
    Ok(given
        .map(|(number, name)| {
            // SAFETY: the descriptor is open, or setting its flags would have failed. The setter of the variables
            // passed it to this process for this call, which gets here once.
            (name, unsafe { OwnedFd::from_raw_fd(number) })
        })
        .collect())
}
