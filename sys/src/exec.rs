//! Becomes another program.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{dup2, execve};

use super::errno::ByNumber;

/// The first number after the standard streams.
pub const FIRST: RawFd = 3;

/// Puts duplicates of these descriptors onto the numbers from [`FIRST`] on, in order, where the program that is executed
/// next finds them. What this process has at those numbers is closed. Each of `sources` must be above all of them.
///
/// For a process of one thread that owns nothing at those numbers any more.
pub fn place(sources: &[OwnedFd]) -> io::Result<()> {
    let end = FIRST + sources.len() as RawFd;
    if let Some(low) = sources.iter().find(|source| source.as_raw_fd() < end) {
        let text = format!("descriptor {} is in the way of others", low.as_raw_fd());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    for (number, source) in (FIRST..).zip(sources) {
        // SAFETY: never dropped. The caller owns nothing at this number, so nothing else is closed by it.
        let mut place = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
        dup2(source, &mut place).by_number()?;
    }
    Ok(())
}

/// Becomes `path`. Comes back only with the error. The signal that Rust ignores at the start of a program, SIGPIPE, is at
/// its default again.
pub fn execute(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    // SAFETY: the default is no handler of ours.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    let Err(error) = execve(path, args, env).by_number();
    error.into()
}
