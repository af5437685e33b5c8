//! The sockets that a process has, asked of the kernel, since the process cannot tell.

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

/// A descriptor of a process that is a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldSocket {
    /// The inode, by which the kernel names the socket.
    pub inode: u32,
    /// Who has it.
    pub pid: u32,
    /// At which number.
    pub fd: u32,
}

impl HeldSocket {
    /// Whether it is still so.
    pub fn is_held(&self) -> bool {
        let link = fs::read_link(format!("/proc/{}/fd/{}", self.pid, self.fd));
        link.is_ok_and(|link| socket_inode(link.as_os_str().as_encoded_bytes()) == Some(self.inode))
    }

    /// A duplicate of it; `None` if the process is gone or has another file there by now. EPERM where the kernel refuses it
    /// (ptrace(2)). While a duplicate lives, a close by the process sends nothing: keep it for a moment only.
    pub fn duplicate(&self) -> io::Result<Option<OwnedFd>> {
        let number = i32::try_from(self.fd).map_err(|_| Errno::EBADF)?;
        match pidfd_open(self.pid).and_then(|pidfd| descriptor_of(pidfd, number)) {
            Ok(fd) => Ok(is_among(&fd, &BTreeSet::from([self.inode])).then_some(fd)),
            Err(error) if matches!(errno_of(&error), Some(Errno::ESRCH | Errno::EBADF)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A duplicate of what a process or thread has at this number, close-on-exec. EBADF if that is nothing, EPERM where the kernel refuses
/// it (ptrace(2)).
pub fn descriptor_of(process: impl AsFd, number: RawFd) -> io::Result<OwnedFd> {
    Ok(pidfd::get(process.as_fd(), number)?)
}

/// The sockets that a process has, read from `/proc/<pid>/fd` (proc(5)) one after the other as they are asked for. None if
/// the process is gone or about to be. For processes of the same user, and for root.
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

/// Which of these sockets none of the processes has. An error if that cannot be seen of one of them.
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

/// Whether a process has begun to end, or is gone: then its files cannot be seen without privilege any more.
fn is_exiting(pid: u32) -> bool {
    match read_at_once(&format!("/proc/{pid}/stat")) {
        Ok(stat) => {
            stat_field::<u32>(&stat, 9).is_some_and(|flags| flags & libc::PF_EXITING.unsigned_abs() != 0)
        }
        Err(_) => true,
    }
}

/// A link of `/proc/<pid>/fd`: `socket:[4711]`.
fn socket_inode(link: &[u8]) -> Option<u32> {
    let number = link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// Whether one of `sockets` is this one.
pub fn is_among(fd: impl AsFd, sockets: &BTreeSet<u32>) -> bool {
    fstat(fd).is_ok_and(|found| u32::try_from(found.st_ino).is_ok_and(|inode| sockets.contains(&inode)))
}

/// Duplicates of the first `count` listeners that a process has inherited. The kernel may refuse it (ptrace(2)); and the
/// process may have closed them.
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
