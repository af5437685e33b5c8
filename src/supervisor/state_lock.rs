//! The lock that gives a state directory to one daemon at a time, and what it says about the previous daemon.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::daemon::Error;
use crate::config::Dirs;
use crate::sys::errno::Errno;
use crate::sys::file_lock::{FlockArg, flock};
use crate::sys::lock_users::LockUsers;
use crate::sys::process::ProcessId;
use crate::sys::regular;

/// The state directory, held for this process until this is dropped. The file says which process has it, and in which
/// boot it has started its services. A daemon that is lost leaves that behind; one that leaves in order removes it.
pub(super) struct StateLock {
    /// Locked as well as the file, which can be removed.
    dir: File,
    path: PathBuf,
    /// `None` if it cannot be created.
    file: RefCell<Option<File>>,
    is_writable: Cell<bool>,
    /// What the file should say.
    wanted: RefCell<String>,
    is_written: Cell<bool>,
    text: String,
    was_lost: bool,
}

/// How long a daemon that has ended may still hold the lock: a child that it was about to start has its files until
/// the exec.
const HELD_BY_ENDED: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(5);
/// The pause before another attempt on a full or read-only disk.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Locks the file. If another process holds it, fails at once as long as the daemon `pid` of the file lives.
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

/// Opens the file. Returns whether it can be written.
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

/// Whether the file system has no room for the file, or is read-only. The lock is valid without its text.
fn is_disk_error(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem)
}

impl StateLock {
    pub(super) fn take(dirs: &Dirs) -> Result<Self, Error> {
        let path = dirs.lock();
        let failed = |source| Error::Lock { path: path.clone(), source };
        let dir =
            File::open(&dirs.state).map_err(|source| Error::Lock { path: dirs.state.clone(), source })?;
        // A file that cannot be read says nothing, and is no reason to stop.
        let found = regular::read_to_string(&path).unwrap_or_default();
        let mut words = found.split_ascii_whitespace();
        let (pid, boot) = (words.next(), words.next());
        let in_use = || {
            let holder = || LockUsers::of(&dirs.state).holders_but(&[]);
            let owner = pid.map_or_else(holder, |pid| format!("pid {pid}"));
            let owner = if owner.is_empty() { owner } else { format!(" ({owner})") };
            Error::InUse { path: dirs.state.clone(), owner }
        };
        // Another error says nothing: a network file system may only lock files.
        if let Err(Errno::EWOULDBLOCK) = lock_after(&dir, pid) {
            return Err(in_use());
        }
        let (file, is_writable) = match open_file(&path) {
            Err(error) if is_disk_error(&error) => (None, false),
            opened => opened.map(|(file, is_writable)| (Some(file), is_writable)).map_err(failed)?,
        };
        match file.as_ref().map_or(Ok(()), |file| lock_after(file, pid)) {
            Err(Errno::EWOULDBLOCK) => return Err(in_use()),
            // A read-only file can be locked only where the kernel itself does it.
            Err(_) if !is_writable => {}
            locked => locked.map_err(|error| failed(error.into()))?,
        }
        let own = ProcessId::own().map_err(failed)?;
        let was_lost = boot == Some(own.boot_id.as_str());
        let text = format!("{} {}\n", own.pid, own.boot_id);
        let (file, is_writable) = (RefCell::new(file), Cell::new(is_writable));
        let (wanted, is_written) = (RefCell::default(), Cell::default());
        let lock = Self { dir, path, file, is_writable, wanted, is_written, text, was_lost };
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

    /// From now on the journals say what is to run. A daemon that is lost before this has not asked for anything: the
    /// next one begins as this one did.
    pub(super) fn has_started(&self) {
        self.write(&self.text);
    }

    /// Writes the text, and cuts the file after it. In this order, there is no moment at which the file looks as if a
    /// daemon that was lost had left in order. A full disk does not keep the services down.
    fn write(&self, text: &str) {
        text.clone_into(&mut self.wanted.borrow_mut());
        self.is_written.set(false);
        if let Err(error) = self.try_write() {
            tracing::warn!("the lock of the state directory does not say who has it: {error}");
        }
    }

    fn try_write(&self) -> io::Result<()> {
        let (wanted, file) = (self.wanted.borrow(), self.file.borrow());
        let refused = || io::Error::other("the disk is full or read-only");
        let file = file.as_ref().filter(|_| self.is_writable.get()).ok_or_else(refused)?;
        file.write_all_at(wanted.as_bytes(), 0)?;
        file.set_len(wanted.len() as u64)?;
        self.is_written.set(true);
        Ok(())
    }

    /// If the disk had no room or was read-only, writes the text as soon as that is over. Without the text, the next
    /// daemon would not know that this one was lost, and would not start what has run.
    pub(super) async fn write_when_there_is_room(self: Rc<Self>) {
        while !self.is_written.get() {
            sleep(RETRY_PAUSE).await;
            // The file is to say nothing any more.
            if self.wanted.borrow().is_empty() {
                return;
            }
            if self.file.borrow().is_none() || !self.is_writable.get() {
                self.open_again();
            }
            if self.try_write().is_ok() {
                tracing::info!("the lock of the state directory says who has it");
            }
        }
    }

    /// Opens the file again. The directory stays locked meanwhile. If another process has locked the file, it keeps
    /// it.
    fn open_again(&self) {
        let Ok((file, true)) = open_file(&self.path) else { return };
        // The lock belongs to the open file, so the old one is closed first.
        self.file.replace(None);
        if flock(&file, FlockArg::LockExclusiveNonblock).is_ok() {
            self.file.replace(Some(file));
            self.is_writable.set(true);
        }
    }

    /// Lets the next daemon have the lock, even if the kernel keeps this process: one of its threads may wait for a
    /// file system that does not answer.
    pub(super) fn give_up(&self) {
        for file in self.file.borrow().iter().chain([&self.dir]) {
            let _ = flock(file, FlockArg::Unlock);
        }
    }

    /// From now on, what runs is not to run again just because it ran.
    pub(super) fn leave_in_order(&self) {
        self.wanted.borrow_mut().clear();
        let file = self.file.borrow();
        let file = file.as_ref().filter(|_| self.is_writable.get());
        let emptied = file.map_or(Ok(()), |file| file.set_len(0));
        if let Err(error) = emptied {
            tracing::warn!("the lock of the state directory still says that it is in use: {error}");
        }
    }
}
