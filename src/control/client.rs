//! The client end of the control socket. It blocks: a command line has nothing else to do.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::api::{Notice, Progress, Request, Response, Subscribe, Subscription};
use super::error::Error;
use super::rpc::{Outgoing, parse_answer, request_line};
use crate::sys::errno::{Errno, retry};
use crate::sys::socket::{AddressFamily, SockFlag, SockType, connect_path, set_send_timeout, socket};

/// A daemon that needs longer for a request without work is frozen.
const TIMEOUT: Duration = Duration::from_secs(10);

/// One connection to the daemon.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
    last_id: u64,
    /// The beginning of a line, of which the rest has not come yet.
    partial: Vec<u8>,
}

/// Why a request has no answer, or not the expected one.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon answers.
    #[error("The daemon at {path:?} cannot be reached: {cause}. {hint}")]
    Unreachable {
        /// The control socket.
        path: PathBuf,
        /// The cause, one clause.
        cause: String,
        /// What the user can do.
        hint: &'static str,
    },
    /// The peer does not speak this protocol.
    #[error("The process at {path:?} is not a handoff daemon, or has another version: {cause}.")]
    Strange {
        /// The control socket.
        path: PathBuf,
        /// The mismatch.
        cause: String,
    },
    /// The daemon refused.
    #[error(transparent)]
    Refused(#[from] Error),
}

impl Client {
    /// Connects. Blocks while the connection queue of the daemon is full, at most 10 s.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        let stream = connect_within(path).map_err(|error| unreachable(path, &error))?;
        Ok(Client { path: path.to_owned(), stream: BufReader::new(stream), last_id: 0, partial: Vec::new() })
    }

    /// Sends a request, passes progress on, and waits for the answer. `ping`, `list`, `status` and `history` time out
    /// after 10 s of silence. The others have no limit as long as the daemon answers other requests.
    pub fn call(
        &mut self,
        request: &Request,
        on_progress: &mut dyn FnMut(Progress),
    ) -> Result<Response, ClientError> {
        let mut go_on = |progress| {
            on_progress(progress);
            true
        };
        let response = self.converse(request, &mut go_on)?;
        response.ok_or_else(|| self.invalid_answer("it broke off in the middle".to_owned()))
    }

    /// Sends a request, and waits only until the daemon is at work: returns `None` then. The operation continues when
    /// this is dropped.
    pub fn begin(&mut self, request: &Request) -> Result<Option<Response>, ClientError> {
        self.converse(request, &mut |_| false)
    }

    /// Subscribes to changes of services; see [`Client::next_notice`].
    pub fn subscribe(&mut self, subscribe: &Subscribe) -> Result<Subscription, ClientError> {
        match self.call(&Request::Subscribe(subscribe.clone()), &mut |_| {})? {
            Response::Subscription(subscription) => Ok(subscription),
            other => Err(self.invalid_answer(format!("{other:?}"))),
        }
    }

    /// Waits for the next message of a subscription, without a limit or at most for `limit`. `None` if none came.
    pub fn next_notice(&mut self, limit: Option<Duration>) -> Result<Option<Notice>, ClientError> {
        let until = limit.map(|limit| Instant::now() + limit);
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
            let set = self.stream.get_ref().set_read_timeout(left);
            set.map_err(|error| unreachable(&self.path, &error))?;
            match self.stream.read_until(b'\n', &mut self.partial) {
                Ok(_) if self.partial.ends_with(b"\n") => {
                    let line = std::mem::take(&mut self.partial);
                    match parse_answer(&line, self.last_id).map_err(|cause| self.invalid_answer(cause))? {
                        Outgoing::Event(notice) => return Ok(Some(notice)),
                        Outgoing::Answer(Err(error)) => return Err(ClientError::Refused(error)),
                        Outgoing::Ignored | Outgoing::Progress(_) | Outgoing::Answer(Ok(_)) => {}
                    }
                }
                Ok(_) => return Err(unreachable(&self.path, &io::ErrorKind::UnexpectedEof.into())),
                Err(error) if is_timeout(&error) || error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(unreachable(&self.path, &error)),
            }
        }
    }

    /// Sends a request, and waits for the answer as long as `go_on` returns true.
    fn converse(
        &mut self,
        request: &Request,
        go_on: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<Option<Response>, ClientError> {
        let quick = matches!(
            request,
            Request::Ping | Request::List | Request::Status(_) | Request::History(_) | Request::Subscribe(_)
        );
        self.last_id += 1;
        self.stream
            .get_ref()
            .set_read_timeout(Some(TIMEOUT))
            .and_then(|()| self.send(request))
            .map_err(|error| unreachable(&self.path, &error))?;
        loop {
            match parse_answer(&self.read_line(quick)?, self.last_id)
                .map_err(|cause| self.invalid_answer(cause))?
            {
                // Only `next_notice` returns these.
                Outgoing::Ignored | Outgoing::Event(_) => {}
                Outgoing::Progress(progress) => {
                    if !go_on(progress) {
                        return Ok(None);
                    }
                }
                Outgoing::Answer(Err(error)) => return Err(ClientError::Refused(error)),
                Outgoing::Answer(Ok(result)) => {
                    let response = request.parse_response(result);
                    return response.map(Some).map_err(|error| self.invalid_answer(error.to_string()));
                }
            }
        }
    }

    fn send(&mut self, request: &Request) -> io::Result<()> {
        match self.stream.get_mut().write_all(&request_line(self.last_id, request)) {
            // The daemon closed the connection at once. Its earlier message has the reason.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }

    fn read_line(&mut self, quick: bool) -> Result<Vec<u8>, ClientError> {
        let mut line = Vec::new();
        loop {
            match self.stream.read_until(b'\n', &mut line) {
                Ok(_) if line.ends_with(b"\n") => return Ok(line),
                Ok(_) => return Err(unreachable(&self.path, &io::ErrorKind::UnexpectedEof.into())),
                // The daemon may be at work. Then it still answers a request that needs no work.
                Err(error) if !quick && is_timeout(&error) => {
                    Client::connect(&self.path)?.call(&Request::Ping, &mut |_| {})?;
                }
                Err(error) => return Err(unreachable(&self.path, &error)),
            }
        }
    }

    fn invalid_answer(&self, cause: String) -> ClientError {
        ClientError::Strange { path: self.path.clone(), cause }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// On a blocking socket, a call that has waited this long fails with EAGAIN.
fn connect_within(path: &Path) -> io::Result<UnixStream> {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty())?;
    set_send_timeout(&socket, TIMEOUT)?;
    match retry(|| connect_path(&socket, path)) {
        // A path that is too long cannot have a socket.
        Err(Errno::ENAMETOOLONG) => return Err(io::ErrorKind::InvalidInput.into()),
        connected => connected?,
    }
    Ok(socket.into())
}

fn unreachable(path: &Path, error: &io::Error) -> ClientError {
    const START: &str = "Start it with `handoff daemon`, or say where it is with --runtime-dir.";
    let (cause, hint) = match error.kind() {
        io::ErrorKind::NotFound => ("there is no such socket".to_owned(), START),
        io::ErrorKind::ConnectionRefused => {
            ("the socket is there, but no process behind it".to_owned(), START)
        }
        io::ErrorKind::PermissionDenied => (
            "permission denied".to_owned(),
            "It belongs to another user: run this command as that user, as root, or as a member of a group that the daemon's \
             handoff.toml names.",
        ),
        io::ErrorKind::InvalidInput => {
            ("the path is too long".to_owned(), "Choose another with --runtime-dir.")
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => (
            format!("it has not answered for {} s", TIMEOUT.as_secs()),
            "It may be stopped or overloaded; the services continue without it.",
        ),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => (
            "it closed the connection without an answer".to_owned(),
            "It may have been stopped; its log says more. `handoff status` shows what runs once it is back.",
        ),
        _ => (error.to_string(), START),
    };
    ClientError::Unreachable { path: path.to_owned(), cause, hint }
}
