//! The program that a shim runs, with everything that it starts.
//!
//! The shim is a child subreaper, so whatever becomes an orphan becomes its child: the program is *gone* when the shim has no
//! child left. One thread does nothing but reap, and tells how the program ended. Whoever waits for something that happens
//! to it waits at one condition variable.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process, set_child_subreaper, wait,
};

use super::exec::{self, Spec};
use super::plan::{Plan, VARIABLE};
use crate::service::ID_VARIABLE;
use crate::sys::files::raise_files_limit;
use crate::sys::inherit::{ADOPT_VARIABLE, CHANNEL_VARIABLE};
use crate::sys::process::{Exit, is_busy, is_stopped, tree_of};

/// After a SIGKILL a process is gone unless the kernel holds it.
const KILLED_WITHIN: Duration = Duration::from_secs(5);
/// A process that was told to stop does so at once, unless the kernel holds it or the machine is busy.
const HELD_WITHIN: Duration = Duration::from_millis(100);

/// The program, and whatever is known of it.
pub(super) struct Program {
    plan: Plan,
    /// How many files it may have open.
    files_limit: u64,
    known: Mutex<Known>,
    changed: Condvar,
}

/// What is known of the program.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The process that is told to end. `None` if it never ran or has ended.
    pub(super) main: Option<u32>,
    /// Whether any process of it is there.
    pub(super) lives: bool,
    /// How the main process ended.
    pub(super) ended: Option<Exit>,
    /// Whether its end is wanted.
    pub(super) leaving: bool,
    /// Whether somebody relies on it.
    pub(super) serves: bool,
    /// Whether it said that it is ready.
    pub(super) ready: bool,
    /// What it says of itself, or what was seen of it, for a person.
    pub(super) status: String,
    /// The listeners at which it was seen to arrive: bound, or waiting in the bind.
    pub(super) bound: Vec<String>,
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
}

impl Program {
    /// Nothing runs yet. Starts the thread that reaps.
    pub(super) fn new(plan: Plan) -> io::Result<Arc<Self>> {
        set_child_subreaper(Some(getpid()))?;
        // This process holds what the program has, and what it needs itself.
        let files_limit = raise_files_limit()?;
        let program = Arc::new(Self { plan, files_limit, known: Mutex::default(), changed: Condvar::new() });
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
            env: environment().chain(start.env).collect(),
            working_dir: self.plan.working_dir.clone(),
            stdout: duplicate(io::stdout())?,
            stderr: duplicate(io::stderr())?,
            listeners: start.listeners,
            inherited: start.inherited,
            seccomp: start.seccomp,
            files_limit: Some(self.files_limit),
        };
        let started = exec::start(spec)?;
        *known = Known { main: Some(started.pid), lives: true, ..Known::default() };
        self.note_pid(started.pid);
        self.changed.notify_all();
        Ok(started.notify)
    }

    /// For the daemon, and for the next shim of this service.
    fn note_pid(&self, pid: u32) {
        let path = self.plan.own_path.with_extension(super::PID);
        if let Err(error) = fs::write(&path, format!("{pid}\n")) {
            eprintln!("handoff: cannot write {}: {error}", path.display());
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
        self.known().lives
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

    /// Asks it to end, and waits until it and everything that it started is gone. What is left after the limit is killed;
    /// then that is said.
    pub(super) fn end(&self, limit: Duration) -> Result<(), String> {
        self.learn(|known| known.leaving = true);
        let main = self.known().main;
        let told = main.map_or_else(|| self.tree(), |main| vec![main]);
        for pid in told {
            signal(pid, self.plan.program.stop_signal.signal());
        }
        // A stopped process cannot act on it.
        self.let_go();
        if self.wait(Some(limit), |known| (!known.lives).then_some(())).is_some() {
            return Ok(());
        }
        let left = self.tree();
        self.kill()?;
        eprintln!("handoff: killed what had not ended within {limit:?}: {left:?}");
        Ok(())
    }

    /// Stops all of it where it stands (SIGSTOP), until [`Self::let_go`] or [`Self::end`]. Says whether nothing of it runs any
    /// more; waits at the most [`HELD_WITHIN`] for that.
    pub(super) fn hold(&self) -> bool {
        let until = Instant::now() + HELD_WITHIN;
        loop {
            let tree = self.tree();
            for pid in &tree {
                signal(*pid, Signal::STOP);
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

    /// Lets it go on. Changes nothing for what was not held.
    pub(super) fn let_go(&self) {
        for pid in self.tree() {
            signal(pid, Signal::CONT);
        }
    }

    /// Kills it and everything that it started.
    pub(super) fn kill(&self) -> Result<(), String> {
        self.learn(|known| known.leaving = true);
        let until = Instant::now() + KILLED_WITHIN;
        while self.lives() {
            for pid in self.tree() {
                signal(pid, Signal::KILL);
            }
            // One that has just forked may have left a child that was not seen.
            let gone = self.wait(Some(Duration::from_millis(20)), |known| (!known.lives).then_some(()));
            if gone.is_none() && Instant::now() > until {
                return Err(format!("the processes {:?} do not end", self.tree()));
            }
        }
        Ok(())
    }

    /// Whether it runs as it was started: nobody has asked it to end, and its main process is there.
    pub(super) fn is_whole(&self) -> bool {
        let known = self.known();
        known.lives && known.main.is_some() && !known.leaving
    }

    /// Waits until it ends although nobody wants that; not before it was ready, since then its start tells. Says how it ended, and
    /// whether nothing of it is left. A main process that ends with 0 and leaves others has become a daemon.
    pub(super) fn await_unwanted_end(&self) -> (Exit, bool) {
        let ended = |known: &Known| {
            let exit = known.ended?;
            let unwanted = known.serves && !known.leaving && (!known.lives || exit.code != Some(0));
            unwanted.then_some((exit, !known.lives))
        };
        loop {
            if let Some(found) = self.wait(None, ended) {
                return found;
            }
        }
    }

    /// Nothing of it is left, so nothing is to be found.
    pub(super) fn forget(&self) {
        if !self.lives() {
            for extension in [super::PID, "notify", super::TRACE] {
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
            match wait(WaitOptions::empty()) {
                Ok(Some((pid, status))) => self.learn(|known| known.ended(pid, status)),
                Ok(None) | Err(Errno::INTR) => {}
                Err(_) => self.await_next(),
            }
        }
    }

    /// There was no child. A start that was under way meanwhile has one by the time at which it lets go of the lock.
    fn await_next(&self) {
        let mut known = self.known();
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => return known.ended(pid, status),
            Ok(None) | Err(Errno::INTR) => return,
            Err(_) => {}
        }
        known.lives = false;
        self.changed.notify_all();
        while !known.lives {
            known = self.changed.wait(known).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Known {
    fn ended(&mut self, pid: Pid, status: WaitStatus) {
        if self.main == u32::try_from(pid.as_raw_nonzero().get()).ok() {
            self.main = None;
            self.ended = Some(Exit { code: status.exit_status(), signal: status.terminating_signal() });
        }
    }
}

/// The environment of this process, less what is for it alone.
fn environment() -> impl Iterator<Item = (OsString, OsString)> {
    let own = [ADOPT_VARIABLE, CHANNEL_VARIABLE, VARIABLE];
    debug_assert!(!own.contains(&ID_VARIABLE), "it tells whose processes they are");
    std::env::vars_os().filter(move |(name, _)| !own.iter().any(|own| name.as_os_str() == *own))
}

/// That it is gone already is no error.
fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

fn duplicate(fd: impl std::os::fd::AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, 3)?)
}
