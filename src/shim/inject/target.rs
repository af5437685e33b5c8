//! The process whose call waits.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::bind_request::{ADDRESS_MAX_BYTES, BindAddress, BindRequest, SocketKind};
use crate::slots::Access;
use crate::sys::descriptor::closes_on_exec;
use crate::sys::errno::Errno;
use crate::sys::held::descriptor_of;
use crate::sys::process::pidfd_open_thread;
use crate::sys::seccomp::{Call, read_memory};
use crate::sys::socket::{AddressFamily, SockType, family_of, is_v6_only, kind_of};

/// `S_ISGID` on a directory: new files get the directory's group.
const SET_GROUP_ID: u32 = 0o2000;

/// Valid only if the notification is checked after this was opened.
pub(super) struct CallingThread {
    tid: u32,
    pidfd: OwnedFd,
    /// The process of the thread.
    pub(super) pid: u32,
}

impl CallingThread {
    pub(super) fn open(tid: u32) -> io::Result<CallingThread> {
        let status = fs::read_to_string(format!("/proc/{tid}/status"))?;
        let pid = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
        let pid = pid.and_then(|pid| pid.trim().parse().ok());
        let pid: u32 = pid.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(CallingThread { tid, pidfd: pidfd_open_thread(tid, pid)?, pid })
    }

    /// A path below the thread's `/proc` directory.
    pub(super) fn proc(&self, name: &str) -> PathBuf {
        Path::new("/proc").join(self.tid.to_string()).join(name)
    }

    /// Duplicates one of its descriptors. EBADF if it is not open, EPERM if access is denied.
    pub(super) fn take(&self, number: RawFd) -> io::Result<OwnedFd> {
        descriptor_of(&self.pidfd, number)
    }

    /// Whether one of its descriptors is close-on-exec.
    pub(super) fn closes_on_exec(&self, number: RawFd) -> io::Result<bool> {
        let text = fs::read_to_string(self.proc("fdinfo").join(number.to_string()))?;
        let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
        let flags = flags.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(closes_on_exec(flags))
    }

    /// A zero-terminated text in its memory, such as a path.
    pub(super) fn text(&self, address: u64) -> io::Result<Vec<u8>> {
        const PAGE_BYTES: u64 = 4096;
        const PATH_MAX_BYTES: usize = 4096;
        let mut text = Vec::new();
        while text.len() < PATH_MAX_BYTES {
            // The next page may not be mapped.
            let at = address.wrapping_add(text.len() as u64);
            let mut part = vec![0; (PAGE_BYTES - at % PAGE_BYTES) as usize];
            read_memory(self.tid, at, &mut part)?;
            let end = part.iter().position(|byte| *byte == 0);
            text.extend_from_slice(&part[..end.unwrap_or(part.len())]);
            if end.is_some() {
                return Ok(text);
            }
        }
        Err(Errno::ENAMETOOLONG.into())
    }

    /// One of its paths as this process can follow it: from its root, or from one of its directories.
    pub(super) fn below(&self, directory: RawFd, path: &Path) -> PathBuf {
        match path.strip_prefix("/") {
            Ok(path) => self.proc("root").join(path),
            Err(_) if directory < 0 => self.proc("cwd").join(path),
            Err(_) => self.proc("fd").join(directory.to_string()).join(path),
        }
    }

    /// The access rights that a socket bound at this path would get: from the process's umask, user and group, or from
    /// the directory's group.
    pub(super) fn access_of_new(&self, path: &Path) -> io::Result<Access> {
        let status = fs::read_to_string(self.proc("status"))?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        // The values are real, effective, saved, and for files.
        let for_files = |name| field(name)?.split_ascii_whitespace().nth(3)?.parse().ok();
        let umask =
            field("Umask").and_then(|umask| u32::from_str_radix(umask.trim(), 8).ok()).unwrap_or(0o022);
        let directory = path.parent().map(fs::metadata).transpose()?;
        let gives_group = directory.is_some_and(|directory| directory.mode() & SET_GROUP_ID != 0);
        let group = if gives_group { None } else { for_files("Gid") };
        Ok(Access { mode: Some(0o777 & !umask), user: for_files("Uid"), group })
    }

    /// The address argument of a bind. `None` if the kernel will refuse it.
    pub(super) fn address(&self, call: &Call) -> io::Result<Option<BindAddress>> {
        let mut buffer = [0; ADDRESS_MAX_BYTES];
        // The kernel reads the lower half of the register.
        let Some(bytes) = usize::try_from(call.args[2] as u32).ok().and_then(|len| buffer.get_mut(..len))
        else {
            return Ok(None);
        };
        read_memory(self.tid, call.args[1], bytes)?;
        let address = BindAddress::read(bytes);
        let is_relative = matches!(&address, Some(BindAddress::Unix(path)) if path.is_relative());
        Ok(match address {
            Some(address) if is_relative => Some(address.below(&fs::read_link(self.proc("cwd"))?)),
            address => address,
        })
    }
}

/// The address for `socket`, with the properties of the socket.
pub(super) fn wanted(address: BindAddress, socket: impl AsFd) -> io::Result<BindRequest> {
    let v6 = family_of(&socket)? == Some(AddressFamily::Inet6);
    let v6_only = v6 && is_v6_only(&socket)?;
    let carries = match kind_of(&socket)? {
        Some(SockType::Stream) => SocketKind::Streams,
        Some(SockType::Datagram) => SocketKind::Datagrams,
        _ => SocketKind::Other,
    };
    Ok(BindRequest { address, kind: carries, v6, v6_only })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::descriptor::set_close_on_exec;
    use crate::sys::own_process::thread;
    use crate::sys::socket::cookie_of;
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_thread_is_looked_at_as_a_part_of_its_process() {
        let listener = TcpListener::bind("[::1]:0").unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let tid = thread();
                let target = CallingThread::open(tid).unwrap();
                assert_eq!(target.pid, std::process::id());
                let number = listener.as_raw_fd();
                let taken = target.take(number).unwrap();
                let cookie = |fd: &dyn Fn() -> io::Result<u64>| fd().unwrap();
                let theirs = || Ok(cookie_of(&taken)?);
                let own = || Ok(cookie_of(&listener)?);
                assert_eq!(cookie(&theirs), cookie(&own));
                assert!(target.closes_on_exec(number).unwrap());
                set_close_on_exec(&listener, false).unwrap();
                assert!(!target.closes_on_exec(number).unwrap());
                assert!(target.take(9999).is_err());
            });
        });
        assert!(CallingThread::open(0).is_err());
    }

    #[test]
    fn an_address_is_read_from_memory() {
        let target = CallingThread::open(std::process::id()).unwrap();
        let bytes = [&[1, 0][..], b"a.sock\0"].concat();
        let call = |pointer: u64, len: u64| Call {
            id: 1,
            tid: std::process::id(),
            system_call: crate::sys::seccomp::SystemCall::Bind,
            args: [0, pointer, len, 0],
        };
        let expected = std::env::current_dir().unwrap().join("a.sock");
        let read = target.address(&call(bytes.as_ptr() as u64, bytes.len() as u64)).unwrap();
        assert_eq!(read, Some(BindAddress::Unix(expected)));
        assert_eq!(target.address(&call(bytes.as_ptr() as u64, 129)).unwrap(), None);
        assert!(target.address(&call(8, 16)).is_err());
    }
}
