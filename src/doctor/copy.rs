//! What the daemon would start: a copy in its store, where no file beside the original is, and none of its privileges.
//!
//! The trial is of such a copy, made by the same code at a place of the same kind: a store of its own in a directory that the
//! next daemon sweeps should this process be killed.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::looks::privileges;
use crate::config::Service;
use crate::store::{self, INCOMING, Import, Store, check_tree, remove_tree};
use crate::sys::file_system::is_for_programs;

/// The file that is tried, and what it is.
pub(super) struct Subject {
    /// What is started.
    pub(super) path: PathBuf,
    /// Whether that is a copy of what the service file names.
    pub(super) is_copy: bool,
    /// What to know about the copy; sentences without a full stop.
    pub(super) remarks: Vec<String>,
    _place: Option<Place>,
}

impl Subject {
    /// With `store = false` the file itself; else a copy of it. The error says why the daemon would refuse it.
    pub(super) fn of(service: &Service, given: &Path, versions: &Path) -> Result<Subject, String> {
        if !service.update.store {
            return Ok(Subject { path: given.to_owned(), is_copy: false, remarks: Vec::new(), _place: None });
        }
        let (place, mut remarks) = Place::make(versions)?;
        let store = Store::open(&place.directory).map_err(|error| error.to_string())?;
        let imported = store.import(&import_of(service, given), &mut |_| {});
        let imported = imported.map_err(|error| format!("{error}; {}", error.hint()))?;
        let lost = privileges(given);
        let kept = privileges(&imported.path);
        let lost: Vec<&str> = lost.into_iter().filter(|what| !kept.contains(what)).collect();
        if !lost.is_empty() && given.is_file() {
            remarks.push(format!(
                "{given:?} has {}, and the copy in the store, which is what runs, does not: write store = false if the program \
                 needs that",
                lost.join(" and ")
            ));
        }
        Ok(Subject { path: imported.path, is_copy: true, remarks, _place: Some(place) })
    }
}

/// As the daemon takes it in, but for its version, for which it would be run, and for what must be proven of a new version.
fn import_of(service: &Service, given: &Path) -> Import {
    Import {
        path: given.to_owned(),
        member: service.update.member.clone(),
        tree: service.update.tree,
        max_size_bytes: service.update.max_size_bytes,
        search: service.env.get("PATH").map(Into::into).or_else(|| std::env::var_os("PATH")),
        ..Import::default()
    }
}

/// Copies the program of a service as the daemon would, into a directory for temporary files, and forgets the copy. A directory is
/// looked through and not copied. Starts nothing.
/// The error is the cause, and what to do.
pub fn check_copy(service: &Service, versions: &Path) -> Result<(), (String, String)> {
    if !service.update.store {
        return Ok(());
    }
    if let Some(why) = executes_nothing(versions) {
        let (cause, hint) = why.split_once("; ").unwrap_or((&why, ""));
        return Err((cause.to_owned(), hint.to_owned()));
    }
    let import = import_of(service, &service.binary);
    let refused = |error: store::Error| (error.to_string(), error.hint());
    if service.binary.is_dir() {
        // To copy all of it takes its time.
        return check_tree(&import).map_err(refused);
    }
    let told = |error: io::Error| {
        (format!("cannot be copied to {:?}: {error}", temporary_directory()), "see why".to_owned())
    };
    let place = Place::make_at(&temporary()).map_err(told)?;
    let store = Store::open(&place.directory).map_err(told)?;
    store.import(&import, &mut |_| {}).map(drop).map_err(refused)
}

/// An empty `TMPDIR` counts as one that is not set.
pub(super) fn temporary_directory() -> PathBuf {
    Some(std::env::temp_dir()).filter(|path| path.is_absolute()).unwrap_or_else(|| "/tmp".into())
}

/// A name that no other process uses.
fn temporary() -> PathBuf {
    temporary_directory().join(format!("{INCOMING}doctor-{}", std::process::id()))
}

/// Why nothing can be executed from the file system of `path`, or of the first directory above it that is there.
fn executes_nothing(path: &Path) -> Option<String> {
    let there = path.ancestors().find(|path| path.exists())?;
    (!is_for_programs(there).ok()?).then(|| {
        format!(
            "the versions are kept in {path:?}, on a file system that is mounted with noexec; write store = false, or give the daemon \
             another --state-dir"
        )
    })
}

/// A directory that is removed when this is dropped, with those above it that had to be made.
struct Place {
    directory: PathBuf,
    made: Vec<PathBuf>,
}

impl Place {
    /// Beside the versions of the service. Who may not write there has to do with a directory for temporary files.
    fn make(versions: &Path) -> Result<(Place, Vec<String>), String> {
        if let Some(why) = executes_nothing(versions) {
            return Err(why);
        }
        let name = format!("{INCOMING}doctor-{}", std::process::id());
        match Self::make_at(&versions.join(&name)) {
            Ok(place) => Ok((place, Vec::new())),
            Err(why) => {
                let instead = temporary();
                let place =
                    Self::make_at(&instead).map_err(|error| format!("cannot create {instead:?}: {error}"))?;
                let remark = format!(
                    "the copy was tried in {instead:?} instead of {versions:?} ({why}): run this as the user of the daemon"
                );
                Ok((place, vec![remark]))
            }
        }
    }

    fn make_at(directory: &Path) -> io::Result<Place> {
        let missing = directory.ancestors().skip(1).take_while(|path| !path.exists());
        let mut place =
            Place { directory: directory.to_owned(), made: missing.map(Path::to_owned).collect() };
        let made = directory
            .parent()
            .map_or(Ok(()), |parent| DirBuilder::new().recursive(true).mode(0o700).create(parent));
        // The program may run as another user than this one.
        if let Err(error) = made.and_then(|()| DirBuilder::new().mode(0o755).create(directory)) {
            place.directory = PathBuf::new();
            return Err(error);
        }
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.directory.as_os_str().is_empty() {
            remove_tree(&self.directory);
        }
        for directory in &self.made {
            // Another process may have put something there.
            let _ = fs::remove_dir(directory);
        }
    }
}
