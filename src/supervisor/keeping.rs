//! The daemon's hold on its keeper: a record of all that the keeper was given, and another keeper when it dies.
//!
//! A keeper that hangs would in time block the services, whose log pipes fill up. There is no heartbeat, for a daemon at
//! rest makes no system call; instead a log pipe is looked at a moment after something was written to it. If it still has
//! something in it then, the keeper must answer or die.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::time::Duration;

use handoff_protocol::ids::ServiceName;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::config::{Dirs, LogLimits};
use crate::keeper::{Client, Error, LogSpec, TIMEOUT};
use crate::sys::readable::readable;

/// The program of the keeper: this one, also when its file was replaced meanwhile.
const PROGRAM: &str = "/proc/self/exe";

/// A keeper that dies sooner than this after it was started is not replaced before.
const SHORT_LIFE: Duration = Duration::from_secs(1);

/// For so long a pipe may have something in it without the keeper being suspected.
const READ_WITHIN: Duration = Duration::from_millis(500);

/// The keeper, whichever process it is at the moment.
#[derive(Debug)]
pub(super) struct Keeping {
    inner: Rc<Inner>,
    watch: AbortHandle,
}

/// The read end of a log pipe. Nobody who writes to it gets SIGPIPE while this lives, whatever becomes of the keeper.
#[derive(Debug)]
pub(super) struct LogGuard {
    _pipe: Option<Rc<OwnedFd>>,
}

#[derive(Debug)]
struct Inner {
    dirs: Dirs,
    state: RefCell<State>,
}

#[derive(Debug)]
struct State {
    client: Client,
    held: BTreeMap<String, OwnedFd>,
    /// The log pipes that somebody may still write to, or that have not been read to the end.
    logs: BTreeMap<u64, (LogSpec, Rc<OwnedFd>)>,
    /// Number of the next log pipe.
    next: u64,
}

impl Keeping {
    /// Takes over the keeper that an earlier daemon has left, or starts one. Must be called within a `LocalSet`. Blocks
    /// for some milliseconds; for seconds if there is a keeper that does not answer.
    pub(super) fn start(dirs: &Dirs) -> io::Result<Self> {
        let client = match take_over(&dirs.keeper_socket()) {
            Some(client) => client,
            None => start(dirs).map_err(io::Error::other)?,
        };
        tracing::debug!(pid = client.pid(), "the keeper answers");
        let state = State { client, held: BTreeMap::new(), logs: BTreeMap::new(), next: 0 };
        let inner = Rc::new(Inner { dirs: dirs.clone(), state: RefCell::new(state) });
        let watch = spawn_local(watch_keeper(Rc::downgrade(&inner))).abort_handle();
        Ok(Self { inner, watch })
    }

    /// Has what comes out of a log pipe written to the files of a service. Does not wait for the keeper, unless it is
    /// still busy with what it was asked before.
    pub(super) fn log(&self, service: &ServiceName, limits: &LogLimits, pipe: &OwnedFd) -> LogGuard {
        let spec = LogSpec {
            service: service.to_string(),
            dir: self.inner.dirs.log_dir(service),
            max_size_bytes: limits.max_size_bytes,
            files: limits.files,
        };
        self.inner.tell(|client| client.log(&spec, pipe.as_fd()));
        let pipe = match pipe.try_clone() {
            Ok(pipe) => Rc::new(pipe),
            Err(error) => {
                tracing::error!(%service, "a log pipe would not outlive the keeper: {error}");
                return LogGuard { _pipe: None };
            }
        };
        let mut state = self.inner.state.borrow_mut();
        let number = state.next;
        state.next += 1;
        state.logs.insert(number, (spec, Rc::clone(&pipe)));
        spawn_local(watch_pipe(Rc::downgrade(&self.inner), number, Rc::clone(&pipe)));
        LogGuard { _pipe: Some(pipe) }
    }

    /// Has the keeper hold a duplicate of a listener. Waits for the keeper.
    pub(super) fn store(&self, key: &str, fd: BorrowedFd<'_>) {
        match fd.try_clone_to_owned() {
            Ok(copy) => drop(self.inner.state.borrow_mut().held.insert(key.to_owned(), copy)),
            Err(error) => tracing::error!(key, "a listener would not outlive the keeper: {error}"),
        }
        self.inner.tell(|client| client.store([(key, fd)]));
    }

    /// Has the keeper close what it holds by this key. Waits for the keeper.
    pub(super) fn drop_key(&self, key: &str) {
        self.inner.state.borrow_mut().held.remove(key);
        self.inner.tell(|client| client.drop_key(key));
    }

    /// Ends the keeper, after it has written down what is in the pipes. Waits for its end.
    pub(super) fn quit(&self) {
        self.watch.abort();
        // One that hangs cannot write down what is in the pipes, but another can.
        if !self.inner.tell(Client::quit) {
            match self.inner.replace() {
                Ok(()) => drop(self.inner.tell(Client::quit)),
                Err(error) => tracing::error!("{error}"),
            }
        }
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl Inner {
    /// Asks the keeper for something that is on record. If it cannot be asked any more it is ended; the next one gets it
    /// from the record. Says whether the keeper lives.
    fn tell(&self, ask: impl FnOnce(&mut Client) -> Result<(), Error>) -> bool {
        let mut state = self.state.borrow_mut();
        let Err(error) = ask(&mut state.client) else { return true };
        tracing::error!("{error}");
        let refused = matches!(error, Error::Refused(_));
        if !refused {
            state.client.kill();
        }
        refused
    }

    /// Starts another keeper and gives it all that is on record.
    fn replace(&self) -> Result<(), Error> {
        let client = start(&self.dirs)?;
        self.state.borrow_mut().client = client;
        let State { client, held, logs, .. } = &mut *self.state.borrow_mut();
        let filled = fill(client, held, logs);
        if filled.is_err() {
            client.kill();
            client.reap();
        }
        filled
    }

    /// Asks the keeper for a sign of life, and ends it if there is none.
    async fn check(&self) {
        let (pid, ticket, answers) = {
            let client = &mut self.state.borrow_mut().client;
            match (client.ask_for_sign(), client.answers()) {
                (Ok(ticket), Ok(answers)) => (client.pid(), ticket, answers),
                _ => return client.kill(),
            }
        };
        if let Ok(answers) = readable(answers) {
            let _ = timeout(TIMEOUT, answers.readable()).await;
        }
        let client = &mut self.state.borrow_mut().client;
        // Somebody else may have read the answer, or another keeper may be here.
        if client.pid() == pid && client.lacks(ticket) {
            tracing::error!(pid, "the keeper hangs");
            client.kill();
        }
    }
}

fn fill(
    client: &mut Client,
    held: &BTreeMap<String, OwnedFd>,
    logs: &BTreeMap<u64, (LogSpec, Rc<OwnedFd>)>,
) -> Result<(), Error> {
    client.store(held.iter().map(|(key, fd)| (key.as_str(), fd.as_fd())))?;
    for (spec, pipe) in logs.values() {
        client.log(spec, pipe.as_fd())?;
    }
    client.settle()
}

fn start(dirs: &Dirs) -> Result<Client, Error> {
    Client::start(Path::new(PROGRAM), &dirs.keeper_socket())
}

/// The keeper of an earlier daemon, if it is there and answers.
fn take_over(socket: &Path) -> Option<Client> {
    match Client::connect(socket) {
        Ok(client) => Some(client),
        Err(Error::Unreachable { source, .. })
            if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
        {
            None
        }
        Err(error) => {
            tracing::error!("{error}; another is started, and the one that was there is left alone");
            None
        }
    }
}

/// Replaces the keeper whenever it has ended.
async fn watch_keeper(inner: Weak<Inner>) {
    let mut started = Instant::now();
    loop {
        let Some(pidfd) =
            inner.upgrade().map(|inner| inner.state.borrow().client.pidfd().try_clone_to_owned())
        else {
            return;
        };
        match pidfd.and_then(readable) {
            Ok(pidfd) => drop(pidfd.readable().await.map(|_| ())),
            Err(error) => return tracing::error!("the keeper cannot be watched: {error}"),
        }
        if let Some(inner) = inner.upgrade() {
            let client = &inner.state.borrow().client;
            match client.reap() {
                Some(exit) => tracing::error!(pid = client.pid(), "the keeper {exit}; starting another"),
                None => tracing::error!(pid = client.pid(), "the keeper is gone; starting another"),
            }
        }
        sleep_until(started + SHORT_LIFE).await;
        started = Instant::now();
        let Some(inner) = inner.upgrade() else { return };
        while let Err(error) = inner.replace() {
            tracing::error!("{error}; trying again in {SHORT_LIFE:?}");
            sleep(SHORT_LIFE).await;
        }
        tracing::info!(pid = inner.state.borrow().client.pid(), "another keeper holds everything");
    }
}

/// Suspects the keeper when a pipe is not read, and strikes the pipe off the record when nobody can write to it any more and
/// all of it was read. That is later than the end of the process that it was made for, which may have left children.
async fn watch_pipe(inner: Weak<Inner>, number: u64, pipe: Rc<OwnedFd>) {
    loop {
        // Registered for one event at a time, or every line of the service would wake this process.
        match pipe.try_clone().and_then(readable) {
            Ok(pipe) => drop(pipe.readable().await.map(|_| ())),
            Err(error) => return tracing::error!("a log pipe cannot be watched: {error}"),
        }
        sleep(READ_WITHIN).await;
        let Some(inner) = inner.upgrade() else { return };
        match contents(&pipe) {
            Contents::Nothing => {}
            Contents::Some => inner.check().await,
            Contents::End => {
                inner.state.borrow_mut().logs.remove(&number);
                return;
            }
        }
    }
}

enum Contents {
    Nothing,
    Some,
    End,
}

fn contents(pipe: &OwnedFd) -> Contents {
    let mut fds = [PollFd::new(pipe, PollFlags::IN)];
    let found = rustix::io::retry_on_intr(|| poll(&mut fds, Some(&Timespec::default())));
    match (found, fds[0].revents()) {
        (Err(_), _) => Contents::End,
        (Ok(_), events) if events.contains(PollFlags::IN) => Contents::Some,
        (Ok(_), events) if events.is_empty() => Contents::Nothing,
        (Ok(_), _) => Contents::End,
    }
}

trait KeeperSocket {
    fn keeper_socket(&self) -> PathBuf;
}

impl KeeperSocket for Dirs {
    fn keeper_socket(&self) -> PathBuf {
        self.runtime.join("keeper.sock")
    }
}
