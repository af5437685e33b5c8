//! The keeper: a small process that holds everything that must outlive the supervisor.
//!
//! It holds duplicates of the listeners, so that they stay open while it lives. It also reads the services' log pipes
//! and writes them to rotated files, so that no service blocks or gets SIGPIPE without the supervisor. It makes no
//! decisions, and so has no reason to change or to exit:
//!
//! - the supervisor starts it with an inherited channel, and any later supervisor of the same user reaches it over a
//!   socket;
//! - it exits on request ([`Client::quit`]); after SIGTERM, when the last log pipe is closed; when it holds nothing and
//!   has no connection; and when it is unreachable because another keeper has its path;
//! - while idle it makes no system call, except to remove the lines of logs that have a maximum age.

mod client;
mod gate;
mod journald;
mod log;
mod log_spec;
mod message;
mod pipe;
mod server;
mod watched_socket;
mod writer;

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;

use handoff_protocol::ids::HandoffId;

pub use crate::sys::log_pipe::Stream;
pub use client::{Client, Error, TIMEOUT};
pub use log_spec::LogSpec;
pub use message::{
    Empty, Entries, FETCH_MAX, Failed, KEY_MAX_BYTES, KeeperReply, KeeperRequest, Key, Keys, List, Log,
    LogStream, Stats, Store, VERSION,
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

use server::Keeper;
use watched_socket::WatchedSocket;

/// The first argument of the process; the second is the path of its socket.
pub const VERB: &str = "keeper";

/// Prefix of the lines that handoff itself writes into the log of a service.
pub(crate) const LOG_PREFIX: &str = "handoff: ";

/// Runs the keeper process, which [`Client::start`] has started. Blocks until its exit.
pub fn main() -> ExitCode {
    let Ok(Some(supervisor)) = take_channel() else {
        eprintln!("handoff keeper is an internal command of handoff daemon.");
        return ExitCode::from(2);
    };
    let path = std::env::args_os().nth(2).unwrap_or_default();
    crash_point!("keeper/start");
    match prepare(&path) {
        Ok((socket, terminate)) => serve(supervisor, socket, terminate),
        Err(error) => {
            let reason = format!("{}: {error}", Path::new(&path).display());
            // The answer to the first request. If the supervisor is gone, it has no recipient.
            if let Ok(Some(_)) = recv_message::<KeeperRequest>(&supervisor, VERSION) {
                let failed = KeeperReply::Failed(Failed { reason });
                let _ = send_message(&supervisor, VERSION, HandoffId::NIL, &failed, &[]);
            }
            ExitCode::FAILURE
        }
    }
}

fn prepare(path: &OsStr) -> io::Result<(WatchedSocket, OwnedFd)> {
    // A full disk or a file limit is an error to report, not a reason to exit; a hang-up is irrelevant.
    for signal in [Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGPIPE, Signal::SIGXFSZ] {
        ignore(signal)?;
    }
    let terminate = signal_fd(Signal::SIGTERM)?;
    // Its purpose is to hold descriptors.
    raise_files_limit()?;
    // Started as /proc/self/exe, its name would be "exe".
    set_name(c"handoff-keeper")?;
    Ok((WatchedSocket::open(Path::new(path))?, terminate))
}

fn serve(supervisor: Channel, socket: WatchedSocket, terminate: OwnedFd) -> ExitCode {
    crash_point!("keeper/bound");
    // Saving memory is optional.
    let _ = release_start_up_pages();
    let served = Keeper::new(supervisor, socket, terminate).and_then(Keeper::run);
    if served.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
