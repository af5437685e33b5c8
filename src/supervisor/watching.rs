//! New versions that appear at a watched path are brought in by themselves.
//!
//! A content is tried once, whatever comes of it, also across restarts of the daemon. Before a file is run it must have
//! been left alone for a while, and nobody but root and the user of the daemon can have put it there.

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::time::Duration;

use handoff_protocol::ids::{HandoffId, ServiceName};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::binary::hex;
use super::daemon::Daemon;
use super::lane::Lane;
use super::recording::Asked;
use super::service::Service;
use crate::config;
use crate::control::{Caller, Error, Kind, api};
use crate::history::{Ending, Operation};
use crate::store::Id;
use crate::watch::memory::Memory;
use crate::watch::trust::{Untrusted, open_trusted};
use crate::watch::{Finding, Nearest, News, Watch};

/// The watch of a service. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Watching {
    config: config::Watch,
    task: AbortHandle,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A version that is to be brought in.
#[derive(Debug)]
pub(super) struct Arrival {
    service: ServiceName,
    path: PathBuf,
    watched: PathBuf,
    done: oneshot::Sender<Result<api::Outcome, Error>>,
}

/// Brings in what arrives, for ever. What is under way outlives the watch that found it.
pub(super) async fn bring_in_all(daemon: Rc<Daemon>, mut arrivals: mpsc::UnboundedReceiver<Arrival>) {
    while let Some(Arrival { service, path, watched, done }) = arrivals.recv().await {
        let daemon = Rc::clone(&daemon);
        spawn_local(async move {
            let by = Caller::own(format!("watch {}", watched.display()));
            let _ = done.send(daemon.bring_in(service, path, by).await);
        });
    }
}

impl Daemon {
    async fn bring_in(&self, service: ServiceName, path: PathBuf, by: Caller) -> Result<api::Outcome, Error> {
        let wanted = api::Install { service, path, claims: api::Claims::default(), version: None };
        self.install(wanted, by, None).await
    }
}

impl Service {
    /// Watches what the service file names now.
    pub(super) fn adjust_watch(&mut self) {
        if self.lookout.as_ref().map(|watching| &watching.config) == self.config.watch.as_ref() {
            return;
        }
        let this = self.this.clone();
        self.lookout = self.config.watch.clone().map(|config| {
            let task = spawn_local(watch(this, config.clone())).abort_handle();
            Watching { config, task }
        });
    }

    fn tell_of_watch(&mut self, path: &Path, what: &str) {
        tracing::warn!(service = %self.name, path = %path.display(), "{what}");
        self.problem = Some(format!("What is at {}: {what}.", path.display()));
    }

    /// In the history, too.
    fn refuse_watched(&mut self, path: &Path, cause: &Untrusted) {
        let asked = Asked::new(Operation::Install, Caller::own(format!("watch {}", path.display())));
        let mut entry = self.entry(&asked, Ending::Rejected, Some(&cause.to_string()));
        entry.id = HandoffId::from_uuid(Uuid::now_v7());
        entry.to = Some(crate::history::Version { path: path.to_owned(), sha256: None, version: None });
        entry.from = self.current_version();
        (entry.phases, entry.accept_gap_us, entry.took_us) = (Vec::new(), None, 0);
        self.recorder.append(entry);
        self.tell_of_watch(path, &format!("it is not installed: {cause}"));
    }
}

/// What came at the wrong moment is looked at again no earlier than after this.
const AGAIN: Duration = Duration::from_secs(1);

type Weakly = Weak<RefCell<Service>>;

async fn watch(service: Weakly, config: config::Watch) {
    if let Err(error) = follow(&service, &config).await
        && let Some(service) = service.upgrade()
    {
        let what = format!("it is not watched until the next start of the daemon: {error}");
        service.borrow_mut().tell_of_watch(&config.path, &what);
    }
}

async fn follow(service: &Weakly, config: &config::Watch) -> io::Result<()> {
    let Some(lane) = service.upgrade().map(|service| service.borrow().lanes.watch.clone()) else {
        return Ok(());
    };
    let find = move |path: PathBuf| -> Finding {
        let found = lane.run(move || Nearest::find(&path));
        Box::pin(async move { found.await? })
    };
    let mut watch = Watch::by(&config.path, find).await?;
    let settle = Duration::from_millis(config.settle_ms);
    let mut due: Option<Instant> = None;
    loop {
        tokio::select! {
            // What has happened by now comes before what is due.
            biased;
            news = watch.next() => due = match news? {
                News::Whole | News::Look => Some(Instant::now() + settle),
                News::Written | News::Gone => None,
            },
            () = until(due) => due = look(service, config).await.then(|| Instant::now() + settle.max(AGAIN)),
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// A file at the path that nobody touches any more.
struct Found {
    /// Without links.
    path: PathBuf,
    sha256: String,
    memory: Memory,
}

/// Looks at the path, and brings in what is new there. `true` if it is to be looked again.
async fn look(service: &Weakly, config: &config::Watch) -> bool {
    until_open(service).await;
    let Some(strong) = service.upgrade() else { return false };
    let (name, arrivals, directory, lane) = {
        let service = strong.borrow();
        let directory = service.shared.dirs.service_state(&service.name);
        (service.name.clone(), service.shared.arrivals.clone(), directory, service.lanes.imports.clone())
    };
    let watched = config.path.clone();
    let found = match lane.run(move || examine(&watched, &directory)).await {
        Ok(Ok(Some(found))) => found,
        Ok(Ok(None)) | Err(_) => return false,
        Ok(Err(cause)) => {
            strong.borrow_mut().refuse_watched(&config.path, &cause);
            return false;
        }
    };
    let Found { path, sha256, memory } = found;
    if memory.has(&sha256) {
        tracing::info!(service = %name, path = %path.display(), sha256, "was seen before: it is not brought in again");
        return false;
    }
    // Before it is tried: should it bring the daemon down, it does so once.
    let memory = match remember(&lane, memory, &sha256).await {
        Ok(memory) => memory,
        Err(error) => {
            let what = format!("it is not installed, since it could not be remembered: {error}");
            strong.borrow_mut().tell_of_watch(&config.path, &what);
            return false;
        }
    };
    let runs = strong.borrow().current_binary().is_some_and(|binary| hex(&binary.sha256) == sha256);
    if runs {
        tracing::info!(service = %name, path = %path.display(), sha256, "runs already");
        return false;
    }
    tracing::info!(service = %name, path = %path.display(), sha256, "a new version has appeared");
    let (done, ended) = oneshot::channel();
    let arrival = Arrival { service: name, path, watched: config.path.clone(), done };
    // Neither fails while the daemon is there.
    if arrivals.send(arrival).is_err() {
        return false;
    }
    drop(strong);
    let Ok(result) = ended.await else { return false };
    after(service, config, result, (lane, memory), sha256).await
}

/// Tells what came of it. `true` if it is to be tried again.
async fn after(
    service: &Weakly,
    config: &config::Watch,
    result: Result<api::Outcome, Error>,
    (lane, mut memory): (Lane, Memory),
    sha256: String,
) -> bool {
    let Some(service) = service.upgrade() else { return false };
    let told = match result {
        Ok(outcome) if outcome.outcome == api::Ending::RolledBack => {
            let reason = outcome.reason.unwrap_or_default();
            format!("it was rolled back and is not tried again: {reason}")
        }
        Ok(_) => return false,
        // It came at the wrong moment.
        Err(error) if matches!(error.kind, Kind::Busy | Kind::NotRunning) => {
            let forgotten = lane.run(move || memory.remove(&sha256)).await;
            tracing::info!(%error, "it is tried again");
            return matches!(forgotten, Ok(Ok(())));
        }
        Err(error) => {
            format!("it is not installed, and not tried again: {}", error.message.trim_end_matches('.'))
        }
    };
    service.borrow_mut().tell_of_watch(&config.path, &told);
    false
}

/// Completes when the service could be upgraded. One that is stopped is waited for until somebody starts it.
async fn until_open(service: &Weakly) {
    loop {
        let Some(strong) = service.upgrade() else { return };
        let settled = Rc::clone(&strong.borrow().settled);
        let waiting = settled.notified();
        if strong.borrow().is_open_to_upgrades() {
            return;
        }
        drop(strong);
        waiting.await;
    }
}

async fn remember(lane: &Lane, mut memory: Memory, sha256: &str) -> io::Result<Memory> {
    let sha256 = sha256.to_owned();
    lane.run(move || memory.add(&sha256).map(|()| memory)).await?
}

/// What is at the path now; nothing if it is gone. Blocks on the file system.
fn examine(watched: &Path, directory: &Path) -> Result<Option<Found>, Untrusted> {
    match watched.symlink_metadata() {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        _ => {}
    }
    let (path, file) = open_trusted(watched)?;
    let sha256 = Id::of(&file).map_err(|error| Untrusted::Unreadable(path.clone(), error))?.to_string();
    Ok(Some(Found { path, sha256, memory: Memory::open(directory) }))
}
