//! Gives an unmodified program the supervisor's listeners: its socket is swapped while it waits in `bind`.
//!
//! - The program calls bind, and waits. Its address is compared with the service file (`matching.rs`).
//! - If it matches a listener of the service, a duplicate of that listener replaces the socket at the program's
//!   descriptor, with the program's own options (`options.rs`), and bind returns success without being executed. So
//!   does the following listen.
//! - With *parking*, such a bind is held until [`Injector::release`]: the program has started, is warm, and waits.
//! - The program cannot remove, rename or replace the path of a unix socket of the service (`paths.rs`).
//! - The kernel executes everything else normally.
//!
//! All processes of the program's tree are treated alike. Workers that bind the same address get duplicates of the same
//! listener, also of the same datagram socket.
//!
//! The program sees the listener: getsockname(2) returns its address, which may be spelled differently, and close(2)
//! closes a duplicate. A shutdown(2) would end it for every holder.

mod bind_request;
mod engine;
mod epoll;
mod matching;
mod options;
mod paths;
mod target;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

pub use bind_request::{BindAddress, BindRequest, SocketKind};
pub use engine::Injector;
pub use matching::{MismatchReason, choose};
pub(super) use options::copy_datagram_information;

use crate::config::ListenAddress;
use crate::slots::Access;

/// Provides the listeners for a program. Called from the threads that call [`Injector::run`] and [`Injector::release`].
pub trait ListenerProvider: Send + Sync {
    /// The listeners of the service, with their names from the service file.
    fn configured(&self) -> Vec<(String, ListenAddress)>;

    /// A duplicate of the listener with this name that a program must get now.
    fn current(&self, name: &str) -> io::Result<OwnedFd>;

    /// The program is about to bind a unix socket whose path is gone: programs remove an existing path before they
    /// bind. The implementation must restore the path; clients are refused until then.
    fn path_removed(&self, name: &str, path: &Path);

    /// The program has bound a unix socket, with these access rights.
    fn path_bound(&self, name: &str, access: Access);
}

/// Receives the events of a program. Called like [`ListenerProvider`], without locks held.
pub trait EventSink: Send + Sync {
    /// An event occurred.
    fn record(&self, event: InjectEvent);
}

/// An event of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InjectEvent {
    /// It is held in the bind of a listener until the release.
    Parked {
        /// The listener.
        name: String,
        /// Its process.
        pid: u32,
    },
    /// It has received a listener.
    Bound {
        /// The listener.
        name: String,
        /// Its process.
        pid: u32,
    },
    /// It has called listen on a received listener. Not every program does, and it does not mean that the program
    /// accepts.
    Listening {
        /// The listener.
        name: String,
        /// Its process.
        pid: u32,
    },
    /// It binds an address that is not a listener of the service; the kernel executes that.
    Passed {
        /// The address.
        address: String,
        /// What the service file would need for a match, if that is possible.
        instead: Option<ListenAddress>,
        /// Its process.
        pid: u32,
        /// Why there is no match.
        why: MismatchReason,
    },
    /// It should have received a listener, but an error occurred.
    Failed {
        /// The listener.
        name: String,
        /// Its process.
        pid: u32,
        /// A sentence without a full stop.
        error: String,
    },
}

impl fmt::Display for InjectEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InjectEvent::Parked { name, pid } => write!(f, "process {pid} is held in the bind of {name}"),
            InjectEvent::Bound { name, pid } => write!(f, "process {pid} received the listener {name}"),
            InjectEvent::Listening { name, pid } => write!(f, "process {pid} listens at {name}"),
            InjectEvent::Passed { address, pid, why, .. } => {
                write!(f, "process {pid} binds {address}: {why}")
            }
            InjectEvent::Failed { name, pid, error } => {
                write!(f, "process {pid} cannot get the listener {name}: {error}")
            }
        }
    }
}
