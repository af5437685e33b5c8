//! The log pipes of a process: one for its standard output, one for its standard error.
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

/// A standard stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

const MARK: &[u8; 9] = b"\x1elog-pid ";
/// Length of a pid mark, in bytes.
pub const PID_MARK_BYTES: usize = 20;

/// The first bytes that a process of [`super::spawn::spawn_logged`] writes into its log pipes, before it executes its
/// program: so what is in a pipe belongs to a known process, even if every other process that knew it has died.
pub(super) fn pid_mark(pid: u32) -> [u8; PID_MARK_BYTES] {
    let mut mark = [b'\n'; PID_MARK_BYTES];
    let mut left = pid;
    // This runs between clone and exec: it must not panic.
    for (at, byte) in mark.iter_mut().enumerate().rev().skip(1) {
        match MARK.get(at) {
            Some(fixed) => *byte = *fixed,
            None => (*byte, left) = (b'0' + (left % 10) as u8, left / 10),
        }
    }
    mark
}

/// The pid, if these bytes begin with a mark.
pub fn marked_pid(bytes: &[u8]) -> Option<u32> {
    let digits = bytes.get(..PID_MARK_BYTES)?.strip_prefix(MARK)?.strip_suffix(b"\n")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Opens another read end of each log pipe of the process `pid`; nonblocking and close-on-exec. None for a stream that
/// the process has redirected. If both streams lead to one pipe, the stream is `None`. Does not block.
///
/// The caller verifies by a pidfd, before and after the call, that `pid` is the right process. `NotFound` if there is
/// no such process or it has ended, `PermissionDenied` if this process may not examine it (ptrace(2), "access mode
/// checking").
pub fn log_pipes_of(pid: u32) -> io::Result<Vec<(Option<Stream>, OwnedFd)>> {
    let mut found = Vec::new();
    for (number, stream) in [("1", Stream::Out), ("2", Stream::Err)] {
        if let Some(pipe) = log_pipe_at(pid, number)? {
            found.push((Some(stream), pipe));
        }
    }
    if let [(out, first), (_, second)] = &mut found[..]
        && identity(&*first)? == identity(&*second)?
    {
        *out = None;
        found.pop();
    }
    Ok(found)
}

fn log_pipe_at(pid: u32, number: &str) -> io::Result<Option<OwnedFd>> {
    let process = Path::new("/proc").join(pid.to_string());
    let path = process.join("fd").join(number);
    let inode = match fs::read_link(&path) {
        Ok(target) => pipe_inode(&target),
        // It has closed its stream.
        Err(error) if error.kind() == io::ErrorKind::NotFound && process.join("fd/.").exists() => None,
        Err(error) => return Err(error),
    };
    let Some(inode) = inode else { return Ok(None) };
    if !is_open_for_both(&fs::read_to_string(process.join("fdinfo").join(number))?) {
        return Ok(None);
    }
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let pipe = open(&path, flags, Mode::empty()).by_number()?;
    // The process may have redirected the stream in between.
    Ok((fstat(&pipe).by_number()?.st_ino == inode).then_some(pipe))
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
    use super::super::spawn::{SpawnSpec, Spawned, spawn, spawn_logged};
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
        let [(None, again)] = &mut log_pipes_of(shell.0.pid).unwrap()[..] else { panic!("one pipe") };
        assert_eq!(identity(&*again).unwrap(), identity(&writer).unwrap());
        drop(writer);
        set_nonblocking(&*again, false).unwrap();
        let mut again = File::from(again.try_clone().unwrap());
        let mut text = [0; 8];
        again.read_exact(&mut text).unwrap();
        assert_eq!(text, *b"one\ntwo\n");
        drop(shell);
        assert_eq!(again.read(&mut text).unwrap(), 0);
    }

    #[test]
    fn only_log_pipes_are_given_back_with_their_streams() {
        let (_reader, writer) = log_pipe().unwrap();
        let (_second_reader, second) = log_pipe().unwrap();
        let (_other, one_way) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let null: OwnedFd = File::options().write(true).open("/dev/null").unwrap().into();
        let sleeper = "exec sleep 1000";
        let (out, err) = (Some(Stream::Out), Some(Stream::Err));
        for (stdout, stderr, expected) in [
            (&writer, &null, vec![(out, &writer)]),
            (&null, &writer, vec![(err, &writer)]),
            (&one_way, &writer, vec![(err, &writer)]),
            (&writer, &second, vec![(out, &writer), (err, &second)]),
            (&writer, &writer, vec![(None, &writer)]),
            (&null, &null, vec![]),
            (&one_way, &one_way, vec![]),
        ] {
            let shell = TestShell::start(sleeper, stdout, stderr);
            let found = log_pipes_of(shell.0.pid).unwrap();
            let found: Vec<_> = found.iter().map(|(stream, fd)| (*stream, identity(fd).unwrap())).collect();
            let expected = expected.iter().map(|(stream, fd)| (*stream, identity(fd).unwrap()));
            assert_eq!(found, expected.collect::<Vec<_>>());
        }
        let (told, telling) = std::io::pipe().unwrap();
        let telling = OwnedFd::from(telling);
        let closed = TestShell::start("exec >&-; echo >&2; exec sleep 1000", &writer, &telling);
        (&told).read_exact(&mut [0]).unwrap();
        assert!(log_pipes_of(closed.0.pid).unwrap().is_empty());
        assert_eq!(log_pipes_of(u32::MAX).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_process_marks_its_pipes_with_its_pid_before_its_program_runs() {
        for pid in [0, 7, 4711, u32::MAX] {
            assert_eq!(marked_pid(&pid_mark(pid)), Some(pid));
        }
        assert_eq!(marked_pid(b"\x1elog-pid 4711\n and more text"), None);
        let (mut readers, mut writers) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let (reader, writer) = log_pipe().unwrap();
            readers.push(reader);
            writers.push(writer);
        }
        let spec = SpawnSpec {
            binary: "/bin/sh".into(),
            args: vec!["-c".into(), "echo out; echo err >&2".into()],
            env: Vec::new(),
            working_dir: "/".into(),
            stderr: writers.pop().unwrap(),
            stdout: writers.pop().unwrap(),
            channel: None,
            files_limit: None,
        };
        let shell = TestShell(spawn_logged(spec, &[]).unwrap());
        for (reader, text) in readers.into_iter().zip(["out\n", "err\n"]) {
            let mut found = String::new();
            File::from(reader).read_to_string(&mut found).unwrap();
            assert_eq!(marked_pid(found.as_bytes()), Some(shell.0.pid));
            assert_eq!(&found[PID_MARK_BYTES..], text);
        }
    }

    #[test]
    fn its_ends_share_no_flag() {
        let (reader, writer) = log_pipe().unwrap();
        set_nonblocking(&reader, true).unwrap();
        assert!(!is_nonblocking(&writer).unwrap());
    }
}
