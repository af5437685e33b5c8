//! What a service has in its store: which version runs, what is told of it, and what is removed.

use std::collections::BTreeSet;
use std::fs::{File, metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use handoff_protocol::record::{Binary, Current};
use handoff_protocol::supervisor::Target;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::binary::hex;
use super::daemon::Daemon;
use super::install::rejected;
use super::service::{Handle, Service};
use crate::control::{Error, Kind, api};
use crate::history;
use crate::store::{Id, Look, Source, Store, Version};

/// A file that is larger is not read to find out whether it is the same.
const READ_MAX_BYTES: u64 = 16 << 20;
/// How long somebody who asks waits for a file system that hangs.
const PATIENCE: Duration = Duration::from_secs(1);

/// A binary as people know it.
pub(super) struct Shown {
    /// The path that was given.
    pub(super) path: PathBuf,
    /// The file in the store.
    pub(super) stored: Option<PathBuf>,
    pub(super) version: Option<String>,
}

impl Service {
    /// The file that a target means now.
    pub(super) fn path_of(&self, target: Target) -> PathBuf {
        let current = || self.current_binary().map(|binary| binary.path.clone().into());
        match (target, &self.candidate) {
            (Target::Candidate, Some(path)) => path.clone(),
            (Target::Candidate | Target::Committed, _) => {
                current().or_else(|| self.first.clone()).unwrap_or_else(|| self.config.binary.clone())
            }
        }
    }

    /// The binary of the current generation.
    pub(super) fn current_binary(&self) -> Option<&Binary> {
        self.journal.standing().current.as_ref().map(|current| &current.binary)
    }

    /// The binary at a path in the store. Its hash is its name.
    pub(super) fn stored_binary(&self, path: &Path) -> Option<Binary> {
        let version = self.store.version_at(path)?;
        Some(Binary { path: path.to_string_lossy().into_owned(), sha256: version.made.id.0 })
    }

    /// What is current, as it is told.
    pub(super) fn shown(&self) -> Shown {
        let path = self.path_of(Target::Committed);
        match self.store.version_at(&path) {
            Some(Version { made, used }) => {
                let source = used.source.map(|source| source.path);
                Shown {
                    path: source.unwrap_or_else(|| path.clone()),
                    stored: Some(path),
                    version: made.version,
                }
            }
            None => Shown { path, stored: None, version: None },
        }
    }

    /// A binary, as the history tells it.
    pub(super) fn told_version(&self, binary: &Binary) -> history::Version {
        let sha256 = (binary.sha256 != [0; 32]).then(|| hex(&binary.sha256));
        let path = PathBuf::from(&binary.path);
        match self.store.version_at(&path) {
            Some(Version { made, used }) => history::Version {
                path: used.source.map_or(path, |source| source.path),
                sha256,
                version: made.version,
            },
            None => history::Version { path, sha256, version: None },
        }
    }

    /// Whether there is nothing yet that a start could be started from, or no longer.
    pub(super) fn needs_first(&self) -> bool {
        self.config.update.store
            && self.current_binary().is_none_or(|binary| self.store.has_lost(Path::new(&binary.path)))
    }

    /// The store learns that the current version runs. Does not wait for that.
    pub(super) fn note_generation(&self) {
        if let Some((id, generation)) = self.generation_in_store() {
            let store = Arc::clone(&self.store);
            spawn_blocking(move || note(&store, &id, generation));
        }
    }

    fn generation_in_store(&self) -> Option<(Id, u64)> {
        let current = self.journal.standing().current.as_ref()?;
        let version = self.store.version_at(Path::new(&current.binary.path))?;
        Some((version.made.id, current.generation.0))
    }

    /// Removes what an earlier daemon has left in the middle of an import. Does not wait for that.
    pub(super) fn sweep_store(&self) {
        if self.store.has_leftovers() {
            let store = Arc::clone(&self.store);
            spawn_blocking(move || store.sweep());
        }
    }

    /// The versions of which a process may run, or may have to be started.
    fn versions_in_use(&self) -> BTreeSet<Id> {
        let standing = self.journal.standing();
        let generations = [&standing.current, &standing.previous].into_iter().flatten();
        let journal = generations.map(|Current { binary, .. }| &binary.path);
        let attempt = standing.attempt.iter().map(|attempt| &attempt.binary.path);
        let parties = [&self.incumbent, &self.successor, &self.retiree].into_iter().flatten();
        let parties = parties.map(|party| &party.binary.path);
        let first = self.first.clone().filter(|_| standing.current.is_none());
        let paths = journal.chain(attempt).chain(parties).map(PathBuf::from).chain(first);
        paths.filter_map(|path| self.store.version_at(&path)).map(|version| version.made.id).collect()
    }

    fn version_status(&self, version: &Version) -> api::VersionStatus {
        let current = self.generation_in_store().is_some_and(|(id, _)| id == version.made.id);
        api::VersionStatus {
            service: self.name.clone(),
            sha256: version.made.id.to_string(),
            version: version.made.version.clone(),
            kind: version.made.kind,
            binary: version.used.source.as_ref().map(|source| source.path.clone()),
            stored: self.store.path_of(version),
            size_bytes: version.made.size_bytes,
            added_at: version.made.added_unix_ms,
            generations: version.used.generations.clone(),
            current,
            pinned: version.used.pinned,
        }
    }

    fn question(&self) -> Option<Question> {
        let binary = self.current_binary()?;
        match self.store.version_at(Path::new(&binary.path)) {
            Some(version) => {
                let source = version.used.source?;
                let (path, look, sha256) = (watched(&source), Some(source.look), source.sha256);
                Some(Question { path, look, sha256, is_stored: true, pid: None })
            }
            None => {
                let pid = self.incumbent.as_ref().map(|party| party.process.pid);
                let pid = pid.filter(|_| !self.config.adapter.is_foreign());
                let (path, sha256) = (PathBuf::from(&binary.path), Id(binary.sha256));
                Some(Question { path, look: None, sha256, is_stored: false, pid })
            }
        }
    }
}

fn note(store: &Store, id: &Id, generation: u64) {
    if let Err(error) = store.note_committed(id, generation) {
        tracing::warn!(%error, generation, "the store does not know of this generation");
    }
}

/// The file whose look is known.
fn watched(source: &Source) -> PathBuf {
    match &source.member {
        // Of a directory it is the file that is started.
        Some(member) if source.path.is_dir() => source.path.join(member),
        _ => source.path.clone(),
    }
}

/// What is to be found out about the path that was given.
struct Question {
    path: PathBuf,
    look: Option<Look>,
    sha256: Id,
    is_stored: bool,
    pid: Option<u32>,
}

impl Question {
    /// Blocks on the file system.
    fn answer(&self) -> Option<api::Skew> {
        let found = match metadata(&self.path) {
            Ok(found) => found,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Some(if self.is_stored { api::Skew::Gone } else { api::Skew::Deleted });
            }
            Err(_) => return None,
        };
        if self.look == Some(Look::of(&found)) {
            return None;
        }
        let runs = self.pid.and_then(|pid| metadata(format!("/proc/{pid}/exe")).ok());
        if runs.as_ref().is_some_and(|runs| (runs.dev(), runs.ino()) == (found.dev(), found.ino())) {
            return None;
        }
        if self.look.is_some_and(|look| look.size != found.size()) {
            return Some(api::Skew::Changed);
        }
        if found.size() > READ_MAX_BYTES {
            return (self.look.is_some() || runs.is_some()).then_some(api::Skew::Changed);
        }
        // Another file may have the same content. And of a script it is the interpreter that is executed.
        let sha256 = File::open(&self.path).and_then(Id::of).ok()?;
        (sha256 != self.sha256).then_some(api::Skew::Changed)
    }
}

/// What services are doing, and whether the files that they came from are still the same.
pub(super) async fn statuses(handles: Vec<Handle>) -> Vec<api::ServiceStatus> {
    let look = |handle: &Handle| handle.with(|service| (service.status(), service.question()));
    let (mut statuses, questions): (Vec<_>, Vec<_>) = handles.iter().map(look).unzip();
    let answers = spawn_blocking(move || {
        questions.iter().map(|question| question.as_ref()?.answer()).collect::<Vec<_>>()
    });
    if let Ok(Ok(answers)) = timeout(PATIENCE, answers).await {
        statuses.iter_mut().zip(answers).for_each(|(status, skew)| status.skew = skew);
    }
    statuses
}

/// Removes what need not be kept of one service. Whoever calls has its turn.
pub(super) async fn collect(handle: &Handle) -> Result<Vec<api::VersionStatus>, Error> {
    let (store, keep, used, current) = handle.with(|service| {
        let keep = service.config.update.keep;
        (Arc::clone(&service.store), keep, service.versions_in_use(), service.generation_in_store())
    });
    let name = handle.with(|service| service.name.clone());
    let removed = blocking(move || {
        if let Some((id, generation)) = current {
            note(&store, &id, generation);
        }
        store.gc(keep, &used)
    })
    .await?
    .map_err(|error| {
        let message = format!("Versions of service {:?} cannot be removed: {error}.", name.as_str());
        Error::new(Kind::StorageFailed, message, error.hint())
    })?;
    Ok(handle.with(|service| removed.iter().map(|version| service.version_status(version)).collect()))
}

/// What is done on another thread.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    spawn_blocking(work).await.map_err(Error::internal)
}

impl Daemon {
    pub(super) fn versions(&self, handle: &Handle) -> Vec<api::VersionStatus> {
        handle.with(|service| {
            service.store.versions().iter().map(|version| service.version_status(version)).collect()
        })
    }

    pub(super) async fn pin(
        &self,
        handle: &Handle,
        asked: api::Pin,
    ) -> Result<Vec<api::VersionStatus>, Error> {
        let store = handle.with(|service| Arc::clone(&service.store));
        let version = store.meant_by(&asked.version).map_err(|error| rejected(&asked.service, &error))?;
        let pinned = blocking(move || store.pin(&version.made.id, asked.pinned)).await?;
        let pinned = pinned.map_err(|error| {
            let message =
                format!("The version of service {:?} is not pinned: {error}.", asked.service.as_str());
            Error::new(Kind::StorageFailed, message, error.hint())
        })?;
        Ok(vec![handle.with(|service| service.version_status(&pinned))])
    }

    pub(super) async fn gc(&self, handles: Vec<Handle>) -> Result<Vec<api::VersionStatus>, Error> {
        let mut removed = Vec::new();
        for handle in handles {
            let turn = handle.with(|service| Arc::clone(&service.turn));
            let _turn = turn.lock().await;
            removed.extend(collect(&handle).await?);
        }
        Ok(removed)
    }
}
