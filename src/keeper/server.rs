//! The keeper's loop: one thread, one poll, and no timer while its socket is at its path and no log has one. The
//! threads of [`super::writer`] do everything that may block on a file.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::ops::Bound::{Excluded, Unbounded};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use handoff_protocol::frame::FrameError;
use handoff_protocol::ids::HandoffId;

use super::log::LogSettings;
use super::message::{
    Empty, Entries, FETCH_MAX, Failed, KEY_MAX_BYTES, KeeperReply, KeeperRequest, Keys, List,
    Log as LogRequest, LogStream, Stats, VERSION,
};
use super::pipe::{Buffer, Pipe, PipeRead};
use super::watched_socket::{self, WatchedSocket};
use super::writer::Writer;
use crate::crash_points::{crash_point, name};
use crate::log_record::Label;
use crate::sys::channel::Channel;
use crate::sys::errno::{Errno, retry};
use crate::sys::log_pipe::{Stream, identity};
use crate::sys::poll::{PollFd, PollFlags, found, poll};
use crate::sys::socket::{SockFlag, accept, peer_of};
use crate::sys::user::effective_user;
use crate::sys::wire::{WireError, recv_message, send_message};

/// More supervisors than ever connect.
const CONNECTIONS_MAX: usize = 16;

/// More requests than fit into a socket.
const ARRIVED_MAX: usize = 512;

/// Keys per page of a list, so that a page always fits into a frame.
const PAGE_KEYS: usize = 100;

/// Maximum number of bytes to drain from one pipe before the exit: more than a pipe can hold, so that this only cuts a
/// continuous writer.
const LAST_BYTES: usize = 1 << 20;

/// Retry interval to recreate a missing socket.
const SOCKET_RETRY: Duration = Duration::from_secs(1);

/// The state of a keeper.
pub(super) struct Keeper {
    socket: WatchedSocket,
    terminate: OwnedFd,
    /// Exit when the last pipe is closed.
    terminating: bool,
    /// Exit now.
    quitting: bool,
    connections: Vec<Channel>,
    /// Whether a descriptor for a waiting connection was missing. Nothing else wakes this process then: it retries
    /// after the next event.
    is_full: bool,
    /// Whether the path of its socket is gone and could not be recreated.
    is_shut: bool,
    held: BTreeMap<String, OwnedFd>,
    pipes: Vec<Pipe>,
    stats: Stats,
    buffer: Buffer,
}

impl Keeper {
    /// Creates a keeper that serves `supervisor` and processes of the same user that connect to `socket`. `terminate`
    /// becomes readable on a request to end.
    pub(super) fn new(supervisor: Channel, socket: WatchedSocket, terminate: OwnedFd) -> io::Result<Self> {
        supervisor.set_nonblocking(true)?;
        Ok(Self {
            socket,
            terminate,
            terminating: false,
            quitting: false,
            connections: vec![supervisor],
            is_full: false,
            is_shut: false,
            held: BTreeMap::new(),
            pipes: Vec::new(),
            stats: Stats::default(),
            buffer: Buffer::new(),
        })
    }

    /// Runs until there is no reason to continue.
    pub(super) fn run(mut self) -> io::Result<()> {
        while !self.is_done() {
            let ready = self.wait()?;
            // Logs first, so that output from before a request is in the files when the request is answered.
            self.read_pipes(&ready.pipes);
            self.tick();
            self.answer(&ready.connections);
            if ready.watch || self.is_shut {
                self.is_shut = !self.socket.handle_event();
            }
            self.terminating |= ready.terminate;
            if ready.listener || std::mem::take(&mut self.is_full) {
                self.accept();
            }
        }
        // A thread that waits for a file system may delay the exit, but must not keep the descriptors open.
        self.held.clear();
        self.connections.clear();
        Ok(())
    }

    fn is_done(&self) -> bool {
        // Another keeper has taken its place, so no process can connect here.
        if self.connections.is_empty() && self.socket.find() == watched_socket::PathStatus::Other {
            return true;
        }
        let idle = self.held.is_empty() && self.connections.is_empty();
        self.quitting || (self.pipes.is_empty() && (self.terminating || idle))
    }

    /// Waits for the next event.
    fn wait(&self) -> io::Result<ReadyDescriptors> {
        // Without a watch, uses the same descriptor twice.
        let watch = self.socket.watch().unwrap_or(self.terminate.as_fd());
        let mut fds: Vec<PollFd<'_>> = [self.terminate.as_fd(), self.socket.listener(), watch]
            .into_iter()
            .chain(self.connections.iter().map(|connection| connection.as_fd()))
            .chain(self.pipes.iter().map(|pipe| pipe.as_fd()))
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        if self.terminating {
            // Its descriptor stays readable.
            fds[0] = PollFd::new(self.terminate.as_fd(), PollFlags::empty());
            if self.socket.watch().is_none() {
                fds[2] = fds[0].clone();
            }
        }
        if self.is_full {
            fds[1] = PollFd::new(self.socket.listener(), PollFlags::empty());
        }
        let due = self.pipes.iter().filter_map(|pipe| pipe.log().due()).min();
        let until_due = due.map(|due| due.saturating_duration_since(Instant::now()));
        let limit = [self.is_shut.then_some(SOCKET_RETRY), until_due].into_iter().flatten().min();
        retry(|| poll(&mut fds, limit))?;
        let mut ready = fds.iter().map(|fd| !found(fd).is_empty());
        Ok(ReadyDescriptors {
            terminate: ready.next().unwrap_or_default(),
            listener: ready.next().unwrap_or_default(),
            watch: ready.next().unwrap_or_default() && self.socket.watch().is_some(),
            connections: ready.by_ref().take(self.connections.len()).collect(),
            pipes: ready.collect(),
        })
    }

    fn read_pipes(&mut self, ready: &[bool]) {
        let mut ready = ready.iter();
        let Self { pipes, stats, buffer, .. } = self;
        pipes.retain_mut(|pipe| {
            let open = !ready.next().is_some_and(|ready| *ready) || pipe.read(buffer) != PipeRead::End;
            count(stats, pipe);
            open
        });
    }

    /// Does what a log has to do at a certain time.
    fn tick(&self) {
        let mut now = None;
        for log in self.pipes.iter().map(Pipe::log) {
            if log.due().is_some() {
                log.tick(*now.get_or_insert_with(Instant::now));
            }
        }
    }

    /// Answers in the order of the connections: the requests of an earlier supervisor are done before a later one gets
    /// an answer.
    fn answer(&mut self, ready: &[bool]) {
        let Some(last) = ready.iter().rposition(|ready| *ready) else { return };
        let mut connections = std::mem::take(&mut self.connections);
        let later = connections.split_off(last + 1);
        connections.retain(|connection| self.answer_all(connection).is_ok());
        self.connections = connections;
        self.connections.extend(later);
    }

    /// Answers the requests that have arrived, at most as many as fit into a socket.
    fn answer_all(&mut self, connection: &Channel) -> Result<(), WireError> {
        for _ in 0..ARRIVED_MAX {
            if !self.answer_one(connection)? || self.quitting {
                break;
            }
        }
        Ok(())
    }

    /// Receives one request and replies. Returns whether there was one. An error means that the connection is unusable.
    fn answer_one(&mut self, connection: &Channel) -> Result<bool, WireError> {
        let (reply, fds) = match recv_message::<KeeperRequest>(connection, VERSION) {
            Ok(Some((_, request, fds))) => {
                let asked = name(&request);
                crash_point!("keeper/before.{asked}");
                let reply = self.perform(request, fds);
                crash_point!("keeper/after.{asked}");
                reply
            }
            Ok(None) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Err(error) if error.would_block() => return Ok(false),
            // A newer supervisor, or one with more descriptors than this process may hold: reply with an error, and
            // keep the connection.
            Err(WireError::Frame(error @ (FrameError::Kind { .. } | FrameError::FdsLost))) => {
                (failed(error.to_string()), Vec::new())
            }
            Err(error) => return Err(error),
        };
        match send_message(connection, VERSION, HandoffId::NIL, &reply, &fds) {
            Err(error) if error.would_block() => Err(error),
            // A supervisor that is gone may have left more requests. The end of the connection follows them.
            Ok(()) | Err(_) => Ok(true),
        }
    }

    /// Executes a request. Returns the reply and its descriptors.
    fn perform(&mut self, request: KeeperRequest, fds: Vec<OwnedFd>) -> (KeeperReply, Vec<BorrowedFd<'_>>) {
        let reply = match request {
            KeeperRequest::Ping(_) => done(),
            KeeperRequest::Store(store) => self.store(store.keys, fds),
            KeeperRequest::Drop(key) => {
                self.held.remove(&key.key);
                done()
            }
            KeeperRequest::Fetch(key) => match self.held.get(&key.key) {
                Some(fd) => return (KeeperReply::Fetched(Empty {}), vec![fd.as_fd()]),
                None => failed(format!("there is no key {:?}", key.key)),
            },
            KeeperRequest::FetchAll(wanted) => return self.fetch_all(wanted),
            KeeperRequest::List(list) => self.list(list),
            KeeperRequest::Log(log) => self.open_log(unlabelled(log), fds),
            KeeperRequest::LogStream(log) => self.open_log(log, fds),
            KeeperRequest::Labels(_) => done(),
            KeeperRequest::Stats(_) => {
                self.pipes.iter().for_each(|pipe| count(&mut self.stats, pipe));
                let (held, pipes) = (self.held.len() as u64, self.pipes.len() as u64);
                KeeperReply::Stats(Stats { held, pipes, ..self.stats.clone() })
            }
            KeeperRequest::Quit(_) => {
                self.drain();
                self.quitting = true;
                done()
            }
        };
        (reply, Vec::new())
    }

    fn fetch_all(&self, wanted: Keys) -> (KeeperReply, Vec<BorrowedFd<'_>>) {
        let wanted = wanted.keys.into_iter().take(FETCH_MAX);
        let (keys, fds) = wanted.filter_map(|key| self.held.get(&key).map(|fd| (key, fd.as_fd()))).unzip();
        (KeeperReply::FetchedAll(Keys { keys }), fds)
    }

    fn store(&mut self, keys: Vec<String>, fds: Vec<OwnedFd>) -> KeeperReply {
        if let Some(key) = keys.iter().find(|key| key.is_empty() || key.len() > KEY_MAX_BYTES) {
            return failed(format!("a key has 1 to {KEY_MAX_BYTES} bytes, {key:?} has {}", key.len()));
        }
        self.held.extend(keys.into_iter().zip(fds));
        done()
    }

    fn list(&self, list: List) -> KeeperReply {
        let mut rest = self.held.range::<String, _>((Excluded(list.after), Unbounded)).map(|(key, _)| key);
        let keys = rest.by_ref().take(PAGE_KEYS).cloned().collect();
        KeeperReply::Entries(Entries { keys, more: rest.next().is_some() })
    }

    fn open_log(&mut self, request: LogStream, fds: Vec<OwnedFd>) -> KeeperReply {
        let (settings, label) = (settings_of(&request), label_of(&request));
        let dir = PathBuf::from(OsString::from_vec(request.dir));
        let same = self.pipes.iter().map(Pipe::log).find(|log| log.dir() == dir);
        let log = same.cloned().unwrap_or_else(|| Rc::new(Writer::new(dir, &label.service, settings)));
        log.set(settings);
        for fd in fds {
            let read = identity(&fd)
                .ok()
                .and_then(|found| self.pipes.iter_mut().find(|pipe| pipe.identity() == found));
            if let Some(pipe) = read {
                pipe.learn(&label);
                continue;
            }
            match Pipe::new(fd, Rc::clone(&log), label.clone()) {
                Ok(pipe) => self.pipes.push(pipe),
                Err(error) => {
                    return failed(format!("the log pipe of {} is unfit: {error}", label.service));
                }
            }
        }
        done()
    }

    /// Drains the pipes.
    fn drain(&mut self) {
        for mut pipe in std::mem::take(&mut self.pipes) {
            let mut left = LAST_BYTES;
            while let PipeRead::Bytes(count) = pipe.read(&mut self.buffer)
                && left > 0
            {
                left = left.saturating_sub(count);
            }
            pipe.end();
            pipe.log().report_dropped();
            count(&mut self.stats, &pipe);
        }
    }

    /// Accepts a connection of the same user, or of root.
    fn accept(&mut self) {
        let connection = match accept(self.socket.listener(), SockFlag::SOCK_NONBLOCK) {
            Ok(connection) => connection,
            Err(error) => {
                self.is_full =
                    matches!(error, Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM);
                return;
            }
        };
        let own = effective_user();
        let trusted = peer_of(&connection).is_ok_and(|peer| peer.user == own || peer.user == 0);
        if trusted
            && self.connections.len() < CONNECTIONS_MAX
            && let Ok(channel) = Channel::from_fd(connection)
        {
            self.connections.push(channel);
        }
    }
}

/// The ready descriptors.
struct ReadyDescriptors {
    terminate: bool,
    listener: bool,
    watch: bool,
    connections: Vec<bool>,
    pipes: Vec<bool>,
}

fn count(stats: &mut Stats, pipe: &Pipe) {
    let totals = pipe.log().take_totals();
    stats.written_bytes += totals.written_bytes;
    stats.lost_lines += totals.lost_lines;
    if !totals.last_error.is_empty() {
        stats.trouble = totals.last_error;
    }
}

/// The request of an older supervisor, which does not tell the streams apart.
fn unlabelled(log: LogRequest) -> LogStream {
    LogStream {
        service: log.service,
        dir: log.dir,
        max_size_bytes: log.max_size_bytes,
        files: log.files,
        max_age_ms: 0,
        max_rate_bytes: 0,
        journald: false,
        generation: 0,
        pid: 0,
        stream: 0,
    }
}

fn settings_of(request: &LogStream) -> LogSettings {
    LogSettings {
        max_size_bytes: request.max_size_bytes,
        files: request.files,
        max_age: (request.max_age_ms > 0).then(|| Duration::from_millis(request.max_age_ms)),
        max_rate_bytes: Some(request.max_rate_bytes).filter(|bytes| *bytes > 0),
        journald: request.journald,
    }
}

fn label_of(request: &LogStream) -> Label {
    Label {
        service: request.service.clone(),
        generation: Some(request.generation).filter(|generation| *generation > 0),
        pid: Some(request.pid).filter(|pid| *pid > 0),
        stream: match request.stream {
            1 => Some(Stream::Out),
            2 => Some(Stream::Err),
            _ => None,
        },
    }
}

fn done() -> KeeperReply {
    KeeperReply::Done(Empty {})
}

fn failed(reason: String) -> KeeperReply {
    KeeperReply::Failed(Failed { reason })
}
