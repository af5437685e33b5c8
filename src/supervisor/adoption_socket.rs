//! The sockets at which the processes of services wait for a daemon.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::process::remove_directory;
use crate::config::Dirs;
use crate::shim;
use crate::sys::channel::Channel;
use crate::sys::errno::Errno;
use crate::sys::path::hold_itself;
use crate::sys::socket::{AddressFamily, SockFlag, SockType, connect_path, peer_of, socket};

/// Checks the process that listens there, because it gets the channel of a serving process. It must be that process,
/// a child of it, or another process of the same user, which could do all that anyway. It must not be a process of
/// another user, whatever the modes of the directories are now.
pub(super) fn check_peer(channel: &Channel, pid: u32) -> io::Result<()> {
    let peer = peer_of(channel)?;
    let found = peer.pid;
    if found == pid || channel.has_trusted_peer()? {
        return Ok(());
    }
    let what = format!("at its socket listens the process {found} of user {}", peer.user);
    Err(io::Error::new(io::ErrorKind::PermissionDenied, what))
}

/// Connects to a process. The type of the socket is that of the channel on which the process was started, whatever
/// the service file says now.
pub(super) fn connect_to(path: &Path) -> io::Result<Channel> {
    let connected = |kind| {
        let socket = socket(AddressFamily::Unix, kind, SockFlag::SOCK_NONBLOCK)?;
        connect_there(&socket, path)?;
        Ok(socket)
    };
    match connected(SockType::SeqPacket) {
        Ok(socket) => Channel::from_fd(socket),
        Err(Errno::EPROTOTYPE) => Channel::from_stream(connected(SockType::Stream)?),
        Err(error) => Err(error.into()),
    }
}

/// The place of an adoption socket: it is elsewhere if its process has another user than the daemon.
pub(super) fn place_of(path: &Path) -> PathBuf {
    std::fs::read_link(path).unwrap_or_else(|_| path.to_owned())
}

/// Connects a socket. A process of another user may have put a link into its directory, which could lead to a file system
/// that does not answer: it is not followed.
fn connect_there(socket: &OwnedFd, path: &Path) -> Result<(), Errno> {
    match std::fs::read_link(path) {
        Err(_) => connect_path(socket, path),
        Ok(place) => {
            let held = hold_itself(&place)?;
            connect_path(socket, Path::new(&format!("/proc/thread-self/fd/{}", held.as_raw_fd())))
        }
    }
}

/// Whether no process listens there. Takes no place in the queue of a process that does: it refuses a socket of another
/// type (EPROTOTYPE).
fn is_refused(path: &Path) -> bool {
    matches!(asked(path), Err(Errno::ECONNREFUSED | Errno::ENOENT))
}

fn asked(path: &Path) -> Result<(), Errno> {
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_NONBLOCK)?;
    connect_there(&socket, path)
}

/// Removes the directories of processes that are gone: no process listens at the socket any more.
pub(super) fn sweep_directories(dirs: &Dirs) {
    for path in
        std::fs::read_dir(dirs.processes_dir()).into_iter().flatten().flatten().map(|entry| entry.path())
    {
        let socket = path.file_name().map(|name| dirs.adopt_dir().join(name));
        if socket.is_some_and(|socket| is_refused(&socket)) {
            remove_directory(&path);
        }
    }
}

/// Removes the sockets of processes that are gone, and nothing of processes that are just starting.
pub(super) fn sweep_sockets(directory: &Path) {
    for path in std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let is_socket = path.extension().is_none();
        if is_socket && asked(&path) == Err(Errno::ECONNREFUSED) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Removes the sockets of processes that are gone: no process listens there any more. Ends what a shim that is gone
/// has left behind.
pub(super) fn sweep(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        match path.extension() {
            None if is_refused(&path) => drop(std::fs::remove_file(&path)),
            Some(extension) if extension == shim::TRACE && is_refused(&path.with_extension("")) => {
                match shim::end_what_is_left(&path) {
                    Ok(left) if left.is_empty() => {}
                    Ok(left) => tracing::error!(
                        "the program of a shim that is gone does not end: process {}",
                        shim::named(&left)
                    ),
                    Err(error) => tracing::error!(
                        "cannot look for what a shim has left behind ({}): {error}",
                        path.display()
                    ),
                }
            }
            _ => {}
        }
    }
}
