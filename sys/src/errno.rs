//! Error numbers of the kernel.

use std::io;

pub use nix::errno::Errno;

/// The errno of a standard library error, if it came from the kernel.
pub fn errno_of(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw)
}

/// Repeats a call while a signal interrupts it (EINTR).
pub fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            done => return done,
        }
    }
}
