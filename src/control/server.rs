//! The daemon end of the control socket.
//!
//! It runs on a `current_thread` runtime within a `LocalSet`. A connection is one task that sleeps in a read: a
//! silent client costs a file descriptor and no time. When all places are taken, the oldest silent client is
//! disconnected, or else the oldest one that does not read its answers. So no client can lock others out by
//! connecting. A client that does not read for a while loses its connection in any case. Each request runs in its own
//! task, which continues if the client hangs up.

use std::borrow::Borrow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_local};

use super::api::{Progress, Request, Response};
use super::caller::Caller;
use super::error::{Error, Kind};
use super::rpc::{LINE_MAX_BYTES, parse_request, progress_line, response_line};
use crate::config::UNIX_PATH_MAX_BYTES;
use crate::sys::descriptor::set_mode;
use crate::sys::files::files_limit;
use crate::sys::socket::{AddressFamily, SockFlag, SockType, bind_path, listen, socket};
use crate::sys::user::effective_user;

/// Maximum number of connected clients, if there are descriptors for them.
pub const CONNECTIONS_MAX: usize = 128;

/// Clients get one in this many descriptors of the daemon. The others are for the services.
const SHARE: u64 = 8;

/// Time limit for a client that does not read.
const READ_WITHIN: Duration = Duration::from_secs(10);

/// Performs requests.
pub trait Handler {
    /// Performs one request of `by`. Runs to its end even if the client hangs up. Everything sent to `progress`
    /// reaches the client before the answer.
    #[allow(async_fn_in_trait)] // Everything stays on one thread, so no Send bound is needed.
    async fn call(&self, request: Request, by: Caller, progress: ProgressSink) -> Result<Response, Error>;
}

/// The progress channel of a handler. Never blocks and never fails, even if the client is gone.
#[derive(Clone, Debug)]
pub struct ProgressSink(mpsc::UnboundedSender<Progress>);

impl ProgressSink {
    /// One without a client.
    pub fn nowhere() -> Self {
        Self(mpsc::unbounded_channel().0)
    }

    /// Sends progress to the client.
    pub fn send(&self, progress: Progress) {
        // A client that hung up does not stop the operation.
        let _ = self.0.send(progress);
    }
}

/// Why the control socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The path does not fit into the structure of the kernel.
    #[error(
        "the control socket path {path:?} has {length} bytes and the kernel takes at most \
         {UNIX_PATH_MAX_BYTES}; choose a shorter one with --runtime-dir"
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// A daemon answers there.
    #[error("another daemon answers on {0:?}; stop it, or choose another place with --runtime-dir")]
    InUse(PathBuf),
    /// A file that is not a socket is in the way.
    #[error("{0:?} is not a socket; it is in the way of the control socket: remove it")]
    NotASocket(PathBuf),
    /// The kernel refused.
    #[error("the control socket {path:?} cannot be opened: {error}; check its directory")]
    Io {
        /// The path.
        path: PathBuf,
        /// The error of the kernel.
        error: io::Error,
    },
}

/// The bound control socket. Drop removes the path, if it still belongs to this socket.
#[derive(Debug)]
pub struct Listener {
    socket: StdListener,
    path: PathBuf,
    /// Device and inode of the path.
    identity: (u64, u64),
}

impl Listener {
    /// Binds the socket with mode 0600. Replaces the socket of a dead daemon, but not one on which a daemon answers.
    /// Needs no runtime, and does not block.
    pub fn bind(path: &Path) -> Result<Listener, BindError> {
        let length = path.as_os_str().len();
        if length > UNIX_PATH_MAX_BYTES {
            return Err(BindError::PathTooLong { path: path.to_owned(), length });
        }
        remove_stale(path)?;
        bind_private(path).map_err(|error| match error.kind() {
            // Another daemon bound it first.
            io::ErrorKind::AddrInUse => BindError::InUse(path.to_owned()),
            _ => BindError::Io { path: path.to_owned(), error },
        })
    }
}

impl Listener {
    /// Whether clients can reach this socket at its path.
    pub fn is_there(&self) -> bool {
        identity(&self.path).is_ok_and(|found| found == self.identity)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.is_there() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Serves clients until the future is dropped. Must run within a `LocalSet`. Fails only if the runtime does not
/// accept the socket.
pub async fn serve(
    listener: impl Borrow<Listener>,
    handler: Rc<impl Handler + 'static>,
) -> io::Result<Infallible> {
    let socket = UnixListener::from_std(listener.borrow().socket.try_clone()?)?;
    let clients = ConnectedClients::for_descriptors(files_limit());
    loop {
        match socket.accept().await {
            Ok((stream, _)) => admit(stream, &handler, &clients),
            Err(error) => {
                tracing::warn!(%error, "a control connection could not be accepted");
                // Out of descriptors: the connection stays in the queue, and an immediate retry would spin.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn remove_stale(path: &Path) -> Result<(), BindError> {
    let io_error = |error| BindError::Io { path: path.to_owned(), error };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BindError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match StdStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(io_error)
        }
        Err(error) => Err(io_error(error)),
        Ok(_) => Err(BindError::InUse(path.to_owned())),
    }
}

fn bind_private(path: &Path) -> io::Result<Listener> {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK)?;
    // Before bind: the path is created with the mode of the socket, so it is never open to others.
    set_mode(&socket, 0o600)?;
    bind_path(&socket, path)?;
    let listener = Listener { socket: socket.into(), path: path.to_owned(), identity: identity(path)? };
    listen(&listener.socket, CONNECTIONS_MAX as i32)?;
    Ok(listener)
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// The connected clients, in order of arrival.
#[derive(Clone)]
struct ConnectedClients {
    connected: Rc<RefCell<BTreeMap<u64, ConnectedClient>>>,
    max: usize,
}

struct ConnectedClient {
    task: AbortHandle,
    activity: ClientActivity,
}

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClientActivity {
    /// It is silent.
    Nothing,
    /// It waits for the work it asked for.
    Work,
    /// A message to it waits for room in its socket.
    Reading,
}

impl ConnectedClients {
    /// No clients yet, in a process that may have `limit` descriptors.
    fn for_descriptors(limit: u64) -> Self {
        let share = usize::try_from(limit / SHARE).unwrap_or(CONNECTIONS_MAX);
        Self { connected: Rc::default(), max: share.clamp(1, CONNECTIONS_MAX) }
    }

    /// Makes room for one more. Returns false if all are at work.
    fn make_room(&self) -> bool {
        let mut clients = self.connected.borrow_mut();
        if clients.len() < self.max {
            return true;
        }
        let idle = |activity| {
            clients.iter().find(|(_, client)| client.activity == activity).map(|(&number, _)| number)
        };
        let leaves = idle(ClientActivity::Nothing).or_else(|| idle(ClientActivity::Reading));
        match leaves.and_then(|number| clients.remove(&number)) {
            Some(client) => {
                client.task.abort();
                true
            }
            None => false,
        }
    }

    fn next_number(&self) -> u64 {
        RefCell::borrow(&self.connected).last_key_value().map_or(0, |(number, _)| number + 1)
    }

    fn set(&self, number: u64, activity: ClientActivity) {
        if let Some(client) = self.connected.borrow_mut().get_mut(&number) {
            client.activity = activity;
        }
    }
}

fn admit(stream: UnixStream, handler: &Rc<impl Handler + 'static>, clients: &ConnectedClients) {
    let peer = stream.peer_cred();
    let refusal = match &peer {
        Ok(peer) if !may_control(peer.uid()) => Some(Error::new(
            Kind::PermissionDenied,
            format!("User {} may not control this daemon.", peer.uid()),
            format!("Ask as user {} or as root.", effective_user()),
        )),
        Err(error) => Some(Error::internal(format!("the peer's credentials cannot be read: {error}"))),
        Ok(_) if !clients.make_room() => Some(Error::new(
            Kind::TooManyClients,
            format!("All {} control connections are at work.", clients.max),
            "Try again when an operation has ended.",
        )),
        Ok(_) => None,
    };
    if let Some(error) = refusal {
        // The buffer of a new socket is empty, so this short line fits.
        let _ = stream.try_write(&response_line(&serde_json::Value::Null, &Err(error)));
        return;
    }
    let (uid, pid) = peer.map_or((0, None), |peer| (peer.uid(), peer.pid()));
    let by = Caller::of(uid, pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default());
    let number = clients.next_number();
    let (handler, host) = (Rc::clone(handler), clients.clone());
    let task = spawn_local(async move {
        // An error means that the client is gone, so it needs no answer.
        let _ = converse(stream, by, handler, |activity| host.set(number, activity)).await;
        host.connected.borrow_mut().remove(&number);
    });
    clients
        .connected
        .borrow_mut()
        .insert(number, ConnectedClient { task: task.abort_handle(), activity: ClientActivity::Nothing });
}

fn may_control(uid: u32) -> bool {
    uid == 0 || uid == effective_user()
}

async fn converse(
    stream: UnixStream,
    by: Caller,
    handler: Rc<impl Handler + 'static>,
    set: impl Fn(ClientActivity),
) -> io::Result<()> {
    let (reader, writer) = stream.into_split();
    let mut writer = Writer { stream: writer, set };
    let mut reader = BufReader::with_capacity(1024, reader);
    while let Some(line) = read_line(&mut reader).await? {
        if line.len() > LINE_MAX_BYTES {
            let message = format!("The request line is longer than {LINE_MAX_BYTES} bytes.");
            let error =
                Error::new(Kind::InvalidRequest, message, "The connection is closed; send shorter lines.");
            return writer.write(&response_line(&serde_json::Value::Null, &Err(error))).await;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        (writer.set)(ClientActivity::Work);
        let incoming = parse_request(&line);
        let answer = match incoming.request {
            Ok(request) => perform(request, by.clone(), &handler, &mut writer).await?,
            Err(error) => Err(error),
        };
        writer.write(&response_line(&incoming.id, &answer)).await?;
        (writer.set)(ClientActivity::Nothing);
    }
    Ok(())
}

/// The way to a client, which may not read.
struct Writer<F> {
    stream: OwnedWriteHalf,
    set: F,
}

impl<F: Fn(ClientActivity)> Writer<F> {
    /// Waits for room, with a limit.
    async fn write(&mut self, line: &[u8]) -> io::Result<()> {
        (self.set)(ClientActivity::Reading);
        let written = tokio::time::timeout(READ_WITHIN, self.stream.write_all(line)).await;
        (self.set)(ClientActivity::Work);
        written.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// Reads one line of any content. A line longer than [`LINE_MAX_BYTES`] has no end within that.
async fn read_line(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let limit = LINE_MAX_BYTES as u64 + 1;
    let length = reader.take(limit).read_until(b'\n', &mut line).await?;
    Ok((length > 0).then_some(line))
}

/// Runs the handler in its own task and passes its progress on. An error means that the client is gone; the task
/// continues without it.
async fn perform(
    request: Request,
    by: Caller,
    handler: &Rc<impl Handler + 'static>,
    writer: &mut Writer<impl Fn(ClientActivity)>,
) -> io::Result<Result<Response, Error>> {
    let (sink, mut progress) = mpsc::unbounded_channel();
    let handler = Rc::clone(handler);
    let mut task = spawn_local(async move { handler.call(request, by, ProgressSink(sink)).await });
    let answer = loop {
        tokio::select! {
            biased;
            Some(step) = progress.recv() => writer.write(&progress_line(&step)).await?,
            ended = &mut task => break ended,
        }
    };
    // The progress that arrived together with the answer.
    while let Ok(step) = progress.try_recv() {
        writer.write(&progress_line(&step)).await?;
    }
    Ok(answer.unwrap_or_else(|failure| Err(Error::internal(format!("the operation broke off: {failure}")))))
}
