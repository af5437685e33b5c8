//! The program of a shim, with all its descendants.
//!
//! The shim is a child subreaper, so all orphans become its children: the program is *gone* when the shim has no child
//! left. One thread only reaps, and reports exit statuses. All waiting threads wait at one condition variable.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::exec::{self, Spec};
use super::files::remove_files;
use super::leftovers::{self, FIRST, FirstProcess};
use super::life::{LifeAction, LifeEvent, LifeState, Lifecycle};
use super::shim_config::{ShimConfig, VARIABLE};
use super::unmatched::UnmatchedBind;
use handoff_protocol::ids::ID_VARIABLE;

use crate::sys::descriptor::duplicate_from;
use crate::sys::errno::Errno;
use crate::sys::files::raise_files_limit;
use crate::sys::inherit::{ADOPT_VARIABLE, CHANNEL_VARIABLE};
use crate::sys::own_process::adopt_orphans;
use crate::sys::process::{
    Exit, ProcessId, Signal, is_busy, is_frozen, is_stopped, is_zombie, tracer_of, tree_of,
};
use crate::sys::reaping::reap_any;
use crate::sys::signals::send;

mod ending;
mod serving;
mod signals;

/// A process stops at once after SIGSTOP, unless the kernel holds it or the machine is busy.
const HELD_WITHIN: Duration = Duration::from_millis(100);

/// The program and its known state.
pub(super) struct Program {
    config: ShimConfig,
    /// For threads that outlive the call that starts them.
    this: Weak<Self>,
    /// The program's limit of open files.
    files_limit: u64,
    state: Mutex<ProgramState>,
    changed: Condvar,
    /// Held from a kill until it is on record, so that no other thread ends the shim in between.
    killing: Mutex<()>,
    /// How many searches for the serving process have begun. Held while the last one records what it has found.
    searches: Mutex<u64>,
}

/// The known state of the program.
#[derive(Debug, Default)]
pub(super) struct ProgramState {
    /// The state of its life.
    pub(super) life: Lifecycle,
    /// A process whose end matters however it comes, and its exit status.
    pub(super) watched: Option<(u32, Option<Exit>)>,
    /// The program has failed, and so has the shim.
    has_failed: bool,
    /// This shim has requested the end.
    is_unwanted: bool,
    /// It does not get ready because a debugger has stopped it.
    pub(super) is_held_by_debugger: bool,
    /// It is held in its first bind, or will be.
    pub(super) is_held: bool,
    /// When its end was requested, and when it may be killed.
    ending_since: Option<(Instant, Instant)>,
    /// Processes that got the stop signal.
    signalled: BTreeSet<u32>,
    /// Whether any process was seen with a listener.
    was_served: bool,
    /// Processes that a thread watches.
    watched_by_name: BTreeSet<u32>,
    /// Number of ignored `MAINPID` messages.
    refusals: u32,
    /// The inodes of the service's listeners.
    listeners: BTreeSet<u32>,
    /// Whether it was started with listeners, so that also a wrapper has them.
    has_inherited: bool,
    /// Processes that were seen to serve clients, by their pids and start times.
    servers: BTreeSet<(u32, u64)>,
    /// The started process, which leads the program's session.
    pub(super) first: Option<ProcessId>,
    /// Whether it has sent `READY=1`.
    pub(super) ready: bool,
    /// Its own or an observed status, for people.
    pub(super) status: String,
    /// Why it did not receive a requested listener, and how long it may retry.
    pub(super) failed: Option<(String, Duration)>,
    /// The listeners that it was seen to bind, or in whose bind it is held.
    pub(super) bound: Vec<String>,
    /// Bound addresses that are not listeners of the service.
    pub(super) unmatched: Vec<UnmatchedBind>,
}

/// What a start needs besides the configuration.
pub(super) struct StartOptions {
    /// Descriptors for the program from number 3 on.
    pub(super) listeners: Vec<(String, OwnedFd)>,
    /// Descriptors that stay open in it unknowingly.
    pub(super) inherited: Vec<OwnedFd>,
    /// Additional environment variables.
    pub(super) env: Vec<(OsString, OsString)>,
    /// Whether to intercept its system calls `bind` and `listen`.
    pub(super) seccomp: bool,
    /// Whether it is to be held in its first bind.
    pub(super) is_held: bool,
    /// The inodes of the listeners that it must serve.
    pub(super) sockets: BTreeSet<u32>,
}

impl Program {
    /// Starts the reaper thread, but no program yet.
    pub(super) fn new(config: ShimConfig) -> io::Result<Arc<Self>> {
        adopt_orphans()?;
        // This process holds the program's descriptors and its own.
        let files_limit = raise_files_limit()?;
        let program = Arc::new_cyclic(|this| Self {
            config,
            this: Weak::clone(this),
            files_limit,
            state: Mutex::default(),
            killing: Mutex::default(),
            searches: Mutex::default(),
            changed: Condvar::new(),
        });
        let reaper = Arc::clone(&program);
        std::thread::Builder::new().name("handoff-reaper".to_owned()).spawn(move || reaper.reap())?;
        Ok(program)
    }

    /// Starts the program. Returns the notify descriptor, if requested. Call it from a thread that lives as long as the
    /// process: when the thread ends, the kernel kills the program.
    pub(super) fn start(&self, start: StartOptions) -> io::Result<Option<OwnedFd>> {
        // Held until the pid is known, so that its end is not reported earlier.
        let mut known = self.known();
        let has_inherited = !start.listeners.is_empty();
        let spec = Spec {
            binary: self.config.binary.clone(),
            args: self.config.args.iter().map(OsString::from).collect(),
            env: environment()
                .chain([(leftovers::VARIABLE.into(), self.trace_path().into())])
                .chain(start.env)
                .collect(),
            working_dir: self.config.working_dir.clone(),
            stdout: duplicate(io::stdout())?,
            stderr: duplicate(io::stderr())?,
            listeners: start.listeners,
            inherited: start.inherited,
            seccomp: start.seccomp.then(|| self.config.calls()),
            files_limit: Some(self.files_limit),
        };
        let started = exec::start(spec, &self.config.attributes)?;
        let first = self.note_first(started.pid);
        *known = ProgramState {
            listeners: start.sockets,
            has_inherited,
            is_held: start.is_held,
            first,
            ..ProgramState::default()
        };
        known.life.step(LifeEvent::Started(started.pid));
        if self.config.is_oneshot {
            // Before its end is learnt: it may be done at once.
            known.life.step(LifeEvent::Serves);
        }
        self.note_pid(started.pid);
        // Remove the message about an earlier program.
        for extension in [super::REFUSED, super::MAIN_EXIT] {
            let _ = fs::remove_file(self.config.own_path.with_extension(extension));
        }
        self.changed.notify_all();
        Ok(started.notify)
    }

    /// Records the first process for the cleanup after this shim is killed. A process that has ended by now still has
    /// the session id, and a start time that no process with the reused pid has.
    fn note_first(&self, pid: u32) -> Option<ProcessId> {
        let process =
            ProcessId::of(pid).or_else(|_| ProcessId::own().map(|own| ProcessId { pid, ..own })).ok()?;
        let first = FirstProcess { process: process.clone(), trace: self.trace_path() };
        let path = self.config.own_path.with_extension(FIRST);
        if let Err(error) = first.note(&path) {
            log_line!("cannot write {}: {error}", path.display());
        }
        Some(process)
    }

    /// The file that all of its processes have open.
    pub(super) fn trace_path(&self) -> PathBuf {
        self.config.own_path.with_extension(super::TRACE)
    }

    /// Records the pid for the daemon, and for the next shim of this service.
    fn note_pid(&self, pid: u32) {
        static WRITING: Mutex<()> = Mutex::new(());
        let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.config.own_path.with_extension(super::PID);
        let beside = path.with_extension(super::NEXT_PID);
        // The daemon may read it at any time.
        let written = fs::write(&beside, format!("{pid}\n")).and_then(|()| fs::rename(&beside, &path));
        if let Err(error) = written {
            log_line!("cannot write {}: {error}", path.display());
        }
    }

    /// Waits until `inspect` returns a value, or until the limit. Calls it again after every change.
    pub(super) fn wait<T>(
        &self,
        limit: Option<Duration>,
        mut inspect: impl FnMut(&ProgramState) -> Option<T>,
    ) -> Option<T> {
        let until = limit.and_then(|limit| Instant::now().checked_add(limit));
        let mut known = self.known();
        loop {
            if let Some(found) = inspect(&known) {
                return Some(found);
            }
            known = match until {
                None => self.changed.wait(known).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    self.changed.wait_timeout(known, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Records a change, and wakes all waiting threads.
    pub(super) fn learn(&self, what: impl FnOnce(&mut ProgramState)) {
        what(&mut self.known());
        self.changed.notify_all();
    }

    /// Whether any process of it exists.
    pub(super) fn lives(&self) -> bool {
        self.known().lives()
    }

    /// Records the inodes of the listeners that it serves.
    pub(super) fn serves_at(&self, sockets: BTreeSet<u32>) {
        self.learn(|known| known.listeners = sockets);
    }

    /// All processes of it.
    pub(super) fn tree(&self) -> Vec<u32> {
        let own = std::process::id();
        tree_of(own).into_iter().filter(|pid| *pid != own).collect()
    }

    /// Whether any process of it is running, runnable, or waiting for a disk.
    pub(super) fn is_busy(&self) -> bool {
        self.tree().into_iter().any(is_busy)
    }

    /// Its processes that are stopped, by a signal or a debugger that is not part of it.
    pub(super) fn frozen(&self) -> Vec<u32> {
        let tree = self.tree();
        let is_own = |pid: u32| tracer_of(pid).is_some_and(|tracer| tree.contains(&tracer));
        tree.iter().copied().filter(|pid| is_frozen(*pid) && !is_own(*pid)).collect()
    }

    /// Whether it does not get ready because a debugger has stopped it.
    pub(super) fn is_held_by_debugger(&self) -> bool {
        self.known().is_held_by_debugger
    }

    /// Notifies it of the drain, if it is configured for that.
    pub(super) fn signal_drain(&self) {
        if let Some(signal) = self.config.program.drain_signal {
            self.receivers().into_iter().for_each(|pid| send(pid, signal.signal()));
        }
    }

    /// Stops all its processes (SIGSTOP), until [`Self::let_go`] or [`Self::end`]. Waits up to [`HELD_WITHIN`], and
    /// returns whether all have stopped.
    pub(super) fn hold(&self) -> bool {
        let until = Instant::now() + HELD_WITHIN;
        loop {
            let tree = self.tree();
            for pid in &tree {
                send(*pid, Signal::SIGSTOP);
            }
            // Until the last process stopped, it may have started another one.
            if tree.iter().all(|pid| is_stopped(*pid)) && self.tree() == tree {
                return true;
            }
            if Instant::now() > until {
                return false;
            }
            std::thread::yield_now();
        }
    }

    /// Continues all its processes, including those that were stopped by themselves or by others.
    pub(super) fn let_go(&self) {
        for pid in self.tree() {
            send(pid, Signal::SIGCONT);
        }
    }

    /// Whether it runs without a request to end.
    pub(super) fn is_whole(&self) -> bool {
        self.known().life.is_whole()
    }

    /// From now on the service relies on it.
    pub(super) fn serves(&self) {
        self.feed(LifeEvent::Serves);
        self.note_server();
    }

    /// Processes one event, and performs the actions. Returns them.
    fn feed(&self, event: LifeEvent) -> Vec<LifeAction> {
        let (mut before, mut after, mut actions) = (Lifecycle::default(), LifeState::Absent, Vec::new());
        self.learn(|known| {
            // Not read before: the first process may end in the meantime, and then another one must be asked.
            before = known.life;
            if let (LifeEvent::Exited(pid, exit), Some((watched, ended))) = (event, &mut known.watched)
                && pid == *watched
            {
                *ended = exit;
            }
            actions = known.life.step(event);
            known.has_failed |= actions.contains(&LifeAction::Fail);
            after = known.life.state();
        });
        // The process that was recorded as the server has daemonized and left it behind.
        if after != before.state() && matches!(after, LifeState::Daemonised { .. }) {
            self.note_server();
        }
        if let (LifeEvent::Exited(pid, exit), LifeState::Leaving { wanted: false, .. }) = (event, after)
            && before.main() == Some(pid)
            // Otherwise the file would come after the end of the program, which removes it.
            && self.tree().into_iter().any(|other| other != pid && !is_zombie(other))
        {
            self.note_main_exit(pid, exit);
        }
        if let (LifeEvent::Exited(_, exit), LifeState::Daemonised { serves: true }) = (event, after) {
            self.check_served(exit);
        }
        for action in &actions {
            match action {
                LifeAction::AskServer => self.ask(self.find_receivers(self.config.program.stop_mode, before)),
                LifeAction::AskRest => self.ask(self.tree()),
                LifeAction::Kill => self.signal_all(Signal::SIGKILL),
                LifeAction::Watch(_) | LifeAction::Refuse(_) | LifeAction::Fail => {}
            }
        }
        actions
    }

    /// Reports the end of the main process: the rest of the program may take its time to end.
    fn note_main_exit(&self, pid: u32, exit: Option<Exit>) {
        let how = exit.map_or_else(|| "has ended".to_owned(), |exit| exit.to_string());
        let path = self.config.own_path.with_extension(super::MAIN_EXIT);
        let beside = path.with_extension(format!("{}-new", super::MAIN_EXIT));
        let written = fs::write(&beside, format!("process {pid} {how}"));
        if let Err(error) = written.and_then(|()| fs::rename(&beside, &path)) {
            log_line!("cannot write {}: {error}", path.display());
        }
    }

    /// Removes its files: nothing of it is left.
    pub(super) fn forget(&self) {
        if !self.lives() {
            FirstProcess::forget(&self.config.lock_path().with_extension(FIRST), &self.trace_path());
            remove_files(&self.config.own_path);
        }
    }

    fn known(&self) -> MutexGuard<'_, ProgramState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reaps forever: the program, and its orphans.
    fn reap(&self) {
        loop {
            match reap_any(true) {
                Ok(Some((pid, exit))) => drop(self.feed(LifeEvent::Exited(pid, Some(exit)))),
                Ok(None) | Err(Errno::EINTR) => {}
                Err(_) => self.await_next(),
            }
        }
    }

    /// There was no child. A concurrent start has one by the time it releases the lock.
    fn await_next(&self) {
        let mut known = self.known();
        match reap_any(false) {
            Ok(Some((pid, exit))) => {
                drop(known);
                return drop(self.feed(LifeEvent::Exited(pid, Some(exit))));
            }
            Ok(None) | Err(Errno::EINTR) => return,
            Err(_) => {}
        }
        known.has_failed |= known.life.step(LifeEvent::Empty).contains(&LifeAction::Fail);
        self.changed.notify_all();
        while !known.lives() {
            known = self.changed.wait(known).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl ProgramState {
    /// Whether any process of it exists.
    pub(super) fn lives(&self) -> bool {
        self.life.lives()
    }

    /// The exit status of the main process, once it has ended.
    pub(super) fn ended(&self) -> Option<Exit> {
        self.life.exit()
    }
}

/// The environment of this process without its own variables.
fn environment() -> impl Iterator<Item = (OsString, OsString)> {
    let own = [ADOPT_VARIABLE, CHANNEL_VARIABLE, VARIABLE, leftovers::VARIABLE];
    debug_assert!(!own.contains(&ID_VARIABLE), "it identifies the processes");
    std::env::vars_os().filter(move |(name, _)| !own.iter().any(|own| name.as_os_str() == *own))
}

fn duplicate(fd: impl std::os::fd::AsFd) -> io::Result<OwnedFd> {
    Ok(duplicate_from(fd, 3)?)
}
