//! Gives a program that knows nothing of this the supervisor's listeners: its socket is swapped while it waits in `bind`.
//!
//! - A program calls bind, and waits. What it binds is compared with what the service file says (`matching.rs`).
//! - If it is a listener of the service, then the socket behind the program's descriptor is replaced by a duplicate of that
//!   listener, with the program's own settings on it (`options.rs`), and bind succeeds without having been done. So does
//!   the listen that follows.
//! - With *parking*, such a bind is not answered until [`Injector::release`]: the program is started and warm, and waits.
//! - The path of a unix socket of the service is not removed, renamed or replaced by the program (`paths.rs`).
//! - Everything else the kernel carries out as if nobody had looked.
//!
//! All processes of the program's tree are treated alike. Workers that each bind the same address get duplicates of the
//! same listener, also of the same datagram socket.
//!
//! What a program reads back is the listener: getsockname(2) tells its address, which may be another spelling of what the
//! program asked for, and close(2) closes a duplicate. A shutdown(2) of it would end it for every holder.

mod engine;
mod epoll;
mod matching;
mod options;
mod paths;
mod target;
mod wanted;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

pub use engine::Injector;
pub use matching::{Why, choose};
pub(super) use options::copy_told;
pub use wanted::{Address, Carries, Wanted};

use crate::config::ListenAddress;
use crate::slots::Access;

/// The listeners that a program may get. Called from the threads that call [`Injector::run`] and [`Injector::release`].
pub trait Slots: Send + Sync {
    /// The listeners of the service, with the names of the service file.
    fn configured(&self) -> Vec<(String, ListenAddress)>;

    /// A duplicate of the listener that a program of this name is to get now.
    fn current(&self, name: &str) -> io::Result<OwnedFd>;

    /// The program is about to bind a unix socket whose path is gone: programs remove what they find there before they bind.
    /// Whoever steers has to put the path in its place again, and clients are refused until then.
    fn path_removed(&self, name: &str, path: &Path);

    /// The program has bound a unix socket. So much it would have let others in by that.
    fn path_bound(&self, name: &str, access: Access);
}

/// Hears what a program does. Called like [`Slots`], with no lock held.
pub trait Watcher: Send + Sync {
    /// Something happened.
    fn tell(&self, event: Event);
}

/// What a program did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It waits in the bind of a listener until the release.
    Parked {
        /// The listener.
        name: String,
        /// Its process.
        pid: u32,
    },
    /// It has got a listener.
    Bound {
        /// The listener.
        name: String,
        /// Its process.
        pid: u32,
    },
    /// It called listen on one that it has got. Not every program does, and that it did does not mean that it accepts.
    Listening {
        /// The listener.
        name: String,
        /// Its process.
        pid: u32,
    },
    /// It binds something that is no listener of the service; the kernel carries that out.
    Passed {
        /// What.
        address: String,
        /// What would have to stand in the service file for it to be a listener, if that is possible.
        instead: Option<ListenAddress>,
        /// Its process.
        pid: u32,
        /// Why it is none.
        why: Why,
    },
    /// It should have got a listener, and something was in the way.
    Failed {
        /// The listener.
        name: String,
        /// Its process.
        pid: u32,
        /// A sentence without a full stop.
        error: String,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Parked { name, pid } => write!(f, "process {pid} waits in the bind of {name}"),
            Event::Bound { name, pid } => write!(f, "process {pid} has got the listener {name}"),
            Event::Listening { name, pid } => write!(f, "process {pid} listens at {name}"),
            Event::Passed { address, pid, why, .. } => write!(f, "process {pid} binds {address}: {why}"),
            Event::Failed { name, pid, error } => {
                write!(f, "process {pid} cannot get the listener {name}: {error}")
            }
        }
    }
}
