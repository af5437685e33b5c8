//! The process whose call waits: what is read from it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::wanted::{ADDRESS_MAX_BYTES, Address, Carries, Wanted};
use crate::sys::seccomp::{Call, read_memory};

/// Good only if the notification is valid after it was opened.
pub(super) struct Target {
    tid: u32,
    pidfd: OwnedFd,
    /// The process of the thread.
    pub(super) pid: u32,
}

impl Target {
    pub(super) fn open(tid: u32) -> io::Result<Target> {
        let status = fs::read_to_string(format!("/proc/{tid}/status"))?;
        let pid = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
        let pid = pid.and_then(|pid| pid.trim().parse().ok());
        let pid: u32 = pid.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Target { tid, pidfd: open_thread(tid, pid)?, pid })
    }

    /// A file or folder of the thread in `/proc`.
    pub(super) fn proc(&self, name: &str) -> PathBuf {
        Path::new("/proc").join(self.tid.to_string()).join(name)
    }

    /// A duplicate of one of its descriptors. EBADF if that is not open. EPERM if this process may not look at it.
    pub(super) fn take(&self, number: RawFd) -> io::Result<OwnedFd> {
        Ok(pidfd_getfd(&self.pidfd, number, PidfdGetfdFlags::empty())?)
    }

    /// Whether one of its descriptors is close-on-exec.
    pub(super) fn closes_on_exec(&self, number: RawFd) -> io::Result<bool> {
        let text = fs::read_to_string(self.proc("fdinfo").join(number.to_string()))?;
        let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
        let flags = flags.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(OFlags::from_bits_retain(flags).contains(OFlags::CLOEXEC))
    }

    /// The address that a bind gives. `None` for one that the kernel will refuse.
    pub(super) fn address(&self, call: &Call) -> io::Result<Option<Address>> {
        let mut buffer = [0; ADDRESS_MAX_BYTES];
        // The kernel takes the lower half of the register.
        let Some(bytes) = usize::try_from(call.args[2] as u32).ok().and_then(|len| buffer.get_mut(..len))
        else {
            return Ok(None);
        };
        read_memory(self.tid, call.args[1], bytes)?;
        let address = Address::read(bytes);
        let is_relative = matches!(&address, Some(Address::Unix(path)) if path.is_relative());
        Ok(match address {
            Some(address) if is_relative => Some(address.below(&fs::read_link(self.proc("cwd"))?)),
            address => address,
        })
    }
}

/// What `socket` is to be bound to.
pub(super) fn wanted(address: Address, socket: impl AsFd) -> io::Result<Wanted> {
    let v6_only = match sockopt::socket_domain(&socket)? {
        AddressFamily::INET6 => sockopt::ipv6_v6only(&socket)?,
        _ => false,
    };
    let carries = match sockopt::socket_type(&socket)? {
        SocketType::STREAM => Carries::Streams,
        SocketType::DGRAM => Carries::Datagrams,
        _ => Carries::Other,
    };
    Ok(Wanted { address, carries, v6_only })
}

/// A thread may have a table of descriptors of its own. Before kernel 6.9 only processes can be opened.
fn open_thread(tid: u32, pid: u32) -> io::Result<OwnedFd> {
    const PIDFD_THREAD: PidfdFlags = PidfdFlags::from_bits_retain(OFlags::EXCL.bits());
    let open = |id: u32, flags| {
        let id = i32::try_from(id).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
        pidfd_open(id, flags)
    };
    match open(tid, PIDFD_THREAD) {
        Err(Errno::INVAL) => Ok(open(pid, PidfdFlags::empty())?),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::{FdFlags, fcntl_setfd};
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_thread_is_looked_at_as_a_part_of_its_process() {
        let listener = TcpListener::bind("[::1]:0").unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let tid = rustix::thread::gettid().as_raw_nonzero().get() as u32;
                let target = Target::open(tid).unwrap();
                assert_eq!(target.pid, std::process::id());
                let number = listener.as_raw_fd();
                let taken = target.take(number).unwrap();
                let cookie = |fd: &dyn Fn() -> io::Result<u64>| fd().unwrap();
                let theirs = || Ok(sockopt::socket_cookie(&taken)?);
                let own = || Ok(sockopt::socket_cookie(&listener)?);
                assert_eq!(cookie(&theirs), cookie(&own));
                assert!(target.closes_on_exec(number).unwrap());
                fcntl_setfd(&listener, FdFlags::empty()).unwrap();
                assert!(!target.closes_on_exec(number).unwrap());
                assert!(target.take(9999).is_err());
            });
        });
        assert!(Target::open(0).is_err());
    }

    #[test]
    fn an_address_is_read_from_memory() {
        let target = Target::open(std::process::id()).unwrap();
        let bytes = [&[1, 0][..], b"a.sock\0"].concat();
        let call = |pointer: u64, len: u64| Call {
            id: 1,
            tid: std::process::id(),
            what: crate::sys::seccomp::What::Bind,
            args: [0, pointer, len],
        };
        let expected = std::env::current_dir().unwrap().join("a.sock");
        let read = target.address(&call(bytes.as_ptr() as u64, bytes.len() as u64)).unwrap();
        assert_eq!(read, Some(Address::Unix(expected)));
        assert_eq!(target.address(&call(bytes.as_ptr() as u64, 129)).unwrap(), None);
        assert!(target.address(&call(8, 16)).is_err());
    }
}
