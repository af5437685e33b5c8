//! Becomes another program.

use std::ffi::{CStr, CString, c_char, c_int};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::io::dup2;
use rustix::process::Signal;

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
        dup2(source, &mut place)?;
    }
    Ok(())
}

/// Becomes `path`. Comes back only with the error. The signal that Rust ignores at the start of a program, SIGPIPE, is at
/// its default again.
pub fn execute(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    const SIG_DFL: usize = 0;
    // SAFETY: the default is no handler of ours.
    unsafe { signal(Signal::PIPE.as_raw(), SIG_DFL) };
    let pointers = |texts: &[CString]| -> Vec<*const c_char> {
        texts.iter().map(|text| text.as_ptr()).chain(std::iter::once(ptr::null())).collect()
    };
    let (argv, envp) = (pointers(args), pointers(env));
    // SAFETY: every pointer is to a zero-terminated string that lives until the call returns, and each array ends with a
    // null pointer. The kernel copies them.
    unsafe { execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

unsafe extern "C" {
    fn execve(path: *const c_char, argv: *const *const c_char, envp: *const *const c_char) -> c_int;
    fn signal(signal: c_int, handler: usize) -> usize;
}
