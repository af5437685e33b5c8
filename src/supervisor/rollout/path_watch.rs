//! Brings in new versions that appear at a watched path.
//!
//! Each content is tried only once, whatever the result, even across restarts of the daemon. Before a file is run, it
//! must have been left alone for a while, and only root and the daemon's user can have put it there.

use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use handoff_protocol::ids::{HandoffId, ServiceName};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::binary::hex;
use crate::config;
use crate::control::{Caller, Error, Kind, api};
use crate::history::{Ending, Operation};
use crate::store::Id;
use crate::supervisor::daemon::Daemon;
use crate::supervisor::input::{Input, Inputs, Reply};
use crate::supervisor::lane::{Lane, Lanes};
use crate::supervisor::operations::RequestedOperation;
use crate::supervisor::service::Service;
use crate::watch::memory::SeenContents;
use crate::watch::trust::{Untrusted, open_trusted};
use crate::watch::{PathAnchor, PathEvent, PathLookup, PathWatcher};

/// The path watch of a service. It ends when this is dropped.
#[derive(Debug)]
pub(in crate::supervisor) struct PathWatch {
    config: config::WatchSettings,
    task: AbortHandle,
}

impl Drop for PathWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A version to bring in.
#[derive(Debug)]
pub(in crate::supervisor) struct Arrival {
    service: ServiceName,
    path: PathBuf,
    watched: PathBuf,
    done: oneshot::Sender<Result<api::Outcome, Error>>,
}

/// Brings in everything that arrives, forever. Work in progress outlives the watch that found the version.
pub(in crate::supervisor) async fn install_arrivals(
    daemon: Rc<Daemon>,
    mut arrivals: mpsc::UnboundedReceiver<Arrival>,
) {
    while let Some(Arrival { service, path, watched, done }) = arrivals.recv().await {
        let daemon = Rc::clone(&daemon);
        spawn_local(async move {
            let by = Caller::own(format!("watch {}", watched.display()));
            let _ = done.send(daemon.install_arrival(service, path, by).await);
        });
    }
}

impl Daemon {
    async fn install_arrival(
        &self,
        service: ServiceName,
        path: PathBuf,
        by: Caller,
    ) -> Result<api::Outcome, Error> {
        let wanted = api::Install { service, path, claims: api::Claims::default(), version: None };
        self.install(wanted, by, None).await
    }
}

impl Service {
    /// Watches what the service file names now.
    pub(in crate::supervisor) fn adjust_path_watch(&mut self) {
        if self.versions.path_watch.as_ref().map(|watching| &watching.config) == self.config.watch.as_ref() {
            return;
        }
        self.versions.path_watch = self.config.watch.clone().map(|config| {
            let watcher = ArrivalWatcher {
                config: config.clone(),
                service: self.name.clone(),
                directory: self.shared.dirs.service_state(&self.name),
                arrivals: self.shared.arrivals.clone(),
                lanes: self.lanes.clone(),
                settled: Rc::clone(&self.settled),
                inputs: self.inputs.clone(),
            };
            PathWatch { config, task: spawn_local(watcher.watch()).abort_handle() }
        });
    }

    /// Handles news of the watched path. Another path may be watched by now.
    pub(in crate::supervisor) fn path_updated(&mut self, update: PathUpdate) {
        let is_watched =
            |path: &Path| self.versions.path_watch.as_ref().is_some_and(|it| it.config.path == path);
        match update {
            PathUpdate::IsOpen(reply) => drop(reply.send(self.is_open_to_upgrades())),
            PathUpdate::Runs(sha256, reply) => {
                let runs = self.current_binary().is_some_and(|binary| hex(&binary.sha256) == sha256);
                let _ = reply.send(runs);
            }
            PathUpdate::Refused(path, cause) if is_watched(&path) => self.refuse_watched(&path, &cause),
            PathUpdate::Warning(path, what) if is_watched(&path) => self.report_watch(&path, &what),
            PathUpdate::Refused(..) | PathUpdate::Warning(..) => {}
        }
    }

    fn report_watch(&mut self, path: &Path, what: &str) {
        tracing::warn!(path = %path.display(), "{what}");
        self.problems.at_watched_path(path, what);
    }

    /// The history records this as well.
    fn refuse_watched(&mut self, path: &Path, cause: &Untrusted) {
        let asked =
            RequestedOperation::new(Operation::Install, Caller::own(format!("watch {}", path.display())));
        let mut entry = self.entry(&asked, Ending::Rejected, Some(&cause.to_string()));
        entry.id = HandoffId::from_uuid(Uuid::now_v7());
        entry.to = Some(crate::history::Version { path: path.to_owned(), sha256: None, version: None });
        entry.from = self.current_version();
        (entry.phases, entry.accept_gap_us, entry.took_us) = (Vec::new(), None, 0);
        self.operations.recorder().append(entry);
        self.report_watch(path, &format!("it is not installed: {cause}"));
    }
}

/// The minimum time until a version that came at the wrong moment is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// News of a watched path, and questions about it.
pub(in crate::supervisor) enum PathUpdate {
    /// Whether the service could be upgraded now.
    IsOpen(Reply<bool>),
    /// Whether the current version has this content.
    Runs(String, Reply<bool>),
    /// What is at the path must not be run.
    Refused(PathBuf, Untrusted),
    /// A message about it for the user.
    Warning(PathBuf, String),
}

/// The state of the task that watches a path.
struct ArrivalWatcher {
    config: config::WatchSettings,
    service: ServiceName,
    /// The state directory of the service.
    directory: PathBuf,
    arrivals: mpsc::UnboundedSender<Arrival>,
    lanes: Lanes,
    /// Notified when the service comes to rest.
    settled: Rc<Notify>,
    inputs: Inputs,
}

impl ArrivalWatcher {
    async fn watch(self) {
        if let Err(error) = self.follow().await {
            self.warn(format!("it is not watched until the next start of the daemon: {error}"));
        }
    }

    fn warn(&self, what: String) {
        self.inputs.send(Input::Path(PathUpdate::Warning(self.config.path.clone(), what)));
    }

    async fn follow(&self) -> io::Result<()> {
        let lane = self.lanes.watch.clone();
        let find = move |path: PathBuf| -> PathLookup {
            let found = lane.run(move || PathAnchor::find(&path));
            Box::pin(async move { found.await? })
        };
        let mut watch = PathWatcher::by(&self.config.path, find).await?;
        let settle = Duration::from_millis(self.config.settle_ms);
        let mut due: Option<Instant> = None;
        loop {
            tokio::select! {
                // What has already happened comes before what is due.
                biased;
                update = watch.next() => due = match update? {
                    PathEvent::Whole | PathEvent::Look => Some(Instant::now() + settle),
                    PathEvent::Written | PathEvent::Gone => None,
                },
                () = until(due) => due = self.check_path().await.then(|| Instant::now() + settle.max(RETRY_PAUSE)),
            }
        }
    }

    /// Checks the path, and brings in a new version. Returns `true` if it should check again.
    async fn check_path(&self) -> bool {
        if !self.until_open().await {
            return false;
        }
        let (watched, directory) = (self.config.path.clone(), self.directory.clone());
        let found = match self.lanes.imports.run(move || examine(&watched, &directory)).await {
            Ok(Ok(Some(found))) => found,
            Ok(Ok(None)) | Err(_) => return false,
            Ok(Err(cause)) => {
                self.inputs.send(Input::Path(PathUpdate::Refused(self.config.path.clone(), cause)));
                return false;
            }
        };
        let (service, SettledFile { path, sha256, memory }) = (&self.service, found);
        if memory.has(&sha256) {
            tracing::info!(%service, path = %path.display(), sha256, "was seen before: it is not brought in again");
            return false;
        }
        // Recorded before the try: if the version brings the daemon down, that happens once.
        let memory = match remember(&self.lanes.imports, memory, &sha256).await {
            Ok(memory) => memory,
            Err(error) => {
                self.warn(format!("it is not installed, since it could not be remembered: {error}"));
                return false;
            }
        };
        let runs = self.inputs.ask(|reply| Input::Path(PathUpdate::Runs(sha256.clone(), reply))).await;
        if runs.unwrap_or(false) {
            tracing::info!(%service, path = %path.display(), sha256, "runs already");
            return false;
        }
        tracing::info!(%service, path = %path.display(), sha256, "a new version has appeared");
        let (done, ended) = oneshot::channel();
        let arrival = Arrival { service: service.clone(), path, watched: self.config.path.clone(), done };
        // Neither fails while the daemon runs.
        if self.arrivals.send(arrival).is_err() {
            return false;
        }
        let Ok(result) = ended.await else { return false };
        self.after(result, memory, sha256).await
    }

    /// Reports the result. Returns `true` if the version should be tried again.
    async fn after(
        &self,
        result: Result<api::Outcome, Error>,
        mut memory: SeenContents,
        sha256: String,
    ) -> bool {
        let message = match result {
            Ok(outcome) if outcome.outcome == api::Ending::RolledBack => {
                let reason = outcome.reason.unwrap_or_default();
                format!("it was rolled back and is not tried again: {reason}")
            }
            Ok(_) => return false,
            // It came at the wrong moment.
            Err(error) if matches!(error.kind, Kind::Busy | Kind::NotRunning) => {
                let forgotten = self.lanes.imports.run(move || memory.remove(&sha256)).await;
                tracing::info!(%error, "it is tried again");
                return matches!(forgotten, Ok(Ok(())));
            }
            Err(error) => {
                format!("it is not installed, and not tried again: {}", error.message.trim_end_matches('.'))
            }
        };
        self.warn(message);
        false
    }

    /// Completes when the service could be upgraded. For a stopped service, that is after its start. Returns `false`
    /// if the service is gone.
    async fn until_open(&self) -> bool {
        loop {
            let waiting = self.settled.notified();
            match self.inputs.ask(|reply| Input::Path(PathUpdate::IsOpen(reply))).await {
                Some(true) => return true,
                Some(false) => waiting.await,
                None => return false,
            }
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// A file at the path that has been left alone.
struct SettledFile {
    /// The path without links.
    path: PathBuf,
    sha256: String,
    memory: SeenContents,
}

async fn remember(lane: &Lane, mut memory: SeenContents, sha256: &str) -> io::Result<SeenContents> {
    let sha256 = sha256.to_owned();
    lane.run(move || memory.add(&sha256).map(|()| memory)).await?
}

/// The file at the path; `None` if it is gone. Blocks on the file system.
fn examine(watched: &Path, directory: &Path) -> Result<Option<SettledFile>, Untrusted> {
    match watched.symlink_metadata() {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        _ => {}
    }
    let (path, file) = open_trusted(watched)?;
    let sha256 = Id::of(&file).map_err(|error| Untrusted::Unreadable(path.clone(), error))?.to_string();
    Ok(Some(SettledFile { path, sha256, memory: SeenContents::open(directory) }))
}
