//! The lock by which one daemon at a time has a state directory, and what it tells of the daemon before.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::daemon::Error;
use crate::config::Dirs;
use crate::sys::errno::Errno;
use crate::sys::file_lock::{FlockArg, flock};
use crate::sys::lock_users::LockUsers;
use crate::sys::process::ProcessId;
use crate::sys::regular;

/// The state directory, taken for this process until this is dropped. The file says who has it, and in which boot it has
/// started its services: a daemon that is lost leaves that behind, one that leaves in order takes it out.
pub(super) struct StateLock {
    /// Locked as well as the file, which can be removed.
    dir: File,
    /// `None` where it cannot be made.
    file: Option<File>,
    is_writable: bool,
    text: String,
    was_lost: bool,
}

/// How long a daemon that has ended may still hold the lock: a child that it was about to start has its files until its exec.
const HELD_BY_ENDED: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(5);

/// Locks the file. If another process holds it, that is told at once while the daemon `pid` of the file lives.
fn lock_after(file: &File, pid: Option<&str>) -> Result<(), Errno> {
    let until = Instant::now() + HELD_BY_ENDED;
    loop {
        match flock(file, FlockArg::LockExclusiveNonblock) {
            Err(Errno::EWOULDBLOCK) if Instant::now() < until && pid.is_some_and(has_ended) => {
                std::thread::sleep(TICK);
            }
            locked => return locked,
        }
    }
}

fn has_ended(pid: &str) -> bool {
    pid.parse::<u32>().is_ok_and(crate::sys::process::has_ended)
}

/// The file, and whether it can be written.
fn open_file(path: &Path) -> io::Result<(File, bool)> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    match regular::open(&mut options, path) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            Ok((regular::open_to_read(path).map_err(|_| error)?, false))
        }
        opened => Ok((opened?, true)),
    }
}

/// Whether the file system has no room for the file, or lets nobody write. The lock holds without what it says.
fn is_disk_trouble(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem)
}

impl StateLock {
    pub(super) fn take(dirs: &Dirs) -> Result<Self, Error> {
        let path = dirs.lock();
        let failed = |source| Error::Lock { path: path.clone(), source };
        let dir =
            File::open(&dirs.state).map_err(|source| Error::Lock { path: dirs.state.clone(), source })?;
        // What cannot be read is not known, and no reason not to go on.
        let found = regular::read_to_string(&path).unwrap_or_default();
        let mut words = found.split_ascii_whitespace();
        let (pid, boot) = (words.next(), words.next());
        let in_use = || {
            let holder = || LockUsers::of(&dirs.state).holders_but(&[]);
            let owner = pid.map_or_else(holder, |pid| format!("pid {pid}"));
            let owner = if owner.is_empty() { owner } else { format!(" ({owner})") };
            Error::InUse { path: dirs.state.clone(), owner }
        };
        // Another error says nothing: a network file system may lock files only.
        if let Err(Errno::EWOULDBLOCK) = lock_after(&dir, pid) {
            return Err(in_use());
        }
        let (file, is_writable) = match open_file(&path) {
            Err(error) if is_disk_trouble(&error) => (None, false),
            opened => opened.map(|(file, is_writable)| (Some(file), is_writable)).map_err(failed)?,
        };
        match file.as_ref().map_or(Ok(()), |file| lock_after(file, pid)) {
            Err(Errno::EWOULDBLOCK) => return Err(in_use()),
            // What can only be read can be locked only where the kernel does it itself.
            Err(_) if !is_writable => {}
            locked => locked.map_err(|error| failed(error.into()))?,
        }
        let own = ProcessId::own().map_err(failed)?;
        let was_lost = boot == Some(own.boot_id.as_str());
        let text = format!("{} {}\n", own.pid, own.boot_id);
        let lock = Self { dir, file, is_writable, text, was_lost };
        if was_lost {
            lock.has_started()
        } else {
            lock.write(&format!("{}\n", own.pid))
        }
        Ok(lock)
    }

    /// Whether the last daemon of this boot ended without leaving in order.
    pub(super) fn was_lost(&self) -> bool {
        self.was_lost
    }

    /// From now on the journals say what is to run. Before, one that is lost has not asked for anything: the next one begins
    /// as this one did.
    pub(super) fn has_started(&self) {
        self.write(&self.text);
    }

    /// In this order there is no moment at which the file looks as if a daemon that was lost had left in order. A full disk does not
    /// keep the services down.
    fn write(&self, text: &str) {
        let write = |file: &File| {
            file.write_all_at(text.as_bytes(), 0)?;
            file.set_len(text.len() as u64)
        };
        let refused = || io::Error::other("the disk is full or read-only");
        let file = self.file.as_ref().filter(|_| self.is_writable);
        if let Err(error) = file.map_or_else(|| Err(refused()), write) {
            tracing::warn!("the lock of the state directory does not say who has it: {error}");
        }
    }

    /// The next daemon may have it, also if the kernel keeps this process: a thread of it may wait for a file system that
    /// does not answer.
    pub(super) fn give_up(&self) {
        for file in self.file.iter().chain([&self.dir]) {
            let _ = flock(file, FlockArg::Unlock);
        }
    }

    /// From now on what runs is not to run again for having run.
    pub(super) fn leave_in_order(&self) {
        let file = self.file.as_ref().filter(|_| self.is_writable);
        let emptied = file.map_or(Ok(()), |file| file.set_len(0));
        if let Err(error) = emptied {
            tracing::warn!("the lock of the state directory still says that it is in use: {error}");
        }
    }
}
