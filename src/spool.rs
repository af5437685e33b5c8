//! Versions that are installed for the next start of a service, below its state directory.
//!
//! ```text
//! staged            names the version; on the disk before the answer
//! spool/<number>/   a version that was installed without a daemon: versions/ as in the store, and `request`
//!      /.new-<pid>/ the same, incomplete
//! ```
//!
//! When a daemon starts, it takes in the spool: it renames each version into the store, and then `staged` names the
//! newest. If a process ends in the middle of that, the next one continues. Everything here blocks.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::store::{Error, Import, Store};
use crate::sys::errno::Errno;
use crate::sys::path::rename_to_new;
use crate::sys::regular;

const STAGED: &str = "staged";
const SPOOL: &str = "spool";
const REQUEST: &str = "request";
const VERSIONS: &str = "versions";
const NEW: &str = ".new-";

/// A version that waits for the next start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    /// The program to start.
    pub binary: PathBuf,
    /// The path that was given.
    pub given: PathBuf,
    /// Its version, if known.
    pub version: Option<String>,
    /// Whether it has passed the preflight.
    pub is_checked: bool,
}

/// A version that was installed without a daemon.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    /// The hash that names it in `versions`, or none if it runs where it is.
    id: Option<String>,
    staged: Staged,
}

/// Takes in the versions that were installed without a daemon. Returns the staged version.
pub fn recall(state: &Path, store: &Store) -> Result<Option<Staged>, Error> {
    match move_to_store(state, store)? {
        Some(staged) => Ok(Some(staged)),
        None => staged(state),
    }
}

/// Reads the staged version.
fn staged(state: &Path) -> Result<Option<Staged>, Error> {
    let path = state.join(STAGED);
    read(&path).map_err(Error::io("read it", &path))
}

/// Stages a version. It is on the disk when this returns.
pub fn stage(state: &Path, staged: &Staged) -> io::Result<()> {
    let (path, beside) = (state.join(STAGED), state.join("staged.new"));
    let _ = fs::remove_file(&beside);
    write(&beside, staged)?;
    fs::rename(&beside, &path)?;
    sync(state)
}

/// Removes the staged version, if there is one.
pub fn unstage(state: &Path) -> io::Result<()> {
    match fs::remove_file(state.join(STAGED)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Installs a version without a daemon: verifies it as a daemon does, and copies it unless it runs `in_place`.
/// Returns where it is kept until a daemon takes it in. It is on the disk then.
pub fn install(state: &Path, import: &Import, in_place: Option<PathBuf>) -> Result<PathBuf, Error> {
    let spool = state.join(SPOOL);
    let failed = |what| Error::io(what, &spool);
    DirBuilder::new().recursive(true).mode(0o700).create(&spool).map_err(failed("make the directory"))?;
    let fresh = UnfinishedRequest(spool.join(format!("{NEW}{}", std::process::id())));
    remove(&fresh.0);
    DirBuilder::new().mode(0o700).create(&fresh.0).map_err(Error::io("make the directory", &fresh.0))?;
    let given = import.path.clone();
    let request = match in_place {
        Some(binary) => Request {
            id: None,
            staged: Staged { binary, given, version: import.version.clone(), is_checked: false },
        },
        None => {
            let store = Store::open(&fresh.0.join(VERSIONS)).map_err(Error::io("list it", &fresh.0))?;
            let imported = store.import(import, &mut |_| {})?;
            let made = imported.version.metadata;
            // Its final path is known when it is in the store.
            let staged = Staged { binary: made.entry, given, version: made.version, is_checked: false };
            Request { id: Some(made.id.to_string()), staged }
        }
    };
    write(&fresh.0.join(REQUEST), &request).map_err(Error::io("write it", &fresh.0))?;
    sync(&fresh.0).map_err(Error::io("write it to the disk", &fresh.0))?;
    let place = settle(&spool, &fresh.0).map_err(failed("give it its name"))?;
    sync(&spool).and_then(|()| sync(state)).map_err(failed("write it to the disk"))?;
    Ok(place)
}

/// Removes a version from the spool, because a daemon has it. Returns whether it was still there.
pub fn withdraw(place: &Path) -> bool {
    fs::remove_dir_all(place).is_ok()
}

/// Moves all versions from the spool to the store, and stages the newest. Returns that one.
fn move_to_store(state: &Path, store: &Store) -> Result<Option<Staged>, Error> {
    let spool = state.join(SPOOL);
    let entries = match fs::read_dir(&spool) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("list it", &spool)(error)),
    };
    let mut numbers = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        match name.parse::<u64>() {
            Ok(number) => numbers.push(number),
            Err(_) if name.strip_prefix(NEW).is_some_and(is_orphaned) => remove(&entry.path()),
            Err(_) => {}
        }
    }
    numbers.sort_unstable();
    let mut newest = None;
    for number in &numbers {
        let place = spool.join(number.to_string());
        let Some(Request { id, staged }) =
            read::<Request>(&place.join(REQUEST)).map_err(Error::io("read it", &place))?
        else {
            continue;
        };
        newest = Some(match id.and_then(|id| id.parse().ok()) {
            Some(id) => Staged { binary: store.adopt(&place.join(VERSIONS), &id)?, ..staged },
            None => staged,
        });
    }
    if let Some(staged) = &newest {
        stage(state, staged).map_err(Error::io("write it", &state.join(STAGED)))?;
    }
    numbers.iter().for_each(|number| remove(&spool.join(number.to_string())));
    Ok(newest)
}

/// A directory that is not a request yet. Drop removes it.
struct UnfinishedRequest(PathBuf);

impl Drop for UnfinishedRequest {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Gives a complete request the next number. Two concurrent callers get different numbers.
fn settle(spool: &Path, fresh: &Path) -> io::Result<PathBuf> {
    let numbers = || fs::read_dir(spool).into_iter().flatten().flatten();
    let numbers = || numbers().filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok());
    loop {
        let place = spool.join((numbers().max().unwrap_or(0) + 1).to_string());
        match rename_to_new(fresh, &place) {
            Err(Errno::EEXIST) => {}
            renamed => return renamed.map(|()| place).map_err(Into::into),
        }
    }
}

/// Whether the process with this pid is gone.
fn is_orphaned(pid: &str) -> bool {
    pid.parse::<u32>().is_ok_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> io::Result<Option<T>> {
    match regular::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => Ok(Some(serde_json::from_slice(&read?)?)),
    }
}

fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    file.sync_all()
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn remove(path: &Path) {
    let _ = fs::remove_dir_all(path);
}
