//! One process of a service, as the supervisor holds it: its channel, its pidfd, and the task that watches both.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use handoff_protocol::ids::HandoffId;
use handoff_protocol::message::{FromService, ToService};
use handoff_protocol::reason::Exit;
use handoff_protocol::record::{Binary, Process};
use handoff_protocol::version::UNAGREED;
use rustix::process::Signal;
use tokio::io::unix::AsyncFd;
use tokio::task::{AbortHandle, spawn_blocking, spawn_local};
use tokio::time::{Instant, timeout, timeout_at};

use super::keeping::LogGuard;
use crate::shim;
use crate::sys::channel::Channel;
use crate::sys::exit::{Life, exit_of_reaped, exit_of_zombie, life};
use crate::sys::process::{self, kill, reap};
use crate::sys::readable::readable;
use crate::sys::wire::{WireError, recv_message, send_message};

/// A process that ends closes its channel a moment before the kernel tells that it is gone, and why it is gone is the
/// better reason. For so long the end of the channel is not told.
const EXIT_FOLLOWS: Duration = Duration::from_millis(200);

/// For so long a process that is no child of this one may be left unreaped by its parent, if that is what its exit status
/// takes to be known.
const REAPED_WITHIN: Duration = Duration::from_millis(200);

/// What a party did.
#[derive(Debug)]
pub(super) enum Happened {
    /// It sent a message, with descriptors if it has some.
    Said(HandoffId, FromService, Vec<OwnedFd>),
    /// It sent something that is not a message.
    Garbage(String),
    /// It closed its channel, and lives on.
    HungUp,
    /// It is gone and was waited for.
    Gone(Exit),
}

/// Tells one party from another, whatever their roles become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Serial(pub(super) u64);

#[derive(Debug)]
pub(super) struct Party {
    pub(super) serial: Serial,
    /// The handoff that started it.
    pub(super) handoff: HandoffId,
    pub(super) process: Process,
    /// What it was started from.
    pub(super) binary: Binary,
    pub(super) started_at_unix_ms: u64,
    /// Which slot of the listeners it accepts from.
    pub(super) slot: u64,
    /// Its log pipe, for another keeper.
    _log: LogGuard,
    version: Rc<Cell<u16>>,
    channel: Option<Rc<AsyncFd<Channel>>>,
    pidfd: Rc<AsyncFd<OwnedFd>>,
    watch: AbortHandle,
}

/// What a party is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) serial: Serial,
    /// The handoff that started it.
    pub(super) handoff: HandoffId,
    pub(super) process: Process,
    /// What it was started from.
    pub(super) binary: Binary,
    pub(super) started_at_unix_ms: u64,
    pub(super) slot: u64,
    pub(super) log: LogGuard,
    /// `None` if the process cannot be reached.
    pub(super) channel: Option<Channel>,
    pub(super) pidfd: OwnedFd,
    /// What a shim leaves behind that is killed: the file that everything has open that it has started.
    pub(super) trace: Option<PathBuf>,
}

impl Party {
    /// Begins to watch. `tell` is called from the task that watches, never from here.
    pub(super) fn new(parts: Parts, tell: impl Fn(Serial, Happened) + 'static) -> io::Result<Self> {
        let channel = parts.channel.map(|channel| {
            channel.set_nonblocking(true)?;
            readable(channel).map(Rc::new)
        });
        let channel = channel.transpose()?;
        let pidfd = Rc::new(readable(parts.pidfd)?);
        let version = Rc::new(Cell::new(UNAGREED));
        let serial = parts.serial;
        let tell = move |happened| tell(serial, happened);
        let watched = Watched {
            channel: channel.clone(),
            pidfd: Rc::clone(&pidfd),
            trace: parts.trace,
            exit: Cell::default(),
        };
        let watch = spawn_local(watch(watched, Rc::clone(&version), tell));
        Ok(Self {
            serial,
            handoff: parts.handoff,
            process: parts.process,
            binary: parts.binary,
            started_at_unix_ms: parts.started_at_unix_ms,
            slot: parts.slot,
            _log: parts.log,
            version,
            channel,
            pidfd,
            watch: watch.abort_handle(),
        })
    }

    /// From now on this version is spoken.
    pub(super) fn agree(&self, version: u16) {
        self.version.set(version);
    }

    /// Sends without blocking. That the channel is closed, or that the process does not read, is no error here: both are
    /// seen elsewhere, by the end of the channel or by a deadline.
    pub(super) fn send(&self, id: HandoffId, message: &ToService, fds: &[BorrowedFd<'_>]) {
        if let Err(error) = self.try_send(id, message, fds) {
            tracing::debug!(pid = self.process.pid, message = message.name(), %error, "not sent");
        }
    }

    /// Likewise, for what nobody else sees.
    pub(super) fn try_send(
        &self,
        id: HandoffId,
        message: &ToService,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), WireError> {
        let Some(channel) = &self.channel else {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
        };
        send_message(channel.get_ref(), self.version.get(), id, message, fds)
    }

    /// Sends a signal. That the process is gone already is no error.
    pub(super) fn signal(&self, signal: Signal) {
        if let Err(error) = kill(self.pidfd.get_ref().as_fd(), signal) {
            tracing::debug!(pid = self.process.pid, ?signal, %error, "not signalled");
        }
    }

    /// Stops listening to it; its end is still told.
    pub(super) fn hang_up(&mut self) {
        if let Some(channel) = self.channel.take() {
            // The watching task still has the channel open: make it see the end, and the process as well.
            let _ = rustix::net::shutdown(channel.get_ref(), rustix::net::Shutdown::Both);
        }
    }
}

impl Drop for Party {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// What the task that watches a party has.
struct Watched {
    channel: Option<Rc<AsyncFd<Channel>>>,
    pidfd: Rc<AsyncFd<OwnedFd>>,
    trace: Option<PathBuf>,
    /// How it ended: whoever reaps a process learns that once.
    exit: Cell<Option<Exit>>,
}

impl Watched {
    /// Its end, with that of everything that it has started. Can be called off and asked for again.
    async fn gone(&self) -> Exit {
        let exit = match self.exit.get() {
            Some(exit) => exit,
            None => gone(&self.pidfd).await,
        };
        self.exit.set(Some(exit));
        if let Some(trace) = self.trace.clone().filter(|trace| trace.exists()) {
            // That this is over is what counts; what cannot be ended was told by it.
            let _ = spawn_blocking(move || shim::end_what_is_left(&trace)).await;
        }
        exit
    }
}

async fn watch(watched: Watched, version: Rc<Cell<u16>>, tell: impl Fn(Happened)) {
    let Some(channel) = &watched.channel else { return tell(Happened::Gone(watched.gone().await)) };
    loop {
        tokio::select! {
            biased;
            message = receive(channel, &version) => match message {
                Some(happened) => tell(happened),
                None => break,
            },
            exit = watched.gone() => {
                // What it said before it went comes first.
                while let Some(Ok(happened)) = receive_now(channel, &version) {
                    tell(happened);
                }
                return tell(Happened::Gone(exit));
            }
        }
    }
    if let Ok(exit) = timeout(EXIT_FOLLOWS, watched.gone()).await {
        return tell(Happened::Gone(exit));
    }
    tell(Happened::HungUp);
    tell(Happened::Gone(watched.gone().await));
}

/// The next message, or `None` at the end.
async fn receive(channel: &AsyncFd<Channel>, version: &Cell<u16>) -> Option<Happened> {
    loop {
        let Ok(mut guard) = channel.readable().await else { return None };
        match receive_now(channel, version) {
            Some(Err(())) => guard.clear_ready(),
            Some(Ok(happened)) => return Some(happened),
            None => return None,
        }
    }
}

/// `Err` if there is nothing yet, `None` at the end.
fn receive_now(channel: &AsyncFd<Channel>, version: &Cell<u16>) -> Option<Result<Happened, ()>> {
    let received = match recv_message::<FromService>(channel.get_ref(), version.get()) {
        // The peer went away with messages of ours unread. That is told once, ahead of what it said before.
        Err(WireError::Io(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
            recv_message::<FromService>(channel.get_ref(), version.get())
        }
        received => received,
    };
    match received {
        Ok(Some((id, message, fds))) => Some(Ok(Happened::Said(id, message, fds))),
        Ok(None) => None,
        Err(error) if error.would_block() => Some(Err(())),
        Err(WireError::Frame(error)) => Some(Ok(Happened::Garbage(error.to_string()))),
        Err(WireError::Io(_)) => None,
    }
}

async fn gone(pidfd: &AsyncFd<OwnedFd>) -> Exit {
    loop {
        let Ok(mut guard) = pidfd.readable().await else { return Exit::Unknown };
        match reap(pidfd.get_ref().as_fd()) {
            Ok(Some(exit)) => return told(exit),
            // It is no child of this process, which is told of one that runs as well.
            Err(_) if !matches!(life(pidfd.get_ref()), Ok(Life::Runs)) => return gone_elsewhere(pidfd).await,
            Ok(None) | Err(_) => guard.clear_ready(),
        }
    }
}

/// How a process ended whose parent is another.
async fn gone_elsewhere(pidfd: &AsyncFd<OwnedFd>) -> Exit {
    let until = Instant::now() + REAPED_WITHIN;
    loop {
        let found = exit_of_reaped(pidfd.get_ref()).or_else(|| exit_of_zombie(pidfd.get_ref()));
        if let Some(exit) = found {
            return told(exit);
        }
        // The kernel may tell when the parent has reaped it.
        match timeout_at(until, pidfd.readable()).await {
            Ok(Ok(mut guard)) if matches!(life(pidfd.get_ref()), Ok(Life::Zombie)) => guard.clear_ready(),
            _ => return exit_of_reaped(pidfd.get_ref()).map_or(Exit::Unknown, told),
        }
    }
}

/// In the words of the protocol.
pub(super) fn told(exit: process::Exit) -> Exit {
    match (exit.code, exit.signal) {
        (Some(code), _) => Exit::Code(code),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    /// A process that is no child of this one: its parent is.
    fn orphan(program: &str) -> (Child, AsyncFd<OwnedFd>) {
        let script = format!("{program} & echo $!; read line");
        let mut command = Command::new("/bin/sh");
        let mut parent =
            command.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let pidfd = process::pidfd_open(line.trim().parse().unwrap()).unwrap();
        (parent, readable(pidfd).unwrap())
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_end_of_a_process_that_is_no_child_is_told() {
        let (mut parent, pidfd) = orphan("sleep 1000");
        let early = timeout(Duration::from_millis(50), gone(&pidfd)).await;
        kill(pidfd.get_ref().as_fd(), Signal::TERM).unwrap();
        let exit = timeout(Duration::from_secs(10), gone(&pidfd)).await;
        drop(parent.stdin.take());
        parent.wait().unwrap();
        assert!(early.is_err());
        assert_eq!(exit.unwrap(), Exit::Signal(15));
    }
}
