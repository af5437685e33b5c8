//! The lock of a data directory. It alone decides which process may write.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::errno::{Errno, retry};
use super::file_lock::{FlockArg, flock};

/// Name of the lock file inside the data directory.
pub const LOCK_FILE: &str = ".handoff.lock";

/// The held lock of a data directory. The file is never unlinked: after an unlink, two processes could hold locks on
/// different files of the same name.
///
/// Dropping it releases the lock only if no forked process holds a duplicate; [`DataLock::release`] always releases it.
#[derive(Debug)]
pub struct DataLock(OwnedFd);

impl DataLock {
    /// Takes the lock of the directory `data_dir`, or returns `None` if it is held. Does not block.
    pub fn try_take(data_dir: &Path) -> io::Result<Option<DataLock>> {
        let file = open(data_dir)?;
        match retry(|| flock(&file, FlockArg::LockExclusiveNonblock)) {
            Ok(()) => Ok(Some(DataLock(file))),
            Err(Errno::EWOULDBLOCK) => Ok(None),
            Err(error) => Err(named(data_dir, error.into())),
        }
    }

    /// Takes the lock of the directory `data_dir`. Blocks without limit.
    pub fn take_blocking(data_dir: &Path) -> io::Result<DataLock> {
        let file = open(data_dir)?;
        retry(|| flock(&file, FlockArg::LockExclusive)).map_err(|error| named(data_dir, error.into()))?;
        Ok(DataLock(file))
    }

    /// Whether the lock of the directory `data_dir` can be taken, or waited for. Takes nothing.
    pub fn check(data_dir: &Path) -> io::Result<()> {
        open(data_dir).map(drop)
    }

    /// Releases the lock, even if a forked process keeps a duplicate of the descriptor: the lock belongs to the open
    /// file, and unlocking through any duplicate unlocks it.
    pub fn release(self) -> io::Result<()> {
        Ok(flock(&self.0, FlockArg::Unlock)?)
    }
}

fn open(data_dir: &Path) -> io::Result<OwnedFd> {
    // std opens files close-on-exec.
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(data_dir.join(LOCK_FILE)).map(OwnedFd::from).map_err(|error| named(data_dir, error))
}

fn named(data_dir: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot lock {:?}: {error}", data_dir.join(LOCK_FILE)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    #[test]
    fn one_holder_at_a_time_and_the_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataLock::try_take(dir.path()).unwrap().unwrap();
        assert!(DataLock::try_take(dir.path()).unwrap().is_none());
        held.release().unwrap();
        assert!(dir.path().join(LOCK_FILE).exists());
        drop(DataLock::try_take(dir.path()).unwrap().unwrap());
        // Until a child of another test executes its program, it holds what was only dropped.
        let until = Instant::now() + Duration::from_secs(10);
        while DataLock::try_take(dir.path()).unwrap().is_none() {
            assert!(Instant::now() < until, "it is still held");
        }
    }

    #[test]
    fn a_waiter_gets_it_when_it_is_released_although_a_duplicate_lives() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataLock::try_take(dir.path()).unwrap().unwrap();
        let _duplicate = held.0.try_clone().unwrap();
        let (sender, receiver) = mpsc::channel();
        let path = dir.path().to_owned();
        let waiter = std::thread::spawn(move || {
            let lock = DataLock::take_blocking(&path).unwrap();
            sender.send(()).unwrap();
            lock.release().unwrap();
        });
        assert!(receiver.recv_timeout(Duration::from_millis(50)).is_err());
        held.release().unwrap();
        receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        waiter.join().unwrap();
    }

    #[test]
    fn errors_name_the_file() {
        let error = DataLock::try_take(Path::new("/nonexistent/data")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("/nonexistent/data/.handoff.lock"), "{error}");
    }
}
