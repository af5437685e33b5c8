//! The keeper: a small process that holds what must outlive the supervisor.
//!
//! It has duplicates of the listeners, so that a listener is open as long as the keeper lives, and the read ends of the
//! services' log pipes, which it writes to rotated files, so that no service blocks or gets SIGPIPE because the supervisor
//! is gone. It decides nothing, and so has no reason to change or to end:
//!
//! - it is started by the supervisor over an inherited channel, and any later supervisor of the same user reaches it over a
//!   socket;
//! - it ends when it is told to ([`Client::quit`]), when SIGTERM has come and the last log pipe is closed, and when
//!   it holds nothing and nobody is connected, and when nobody can reach it any more, since another keeper is at its path;
//! - at rest it makes no system call.

mod client;
mod door;
mod log;
mod message;
mod pipe;
mod server;
mod writer;

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;

use handoff_protocol::ids::HandoffId;

pub use client::{Client, Error, LogSpec, TIMEOUT};
pub use message::{
    Empty, Entries, FETCH_MAX, Failed, KEY_MAX_BYTES, KeeperReply, KeeperRequest, Key, Keys, List, Log,
    Stats, Store, VERSION,
};

use crate::crash_points::crash_point;
use crate::sys::channel::Channel;
use crate::sys::files::raise_files_limit;
use crate::sys::inherit::take_channel;
use crate::sys::own_process::set_name;
use crate::sys::process::Signal;
use crate::sys::resident::release_start_up_pages;
use crate::sys::signal_fd::signal_fd;
use crate::sys::signals::ignore;
use crate::sys::wire::{recv_message, send_message};

use door::Door;
use server::Keeper;

/// The first argument of the process; the second is the path of its socket.
pub const VERB: &str = "keeper";

/// How a line begins that handoff itself writes into the log of a service.
pub(crate) const SAYS: &str = "handoff: ";

/// Runs the keeper process: what [`Client::start`] starts. Blocks until its end.
pub fn main() -> ExitCode {
    let Ok(Some(supervisor)) = take_channel() else {
        eprintln!("handoff keeper is started by handoff daemon, and does nothing else.");
        return ExitCode::from(2);
    };
    let path = std::env::args_os().nth(2).unwrap_or_default();
    crash_point!("keeper/start");
    match prepare(&path) {
        Ok((door, terminate)) => serve(supervisor, door, terminate),
        Err(error) => {
            let reason = format!("{}: {error}", Path::new(&path).display());
            // The answer to the first request. If the supervisor is gone, nobody needs it.
            if let Ok(Some(_)) = recv_message::<KeeperRequest>(&supervisor, VERSION) {
                let failed = KeeperReply::Failed(Failed { reason });
                let _ = send_message(&supervisor, VERSION, HandoffId::NIL, &failed, &[]);
            }
            ExitCode::FAILURE
        }
    }
}

fn prepare(path: &OsStr) -> io::Result<(Door, OwnedFd)> {
    // A full disk or a file limit is an error to be told, not an end; a hang-up is none of our business.
    for signal in [Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGPIPE, Signal::SIGXFSZ] {
        ignore(signal)?;
    }
    let terminate = signal_fd(Signal::SIGTERM)?;
    // It is there to hold descriptors.
    raise_files_limit()?;
    // Started as /proc/self/exe, it would be known as "exe".
    set_name(c"handoff-keeper")?;
    Ok((Door::open(Path::new(path))?, terminate))
}

fn serve(supervisor: Channel, door: Door, terminate: OwnedFd) -> ExitCode {
    crash_point!("keeper/bound");
    // To be small is a courtesy, no condition.
    let _ = release_start_up_pages();
    let served = Keeper::new(supervisor, door, terminate).and_then(Keeper::run);
    if served.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
