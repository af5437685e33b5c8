//! The program that a shim runs, with everything that it starts.
//!
//! The shim is a child subreaper, so whatever becomes an orphan becomes its child: the program is *gone* when the shim has no
//! child left. One thread does nothing but reap, and tells how the program ended. Whoever waits for something that happens
//! to it waits at one condition variable.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::elsewhere::Elsewhere;
use super::exec::{self, Spec};
use super::files::notify_path;
use super::left::{self, FIRST, First};
use super::life::{Action, Event, Life, State};
use super::plan::{Plan, VARIABLE};
use handoff_protocol::ids::ID_VARIABLE;

use crate::sys::descriptor::duplicate_from;
use crate::sys::errno::Errno;
use crate::sys::files::raise_files_limit;
use crate::sys::inherit::{ADOPT_VARIABLE, CHANNEL_VARIABLE};
use crate::sys::own_process::adopt_orphans;
use crate::sys::process::{Exit, ProcessId, Signal, is_busy, is_stopped, tree_of};
use crate::sys::reaping::reap_any;
use crate::sys::signals::send;

mod ending;
mod signals;

/// A process that was told to stop does so at once, unless the kernel holds it or the machine is busy.
const HELD_WITHIN: Duration = Duration::from_millis(100);

/// The program, and whatever is known of it.
pub(super) struct Program {
    plan: Plan,
    /// For a thread that outlives the call that starts it.
    this: Weak<Self>,
    /// How many files it may have open.
    files_limit: u64,
    known: Mutex<Known>,
    changed: Condvar,
}

/// What is known of the program.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Where it stands.
    pub(super) life: Life,
    /// A process whose end is of interest however it comes, and how it ended.
    pub(super) watched: Option<(u32, Option<Exit>)>,
    /// It has failed, and so has the shim.
    has_failed: bool,
    /// This shim has asked for its end.
    is_unwanted: bool,
    /// Since when it has been asked to end, and until when it is not killed.
    asked: Option<(Instant, Instant)>,
    /// Those that got the stop signal.
    told: BTreeSet<u32>,
    /// Whether a process was seen to have a listener.
    was_served: bool,
    /// Those of whose end a thread tells.
    watched_by_name: BTreeSet<u32>,
    /// How often somebody was not believed.
    refusals: u32,
    /// The listeners of the service, by their inodes.
    listeners: BTreeSet<u32>,
    /// The process that was started, which leads the session of the program.
    pub(super) first: Option<ProcessId>,
    /// Whether it said that it is ready.
    pub(super) ready: bool,
    /// What it says of itself, or what was seen of it, for a person.
    pub(super) status: String,
    /// Why it has not got a listener that it asked for, and how long it has to ask again.
    pub(super) failed: Option<(String, Duration)>,
    /// The listeners at which it was seen to arrive: bound, or waiting in the bind.
    pub(super) bound: Vec<String>,
    /// What it has bound that is no listener of the service.
    pub(super) elsewhere: Vec<Elsewhere>,
}

/// What a start needs beyond the plan.
pub(super) struct Start {
    /// Descriptors that the program gets from 3 on.
    pub(super) listeners: Vec<(String, OwnedFd)>,
    /// Descriptors that stay open in it, unknown to it.
    pub(super) inherited: Vec<OwnedFd>,
    /// Variables besides those of the service.
    pub(super) env: Vec<(OsString, OsString)>,
    /// Whether its system calls `bind` and `listen` are to be told.
    pub(super) seccomp: bool,
    /// The listeners of the service that it is to serve at, by their inodes.
    pub(super) sockets: BTreeSet<u32>,
}

impl Program {
    /// Nothing runs yet. Starts the thread that reaps.
    pub(super) fn new(plan: Plan) -> io::Result<Arc<Self>> {
        adopt_orphans()?;
        // This process holds what the program has, and what it needs itself.
        let files_limit = raise_files_limit()?;
        let program = Arc::new_cyclic(|this| Self {
            plan,
            this: Weak::clone(this),
            files_limit,
            known: Mutex::default(),
            changed: Condvar::new(),
        });
        let reaper = Arc::clone(&program);
        std::thread::Builder::new().name("handoff-reaper".to_owned()).spawn(move || reaper.reap())?;
        Ok(program)
    }

    /// Starts it. Gives the notify descriptor of its system calls, if that was asked for. Call it from a thread that lives
    /// as long as the process: with its end the program would be killed.
    pub(super) fn start(&self, start: Start) -> io::Result<Option<OwnedFd>> {
        // Held until the pid is known, so that its end is not told before.
        let mut known = self.known();
        let spec = Spec {
            binary: self.plan.binary.clone(),
            args: self.plan.args.iter().map(OsString::from).collect(),
            env: environment()
                .chain([(left::VARIABLE.into(), self.trace_path().into())])
                .chain(start.env)
                .collect(),
            working_dir: self.plan.working_dir.clone(),
            stdout: duplicate(io::stdout())?,
            stderr: duplicate(io::stderr())?,
            listeners: start.listeners,
            inherited: start.inherited,
            seccomp: start.seccomp.then(|| self.plan.calls()),
            files_limit: Some(self.files_limit),
        };
        let started = exec::start(spec)?;
        let first = self.note_first(started.pid);
        *known = Known { listeners: start.sockets, first, ..Known::default() };
        known.life.step(Event::Started(started.pid));
        self.note_pid(started.pid);
        // What an earlier one said.
        let _ = fs::remove_file(self.plan.own_path.with_extension(super::REFUSED));
        self.changed.notify_all();
        Ok(started.notify)
    }

    /// For whoever ends what this shim leaves if it is killed. One that has ended by now has the id of the session, and an age that no
    /// other process has that gets its pid.
    fn note_first(&self, pid: u32) -> Option<ProcessId> {
        let process =
            ProcessId::of(pid).or_else(|_| ProcessId::own().map(|own| ProcessId { pid, ..own })).ok()?;
        let first = First { process: process.clone(), trace: self.trace_path() };
        let path = self.plan.own_path.with_extension(FIRST);
        if let Err(error) = first.note(&path) {
            say!("cannot write {}: {error}", path.display());
        }
        Some(process)
    }

    /// The file that all of it has open.
    pub(super) fn trace_path(&self) -> PathBuf {
        self.plan.own_path.with_extension(super::TRACE)
    }

    /// For the daemon, and for the next shim of this service.
    fn note_pid(&self, pid: u32) {
        let path = self.plan.own_path.with_extension(super::PID);
        if let Err(error) = fs::write(&path, format!("{pid}\n")) {
            say!("cannot write {}: {error}", path.display());
        }
    }

    /// Waits until `look` gives something, at the most so long. It is asked again whenever anything changes.
    pub(super) fn wait<T>(
        &self,
        limit: Option<Duration>,
        mut look: impl FnMut(&Known) -> Option<T>,
    ) -> Option<T> {
        let until = limit.and_then(|limit| Instant::now().checked_add(limit));
        let mut known = self.known();
        loop {
            if let Some(found) = look(&known) {
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

    /// Something was learnt.
    pub(super) fn learn(&self, what: impl FnOnce(&mut Known)) {
        what(&mut self.known());
        self.changed.notify_all();
    }

    /// Whether any process of it is there.
    pub(super) fn lives(&self) -> bool {
        self.known().lives()
    }

    /// It serves at these listeners, by their inodes, as is known from now on.
    pub(super) fn serves_at(&self, sockets: BTreeSet<u32>) {
        self.learn(|known| known.listeners = sockets);
    }

    /// All processes of it.
    pub(super) fn tree(&self) -> Vec<u32> {
        let own = std::process::id();
        tree_of(own).into_iter().filter(|pid| *pid != own).collect()
    }

    /// Whether any of it does something at this moment, or would if it could.
    pub(super) fn is_busy(&self) -> bool {
        self.tree().into_iter().any(is_busy)
    }

    /// Tells it that it drains, if it is one that wants to know.
    pub(super) fn tell_of_drain(&self) {
        if let Some(told) = self.plan.program.drain_signal {
            self.receivers().into_iter().for_each(|pid| send(pid, told.signal()));
        }
    }

    /// Stops all of it where it stands (SIGSTOP), until [`Self::let_go`] or [`Self::end`]. Says whether nothing of it runs any
    /// more; waits at the most [`HELD_WITHIN`] for that.
    pub(super) fn hold(&self) -> bool {
        let until = Instant::now() + HELD_WITHIN;
        loop {
            let tree = self.tree();
            for pid in &tree {
                send(*pid, Signal::SIGSTOP);
            }
            // Until the last of them stood still, it may have started another one.
            if tree.iter().all(|pid| is_stopped(*pid)) && self.tree() == tree {
                return true;
            }
            if Instant::now() > until {
                return false;
            }
            std::thread::yield_now();
        }
    }

    /// Lets it go on, all of it: also what has stopped itself, or was stopped by somebody else.
    pub(super) fn let_go(&self) {
        for pid in self.tree() {
            send(pid, Signal::SIGCONT);
        }
    }

    /// Whether it runs, and nobody has asked it to end.
    pub(super) fn is_whole(&self) -> bool {
        self.known().life.is_whole()
    }

    /// Somebody relies on it from now on.
    pub(super) fn serves(&self) {
        self.feed(Event::Serves);
        self.note_server();
    }

    /// Lets one thing happen, and does what follows. Gives what was to be done.
    fn feed(&self, event: Event) -> Vec<Action> {
        let (mut before, mut after, mut actions) = (Life::default(), State::Absent, Vec::new());
        self.learn(|known| {
            // Not looked at before: the first process may end meanwhile, and then another one is to be asked.
            before = known.life;
            if let (Event::Exited(pid, exit), Some((watched, ended))) = (event, &mut known.watched)
                && pid == *watched
            {
                *ended = exit;
            }
            actions = known.life.step(event);
            known.has_failed |= actions.contains(&Action::Fail);
            after = known.life.state();
        });
        // Who was taken for the server was the process that has left it behind.
        if after != before.state() && matches!(after, State::Daemonised { .. }) {
            self.note_server();
        }
        if let (Event::Exited(_, exit), State::Daemonised { serves: true }) = (event, after) {
            self.look_whether_served(exit);
        }
        for action in &actions {
            match action {
                Action::AskServer => self.ask(self.find_receivers(self.plan.program.stop_mode, before)),
                Action::AskRest => self.ask(self.tree()),
                Action::Kill => self.signal_all(Signal::SIGKILL),
                Action::Watch(_) | Action::Refuse(_) | Action::Fail => {}
            }
        }
        actions
    }

    /// Nothing of it is left, so nothing is to be found.
    pub(super) fn forget(&self) {
        if !self.lives() {
            let _ = fs::remove_file(notify_path(&self.plan.own_path));
            let trace = self.trace_path();
            First::forget(&self.plan.lock_path().with_extension(FIRST), &trace);
            for extension in
                [FIRST, super::PID, super::LEFT, super::SIDE, super::WAITS, super::REFUSED, super::TRACE]
            {
                let _ = fs::remove_file(self.plan.own_path.with_extension(extension));
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reaps without end: the program, and whoever becomes an orphan of it.
    fn reap(&self) {
        loop {
            match reap_any(true) {
                Ok(Some((pid, exit))) => drop(self.feed(Event::Exited(pid, Some(exit)))),
                Ok(None) | Err(Errno::EINTR) => {}
                Err(_) => self.await_next(),
            }
        }
    }

    /// There was no child. A start that was under way meanwhile has one by the time at which it lets go of the lock.
    fn await_next(&self) {
        let mut known = self.known();
        match reap_any(false) {
            Ok(Some((pid, exit))) => {
                drop(known);
                return drop(self.feed(Event::Exited(pid, Some(exit))));
            }
            Ok(None) | Err(Errno::EINTR) => return,
            Err(_) => {}
        }
        known.has_failed |= known.life.step(Event::Empty).contains(&Action::Fail);
        self.changed.notify_all();
        while !known.lives() {
            known = self.changed.wait(known).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Known {
    /// Whether any process of it is there.
    pub(super) fn lives(&self) -> bool {
        self.life.lives()
    }

    /// How the process that counts ended, if it has.
    pub(super) fn ended(&self) -> Option<Exit> {
        self.life.exit()
    }
}

/// The environment of this process, less what is for it alone.
fn environment() -> impl Iterator<Item = (OsString, OsString)> {
    let own = [ADOPT_VARIABLE, CHANNEL_VARIABLE, VARIABLE, left::VARIABLE];
    debug_assert!(!own.contains(&ID_VARIABLE), "it tells whose processes they are");
    std::env::vars_os().filter(move |(name, _)| !own.iter().any(|own| name.as_os_str() == *own))
}

fn duplicate(fd: impl std::os::fd::AsFd) -> io::Result<OwnedFd> {
    Ok(duplicate_from(fd, 3)?)
}
