//! Signals that a process is to be deaf to.

use std::ffi::c_int;
use std::io;

use rustix::process::Signal;

/// Ignores a signal in the whole process, from now on. A program that it starts through [`super::spawn`] hears it again.
pub fn ignore(signal: Signal) -> io::Result<()> {
    const SIG_IGN: usize = 1;
    const SIG_ERR: usize = usize::MAX;
    // SAFETY: no handler of ours is installed, so nothing of this process can run at a bad time.
    match unsafe { c_signal(signal.as_raw(), SIG_IGN) } {
        SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

unsafe extern "C" {
    #[link_name = "signal"]
    fn c_signal(signal: c_int, handler: usize) -> usize;
}
