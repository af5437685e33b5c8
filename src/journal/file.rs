//! A journal in a file.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Storage;
use crate::crash_points::crash_point;
use crate::sys::regular;

/// Maximum number of files to set aside; then the last one is overwritten.
const ASIDE_MAX: u32 = 9;

/// A file, created with mode 0600.
#[derive(Debug)]
pub struct FileStorage {
    path: PathBuf,
    file: Mutex<Arc<File>>,
    staged: Mutex<Option<File>>,
    name: Mutex<FileName>,
}

/// Whether the file's name is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileName {
    Durable,
    /// Renamed recently, perhaps by an earlier daemon.
    Unsure,
    /// The disk reported an error. A later success would prove nothing.
    Lost,
}

impl FileStorage {
    /// Opens `path`, or creates it; its directory must exist. Makes the directory entry of a new file durable.
    pub fn open(path: &Path) -> io::Result<Self> {
        crash_point!("journal/before-open");
        let is_new = !path.try_exists()?;
        let file = regular::open(options().create(true).truncate(false), path)?;
        if is_new {
            sync_directory(path)?;
        }
        // An earlier daemon may have been killed before it removed the file.
        let _ = remove(&beside(path));
        let _ = remove(&unnamed(path));
        let name = if is_new { FileName::Durable } else { FileName::Unsure };
        Ok(Self {
            path: path.to_owned(),
            file: Mutex::new(Arc::new(file)),
            staged: Mutex::default(),
            name: Mutex::new(name),
        })
    }

    /// Whether it is on a local disk, so that waiting for it is bounded.
    pub(crate) fn is_local(&self) -> bool {
        regular::is_local(&*self.file())
    }

    fn file(&self) -> Arc<File> {
        Arc::clone(&lock(&self.file))
    }
}

impl Storage for FileStorage {
    fn read_all(&self) -> io::Result<Vec<u8>> {
        let file = self.file();
        let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file().write_all_at(bytes, offset)
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        crash_point!("journal/before-truncate");
        self.file().set_len(length)?;
        crash_point!("journal/truncated");
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        crash_point!("journal/before-sync");
        self.file().sync_data()?;
        crash_point!("journal/synced");
        let mut name = lock(&self.name);
        match *name {
            FileName::Durable => return Ok(()),
            FileName::Unsure => {}
            FileName::Lost => {
                return Err(io::Error::other("its directory could not be written to the disk before"));
            }
        }
        let synced = sync_directory(&self.path);
        *name = if synced.is_ok() { FileName::Durable } else { FileName::Lost };
        synced
    }

    fn stage(&self, bytes: &[u8]) -> io::Result<()> {
        crash_point!("journal/before-stage");
        let path = beside(&self.path);
        let written = || -> io::Result<File> {
            remove(&path)?;
            let file = options().create_new(true).open(&path)?;
            file.write_all_at(bytes, 0)?;
            file.sync_data()?;
            Ok(file)
        };
        let staged = written().inspect_err(|_| drop(remove(&path)))?;
        *lock(&self.staged) = Some(staged);
        Ok(())
    }

    fn swap(&self) -> io::Result<()> {
        let staged = lock(&self.staged).take().ok_or(io::ErrorKind::NotFound)?;
        crash_point!("journal/before-swap");
        fs::rename(beside(&self.path), &self.path)?;
        crash_point!("journal/swapped");
        *lock(&self.name) = FileName::Unsure;
        *lock(&self.file) = Arc::new(staged);
        Ok(())
    }

    fn discard(&self) {
        *lock(&self.staged) = None;
        // If it stays, the next one replaces it.
        let _ = remove(&beside(&self.path));
    }

    fn is_in_place(&self) -> bool {
        let Ok(held) = self.file().metadata() else { return true };
        match fs::symlink_metadata(&self.path) {
            Ok(found) => (found.dev(), found.ino()) == (held.dev(), held.ino()),
            // A file that cannot be examined may exist.
            Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
        }
    }

    fn restore(&self, bytes: &[u8]) -> io::Result<Option<PathBuf>> {
        // The directory may be gone as well.
        if let Some(directory) = self.path.parent().filter(|directory| !directory.is_dir()) {
            fs::create_dir_all(directory)?;
            sync_directory(directory)?;
        }
        let fresh = unnamed(&self.path);
        remove(&fresh)?;
        let file = options().create_new(true).open(&fresh)?;
        file.write_all_at(bytes, 0)?;
        crash_point!("journal/before-restore");
        let aside = set_aside(&self.path)?;
        fs::rename(&fresh, &self.path)?;
        crash_point!("journal/restored");
        *lock(&self.name) = FileName::Unsure;
        *lock(&self.file) = Arc::new(file);
        Ok(aside)
    }
}

/// Renames a file that does not belong at `path`. Returns its new path; `None` if there is no file. Blocks on the file
/// system.
pub fn set_aside(path: &Path) -> io::Result<Option<PathBuf>> {
    let mut names = (1..=ASIDE_MAX).map(|number| path.with_added_extension(format!("aside-{number}")));
    let is_free = |name: &PathBuf| fs::symlink_metadata(name).is_err();
    let aside = names.clone().find(is_free).or_else(|| names.next_back()).unwrap_or_default();
    match fs::rename(path, &aside) {
        Ok(()) => Ok(Some(aside)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

/// Where a replacement for `path` is written.
fn beside(path: &Path) -> PathBuf {
    path.with_added_extension("new")
}

/// Where a new file is written if there is nothing to replace. A different name, because both writes may be in
/// progress.
fn unnamed(path: &Path) -> PathBuf {
    path.with_added_extension("again")
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// No panic leaves these in an inconsistent state.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
