//! The process group of a command: its leader, and descendants that stay in the group.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use handoff_protocol::reason::Exit;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::time::timeout;

use super::trace::Trace;
use super::{HookError, check_program};
use crate::sys::process::{Signal, reap, reap_blocking};
use crate::sys::readable::readable;
use crate::sys::signals::send_to_group;
use crate::sys::spawn::{SpawnSpec, Spawned, spawn_traced};

/// A killed process ends at once, unless the kernel holds it, for example for a disk that does not answer.
const KILLED_WITHIN: Duration = Duration::from_secs(1);

/// A running command. Drop kills the whole group and all other descendants of the command.
pub(super) struct ProcessGroup {
    leader: u32,
    /// Its number may belong to another group by now.
    is_reaped: bool,
    pidfd: AsyncFd<OwnedFd>,
    trace: Option<Trace>,
}

/// A running command, with the file that records it for the next daemon.
pub(super) struct RunningCommand {
    spawned: Spawned,
    trace: Trace,
}

/// The program and the working directory of a command.
type CommandLocation = (PathBuf, PathBuf);

/// Commands that were given up while they started: a file system does not answer to their threads. Each one holds a thread
/// and pipes until it does, so no other command of the same place starts meanwhile.
static STUCK: Mutex<BTreeSet<CommandLocation>> = Mutex::new(BTreeSet::new());

fn stuck() -> MutexGuard<'static, BTreeSet<CommandLocation>> {
    STUCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A command that starts. Drop gives it up, also if it has started and nothing has taken it yet.
pub(super) struct PendingCommand {
    result: oneshot::Receiver<Result<RunningCommand, HookError>>,
    location: CommandLocation,
}

impl PendingCommand {
    /// Completes when the command has started, or cannot start. `None` if its thread ended without a word.
    pub(super) async fn started(&mut self) -> Option<Result<RunningCommand, HookError>> {
        (&mut self.result).await.ok()
    }

    /// Gives the command up, and waits until nothing of it is left. A program that does not answer is left to its thread.
    pub(super) async fn give_up(mut self) {
        let started = timeout(KILLED_WITHIN, self.started()).await;
        if let Ok(Some(Ok(started))) = started
            && let Ok(mut group) = ProcessGroup::of(started)
        {
            group.end_all().await;
        }
    }
}

impl Drop for PendingCommand {
    fn drop(&mut self) {
        // The thread sends with the same lock.
        let mut stuck = stuck();
        let found = self.result.try_recv();
        // From now on the thread sees that nothing waits, and ends what it has started.
        self.result.close();
        match found {
            Ok(started) => {
                drop(stuck);
                let _ = started.map(ProcessGroup::of);
            }
            Err(TryRecvError::Empty) => _ = stuck.insert(self.location.clone()),
            // It was received, or its thread is gone.
            Err(TryRecvError::Closed) => {}
        }
    }
}

/// Starts a command in its own thread: its program or working directory may be on a file system that does not answer.
/// [`io::ErrorKind::TimedOut`] if an earlier start of this place was given up and still has no answer.
pub(super) fn start(spec: SpawnSpec) -> io::Result<PendingCommand> {
    let place = (spec.binary.clone(), spec.working_dir.clone());
    if stuck().contains(&place) {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let (tell, result) = oneshot::channel();
    let own = place.clone();
    std::thread::Builder::new().name("hook".into()).spawn(move || {
        let started = start_here(spec);
        let mut stuck = stuck();
        let unwanted = tell.send(started);
        if unwanted.is_err() {
            stuck.remove(&own);
        }
        drop(stuck);
        if let Err(Ok(RunningCommand { spawned, trace })) = unwanted {
            kill_group(spawned.pid);
            let _ = reap_blocking(spawned.pidfd.as_fd());
            trace.end_all();
        }
    })?;
    Ok(PendingCommand { result, location: place })
}

fn start_here(spec: SpawnSpec) -> Result<RunningCommand, HookError> {
    let program = spec.binary.to_string_lossy().into_owned();
    check_program(&program)?;
    let unable = |cause| HookError::Spawn { command: program.clone(), cause };
    let (trace, file) = Trace::make().map_err(unable)?;
    let spawned = spawn_traced(spec, file.as_ref().map(AsFd::as_fd)).map_err(unable)?;
    Ok(RunningCommand { spawned, trace })
}

fn kill_group(leader: u32) {
    // The group may be empty.
    send_to_group(leader, Signal::SIGKILL);
}

impl ProcessGroup {
    /// Wraps a process that was just started: the leader of its own session, and so of a group.
    pub(super) fn of(RunningCommand { spawned, trace }: RunningCommand) -> io::Result<Self> {
        let leader = spawned.pid;
        match readable(spawned.pidfd) {
            Ok(pidfd) => Ok(Self { leader, is_reaped: false, pidfd, trace: Some(trace) }),
            Err(error) => {
                // Without its file, the next daemon would not find what has left the group.
                kill_group(leader);
                end_on_a_thread(trace, None);
                Err(error)
            }
        }
    }

    /// Completes when the leader has exited. It is not reaped yet, so the group id stays reserved. Cancel-safe.
    pub(super) async fn ended(&self) -> io::Result<()> {
        self.pidfd.readable().await.map(drop)
    }

    /// Kills what is left of the group, and returns the leader's exit status. Descendants that have left the group
    /// continue.
    pub(super) async fn end(&mut self) -> Exit {
        let exit = self.kill_and_reap().await;
        self.trace = None;
        exit
    }

    /// The same, but also kills all other descendants. For a command that does not end by itself.
    pub(super) async fn end_all(&mut self) -> Exit {
        let exit = self.kill_and_reap().await;
        if let Some(trace) = self.trace.take() {
            let (done, gone) = oneshot::channel();
            end_on_a_thread(trace, Some(done));
            // Wait even if the receiver fails: the thread has its own limits.
            let _ = gone.await;
        }
        exit
    }

    async fn kill_and_reap(&mut self) -> Exit {
        kill_group(self.leader);
        if timeout(KILLED_WITHIN, self.ended()).await.is_err() {
            return Exit::Unknown;
        }
        let exit = reap(self.pidfd.get_ref().as_fd()).ok().flatten();
        self.is_reaped = true;
        match exit.map(|exit| (exit.code, exit.signal)) {
            Some((Some(code), _)) => Exit::Code(code),
            Some((None, Some(signal))) => Exit::Signal(signal),
            Some((None, None)) | None => Exit::Unknown,
        }
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if !self.is_reaped {
            kill_group(self.leader);
            // A process that has just been killed is reaped by a thread when it has exited.
            reap_later(self.pidfd.get_ref().as_fd());
        }
        if let Some(trace) = self.trace.take() {
            end_on_a_thread(trace, None);
        }
    }
}

/// Finding the holders of a file requires a check of every process. If no thread can be started, the next daemon does
/// it.
fn end_on_a_thread(trace: Trace, done: Option<oneshot::Sender<()>>) {
    let work = move || {
        trace.end_all();
        // The receiver may be gone.
        let _ = done.map(|done| done.send(()));
    };
    if let Err(error) = std::thread::Builder::new().name("handoff-end".to_owned()).spawn(work) {
        tracing::warn!(%error, "cannot search for the descendants of a command");
    }
}

fn reap_later(pidfd: std::os::fd::BorrowedFd<'_>) {
    let Ok(pidfd) = pidfd.try_clone_to_owned() else { return };
    // Without a thread it stays a zombie until this process exits.
    let _ = std::thread::Builder::new().name("reap".into()).spawn(move || reap_blocking(pidfd.as_fd()));
}
