//! The daemon's hold on its keeper: a record of everything that the keeper was given, and the replacement of a keeper
//! that dies.
//!
//! No operation waits for the keeper, which may be frozen: its answer to a request is read a moment later. A keeper
//! that hangs would eventually block the services, because their log pipes fill up. There is no heartbeat, since a
//! daemon at rest makes no system call. Instead, the daemon checks a log pipe a moment after something was written to
//! it. If the pipe still contains data then, or an answer is outstanding, the keeper must answer or is killed.

mod watch;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use handoff_protocol::ids::{Generation, HandoffId, ServiceName};
use tokio::task::{AbortHandle, spawn_local};

use super::systemd::Systemd;
use crate::config::{Dirs, LogSettings};
use crate::keeper::{Client, Error, LogSpec, Stream};
use crate::sys::process::{Signal, kill};

/// The keeper's program: this one, even if its file has been replaced since.
const PROGRAM: &str = "/proc/self/exe";

/// The current keeper process, whichever it is.
#[derive(Debug)]
pub(super) struct KeeperHandle {
    inner: Rc<KeeperConnection>,
    watch: AbortHandle,
}

/// The read ends of the log pipes of a process, with their numbers. If the keeper dies, the next one gets them.
#[derive(Debug, Default)]
pub(super) struct LogGuard {
    pipes: Vec<(u64, Rc<OwnedFd>)>,
}

/// Whose log pipes they are.
#[derive(Debug)]
pub(super) struct LogSource<'a> {
    pub(super) service: &'a ServiceName,
    pub(super) settings: &'a LogSettings,
    /// The generation for which the process was started.
    pub(super) generation: Option<Generation>,
    /// `None` before it exists.
    pub(super) pid: Option<u32>,
}

#[derive(Debug)]
struct KeeperConnection {
    dirs: Dirs,
    systemd: Rc<Systemd>,
    state: RefCell<KeeperState>,
    /// Whether a task is about to read the answers.
    hearing: Cell<bool>,
}

#[derive(Debug)]
struct KeeperState {
    client: Client,
    held: BTreeMap<String, OwnedFd>,
    /// The log pipes that still have a writer, or that have not been read to the end.
    logs: BTreeMap<u64, (LogSpec, Rc<OwnedFd>)>,
    /// The number of the next log pipe.
    next_log: u64,
}

impl KeeperHandle {
    /// Takes over the keeper that an earlier daemon left behind, with everything it holds, or starts one. `stored` is
    /// what systemd kept; it counts only where the keeper has nothing. Must be called within a `LocalSet`. Blocks for
    /// some milliseconds, or for seconds if there is a keeper that does not answer.
    pub(super) fn start(
        dirs: &Dirs,
        systemd: Rc<Systemd>,
        stored: BTreeMap<String, OwnedFd>,
    ) -> io::Result<Self> {
        let KeeperContents { client, held } = match take_over(&dirs.keeper_socket())
            .map_err(io::Error::other)?
        {
            Some(found) => found,
            None => KeeperContents { client: start(dirs).map_err(io::Error::other)?, held: BTreeMap::new() },
        };
        tracing::debug!(pid = client.pid(), held = held.len(), stored = stored.len(), "the keeper answers");
        for (key, fd) in held.iter().filter(|(key, _)| !stored.contains_key(*key)) {
            systemd.store(key, fd.as_fd());
        }
        let missing: Vec<_> = stored.into_iter().filter(|(key, _)| !held.contains_key(key)).collect();
        let state = KeeperState { client, held, logs: BTreeMap::new(), next_log: 0 };
        let hearing = Cell::default();
        let inner =
            Rc::new(KeeperConnection { dirs: dirs.clone(), systemd, state: RefCell::new(state), hearing });
        let watch = spawn_local(watch::keeper(Rc::downgrade(&inner))).abort_handle();
        let keeping = Self { inner, watch };
        for (key, fd) in missing {
            keeping.post(|client| client.store([(key.as_str(), fd.as_fd())]));
            keeping.inner.state.borrow_mut().held.insert(key, fd);
        }
        Ok(keeping)
    }

    /// Has the keeper write what comes out of log pipes to the log files of a service. The keeper may already read
    /// these pipes.
    pub(super) fn log(
        &self,
        source: &LogSource<'_>,
        pipes: impl IntoIterator<Item = (Option<Stream>, OwnedFd)>,
    ) -> LogGuard {
        let pipes = pipes.into_iter().map(|(stream, pipe)| {
            let (spec, pipe) = (self.spec(source, stream), Rc::new(pipe));
            self.post(|client| client.log(&spec, pipe.as_fd()));
            let mut state = self.inner.state.borrow_mut();
            let number = state.next_log;
            state.next_log += 1;
            state.logs.insert(number, (spec, Rc::clone(&pipe)));
            spawn_local(watch::pipe(Rc::downgrade(&self.inner), number, Rc::clone(&pipe)));
            (number, pipe)
        });
        LogGuard { pipes: pipes.collect() }
    }

    fn spec(&self, source: &LogSource<'_>, stream: Option<Stream>) -> LogSpec {
        let LogSource { service, settings, generation, pid } = *source;
        LogSpec {
            service: service.to_string(),
            dir: settings.dir.clone().unwrap_or_else(|| self.inner.dirs.log_dir(service)),
            max_size_bytes: settings.max_size_bytes,
            files: settings.files,
            max_age_ms: settings.max_age_ms,
            max_rate_bytes: settings.max_rate_bytes,
            journald: settings.journald,
            generation: generation.map(|generation| generation.0),
            pid,
            stream,
        }
    }

    /// Tells the keeper, and any later one, the pid of the process that has these pipes.
    pub(super) fn label(&self, pipes: &LogGuard, pid: u32) {
        for (number, pipe) in &pipes.pipes {
            let spec = {
                let mut state = self.inner.state.borrow_mut();
                let Some((spec, _)) = state.logs.get_mut(number) else { continue };
                spec.pid = Some(pid);
                spec.clone()
            };
            self.post(|client| client.log(&spec, pipe.as_fd()));
        }
    }

    /// Asks the keeper to write down what is in the log pipes. The future ends when it has, or takes too long.
    pub(super) fn caught_up(&self) -> impl Future<Output = ()> + use<> {
        let inner = Rc::downgrade(&self.inner);
        let asked = {
            let client = &mut self.inner.state.borrow_mut().client;
            client.ask_for_sign().map(|ticket| (client.pid(), ticket))
        };
        async move {
            if let (Some(inner), Ok(asked)) = (inner.upgrade(), asked) {
                inner.catch_up(asked).await;
            }
        }
    }

    /// Whether the keeper labels lines, and knows the mark at the start of a pipe.
    pub(super) fn labels_lines(&self) -> bool {
        self.inner.state.borrow().client.labels_lines()
    }

    /// Has the keeper and systemd hold a duplicate of a descriptor, in place of the one that they held under this
    /// key.
    pub(super) fn store(&self, key: &str, fd: BorrowedFd<'_>) {
        let KeeperConnection { state, systemd, .. } = &*self.inner;
        match fd.try_clone_to_owned() {
            Ok(copy) => {
                if state.borrow_mut().held.insert(key.to_owned(), copy).is_some() {
                    systemd.remove(key);
                }
            }
            Err(error) => tracing::error!(key, "another keeper would not get it: {error}"),
        }
        self.post(|client| client.store([(key, fd)]));
        systemd.store(key, fd);
    }

    /// Returns duplicates of the descriptors whose keys begin with `prefix`, ordered by key.
    pub(super) fn held(&self, prefix: &str) -> io::Result<Vec<(String, OwnedFd)>> {
        let state = self.inner.state.borrow();
        let found = state.with_prefix(prefix);
        found.map(|(key, fd)| Ok((key.clone(), fd.try_clone()?))).collect()
    }

    /// The service that owns this listener.
    pub(super) fn holder_of_listener(&self, is_it: impl Fn(BorrowedFd<'_>) -> bool) -> Option<ServiceName> {
        let state = self.inner.state.borrow();
        let mut listeners = state.held.iter().filter(|(key, _)| !key.starts_with('.'));
        let (key, _) = listeners.find(|(_, fd)| is_it(fd.as_fd()))?;
        key.split('/').next()?.parse().ok()
    }

    /// The service that owns the process with this pidfd.
    pub(super) fn holder_of_process(&self, is_it: impl Fn(BorrowedFd<'_>) -> bool) -> Option<ServiceName> {
        let state = self.inner.state.borrow();
        let (key, _) = state.with_prefix(PROCESSES).find(|(_, fd)| is_it(fd.as_fd()))?;
        key.strip_prefix(PROCESSES)?.split('/').next()?.parse().ok()
    }

    /// Closes what is held under this key.
    pub(super) fn drop_key(&self, key: &str) {
        self.inner.state.borrow_mut().held.remove(key);
        self.post(|client| client.drop_key(key));
        self.inner.systemd.remove(key);
    }

    /// Closes everything that is held under a key that begins with `prefix`.
    pub(super) fn drop_prefix(&self, prefix: &str) {
        self.drop_all_but(prefix, &[]);
    }

    fn drop_all_but(&self, prefix: &str, known: &[String]) {
        let held: Vec<_> =
            self.inner.state.borrow().with_prefix(prefix).map(|(key, _)| key.clone()).collect();
        for key in held.into_iter().filter(|key| !known.contains(key)) {
            self.drop_key(&key);
        }
    }

    /// Has the pidfd of a process kept: it tells a later daemon how the process ended while no daemon ran. The
    /// process is identified by the handoff that started it.
    pub(super) fn keep_process(&self, service: &ServiceName, handoff: HandoffId, pidfd: BorrowedFd<'_>) {
        self.store(&process_key(service, handoff), pidfd);
    }

    /// The pidfd of a process that an earlier daemon may have started.
    pub(super) fn process(&self, service: &ServiceName, handoff: HandoffId) -> io::Result<Option<OwnedFd>> {
        let state = self.inner.state.borrow();
        state.held.get(&process_key(service, handoff)).map(OwnedFd::try_clone).transpose()
    }

    /// The pidfds of all processes of a service that are kept, by the handoff that started them.
    pub(super) fn processes(&self, service: &ServiceName) -> io::Result<Vec<(HandoffId, OwnedFd)>> {
        let prefix = format!("{PROCESSES}{service}/");
        let held = self.held(&prefix)?.into_iter();
        Ok(held.filter_map(|(key, pidfd)| Some((key.strip_prefix(&prefix)?.parse().ok()?, pidfd))).collect())
    }

    /// Drops the pidfds of the service: none of its processes is left.
    pub(super) fn forget_processes(&self, service: &ServiceName) {
        self.drop_prefix(&format!("{PROCESSES}{service}/"));
    }

    /// Drops all pidfds of the service except those of these handoffs: no other process of it is left.
    pub(super) fn keep_only(&self, service: &ServiceName, handoffs: impl Iterator<Item = HandoffId>) {
        let known: Vec<String> = handoffs.map(|handoff| process_key(service, handoff)).collect();
        self.drop_all_but(&format!("{PROCESSES}{service}/"), &known);
    }

    /// Drops the pidfd of a process whose end is known.
    pub(super) fn forget_process(&self, service: &ServiceName, handoff: HandoffId) {
        self.drop_key(&process_key(service, handoff));
    }

    /// Ends the keeper once it has written the contents of the pipes to the logs. Waits for its end.
    pub(super) fn quit(&self) {
        self.watch.abort();
        // A keeper that hangs cannot write the contents of the pipes, but another one can.
        if !self.inner.send_recorded(Client::quit) {
            match self.inner.replace() {
                Ok(()) => drop(self.inner.send_recorded(Client::quit)),
                Err(error) => tracing::error!("{error}"),
            }
        }
    }

    /// Sends a request whose answer is read later.
    fn post(&self, ask: impl FnOnce(&mut Client) -> Result<(), Error>) {
        self.inner.send_recorded(ask);
        if !self.inner.hearing.replace(true) {
            spawn_local(watch::answers(Rc::downgrade(&self.inner)));
        }
    }
}

impl Drop for KeeperHandle {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl KeeperConnection {
    /// Sends the keeper a request that is on record. If the keeper cannot be reached any more, it is killed, and the
    /// next one gets the request from the record. Returns whether the keeper still runs.
    fn send_recorded(&self, ask: impl FnOnce(&mut Client) -> Result<(), Error>) -> bool {
        let mut state = self.state.borrow_mut();
        let Err(error) = ask(&mut state.client) else { return true };
        tracing::error!("{error}");
        if !leaves_it_usable(&error) {
            state.client.kill();
            return false;
        }
        true
    }

    /// Starts another keeper and gives it everything on record.
    fn replace(&self) -> Result<(), Error> {
        let client = start(&self.dirs)?;
        let mut state = self.state.borrow_mut();
        state.client = client;
        let filled = state.fill();
        if filled.is_err() {
            state.client.end();
        }
        filled
    }
}

impl KeeperState {
    fn with_prefix(&self, prefix: &str) -> impl Iterator<Item = (&String, &OwnedFd)> {
        self.held.range(prefix.to_owned()..).take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// Gives the keeper everything on record. What the keeper refuses is logged: the rest is worth having.
    fn fill(&mut self) -> Result<(), Error> {
        let Self { client, held, logs, .. } = self;
        for (key, fd) in held {
            tolerate(client.store([(key.as_str(), fd.as_fd())]))?;
        }
        for (spec, pipe) in logs.values() {
            tolerate(client.log(spec, pipe.as_fd()))?;
        }
        tolerate(client.settle())
    }
}

fn tolerate(answer: Result<(), Error>) -> Result<(), Error> {
    match answer {
        Err(error) if leaves_it_usable(&error) => {
            tracing::error!("{error}");
            Ok(())
        }
        answer => answer,
    }
}

fn leaves_it_usable(error: &Error) -> bool {
    matches!(error, Error::Refused(_) | Error::NoRoom { .. })
}

/// A service name does not begin with a dot, so these keys never collide with those of a listener.
const PROCESSES: &str = ".pid/";

fn process_key(service: &ServiceName, handoff: HandoffId) -> String {
    format!("{PROCESSES}{service}/{handoff}")
}

fn start(dirs: &Dirs) -> Result<Client, Error> {
    Client::start(Path::new(PROGRAM), &dirs.keeper_socket())
}

/// A keeper and what it holds.
struct KeeperContents {
    client: Client,
    held: BTreeMap<String, OwnedFd>,
}

/// The keeper of an earlier daemon, if it exists and answers. An error means that it exists, but this process cannot
/// take what it holds.
fn take_over(socket: &Path) -> Result<Option<KeeperContents>, Error> {
    let mut client = match Client::reach(socket) {
        Ok(client) => client,
        Err(Error::Unreachable { source, .. })
            if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
        {
            return Ok(None);
        }
        Err(error) => {
            tracing::error!("{error}; another is started, and the one that was there is left alone");
            return Ok(None);
        }
    };
    // A stopped keeper can continue. If the pid is no longer the keeper's, it belongs at worst to a process of the
    // same user.
    let _ = kill(client.pidfd(), Signal::SIGCONT);
    let known = client.ping().and_then(|()| client.learn_version());
    let taken = known.and_then(|()| client.list()).and_then(|keys| client.fetch_all(&keys));
    match taken {
        Ok(held) => Ok(Some(KeeperContents { client, held: held.into_iter().collect() })),
        Err(error @ Error::NoRoom { .. }) => Err(error),
        Err(error @ Error::Silent { .. }) => {
            // Its duplicates of the listeners would take connections that no process accepts.
            tracing::error!("{error}; it is ended, and another is started");
            client.end();
            Ok(None)
        }
        Err(error) => {
            tracing::error!("{error}; another is started, and the one that was there is left alone");
            Ok(None)
        }
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
