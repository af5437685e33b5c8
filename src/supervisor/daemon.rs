//! From the start of the daemon to its end.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use handoff_protocol::ids::ServiceName;
use handoff_protocol::record::Fact;
use handoff_protocol::supervisor::{Phase, Request};
use rustix::fs::{FlockOperation, flock};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

use super::adopt::sweep;
use super::binary::Hashes;
use super::install;
use super::keeping::Keeping;
use super::recording::{Asked, Recorder};
use super::running;
use super::service::{Handle, Service};
use super::systemd::{Systemd, take_stored};
use super::timeline::Operation;
use super::watching::{Arrival, bring_in_all};
use crate::config::{self, Dirs, DirsError, load};
use crate::control::{BindError, Caller, Listener, serve};
use crate::crash_points::crash_point;
use crate::history;
use crate::journal::Journal;
use crate::store::Store;
use crate::sys::files::raise_files_limit;
use crate::sys::process::ProcessId;
use crate::sys::signals;
use crate::sys::spawn::close_all_on_exec;

/// Why the daemon cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory cannot be made or is not safe.
    #[error(transparent)]
    Dirs(#[from] DirsError),
    /// Another daemon has the state directory.
    #[error("the state directory {} is in use by another handoff daemon{owner}; there can be one", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Its pid, if it is known.
        owner: String,
    },
    /// The lock file cannot be used.
    #[error("cannot lock {}: {source}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The control socket cannot be opened.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The keeper cannot be started.
    #[error("the keeper cannot be started: {0}")]
    Keeper(io::Error),
    /// Something that the kernel should always give.
    #[error("the daemon cannot run: {0}")]
    System(#[from] io::Error),
}

/// What all services share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) dirs: Dirs,
    pub(super) hashes: Hashes,
    pub(super) keeper: Keeping,
    pub(super) systemd: Rc<Systemd>,
    /// Where versions go that have appeared by themselves.
    pub(super) arrivals: mpsc::UnboundedSender<Arrival>,
    /// How many files a service may have open: as many as this process might when it was started.
    pub(super) files_limit: u64,
}

/// All services.
#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) shared: Rc<Shared>,
    pub(super) services: RefCell<BTreeMap<ServiceName, Handle>>,
}

/// Runs the daemon until SIGTERM or SIGINT, then stops the services in order and returns. A second signal returns at
/// once and leaves the services running. SIGQUIT does so without stopping any. Blocks.
pub fn run(dirs: Dirs) -> Result<(), Error> {
    dirs.create()?;
    close_all_on_exec()?;
    // A file limit is an error of the journal, to be told, not an end.
    signals::ignore(rustix::process::Signal::XFSZ)?;
    let stored = take_stored();
    let files_limit = raise_files_limit()?;
    let lock = StateLock::take(&dirs)?;
    crash_point!("supervisor/start/locked");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .thread_keep_alive(std::time::Duration::from_secs(1))
        .build()?;
    LocalSet::new().block_on(&runtime, main(dirs, lock, stored, files_limit))
}

async fn main(
    dirs: Dirs,
    mut lock: StateLock,
    stored: BTreeMap<String, OwnedFd>,
    files_limit: u64,
) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut quit = signal(SignalKind::quit())?;
    let control = Listener::bind(&dirs.control_socket())?;
    crash_point!("supervisor/start/control");
    let systemd = Rc::new(Systemd::new()?);
    let keeper = Keeping::start(&dirs, Rc::clone(&systemd), stored).map_err(Error::Keeper)?;
    let (arrivals, arrived) = mpsc::unbounded_channel();
    let daemon = Rc::new(Daemon {
        shared: Rc::new(Shared {
            dirs: dirs.clone(),
            hashes: Hashes::default(),
            keeper,
            systemd,
            arrivals,
            files_limit,
        }),
        services: RefCell::default(),
    });
    tokio::task::spawn_local(bring_in_all(Rc::clone(&daemon), arrived));
    crash_point!("supervisor/start/keeper");
    sweep(&dirs.adopt_dir());
    daemon.load_all(lock.was_lost());
    lock.has_started()?;
    crash_point!("supervisor/start/loaded");
    tracing::info!(socket = %dirs.control_socket().display(), "ready");
    daemon.shared.systemd.ready();
    tokio::select! {
        ended = serve(control, Rc::clone(&daemon)) => { ended?; }
        () = either(&mut terminate, &mut interrupt) => {}
        _ = quit.recv() => {
            tracing::info!("leaving; the services keep running, and the next daemon takes them over");
            daemon.flush().await;
            return Ok(());
        }
        // A terminal that is closed is no reason to end what others use.
        never = ignore(&mut hangup) => match never {},
    }
    lock.leave_in_order();
    tracing::info!("stopping all services; signal once more to leave them running");
    daemon.shared.systemd.stopping();
    tokio::select! {
        () = daemon.stop_all() => daemon.shared.keeper.quit(),
        () = either(&mut terminate, &mut interrupt) => tracing::warn!("leaving; the services keep running"),
    }
    daemon.flush().await;
    Ok(())
}

async fn ignore(signal: &mut Signal) -> Infallible {
    loop {
        if signal.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        tracing::info!("SIGHUP is ignored: a service file is read whenever it is needed");
    }
}

async fn either(first: &mut Signal, second: &mut Signal) {
    tokio::select! {
        _ = first.recv() => {}
        _ = second.recv() => {}
    }
}

impl Daemon {
    /// Takes over what is there, and starts what is to run: after the loss of a daemon what ran then, otherwise what
    /// starts by itself.
    fn load_all(&self, was_lost: bool) {
        let loaded = load(&self.shared.dirs.config);
        for error in &loaded.errors {
            tracing::error!("{error}");
        }
        for config in loaded.services.into_values() {
            self.load_one(config, was_lost, true);
        }
        for name in running::names(&self.shared.dirs) {
            if self.services.borrow().contains_key(&name) {
                continue;
            }
            if let Some(config) = running::read(&self.shared.dirs, &name) {
                tracing::warn!(service = %name, "its service file is missing or wrong; it goes by what it was started with");
                self.load_one(config, was_lost, false);
            }
        }
    }

    /// Takes in one service: with its file, or without one as far as something of it runs.
    fn load_one(&self, config: config::Service, was_lost: bool, has_file: bool) {
        let (name, autostart) = (config.name.clone(), config.autostart);
        let handle = match self.add(config) {
            Ok(handle) => handle,
            Err(error) => return tracing::error!("{error}"),
        };
        let taken_over = handle.with(|service| {
            let wanted = if was_lost { service.journal.standing().wanted } else { autostart };
            let taken_over = service.take_over_left(wanted);
            if !taken_over && has_file && wanted {
                service.start_when_brought_in();
            }
            taken_over
        });
        if !taken_over && !has_file {
            self.services.borrow_mut().remove(&name);
        }
    }

    /// Makes a service known, with what its journal says.
    pub(super) fn add(&self, config: config::Service) -> Result<Handle, crate::control::Error> {
        let name = config.name.clone();
        let storage_failed = |error: String| {
            use crate::control::{Error, Kind};
            let message = format!("The state of service {:?} cannot be used: {error}.", name.as_str());
            Error::new(Kind::StorageFailed, message, "Nothing was changed.")
        };
        let directory = self.shared.dirs.service_state(&name);
        create_durably(&directory)
            .map_err(|error| storage_failed(format!("{}: {error}", directory.display())))?;
        let journal = Journal::open(&self.shared.dirs.journal(&name))
            .map_err(|error| storage_failed(error.to_string()))?;
        let directory = self.shared.dirs.versions(&name);
        let store = Store::open(&directory)
            .map_err(|error| storage_failed(format!("{}: {error}", directory.display())))?;
        let handle = Handle::new(config, journal, store, Rc::clone(&self.shared));
        handle.with(|service| {
            service.sweep_store();
            service.note_generation();
            service.adjust_watch();
        });
        self.services.borrow_mut().insert(name, handle.clone());
        Ok(handle)
    }

    /// Waits until the histories are written, unless the disk hangs.
    async fn flush(&self) {
        let recorder = |handle: &Handle| handle.with(|service| service.recorder.clone());
        let recorders: Vec<Recorder> = self.services.borrow().values().map(recorder).collect();
        let flushes: Vec<_> = recorders
            .into_iter()
            .map(|recorder| tokio::task::spawn_local(async move { recorder.flushed().await }))
            .collect();
        for flush in flushes {
            let _ = flush.await;
        }
    }

    /// Stops every service that runs, side by side, and returns when all are down.
    async fn stop_all(&self) {
        let handles: Vec<Handle> = self.services.borrow().values().cloned().collect();
        let stops: Vec<_> =
            handles.into_iter().map(|handle| tokio::task::spawn_local(stop(handle))).collect();
        for stop in stops {
            let _ = stop.await;
        }
    }
}

/// Creates a directory and those above it. Their entries are on the disk when this returns.
fn create_durably(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let Some(parent) = directory.parent() else { return Ok(()) };
    create_durably(parent)?;
    match std::fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    File::open(parent)?.sync_all()
}

/// Stops the service. An upgrade that is under way is called off first; to call off a restart would only begin the next.
async fn stop(handle: Handle) {
    loop {
        handle.with(Service::call_off_preparation);
        if handle.with(|service| service.machine.phase()) == Phase::Stopped {
            return;
        }
        for request in [Request::Stop, Request::Cancel] {
            let (mut operation, answer) = operation(history::Operation::Stop, "the daemon ends");
            if request == Request::Cancel {
                operation.asked = None;
            }
            handle.with(|service| service.ask(request, operation));
            if let Ok(Ok(_)) = answer.await
                && handle.with(|service| service.machine.phase()) == Phase::Stopped
            {
                return;
            }
        }
        handle.settled().await;
    }
}

impl Service {
    /// Starts a service for which nobody waits, as soon as there is something to start.
    fn start_when_brought_in(&mut self) {
        if !self.needs_first() {
            return self.start_alone();
        }
        // Should this daemon be lost meanwhile, the next one goes on with it.
        self.note(Fact::Wanted { up: true });
        let Some(handle) = self.handle() else { return };
        let config = self.config.clone();
        tokio::task::spawn_local(async move {
            let brought = install::bring_first(&handle, &config).await;
            handle.with(|service| match brought {
                Ok(()) if service.machine.phase() == Phase::Stopped => service.start_alone(),
                Ok(()) => {}
                Err(error) => {
                    tracing::error!("{error}");
                    service.problem = Some(error.to_string());
                }
            });
        });
    }

    /// Starts a service for which nobody waits.
    fn start_alone(&mut self) {
        if let Err(error) = self.open_listeners() {
            tracing::error!("{error}");
            self.problem = Some(error.to_string());
            return;
        }
        let (operation, answer) = operation(history::Operation::Start, "the daemon starts");
        self.ask(Request::Start, operation);
        tokio::task::spawn_local(async move {
            if let Ok(Err(error)) = answer.await {
                tracing::error!("{error}");
            }
        });
    }
}

/// An operation of the daemon itself, which reports to nobody but the one who waits for the answer.
fn operation(
    what: history::Operation,
    why: &str,
) -> (Operation, oneshot::Receiver<Result<crate::control::api::Outcome, crate::control::Error>>) {
    let (reply, answer) = oneshot::channel();
    (Operation { reply, progress: None, asked: Some(Asked::new(what, Caller::own(why))) }, answer)
}

/// The state directory, taken for this process until this is dropped. The file says who has it, and in which boot it has
/// started its services: a daemon that is lost leaves that behind, one that leaves in order takes it out.
struct StateLock {
    file: File,
    text: String,
    was_lost: bool,
}

impl StateLock {
    fn take(dirs: &Dirs) -> Result<Self, Error> {
        let path = dirs.lock();
        let failed = |source| Error::Lock { path: path.clone(), source };
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        let locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
        let mut found = String::new();
        // What cannot be read is not known, and no reason not to go on.
        let _ = file.read_to_string(&mut found);
        let mut words = found.split_ascii_whitespace();
        let (pid, boot) = (words.next(), words.next());
        match locked {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let owner = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
                return Err(Error::InUse { path: dirs.state.clone(), owner });
            }
            Err(error) => return Err(failed(error.into())),
        }
        let own = ProcessId::own().map_err(failed)?;
        let was_lost = boot == Some(own.boot_id.as_str());
        let text = format!("{} {}\n", own.pid, own.boot_id);
        let mut lock = Self { file, text, was_lost };
        if was_lost { lock.has_started() } else { lock.write(&format!("{}\n", own.pid)) }.map_err(failed)?;
        Ok(lock)
    }

    /// Whether the last daemon of this boot ended without leaving in order.
    fn was_lost(&self) -> bool {
        self.was_lost
    }

    /// From now on the journals say what is to run. Before, one that is lost has not asked for anything: the next one begins
    /// as this one did.
    fn has_started(&mut self) -> io::Result<()> {
        self.write(&self.text.clone())
    }

    /// In this order there is no moment at which the file looks as if a daemon that was lost had left in order.
    fn write(&mut self, text: &str) -> io::Result<()> {
        self.file.write_all_at(text.as_bytes(), 0)?;
        self.file.set_len(text.len() as u64)
    }

    /// From now on what runs is not to run again for having run.
    fn leave_in_order(&mut self) {
        if let Err(error) = self.file.set_len(0) {
            tracing::warn!("the lock of the state directory still says that it is in use: {error}");
        }
    }
}
