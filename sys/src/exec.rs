//! Replaces this process with another program.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{dup2, execve};

use super::errno::ByNumber;

/// The first number after the standard streams.
pub const FIRST: RawFd = 3;

/// Duplicates these descriptors to the numbers from [`FIRST`] on, in order, where the next executed program expects
/// them. Closes what this process has at those numbers. Each of `sources` must be above all of them.
///
/// For a single-threaded process that owns nothing at those numbers.
pub fn place(sources: &[OwnedFd]) -> io::Result<()> {
    let end = FIRST + sources.len() as RawFd;
    if let Some(low) = sources.iter().find(|source| source.as_raw_fd() < end) {
        let text = format!("descriptor {} is in the way of others", low.as_raw_fd());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    for (number, source) in (FIRST..).zip(sources) {
        // SAFETY: never dropped. The caller owns nothing at this number, so this closes nothing else.
        let mut place = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
        dup2(source, &mut place).by_number()?;
    }
    Ok(())
}

/// Executes `path`. Returns only on error. Resets SIGPIPE to its default, since the Rust runtime ignores it at startup.
pub fn execute(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    // SAFETY: the default installs no handler.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    let Err(error) = execve(path, args, env).by_number();
    error.into()
}
