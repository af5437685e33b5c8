//! The keeper's loop: one thread, one poll, no timer.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::ops::Bound::{Excluded, Unbounded};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::rc::Rc;

use handoff_protocol::frame::FrameError;
use handoff_protocol::ids::HandoffId;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{SocketFlags, accept_with, sockopt};

use super::log::{Limits, Log};
use super::message::{
    Empty, Entries, FETCH_MAX, Failed, KEY_MAX_BYTES, KeeperReply, KeeperRequest, Keys, List,
    Log as LogRequest, Stats, VERSION,
};
use super::pipe::{Buffer, Found, Pipe};
use crate::crash_points::{crash_point, name};
use crate::sys::channel::Channel;
use crate::sys::log_pipe::identity;
use crate::sys::wire::{WireError, recv_message, send_message};

/// More supervisors than will ever be.
const CONNECTIONS_MAX: usize = 16;

/// Keys in one page of a list, so that a page fits into a frame whatever their length.
const PAGE_KEYS: usize = 100;

/// What one pipe may still give before the end: more than a pipe can hold, so that only one that is written to all the
/// time is cut off.
const LAST_BYTES: usize = 1 << 20;

/// Everything that a keeper has.
pub(super) struct Keeper {
    listener: OwnedFd,
    terminate: OwnedFd,
    /// Asked to leave when the last pipe is closed.
    terminating: bool,
    /// Asked to leave now.
    quitting: bool,
    connections: Vec<Channel>,
    held: BTreeMap<String, OwnedFd>,
    pipes: Vec<Pipe>,
    stats: Stats,
    buffer: Buffer,
}

impl Keeper {
    /// A keeper that serves `supervisor` and whoever of the same user connects to `listener`. `terminate` becomes
    /// readable when it is to end in order.
    pub(super) fn new(supervisor: Channel, listener: OwnedFd, terminate: OwnedFd) -> io::Result<Self> {
        supervisor.set_nonblocking(true)?;
        Ok(Self {
            listener,
            terminate,
            terminating: false,
            quitting: false,
            connections: vec![supervisor],
            held: BTreeMap::new(),
            pipes: Vec::new(),
            stats: Stats::default(),
            buffer: Buffer::new(),
        })
    }

    /// Works until there is no more reason to.
    pub(super) fn run(mut self) -> io::Result<()> {
        while !self.is_done() {
            let ready = self.wait()?;
            // Logs first, so that what was written before a request is in the files when the request is answered.
            self.read_pipes(&ready.pipes);
            self.answer(&ready.connections);
            self.terminating |= ready.terminate;
            if ready.listener {
                self.accept();
            }
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        let idle = self.held.is_empty() && self.connections.is_empty();
        self.quitting || (self.pipes.is_empty() && (self.terminating || idle))
    }

    /// Sleeps until something can be done.
    fn wait(&self) -> io::Result<Ready> {
        let mut fds: Vec<PollFd<'_>> = [self.terminate.as_fd(), self.listener.as_fd()]
            .into_iter()
            .chain(self.connections.iter().map(|connection| connection.as_fd()))
            .chain(self.pipes.iter().map(|pipe| pipe.as_fd()))
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        if self.terminating {
            // Its descriptor stays readable.
            fds[0] = PollFd::from_borrowed_fd(self.terminate.as_fd(), PollFlags::empty());
        }
        rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        Ok(Ready {
            terminate: ready.next().unwrap_or_default(),
            listener: ready.next().unwrap_or_default(),
            connections: ready.by_ref().take(self.connections.len()).collect(),
            pipes: ready.collect(),
        })
    }

    fn read_pipes(&mut self, ready: &[bool]) {
        let mut ready = ready.iter();
        let Self { pipes, stats, buffer, .. } = self;
        pipes.retain_mut(|pipe| {
            let open = !ready.next().is_some_and(|ready| *ready) || pipe.read(buffer) != Found::End;
            count(stats, pipe);
            open
        });
    }

    fn answer(&mut self, ready: &[bool]) {
        let connections = std::mem::take(&mut self.connections).into_iter().zip(ready);
        let open = connections.filter(|(connection, ready)| !**ready || self.answer_one(connection).is_ok());
        self.connections = open.map(|(connection, _)| connection).collect();
    }

    /// Takes one request and replies. An error means that the connection is of no more use.
    fn answer_one(&mut self, connection: &Channel) -> Result<(), WireError> {
        let (reply, fds) = match recv_message::<KeeperRequest>(connection, VERSION) {
            Ok(Some((_, request, fds))) => {
                let asked = name(&request);
                crash_point!("keeper/before.{asked}");
                let reply = self.perform(request, fds);
                crash_point!("keeper/after.{asked}");
                reply
            }
            Ok(None) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Err(error) if error.would_block() => return Ok(()),
            // A newer supervisor, or one that has more descriptors than this process may hold: told, not hung up on.
            Err(WireError::Frame(error @ (FrameError::Kind { .. } | FrameError::FdsLost))) => {
                (failed(error.to_string()), Vec::new())
            }
            Err(error) => return Err(error),
        };
        match send_message(connection, VERSION, HandoffId::NIL, &reply, &fds) {
            Err(error) if error.would_block() => Err(error),
            // A supervisor that is gone may have left more to do. The end of the connection comes after it.
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Gives the reply, and the descriptors that belong to it.
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
                None => failed(format!("nothing is held by the key {:?}", key.key)),
            },
            KeeperRequest::FetchAll(wanted) => return self.fetch_all(wanted),
            KeeperRequest::List(list) => self.list(list),
            KeeperRequest::Log(log) => self.open_log(log, fds),
            KeeperRequest::Stats(_) => {
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

    fn open_log(&mut self, request: LogRequest, fds: Vec<OwnedFd>) -> KeeperReply {
        let dir = PathBuf::from(OsString::from_vec(request.dir));
        let limits = Limits { max_size_bytes: request.max_size_bytes, files: request.files };
        let same = self.pipes.iter().map(Pipe::log).find(|log| log.borrow().dir() == dir);
        let log = same.cloned().unwrap_or_else(|| Rc::new(RefCell::new(Log::new(dir, limits))));
        log.borrow_mut().set_limits(limits);
        for fd in fds {
            if identity(&fd).is_ok_and(|found| self.pipes.iter().any(|pipe| pipe.identity() == found)) {
                continue;
            }
            match Pipe::new(fd, Rc::clone(&log)) {
                Ok(pipe) => self.pipes.push(pipe),
                Err(error) => {
                    return failed(format!("the log pipe of {} is unfit: {error}", request.service));
                }
            }
        }
        done()
    }

    /// Writes down what is in the pipes.
    fn drain(&mut self) {
        for mut pipe in std::mem::take(&mut self.pipes) {
            let mut left = LAST_BYTES;
            while let Found::Bytes(count) = pipe.read(&mut self.buffer)
                && left > 0
            {
                left = left.saturating_sub(count);
            }
            pipe.end();
            count(&mut self.stats, &pipe);
        }
    }

    /// Takes a connection if it is the same user's, or root's.
    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(connection) = accept_with(&self.listener, flags) else { return };
        let own = rustix::process::geteuid();
        let trusted =
            sockopt::socket_peercred(&connection).is_ok_and(|peer| peer.uid == own || peer.uid.is_root());
        if trusted
            && self.connections.len() < CONNECTIONS_MAX
            && let Ok(channel) = Channel::from_fd(connection)
        {
            self.connections.push(channel);
        }
    }
}

/// What there is to do.
struct Ready {
    terminate: bool,
    listener: bool,
    connections: Vec<bool>,
    pipes: Vec<bool>,
}

fn count(stats: &mut Stats, pipe: &Pipe) {
    let tally = pipe.log().borrow_mut().take_tally();
    stats.written_bytes += tally.written_bytes;
    stats.lost_lines += tally.lost_lines;
    if !tally.trouble.is_empty() {
        stats.trouble = tally.trouble;
    }
}

fn done() -> KeeperReply {
    KeeperReply::Done(Empty {})
}

fn failed(reason: String) -> KeeperReply {
    KeeperReply::Failed(Failed { reason })
}
