//! One process of a service, as the supervisor holds it: its channel, its pidfd, and the task that watches both.

mod ending;
mod launch;
mod quiet;
mod roles;

pub(in crate::supervisor) use ending::terminate;
pub(in crate::supervisor) use launch::{LocatedProgram, UnclaimedProcess, identity, remove_directory};
pub(crate) use launch::{environment_of, inherited_environment};
pub(in crate::supervisor) use roles::{ProcessRole, Processes};

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::time::Duration;

use handoff_protocol::ids::HandoffId;
use handoff_protocol::message::{FromService, ToService};
use handoff_protocol::reason::Exit;
use handoff_protocol::record::{Binary, Process as Identity};
use handoff_protocol::version::UNAGREED;
use tokio::io::unix::AsyncFd;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::config;
use crate::journal::unix_ms;
use crate::shim;
use crate::supervisor::input::{Input, Inputs};
use crate::supervisor::keeper::LogGuard;
use crate::supervisor::lane::Lane;
use crate::sys::channel::Channel;
use crate::sys::clock::as_ms;
use crate::sys::exit::{ProcessStatus, exit_of_reaped, exit_of_zombie, life};
use crate::sys::outbox::Outbox;
use crate::sys::process::{self, Signal, age_of, kill, reap};
use crate::sys::readable::readable;
use crate::sys::stream_end::cut;
use crate::sys::wire::{WireError, recv_message};

/// How long the end of a channel is held back. A process that ends closes its channel a moment before the kernel
/// reports its end, and the exit status is the better reason.
const EXIT_FOLLOWS: Duration = Duration::from_millis(200);

/// How long the parent of a process that is not a child of this one may take to reap it, if the exit status is not
/// known before.
const REAPED_WITHIN: Duration = Duration::from_millis(200);

/// The interval and the time limit of attempts to end what a shim has left behind.
const CLEANUP_INTERVAL: Duration = Duration::from_millis(100);
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a full channel is checked for room. Its process is busy, or frozen.
const ROOM_TICK: Duration = Duration::from_millis(2);

/// Maximum number of handed-over files that wait for a process.
const UNSENT_FDS_MAX: usize = 64;

/// An event of a process.
#[derive(Debug)]
pub(in crate::supervisor) enum ProcessEvent {
    /// It sent a message, with any descriptors.
    Message(HandoffId, FromService, Vec<OwnedFd>),
    /// It sent something that is not a message.
    Garbage(String),
    /// It closed its channel, and still runs.
    HungUp,
    /// It has ended and was reaped.
    Gone(Exit),
}

/// Identifies a process, whatever its role becomes. Timers, waits and watches have one as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::supervisor) struct Token(pub(in crate::supervisor) u64);

#[derive(Debug)]
pub(in crate::supervisor) struct Process {
    pub(in crate::supervisor) token: Token,
    /// The handoff that started it.
    pub(in crate::supervisor) handoff: HandoffId,
    pub(in crate::supervisor) identity: Identity,
    /// The binary that it was started from.
    pub(in crate::supervisor) binary: Binary,
    /// The service file that it was started with, if known.
    pub(in crate::supervisor) settings: Option<Rc<config::Service>>,
    pub(in crate::supervisor) started_at_unix_ms: u64,
    /// The slot that it accepts from.
    pub(in crate::supervisor) slot: u64,
    /// The version that it reports.
    pub(in crate::supervisor) release: Option<String>,
    /// The program that it runs, if it is a shim, as last reported.
    pub(in crate::supervisor) program: Cell<Option<u32>>,
    /// That program, and when it was started. Milliseconds since 1970-01-01 UTC.
    program_started: Cell<Option<(u32, u64)>>,
    /// When it was asked to end.
    asked_at: Cell<Option<Instant>>,
    /// Its log pipe, for the next keeper.
    _log: LogGuard,
    version: Rc<Cell<u16>>,
    channel: Option<Rc<AsyncFd<Channel>>>,
    unsent: Rc<UnsentMessages>,
    pidfd: Rc<AsyncFd<OwnedFd>>,
    watch: AbortHandle,
}

/// What its channel has no room for yet.
#[derive(Debug)]
struct UnsentMessages {
    outbox: RefCell<Outbox>,
    /// Whether a task waits for room.
    is_watched: Cell<bool>,
}

/// What a [`Process`] is made of.
#[derive(Debug)]
pub(in crate::supervisor) struct ProcessParts {
    pub(in crate::supervisor) token: Token,
    /// The handoff that started it.
    pub(in crate::supervisor) handoff: HandoffId,
    pub(in crate::supervisor) identity: Identity,
    /// The binary that it was started from.
    pub(in crate::supervisor) binary: Binary,
    /// The service file that it was started with, if known.
    pub(in crate::supervisor) settings: Option<Rc<config::Service>>,
    pub(in crate::supervisor) started_at_unix_ms: u64,
    pub(in crate::supervisor) slot: u64,
    pub(in crate::supervisor) log: LogGuard,
    /// `None` if the process cannot be reached.
    pub(in crate::supervisor) channel: Option<Channel>,
    pub(in crate::supervisor) pidfd: OwnedFd,
    /// For a shim, the file that everything it has started has open. When the shim is gone, these processes are
    /// killed.
    pub(in crate::supervisor) trace: Option<PathBuf>,
    /// Where they are searched for.
    pub(in crate::supervisor) lane: Lane,
}

impl Process {
    /// Starts to watch the process. Only the watching task sends events to `inputs`, never this function.
    pub(in crate::supervisor) fn new(parts: ProcessParts, inputs: Inputs) -> io::Result<Self> {
        let channel = parts.channel.map(|channel| {
            channel.set_nonblocking(true)?;
            readable(channel).map(Rc::new)
        });
        let channel = channel.transpose()?;
        let pidfd = Rc::new(readable(parts.pidfd)?);
        let version = Rc::new(Cell::new(UNAGREED));
        let token = parts.token;
        let watched = WatchTask {
            channel: channel.clone(),
            pidfd: Rc::clone(&pidfd),
            trace: parts.trace,
            lane: parts.lane,
            exit: Cell::default(),
            token,
            inputs,
            untaken: Cell::default(),
        };
        let watch = spawn_local(watch(watched, Rc::clone(&version)));
        Ok(Self {
            token,
            handoff: parts.handoff,
            identity: parts.identity,
            binary: parts.binary,
            settings: parts.settings,
            started_at_unix_ms: parts.started_at_unix_ms,
            slot: parts.slot,
            release: None,
            program: Cell::default(),
            program_started: Cell::default(),
            asked_at: Cell::default(),
            _log: parts.log,
            version,
            channel,
            unsent: Rc::new(UnsentMessages {
                outbox: RefCell::new(Outbox::new(UNSENT_FDS_MAX)),
                is_watched: Cell::default(),
            }),
            pidfd,
            watch: watch.abort_handle(),
        })
    }

    pub(in crate::supervisor) fn pid(&self) -> u32 {
        self.identity.pid
    }

    /// When `program`, which it runs, was started. Milliseconds since 1970-01-01 UTC. Found out once, since the clock
    /// may be set. `None` if the program is gone.
    pub(in crate::supervisor) fn program_started_at(&self, program: u32) -> Option<u64> {
        let known = self.program_started.get().filter(|(pid, _)| *pid == program);
        let find = || {
            let age_ms = as_ms(age_of(program)?);
            Some((program, unix_ms().saturating_sub(age_ms)))
        };
        self.program_started.set(known.or_else(find));
        self.program_started.get().map(|(_, at)| at)
    }

    /// Speaks this version from now on.
    pub(in crate::supervisor) fn agree(&self, version: u16) {
        self.version.set(version);
    }

    /// Sends without blocking. A closed channel, or a process that does not read, is no error here: the end of the
    /// channel or a deadline reveals it.
    pub(in crate::supervisor) fn send(&self, id: HandoffId, message: &ToService, fds: &[BorrowedFd<'_>]) {
        if let Err(error) = self.try_send(id, message, fds) {
            tracing::debug!(pid = self.pid(), message = message.name(), %error, "not sent");
        }
    }

    /// The same, for messages whose loss nothing else reveals.
    pub(in crate::supervisor) fn try_send(
        &self,
        id: HandoffId,
        message: &ToService,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), WireError> {
        let Some(channel) = &self.channel else {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
        };
        let mut outbox = self.unsent.outbox.borrow_mut();
        outbox.send(channel.get_ref(), self.version.get(), id, message, fds)?;
        let waits = !outbox.is_empty() || channel.get_ref().flush().is_err();
        if waits && !self.unsent.is_watched.replace(true) {
            spawn_local(send_later(Rc::downgrade(&self.unsent), Rc::downgrade(channel)));
        }
        Ok(())
    }

    /// Sends a signal. An error is only logged: the process has already exited.
    pub(in crate::supervisor) fn signal(&self, signal: Signal) {
        if let Err(error) = kill(self.pidfd.get_ref().as_fd(), signal) {
            tracing::debug!(pid = self.pid(), ?signal, %error, "not signalled");
        }
    }

    /// Stops listening to it. Its end is still reported.
    pub(in crate::supervisor) fn hang_up(&mut self) {
        if let Some(channel) = self.channel.take() {
            // The watching task still has the channel open: let it and the process see the end.
            let _ = cut(channel.get_ref());
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// Maximum number of messages of a process that wait in the inbox.
const UNTAKEN_MAX: usize = 32;

/// The state of the task that watches a process.
struct WatchTask {
    channel: Option<Rc<AsyncFd<Channel>>>,
    pidfd: Rc<AsyncFd<OwnedFd>>,
    trace: Option<PathBuf>,
    lane: Lane,
    /// How it ended: the exit status can be collected only once.
    exit: Cell<Option<Exit>>,
    token: Token,
    inputs: Inputs,
    /// The number of messages sent since the last one that was waited for.
    untaken: Cell<usize>,
}

impl WatchTask {
    /// Delivers an event. Until a version is agreed, waits for each one: the answer of the service decides how the
    /// next message is read. After that, the messages of a process enter the inbox together, so that no later result
    /// overtakes some of them. At most [`UNTAKEN_MAX`] do, since a process may send without end.
    async fn deliver(&self, event: ProcessEvent, version: &Cell<u16>) {
        let input = Input::Process(self.token, event);
        let untaken = self.untaken.get() + 1;
        if version.get() == UNAGREED || untaken >= UNTAKEN_MAX {
            self.untaken.set(0);
            // A service that is gone needs no message.
            let _ = self.inputs.deliver(input).await;
        } else {
            self.untaken.set(untaken);
            self.inputs.send(input);
        }
    }

    /// Returns the exit status, once the process and everything that a shim has started have ended. Cancel-safe.
    async fn gone(&self) -> Exit {
        let exit = match self.exit.get() {
            Some(exit) => exit,
            None => gone(&self.pidfd).await,
        };
        self.exit.set(Some(exit));
        if let Some(trace) = self.trace.as_ref().filter(|trace| trace.exists()) {
            self.end_what_is_left(trace).await;
        }
        exit
    }

    /// The next process must not run beside what is left, so this tries again while no thread can be started.
    async fn end_what_is_left(&self, trace: &Path) {
        let until = Instant::now() + CLEANUP_TIMEOUT;
        loop {
            let at = trace.to_owned();
            // Only the end of this work counts: the next shim looks for leftovers before it starts a program.
            let error = match self.lane.run(move || shim::end_what_is_left(&at)).await.flatten() {
                Ok(left) if left.is_empty() => return,
                Ok(left) => {
                    let left = shim::named(&left);
                    return tracing::error!(
                        "the program of a shim that is gone does not end: process {left}"
                    );
                }
                Err(error) => error,
            };
            if Instant::now() >= until {
                let path = trace.display();
                return tracing::error!(%error, "what a shim has left behind ({path}) is not ended");
            }
            sleep(CLEANUP_INTERVAL).await;
        }
    }
}

/// Sends until nothing is left or the process is gone.
async fn send_later(unsent: Weak<UnsentMessages>, channel: Weak<AsyncFd<Channel>>) {
    loop {
        sleep(ROOM_TICK).await;
        let (Some(unsent), Some(channel)) = (unsent.upgrade(), channel.upgrade()) else { return };
        // An error comes from the channel, and its reader sees the end.
        if unsent.outbox.borrow_mut().flush(channel.get_ref()).unwrap_or(true) {
            unsent.is_watched.set(false);
            return;
        }
    }
}

async fn watch(watched: WatchTask, version: Rc<Cell<u16>>) {
    let tell = async |event| watched.deliver(event, &version).await;
    let Some(channel) = &watched.channel else {
        return tell(ProcessEvent::Gone(watched.gone().await)).await;
    };
    loop {
        tokio::select! {
            biased;
            message = receive(channel, &version) => match message {
                Some(event) => tell(event).await,
                None => break,
            },
            exit = watched.gone() => {
                // What it said before its end comes first.
                while let Some(Ok(event)) = receive_now(channel, &version) {
                    tell(event).await;
                }
                return tell(ProcessEvent::Gone(exit)).await;
            }
        }
    }
    if let Ok(exit) = timeout(EXIT_FOLLOWS, watched.gone()).await {
        return tell(ProcessEvent::Gone(exit)).await;
    }
    tell(ProcessEvent::HungUp).await;
    tell(ProcessEvent::Gone(watched.gone().await)).await;
}

/// The next message, or `None` at the end.
async fn receive(channel: &AsyncFd<Channel>, version: &Cell<u16>) -> Option<ProcessEvent> {
    loop {
        let Ok(mut guard) = channel.readable().await else { return None };
        match receive_now(channel, version) {
            Some(Err(())) => guard.clear_ready(),
            Some(Ok(event)) => return Some(event),
            None => return None,
        }
    }
}

/// `Err` if nothing has arrived yet, `None` at the end.
fn receive_now(channel: &AsyncFd<Channel>, version: &Cell<u16>) -> Option<Result<ProcessEvent, ()>> {
    let received = match recv_message::<FromService>(channel.get_ref(), version.get()) {
        // The peer closed the channel without reading our messages. This is reported once, before what it has said.
        Err(WireError::Io(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
            recv_message::<FromService>(channel.get_ref(), version.get())
        }
        received => received,
    };
    match received {
        Ok(Some((id, message, fds))) => Some(Ok(ProcessEvent::Message(id, message, fds))),
        Ok(None) => None,
        Err(error) if error.would_block() => Some(Err(())),
        Err(WireError::Frame(error)) => Some(Ok(ProcessEvent::Garbage(error.to_string()))),
        Err(WireError::Io(_)) => None,
    }
}

async fn gone(pidfd: &AsyncFd<OwnedFd>) -> Exit {
    loop {
        let Ok(mut guard) = pidfd.readable().await else { return Exit::Unknown };
        match reap(pidfd.get_ref().as_fd()) {
            Ok(Some(exit)) => return to_protocol_exit(exit),
            // It is not a child of this process. The error also comes while it still runs.
            Err(_) if !matches!(life(pidfd.get_ref()), Ok(ProcessStatus::Runs)) => {
                return gone_elsewhere(pidfd).await;
            }
            Ok(None) | Err(_) => guard.clear_ready(),
        }
    }
}

/// How a process ended that is a child of another process.
async fn gone_elsewhere(pidfd: &AsyncFd<OwnedFd>) -> Exit {
    let until = Instant::now() + REAPED_WITHIN;
    loop {
        let found = exit_of_reaped(pidfd.get_ref()).or_else(|| exit_of_zombie(pidfd.get_ref()));
        if let Some(exit) = found {
            return to_protocol_exit(exit);
        }
        // The kernel may know once the parent has reaped it.
        match timeout_at(until, pidfd.readable()).await {
            Ok(Ok(mut guard)) if matches!(life(pidfd.get_ref()), Ok(ProcessStatus::Zombie)) => {
                guard.clear_ready()
            }
            _ => return exit_of_reaped(pidfd.get_ref()).map_or(Exit::Unknown, to_protocol_exit),
        }
    }
}

/// Converts to the type of the protocol.
pub(in crate::supervisor) fn to_protocol_exit(exit: process::Exit) -> Exit {
    match (exit.code, exit.signal) {
        (Some(code), _) => Exit::Code(code),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Unknown,
    }
}

#[cfg(test)]
mod tests;
