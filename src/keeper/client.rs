//! The supervisor's side.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use handoff_protocol::frame::FrameError;
use handoff_protocol::ids::HandoffId;

use super::VERB;
use super::log_spec::LogSpec;
use super::message::{Empty, FETCH_MAX, KeeperReply, KeeperRequest, Key, Keys, List, Stats, Store, VERSION};
use crate::crash_points::passed_on;
use crate::sys::channel::Channel;
use crate::sys::files::files_limit;
use crate::sys::process::{Exit, Signal, kill, pidfd_open, reap};
use crate::sys::readable::is_readable_by;
use crate::sys::socket::{
    AddressFamily, SockFlag, SockType, connect_path, peer_of, set_receive_timeout, set_send_timeout, socket,
};
use crate::sys::spawn::{SpawnSpec, spawn};
use crate::sys::user::effective_user;
use crate::sys::wire::{WireError, recv_message, send_message};

/// A keeper that takes longer to read or answer a request counts as hung.
pub const TIMEOUT: Duration = Duration::from_secs(2);

/// Descriptors per request; the kernel's maximum is 253.
const STORE_BATCH: usize = 64;

/// Maximum number of outstanding answers; then the client waits for one. All of them must fit into the keeper's socket,
/// because the keeper disconnects a client that does not read.
const OWED_MAX: u64 = 128;

/// Why a request to the keeper failed. `Display` is a sentence without a full stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Connecting failed.
    #[error("the keeper cannot be reached at {}: {source}", path.display())]
    Unreachable {
        /// Its socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Starting it failed.
    #[error("the keeper cannot be started: {0}")]
    Start(#[source] io::Error),
    /// It does not read, or does not answer. Kill it.
    #[error("the keeper (pid {pid}) did not answer within {} s", TIMEOUT.as_secs())]
    Silent {
        /// Its pid.
        pid: u32,
    },
    /// It has exited, or sent an invalid answer.
    #[error("the keeper (pid {pid}) failed: {source}")]
    Broken {
        /// Its pid.
        pid: u32,
        /// The cause.
        source: WireError,
    },
    /// It refused the request.
    #[error("the keeper refused: {0}")]
    Refused(String),
    /// Descriptors from the keeper did not arrive. The keeper still holds them.
    #[error(
        "cannot take the descriptors that the keeper holds: the limit of {limit} open files (RLIMIT_NOFILE) is too low"
    )]
    NoRoom {
        /// The limit.
        limit: u64,
    },
}

/// A connection to a keeper. After `Silent` or `Broken`, all later calls fail in the same way.
///
/// [`Client::store`], [`Client::drop_key`] and [`Client::log`] do not wait for the answer, unless too many are
/// outstanding. The next of these calls, which is still executed, or [`Client::settle`] returns their refusal. All
/// other calls block until their answer, for up to about twice [`TIMEOUT`].
#[derive(Debug)]
pub struct Client {
    channel: Channel,
    pidfd: OwnedFd,
    pid: u32,
    /// Number of requests sent.
    requests_sent: u64,
    /// Number of answers read.
    answered: u64,
    /// Refusals that no call has returned yet.
    refusal: Option<String>,
    /// Whether it labels lines, as older versions do not.
    labels: bool,
    /// A late answer may still arrive, and would be mistaken for that of another request.
    failed: bool,
}

impl Client {
    /// Starts a keeper as a child of this process: `program keeper socket`. `program` is the absolute path of
    /// `handoff`; `socket` is the path to listen at, where an existing socket is replaced.
    pub fn start(program: &Path, socket: &Path) -> Result<Client, Error> {
        let (channel, theirs) = Channel::pair().map_err(Error::Start)?;
        // It outlives the readers of this process's output.
        let null = || std::fs::File::options().write(true).open("/dev/null").map(OwnedFd::from);
        let spec = SpawnSpec {
            binary: program.to_owned(),
            args: vec![VERB.into(), socket.into()],
            env: passed_on().into_iter().collect(),
            working_dir: PathBuf::from("/"),
            stdout: null().map_err(Error::Start)?,
            stderr: null().map_err(Error::Start)?,
            channel: Some(theirs),
            files_limit: None,
        };
        let spawned = spawn(spec).map_err(Error::Start)?;
        let mut client = Client::on(channel, spawned.pidfd, spawned.pid);
        let greeted = set_timeouts(&client.channel).map_err(Error::Start).and_then(|()| client.ping());
        if let Err(error) = greeted {
            client.end();
            return Err(error);
        }
        Ok(client)
    }

    /// Connects to the keeper of an earlier supervisor. It must belong to the same user, and answer.
    pub fn connect(socket: &Path) -> Result<Client, Error> {
        let mut client = Client::reach(socket)?;
        client.ping()?;
        Ok(client)
    }

    /// Connects to a keeper that may not answer. Until [`Client::ping`] has succeeded or returned `Silent`, the pid may
    /// belong to another process.
    pub fn reach(socket: &Path) -> Result<Client, Error> {
        let unreachable = |source: io::Error| Error::Unreachable { path: socket.to_owned(), source };
        let (channel, pid) = connect_to(socket).map_err(unreachable)?;
        // A process that keeps the connection open beyond this point has existed since the connect.
        let pidfd = pidfd_open(pid).map_err(unreachable)?;
        Ok(Client::on(channel, pidfd, pid))
    }

    fn on(channel: Channel, pidfd: OwnedFd, pid: u32) -> Client {
        Client {
            channel,
            pidfd,
            pid,
            requests_sent: 0,
            answered: 0,
            refusal: None,
            labels: true,
            failed: false,
        }
    }

    /// The pid of the keeper.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The pidfd of the keeper: readable when it has exited.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Checks that it answers.
    pub fn ping(&mut self) -> Result<(), Error> {
        self.ask_done(&KeeperRequest::Ping(Empty {}), &[])
    }

    /// Stores descriptors, each under a key of 1 to [`super::KEY_MAX_BYTES`] bytes. Replaces existing keys. Does not
    /// wait for the answer.
    pub fn store<'a>(
        &mut self,
        entries: impl IntoIterator<Item = (&'a str, BorrowedFd<'a>)>,
    ) -> Result<(), Error> {
        let entries: Vec<_> = entries.into_iter().collect();
        for batch in entries.chunks(STORE_BATCH) {
            let keys = batch.iter().map(|(key, _)| (*key).to_owned()).collect();
            let fds: Vec<_> = batch.iter().map(|(_, fd)| *fd).collect();
            self.post(&KeeperRequest::Store(Store { keys }), &fds)?;
        }
        Ok(())
    }

    /// Closes the descriptor under this key, if there is one. Does not wait for the answer.
    pub fn drop_key(&mut self, key: &str) -> Result<(), Error> {
        self.post(&KeeperRequest::Drop(Key { key: key.to_owned() }), &[])
    }

    /// Finds out whether it labels lines, for [`Client::log`].
    pub fn learn_version(&mut self) -> Result<(), Error> {
        match self.ask_done(&KeeperRequest::Labels(Empty {}), &[]) {
            Err(Error::Refused(_)) => self.labels = false,
            answer => return answer,
        }
        Ok(())
    }

    /// Whether it labels lines, and knows the mark at the start of a pipe.
    pub fn labels_lines(&self) -> bool {
        self.labels
    }

    /// Makes the keeper read a log pipe, or tells it more about one that it reads. Does not wait for the answer.
    pub fn log(&mut self, spec: &LogSpec, pipe: BorrowedFd<'_>) -> Result<(), Error> {
        let request = if self.labels { spec.labelled() } else { spec.unlabelled() };
        self.post(&request, &[pipe])
    }

    /// All keys, sorted.
    pub fn list(&mut self) -> Result<Vec<String>, Error> {
        let mut keys: Vec<String> = Vec::new();
        loop {
            let after = keys.last().cloned().unwrap_or_default();
            match self.ask(&KeeperRequest::List(List { after }), &[])? {
                (KeeperReply::Entries(entries), _) => {
                    keys.extend(entries.keys);
                    if !entries.more {
                        return Ok(keys);
                    }
                }
                _ => return Err(self.misunderstood()),
            }
        }
    }

    /// A duplicate of the descriptor under this key. `Refused` if there is none.
    pub fn fetch(&mut self, key: &str) -> Result<OwnedFd, Error> {
        match self.ask(&KeeperRequest::Fetch(Key { key: key.to_owned() }), &[])? {
            (KeeperReply::Fetched(_), fds) => fds.into_iter().next().ok_or_else(|| self.misunderstood()),
            _ => Err(self.misunderstood()),
        }
    }

    /// Duplicates of the descriptors under these keys. Omits missing keys.
    pub fn fetch_all(&mut self, keys: &[String]) -> Result<Vec<(String, OwnedFd)>, Error> {
        let mut found = Vec::with_capacity(keys.len());
        for batch in keys.chunks(FETCH_MAX) {
            let request = KeeperRequest::FetchAll(Keys { keys: batch.to_vec() });
            match self.ask(&request, &[])? {
                (KeeperReply::FetchedAll(given), fds) => found.extend(given.keys.into_iter().zip(fds)),
                _ => return Err(self.misunderstood()),
            }
        }
        Ok(found)
    }

    /// Its statistics.
    pub fn stats(&mut self) -> Result<Stats, Error> {
        match self.ask(&KeeperRequest::Stats(Empty {}), &[])? {
            (KeeperReply::Stats(stats), _) => Ok(stats),
            _ => Err(self.misunderstood()),
        }
    }

    /// Makes it drain the pipes and exit, and waits for its exit, for up to another [`TIMEOUT`].
    pub fn quit(&mut self) -> Result<(), Error> {
        self.ask_done(&KeeperRequest::Quit(Empty {}), &[])?;
        if self.wait_for_end() { Ok(()) } else { Err(Error::Silent { pid: self.pid }) }
    }

    /// Kills it. For a keeper that does not answer.
    pub fn kill(&self) {
        // ESRCH: it already exited.
        let _ = kill(&self.pidfd, Signal::SIGKILL);
    }

    /// Kills it, and waits for its exit, for up to [`TIMEOUT`].
    pub fn end(&self) {
        self.kill();
        self.wait_for_end();
    }

    /// Waits for all outstanding answers.
    pub fn settle(&mut self) -> Result<(), Error> {
        self.wait_for_answers()?;
        self.receive_done()
    }

    /// Like [`Client::settle`], without waiting. Returns whether all answers have arrived.
    pub fn hear(&mut self) -> Result<bool, Error> {
        let lacks = self.lacks(self.requests_sent)?;
        self.receive_done()?;
        Ok(!lacks)
    }

    /// Reaps the process. `None` if it is running, was reaped before, or is not a child of this process.
    pub fn reap(&self) -> Option<Exit> {
        reap(self.pidfd.as_fd()).ok().flatten()
    }

    /// Sends a ping without waiting, and returns the number of the request.
    pub fn ask_for_sign(&mut self) -> Result<u64, Error> {
        self.send(&KeeperRequest::Ping(Empty {}), &[])?;
        Ok(self.requests_sent)
    }

    /// Whether the request with this number is unanswered. Reads the available answers; does not block.
    pub fn lacks(&mut self, request: u64) -> Result<bool, Error> {
        while self.answered < request {
            if self.failed {
                return Err(Error::Silent { pid: self.pid });
            }
            if !self.has_answer() {
                return Ok(true);
            }
            self.receive_unasked()?;
        }
        Ok(false)
    }

    /// A descriptor that becomes readable when an answer arrives.
    pub fn answers(&self) -> io::Result<OwnedFd> {
        self.channel.as_fd().try_clone_to_owned()
    }

    fn has_answer(&self) -> bool {
        is_readable_by(&self.channel, Instant::now()).unwrap_or(false)
    }

    /// Waits for its exit for up to [`TIMEOUT`], and reaps a child. Returns whether it has exited.
    fn wait_for_end(&self) -> bool {
        let ended = is_readable_by(&self.pidfd, Instant::now() + TIMEOUT).unwrap_or(false);
        if ended {
            self.reap();
        }
        ended
    }

    fn ask_done(&mut self, request: &KeeperRequest, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        match self.ask(request, fds)? {
            (KeeperReply::Done(_), _) => Ok(()),
            _ => Err(self.misunderstood()),
        }
    }

    fn ask(
        &mut self,
        request: &KeeperRequest,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(KeeperReply, Vec<OwnedFd>), Error> {
        self.wait_for_answers()?;
        self.send(request, fds)?;
        self.receive()
    }

    /// Sends a request, and returns an earlier refusal.
    fn post(&mut self, request: &KeeperRequest, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        while self.owes() && (self.requests_sent - self.answered >= OWED_MAX || self.has_answer()) {
            self.receive_unasked()?;
        }
        self.send(request, fds)?;
        self.receive_done()
    }

    fn wait_for_answers(&mut self) -> Result<(), Error> {
        while self.owes() {
            self.receive_unasked()?;
        }
        Ok(())
    }

    /// Whether answers are outstanding that may still arrive.
    fn owes(&self) -> bool {
        self.answered < self.requests_sent && !self.failed
    }

    fn receive_done(&mut self) -> Result<(), Error> {
        self.refusal.take().map_or(Ok(()), |reason| Err(Error::Refused(reason)))
    }

    fn send(&mut self, request: &KeeperRequest, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        if self.failed {
            return Err(Error::Silent { pid: self.pid });
        }
        match send_message(&self.channel, VERSION, HandoffId::NIL, request, fds) {
            Ok(()) => {
                self.requests_sent += 1;
                Ok(())
            }
            Err(error) => Err(self.broken(error)),
        }
    }

    fn receive(&mut self) -> Result<(KeeperReply, Vec<OwnedFd>), Error> {
        match recv_message::<KeeperReply>(&self.channel, VERSION) {
            Ok(Some((_, reply, fds))) => {
                self.answered += 1;
                match reply {
                    KeeperReply::Failed(failed) => Err(Error::Refused(failed.reason)),
                    reply => Ok((reply, fds)),
                }
            }
            Err(WireError::Frame(FrameError::FdsLost)) => {
                self.answered += 1;
                Err(Error::NoRoom { limit: files_limit() })
            }
            Ok(None) => Err(self.broken(io::Error::from(io::ErrorKind::UnexpectedEof).into())),
            Err(error) => Err(self.broken(error)),
        }
    }

    /// Reads one answer to a request without a waiting sender; stores a refusal for the next call.
    fn receive_unasked(&mut self) -> Result<(), Error> {
        match self.receive() {
            Ok(_) => Ok(()),
            Err(Error::Refused(reason)) => {
                match &mut self.refusal {
                    Some(earlier) => *earlier = format!("{earlier}; {reason}"),
                    None => self.refusal = Some(reason),
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn broken(&mut self, source: WireError) -> Error {
        self.failed = true;
        let pid = self.pid;
        if source.would_block() { Error::Silent { pid } } else { Error::Broken { pid, source } }
    }

    fn misunderstood(&mut self) -> Error {
        self.broken(
            io::Error::new(io::ErrorKind::InvalidData, "the answer belongs to another request").into(),
        )
    }
}

/// Calls on a blocking socket then fail with EAGAIN after this time.
fn set_timeouts(socket: impl AsFd) -> io::Result<()> {
    set_receive_timeout(&socket, TIMEOUT)?;
    Ok(set_send_timeout(&socket, TIMEOUT)?)
}

fn connect_to(path: &Path) -> io::Result<(Channel, u32)> {
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::empty())?;
    // Connecting blocks, too, while the keeper does not accept.
    set_timeouts(&socket)?;
    connect_path(&socket, path)?;
    // The credentials are those of the process that called listen(2).
    let peer = peer_of(&socket)?;
    if peer.user != effective_user() {
        let text = format!("it belongs to another user (uid {})", peer.user);
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok((Channel::from_fd(socket)?, peer.pid))
}
