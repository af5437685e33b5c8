//! From process start to the driver: `Hello`, `Welcome`, and the shared parts of the server's states.

use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use handoff_protocol::frame::FrameError;
use handoff_protocol::ids::{HandoffId, ID_VARIABLE, ListenerName};
use handoff_protocol::message::{FromService, Hello, Mode, Ready, ToService, Welcome};
use handoff_protocol::version::{UNAGREED, VersionRange};

use super::adoption::AdoptionSocket;
use super::driver::{self, Callback, Driver, DriverRequest};
use super::inbox::{Inbox, Input};
use super::listeners::Listeners;
use super::state::State;
use super::work::Done;
use super::{Error, Origin, standalone};
use handoff_crash_points::crash_point;
use handoff_sys::channel::Channel;
use handoff_sys::files::files_limit;
use handoff_sys::inherit;
use handoff_sys::lock::DataLock;
use handoff_sys::wire::{WireError, recv_message, send_message};

/// Maximum length of the version text in characters. The rest is dropped.
const VERSION_MAX: usize = 128;

/// The shared part of all server states.
#[derive(Debug)]
pub(super) enum Link {
    Standalone {
        lock: Mutex<Option<DataLock>>,
    },
    Supervised {
        inbox: Arc<Inbox>,
        listeners: Listeners,
        mode: Mode,
        before_exit: Callback,
        on_commit: Callback,
    },
}

/// Connects to the supervisor, if there is one. The driver's thread calls `requests`.
pub(super) fn link(requests: impl Fn(DriverRequest) + Send + 'static) -> Result<Link, Error> {
    let Some(channel) = inherit::take_channel()? else {
        // The driver's end stays open: a receiver would take its close for the end of the service.
        std::mem::forget(requests);
        return Ok(Link::Standalone { lock: Mutex::new(None) });
    };
    let id = handoff_id()?;
    // Opened before any supervisor can try to connect.
    let entrance = AdoptionSocket::of_this_process();
    let (welcome, fds) = greet(&channel, id)?;
    let adoption = entrance.and_then(|entrance| entrance.keep(&welcome, &fds));
    let listeners = Listeners::new(welcome.listeners.clone(), fds);
    let inbox = Arc::new(Inbox::new().map_err(Error::Channel)?);
    channel.set_nonblocking(true).map_err(Error::Channel)?;
    let (before_exit, on_commit) = (Callback::default(), Callback::default());
    let mut driver = Driver::new(channel, id, &welcome, adoption, Arc::clone(&inbox), Box::new(requests));
    driver.before_exit = before_exit.clone();
    driver.on_commit = on_commit.clone();
    crash_point!("library/successor/start.welcomed");
    driver::spawn(driver).map_err(Error::Thread)?;
    Ok(Link::Supervised { inbox, listeners, mode: welcome.mode, before_exit, on_commit })
}

fn handoff_id() -> Result<HandoffId, Error> {
    let text =
        std::env::var(ID_VARIABLE).map_err(|_| Error::Protocol(format!("{ID_VARIABLE} is not set")))?;
    text.parse().map_err(|_| Error::Protocol(format!("{ID_VARIABLE}={text:?} is not a handoff id")))
}

fn greet(channel: &Channel, id: HandoffId) -> Result<(Welcome, Vec<OwnedFd>), Error> {
    crash_point!("library/successor/start.before-hello");
    let hello = FromService::Hello(Hello { versions: VersionRange::OURS, pid: std::process::id() });
    send_message(channel, UNAGREED, id, &hello, &[]).map_err(wire_error)?;
    crash_point!("library/successor/start.hello-sent");
    let received = recv_message::<ToService>(channel, UNAGREED);
    if let Err(WireError::Frame(FrameError::FdsLost)) = received {
        return Err(report_limit(channel, id));
    }
    let (answered, message, fds) = received.map_err(wire_error)?.ok_or(Error::Closed)?;
    let ToService::Welcome(welcome) = message else {
        return Err(Error::Protocol(format!("{} instead of Welcome", message.name())));
    };
    if answered != id {
        return Err(Error::Protocol("Welcome carries the id of another handoff".to_owned()));
    }
    if !VersionRange::OURS.contains(welcome.version) {
        return Err(Error::Protocol(format!("it chose version {}, which was not offered", welcome.version)));
    }
    Ok((welcome, fds))
}

/// Reports that listeners were lost because of the limit. `Welcome` was lost too, so this uses the version that a
/// supervisor of the same age chooses.
fn report_limit(channel: &Channel, id: HandoffId) -> Error {
    let error = Error::TooFewFiles { limit: files_limit() };
    let unhealthy = FromService::Ready(Ready { healthy: false, reason: error.to_string() });
    // If this fails, the supervisor still sees the process end.
    let _ = send_message(channel, VersionRange::OURS.current, id, &unhealthy, &[]);
    error
}

fn wire_error(error: WireError) -> Error {
    match error {
        WireError::Io(source) => Error::Channel(source),
        WireError::Frame(source) => Error::Frame(source),
    }
}

/// Waits until the supervisor has received the report that the process is not healthy.
pub(super) fn await_report(requests: impl IntoIterator<Item = DriverRequest>) -> Error {
    for request in requests {
        if let DriverRequest::End(Err(error)) = request {
            return error;
        }
    }
    Error::Closed
}

/// Waits for the order to open the data. Returns the predecessor's state.
pub(super) fn await_open(requests: impl IntoIterator<Item = DriverRequest>) -> Result<Option<State>, Error> {
    for request in requests {
        match request {
            DriverRequest::Open(state) => return Ok(state),
            DriverRequest::End(end) => return end.map(|_| None),
            DriverRequest::TakeOver(_)
            | DriverRequest::Drain(_)
            | DriverRequest::Seal(_)
            | DriverRequest::Resume => {}
        }
    }
    Err(Error::Closed)
}

impl Link {
    pub(super) fn origin(&self) -> Origin {
        match self {
            Self::Standalone { .. } => Origin::Standalone,
            Self::Supervised { .. } => Origin::Supervised,
        }
    }

    pub(super) fn on_commit(&self, act: Box<dyn Fn() + Send + Sync>) {
        match self {
            Self::Supervised { on_commit, .. } => on_commit.set(act),
            Self::Standalone { .. } => act(),
        }
    }

    pub(super) fn before_exit(&self, act: Box<dyn Fn() + Send + Sync>) {
        if let Self::Supervised { before_exit, .. } = self {
            before_exit.set(act);
        }
    }

    pub(super) fn mode(&self) -> Mode {
        match self {
            Self::Standalone { .. } => Mode::Exclusive,
            Self::Supervised { mode, .. } => *mode,
        }
    }

    pub(super) fn all_listeners(&mut self) -> Vec<(ListenerName, OwnedFd)> {
        match self {
            Self::Standalone { .. } => Vec::new(),
            Self::Supervised { listeners, .. } => listeners.take_all(),
        }
    }

    pub(super) fn tcp_listener(&mut self, name: &str, address: &str) -> Result<TcpListener, Error> {
        match self {
            Self::Standalone { .. } => standalone::bind_tcp(address),
            Self::Supervised { listeners, .. } => listeners.tcp(name),
        }
    }

    pub(super) fn unix_listener(&mut self, name: &str, path: &Path) -> Result<UnixListener, Error> {
        match self {
            Self::Standalone { .. } => standalone::bind_unix(path),
            Self::Supervised { listeners, .. } => listeners.unix(name),
        }
    }

    pub(super) fn udp_socket(&mut self, name: &str, address: &str) -> Result<UdpSocket, Error> {
        match self {
            Self::Standalone { .. } => standalone::bind_udp(address),
            Self::Supervised { listeners, .. } => listeners.udp(name),
        }
    }

    pub(super) fn version(&self, version: &str) {
        self.send(Input::Version(version.chars().take(VERSION_MAX).collect()));
    }

    pub(super) fn started(&self, data: Option<&Path>) -> Result<(), Error> {
        match self {
            Self::Standalone { lock } => {
                let taken = data.map(standalone::lock).transpose()?;
                *lock.lock().unwrap_or_else(PoisonError::into_inner) = taken;
            }
            Self::Supervised { inbox, .. } => match data.map_or(Ok(()), DataLock::check) {
                Ok(()) => inbox.push(Input::Started(data.map(Path::to_owned))),
                // Before the predecessor is asked to give up anything.
                Err(error) => inbox.push(Input::Opened(Err(error.to_string()))),
            },
        }
        Ok(())
    }

    pub(super) fn opened(&self, result: Done) {
        self.send(Input::Opened(result));
    }

    pub(super) fn drained(&self, result: Done) {
        self.send(Input::Drained(result));
    }

    pub(super) fn sealed(&self, result: Done) {
        self.send(Input::Sealed(result));
    }

    pub(super) fn resumed(&self, result: Done) {
        self.send(Input::Resumed(result));
    }

    fn send(&self, input: Input) {
        if let Self::Supervised { inbox, .. } = self {
            inbox.push(input);
        }
    }
}
