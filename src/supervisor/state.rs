//! The state directory of a service, opened and reached in the service's lanes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use handoff_protocol::ids::ServiceName;

use super::autostart::Autostart;
use super::lane::{Lane, ThreadHold};
use super::rollout::{Origin, read_origins};
use super::running;
use crate::config::Dirs;
use crate::journal::{FileStorage, Journal, JournalError, Storage};
use crate::spool::{self, Staged};
use crate::store::Store;
use crate::sys::own_table::{has_own_table, take_own_table};
use crate::sys::regular::is_path_local;

/// How long the daemon waits for the state of one service, once. Until it has answered, nothing waits for it again.
pub(super) const STATE_TIMEOUT: Duration = Duration::from_secs(1);

/// The journal and the versions of a service. If one of them cannot be used, it is empty, and `problem` says why.
#[derive(Debug)]
pub(super) struct OpenedState {
    pub(super) journal: Journal,
    pub(super) store: Store,
    /// Where its versions came from.
    pub(super) origins: Vec<Origin>,
    /// What waits for the next start.
    pub(super) staged: Option<Staged>,
    /// What a person has decided about starts with the daemon.
    pub(super) autostart: Autostart,
    pub(super) problem: Option<String>,
    /// What became of its journal, if that began again.
    pub(super) began_again: Option<String>,
}

/// Opens and reads everything, and creates the directory if it is missing. `text` is the service file, if it exists.
/// Blocks on the file system, in the lane of the journal.
pub(super) fn open(dirs: &Dirs, name: &ServiceName, text: Option<&str>, lane: &Lane) -> OpenedState {
    if let Some(text) = text {
        running::settle_removed(dirs, name, text);
    }
    let path = dirs.journal(name);
    let (journal, refused) = match open_journal(dirs, name, lane) {
        Ok(journal) => (journal, None),
        Err(error) => (Journal::in_memory(&path, &error), Some(format!("{error}."))),
    };
    let versions = dirs.versions(name);
    let store = Store::open(&versions);
    let problem = store.as_ref().err().map(|error| format!("{}: {error}.", versions.display()));
    let store = store.unwrap_or_else(|_| Store::empty(&versions));
    let origins = read_origins(dirs, name);
    let staged = spool::recall(&dirs.service_state(name), &store);
    let unstaged = staged
        .as_ref()
        .err()
        .map(|error| format!("What was installed for the next start cannot be taken in: {error}."));
    let staged = staged.unwrap_or_default();
    let autostart = Autostart::read(dirs, name);
    let undecided = autostart.as_ref().err().map(|error| {
        format!("Whether the service starts with the daemon cannot be read: {error}. Its file decides.")
    });
    let began_again = (journal.is_new() && running::has_run(dirs, name)).then(|| {
        format!(
            "{} was missing or empty, although the service ran before: it goes by its service file, and its \
             generations count from 1 again.",
            path.display()
        )
    });
    let problem = refused.or(problem).or(unstaged).or(undecided);
    let autostart = autostart.unwrap_or_default();
    OpenedState { journal, store, origins, staged, autostart, problem, began_again }
}

/// The state of a service that cannot be reached. Touches nothing.
pub(super) fn without(dirs: &Dirs, name: &ServiceName, source: io::Error) -> OpenedState {
    let error = JournalError::Storage { path: dirs.journal(name), what: "open it", source };
    let journal = Journal::unreached(&dirs.journal(name), &error);
    let (store, problem) = (Store::empty(&dirs.versions(name)), Some(format!("{error}.")));
    let autostart = Autostart::default();
    OpenedState { journal, store, origins: Vec::new(), staged: None, autostart, problem, began_again: None }
}

/// Blocks on the file system, in the lane of the journal.
pub(super) fn open_journal(dirs: &Dirs, name: &ServiceName, lane: &Lane) -> Result<Journal, JournalError> {
    let (directory, path) = (dirs.service_state(name), dirs.journal(name));
    create_durably(&directory).map_err(|source| JournalError::Storage {
        path: directory.clone(),
        what: "make the directory",
        source,
    })?;
    let storage = open_storage(&path, lane);
    let storage =
        storage.map_err(|source| JournalError::Storage { path: path.clone(), what: "open it", source })?;
    Journal::with_storage(&path, storage)
}

/// The daemon's thread may have the file open only if a wait for it is sure to end.
fn open_storage(path: &Path, lane: &Lane) -> io::Result<Arc<dyn Storage>> {
    if is_path_local(path) && !has_own_table() {
        let file = FileStorage::open(path)?;
        if file.is_local() {
            return Ok(Arc::new(file));
        }
    }
    Ok(Arc::new(RemoteJournal::open(path, lane)?))
}

/// Creates a directory and those above it. Their entries are on disk when this returns.
fn create_durably(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let Some(parent) = directory.parent() else { return Ok(()) };
    create_durably(parent)?;
    match std::fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    File::open(parent)?.sync_all()
}

thread_local! {
    /// The files of distant journals that this thread has open for its lane. No other thread has them.
    static OPEN: RefCell<BTreeMap<u64, Rc<FileStorage>>> = const { RefCell::new(BTreeMap::new()) };
}

/// A journal on a file system that may stop answering: if it does not answer in time, it counts as failed. Only the
/// thread of its lane has its file open, and that thread stays as long as this exists.
#[derive(Debug)]
struct RemoteJournal {
    id: u64,
    what: String,
    lane: Lane,
    /// Whether it is unknown which file is the journal, because its replacement was given up.
    is_lost: AtomicBool,
    _thread: ThreadHold,
}

impl RemoteJournal {
    /// Blocks on the file system, in the lane.
    fn open(path: &Path, lane: &Lane) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Where the kernel cannot do this, the file delays the starts of other services if it does not answer.
        take_own_table();
        let (id, file) = (NEXT.fetch_add(1, Ordering::Relaxed), FileStorage::open(path)?);
        OPEN.with_borrow_mut(|open| open.insert(id, Rc::new(file)));
        let what = path.display().to_string();
        Ok(Self { id, what, lane: lane.clone(), is_lost: AtomicBool::new(false), _thread: lane.hold()? })
    }

    fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&FileStorage) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        if self.is_lost.load(Ordering::Relaxed) {
            return Err(io::Error::other("it was replaced, and it is not known by what; restart the daemon"));
        }
        let id = self.id;
        self.lane.wait(STATE_TIMEOUT, &self.what, move || {
            let file = OPEN.with_borrow(|open| open.get(&id).cloned());
            ask(&*file.ok_or(io::ErrorKind::NotConnected)?)
        })?
    }
}

impl Drop for RemoteJournal {
    fn drop(&mut self) {
        let id = self.id;
        self.lane.post(move || drop(OPEN.with_borrow_mut(|open| open.remove(&id))));
    }
}

impl Storage for RemoteJournal {
    fn read_all(&self) -> io::Result<Vec<u8>> {
        self.ask(FileStorage::read_all)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let bytes = bytes.to_vec();
        self.ask(move |file| file.write_at(offset, &bytes))
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.ask(move |file| file.truncate(length))
    }

    fn sync(&self) -> io::Result<()> {
        self.ask(FileStorage::sync)
    }

    fn stage(&self, bytes: &[u8]) -> io::Result<()> {
        let bytes = bytes.to_vec();
        self.ask(move |file| file.stage(&bytes))
    }

    fn swap(&self) -> io::Result<()> {
        let swapped = self.ask(FileStorage::swap);
        if swapped.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut) {
            self.is_lost.store(true, Ordering::Relaxed);
        }
        swapped
    }

    fn is_in_place(&self) -> bool {
        // A file that does not answer is not known to be elsewhere.
        self.ask(|file| Ok(file.is_in_place())).unwrap_or(true)
    }

    fn restore(&self, bytes: &[u8]) -> io::Result<Option<PathBuf>> {
        let bytes = bytes.to_vec();
        let restored = self.ask(move |file| file.restore(&bytes));
        if restored.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut) {
            self.is_lost.store(true, Ordering::Relaxed);
        }
        restored
    }

    fn discard(&self) {
        let id = self.id;
        self.lane.post(move || {
            if let Some(file) = OPEN.with_borrow(|open| open.get(&id).cloned()) {
                file.discard();
            }
        });
    }
}
