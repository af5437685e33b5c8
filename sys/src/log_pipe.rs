//! The log pipe of a service.
//!
//! The service's end is open for reading and writing, see fifo(7). So the pipe has a reader as long as it has a writer:
//! if the log reader dies, the service gets no SIGPIPE. Output written in the meantime waits in the pipe, and a new
//! read end can be opened through the writing process.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::pipe2;

use super::errno::ByNumber;

/// Creates a pipe. Returns the read end, and the end for a service. Both are close-on-exec. Needs `/proc`.
pub fn log_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).by_number()?;
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let both = open(path.as_str(), OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).by_number()?;
    Ok((reader, both))
}

/// Opens another read end of the log pipe of the process `pid`; nonblocking and close-on-exec. `None` if neither its
/// standard output nor its standard error is a pipe from [`log_pipe`]: the process has redirected them. Does not block.
///
/// The caller verifies by a pidfd, before and after the call, that `pid` is the right process. `NotFound` if there is
/// no such process or it has ended, `PermissionDenied` if this process may not examine it (ptrace(2), "access mode
/// checking").
pub fn log_pipe_of(pid: u32) -> io::Result<Option<OwnedFd>> {
    let process = Path::new("/proc").join(pid.to_string());
    for number in ["1", "2"] {
        let path = process.join("fd").join(number);
        let inode = match fs::read_link(&path) {
            Ok(target) => pipe_inode(&target),
            // It has closed its stream.
            Err(error) if error.kind() == io::ErrorKind::NotFound && process.join("fd/.").exists() => None,
            Err(error) => return Err(error),
        };
        let Some(inode) = inode else { continue };
        if is_open_for_both(&fs::read_to_string(process.join("fdinfo").join(number))?) {
            let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
            let pipe = open(&path, flags, Mode::empty()).by_number()?;
            // The process may have redirected the stream in between.
            return Ok((fstat(&pipe).by_number()?.st_ino == inode).then_some(pipe));
        }
    }
    Ok(None)
}

/// Device and inode: shared by all descriptors of a pipe, and unique while one of them is open.
pub fn identity(pipe: impl AsFd) -> io::Result<(u64, u64)> {
    let found = fstat(pipe).by_number()?;
    Ok((found.st_dev, found.st_ino))
}

/// Parses `pipe:[<inode>]`, a pipe without a name, see proc_pid_fd(5).
fn pipe_inode(target: &Path) -> Option<u64> {
    target.to_str()?.strip_prefix("pipe:[")?.strip_suffix(']')?.parse().ok()
}

/// Distinguishes the log pipe from pipes of a shell, say to another logger: those are open for one direction.
fn is_open_for_both(fdinfo: &str) -> bool {
    let flags = fdinfo.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_ACCMODE == libc::O_RDWR)
}

#[cfg(test)]
mod tests {
    use super::super::descriptor::{is_nonblocking, set_nonblocking};
    use super::super::process::{Signal, kill, reap_blocking};
    use super::super::spawn::{SpawnSpec, Spawned, spawn};
    use super::*;
    use std::fs::File;
    use std::io::Read;

    /// A shell with these streams. It prints "ready" on its standard error when it has run `script`.
    struct TestShell(Spawned);

    impl TestShell {
        fn start(script: &str, stdout: &OwnedFd, stderr: &OwnedFd) -> Self {
            let spec = SpawnSpec {
                binary: "/bin/sh".into(),
                args: vec!["-c".into(), script.into()],
                env: Vec::new(),
                working_dir: "/".into(),
                stdout: stdout.try_clone().unwrap(),
                stderr: stderr.try_clone().unwrap(),
                channel: None,
                files_limit: None,
            };
            Self(spawn(spec).unwrap())
        }
    }

    impl Drop for TestShell {
        fn drop(&mut self) {
            let _ = kill(&self.0.pidfd, Signal::SIGKILL);
            let _ = reap_blocking(self.0.pidfd.as_fd());
        }
    }

    #[test]
    fn what_is_written_while_nobody_reads_waits_and_then_comes_the_end() {
        let (reader, writer) = log_pipe().unwrap();
        drop(reader);
        let shell = TestShell::start("trap '' PIPE; echo one; echo two; exec sleep 1000", &writer, &writer);
        let again = log_pipe_of(shell.0.pid).unwrap().unwrap();
        assert_eq!(identity(&again).unwrap(), identity(&writer).unwrap());
        drop(writer);
        set_nonblocking(&again, false).unwrap();
        let mut again = File::from(again);
        let mut text = [0; 8];
        again.read_exact(&mut text).unwrap();
        assert_eq!(text, *b"one\ntwo\n");
        drop(shell);
        assert_eq!(again.read(&mut text).unwrap(), 0);
    }

    #[test]
    fn only_the_log_pipe_is_given_back() {
        let (_reader, writer) = log_pipe().unwrap();
        let (_other, one_way) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let null: OwnedFd = File::options().write(true).open("/dev/null").unwrap().into();
        let sleeper = "exec sleep 1000";
        for (stdout, stderr, found) in [
            (&writer, &null, true),
            (&null, &writer, true),
            (&one_way, &writer, true),
            (&null, &null, false),
            (&one_way, &one_way, false),
        ] {
            let shell = TestShell::start(sleeper, stdout, stderr);
            let pipe = log_pipe_of(shell.0.pid).unwrap();
            assert_eq!(pipe.is_some(), found);
            assert!(pipe.is_none_or(|pipe| identity(pipe).unwrap() == identity(&writer).unwrap()));
        }
        let (told, telling) = std::io::pipe().unwrap();
        let telling = OwnedFd::from(telling);
        let closed = TestShell::start("exec >&-; echo >&2; exec sleep 1000", &writer, &telling);
        (&told).read_exact(&mut [0]).unwrap();
        assert!(log_pipe_of(closed.0.pid).unwrap().is_none());
        assert_eq!(log_pipe_of(u32::MAX).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn its_ends_share_no_flag() {
        let (reader, writer) = log_pipe().unwrap();
        set_nonblocking(&reader, true).unwrap();
        assert!(!is_nonblocking(&writer).unwrap());
    }
}
