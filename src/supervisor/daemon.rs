//! From the start of the daemon to its end.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use handoff_protocol::ids::ServiceName;
use handoff_protocol::supervisor::Phase;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::{LocalSet, spawn_local};

use super::adoption_socket::{sweep, sweep_directories, sweep_sockets};
use super::changes::Changes;
use super::control_socket::{open_to_groups, serve_always};
use super::keeper::KeeperHandle;
use super::lane::{Lane, Lanes, ThreadHold};
use super::operations::{Operation, OperationRequest, Recorder, RequestedOperation, StoppedBy};
use super::orphans::reap_orphans;
use super::panic;
use super::registry::BrokenService;
use super::rollout::{Arrival, Hashes, install_arrivals};
use super::service::{Handle, Service};
use super::state_lock::StateLock;
use super::status_file::{StatusWriter, keep_status_file};
use super::systemd::{Systemd, take_stored};
use crate::config::{Dirs, DirsError};
use crate::control::{BindError, Caller, Listener};
use crate::crash_points::crash_point;
use crate::history;
use crate::hooks;
use crate::sys::files::raise_files_limit;
use crate::sys::own_table::keep_event_fds;
use crate::sys::signals;
use crate::sys::spawn::close_all_on_exec;

/// Why the daemon cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory cannot be created, or is not safe.
    #[error(transparent)]
    Dirs(#[from] DirsError),
    /// Another daemon uses the state directory.
    #[error("the state directory {} is in use by another handoff daemon{owner}; there can be one", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// That daemon in parentheses, after a space; empty if it is unknown.
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
    /// The kernel does not provide something that it always should.
    #[error("the daemon cannot run: {0}")]
    System(#[from] io::Error),
}

/// What all services share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) dirs: Dirs,
    pub(super) hashes: Hashes,
    pub(super) keeper: KeeperHandle,
    pub(super) systemd: Rc<Systemd>,
    /// The way to those who have subscribed to changes.
    pub(super) changes: Changes,
    /// What is written for the time when no daemon runs.
    pub(super) status: StatusWriter,
    /// Takes versions that have appeared at watched paths.
    pub(super) arrivals: mpsc::UnboundedSender<Arrival>,
    /// Whether the daemon is ending: nothing is started any more.
    pub(super) is_leaving: Cell<bool>,
    /// Whether the previous daemon was lost: then what ran is to run, whatever starts by itself.
    pub(super) was_lost: bool,
    /// How many files a service may have open: as many as this process could when it was started.
    pub(super) files_limit: u64,
}

/// All services.
#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) shared: Rc<Shared>,
    pub(super) services: RefCell<BTreeMap<ServiceName, Handle>>,
    /// Services whose files cannot be used, and that were never known.
    pub(super) broken: RefCell<BTreeMap<ServiceName, BrokenService>>,
    /// The texts of the service files that were removed.
    pub(super) removed: RefCell<BTreeMap<ServiceName, String>>,
    pub(super) lanes: RefCell<BTreeMap<ServiceName, Lanes>>,
    /// For service files and the names of states, which belong to no single service. Once its thread exists, it
    /// stays: whatever the limits of this process become, files can be read.
    pub(super) directory: Lane,
    pub(super) directory_thread: RefCell<Option<ThreadHold>>,
    /// The services that are not taken in yet, and why.
    pub(super) not_taken_in: RefCell<BTreeMap<ServiceName, String>>,
    /// Held by the one reload that is under way.
    pub(super) reloading: Mutex<()>,
    /// For the tasks that it starts.
    pub(super) this: Weak<Daemon>,
}

/// Runs the daemon until SIGTERM or SIGINT, then stops the services in order and returns. After a second signal, at
/// least a second later, it returns at once and leaves the services running. After SIGQUIT it returns without
/// stopping any service. Blocks.
pub fn run(dirs: Dirs) -> Result<(), Error> {
    panic::ends_the_process();
    dirs.create()?;
    close_all_on_exec()?;
    // A limit of the file size must be an error of the journal, which is reported, and not the end of the process.
    signals::ignore(crate::sys::process::Signal::SIGXFSZ)?;
    let stored = take_stored();
    let files_limit = raise_files_limit()?;
    let lock = StateLock::take(&dirs)?;
    crash_point!("supervisor/start/locked");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if let Err(error) = keep_event_fds() {
        tracing::warn!(%error, "a file system that does not answer may delay the starts of all services");
    }
    // Never dropped: the thread of a lane may be about to wake a task, and would be the last to let go of the runtime. It
    // has a descriptor table of its own, in which those of the runtime are not open.
    let runtime = ManuallyDrop::new(runtime);
    LocalSet::new().block_on(&runtime, main(dirs, lock, stored, files_limit))
}

async fn main(
    dirs: Dirs,
    lock: StateLock,
    stored: BTreeMap<String, OwnedFd>,
    files_limit: u64,
) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut quit = signal(SignalKind::quit())?;
    let mut control = Listener::bind(&dirs.control_socket())?;
    open_to_groups(&mut control, &dirs).await;
    crash_point!("supervisor/start/control");
    let systemd = Rc::new(Systemd::new()?);
    let keeper = KeeperHandle::start(&dirs, Rc::clone(&systemd), stored).map_err(Error::Keeper)?;
    let (arrivals, arrived) = mpsc::unbounded_channel();
    let daemon = Rc::new_cyclic(|this| Daemon {
        shared: Rc::new(Shared {
            dirs: dirs.clone(),
            hashes: Hashes::default(),
            keeper,
            systemd,
            changes: Changes::default(),
            status: StatusWriter::default(),
            arrivals,
            is_leaving: Cell::new(false),
            was_lost: lock.was_lost(),
            files_limit,
        }),
        services: RefCell::default(),
        broken: RefCell::default(),
        removed: RefCell::default(),
        lanes: RefCell::default(),
        directory: Lane::for_files("directory"),
        directory_thread: RefCell::default(),
        not_taken_in: RefCell::default(),
        reloading: Mutex::default(),
        this: this.clone(),
    });
    tokio::task::spawn_local(install_arrivals(Rc::clone(&daemon), arrived));
    tokio::task::spawn_local(reap_orphans());
    crash_point!("supervisor/start/keeper");
    sweep_aside(dirs.clone()).await;
    hooks::keep_traces_in(dirs.commands_dir(), COMMANDS_ENDED_WITHIN);
    daemon.load_all(lock.was_lost()).await;
    lock.has_started();
    spawn_local(sweep_once_settled(Rc::clone(&daemon)));
    let lock = Rc::new(lock);
    tokio::task::spawn_local(Rc::clone(&lock).write_when_there_is_room());
    crash_point!("supervisor/start/loaded");
    tokio::task::spawn_local(keep_status_file(Rc::clone(&daemon)));
    tracing::info!(socket = %dirs.control_socket().display(), "ready");
    daemon.shared.systemd.ready();
    tokio::select! {
        ended = serve_always(control, Rc::clone(&daemon)) => { ended?; }
        () = either(&mut terminate, &mut interrupt) => {}
        _ = quit.recv() => {
            tracing::info!("leaving; the services keep running, and the next daemon takes them over");
            daemon.shared.is_leaving.set(true);
            daemon.call_off_preparations().await;
            daemon.flush().await;
            lock.give_up();
            return Ok(());
        }
        // A closed terminal is no reason to end what others use.
        never = reload_at_each(&mut hangup, &daemon) => match never {},
    }
    daemon.shared.is_leaving.set(true);
    lock.leave_in_order();
    tracing::info!("stopping all services; signal once more to leave them running");
    daemon.shared.systemd.stopping();
    tokio::select! {
        () = daemon.stop_all() => daemon.shared.keeper.quit(),
        () = once_more(&mut terminate, &mut interrupt) => tracing::warn!("leaving; the services keep running"),
    }
    daemon.flush().await;
    lock.give_up();
    Ok(())
}

/// Before any program is started, since what is left of an earlier one may still write. On another thread, which may wait
/// for other processes.
async fn sweep_aside(dirs: Dirs) {
    let sweep = move || {
        sweep(&dirs.adopt_dir());
        sweep_directories(&dirs);
    };
    if let Err(error) = Lane::for_files("leftovers").run_anyway(sweep).await {
        tracing::error!(%error, "what shims have left is not ended");
    }
}

/// A process of an earlier daemon may have ended after the first sweep, without a daemon that saw it.
async fn sweep_once_settled(daemon: Rc<Daemon>) {
    let handles: Vec<Handle> = daemon.services.borrow().values().cloned().collect();
    for handle in handles {
        handle.settled().await;
    }
    let directory = daemon.shared.dirs.adopt_dir();
    if let Err(error) = Lane::for_files("leftovers").run_anyway(move || sweep_sockets(&directory)).await {
        tracing::warn!(%error, "sockets of processes that are gone are left");
    }
}

async fn reload_at_each(signal: &mut Signal, daemon: &Rc<Daemon>) -> Infallible {
    loop {
        if signal.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        tokio::task::spawn_local(Rc::clone(daemon).reload_at_signal());
    }
}

async fn either(first: &mut Signal, second: &mut Signal) {
    tokio::select! {
        _ = first.recv() => {}
        _ = second.recv() => {}
    }
}

/// How long the start waits for the end of commands that an earlier daemon has left. A killed process ends at once,
/// unless the kernel holds it.
const COMMANDS_ENDED_WITHIN: Duration = Duration::from_secs(1);

/// A signal that follows another one this soon is the same order: it was sent to a process group, or by a shell and a
/// service manager.
const SAME_SIGNAL_WITHIN: Duration = Duration::from_secs(1);

/// Completes at a signal that is a separate order.
async fn once_more(first: &mut Signal, second: &mut Signal) {
    let ordered = Instant::now();
    loop {
        either(first, second).await;
        if ordered.elapsed() >= SAME_SIGNAL_WITHIN {
            return;
        }
        tracing::info!("a second signal within {SAME_SIGNAL_WITHIN:?} is taken for the same order");
    }
}

impl Daemon {
    /// Calls off all versions that are being brought in, at the same time.
    async fn call_off_preparations(&self) {
        let handles: Vec<Handle> = self.services.borrow().values().cloned().collect();
        let end =
            |handle: Handle| tokio::task::spawn_local(async move { call_off_preparation(&handle).await });
        let ends: Vec<_> = handles.into_iter().map(end).collect();
        for end in ends {
            let _ = end.await;
        }
    }

    async fn stop_in_order(self: Rc<Self>, handle: Handle) {
        self.dependents_stopped(&handle.name()).await;
        stop(handle).await;
    }

    /// Waits until the histories and the status file are written, unless the disk hangs.
    async fn flush(&self) {
        let recorder = |handle: &Handle| handle.recorder();
        let recorders: Vec<Recorder> = self.services.borrow().values().map(recorder).collect();
        let flushes: Vec<_> = recorders
            .into_iter()
            .map(|recorder| tokio::task::spawn_local(async move { recorder.flushed().await }))
            .collect();
        for flush in flushes {
            let _ = flush.await;
        }
        self.write_status_file().await;
    }

    /// Stops all running services, each when what depends on it is down, and returns when all are down.
    async fn stop_all(self: &Rc<Self>) {
        let handles: Vec<Handle> = self.services.borrow().values().cloned().collect();
        let stops: Vec<_> =
            handles.into_iter().map(|handle| spawn_local(Rc::clone(self).stop_in_order(handle))).collect();
        for stop in stops {
            let _ = stop.await;
        }
    }
}

/// Calls off the version that is being brought in for a service, if any.
async fn call_off_preparation(handle: &Handle) {
    if let Some((_, preparation)) = handle.with(Service::call_off_preparation) {
        preparation.ended().await;
    }
}

/// Stops the service. If an upgrade in progress is in the way, it is called off. The stop comes before that: calling
/// off a restart would only begin the next one.
async fn stop(handle: Handle) {
    loop {
        call_off_preparation(&handle).await;
        if handle.phase() == Phase::Stopped {
            return;
        }
        let asked = RequestedOperation::new(history::Operation::Stop, Caller::own("the daemon ends"));
        for (order, asked) in
            [(OperationRequest::Stop(StoppedBy::Daemon), Some(asked)), (OperationRequest::Cancel, None)]
        {
            if handle.request_operation(order, asked, None).await.is_ok() && handle.phase() == Phase::Stopped
            {
                return;
            }
        }
        handle.settled().await;
    }
}

/// An operation of the daemon itself. Only the receiver of the answer hears of it.
pub(super) fn operation(
    what: history::Operation,
    why: &str,
) -> (Operation, oneshot::Receiver<Result<crate::control::api::Outcome, crate::control::Error>>) {
    let (reply, answer) = oneshot::channel();
    (
        Operation { reply, progress: None, requested: Some(RequestedOperation::new(what, Caller::own(why))) },
        answer,
    )
}
