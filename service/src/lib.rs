//! The library that a server embeds so that upgrades drop nothing.
//!
//! A server goes through four states. Each is a type, so a wrong order does not compile:
//!
//! | state | what the server does in it | next |
//! |---|---|---|
//! | [`Starting`] | configuration, TLS, caches, listeners; touches no data, does not accept | [`Starting::begin`] |
//! | [`Begun`] | it is now the only writer: opens its data and accepts | [`Begun::ready`] |
//! | [`Serving`] | serves; the library calls its [`Server`] to drain, seal or resume | [`Serving::run`] |
//! | ended | `run` has returned; the process exits | |
//!
//! A first start and an upgrade look the same. Without a supervisor, the same binary binds its own listeners and runs.
//!
//! If the supervisor ends, the process keeps serving, and the library lets the next supervisor connect. Your server
//! needs no code for this.
//!
//! ```no_run
//! use std::net::TcpListener;
//! use std::path::Path;
//! use std::sync::{Arc, Mutex};
//!
//! use handoff_service::{BoxError, Drain, Seal, Server};
//!
//! struct Echo(Arc<Mutex<Acceptor>>);
//! # struct Acceptor;
//! # impl Acceptor {
//! #     fn start(_: TcpListener) -> std::io::Result<Arc<Mutex<Self>>> { Ok(Arc::new(Mutex::new(Self))) }
//! #     fn has_long_requests(&self) -> bool { false }
//! #     fn stop_accepting_and_finish(&mut self, _cut: bool) -> std::io::Result<()> { Ok(()) }
//! #     fn accept_again(&mut self) -> std::io::Result<()> { Ok(()) }
//! # }
//!
//! impl Server for Echo {
//!     fn drain(&mut self, drain: Drain) -> Result<(), BoxError> {
//!         while self.0.lock().unwrap().has_long_requests() {
//!             if drain.wait(std::time::Duration::from_millis(20)) {
//!                 break; // cancelled: the library says what is next
//!             }
//!         }
//!         Ok(())
//!     }
//!     fn seal(&mut self, seal: Seal) -> Result<(), BoxError> {
//!         Ok(self.0.lock().unwrap().stop_accepting_and_finish(seal.may_cut())?)
//!     }
//!     fn resume(&mut self) -> Result<(), BoxError> {
//!         Ok(self.0.lock().unwrap().accept_again()?)
//!     }
//! }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let mut starting = handoff_service::start()?;
//!     let listener = starting.tcp_listener("echo", "127.0.0.1:7000")?;
//!     let begun = starting.begin(Some(Path::new("/var/lib/echo")))?;
//!     let acceptor = Acceptor::start(listener)?; // opens the data, accepts
//!     begun.ready()?.run(Echo(acceptor))?;
//!     Ok(())
//! }
//! ```
//!
//! A server that reports ready before it has taken over does not compile:
//!
//! ```compile_fail,E0599
//! # fn main() -> Result<(), handoff_service::Error> {
//! let starting = handoff_service::start()?;
//! starting.ready()?;
//! # Ok(())
//! # }
//! ```

use std::error::Error as StdError;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use handoff_protocol::frame::FrameError;
pub use handoff_protocol::ids::ListenerName;
use handoff_protocol::ids::NameError;
pub use handoff_protocol::message::Mode;

pub use handoff_sys::inherit::InheritError;

mod adoption;
mod cancel;
mod driver;
#[cfg(feature = "http")]
pub mod http;
mod inbox;
mod listeners;
mod standalone;
mod start;
mod state;
#[cfg(feature = "tokio")]
pub mod tokio;
mod work;

pub use cancel::Drain;
use driver::DriverRequest;
use start::Link;
use state::SuccessorLink;
pub use state::{State, StateError};

/// The first byte of every QUIC connection id that the server chooses, if the service file gives it the socket as
/// `quic:…`. In overlap mode a process then keeps its connections until they end: packets with the mark of another
/// socket on the address go to that socket, and new connections go to the serving process. Append random bytes to make
/// each id unique.
pub fn quic_mark(socket: &UdpSocket) -> io::Result<u8> {
    Ok(handoff_sys::listens::mark(socket)?)
}

/// An error of the server's own code. The operator sees its text.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// The callbacks of a server. One thread makes all calls, one at a time. A panic in a callback is reported to the
/// supervisor as a failure.
pub trait Server {
    /// Keep accepting, ask keep-alive clients to reconnect, and return when only short requests are left. Return at
    /// once when `drain` is cancelled; then [`Server::resume`] or [`Server::seal`] follows.
    fn drain(&mut self, drain: Drain) -> Result<(), BoxError>;

    /// Stop accepting, finish what was accepted, make everything acknowledged durable, and close the data. Leave a
    /// listener's queue alone; the listeners stay open and are never shut down. After this returns `Ok`, write nothing.
    /// On an error the server keeps its data lock and must be able to resume. If it must leave anyway,
    /// [`Server::drain`] and this are called once more without a resume in between.
    fn seal(&mut self, seal: Seal) -> Result<(), BoxError>;

    /// Open the data again and accept, after a complete or incomplete drain or seal. If this returns an error, the
    /// process ends.
    fn resume(&mut self) -> Result<(), BoxError>;

    /// Process the state that the predecessor hands over. In overlap mode only: this process already serves while its
    /// predecessor drains and seals. Each state replaces the one before. (In exclusive mode use [`Begun::state`].) An
    /// error is written to the log and has no other effect.
    fn take_over(&mut self, state: State) -> Result<(), BoxError> {
        Err(untaken(&state))
    }
}

fn untaken(state: &State) -> BoxError {
    format!("the predecessor handed over {state:?}, which this server does not support").into()
}

/// How to seal.
#[derive(Debug, Clone)]
pub struct Seal {
    mode: Mode,
    cut: bool,
    grant: Option<Duration>,
    successor: SuccessorLink,
}

impl Seal {
    /// Whether you may cut requests in progress. `true` if they outlast the drain and the service has `stragglers =
    /// "cut"`. Give them a moment first: most end soon. If `false`, finish them.
    pub fn may_cut(&self) -> bool {
        self.cut
    }

    /// The mode of the upgrade. In overlap mode another process already serves: first accept and serve what is in the
    /// listener's queue, because no other process does.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The time the service file gives the server to end its work, counted from the server's request to end it. `None`
    /// without a supervisor, with one too old to send it, and when the process leaves on its own.
    pub fn grant(&self) -> Option<Duration> {
        self.grant
    }

    /// Hands state to the successor, if there is one: state that is not in the data and would otherwise be lost. The
    /// successor receives the last one from before the seal code returns `Ok` or this process dies. It is dropped if
    /// the supervisor or the new process does not support it, if the service stops, or if it comes too late.
    ///
    /// An error means that there is not enough memory.
    pub fn hand_over(&self, state: &State) -> io::Result<()> {
        self.successor.hand_over(state)
    }
}

/// What started the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A program that does not speak the protocol.
    Standalone,
    /// A supervisor.
    Supervised,
}

/// Why [`Serving::run`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Another process serves, or the service was stopped. The server has sealed; return from `main`.
    Released,
}

/// Errors between a server and its supervisor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The environment names an invalid channel.
    #[error(transparent)]
    Inherit(#[from] InheritError),
    /// The channel failed.
    #[error("the channel to the supervisor failed: {0}")]
    Channel(#[source] io::Error),
    /// The supervisor sent an invalid frame.
    #[error("the supervisor sent a frame that cannot be read: {0}")]
    Frame(#[source] FrameError),
    /// The supervisor answered `Hello` with something other than `Welcome`, or chose a version that was not offered.
    #[error("the supervisor broke the protocol: {0}")]
    Protocol(String),
    /// The supervisor closed the channel before it answered.
    #[error("the supervisor closed the channel before it answered Hello")]
    Closed,
    /// The service file has no such listener.
    #[error("the supervisor handed over no listener named {name:?}; it has: {known}")]
    NoListener {
        /// The requested name.
        name: String,
        /// The existing names.
        known: String,
    },
    /// The listener was taken before.
    #[error("the listener {name:?} was taken already")]
    ListenerTaken {
        /// Its name.
        name: String,
    },
    /// The text is not a valid listener name.
    #[error("{name:?} is not a listener name: {source}")]
    Name {
        /// The text.
        name: String,
        /// The reason.
        source: NameError,
    },
    /// The listener is a socket of another kind.
    #[error("the listener {name:?} is not a listening {wanted} socket")]
    WrongListener {
        /// Its name.
        name: String,
        /// The requested kind.
        wanted: &'static str,
    },
    /// The listeners did not arrive: too few descriptors are allowed.
    #[error("{limit} files may be open in this process (RLIMIT_NOFILE), too few for its listeners")]
    TooFewFiles {
        /// The limit.
        limit: u64,
    },
    /// Standalone: the address cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: String,
        /// Cause.
        source: io::Error,
    },
    /// The lock file cannot be opened or locked.
    #[error("{0}")]
    Lock(#[source] io::Error),
    /// Standalone: another process holds the lock.
    #[error("the data directory {} is in use by another process", path.display())]
    DataInUse {
        /// The data directory.
        path: PathBuf,
    },
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    /// The server reported that it is not healthy.
    #[error("not healthy: {0}")]
    Unhealthy(String),
    /// The server was stopped from outside and could not seal.
    #[error("could not seal: {0}")]
    SealFailed(String),
    /// The server could not serve again.
    #[error("could not serve again: {0}")]
    ResumeFailed(String),
}

fn log_result(taken: work::Done) {
    if let Err(error) = taken {
        driver::print_error(&error);
    }
}

/// Sends `Hello` to the supervisor and blocks until the answer. Without a supervisor it returns at once. Call it once,
/// early in `main`, while the process has few threads.
pub fn start() -> Result<Starting, Error> {
    let (requests, inbox) = mpsc::channel();
    let link = start::link(move |request| drop(requests.send(request)))?;
    Ok(Starting { link, requests: inbox })
}

/// The process starts up. It must not touch data or accept yet.
#[derive(Debug)]
pub struct Starting {
    link: Link,
    requests: mpsc::Receiver<DriverRequest>,
}

impl Starting {
    /// What started the process.
    pub fn origin(&self) -> Origin {
        self.link.origin()
    }

    /// Sets the version text of this server for people, such as `env!("CARGO_PKG_VERSION")`. Call it first. It takes
    /// precedence over what the supervisor has read from the files of this version; older supervisors ignore it.
    #[must_use]
    pub fn version(self, version: &str) -> Self {
        self.link.version(version);
        self
    }

    /// Takes the TCP listener `name` of the service file; without a supervisor, binds one to `address`. The serving
    /// process shares it: before [`Starting::begin`] has returned, do not accept from it and do not change its flags.
    /// It may or may not be nonblocking; set that afterwards.
    pub fn tcp_listener(&mut self, name: &str, address: &str) -> Result<TcpListener, Error> {
        self.link.tcp_listener(name, address)
    }

    /// Like [`Starting::tcp_listener`], for a unix socket.
    pub fn unix_listener(&mut self, name: &str, path: &Path) -> Result<UnixListener, Error> {
        self.link.unix_listener(name, path)
    }

    /// Like [`Starting::tcp_listener`], for a datagram socket: do not read from it before [`Starting::begin`] has
    /// returned. Stop reading in [`Server::seal`]; in overlap mode read until it is empty first. Never connect it or
    /// shut it down: the service would lose it.
    pub fn udp_socket(&mut self, name: &str, address: &str) -> Result<UdpSocket, Error> {
        self.link.udp_socket(name, address)
    }

    /// Takes all remaining listeners of the service file, by name and in file order. Empty without a supervisor.
    pub fn all_listeners(&mut self) -> Vec<(ListenerName, OwnedFd)> {
        self.link.all_listeners()
    }

    /// How the processes of the service may overlap. `Exclusive` without a supervisor.
    pub fn mode(&self) -> Mode {
        self.link.mode()
    }

    /// Registers a callback for the case that the supervisor dismisses this process. It runs in another thread, before
    /// [`Starting::begin`] exits the process. The first registration wins.
    pub fn before_exit(&self, act: impl Fn() + Send + Sync + 'static) {
        self.link.before_exit(Box::new(act));
    }

    /// Registers a callback for the moment when this process is committed: its start is not undone any more, unless it
    /// is on probation. It runs once, in another thread, which it must not block; without a supervisor at once. The
    /// first registration wins.
    pub fn on_commit(&self, act: impl Fn() + Send + Sync + 'static) {
        self.link.on_commit(Box::new(act));
    }

    /// Reports that start-up is complete, and blocks until this process must take over. If `data` is given, the process
    /// then holds the exclusive lock of that directory (`.handoff.lock` in it); the directory must exist.
    ///
    /// If that file cannot be opened, the process reports that it cannot serve, before its predecessor drains.
    ///
    /// If the supervisor dismisses this process, this call does not return: the process exits.
    pub fn begin(self, data: Option<&Path>) -> Result<Begun, Error> {
        self.link.started(data)?;
        let state = match self.link.origin() {
            Origin::Standalone => None,
            Origin::Supervised => start::await_open(self.requests.iter())?,
        };
        Ok(Begun { link: self.link, requests: self.requests, state })
    }

    /// Reports that the process cannot serve. The upgrade is rolled back at once with this reason.
    pub fn unhealthy(self, reason: &str) -> Error {
        unhealthy(&self.link, &self.requests, reason)
    }
}

/// The process has taken over: open the data and accept.
#[derive(Debug)]
pub struct Begun {
    link: Link,
    requests: mpsc::Receiver<DriverRequest>,
    state: Option<State>,
}

impl Begun {
    /// Takes the state that the predecessor has handed over, in exclusive mode. `None` at a first start, after a crash,
    /// and without a supervisor. If your server does not understand the state, continue without it or call
    /// [`Begun::unhealthy`].
    pub fn state(&mut self) -> Option<State> {
        self.state.take()
    }

    /// Reports that the server accepts and is healthy.
    pub fn ready(self) -> Result<Serving, Error> {
        self.link.opened(Ok(()));
        Ok(Serving { link: self.link, requests: self.requests })
    }

    /// Reports that the process cannot serve. It must not have accepted anything. The upgrade is rolled back with this
    /// reason. Return from `main` afterwards.
    pub fn unhealthy(self, reason: &str) -> Error {
        unhealthy(&self.link, &self.requests, reason)
    }
}

/// Reports that the process cannot serve, and blocks until the supervisor has received the report.
fn unhealthy(link: &Link, requests: &mpsc::Receiver<DriverRequest>, reason: &str) -> Error {
    link.opened(Err(reason.to_owned()));
    match link.origin() {
        Origin::Standalone => Error::Unhealthy(reason.to_owned()),
        Origin::Supervised => start::await_report(requests.iter()),
    }
}

/// The process serves.
#[derive(Debug)]
pub struct Serving {
    link: Link,
    requests: mpsc::Receiver<DriverRequest>,
}

impl Serving {
    /// Blocks until the process must leave, and calls `server` to drain, seal or resume. Without a supervisor it blocks
    /// until the process is ended from outside.
    pub fn run(self, mut server: impl Server) -> Result<Ended, Error> {
        for request in &self.requests {
            match request {
                DriverRequest::Open(_) => {}
                DriverRequest::TakeOver(state) => {
                    log_result(work::run("take_over", || server.take_over(state)));
                }
                DriverRequest::Drain(drain) => self.link.drained(work::run("drain", || server.drain(drain))),
                DriverRequest::Seal(seal) => self.link.sealed(work::run("seal", || server.seal(seal))),
                DriverRequest::Resume => self.link.resumed(work::run("resume", || server.resume())),
                DriverRequest::End(end) => return end,
            }
        }
        standalone::wait_for_the_end()
    }
}
