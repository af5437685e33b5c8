//! Files that a program keeps open without knowing of them: so whoever looks can tell that something of it is still there.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::Signal;

use crate::sys::process::{kill, pidfd_open};

/// A lock that the program and everything that it starts hold together with the shim. It is free only when all of them are gone.
pub(super) struct ProgramLock(File);

impl ProgramLock {
    /// Takes it. What is left of an earlier program is killed: its shim is gone, or this one would not have the data lock.
    pub(super) fn take(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self(file)),
                Err(Errno::WOULDBLOCK) => {
                    end_holders(path)?;
                    std::thread::sleep(TICK);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// For the program. The lock belongs to all duplicates together.
    pub(super) fn duplicate(&self) -> io::Result<OwnedFd> {
        Ok(self.0.try_clone()?.into())
    }
}

/// A file that is open in every process of the program. It is the last that is removed of what a shim has left: while it is there,
/// the daemon looks for the rest.
pub(super) struct Trace(File);

impl Trace {
    pub(super) fn leave(path: &Path) -> io::Result<Self> {
        Ok(Self(File::create(path)?))
    }

    pub(super) fn duplicate(&self) -> io::Result<OwnedFd> {
        Ok(self.0.try_clone()?.into())
    }
}

/// For how long it is tried to end what a shim has left.
const ENDED_WITHIN: Duration = Duration::from_secs(5);
/// A process that was killed holds its files for a moment.
const TICK: Duration = Duration::from_millis(2);

/// Kills what a shim that is gone has left, and removes its files. Blocks until nothing is left.
pub(crate) fn end_what_is_left(trace: &Path) {
    let until = Instant::now() + ENDED_WITHIN;
    while matches!(end_holders(trace), Ok(true)) && Instant::now() < until {
        std::thread::sleep(TICK);
    }
    for extension in [super::PID, "notify"] {
        let _ = fs::remove_file(trace.with_extension(extension));
    }
    let _ = fs::remove_file(trace);
}

/// Kills every process that has this file open, but for this one. `false` if there is no such file, or nobody has it. The path
/// is one that is never used again for another file.
fn end_holders(path: &Path) -> io::Result<bool> {
    let Ok(wanted) = fs::metadata(path) else { return Ok(false) };
    let mut any = false;
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == std::process::id() {
            continue;
        }
        // Opened before the look, so that the signal goes to whoever was looked at. The number of a file that is removed is at
        // once that of another one, which any process of this machine may have opened: if the file is there after the look,
        // its number was its own.
        if let Ok(process) = pidfd_open(pid)
            && has_open(pid, &wanted)
            && fs::metadata(path).is_ok_and(|found| is_same_file(&found, &wanted))
        {
            any = true;
            let _ = kill(&process, Signal::KILL);
        }
    }
    Ok(any)
}

/// Processes of others cannot be looked at, and have nothing of ours.
fn has_open(pid: u32, wanted: &fs::Metadata) -> bool {
    let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    fds.flatten().any(|fd| fs::metadata(fd.path()).is_ok_and(|found| is_same_file(&found, wanted)))
}

fn is_same_file(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};

    /// Before it executes its program, a child that one test starts has what the other one has open.
    fn alone() -> MutexGuard<'static, ()> {
        static ALONE: Mutex<()> = Mutex::new(());
        ALONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[test]
    fn whoever_has_the_file_open_is_ended_and_nobody_else() {
        let _alone = alone();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program.lock");
        let lock = ProgramLock::take(&path).unwrap();
        let mut holder =
            Command::new("/bin/cat").stdin(Stdio::piped()).stdout(lock.duplicate().unwrap()).spawn().unwrap();
        let mut other = Command::new("/bin/cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        drop(lock);
        let again = ProgramLock::take(&path).unwrap();
        assert!(!holder.wait().unwrap().success());
        assert!(other.try_wait().unwrap().is_none());
        drop(other.stdin.take());
        assert!(other.wait().unwrap().success());
        drop(again);
        assert!(!end_holders(&path).unwrap());
        assert!(!end_holders(&dir.path().join("missing")).unwrap());
    }

    #[test]
    fn nobody_is_ended_whose_file_got_the_number_of_one_that_was_removed() {
        let _alone = alone();
        let dir = tempfile::tempdir().unwrap();
        for n in 0..200 {
            let path = dir.path().join(format!("trace-{n}"));
            File::create(&path).unwrap();
            let (begins, begun) = mpsc::channel();
            std::thread::scope(|scope| {
                let looking = scope.spawn(|| {
                    begins.send(()).unwrap();
                    end_holders(&path)
                });
                // At any moment of the look.
                begun.recv().unwrap();
                std::thread::sleep(Duration::from_micros(n % 20 * 20));
                fs::remove_file(&path).unwrap();
                let next = File::create(dir.path().join(format!("next-{n}"))).unwrap();
                let mut other = Command::new("/bin/cat").stdin(Stdio::piped()).stdout(next).spawn().unwrap();
                looking.join().unwrap().unwrap();
                drop(other.stdin.take());
                assert!(other.wait().unwrap().success(), "in round {n}");
            });
        }
    }
}
