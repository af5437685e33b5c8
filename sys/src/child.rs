//! What happens in a new process before its program is executed.
//!
//! The child runs in the memory of this process, on a stack of its own, while the thread that made it waits: clone(2) with
//! `CLONE_VM` and `CLONE_VFORK`. So it makes system calls and nothing else: no memory is asked for, no lock is taken, nothing
//! panics. Its descriptors, signal handlers and limits are its own.

use std::convert::Infallible;
use std::ffi::{CStr, c_char, c_int, c_uint};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::sched::{CloneFlags, clone};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::unistd::{Pid, chdir, setsid};

use super::descriptor::set_close_on_exec;
use super::errno::{ByNumber, Errno};
use super::reaping::await_end;

/// No descriptor.
pub(super) const NONE: c_int = -1;
/// Debug builds need some KiB.
const STACK_BYTES: usize = 64 << 10;

/// What the child needs, ready before it exists.
pub(super) struct Child<'a> {
    pub(super) path: &'a CStr,
    /// Each array ends with a null pointer.
    pub(super) args: &'a [*const c_char],
    pub(super) env: &'a [*const c_char],
    pub(super) working_dir: &'a CStr,
    /// What becomes the descriptors 0, 1 and 2. None of them has a number below 3.
    pub(super) streams: [c_int; 3],
    /// What becomes the descriptors from 3 on. None of them has one of those numbers.
    pub(super) listeners: &'a [c_int],
    /// What is inherited at its own number, or [`NONE`].
    pub(super) kept: c_int,
    pub(super) files_limit: Option<u64>,
}

/// Starts it: leader of a session of its own, every signal at its default, none blocked. Returns when the program is executed.
pub(super) fn start(child: &Child<'_>) -> io::Result<Pid> {
    let mut stack = vec![0; STACK_BYTES];
    let none = SigSet::empty();
    let blocked = Blocked::all()?;
    let error = AtomicI32::new(0);
    let run = Box::new(|| {
        let Err(found) = become_program(child, &none);
        error.store(found.raw(), Ordering::Relaxed);
        // SAFETY: ends this process and touches nothing of the other.
        unsafe { libc::_exit(127) }
    });
    // SAFETY: the function runs while this thread waits here, so that nobody else has what it refers to. It returns on no path but
    // by the exit of the child, and does what may be done beside other threads: system calls. It needs less than the stack has.
    let pid = unsafe {
        clone(run, &mut stack, CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK, Some(libc::SIGCHLD))
    };
    let pid = pid.by_number();
    drop(blocked);
    let pid = pid?;
    // The child has written it and is gone, or executes its program in a memory of its own.
    match error.into_inner() {
        0 => Ok(pid),
        error => {
            await_end(pid);
            Err(io::Error::from_raw_os_error(error))
        }
    }
}

/// The child. Everything here is in its own process, but for the memory.
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
        // SAFETY: it is open, since whoever calls `start` has it open.
        set_close_on_exec(unsafe { BorrowedFd::borrow_raw(child.kept) }, false)?;
        close_all(first_free, child.kept - 1);
        close_all(child.kept + 1, c_int::MAX);
    }
    if let Some(limit) = child.files_limit {
        let (_, maximum) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, limit, maximum)?;
    }
    // From here on it may take as long as a file system takes.
    chdir(child.working_dir)?;
    for number in 1..=64 {
        // nix names no real-time signal. Two of them the C library has for itself and refuses.
        // SAFETY: the handlers are those of this process alone, and none is installed.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    no_signals.thread_set_mask()?;
    // That of nix asks for memory.
    // SAFETY: every pointer is to a zero-terminated string that lives while `start` waits, and each array ends with a null pointer.
    unsafe { libc::execve(child.path.as_ptr(), child.args.as_ptr(), child.env.as_ptr()) };
    Err(Errno::last())
}

/// Makes `number` a copy that is inherited.
fn put(from: c_int, number: c_int) -> Result<(), Errno> {
    // SAFETY: what has this number in the child belongs to nobody there.
    Errno::result(unsafe { libc::dup2(from, number) }).map(drop)
}

/// Closes all from `first` to `last`. A kernel before 5.9 cannot: there they are closed by the exec, a moment later.
fn close_all(first: c_int, last: c_int) {
    if first <= last {
        close_range(first, last, 0);
    }
}

/// close_range(2). `false` if the kernel cannot. With `CLOSE_RANGE_UNSHARE` the thread has a table of its own first.
pub(super) fn close_range(first: c_int, last: c_int, flags: c_uint) -> bool {
    // A C library may lack the function, so it is asked for by its number.
    // SAFETY: `become_program` closes what nobody in the child uses, and `take_own_table` copies in a table that no other thread has.
    unsafe { libc::syscall(libc::SYS_close_range, first as c_uint, last as c_uint, flags) == 0 }
}

/// All signals are blocked for this thread as long as this lives: no handler of this process is to run in the child.
struct Blocked(SigSet);

impl Blocked {
    fn all() -> io::Result<Self> {
        Ok(Self(SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).by_number()?))
    }
}

/// Blocks all signals for the calling thread, for good.
pub(super) fn block_signals() -> io::Result<()> {
    Blocked::all().map(std::mem::forget)
}

/// Blocks none for the calling thread. May be called between fork and exec.
pub(super) fn unblock_signals() {
    let _ = SigSet::empty().thread_set_mask();
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // What was in force before.
        let _ = self.0.thread_set_mask();
    }
}
