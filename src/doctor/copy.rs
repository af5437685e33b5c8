//! The program as the daemon would start it: a copy in its store, without the files next to the original and without
//! its privileges.
//!
//! The trial uses such a copy, made by the same code at a similar place: its own store in a directory that the next
//! daemon removes if this process is killed.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::inspection::privileges;
use crate::config::Service;
use crate::store::{self, INCOMING, Import, Store, check_tree, remove_tree};
use crate::sys::file_system::is_for_programs;

/// The program of a trial.
pub(super) struct TrialProgram {
    /// The path to start.
    pub(super) path: PathBuf,
    /// Whether it is a copy of the file that the service file names.
    pub(super) is_copy: bool,
    /// Remarks about the copy; sentences without a full stop.
    pub(super) remarks: Vec<String>,
    _directory: Option<TrialDirectory>,
}

impl TrialProgram {
    /// With `store = false` the file itself, else a copy of it. The error says why the daemon would refuse it.
    pub(super) fn of(service: &Service, given: &Path, versions: &Path) -> Result<TrialProgram, String> {
        if !service.update.store {
            return Ok(TrialProgram {
                path: given.to_owned(),
                is_copy: false,
                remarks: Vec::new(),
                _directory: None,
            });
        }
        let (place, mut remarks) = TrialDirectory::make(versions)?;
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
        Ok(TrialProgram { path: imported.path, is_copy: true, remarks, _directory: Some(place) })
    }
}

/// As the daemon imports it, but without its version, which would require running it, and without the proof required
/// of new versions.
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

/// Copies the program of a service as the daemon would, into a temporary directory, and removes the copy. A directory,
/// and a program that is started in its place, is checked without a copy. Starts nothing. The error is the cause and the hint.
pub fn check_copy(service: &Service, versions: &Path) -> Result<(), (String, String)> {
    let refused = |error: store::Error| (error.to_string(), error.hint());
    if !service.update.store {
        let search = import_of(service, &service.binary).search;
        return store::check_program(&service.binary, search.as_deref()).map_err(refused);
    }
    if let Some(why) = executes_nothing(versions) {
        let (cause, hint) = why.split_once("; ").unwrap_or((&why, ""));
        return Err((cause.to_owned(), hint.to_owned()));
    }
    let import = import_of(service, &service.binary);
    if service.binary.is_dir() {
        // A copy of all its files would take too long.
        return check_tree(&import).map_err(refused);
    }
    let told = |error: io::Error| {
        (format!("cannot be copied to {:?}: {error}", temporary_directory()), "see why".to_owned())
    };
    let place = TrialDirectory::make_at(&temporary()).map_err(told)?;
    let store = Store::open(&place.directory).map_err(told)?;
    store.import(&import, &mut |_| {}).map(drop).map_err(refused)
}

/// An empty `TMPDIR` counts as unset.
pub(super) fn temporary_directory() -> PathBuf {
    Some(std::env::temp_dir()).filter(|path| path.is_absolute()).unwrap_or_else(|| "/tmp".into())
}

/// A unique name.
fn temporary() -> PathBuf {
    temporary_directory().join(format!("{INCOMING}doctor-{}", std::process::id()))
}

/// Why nothing can be executed from the file system of `path`, or of its first existing ancestor.
fn executes_nothing(path: &Path) -> Option<String> {
    let there = path.ancestors().find(|path| path.exists())?;
    (!is_for_programs(there).ok()?).then(|| {
        format!(
            "the versions are kept in {path:?}, on a file system that is mounted with noexec; write store = false, or give the daemon \
             another --state-dir"
        )
    })
}

/// A directory, and those above it that had to be created. Drop removes them.
struct TrialDirectory {
    directory: PathBuf,
    created: Vec<PathBuf>,
}

impl TrialDirectory {
    /// Creates it next to the versions of the service. A user who may not write there gets a temporary directory.
    fn make(versions: &Path) -> Result<(TrialDirectory, Vec<String>), String> {
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

    fn make_at(directory: &Path) -> io::Result<TrialDirectory> {
        let missing = directory.ancestors().skip(1).take_while(|path| !path.exists());
        let mut place = TrialDirectory {
            directory: directory.to_owned(),
            created: missing.map(Path::to_owned).collect(),
        };
        let made = directory
            .parent()
            .map_or(Ok(()), |parent| DirBuilder::new().recursive(true).mode(0o700).create(parent));
        // The program may run as another user.
        if let Err(error) = made.and_then(|()| DirBuilder::new().mode(0o755).create(directory)) {
            place.directory = PathBuf::new();
            return Err(error);
        }
        Ok(place)
    }
}

impl Drop for TrialDirectory {
    fn drop(&mut self) {
        if !self.directory.as_os_str().is_empty() {
            remove_tree(&self.directory);
        }
        for directory in &self.created {
            // Another process may have put a file there.
            let _ = fs::remove_dir(directory);
        }
    }
}
