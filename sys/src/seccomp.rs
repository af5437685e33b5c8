//! System calls of another program that wait for this one: seccomp user notification, see seccomp_unotify(2).
//!
//! A filter hands `bind` and `listen`, and if that is wanted what removes and renames files, to whoever holds the notify
//! descriptor, and leaves all other system calls alone. It
//! stays for the life of the process, and its children and whatever they execute have it too. Each call waits until it is
//! answered: with an error, with a value, or by letting the kernel carry it out.
//!
//! What is read of the waiting process is good only if the notification is valid *after* it was read: before that, the
//! process may have ended and its pid may be another's.

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

/// Puts the filter on the calling thread, and gives the notify descriptor, close-on-exec. For a process of one thread that
/// is about to execute a program.
///
/// A process without `CAP_SYS_ADMIN` also gets `no_new_privs`, which the kernel asks for: programs with the setuid bit that
/// it executes get no privilege from it. One with that capability does not, so that setuid goes on to work.
pub fn install(which: Calls) -> io::Result<OwnedFd> {
    let Some(arch) = filter::NATIVE else {
        let text =
            "system calls can be answered on x86-64 and aarch64 only; use listen-fds on this processor";
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    };
    let program = filter::program(arch, which);
    let killable = SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    match attach_privileged_or_not(&program, killable) {
        // Before kernel 5.19: a signal can interrupt a call that waits, which then comes again.
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
    // SAFETY: the program points to as many instructions as it says, which live until the call returns; the kernel copies
    // them. With these flags the call gives a new descriptor.
    let returned =
        unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    let returned = Errno::result(returned)?;
    // SAFETY: the kernel has just made the descriptor for this caller; it is close-on-exec.
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
    /// Names the notification.
    pub id: u64,
    /// The **thread** that waits, as this process numbers it; 0 if it is in a pid namespace that cannot be seen.
    pub tid: u32,
    /// What it calls.
    pub what: What,
    /// The first four arguments.
    pub args: [u64; 4],
}

/// Which calls are handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Calls {
    /// bind(2) and listen(2).
    Sockets,
    /// Those, and what removes or renames files.
    SocketsAndPaths,
}

/// Which system call waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
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

/// How a call is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The kernel carries it out.
    Continue,
    /// It returns 0, and nothing is done.
    Success,
    /// It fails.
    Error(Errno),
}

/// The notify descriptor. It may be used from several threads at once.
#[derive(Debug)]
pub struct Notify {
    fd: OwnedFd,
}

impl Notify {
    /// Takes what [`install`] gave.
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Waits for the next call. `None` when no process with the filter is left.
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
        // SAFETY: it is plain numbers, and is all zero as it must be.
        let mut message: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the request is made from the size of the structure that it is given, into which the kernel writes no more than
        // that size.
        unsafe { ioctls::receive(self.fd.as_raw_fd(), &raw mut message) }?;
        let [a, b, c, d, ..] = message.data.args;
        let Some(what) = filter::NATIVE.and_then(|arch| arch.name(message.data.nr as u32)) else {
            self.answer(message.id, Answer::Continue)?;
            return Ok(None);
        };
        Ok(Some(Call { id: message.id, tid: message.pid, what, args: [a, b, c, d] }))
    }

    /// Whether the call still waits. If so, its thread was the same one all the time since it came.
    pub fn is_valid(&self, id: u64) -> bool {
        // SAFETY: the request reads a number, which lives until the call returns.
        unsafe { ioctls::is_valid(self.fd.as_raw_fd(), &raw const id) }.is_ok()
    }

    /// Puts a duplicate of `source` onto a number of the waiting process, in the place of what is there. ENOENT if the call
    /// does not wait any more.
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
        // SAFETY: the request is made from the size of the structure that it is given, which is only read. The descriptor is
        // made in the other process.
        unsafe { ioctls::add_descriptor(self.fd.as_raw_fd(), &raw const request) }.map(drop).by_number()
    }

    /// Answers a call. ENOENT if it does not wait any more.
    pub fn answer(&self, id: u64, answer: Answer) -> Result<(), Errno> {
        let (error, flags) = match answer {
            Answer::Continue => (0, SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
            Answer::Success => (0, 0),
            Answer::Error(error) => (-error.raw(), 0),
        };
        let mut response = libc::seccomp_notif_resp { id, val: 0, error, flags };
        // SAFETY: the request is made from the size of the structure that it is given, which lives until the call returns.
        unsafe { ioctls::send(self.fd.as_raw_fd(), &raw mut response) }.map(drop).by_number()
    }
}

impl AsFd for Notify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

mod ioctls {
    // As linux/seccomp.h has them.
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
