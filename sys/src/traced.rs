//! A descriptor that a command and all its descendants inherit without using it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use super::child::unblock_signals;
use super::descriptor::{duplicate_from, set_close_on_exec};
use super::errno::{ByNumber, Errno};

/// Above the numbers that scripts choose for their files (`exec 3>log`), and below those that shells reserve: a script
/// that reused the number would close the descriptor.
pub const OUT_OF_THE_WAY: i32 = 200;

/// Duplicates a descriptor to a number that programs rarely use; close-on-exec.
pub fn out_of_the_way(fd: impl AsFd) -> io::Result<OwnedFd> {
    match duplicate_from(&fd, OUT_OF_THE_WAY) {
        // The limit of open files is lower than that.
        Err(Errno::EINVAL | Errno::EMFILE) => Ok(duplicate_from(&fd, 3)?),
        copied => Ok(copied?),
    }
}

/// Makes the child of `command` inherit `trace` at its current number, and die with the thread that starts it. No other
/// child inherits the descriptor.
pub fn trace(command: &mut Command, trace: OwnedFd) {
    let prepare = move || {
        // The starting thread may block all signals: see `own_table`.
        unblock_signals();
        set_close_on_exec(&trace, false)?;
        Ok::<_, io::Error>(set_pdeathsig(Signal::SIGKILL).by_number()?)
    };
    // SAFETY: between fork and exec the closure makes three system calls. It allocates nothing, takes no lock, and
    // changes only the flag of a descriptor of the child, its signal mask, and an attribute of the child.
    unsafe { command.pre_exec(prepare) };
}
