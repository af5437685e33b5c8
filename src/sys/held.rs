//! The listeners that a process has inherited, asked of the kernel, since the process cannot send them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::fstat;
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use super::listens::listens;
use super::process::pidfd_open;
use super::spawn::FIRST_LISTENER;

/// The inodes of the sockets that a process has open: /proc/pid/fd of proc(5). For processes of the same user.
pub fn sockets_of(pid: u32) -> io::Result<BTreeSet<u64>> {
    let links =
        fs::read_dir(format!("/proc/{pid}/fd"))?.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
    let inode =
        |link: std::path::PathBuf| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok();
    Ok(links.filter_map(inode).collect())
}

/// Whether one of `sockets` is this one.
pub fn is_among(fd: impl AsFd, sockets: &BTreeSet<u64>) -> bool {
    fstat(fd).is_ok_and(|found| sockets.contains(&found.st_ino))
}

/// Duplicates of the first `count` listeners that a process has inherited. The kernel may refuse it (ptrace(2)); and the
/// process may have closed them.
pub fn inherited_listeners(pid: u32, count: usize) -> io::Result<Vec<OwnedFd>> {
    let pidfd = pidfd_open(pid)?;
    let numbers = (FIRST_LISTENER..).take(count);
    numbers
        .map(|number| {
            let fd = pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty())?;
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
    use crate::sys::process::reap_blocking;
    use crate::sys::spawn::{SpawnSpec, spawn_with_listeners};
    use std::io::Write;
    use std::net::TcpListener;

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
        let sockets = sockets_of(spawned.pid).unwrap();
        let same = inherited_listeners(spawned.pid, 2);
        let more = inherited_listeners(spawned.pid, 3);
        crate::sys::process::kill(spawned.pidfd.as_fd(), rustix::process::Signal::KILL).unwrap();
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
