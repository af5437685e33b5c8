//! Starts the daemon, and restarts it after each end, like an init system.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Error;
use super::workspace::Workspace;
use crate::crash_points::VARIABLE;
use crate::sys::errno::retry;
use crate::sys::poll::{PollFlags, poll_one};
use crate::sys::process::{Signal, kill, pidfd_open};

/// Like systemd's RestartSec.
const PAUSE: Duration = Duration::from_millis(100);
/// A daemon that ends by itself this many times, each time within [`STAYS`] of its start, will never stay.
const SHORT_LIVES_MAX: u32 = 30;
/// A daemon that has lived this long has stayed.
const STAYS: Duration = Duration::from_secs(5);

/// The init system of one run.
pub(super) struct Init {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<InitState>,
    changed: Condvar,
}

struct InitState {
    pid: Option<u32>,
    starts: u32,
    stopping: bool,
    /// Whether the harness has asked the daemon of this moment to end.
    was_asked: bool,
    is_over: bool,
    error: Option<String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, InitState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct DaemonCommand {
    program: PathBuf,
    dirs: [(&'static str, PathBuf); 3],
    points: PathBuf,
    log: PathBuf,
}

impl DaemonCommand {
    fn start(&self) -> Result<Child, Error> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.program);
        command.arg("daemon").env(VARIABLE, &self.points).env("HANDOFF_LOG", "debug").env("NO_COLOR", "1");
        for (variable, dir) in &self.dirs {
            command.env(variable, dir);
        }
        // In its own group, so that Ctrl-C reaches only the harness, which then ends the rest.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().map_err(|error| format!("cannot start {}: {error}", self.program.display()).into())
    }
}

impl Init {
    pub(super) fn start(workspace: &Workspace, program: PathBuf) -> Result<Self, Error> {
        let daemon = DaemonCommand {
            program,
            dirs: [
                ("HANDOFF_CONFIG_DIR", workspace.path("config")),
                ("HANDOFF_STATE_DIR", workspace.path("state")),
                ("HANDOFF_RUNTIME_DIR", workspace.path("run")),
            ],
            points: workspace.points(),
            log: workspace.path("daemon.log"),
        };
        let child = daemon.start()?;
        let state = InitState {
            pid: Some(child.id()),
            starts: 1,
            stopping: false,
            was_asked: false,
            is_over: false,
            error: None,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("init".to_owned())
            .spawn(move || run(&daemon, child, &theirs))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Number of starts.
    pub(super) fn starts(&self) -> u32 {
        self.shared.lock().starts
    }

    /// Why the daemon is not started any more.
    pub(super) fn error(&self) -> Option<String> {
        self.shared.lock().error.clone()
    }

    /// Asks the daemon to end: with its services by SIGTERM, or alone by SIGQUIT. It is started again, as after any
    /// other end.
    pub(super) fn end(&self, by: Signal) {
        let mut state = self.shared.lock();
        if let Some(pid) = state.pid {
            state.was_asked = true;
            signal(pid, by);
        }
    }

    /// Asks the daemon to end, does not restart it, and waits for the end.
    pub(super) fn stop(mut self, limit: Duration) -> Result<(), Error> {
        self.shared.lock().stopping = true;
        self.shared.changed.notify_all();
        self.end(Signal::SIGTERM);
        let until = Instant::now() + limit;
        let mut state = self.shared.lock();
        while !state.is_over {
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                return Err(format!("the daemon has not ended {limit:?} after SIGTERM").into());
            };
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        Ok(())
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        {
            let mut state = self.shared.lock();
            state.stopping = true;
            if let Some(pid) = state.pid {
                signal(pid, Signal::SIGKILL);
            }
        }
        self.shared.changed.notify_all();
        let _ = thread.join();
    }
}

fn run(daemon: &DaemonCommand, mut child: Child, shared: &Shared) {
    let mut short_lives = 0;
    loop {
        let started = Instant::now();
        // The pid stays reserved until the wait, which happens under the lock.
        await_end(&child);
        let mut state = shared.lock();
        let ended = child.wait().ok();
        state.pid = None;
        // A fault of the harness kills it.
        let is_own = std::mem::take(&mut state.was_asked)
            || ended.is_some_and(|ended| ended.signal() == Some(Signal::SIGKILL as i32));
        short_lives = match started.elapsed() < STAYS {
            true if is_own => short_lives,
            true => short_lives + 1,
            false => 0,
        };
        if !state.stopping && short_lives < SHORT_LIVES_MAX {
            state = shared.changed.wait_timeout(state, PAUSE).unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.stopping || short_lives >= SHORT_LIVES_MAX {
            if !state.stopping {
                state.error =
                    Some(format!("the daemon ended {SHORT_LIVES_MAX} times in a row within {STAYS:?}"));
            }
            break;
        }
        match daemon.start() {
            Ok(started) => child = started,
            Err(error) => {
                state.error = Some(error.to_string());
                break;
            }
        }
        state.pid = Some(child.id());
        state.starts += 1;
    }
    shared.lock().is_over = true;
    shared.changed.notify_all();
}

fn await_end(child: &Child) {
    let Ok(pidfd) = pidfd_open(child.id()) else { return };
    let _ = retry(|| poll_one(&pidfd, PollFlags::POLLIN, None));
}

fn signal(pid: u32, signal: Signal) {
    if let Ok(pidfd) = pidfd_open(pid) {
        let _ = kill(&pidfd, signal);
    }
}
