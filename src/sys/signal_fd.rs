//! A signal as a descriptor to wait for, instead of an interruption.

use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;

use rustix::process::Signal;

/// Blocks a signal in the calling thread and gives a descriptor that is readable once it has come; nonblocking and
/// close-on-exec. For a process of one thread: another thread would still be interrupted.
pub fn signal_fd(signal: Signal) -> io::Result<OwnedFd> {
    const SIG_BLOCK: c_int = 0;
    const SFD_NONBLOCK_CLOEXEC: c_int = 0o2_004_000;
    let mut set = SignalSet(MaybeUninit::uninit());
    // SAFETY: the set has room for a `sigset_t` and is filled before it is read; nothing keeps a pointer to it.
    let fd = unsafe {
        sigemptyset(&mut set);
        sigaddset(&mut set, signal.as_raw());
        if sigprocmask(SIG_BLOCK, &set, ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        signalfd(-1, &set, SFD_NONBLOCK_CLOEXEC)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made for this caller.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Room for a `sigset_t`: 128 bytes in glibc and in musl.
#[repr(C, align(16))]
struct SignalSet(MaybeUninit<[u8; 128]>);

unsafe extern "C" {
    fn sigemptyset(set: *mut SignalSet) -> c_int;
    fn sigaddset(set: *mut SignalSet, signal: c_int) -> c_int;
    fn sigprocmask(how: c_int, set: *const SignalSet, old: *mut SignalSet) -> c_int;
    fn signalfd(fd: c_int, set: *const SignalSet, flags: c_int) -> c_int;
}
