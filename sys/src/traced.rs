//! A descriptor that a command and everything that it starts have open without knowing of it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use super::child::unblock_signals;
use super::descriptor::{duplicate_from, set_close_on_exec};
use super::errno::{ByNumber, Errno};

/// Above the numbers that scripts choose for files of their own (`exec 3>log`), and below those that shells take for themselves: a
/// script that took the number of the descriptor would close it.
pub const OUT_OF_THE_WAY: i32 = 200;

/// A copy at a number that nobody chooses; close-on-exec.
pub fn out_of_the_way(fd: impl AsFd) -> io::Result<OwnedFd> {
    match duplicate_from(&fd, OUT_OF_THE_WAY) {
        // So many may not be open.
        Err(Errno::EINVAL | Errno::EMFILE) => Ok(duplicate_from(&fd, 3)?),
        copied => Ok(copied?),
    }
}

/// Has the child of `command` inherit `trace` at the number that it has here, and end with the thread that starts it. No other
/// child inherits the descriptor.
pub fn trace(command: &mut Command, trace: OwnedFd) {
    let prepare = move || {
        // The thread that starts it may block them all: see `own_table`.
        unblock_signals();
        set_close_on_exec(&trace, false)?;
        Ok::<_, io::Error>(set_pdeathsig(Signal::SIGKILL).by_number()?)
    };
    // SAFETY: between fork and exec the closure makes three system calls. It allocates nothing, takes no lock, and changes nothing
    // but the flag of a descriptor of the child, its signal mask, and an attribute of the child.
    unsafe { command.pre_exec(prepare) };
}
