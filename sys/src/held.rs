//! The sockets of another process, read from the kernel because the process itself cannot report them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use nix::dir::Dir;
use nix::fcntl::{OFlag, open, readlinkat};
use nix::sys::stat::{Mode, fstat};

use super::errno::{ByNumber, Errno, errno_of};
use super::listens::listens;
use super::pidfd;
use super::process::{pidfd_open, read_at_once, stat_field};
use super::spawn::FIRST_LISTENER;

/// A socket descriptor of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldSocket {
    /// The inode, which identifies the socket in the kernel.
    pub inode: u32,
    /// The process that holds it.
    pub pid: u32,
    /// Its descriptor number there.
    pub fd: u32,
}

impl HeldSocket {
    /// Whether the process still has this socket at this number.
    pub fn is_held(&self) -> bool {
        let link = fs::read_link(format!("/proc/{}/fd/{}", self.pid, self.fd));
        link.is_ok_and(|link| socket_inode(link.as_os_str().as_encoded_bytes()) == Some(self.inode))
    }

    /// Duplicates it. `None` if the process is gone or has another file at that number. EPERM if the kernel denies
    /// access (ptrace(2)).
    ///
    /// While the duplicate lives, the process's close sends nothing to the client: drop it soon.
    pub fn duplicate(&self) -> io::Result<Option<OwnedFd>> {
        let number = i32::try_from(self.fd).map_err(|_| Errno::EBADF)?;
        match pidfd_open(self.pid).and_then(|pidfd| descriptor_of(pidfd, number)) {
            Ok(fd) => Ok(is_among(&fd, &BTreeSet::from([self.inode])).then_some(fd)),
            Err(error) if matches!(errno_of(&error), Some(Errno::ESRCH | Errno::EBADF)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Duplicates the descriptor at a number of a process or thread; close-on-exec. EBADF if that number is not open, EPERM
/// if the kernel denies access (ptrace(2)).
pub fn descriptor_of(process: impl AsFd, number: RawFd) -> io::Result<OwnedFd> {
    Ok(pidfd::get(process.as_fd(), number)?)
}

/// Iterates over the sockets of a process; reads `/proc/<pid>/fd` (proc(5)) lazily. Empty if the process is gone or
/// exiting. Works for processes of the same user, and for root.
pub fn sockets_of(pid: u32) -> io::Result<impl Iterator<Item = HeldSocket>> {
    let path = format!("/proc/{pid}/fd");
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let directory = match open(path.as_str(), flags, Mode::empty()).by_number() {
        Ok(directory) => Some((Dir::from_fd(directory.try_clone()?).by_number()?, directory)),
        Err(Errno::ENOENT | Errno::ESRCH) => None,
        Err(Errno::EACCES | Errno::EPERM) if is_exiting(pid) => None,
        Err(error) => {
            let error = io::Error::from(error);
            let why = format!(
                "cannot see which sockets process {pid} has ({path}): {error}; run handoff as its user or as root"
            );
            return Err(io::Error::new(error.kind(), why));
        }
    };
    Ok(directory.into_iter().flat_map(move |(entries, directory)| {
        entries.into_iter().map_while(Result::ok).filter_map(move |entry| {
            let fd = entry.file_name().to_str().ok()?.parse().ok()?;
            let link = readlinkat(&directory, entry.file_name()).ok()?;
            Some(HeldSocket { inode: socket_inode(link.as_encoded_bytes())?, pid, fd })
        })
    }))
}

/// Returns those of `sockets` that none of the processes holds. An error if one of the processes cannot be examined.
pub fn held_by_none(pids: &[u32], mut sockets: BTreeSet<u32>) -> io::Result<BTreeSet<u32>> {
    for pid in pids {
        for held in sockets_of(*pid)? {
            sockets.remove(&held.inode);
            if sockets.is_empty() {
                return Ok(sockets);
            }
        }
    }
    Ok(sockets)
}

/// Whether a process is exiting or gone. Then reading its descriptors needs privilege.
fn is_exiting(pid: u32) -> bool {
    match read_at_once(&format!("/proc/{pid}/stat")) {
        Ok(stat) => {
            stat_field::<u32>(&stat, 9).is_some_and(|flags| flags & libc::PF_EXITING.unsigned_abs() != 0)
        }
        Err(_) => true,
    }
}

/// Parses a link of `/proc/<pid>/fd`: `socket:[4711]`.
fn socket_inode(link: &[u8]) -> Option<u32> {
    let number = link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// Whether `fd` is one of `sockets`.
pub fn is_among(fd: impl AsFd, sockets: &BTreeSet<u32>) -> bool {
    fstat(fd).is_ok_and(|found| u32::try_from(found.st_ino).is_ok_and(|inode| sockets.contains(&inode)))
}

/// Duplicates the first `count` listeners that a process inherited. An error if the kernel denies access (ptrace(2)) or
/// the process has closed them.
pub fn inherited_listeners(pid: u32, count: usize) -> io::Result<Vec<OwnedFd>> {
    let pidfd = pidfd_open(pid)?;
    let numbers = (FIRST_LISTENER..).take(count);
    numbers
        .map(|number| {
            let fd = descriptor_of(&pidfd, number)?;
            match listens(&fd) {
                Ok(true) => Ok(fd),
                Ok(false) => Err(io::Error::other(format!("its descriptor {number} does not listen"))),
                Err(error) => Err(error.into()),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::reap_blocking;
    use crate::spawn::{SpawnSpec, spawn_with_listeners};
    use std::io::Write;
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;

    #[test]
    fn sockets_are_found_while_they_are_held() {
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let own = std::process::id();
        let held = sockets_of(own).unwrap().find(|held| held.fd == socket.as_raw_fd() as u32).unwrap();
        assert!(held.is_held());
        assert!(!HeldSocket { inode: held.inode + 1, ..held }.is_held());
        drop(socket);
        assert!(!held.is_held());
        assert_eq!(sockets_of(u32::MAX).unwrap().count(), 0);
        assert_eq!(socket_inode(b"socket:[4711]"), Some(4711));
        assert_eq!(socket_inode(b"pipe:[4711]"), None);
        assert_eq!(socket_inode(b""), None);
    }

    #[test]
    fn the_listeners_of_a_child_are_found() {
        let null = || fs::File::options().write(true).open("/dev/null").unwrap();
        let spec = SpawnSpec {
            binary: "/bin/sleep".into(),
            args: vec!["60".into()],
            env: Vec::new(),
            working_dir: "/".into(),
            stdout: null().into(),
            stderr: null().into(),
            channel: None,
            files_limit: None,
        };
        let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let spawned = spawn_with_listeners(spec, &[listeners[0].as_fd(), listeners[1].as_fd()]).unwrap();
        let sockets = sockets_of(spawned.pid).unwrap().map(|held| held.inode).collect();
        let same = inherited_listeners(spawned.pid, 2);
        let more = inherited_listeners(spawned.pid, 3);
        crate::process::kill(spawned.pidfd.as_fd(), crate::process::Signal::SIGKILL).unwrap();
        reap_blocking(spawned.pidfd.as_fd()).unwrap();
        assert_eq!(listeners.each_ref().map(|listener| is_among(listener, &sockets)), [true, true, false]);
        assert!(more.is_err());
        match same {
            Ok(fds) => assert!(fds.iter().all(|fd| is_among(fd, &sockets))),
            // Some containers forbid it.
            Err(error) => writeln!(io::stderr(), "not allowed here: {error}").unwrap(),
        }
    }
}
