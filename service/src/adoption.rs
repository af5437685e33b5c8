//! Lets a new supervisor connect: a socket at a path that the first supervisor chose.
//!
//! A connection has no effect until its first message is a valid `Adopt`. Until then it can be closed, and nothing in
//! the process depends on it.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::iter;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use handoff_protocol::ids::{Generation, HandoffId, ListenerName, ServiceName};
use handoff_protocol::message::{Adopt, Adopted, FromService, Stage, ToService, Welcome};
use handoff_protocol::version::UNAGREED;

use super::driver::print_error;
use handoff_sys::channel::Channel;
use handoff_sys::errno::Errno;
use handoff_sys::inherit::ADOPT_VARIABLE;
use handoff_sys::socket::{self, AddressFamily, SockFlag, SockType, bind_path, listen, socket};
use handoff_sys::wire::recv_message;

/// Maximum number of accepted connections that have sent nothing yet. The newest are kept: a supervisor that died while
/// it adopted this process must not block the next one.
const PENDING_MAX: usize = 4;
/// Maximum number of connections in the accept queue: supervisors that came and went while this process was frozen.
const QUEUE_MAX: i32 = 64;

/// Pause after a failed accept; the usual cause is a lack of descriptors.
const PAUSE: Duration = Duration::from_secs(1);

/// The listening socket, before the process has its `Welcome`.
#[derive(Debug)]
pub(super) struct AdoptionSocket {
    /// Removed on drop. Dropped before the socket: while that is open, no other file gets its inode.
    file: SocketFile,
    socket: OwnedFd,
}

impl AdoptionSocket {
    /// Opens the socket at the path from the supervisor. On failure the process can serve but cannot be adopted.
    pub(super) fn of_this_process() -> Option<Self> {
        let path = PathBuf::from(std::env::var_os(ADOPT_VARIABLE)?);
        let opened = Self::open(&path);
        opened.map_err(|error| not_adoptable(&format_args!("cannot listen at {path:?}: {error}"))).ok()
    }

    fn open(path: &Path) -> io::Result<Self> {
        if !path.is_absolute() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path is not absolute"));
        }
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_NONBLOCK)?;
        bind_path(&socket, path)?;
        let file = SocketFile::at(path)?;
        // Before `listen`, so that no process connects while the mode still depends on the umask.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        listen(&socket, QUEUE_MAX)?;
        Ok(Self { file, socket })
    }

    /// Recreates the socket file if it or its directory is gone.
    fn open_again(&mut self) {
        let path = self.file.path.clone();
        let Some(directory) = path.parent() else { return };
        let found = fs::symlink_metadata(&path);
        if !found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return;
        }
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        // Retried later on failure.
        if let Ok(entrance) = made.and_then(|()| Self::open(&path)) {
            *self = entrance;
        }
    }

    /// Stores the facts for `Adopted`. `fds` are those of `welcome.listeners`.
    pub(super) fn keep(self, welcome: &Welcome, fds: &[OwnedFd]) -> Option<Adoption> {
        match fds.iter().map(OwnedFd::try_clone).collect() {
            Ok(fds) => Some(Adoption {
                socket: self,
                callers: VecDeque::new(),
                paused_until: None,
                next_check: None,
                service: welcome.service.clone(),
                generation: welcome.generation,
                listeners: welcome.listeners.clone(),
                fds,
            }),
            Err(error) => {
                not_adoptable(&format_args!("cannot keep a duplicate of each listener: {error}"));
                None
            }
        }
    }
}

fn not_adoptable(why: &dyn std::fmt::Display) {
    print_error(&format_args!("{why}. If its supervisor ends, no other supervisor can adopt this process"));
}

/// A supervisor that asks to adopt this process.
#[derive(Debug)]
pub(super) struct Adopter {
    pub(super) channel: Channel,
    pub(super) id: HandoffId,
    pub(super) adopt: Adopt,
}

/// The socket, its connections, and the facts for `Adopted`.
#[derive(Debug)]
pub(super) struct Adoption {
    socket: AdoptionSocket,
    /// Connected, but silent so far; the newest last.
    callers: VecDeque<Channel>,
    /// When to accept again after a failure.
    paused_until: Option<Instant>,
    /// Without a supervisor: when to check next that the socket file still exists.
    next_check: Option<Instant>,
    service: ServiceName,
    generation: Generation,
    listeners: Vec<ListenerName>,
    /// Duplicates: the server takes the descriptors that came with `Welcome`.
    fds: Vec<OwnedFd>,
}

impl Adoption {
    /// The descriptors to poll for reading.
    pub(super) fn watched(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let socket = self.paused_until.is_none().then(|| self.socket.socket.as_fd());
        socket.into_iter().chain(self.callers.iter().map(AsFd::as_fd))
    }

    /// When to run again even if nothing is readable.
    pub(super) fn rested(&self) -> Option<Instant> {
        [self.paused_until, self.next_check].into_iter().flatten().min()
    }

    /// Records whether the process has no supervisor. Without one, its socket's directory may have been removed.
    pub(super) fn is_alone(&mut self, alone: bool) {
        match (alone, self.next_check) {
            (true, None) => {
                self.socket.open_again();
                self.next_check = Instant::now().checked_add(PAUSE);
            }
            (true, Some(_)) | (false, None) => {}
            (false, Some(_)) => self.next_check = None,
        }
    }

    /// The next supervisor that has sent `Adopt`. Does not block.
    pub(super) fn next(&mut self) -> Option<Adopter> {
        if self.next_check.is_some_and(|at| at <= Instant::now()) {
            self.socket.open_again();
            self.next_check = Instant::now().checked_add(PAUSE);
        }
        self.accept_callers();
        let callers = std::mem::take(&mut self.callers);
        let mut callers = callers.into_iter();
        while let Some(channel) = callers.next() {
            match recv_message::<ToService>(&channel, UNAGREED) {
                Ok(Some((id, ToService::Adopt(adopt), _))) => {
                    self.callers.extend(callers);
                    return Some(Adopter { channel, id, adopt });
                }
                Err(error) if error.would_block() => self.callers.push_back(channel),
                Ok(_) | Err(_) => {}
            }
        }
        None
    }

    /// The reply to `Adopt`, and its descriptors.
    pub(super) fn answer(&self, version: u16, stage: Stage) -> (FromService, Vec<BorrowedFd<'_>>) {
        let adopted = Adopted {
            version,
            pid: std::process::id(),
            service: self.service.clone(),
            generation: self.generation,
            stage,
            listeners: self.listeners.clone(),
        };
        (FromService::Adopted(adopted), self.fds.iter().map(AsFd::as_fd).collect())
    }

    fn accept_callers(&mut self) {
        if self.paused_until.is_some_and(|rested| Instant::now() < rested) {
            return;
        }
        self.paused_until = None;
        let accepted = iter::from_fn(|| accept(&self.socket.socket).transpose()).take(PENDING_MAX);
        for caller in accepted.collect::<Vec<_>>() {
            match caller {
                Ok(caller) if may_adopt(&caller) => self.callers.push_back(caller),
                Ok(_) => {}
                // The socket stays readable.
                Err(_) => self.paused_until = Instant::now().checked_add(PAUSE),
            }
        }
        let too_many = self.callers.len().saturating_sub(PENDING_MAX);
        self.callers.drain(..too_many);
    }
}

fn accept(socket: &OwnedFd) -> io::Result<Option<Channel>> {
    loop {
        match socket::accept(socket, SockFlag::SOCK_NONBLOCK) {
            Ok(caller) => return Channel::from_fd(caller).map(Some),
            Err(Errno::EAGAIN) => return Ok(None),
            Err(Errno::EINTR | Errno::ECONNABORTED) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The mode of the file gives the same protection, unless a user has changed it.
fn may_adopt(caller: &Channel) -> bool {
    caller.has_trusted_peer().unwrap_or(false)
}

/// The path of a bound socket. Drop removes it, unless another file has replaced it.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn at(path: &Path) -> io::Result<Self> {
        let found = fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), device: found.dev(), inode: found.ino() })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = |found: fs::Metadata| (found.dev(), found.ino()) == (self.device, self.inode);
        if fs::symlink_metadata(&self.path).is_ok_and(is_ours) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_private_and_its_name_is_gone_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("adopt");
        let entrance = AdoptionSocket::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(handoff_sys::descriptor::is_close_on_exec(&entrance.socket).unwrap());
        drop(entrance);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_there_already_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("adopt");
        let first = AdoptionSocket::open(&path).unwrap();
        assert_eq!(AdoptionSocket::open(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        fs::remove_file(&path).unwrap();
        let second = AdoptionSocket::open(&path).unwrap();
        drop(first);
        assert!(path.exists(), "it belongs to another process");
        drop(second);
    }

    #[test]
    fn a_path_that_cannot_be_bound_is_an_error() {
        let long = Path::new("/tmp").join("x".repeat(200));
        for path in [Path::new("adopt"), Path::new(""), &long, Path::new("/nonexistent/adopt")] {
            assert!(AdoptionSocket::open(path).is_err(), "{path:?}");
        }
    }
}
