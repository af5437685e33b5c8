//! The steps in a new process before it executes its program.
//!
//! The child runs in this process's memory on its own stack, while the thread that created it waits: clone(2) with
//! `CLONE_VM` and `CLONE_VFORK`. So it only makes system calls: it allocates nothing, takes no lock and never panics.
//! Its descriptors, signal handlers and limits are its own.

use std::convert::Infallible;
use std::ffi::{CStr, c_char, c_int, c_uint};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::sched::{CloneFlags, clone};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::unistd::{Pid, chdir, getpid, setsid};

use super::descriptor::{set_close_on_exec, write};
use super::errno::{ByNumber, Errno};
use super::log_pipe::pid_mark;
use super::reaping::await_end;

/// No descriptor.
pub(super) const NONE: c_int = -1;
/// Debug builds need a few KiB.
const STACK_BYTES: usize = 64 << 10;

/// Everything the child needs, prepared before it exists.
pub(super) struct Child<'a> {
    pub(super) path: &'a CStr,
    /// Each array ends with a null pointer.
    pub(super) args: &'a [*const c_char],
    pub(super) env: &'a [*const c_char],
    pub(super) working_dir: &'a CStr,
    /// Sources for descriptors 0, 1 and 2. Each number is 3 or higher.
    pub(super) streams: [c_int; 3],
    /// Sources for the descriptors from 3 on. Each number is above all the target numbers.
    pub(super) listeners: &'a [c_int],
    /// Inherited at its own number; [`NONE`] if there is none.
    pub(super) kept: c_int,
    pub(super) files_limit: Option<u64>,
    /// Whether both output streams begin with a mark that names the pid.
    pub(super) marks_streams: bool,
}

/// Starts the child as the leader of its own session, with every signal at its default and none blocked. Blocks until
/// the program is executed.
pub(super) fn start(child: &Child<'_>) -> io::Result<Pid> {
    let mut stack = vec![0; STACK_BYTES];
    let none = SigSet::empty();
    let blocked = Blocked::all()?;
    let error = AtomicI32::new(0);
    let run = Box::new(|| {
        let Err(found) = become_program(child, &none);
        error.store(found.raw(), Ordering::Relaxed);
        // SAFETY: ends this process and touches nothing of the parent.
        unsafe { libc::_exit(127) }
    });
    // SAFETY: the function runs while this thread waits here, so no other code uses what it refers to. It never
    // returns: the child always exits or executes. It only makes system calls, which is safe next to other threads, and
    // needs less than the stack has.
    let pid = unsafe {
        clone(run, &mut stack, CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK, Some(libc::SIGCHLD))
    };
    let pid = pid.by_number();
    drop(blocked);
    let pid = pid?;
    // The child has written its error and exited, or runs its program in its own memory.
    match error.into_inner() {
        0 => Ok(pid),
        error => {
            await_end(pid);
            Err(io::Error::from_raw_os_error(error))
        }
    }
}

/// Runs in the child: its own process, but the memory of the parent.
fn become_program(child: &Child<'_>, no_signals: &SigSet) -> Result<Infallible, Errno> {
    setsid()?;
    for (number, from) in (0..).zip(child.streams) {
        put(from, number)?;
    }
    for (number, from) in (3..).zip(child.listeners) {
        put(*from, number)?;
    }
    let first_free = 3 + child.listeners.len() as c_int;
    if child.kept == NONE {
        close_all(first_free, c_int::MAX);
    } else {
        // SAFETY: the caller of `start` holds it open.
        set_close_on_exec(unsafe { BorrowedFd::borrow_raw(child.kept) }, false)?;
        close_all(first_free, child.kept - 1);
        close_all(child.kept + 1, c_int::MAX);
    }
    if let Some(limit) = child.files_limit {
        let (_, maximum) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, limit, maximum)?;
    }
    // From here on each step can block for as long as a file system does.
    chdir(child.working_dir)?;
    for number in 1..=64 {
        // nix has no names for real-time signals. The C library reserves two of them and refuses those.
        // SAFETY: signal handlers belong to this process alone, and this installs none.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    if child.marks_streams {
        let mark = pid_mark(getpid().as_raw().unsigned_abs());
        for number in [1, 2] {
            // An error is for the reader of the pipe: it does not learn the pid.
            // SAFETY: the number was placed above, and stays open.
            let _ = write(unsafe { BorrowedFd::borrow_raw(number) }, &mark);
        }
    }
    no_signals.thread_set_mask()?;
    // nix's execve allocates memory.
    // SAFETY: every pointer is to a zero-terminated string that lives while `start` waits, and each array ends with a
    // null pointer.
    unsafe { libc::execve(child.path.as_ptr(), child.args.as_ptr(), child.env.as_ptr()) };
    Err(Errno::last())
}

/// Makes `number` an inheritable duplicate of `from`.
fn put(from: c_int, number: c_int) -> Result<(), Errno> {
    // SAFETY: nothing in the child owns the descriptor at this number.
    Errno::result(unsafe { libc::dup2(from, number) }).map(drop)
}

/// Closes all from `first` to `last`. Kernels before 5.9 lack the call; there the exec closes them a moment later.
fn close_all(first: c_int, last: c_int) {
    if first <= last {
        close_range(first, last, 0);
    }
}

/// close_range(2). `false` if the kernel lacks it. With `CLOSE_RANGE_UNSHARE` the thread gets its own descriptor table
/// first.
pub(super) fn close_range(first: c_int, last: c_int, flags: c_uint) -> bool {
    // Some C libraries lack the function, so it is called by number.
    // SAFETY: `become_program` closes what nothing in the child uses; `take_own_table` closes copies in a table that no
    // other thread has.
    unsafe { libc::syscall(libc::SYS_close_range, first as c_uint, last as c_uint, flags) == 0 }
}

/// Blocks all signals for this thread until dropped: no handler of this process may run in the child.
struct Blocked(SigSet);

impl Blocked {
    fn all() -> io::Result<Self> {
        Ok(Self(SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).by_number()?))
    }
}

/// Blocks all signals for the calling thread, permanently.
pub(super) fn block_signals() -> io::Result<()> {
    Blocked::all().map(std::mem::forget)
}

/// Unblocks all signals for the calling thread. Safe between fork and exec.
pub(super) fn unblock_signals() {
    let _ = SigSet::empty().thread_set_mask();
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // Restores the previous mask.
        let _ = self.0.thread_set_mask();
    }
}
