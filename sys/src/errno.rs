//! Error numbers of the kernel.
//!
//! Numbers that nix does not know are kept. A kernel, a file system or a system call filter may return such a number,
//! for example 524 (`ENOTSUPP`). nix replaces it with one that reads as success.

use std::fmt;
use std::io;

use nix::errno::{Errno as Known, ErrnoSentinel};

/// An error number of the kernel, see errno(3).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

macro_rules! numbers {
    ($($name:ident)*) => {
        #[allow(missing_docs)]
        impl Errno {
            $(pub const $name: Errno = Errno(libc::$name);)*
        }
    };
}

numbers! {
    E2BIG EACCES EADDRINUSE EADDRNOTAVAIL EAFNOSUPPORT EAGAIN EBADF EBUSY ECHILD ECONNABORTED ECONNREFUSED ECONNRESET EDQUOT
    EEXIST EFAULT EINPROGRESS EINTR EINVAL EIO ELOOP EMFILE ENAMETOOLONG ENFILE ENOBUFS ENODATA ENODEV ENOENT ENOEXEC ENOMEM
    ENOSPC ENOSYS ENOTCONN ENOTDIR ENOTSOCK ENXIO EOPNOTSUPP EPERM EPIPE EPROTOTYPE ERANGE EROFS ESRCH ESTALE EWOULDBLOCK EXDEV
}

impl Errno {
    /// From its number.
    pub const fn from_raw(number: i32) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn raw(self) -> i32 {
        self.0
    }

    /// The error of the last failed call of this thread.
    pub fn last() -> Self {
        Self(Known::last_raw())
    }

    /// The return value of a libc call, unless it means an error.
    pub(crate) fn result<T: ErrnoSentinel + PartialEq>(returned: T) -> Result<T, Self> {
        if returned == T::sentinel() { Err(Self::last()) } else { Ok(returned) }
    }
}

/// Convert directly after the call: for a number that nix does not know, this reads the errno of the thread.
impl From<Known> for Errno {
    fn from(error: Known) -> Self {
        match error {
            Known::UnknownErrno => Self::last(),
            known => Self(known as i32),
        }
    }
}

/// The result of a nix call. Convert its errors to those of the standard library only through [`Errno`]: nix itself turns
/// a number that it does not know into 0.
pub(crate) trait ByNumber<T> {
    /// Call this directly after the nix call.
    fn by_number(self) -> Result<T, Errno>;
}

impl<T> ByNumber<T> for Result<T, Known> {
    fn by_number(self) -> Result<T, Errno> {
        self.map_err(Errno::from)
    }
}

impl From<Errno> for io::Error {
    fn from(error: Errno) -> Self {
        io::Error::from_raw_os_error(error.0)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Known::from_raw(self.0) {
            Known::UnknownErrno => write!(f, "errno {}", self.0),
            known => known.fmt(f),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        io::Error::from(*self).fmt(f)
    }
}

impl std::error::Error for Errno {}

/// The errno of a standard library error, if it came from the kernel.
pub fn errno_of(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw)
}

/// Repeats a call while a signal interrupts it (EINTR).
pub fn retry<T, E: Into<Errno>>(mut call: impl FnMut() -> Result<T, E>) -> Result<T, Errno> {
    loop {
        match call().map_err(Into::into) {
            Err(Errno::EINTR) => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::{c_long, c_ulong};
    use std::fs::File;
    use std::os::fd::OwnedFd;

    use crate::spawn::{SpawnSpec, spawn};
    use crate::{file_lock, log_pipe, poll, process, sealed, socket};

    /// A number for which no library has a name. The kernel should not return it to programs.
    const ENOTSUPP: i32 = 524;

    /// Makes the kernel refuse these calls to the calling thread, and to the processes that it starts.
    fn refuse(calls: &[c_long]) {
        let code = |class: u32, operation: u32| (class | operation | libc::BPF_K) as u16;
        let statement = |code, jt, k| libc::sock_filter { code, jt, jf: 0, k };
        let mut program = vec![statement((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0, 0)];
        for (index, call) in calls.iter().enumerate() {
            let over = (calls.len() - index) as u8;
            program.push(statement(code(libc::BPF_JMP, libc::BPF_JEQ), over, *call as u32));
        }
        program.push(statement(code(libc::BPF_RET, 0), 0, libc::SECCOMP_RET_ALLOW));
        program.push(statement(code(libc::BPF_RET, 0), 0, libc::SECCOMP_RET_ERRNO | ENOTSUPP as u32));
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        let (yes, none): (c_ulong, c_ulong) = (1, 0);
        // SAFETY: the calls only read the program and its instructions, which live until the calls return.
        let returned = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, yes, none, none, none)
                | libc::prctl(
                    libc::PR_SET_SECCOMP,
                    c_ulong::from(libc::SECCOMP_MODE_FILTER),
                    &raw const program,
                )
        };
        assert_eq!(returned, 0, "{}", io::Error::last_os_error());
    }

    fn true_as_child() -> io::Result<()> {
        let null = || OwnedFd::from(File::options().write(true).open("/dev/null").unwrap());
        let spec = SpawnSpec {
            binary: "/bin/true".into(),
            args: Vec::new(),
            env: Vec::new(),
            working_dir: "/".into(),
            stdout: null(),
            stderr: null(),
            channel: None,
            files_limit: None,
        };
        spawn(spec).map(drop)
    }

    #[test]
    fn a_number_that_has_no_name_is_kept_whatever_it_becomes() {
        let refused = std::thread::spawn(|| {
            let file = tempfile::tempfile().unwrap();
            refuse(&[
                libc::SYS_flock,
                libc::SYS_socket,
                libc::SYS_memfd_create,
                libc::SYS_pipe2,
                libc::SYS_ppoll,
                libc::SYS_pidfd_open,
                libc::SYS_execve,
            ]);
            let socket = socket::socket(
                socket::AddressFamily::Unix,
                socket::SockType::Stream,
                socket::SockFlag::empty(),
            );
            let plain = [
                ("flock", file_lock::flock(&file, file_lock::FlockArg::LockShared)),
                ("retry", retry(|| nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map(drop))),
                ("ppoll", poll::poll_one(&file, poll::PollFlags::POLLIN, None).map(drop)),
                ("socket", socket.map(drop)),
            ];
            let of_std = [
                ("memfd_create", sealed::memory_file("x").map(drop)),
                ("pipe2", log_pipe::log_pipe().map(drop)),
                ("pidfd_open", process::pidfd_open(1).map(drop)),
            ];
            let plain = plain.map(|(call, done)| (call, done.unwrap_err().raw()));
            let of_std =
                of_std.map(|(call, done)| (call, done.unwrap_err().raw_os_error().unwrap_or_default()));
            ([plain.as_slice(), of_std.as_slice()].concat(), true_as_child().unwrap_err().to_string())
        });
        let (numbers, execve) = refused.join().unwrap();
        for (call, number) in numbers {
            assert_eq!(number, ENOTSUPP, "{call}");
        }
        assert!(execve.contains("524"), "{execve}");
    }

    #[test]
    fn a_number_is_shown_with_or_without_a_name() {
        assert_eq!(format!("{:?} {:?}", Errno::ENOENT, Errno::from_raw(ENOTSUPP)), "ENOENT errno 524");
        assert!(Errno::from_raw(ENOTSUPP).to_string().contains("524"));
        assert_eq!(Errno::from(Known::EBUSY), Errno::EBUSY);
    }
}
