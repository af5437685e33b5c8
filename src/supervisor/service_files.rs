//! Reads service files, off the daemon's thread.
//!
//! One lane reads the directory, and the files in it. A file that is a link may be on another file system, which need
//! not answer: it is read in a lane of its own service. A file that does not answer in time is reported like a
//! mistake. A daemon that gets no thread reads the files on its own thread, because it only takes over services whose
//! files it knows.

use std::collections::BTreeMap;
use std::fs::{metadata, symlink_metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use handoff_protocol::ids::ServiceName;
use tokio::time::{Instant, timeout_at};

use super::daemon::Daemon;
use super::registration::has_ephemeral;
use super::state::STATE_TIMEOUT;
use crate::config::{self, Dirs, PartialService, name_of, read_service, service_files};

/// Tells one content of a file from another, without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ServiceFileStamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl ServiceFileStamp {
    fn at(file: &Path) -> io::Result<Self> {
        let found = metadata(file)?;
        Ok(Self { inode: found.ino(), size: found.size(), changed: (found.ctime(), found.ctime_nsec()) })
    }
}

/// What is at the path of a service file.
#[derive(Debug)]
pub(super) enum ServiceFileContent {
    /// Nothing.
    Absent,
    /// The same file as before.
    Same,
    /// A service, or the mistakes of its file with what can be read anyway.
    File(ServiceFileStamp, Result<Box<config::Service>, (Vec<config::Error>, PartialService)>),
    /// It cannot be read now, for this reason: usually its file system does not answer.
    Silent(String),
}

/// The state of each service file when it was last read; `None` if it was not read yet.
pub(super) type ServiceFileStamps = BTreeMap<ServiceName, Option<ServiceFileStamp>>;

/// The service files at one moment.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) found: BTreeMap<ServiceName, ServiceFileContent>,
    /// Other mistakes: of the directory, and of file names that no service can have.
    pub(super) errors: Vec<config::Error>,
    /// Whether a directory of service files exists.
    pub(super) is_there: bool,
    /// Those that have to be read elsewhere.
    links: Vec<(ServiceName, Option<ServiceFileStamp>)>,
}

impl Daemon {
    /// Reads the files of these services, as far as they have changed. With `lists`, also reads those of all other
    /// services. Waits only a moment.
    pub(super) async fn read_files(&self, known: ServiceFileStamps, lists: bool) -> Files {
        let dirs = self.shared.dirs.clone();
        let names: Vec<ServiceName> = known.keys().cloned().collect();
        self.keep_directory_thread();
        let read = self.directory.run_anyway(move || in_directory(&dirs, known, lists));
        let mut files = match within(Instant::now() + STATE_TIMEOUT, read).await {
            Ok(files) => files,
            Err(cause) => {
                let directory = self.shared.dirs.config.join("services");
                let errors = if lists { vec![silent(&directory, cause.clone())] } else { Vec::new() };
                let found =
                    names.into_iter().map(|name| (name, ServiceFileContent::Silent(cause.clone()))).collect();
                return Files { found, errors, is_there: false, links: Vec::new() };
            }
        };
        let until = Instant::now() + STATE_TIMEOUT;
        let links: Vec<_> = std::mem::take(&mut files.links)
            .into_iter()
            .map(|(name, known)| {
                let file = self.shared.dirs.service_file(&name);
                let seen = self.lanes_of(&name).file.run_anyway(move || read_content(&file, known));
                (name, seen)
            })
            .collect();
        for (name, seen) in links {
            let seen = within(until, seen).await;
            files.found.insert(name, seen.unwrap_or_else(ServiceFileContent::Silent));
        }
        files
    }

    fn keep_directory_thread(&self) {
        let mut held = self.directory_thread.borrow_mut();
        if held.is_none() {
            *held = self.directory.hold().ok();
        }
    }
}

async fn within<T>(until: Instant, read: impl Future<Output = io::Result<T>>) -> Result<T, String> {
    match timeout_at(until, read).await {
        Ok(Err(error)) if error.kind() != io::ErrorKind::TimedOut => Err(error.to_string()),
        Ok(Ok(read)) => Ok(read),
        Ok(Err(_)) | Err(_) => Err("its file system does not answer".to_owned()),
    }
}

/// A mistake without a place in the file.
pub(super) fn silent(file: &Path, cause: String) -> config::Error {
    let hint = "look at what the path leads to, such as a mount".to_owned();
    config::Error { file: file.to_owned(), at: None, key: None, cause, hint }
}

/// Blocks on the file system of the directory, and follows no link out of it.
fn in_directory(dirs: &Dirs, mut known: ServiceFileStamps, lists: bool) -> Files {
    let mut files = Files { is_there: dirs.config.join("services").is_dir(), ..Files::default() };
    let has_ephemeral = has_ephemeral(dirs);
    let places = [Some(&dirs.config), has_ephemeral.then_some(&dirs.runtime)];
    let mut listed: Vec<PathBuf> = Vec::new();
    for place in places.into_iter().flatten().filter(|_| lists) {
        match service_files(place) {
            Ok(found) => listed.extend(found),
            Err(error) => files.errors.push(error),
        }
    }
    for file in listed {
        match name_of(&file) {
            Ok(name) => _ = known.entry(name).or_default(),
            Err(error) => files.errors.push(error),
        }
    }
    for (name, known) in known {
        let (file, ephemeral) = (dirs.service_file(&name), dirs.ephemeral_file(&name));
        let file = if has_ephemeral && !is_there(&file) && is_there(&ephemeral) { ephemeral } else { file };
        if symlink_metadata(&file).is_ok_and(|found| found.is_symlink()) {
            files.links.push((name, known));
        } else {
            files.found.insert(name, read_content(&file, known));
        }
    }
    files
}

fn is_there(file: &Path) -> bool {
    symlink_metadata(file).is_ok()
}

fn read_content(file: &Path, known: Option<ServiceFileStamp>) -> ServiceFileContent {
    match ServiceFileStamp::at(file) {
        Ok(found) if Some(found) == known => ServiceFileContent::Same,
        Ok(found) => ServiceFileContent::File(found, read_service(file)),
        // A link that leads nowhere is not a removed file: its target may be about to be replaced.
        Err(error) => match symlink_metadata(file) {
            Ok(link) if link.is_symlink() => {
                ServiceFileContent::Silent(format!("its link leads nowhere: {error}"))
            }
            Ok(_) => ServiceFileContent::Silent(error.to_string()),
            Err(_) => ServiceFileContent::Absent,
        },
    }
}
