//! The supervisor's end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use handoff_protocol::frame::FrameError;
use handoff_protocol::ids::HandoffId;

use super::VERB;
use super::message::{
    Empty, FETCH_MAX, KeeperReply, KeeperRequest, Key, Keys, List, Log as LogRequest, Stats, Store, VERSION,
};
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

/// A keeper that takes longer to take a request or to answer it is hung.
pub const TIMEOUT: Duration = Duration::from_secs(2);

/// Descriptors in one request; the kernel takes 253.
const STORE_BATCH: usize = 64;

/// With so many answers outstanding, one is waited for. They all must find room in the socket of the keeper, which hangs up on
/// who does not read.
const OWED_MAX: u64 = 128;

/// Where the lines of a log pipe go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSpec {
    /// The service that writes, for people.
    pub service: String,
    /// The directory of the files, an absolute path; made when it is missing.
    pub dir: PathBuf,
    /// Size at which a file is rotated.
    pub max_size_bytes: u64,
    /// How many files are kept, the current one included; at least 2.
    pub files: u32,
}

/// Why the keeper did not do what it was asked. `Display` is a sentence without a full stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no way to it.
    #[error("the keeper cannot be reached at {}: {source}", path.display())]
    Unreachable {
        /// Its socket.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// It could not be started.
    #[error("the keeper cannot be started: {0}")]
    Start(#[source] io::Error),
    /// It does not read, or does not answer. It is of no more use: kill it.
    #[error("the keeper (pid {pid}) did not answer within {} s", TIMEOUT.as_secs())]
    Silent {
        /// Its pid.
        pid: u32,
    },
    /// It is gone, or speaks another language.
    #[error("the keeper (pid {pid}) failed: {source}")]
    Broken {
        /// Its pid.
        pid: u32,
        /// Cause.
        source: WireError,
    },
    /// It said no.
    #[error("the keeper refused: {0}")]
    Refused(String),
    /// What it gave did not arrive. It still has it.
    #[error(
        "what the keeper holds cannot be taken: this process may have {limit} open files (RLIMIT_NOFILE) and needs more"
    )]
    NoRoom {
        /// The limit.
        limit: u64,
    },
}

/// A connection to a keeper. After `Silent` or `Broken` each further call fails likewise.
///
/// [`Client::store`], [`Client::drop_key`] and [`Client::log`] do not wait for the answer, unless very many are outstanding. Their
/// refusal comes from the next of these calls, which is carried out nevertheless, or from [`Client::settle`]. Every other call
/// blocks until its answer is there, at most about two times [`TIMEOUT`].
#[derive(Debug)]
pub struct Client {
    channel: Channel,
    pidfd: OwnedFd,
    pid: u32,
    /// Number of requests that were sent.
    asked: u64,
    /// Number of answers that were read.
    answered: u64,
    /// Refusals that nobody was told of yet.
    refusal: Option<String>,
    /// An answer may still be on its way, and would be taken for that to another request.
    failed: bool,
}

impl Client {
    /// Starts a keeper as a child of this process: `program keeper socket`, where `program` is `handoff` (an absolute
    /// path) and `socket` the path that it listens at; a socket that is there already is replaced.
    pub fn start(program: &Path, socket: &Path) -> Result<Client, Error> {
        let (channel, theirs) = Channel::pair().map_err(Error::Start)?;
        // It outlives whoever reads what this process writes.
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
        let mut client = Client {
            channel,
            pidfd: spawned.pidfd,
            pid: spawned.pid,
            asked: 0,
            answered: 0,
            refusal: None,
            failed: false,
        };
        let greeted = set_timeouts(&client.channel).map_err(Error::Start).and_then(|()| client.ping());
        if let Err(error) = greeted {
            client.end();
            return Err(error);
        }
        Ok(client)
    }

    /// Connects to a keeper that an earlier supervisor has started. It must belong to the same user, and answer.
    pub fn connect(socket: &Path) -> Result<Client, Error> {
        let mut client = Client::reach(socket)?;
        client.ping()?;
        Ok(client)
    }

    /// Connects to a keeper that may not be able to answer. Until [`Client::ping`] has succeeded or was `Silent`, the pid may
    /// be that of another process.
    pub fn reach(socket: &Path) -> Result<Client, Error> {
        let unreachable = |source: io::Error| Error::Unreachable { path: socket.to_owned(), source };
        let (channel, pid) = connect_to(socket).map_err(unreachable)?;
        // Whoever lets the connection open later than this has lived all the time.
        let pidfd = pidfd_open(pid).map_err(unreachable)?;
        Ok(Client { channel, pidfd, pid, asked: 0, answered: 0, refusal: None, failed: false })
    }

    /// The pid of the keeper.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The pidfd of the keeper: readable when it has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Asks whether it is there.
    pub fn ping(&mut self) -> Result<(), Error> {
        self.ask_done(&KeeperRequest::Ping(Empty {}), &[])
    }

    /// Gives it descriptors to hold, each by a key of 1 to [`super::KEY_MAX_BYTES`] bytes. A key that is taken gets the
    /// new one. Does not wait for the answer.
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

    /// Lets it close what it holds by this key, if anything. Does not wait for the answer.
    pub fn drop_key(&mut self, key: &str) -> Result<(), Error> {
        self.post(&KeeperRequest::Drop(Key { key: key.to_owned() }), &[])
    }

    /// Lets it read a log pipe from now on, unless it does already. Does not wait for the answer.
    pub fn log(&mut self, spec: &LogSpec, pipe: BorrowedFd<'_>) -> Result<(), Error> {
        let request = KeeperRequest::Log(LogRequest {
            service: spec.service.clone(),
            dir: spec.dir.as_os_str().as_bytes().to_vec(),
            max_size_bytes: spec.max_size_bytes,
            files: spec.files,
        });
        self.post(&request, &[pipe])
    }

    /// The keys of all that it holds, sorted.
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

    /// A duplicate of what it holds by this key. `Refused` if there is none.
    pub fn fetch(&mut self, key: &str) -> Result<OwnedFd, Error> {
        match self.ask(&KeeperRequest::Fetch(Key { key: key.to_owned() }), &[])? {
            (KeeperReply::Fetched(_), fds) => fds.into_iter().next().ok_or_else(|| self.misunderstood()),
            _ => Err(self.misunderstood()),
        }
    }

    /// Duplicates of what it holds by these keys. What it does not hold is left out.
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

    /// How much it holds, and how its logs fare.
    pub fn stats(&mut self) -> Result<Stats, Error> {
        match self.ask(&KeeperRequest::Stats(Empty {}), &[])? {
            (KeeperReply::Stats(stats), _) => Ok(stats),
            _ => Err(self.misunderstood()),
        }
    }

    /// Lets it write down what is in the pipes and end, and waits until it is gone, at most [`TIMEOUT`] more.
    pub fn quit(&mut self) -> Result<(), Error> {
        self.ask_done(&KeeperRequest::Quit(Empty {}), &[])?;
        if self.wait_for_end() { Ok(()) } else { Err(Error::Silent { pid: self.pid }) }
    }

    /// Ends it at once. For one that does not answer; that it is gone already is no error.
    pub fn kill(&self) {
        let _ = kill(&self.pidfd, Signal::SIGKILL);
    }

    /// Ends it at once, and waits until it is gone, at most [`TIMEOUT`].
    pub fn end(&self) {
        self.kill();
        self.wait_for_end();
    }

    /// Waits for the answers that nobody has waited for.
    pub fn settle(&mut self) -> Result<(), Error> {
        self.wait_for_answers()?;
        self.told()
    }

    /// Like [`Client::settle`], but does not wait. Says whether all answers have come.
    pub fn hear(&mut self) -> Result<bool, Error> {
        let lacks = self.lacks(self.asked)?;
        self.told()?;
        Ok(!lacks)
    }

    /// Takes the end of the process off the kernel. `None` if it still runs, if that was done before, and if the process
    /// was started by another.
    pub fn reap(&self) -> Option<Exit> {
        reap(self.pidfd.as_fd()).ok().flatten()
    }

    /// Asks for a sign of life without waiting for it, and gives the number of the request.
    pub fn ask_for_sign(&mut self) -> Result<u64, Error> {
        self.send(&KeeperRequest::Ping(Empty {}), &[])?;
        Ok(self.asked)
    }

    /// Whether the request with this number is without an answer. Reads the answers that are there; does not block.
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

    /// A descriptor that becomes readable when an answer comes.
    pub fn answers(&self) -> io::Result<OwnedFd> {
        self.channel.as_fd().try_clone_to_owned()
    }

    fn has_answer(&self) -> bool {
        is_readable_by(&self.channel, Instant::now()).unwrap_or(false)
    }

    /// Whether it ended within [`TIMEOUT`]; if it is a child, it is reaped.
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

    /// Sends, and tells what became of earlier requests.
    fn post(&mut self, request: &KeeperRequest, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        while self.owes() && (self.asked - self.answered >= OWED_MAX || self.has_answer()) {
            self.receive_unasked()?;
        }
        self.send(request, fds)?;
        self.told()
    }

    fn wait_for_answers(&mut self) -> Result<(), Error> {
        while self.owes() {
            self.receive_unasked()?;
        }
        Ok(())
    }

    /// Whether answers are outstanding that may still come.
    fn owes(&self) -> bool {
        self.answered < self.asked && !self.failed
    }

    fn told(&mut self) -> Result<(), Error> {
        self.refusal.take().map_or(Ok(()), |reason| Err(Error::Refused(reason)))
    }

    fn send(&mut self, request: &KeeperRequest, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        if self.failed {
            return Err(Error::Silent { pid: self.pid });
        }
        match send_message(&self.channel, VERSION, HandoffId::NIL, request, fds) {
            Ok(()) => {
                self.asked += 1;
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

    /// Reads one answer to a request whose sender did not wait; a refusal is kept for whoever comes next.
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
        self.broken(io::Error::new(io::ErrorKind::InvalidData, "the answer is to another question").into())
    }
}

/// On a blocking socket a call that has waited for so long fails with EAGAIN.
fn set_timeouts(socket: impl AsFd) -> io::Result<()> {
    set_receive_timeout(&socket, TIMEOUT)?;
    Ok(set_send_timeout(&socket, TIMEOUT)?)
}

fn connect_to(path: &Path) -> io::Result<(Channel, u32)> {
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::empty())?;
    // Connecting waits, too, while the keeper does not accept.
    set_timeouts(&socket)?;
    connect_path(&socket, path)?;
    // The credentials are those of the process that called listen().
    let peer = peer_of(&socket)?;
    if peer.user != effective_user() {
        let text = format!("it belongs to another user (uid {})", peer.user);
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok((Channel::from_fd(socket)?, peer.pid))
}
