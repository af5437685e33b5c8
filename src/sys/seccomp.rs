//! System calls of another program that wait for this one: seccomp user notification, see seccomp_unotify(2).
//!
//! A filter hands `bind` and `listen` to whoever holds the notify descriptor, and leaves all other system calls alone. It
//! stays for the life of the process, and its children and whatever they execute have it too. Each call waits until it is
//! answered: with an error, with a value, or by letting the kernel carry it out.
//!
//! What is read of the waiting process is good only if the notification is valid *after* it was read: before that, the
//! process may have ended and its pid may be another's.

mod filter;
mod target;

use std::ffi::c_long;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, Updater, ioctl, opcode};
use rustix::thread::set_no_new_privs;

pub use target::{get_option, read_memory, register_at, set_option};

/// Puts the filter on the calling thread, and gives the notify descriptor, close-on-exec. For a process of one thread that
/// is about to execute a program.
///
/// A process without `CAP_SYS_ADMIN` also gets `no_new_privs`, which the kernel asks for: programs with the setuid bit that
/// it executes get no privilege from it. One with that capability does not, so that setuid goes on to work.
pub fn install() -> io::Result<OwnedFd> {
    let Some(arch) = filter::NATIVE else {
        let text =
            "system calls can be answered on x86-64 and aarch64 only; use listen-fds on this processor";
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    };
    let program = filter::program(arch);
    let killable = FILTER_FLAG_NEW_LISTENER | FILTER_FLAG_WAIT_KILLABLE_RECV;
    match attach_privileged_or_not(&program, killable) {
        // Before kernel 5.19: a signal can interrupt a call that waits, which then comes again.
        Err(Errno::INVAL) => attach_privileged_or_not(&program, FILTER_FLAG_NEW_LISTENER),
        other => other,
    }
    .map_err(explain)
}

fn attach_privileged_or_not(program: &[filter::Instruction], flags: u32) -> Result<OwnedFd, Errno> {
    match attach(program, flags) {
        Err(Errno::ACCESS) => {
            set_no_new_privs(true)?;
            attach(program, flags)
        }
        other => other,
    }
}

fn attach(program: &[filter::Instruction], flags: u32) -> Result<OwnedFd, Errno> {
    let program = Program { len: program.len() as u16, instructions: program.as_ptr() };
    // SAFETY: the program points to as many instructions as it says, which live until the call returns; the kernel copies
    // them. With these flags the call gives a new descriptor.
    let returned =
        unsafe { syscall(SYS_SECCOMP, SET_MODE_FILTER, c_long::from(flags), &raw const program as c_long) };
    if returned < 0 {
        return Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL));
    }
    // SAFETY: the kernel has just made the descriptor for this caller; it is close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(returned as RawFd) })
}

fn explain(error: Errno) -> io::Error {
    let cause = io::Error::from(error);
    let text = match error {
        Errno::BUSY => {
            "another program answers system calls of this process already (a sandbox or container runtime that uses \
             seccomp user notification), and the kernel allows only one; start the service outside of it, or use \
             listen-fds"
                .to_owned()
        }
        Errno::NOSYS | Errno::INVAL => {
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
    /// The first three arguments.
    pub args: [u64; 3],
}

/// Which system call waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// bind(2): descriptor, address, length.
    Bind,
    /// listen(2): descriptor, backlog.
    Listen,
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
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
            rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
            let events = fds[0].revents();
            if events.contains(PollFlags::IN) {
                match self.receive() {
                    // The caller was killed or interrupted in between, or uses an architecture that the filter passes.
                    Ok(None) | Err(Errno::NOENT | Errno::INTR) => {}
                    Ok(Some(call)) => return Ok(Some(call)),
                    Err(error) => return Err(error.into()),
                }
            } else if events.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
                return Ok(None);
            }
        }
    }

    fn receive(&self) -> Result<Option<Call>, Errno> {
        let mut message = Notification::default();
        // SAFETY: the opcode is made from the size of the structure that it is given, which is all zero as it must be, and
        // into which the kernel writes no more than that size.
        unsafe { ioctl(&self.fd, Updater::<NOTIF_RECV, _>::new(&mut message)) }?;
        let [a, b, c, ..] = message.args;
        let Some(what) = filter::NATIVE.and_then(|arch| arch.name(message.number as u32)) else {
            self.answer(message.id, Answer::Continue)?;
            return Ok(None);
        };
        Ok(Some(Call { id: message.id, tid: message.tid, what, args: [a, b, c] }))
    }

    /// Whether the call still waits. If so, its thread was the same one all the time since it came.
    pub fn is_valid(&self, id: u64) -> bool {
        // SAFETY: the opcode is that of a plain number which is read.
        unsafe { ioctl(&self.fd, Setter::<NOTIF_ID_VALID, u64>::new(id)) }.is_ok()
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
        const ADDFD_FLAG_SETFD: u32 = 1;
        const O_CLOEXEC: u32 = 0o2_000_000;
        let request = AddFd {
            id,
            flags: ADDFD_FLAG_SETFD,
            source: source.as_raw_fd() as u32,
            number,
            number_flags: if close_on_exec { O_CLOEXEC } else { 0 },
        };
        // SAFETY: the opcode is made from the size of the structure that it is given, which is only read. The descriptor is
        // made in the other process.
        unsafe { ioctl(&self.fd, Setter::<NOTIF_ADDFD, _>::new(request)) }
    }

    /// Answers a call. ENOENT if it does not wait any more.
    pub fn answer(&self, id: u64, answer: Answer) -> Result<(), Errno> {
        const USER_NOTIF_FLAG_CONTINUE: u32 = 1;
        let (error, flags) = match answer {
            Answer::Continue => (0, USER_NOTIF_FLAG_CONTINUE),
            Answer::Success => (0, 0),
            Answer::Error(error) => (-error.raw_os_error(), 0),
        };
        let mut response = Response { id, value: 0, error, flags };
        // SAFETY: the opcode is made from the size of the structure that it is given.
        unsafe { ioctl(&self.fd, Updater::<NOTIF_SEND, _>::new(&mut response)) }
    }
}

impl AsFd for Notify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

const MAGIC: u8 = b'!';
const NOTIF_RECV: Opcode = opcode::read_write::<Notification>(MAGIC, 0);
const NOTIF_SEND: Opcode = opcode::read_write::<Response>(MAGIC, 1);
const NOTIF_ID_VALID: Opcode = opcode::write::<u64>(MAGIC, 2);
const NOTIF_ADDFD: Opcode = opcode::write::<AddFd>(MAGIC, 3);

/// `struct seccomp_notif` of linux/seccomp.h, with the `struct seccomp_data` that ends it.
#[repr(C)]
#[derive(Default)]
struct Notification {
    id: u64,
    tid: u32,
    flags: u32,
    number: i32,
    arch: u32,
    instruction: u64,
    args: [u64; 6],
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// `struct seccomp_notif_addfd`.
#[repr(C)]
struct AddFd {
    id: u64,
    flags: u32,
    source: u32,
    number: u32,
    number_flags: u32,
}

const _: () =
    assert!(size_of::<Notification>() == 80 && size_of::<Response>() == 24 && size_of::<AddFd>() == 24);

/// `struct sock_fprog` of linux/filter.h.
#[repr(C)]
struct Program {
    len: u16,
    instructions: *const filter::Instruction,
}

const SYS_SECCOMP: c_long = if cfg!(target_arch = "aarch64") { 277 } else { 317 };
const SET_MODE_FILTER: c_long = 1;
const FILTER_FLAG_NEW_LISTENER: u32 = 1 << 3;
const FILTER_FLAG_WAIT_KILLABLE_RECV: u32 = 1 << 5;

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_to_do() {
        assert!(explain(Errno::BUSY).to_string().contains("the kernel allows only one"));
        assert!(explain(Errno::NOSYS).to_string().contains("use listen-fds"));
        assert_eq!(explain(Errno::PERM).kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn only_a_notify_descriptor_has_calls() {
        let notify = Notify::new(std::fs::File::open("/dev/null").unwrap().into());
        assert!(notify.next().is_err());
        assert!(!notify.is_valid(1));
        assert!(notify.answer(1, Answer::Success).is_err());
    }
}
