//! System calls of another program that wait for this process: seccomp user notification, see seccomp_unotify(2).
//!
//! A filter passes `bind` and `listen`, and optionally the calls that remove and rename files, to the holder of the
//! notify descriptor. It allows all other system calls. It lasts for the life of the process, and its children and the
//! programs they execute inherit it. Each call blocks until it is answered: with an error, with a return value, or by
//! letting the kernel execute it.
//!
//! Check the notification *after* you read from the waiting process: before that check, the process may have ended and
//! another one may have its pid.

mod filter;
mod target;

use std::ffi::c_ulong;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::{
    SECCOMP_ADDFD_FLAG_SETFD, SECCOMP_FILTER_FLAG_NEW_LISTENER, SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
    SECCOMP_SET_MODE_FILTER, SECCOMP_USER_NOTIF_FLAG_CONTINUE, sock_filter, sock_fprog,
};
use nix::sys::prctl::set_no_new_privs;
use serde::{Deserialize, Serialize};

use super::errno::{ByNumber, Errno, retry};
use super::poll::{PollFlags, poll_one};

pub use target::{get_option, read_memory, register_at, set_option};

/// Installs the filter on the calling thread. Returns the notify descriptor, close-on-exec. For a single-threaded
/// process that is about to execute a program.
///
/// A process without `CAP_SYS_ADMIN` also gets `no_new_privs`, which the kernel requires: setuid programs that it
/// executes gain no privilege. A process with that capability does not get it, so setuid keeps working.
pub fn install(which: Calls) -> io::Result<OwnedFd> {
    let Some(arch) = filter::NATIVE else {
        let text =
            "system calls can be answered on x86-64 and aarch64 only; use listen-fds on this processor";
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    };
    let program = filter::program(arch, which);
    let killable = SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    match attach_privileged_or_not(&program, killable) {
        // Before kernel 5.19 a signal can interrupt a waiting call, which is then repeated.
        Err(Errno::EINVAL) => attach_privileged_or_not(&program, SECCOMP_FILTER_FLAG_NEW_LISTENER),
        other => other,
    }
    .map_err(explain)
}

fn attach_privileged_or_not(program: &[sock_filter], flags: c_ulong) -> Result<OwnedFd, Errno> {
    match attach(program, flags) {
        Err(Errno::EACCES) => {
            set_no_new_privs()?;
            attach(program, flags)
        }
        other => other,
    }
}

fn attach(program: &[sock_filter], flags: c_ulong) -> Result<OwnedFd, Errno> {
    // The kernel only reads them.
    let program = sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: the program points to the given number of instructions, which live until the call returns; the kernel
    // copies them. With these flags the call returns a new descriptor.
    let returned =
        unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    let returned = Errno::result(returned)?;
    // SAFETY: the kernel has just created the descriptor for this caller; it is close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(returned as RawFd) })
}

fn explain(error: Errno) -> io::Error {
    let cause = io::Error::from(error);
    let text = match error {
        Errno::EBUSY => {
            "another program answers system calls of this process already (a sandbox or container runtime that uses \
             seccomp user notification), and the kernel allows only one; start the service outside of it, or use \
             listen-fds"
                .to_owned()
        }
        Errno::ENOSYS | Errno::EINVAL => {
            format!("this kernel cannot hand system calls to another program (seccomp): {cause}; use listen-fds")
        }
        _ => format!("cannot put a seccomp filter on the program: {cause}"),
    };
    io::Error::new(cause.kind(), text)
}

/// A system call that waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Identifies the notification.
    pub id: u64,
    /// The **thread** that waits, in this process's pid namespace; 0 if it is not visible there.
    pub tid: u32,
    /// The system call.
    pub system_call: SystemCall,
    /// Its first four arguments.
    pub args: [u64; 4],
}

/// The system calls that the filter passes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Calls {
    /// bind(2) and listen(2).
    Sockets,
    /// bind(2), listen(2), and the calls that remove or rename files.
    SocketsAndPaths,
}

/// A kind of system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SystemCall {
    /// bind(2): descriptor, address, length.
    Bind,
    /// listen(2): descriptor, backlog.
    Listen,
    /// unlink(2): path.
    Unlink,
    /// unlinkat(2): directory, path, flags.
    UnlinkAt,
    /// rename(2): path, new path.
    Rename,
    /// renameat(2) and renameat2(2): directory, path, new directory, new path.
    RenameAt,
}

/// The answer to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The kernel executes it.
    Continue,
    /// It returns 0 without effect.
    Success,
    /// It fails with this errno.
    Error(Errno),
}

/// The notify descriptor. Several threads may use it at once.
#[derive(Debug)]
pub struct Notify {
    fd: OwnedFd,
}

impl Notify {
    /// Wraps the descriptor from [`install`].
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Waits for the next call. `None` when no process with the filter is left. Blocks.
    pub fn next(&self) -> io::Result<Option<Call>> {
        loop {
            let events = retry(|| poll_one(&self.fd, PollFlags::POLLIN, None))?;
            if events.contains(PollFlags::POLLIN) {
                match self.receive() {
                    // The caller was killed or interrupted in between, or uses an architecture that the filter passes.
                    Ok(None) | Err(Errno::ENOENT | Errno::EINTR) => {}
                    Ok(Some(call)) => return Ok(Some(call)),
                    Err(error) => return Err(error.into()),
                }
            } else if events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL) {
                return Ok(None);
            }
        }
    }

    fn receive(&self) -> Result<Option<Call>, Errno> {
        // SAFETY: all fields are integers, and the kernel requires zeros.
        let mut message: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the request encodes the size of the structure, and the kernel writes no more than that.
        unsafe { ioctls::receive(self.fd.as_raw_fd(), &raw mut message) }?;
        let [a, b, c, d, ..] = message.data.args;
        let Some(what) = filter::NATIVE.and_then(|arch| arch.name(message.data.nr as u32)) else {
            self.answer(message.id, Answer::Continue)?;
            return Ok(None);
        };
        Ok(Some(Call { id: message.id, tid: message.pid, system_call: what, args: [a, b, c, d] }))
    }

    /// Whether the call still waits. If so, its thread id has belonged to the same thread since the call arrived.
    pub fn is_valid(&self, id: u64) -> bool {
        // SAFETY: the request reads an integer, which lives until the call returns.
        unsafe { ioctls::is_valid(self.fd.as_raw_fd(), &raw const id) }.is_ok()
    }

    /// Replaces a descriptor of the waiting process with a duplicate of `source`. ENOENT if the call no longer waits.
    pub fn put(
        &self,
        id: u64,
        source: BorrowedFd<'_>,
        number: u32,
        close_on_exec: bool,
    ) -> Result<(), Errno> {
        let request = libc::seccomp_notif_addfd {
            id,
            flags: SECCOMP_ADDFD_FLAG_SETFD as u32,
            srcfd: source.as_raw_fd() as u32,
            newfd: number,
            newfd_flags: if close_on_exec { libc::O_CLOEXEC as u32 } else { 0 },
        };
        // SAFETY: the request encodes the size of the structure, which the kernel only reads. The descriptor is created
        // in the other process.
        unsafe { ioctls::add_descriptor(self.fd.as_raw_fd(), &raw const request) }.map(drop).by_number()
    }

    /// Answers a call. ENOENT if it no longer waits.
    pub fn answer(&self, id: u64, answer: Answer) -> Result<(), Errno> {
        let (error, flags) = match answer {
            Answer::Continue => (0, SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
            Answer::Success => (0, 0),
            Answer::Error(error) => (-error.raw(), 0),
        };
        let mut response = libc::seccomp_notif_resp { id, val: 0, error, flags };
        // SAFETY: the request encodes the size of the structure, which lives until the call returns.
        unsafe { ioctls::send(self.fd.as_raw_fd(), &raw mut response) }.map(drop).by_number()
    }
}

impl AsFd for Notify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

mod ioctls {
    // As in linux/seccomp.h.
    nix::ioctl_readwrite!(receive, b'!', 0, libc::seccomp_notif);
    nix::ioctl_readwrite!(send, b'!', 1, libc::seccomp_notif_resp);
    nix::ioctl_write_ptr!(is_valid, b'!', 2, u64);
    nix::ioctl_write_ptr!(add_descriptor, b'!', 3, libc::seccomp_notif_addfd);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_to_do() {
        assert!(explain(Errno::EBUSY).to_string().contains("the kernel allows only one"));
        assert!(explain(Errno::ENOSYS).to_string().contains("use listen-fds"));
        assert_eq!(explain(Errno::EPERM).kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn only_a_notify_descriptor_has_calls() {
        let notify = Notify::new(std::fs::File::open("/dev/null").unwrap().into());
        assert!(notify.next().is_err());
        assert!(!notify.is_valid(1));
        assert!(notify.answer(1, Answer::Success).is_err());
    }
}
