//! The versions of a service, kept by the daemon: services run a copy that no other program writes, whatever happens to
//! the given path.
//!
//! ```text
//! versions/<sha256>/files/…      the program under its own name, or a tree
//!                  /made.json    immutable metadata, on disk before the version exists
//!                  /used.json    mutable metadata: its source, its generations, whether it is pinned
//!         /incoming-<pid>-<n>/   an import or a removal in progress
//! ```
//!
//! A version appears and disappears by a rename, so it exists completely or not at all, whenever a process or a machine
//! ends. Everything here blocks; each directory has at most one [`Store`] at a time.

mod archive;
mod content_match;
mod copy;
mod elf;
mod entry;
mod error;
mod import;
mod lost;
mod meta;
mod privileges;
mod readable;
mod source;
#[cfg(test)]
mod tests;
mod tree;
mod unpack;
mod verify;
mod version;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use content_match::{ContentMatch, PathRecord};
pub use entry::{check_program, check_tree};
pub use error::Error;
pub use import::{Import, ImportStep, Imported};
pub use meta::{FileStamp, Id, Source, UsageRecord, Version, VersionKind, VersionMetadata};
pub use source::{check_named, check_source};
pub use verify::{Evidence, Require, Trust, is_public_key};

/// The prefix of directories that the next process removes.
pub(crate) const INCOMING: &str = "incoming-";
const FILES: &str = "files";
/// The least digits of a hash that mean a version.
const HASH_DIGITS_MIN: usize = 4;
const MADE: &str = "made.json";
const USED: &str = "used.json";

/// The versions of one service.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    known: Mutex<BTreeMap<Id, Version>>,
    writing: Mutex<()>,
    leftovers: Mutex<Vec<PathBuf>>,
}

impl Store {
    /// Reads the versions in `directory`, which need not exist, and remembers the remains of a process that did not
    /// finish: see [`Store::sweep`]. Skips versions without metadata.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let (mut known, mut leftovers) = (BTreeMap::new(), Vec::new());
        let entries = match fs::read_dir(directory) {
            Ok(entries) => Some(entries),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        for entry in entries.into_iter().flatten() {
            let (path, name) = {
                let entry = entry?;
                (entry.path(), entry.file_name())
            };
            let name = name.to_string_lossy();
            if name.starts_with(INCOMING) {
                leftovers.push(path);
            } else if let Ok(id) = name.parse::<Id>()
                && let Some(metadata) =
                    meta::read::<VersionMetadata>(&path.join(MADE)).ok().filter(|metadata| metadata.id == id)
            {
                let usage = meta::read(&path.join(USED)).unwrap_or_default();
                known.insert(id, Version { metadata, usage });
            }
        }
        let directory = directory.to_owned();
        Ok(Self {
            directory,
            known: Mutex::new(known),
            writing: Mutex::default(),
            leftovers: Mutex::new(leftovers),
        })
    }

    /// A store without known versions, because its directory cannot be read.
    pub fn empty(directory: &Path) -> Self {
        let directory = directory.to_owned();
        Self { directory, known: Mutex::default(), writing: Mutex::default(), leftovers: Mutex::default() }
    }

    /// Removes the remains found at open. Blocks.
    pub fn sweep(&self) {
        let leftovers = std::mem::take(&mut *lock(&self.leftovers));
        leftovers.iter().for_each(|path| remove_tree(path));
    }

    /// Whether open found remains. Does not block.
    pub fn has_leftovers(&self) -> bool {
        !lock(&self.leftovers).is_empty()
    }

    /// Whether this path is in the store, but in no kept version. Does not block, and accesses no file.
    pub fn has_lost(&self, path: &Path) -> bool {
        path.starts_with(&self.directory) && self.version_at(path).is_none()
    }

    /// All versions: by last generation, newest first, then those that never ran, newest first. Does not block.
    pub fn versions(&self) -> Vec<Version> {
        let mut versions: Vec<Version> = lock(&self.known).values().cloned().collect();
        versions.sort_by_key(|it| {
            std::cmp::Reverse((it.usage.last_generation(), it.metadata.added_unix_ms, it.metadata.id))
        });
        versions
    }

    /// One version. Does not block.
    pub fn get(&self, id: &Id) -> Option<Version> {
        lock(&self.known).get(id).cloned()
    }

    /// The version that contains this path. Does not block, and accesses no file.
    pub fn version_at(&self, path: &Path) -> Option<Version> {
        let below = path.strip_prefix(&self.directory).ok()?;
        self.get(&below.components().next()?.as_os_str().to_str()?.parse().ok()?)
    }

    /// Whether its files exist: they may have been removed. Blocks.
    pub fn is_whole(&self, version: &Version) -> bool {
        // A file that cannot be examined may exist.
        !fs::symlink_metadata(self.path_of(version)).is_err_and(|error| {
            matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        })
    }

    fn files_of(&self, id: &Id) -> PathBuf {
        self.directory.join(id.to_string()).join(FILES)
    }

    /// The file of a version to start.
    pub fn path_of(&self, version: &Version) -> PathBuf {
        self.files_of(&version.metadata.id).join(&version.metadata.entry)
    }

    /// Finds the one version that matches a prefix of its hash, or its version text, or the words at the end of that:
    /// `2.3.1` means `web 2.3.1`. A hash or a whole text comes before the end of one.
    pub fn find_by_word(&self, word: &str) -> Result<Version, Error> {
        let versions = self.versions();
        let is_hash = word.len() >= HASH_DIGITS_MIN;
        let is_named = |it: &Version, fits: &dyn Fn(&str) -> bool| {
            [&it.usage.told, &it.metadata.version].into_iter().flatten().any(|name| fits(name))
        };
        let fits = |it: &&Version| {
            (is_hash && it.metadata.id.to_string().starts_with(&word.to_ascii_lowercase()))
                || is_named(it, &|name| name == word)
        };
        let ends_in_word = |name: &str| name.strip_suffix(word).is_some_and(|before| before.ends_with(' '));
        let mut fitting: Vec<&Version> = versions.iter().filter(fits).collect();
        if fitting.is_empty() && !word.is_empty() {
            fitting = versions.iter().filter(|it| is_named(it, &ends_in_word)).collect();
        }
        let is_short_hash = !is_hash && !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        match fitting[..] {
            [version] => Ok(version.clone()),
            [] if is_short_hash => {
                let cause = format!(
                    "no version is named {word:?}, and a hash needs {HASH_DIGITS_MIN} digits or more"
                );
                Err(Error::Unknown { cause })
            }
            [] => Err(Error::Unknown { cause: format!("no version {word:?} is kept") }),
            [..] => {
                let ids: Vec<String> = fitting.iter().map(|it| it.metadata.id.to_string()).collect();
                Err(Error::Unknown {
                    cause: format!("{word:?} is more than one version: {}", ids.join(", ")),
                })
            }
        }
    }

    /// Records a commit as this generation. Blocks, but does not sync.
    pub fn note_committed(&self, id: &Id, generation: u64) -> Result<(), Error> {
        self.change(id, |usage| usage.note(generation)).map(|_| ())
    }

    /// Records that the commit as this generation was undone. Blocks, but does not sync.
    pub fn note_undone(&self, id: &Id, generation: u64) -> Result<(), Error> {
        self.change(id, |used| used.note_undone(generation)).map(|_| ())
    }

    /// Records the version text reported by a process. Blocks, but does not sync.
    pub fn note_reported_version(&self, id: &Id, version: &str) -> Result<(), Error> {
        let told =
            |usage: &mut UsageRecord| usage.told.replace(version.to_owned()).as_deref() != Some(version);
        self.change(id, told).map(|_| ())
    }

    /// Pins a version, or unpins it. Durable when this returns. Blocks.
    pub fn pin(&self, id: &Id, pinned: bool) -> Result<Version, Error> {
        let version = self.change(id, |usage| std::mem::replace(&mut usage.pinned, pinned) != pinned)?;
        let at = self.directory.join(id.to_string());
        let synced = File::open(at.join(USED)).and_then(|file| file.sync_all());
        synced.and_then(|()| File::open(&at)?.sync_all()).map_err(Error::io("write it to the disk", &at))?;
        Ok(version)
    }

    /// Removes versions: those that never ran, and of the others all but the `keep` with the newest last generation.
    /// Keeps the ones in `used` and the pinned ones. Blocks. Returns the removed versions.
    pub fn gc(&self, keep: usize, used: &BTreeSet<Id>) -> Result<Vec<Version>, Error> {
        let versions = self.versions();
        let ran = versions.iter().filter(|it| it.usage.last_generation().is_some());
        let kept: BTreeSet<Id> = ran.take(keep).map(|it| it.metadata.id).collect();
        let stays = |it: &Version| {
            it.usage.pinned || used.contains(&it.metadata.id) || kept.contains(&it.metadata.id)
        };
        let surplus: Vec<Version> = versions.into_iter().filter(|it| !stays(it)).collect();
        for version in &surplus {
            self.remove(&version.metadata.id)?;
        }
        Ok(surplus)
    }

    fn remove(&self, id: &Id) -> Result<(), Error> {
        let at = self.directory.join(id.to_string());
        let gone = self.directory.join(format!("{INCOMING}{}-{id}", std::process::id()));
        match fs::rename(&at, &gone) {
            // It is already removed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed.map_err(Error::io("remove it", &at))?,
        }
        lock(&self.known).remove(id);
        remove_tree(&gone);
        Ok(())
    }

    /// Renames a complete directory to its final name.
    fn put(&self, from: &Path, version: &Version) -> Result<(), Error> {
        let id = version.metadata.id;
        let at = self.directory.join(id.to_string());
        // A directory without metadata is not a version.
        remove_tree(&at);
        fs::rename(from, &at).map_err(Error::io("put it in its place", &at))?;
        lock(&self.known).insert(id, version.clone());
        let synced = File::open(&self.directory).and_then(|directory| directory.sync_all());
        synced.map_err(Error::io("write it to the disk", &self.directory))
    }

    /// Changes the mutable metadata; writes it if the change returns `true`. Does not sync.
    fn change(&self, id: &Id, change: impl FnOnce(&mut UsageRecord) -> bool) -> Result<Version, Error> {
        // Serializes writers. Readers do not wait for the file system.
        let _turn = lock(&self.writing);
        let unknown = || Error::Unknown { cause: format!("no version {id} is kept") };
        let mut version = self.get(id).ok_or_else(unknown)?;
        let mut used = version.usage.clone();
        if change(&mut used) {
            let at = self.directory.join(id.to_string()).join(USED);
            let beside = at.with_extension("new");
            let _ = fs::remove_file(&beside);
            let written = meta::write(&beside, &used).and_then(|_| fs::rename(&beside, &at));
            written.map_err(Error::io("write it", &at))?;
            version.usage = used;
            if let Some(known) = lock(&self.known).get_mut(id) {
                *known = version.clone();
            }
        }
        Ok(version)
    }

    /// Creates the directory, if it does not exist.
    fn create(&self) -> Result<(), Error> {
        if self.directory.is_dir() {
            return Ok(());
        }
        let created = DirBuilder::new().recursive(true).mode(0o755).create(&self.directory);
        let parent = self.directory.parent().unwrap_or(Path::new("/"));
        let synced = created.and_then(|()| File::open(parent)?.sync_all());
        synced.map_err(Error::io("make the directory", &self.directory))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes a directory with its content, as far as possible; the next sweep retries the rest.
pub(crate) fn remove_tree(path: &Path) {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "cannot remove it yet");
        }
        _ => {}
    }
}
