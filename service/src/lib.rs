//! What a server embeds to be upgraded without dropping anything.
//!
//! A server goes through four states, and each is a type, so that a wrong order does not compile:
//!
//! | state | what the server does in it | how it goes on |
//! |---|---|---|
//! | [`Starting`] | configuration, TLS, caches, listeners; touches no data, does not accept | [`Starting::begin`] |
//! | [`Begun`] | it is the only writer now: opens its data and accepts | [`Begun::ready`] |
//! | [`Serving`] | serves; the library calls its [`Server`] when it is to drain, seal or resume | [`Serving::run`] |
//! | gone | `run` has returned; the process ends | |
//!
//! A first start and an upgrade look the same. Started without a supervisor, the same binary binds its listeners by
//! itself and runs.
//!
//! A process whose supervisor is gone goes on, and the library lets the next one in; the server notices nothing of it.
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
//! A server that says that it is ready before it has taken over does not compile:
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
use driver::Order;
use start::Link;
use state::Heir;
pub use state::{State, StateError};

/// The byte with which a server begins every connection id of QUIC that it chooses, if the service file gives it the socket as
/// `quic:…`. In overlap mode the connections of a process then stay with it until they end: what has the mark of another socket
/// of the address goes there, and new connections go to the process that serves. The ids need some random bytes behind it.
pub fn quic_mark(socket: &UdpSocket) -> io::Result<u8> {
    Ok(handoff_sys::listens::mark(socket)?)
}

/// An error of the server's own code. Its text goes to the operator.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// What a server can do besides serving. All calls come from one thread, one at a time; a panic in any of them is
/// answered to the supervisor as a failure.
pub trait Server {
    /// Keep accepting, ask keep-alive clients to move on, and return when only short requests are left. Return at
    /// once when `drain` is cancelled; then comes either [`Server::resume`] or [`Server::seal`].
    fn drain(&mut self, drain: Drain) -> Result<(), BoxError>;

    /// Stop accepting, finish what was accepted, make everything that was acknowledged durable, and close the data.
    /// What waits in the queue of a listener stays there; the listeners stay open and are never shut down. After this
    /// returns `Ok` nothing may be written. On an error the server keeps its data lock and must be able to resume; if it is
    /// to leave all the same, [`Server::drain`] and this come once more, without a resume between.
    fn seal(&mut self, seal: Seal) -> Result<(), BoxError>;

    /// Open the data again and accept, after a drain or a seal, finished or not. A server that returns an error here
    /// is ended.
    fn resume(&mut self) -> Result<(), BoxError>;

    /// Take what the process that went before hands over: in overlap mode, where this one serves already, while that one
    /// drains and seals. Each one replaces the one before. (In exclusive mode it is there earlier: [`Begun::state`].) An
    /// error is written to the log, and nothing else happens.
    fn take_over(&mut self, state: State) -> Result<(), BoxError> {
        Err(untaken(&state))
    }
}

fn untaken(state: &State) -> BoxError {
    format!("{state:?} was handed over, and this server takes none").into()
}

/// How to seal.
#[derive(Debug, Clone)]
pub struct Seal {
    mode: Mode,
    cut: bool,
    grant: Option<Duration>,
    heir: Heir,
}

impl Seal {
    /// Whether requests that are still running may be cut, as those are that outlast the drain with `stragglers = "cut"`. Give
    /// them a moment all the same: most end soon. If not, they are to be finished.
    pub fn may_cut(&self) -> bool {
        self.cut
    }

    /// Whether another process serves already. In overlap mode, accept and serve first what waits in the queue of the listener: no other
    /// process will.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// How long the server may take to end what it runs, from the moment at which it asks it to: as the service file says. `None`
    /// without a supervisor, with one that does not tell, and for a process that leaves by itself.
    pub fn grant(&self) -> Option<Duration> {
        self.grant
    }

    /// Hands something over to the process that follows, if there is one: what is lost otherwise, and is not in the data.
    /// It gets the last one that was handed over before the seal code returns `Ok`, or before this process dies. An error
    /// means that there was no memory for it. With a supervisor or a new process that does not know of this, at a stop,
    /// and when it comes too late, nobody gets it.
    pub fn hand_over(&self, state: &State) -> io::Result<()> {
        self.heir.hand_over(state)
    }
}

/// Who started the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Nobody who speaks the protocol.
    Standalone,
    /// A supervisor.
    Supervised,
}

/// Why [`Serving::run`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Another process serves, or the service was stopped. The server has sealed; leave `main`.
    Released,
}

/// What can go wrong between a server and its supervisor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The environment names a channel that is none.
    #[error(transparent)]
    Inherit(#[from] InheritError),
    /// The channel failed.
    #[error("the channel to the supervisor failed: {0}")]
    Channel(#[source] io::Error),
    /// The supervisor sent something that is not a message.
    #[error("the supervisor sent a frame that cannot be read: {0}")]
    Frame(#[source] FrameError),
    /// The supervisor answered `Hello` with something else than `Welcome`, or chose a version that was not offered.
    #[error("the supervisor broke the protocol: {0}")]
    Protocol(String),
    /// The supervisor went away before it answered.
    #[error("the supervisor closed the channel before it answered Hello")]
    Closed,
    /// The service file has no such listener.
    #[error("the supervisor handed over no listener named {name:?}; it has: {known}")]
    NoListener {
        /// The name that was asked for.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// It was taken already.
    #[error("the listener {name:?} was taken already")]
    ListenerTaken {
        /// Its name.
        name: String,
    },
    /// A text that is no name.
    #[error("{name:?} is not a listener name: {source}")]
    Name {
        /// The text.
        name: String,
        /// Why not.
        source: NameError,
    },
    /// It is a socket of another kind.
    #[error("the listener {name:?} is not a listening {wanted} socket")]
    WrongListener {
        /// Its name.
        name: String,
        /// What was asked for.
        wanted: &'static str,
    },
    /// The listeners did not arrive.
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
    /// Standalone: somebody else holds the lock.
    #[error("the data directory {} is in use by another process", path.display())]
    DataInUse {
        /// The data directory.
        path: PathBuf,
    },
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    /// The server said that it is not healthy.
    #[error("not healthy: {0}")]
    Unhealthy(String),
    /// The server was stopped from outside and could not seal.
    #[error("could not seal: {0}")]
    SealFailed(String),
    /// The server could not serve again.
    #[error("could not serve again: {0}")]
    ResumeFailed(String),
}

fn tell(taken: work::Done) {
    if let Err(error) = taken {
        driver::say(&error);
    }
}

/// Says `Hello` to the supervisor and waits for its answer; without a supervisor returns at once. Call it early in
/// `main`, once, while the process has few threads.
pub fn start() -> Result<Starting, Error> {
    let (orders, inbox) = mpsc::channel();
    let link = start::link(move |order| drop(orders.send(order)))?;
    Ok(Starting { link, orders: inbox })
}

/// The process starts up. It must touch no data and accept nothing yet.
#[derive(Debug)]
pub struct Starting {
    link: Link,
    orders: mpsc::Receiver<Order>,
}

impl Starting {
    /// Who started the process.
    pub fn origin(&self) -> Origin {
        self.link.origin()
    }

    /// Says what people are to read as the version of this server, as `env!("CARGO_PKG_VERSION")`. Say it first. It goes before what
    /// the supervisor has read from the files of this version; an older supervisor is not told.
    #[must_use]
    pub fn version(self, version: &str) -> Self {
        self.link.version(version);
        self
    }

    /// The TCP listener `name` of the service file; without a supervisor one that is bound to `address` here. It is
    /// shared with the process that serves now: do not accept from it, and change none of its flags, before
    /// [`Starting::begin`] has returned. Whether it is non-blocking is undefined; set it then.
    pub fn tcp_listener(&mut self, name: &str, address: &str) -> Result<TcpListener, Error> {
        self.link.tcp_listener(name, address)
    }

    /// Like [`Starting::tcp_listener`], for a unix socket.
    pub fn unix_listener(&mut self, name: &str, path: &Path) -> Result<UnixListener, Error> {
        self.link.unix_listener(name, path)
    }

    /// Like [`Starting::tcp_listener`], for a datagram socket: do not read from it before [`Starting::begin`] has returned.
    /// Stop reading in [`Server::seal`], and in overlap mode read until it is empty before; never connect it, nor shut it
    /// down: it would be lost for the service.
    pub fn udp_socket(&mut self, name: &str, address: &str) -> Result<UdpSocket, Error> {
        self.link.udp_socket(name, address)
    }

    /// All listeners of the service file that were not taken yet, by name and in its order. None without a supervisor.
    pub fn all_listeners(&mut self) -> Vec<(ListenerName, OwnedFd)> {
        self.link.all_listeners()
    }

    /// How the processes of the service may overlap. `Exclusive` without a supervisor.
    pub fn mode(&self) -> Mode {
        self.link.mode()
    }

    /// Has `act` called, by another thread, before [`Starting::begin`] ends this process because it is not wanted any more. The
    /// first call counts.
    pub fn before_exit(&self, act: impl Fn() + Send + Sync + 'static) {
        self.link.before_exit(Box::new(act));
    }

    /// Says that start-up is done, and blocks until this process is to take over. With `data` given, it then holds the
    /// exclusive lock of that directory (`.handoff.lock` in it); the directory must exist.
    ///
    /// A process that is not wanted any more does not return from here: it exits.
    pub fn begin(self, data: Option<&Path>) -> Result<Begun, Error> {
        self.link.started(data)?;
        let state = match self.link.origin() {
            Origin::Standalone => None,
            Origin::Supervised => start::await_open(self.orders.iter())?,
        };
        Ok(Begun { link: self.link, orders: self.orders, state })
    }

    /// Says that the process cannot serve. The upgrade is rolled back at once, with this reason.
    pub fn unhealthy(self, reason: &str) -> Error {
        unhealthy(&self.link, &self.orders, reason)
    }
}

/// The process has taken over: open the data and accept.
#[derive(Debug)]
pub struct Begun {
    link: Link,
    orders: mpsc::Receiver<Order>,
    state: Option<State>,
}

impl Begun {
    /// Takes what the process that went before has handed over, in exclusive mode. There is nothing at a first start, after
    /// a crash, and without a supervisor. A server that does not understand it goes on without, or is
    /// [`Begun::unhealthy`].
    pub fn state(&mut self) -> Option<State> {
        self.state.take()
    }

    /// Says that the server accepts and is healthy.
    pub fn ready(self) -> Result<Serving, Error> {
        self.link.opened(Ok(()));
        Ok(Serving { link: self.link, orders: self.orders })
    }

    /// Says that the process cannot serve. It must not have accepted anything. The upgrade is rolled back, with this
    /// reason; the process is to leave `main`.
    pub fn unhealthy(self, reason: &str) -> Error {
        unhealthy(&self.link, &self.orders, reason)
    }
}

/// Says that the process cannot serve, and waits until the supervisor knows.
fn unhealthy(link: &Link, orders: &mpsc::Receiver<Order>, reason: &str) -> Error {
    link.opened(Err(reason.to_owned()));
    match link.origin() {
        Origin::Standalone => Error::Unhealthy(reason.to_owned()),
        Origin::Supervised => start::told(orders.iter()),
    }
}

/// The process serves.
#[derive(Debug)]
pub struct Serving {
    link: Link,
    orders: mpsc::Receiver<Order>,
}

impl Serving {
    /// Blocks, and calls `server` when it is to drain, seal or resume, until the process is to leave. Without a
    /// supervisor it blocks until the process is ended from outside.
    pub fn run(self, mut server: impl Server) -> Result<Ended, Error> {
        for order in &self.orders {
            match order {
                Order::Open(_) => {}
                Order::TakeOver(state) => {
                    tell(work::run("take_over", || server.take_over(state)));
                }
                Order::Drain(drain) => self.link.drained(work::run("drain", || server.drain(drain))),
                Order::Seal(seal) => self.link.sealed(work::run("seal", || server.seal(seal))),
                Order::Resume => self.link.resumed(work::run("resume", || server.resume())),
                Order::End(end) => return end,
            }
        }
        standalone::wait_for_the_end()
    }
}
