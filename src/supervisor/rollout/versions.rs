//! The versions in the store of a service: which one runs, what is reported of each, and which are removed.

use std::collections::BTreeSet;
use std::fs::metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use handoff_protocol::ids::{HandoffId, ServiceName};
use handoff_protocol::record::{Binary, Current};
use handoff_protocol::supervisor::Target;
use tokio::time::{Instant, timeout_at};

use super::binary::hex;
use super::origin::Comparison;
use crate::config;
use crate::control::{Error, Kind, api};
use crate::history;
use crate::store::{self, ContentMatch, Id, Store, Version};
use crate::supervisor::daemon::Daemon;
use crate::supervisor::process::{Process, Token};
use crate::supervisor::service::{Handle, Service, restore_current_version};
use crate::sys::regular;

/// Maximum size of a file that is read for a comparison.
const READ_MAX_BYTES: u64 = 16 << 20;
/// How long a caller waits for a file system that hangs.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum number of characters shown of the version that a process reports.
const NAME_MAX: usize = 128;
/// Time limit of the file system for removing versions.
const COLLECT_LIMIT: Duration = Duration::from_secs(30);

/// A binary as users know it.
pub(in crate::supervisor) struct ShownVersions {
    /// The path that was given.
    pub(in crate::supervisor) path: PathBuf,
    /// The file in the store.
    pub(in crate::supervisor) stored: Option<PathBuf>,
    pub(in crate::supervisor) version: Option<String>,
}

impl Service {
    /// The file that a target currently means.
    pub(in crate::supervisor) fn path_of(&self, target: Target) -> PathBuf {
        let current = || self.current_binary().map(|binary| binary.path.clone().into());
        match (target, &self.versions.candidate) {
            (Target::Candidate, Some(path)) => path.clone(),
            (Target::Candidate | Target::Committed, _) => {
                let ran = self.versions.trying.clone().or_else(current);
                ran.or_else(|| self.first_path()).unwrap_or_else(|| self.config.binary.clone())
            }
        }
    }

    /// What was brought in for a first start, unless the service file has changed since.
    fn first_path(&self) -> Option<PathBuf> {
        let of_file = (self.config.binary.as_path(), self.config.update.store);
        let first = self
            .versions
            .first
            .as_ref()
            .filter(|first| (first.named.as_path(), first.is_stored) == of_file)?;
        Some(first.path.clone())
    }

    /// The binary of the current generation. While the journal cannot be read, that of the process that serves.
    pub(in crate::supervisor) fn current_binary(&self) -> Option<&Binary> {
        let current = self.journal.standing().current.as_ref().map(|current| &current.binary);
        current.or_else(|| self.processes.incumbent().map(|process| &process.binary))
    }

    /// The binary at a path in the store. Its hash is its name.
    pub(in crate::supervisor) fn stored_binary(&self, path: &Path) -> Option<Binary> {
        let version = self.versions.store.version_at(path)?;
        Some(Binary { path: path.to_string_lossy().into_owned(), sha256: version.metadata.id.0 })
    }

    /// The current version, for users.
    pub(in crate::supervisor) fn shown(&self) -> ShownVersions {
        let path = self.path_of(Target::Committed);
        let current = self.current_binary().filter(|binary| Path::new(&binary.path) == path);
        let version = self.name_of(&path, current.map(|binary| &binary.sha256));
        match self.versions.store.version_at(&path) {
            Some(Version { usage: used, .. }) => {
                let source = used.source.map(|source| source.path);
                ShownVersions { path: source.unwrap_or_else(|| path.clone()), stored: Some(path), version }
            }
            None => ShownVersions { path, stored: None, version },
        }
    }

    /// The version name of a binary, as one of its processes reports it or as the store has it.
    pub(in crate::supervisor) fn name_of(&self, path: &Path, sha256: Option<&[u8; 32]>) -> Option<String> {
        let is_meant = |process: &&Process| {
            Path::new(&process.binary.path) == path
                && sha256.is_none_or(|sha256| *sha256 == process.binary.sha256)
        };
        let processes = self.processes.all();
        let said = processes.filter(is_meant).find_map(|process| process.release.clone());
        said.or_else(|| self.versions.store.version_at(path)?.name().map(str::to_owned))
    }

    /// Records the version that a process reports. It overrides what was read before, and the store keeps it.
    pub(in crate::supervisor) fn learn_version(&mut self, token: Token, id: HandoffId, said: &str) {
        let version: String = said.chars().filter(|it| !it.is_control()).take(NAME_MAX).collect();
        let version = version.trim();
        let process = self.processes.find_mut(token);
        // Another id violates the protocol.
        let Some(process) = process.filter(|_| id == self.machine.handoff() && !version.is_empty()) else {
            return;
        };
        process.release = Some(version.to_owned());
        let (handoff, path) = (process.handoff, PathBuf::from(&process.binary.path));
        for asked in self.operations.requested_mut() {
            asked.learn_version(handoff, version);
        }
        if let Some(stored) = self.versions.store.version_at(&path) {
            let (store, version) = (Arc::clone(&self.versions.store), version.to_owned());
            self.lanes.history.post(move || {
                if let Err(error) = store.note_reported_version(&stored.metadata.id, &version) {
                    tracing::warn!(%error, version, "the store does not learn what this version says it is");
                }
            });
        }
    }

    /// A binary, as the history records it.
    pub(in crate::supervisor) fn history_version(&self, binary: &Binary) -> history::Version {
        let sha256 = (binary.sha256 != [0; 32]).then(|| hex(&binary.sha256));
        let path = PathBuf::from(&binary.path);
        let version = self.name_of(&path, Some(&binary.sha256));
        let source = self.versions.store.version_at(&path).and_then(|version| version.usage.source);
        history::Version { path: source.map_or(path, |source| source.path), sha256, version }
    }

    /// Whether there is nothing to start the service from, not yet or not any more.
    pub(in crate::supervisor) fn needs_first(&self, config: &config::Service) -> bool {
        let lost =
            |binary: &Binary| config.update.store && self.versions.store.has_lost(Path::new(&binary.path));
        self.current_binary().is_none_or(lost)
    }

    /// Notes in the store that the current version runs. Does not wait for that.
    pub(in crate::supervisor) fn note_generation(&self) {
        if let Some((id, generation)) = self.generation_in_store() {
            let store = Arc::clone(&self.versions.store);
            self.lanes.history.post(move || note(&store, &id, generation));
        }
    }

    fn generation_in_store(&self) -> Option<(Id, u64)> {
        let current = self.journal.standing().current.as_ref()?;
        let version = self.versions.store.version_at(Path::new(&current.binary.path))?;
        Some((version.metadata.id, current.generation.0))
    }

    /// Removes what an earlier daemon has left in the middle of an import. Does not wait for that.
    pub(in crate::supervisor) fn sweep_store(&self) {
        if self.versions.store.has_leftovers() {
            let store = Arc::clone(&self.versions.store);
            self.lanes.imports.post(move || store.sweep());
        }
    }

    /// The versions that a process may run, or that may have to be started.
    fn versions_in_use(&self) -> BTreeSet<Id> {
        let standing = self.journal.standing();
        let generations = [&standing.current, &standing.previous].into_iter().flatten();
        let journal = generations.map(|Current { binary, .. }| &binary.path);
        let attempt = standing.attempt.iter().map(|attempt| &attempt.binary.path);
        let processes = self.processes.all();
        let processes = processes.map(|process| &process.binary.path);
        let first = self.first_path().filter(|_| standing.current.is_none());
        let staged = self
            .versions
            .staged
            .iter()
            .map(|staged| staged.binary.clone())
            .chain(self.versions.trying.clone());
        let paths = journal.chain(attempt).chain(processes).map(PathBuf::from).chain(first).chain(staged);
        paths
            .filter_map(|path| self.versions.store.version_at(&path))
            .map(|version| version.metadata.id)
            .collect()
    }

    fn version_status(&self, version: &Version) -> api::VersionStatus {
        let current = self.generation_in_store().is_some_and(|(id, _)| id == version.metadata.id);
        api::VersionStatus {
            service: self.name.clone(),
            sha256: version.metadata.id.to_string(),
            version: version.name().map(str::to_owned),
            kind: version.metadata.kind,
            binary: version.usage.source.as_ref().map(|source| source.path.clone()),
            stored: self.versions.store.path_of(version),
            size_bytes: version.metadata.size_bytes,
            added_at: version.metadata.added_unix_ms,
            generations: version.usage.generations.clone(),
            undone: version.usage.is_undone(),
            current,
            pinned: version.usage.pinned,
        }
    }

    fn question(&self) -> VersionQuery {
        let Some(binary) = self.current_binary() else { return VersionQuery::default() };
        let named = self.comparison(&self.config.binary);
        match self.versions.store.version_at(Path::new(&binary.path)) {
            Some(version) => {
                let stored = version.usage.source.as_ref().map(store::PathRecord::from);
                VersionQuery {
                    named,
                    stored,
                    in_store: Some((Arc::clone(&self.versions.store), version)),
                    in_place: None,
                }
            }
            None => {
                let pid = self.processes.incumbent().map(|process| process.pid());
                let pid = pid.filter(|_| !self.config.adapter.is_foreign());
                let given = self.origin().and_then(|origin| origin.given.clone());
                let (path, sha256) = (PathBuf::from(&binary.path), Id(binary.sha256));
                VersionQuery {
                    named,
                    in_place: Some(UnstoredProgram { given, path, sha256, pid }),
                    ..VersionQuery::default()
                }
            }
        }
    }
}

fn note(store: &Store, id: &Id, generation: u64) {
    if let Err(error) = store.note_committed(id, generation) {
        tracing::warn!(%error, generation, "the store does not know of this generation");
    }
}

/// What to find out about the files that a service came from.
#[derive(Default)]
struct VersionQuery {
    named: Option<Comparison>,
    /// What was at the path that was given, if the running version is in the store.
    stored: Option<store::PathRecord>,
    /// The running version, and the store that has it.
    in_store: Option<(Arc<Store>, Version)>,
    in_place: Option<UnstoredProgram>,
}

/// A running program that is not in the store.
struct UnstoredProgram {
    /// The path that was given, perhaps through links.
    given: Option<PathBuf>,
    path: PathBuf,
    sha256: Id,
    pid: Option<u32>,
}

/// The findings.
#[derive(Default)]
struct VersionFindings {
    skew: Option<api::Skew>,
    named: Option<api::NamedIs>,
    is_lost: bool,
}

impl VersionQuery {
    /// Blocks on the file system.
    fn see(&self) -> VersionFindings {
        let stored = self.stored.as_ref().and_then(|question| match question.answer() {
            ContentMatch::Other => Some(api::Skew::Changed),
            ContentMatch::Gone => Some(api::Skew::Gone),
            ContentMatch::Same | ContentMatch::Unknown => None,
        });
        VersionFindings {
            skew: stored.or_else(|| self.in_place.as_ref()?.skew()),
            named: self.named.as_ref().and_then(Comparison::answer),
            is_lost: self.in_store.as_ref().is_some_and(|(store, version)| !store.is_whole(version)),
        }
    }
}

impl UnstoredProgram {
    /// Blocks on the file system.
    fn skew(&self) -> Option<api::Skew> {
        let found = match metadata(&self.path) {
            Ok(found) => found,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Some(api::Skew::Deleted),
            Err(_) => return None,
        };
        let leads_to = self.given.as_deref().filter(|given| given.exists()).map(config::resolve);
        if leads_to.is_some_and(|leads_to| leads_to != self.path) {
            return Some(api::Skew::Changed);
        }
        let runs = self.pid.and_then(|pid| metadata(format!("/proc/{pid}/exe")).ok());
        if runs.as_ref().is_some_and(|runs| (runs.dev(), runs.ino()) == (found.dev(), found.ino())) {
            return None;
        }
        if found.size() > READ_MAX_BYTES {
            return runs.is_some().then_some(api::Skew::Changed);
        }
        // Another file may have the same content. And for a script, `exe` is its interpreter.
        let sha256 = regular::open_to_read(&self.path).and_then(Id::of).ok()?;
        (sha256 != self.sha256).then_some(api::Skew::Changed)
    }
}

/// The state of services, and whether the files that they came from are still the same.
pub(in crate::supervisor) async fn statuses(handles: Vec<Handle>) -> Vec<api::ServiceStatus> {
    let until = Instant::now() + TIMEOUT;
    // All checks run at the same time, each in a lane of its own.
    let look = |handle: &Handle| {
        handle.with(|service| {
            service.maintain_journal();
            service.renew_ended();
            let question = service.question();
            (service.status(), service.lanes.comparisons.run(move || question.see()))
        })
    };
    let looks: Vec<_> = handles.iter().map(look).collect();
    let mut statuses = Vec::with_capacity(looks.len());
    for (handle, (mut status, seen)) in handles.iter().zip(looks) {
        match timeout_at(until, seen).await {
            Ok(Ok(VersionFindings { skew, named, is_lost })) => {
                status.skew = skew;
                let named_by_file = || handle.read(|service| service.config.binary.clone());
                status.named = named.map(|is| api::Named { binary: named_by_file(), is });
                if is_lost {
                    status.problem = Some(restore_current_version(handle).await);
                }
            }
            Ok(Err(_)) | Err(_) => {
                let path = status.binary.display();
                let unseen = format!("It cannot be seen whether {path} has changed: it does not answer.");
                status.problem.get_or_insert(unseen);
            }
        }
        statuses.push(status);
    }
    statuses
}

/// Removes the versions of one service that need not be kept. The caller must hold its turn.
pub(in crate::supervisor) async fn collect(handle: &Handle) -> Result<Vec<api::VersionStatus>, Error> {
    let (store, keep, used, current) = handle.read(|service| {
        let keep = service.config.update.keep;
        (Arc::clone(&service.versions.store), keep, service.versions_in_use(), service.generation_in_store())
    });
    let (name, lane, at) = handle.read(|service| {
        (service.name.clone(), service.lanes.imports.clone(), service.shared.dirs.versions(&service.name))
    });
    let removed = lane
        .run_within(COLLECT_LIMIT, at.display().to_string(), move || {
            if let Some((id, generation)) = current {
                note(&store, &id, generation);
            }
            store.gc(keep, &used)
        })
        .await
        .map_err(|error| unfinished(&name, &at, &error))?
        .map_err(|error| {
            let message = format!("Versions of service {:?} cannot be removed: {error}.", name.as_str());
            Error::new(Kind::StorageFailed, message, error.hint())
        })?;
    Ok(handle.read(|service| removed.iter().map(|version| service.version_status(version)).collect()))
}

/// The error if the thread could not be started, or the file system does not answer.
pub(in crate::supervisor) fn unfinished(name: &ServiceName, path: &Path, error: &std::io::Error) -> Error {
    let message = format!("{} of service {:?} cannot be worked on: {error}.", path.display(), name.as_str());
    Error::new(Kind::StorageFailed, message, "Nothing was changed. Does its file system answer?")
}

impl Daemon {
    pub(in crate::supervisor) fn versions(&self, handle: &Handle) -> Vec<api::VersionStatus> {
        handle.read(|service| {
            service.versions.store.versions().iter().map(|version| service.version_status(version)).collect()
        })
    }

    pub(in crate::supervisor) async fn pin(
        &self,
        handle: &Handle,
        asked: api::Pin,
    ) -> Result<Vec<api::VersionStatus>, Error> {
        let (store, lane) = (handle.store(), handle.lanes().imports);
        let version = store.find_by_word(&asked.version).map_err(|error| {
            let message = format!("Service {:?}: {error}.", asked.service.as_str());
            Error::new(Kind::UnknownVersion, message, error.hint())
        })?;
        let at = store.path_of(&version);
        let pinned = lane.run(move || store.pin(&version.metadata.id, asked.pinned)).await;
        let pinned = pinned.map_err(|error| unfinished(&asked.service, &at, &error))?.map_err(|error| {
            let message =
                format!("The version of service {:?} is not pinned: {error}.", asked.service.as_str());
            Error::new(Kind::StorageFailed, message, error.hint())
        })?;
        Ok(vec![handle.read(|service| service.version_status(&pinned))])
    }

    pub(in crate::supervisor) async fn gc(
        &self,
        handles: Vec<Handle>,
    ) -> Result<Vec<api::VersionStatus>, Error> {
        let mut removed = Vec::new();
        let is_one = handles.len() == 1;
        for handle in handles {
            let (name, turn) = (handle.name(), handle.import_lock());
            // An upgrade holds the turn until its probation is over, and removes versions itself.
            match turn.try_lock() {
                Ok(_turn) => removed.extend(collect(&handle).await?),
                Err(_) if is_one => return Err(handle.read(Service::is_at_work)),
                Err(_) => {
                    tracing::info!(service = %name, "another version is brought in: nothing is removed now")
                }
            }
        }
        Ok(removed)
    }
}
