//! Opens unix listeners, and puts one of them at the path.
//!
//! Every slot has a name of its own beside the path, `.NAME.SLOT`, for as long as it lives. The path itself is a hard
//! link to one of them, replaced by `rename`, which is atomic: there is no moment without a listener, and a switch back
//! is the same as a switch. The file has mode 0666, whatever the umask: like a TCP port on the loopback it is open to
//! every local user, and the permissions of its directory say who may pass.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, getsockname, listen as start_listening,
    socket_with,
};

use super::tcp::LONGEST_BACKLOG;
use super::{SlotError, SlotId};
use crate::config::{ListenAddress, UNIX_PATH_MAX_BYTES};
use crate::sys::owner::{self, UnixPath};

/// Refuses a path at which somebody answers, or which is no socket.
pub(super) fn check_free(path: &Path) -> Result<(), SlotError> {
    directory(path)?;
    let address = ListenAddress::Unix(path.to_owned());
    match owner::of_unix(path) {
        Ok(UnixPath::Free | UnixPath::Stale) => Ok(()),
        Ok(UnixPath::InUse(owner)) => Err(SlotError::InUse { address, owner }),
        Ok(UnixPath::NotASocket) => Err(SlotError::NotASocket { path: path.to_owned() }),
        Err(error) => Err(SlotError::new(&address, "examine", error)),
    }
}

/// Opens a listener at the slot's own name.
pub(super) fn listen(path: &Path, slot: SlotId) -> Result<OwnedFd, SlotError> {
    let directory = directory(path)?;
    let own = own_name(path, slot);
    let listener = || -> io::Result<OwnedFd> {
        remove_if_there(&own)?;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        bind_at(&socket, &own, &directory, slot)?;
        fs::set_permissions(&own, Permissions::from_mode(0o666))?;
        start_listening(&socket, LONGEST_BACKLOG)?;
        Ok(socket)
    };
    listener().map_err(|error| failed(path, "listen on", error))
}

/// Makes the path lead to this slot.
pub(super) fn put_in_place(path: &Path, slot: SlotId) -> Result<(), SlotError> {
    let beside = sibling(path, "new");
    let replace = || -> io::Result<()> {
        remove_if_there(&beside)?;
        fs::hard_link(own_name(path, slot), &beside)?;
        fs::rename(&beside, path)?;
        // A rename between two names of one file does nothing.
        remove_if_there(&beside)
    };
    replace().map_err(|error| failed(path, "switch", error))
}

/// The slot that the path leads to.
pub(super) fn in_place(path: &Path) -> Option<SlotId> {
    let wanted = identity(path)?;
    let prefix = sibling(path, "").file_name()?.to_os_string().into_string().ok()?;
    let names = fs::read_dir(path.parent()?).ok()?.flatten().map(|entry| entry.file_name());
    names
        .filter_map(|name| name.to_str()?.strip_prefix(&prefix)?.parse().ok().map(SlotId))
        .find(|slot| identity(&own_name(path, *slot)) == Some(wanted))
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino())).ok()
}

/// Removes the path if it leads to this slot, and not to somebody else's socket.
pub(super) fn remove(path: &Path, slot: SlotId) {
    if identity(path).is_some_and(|found| Some(found) == identity(&own_name(path, slot))) {
        let _ = remove_if_there(path);
    }
}

/// Removes the slot's own name. What cannot be removed is replaced when the name is needed again.
pub(super) fn forget(path: &Path, slot: SlotId) {
    let _ = remove_if_there(&own_name(path, slot));
}

/// Opens the slot's own name, as a way to connect to the slot.
pub(super) fn hold(path: &Path, slot: SlotId) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(own_name(path, slot), flags, Mode::empty())?)
}

/// 1 if a connection waits, else 0.
pub(super) fn queue_len(listener: BorrowedFd<'_>) -> io::Result<u32> {
    let mut asked = [PollFd::new(&listener, PollFlags::IN)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let ready = rustix::io::retry_on_intr(|| poll(&mut asked, Some(&at_once)))?;
    Ok(u32::from(ready > 0 && asked[0].revents().contains(PollFlags::IN)))
}

/// Ends all connections that wait at a listener, at which nobody else is at work: it is non-blocking meanwhile, for all
/// holders. (`shutdown` would end the listener for ever, and leave what waits.)
pub(super) fn end_waiting(listener: BorrowedFd<'_>) -> io::Result<()> {
    let flags = fcntl_getfl(listener)?;
    fcntl_setfl(listener, flags | OFlags::NONBLOCK)?;
    let ended = loop {
        match rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(_ended) => {}
            Err(Errno::AGAIN) => break Ok(()),
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            Err(error) => break Err(error.into()),
        }
    };
    fcntl_setfl(listener, flags)?;
    ended
}

/// The slot whose own name a listener is bound to. `None` if it is no unix socket, or has a name of another form.
pub(super) fn slot_by_name(listener: BorrowedFd<'_>) -> Option<SlotId> {
    let address = SocketAddrUnix::try_from(getsockname(listener).ok()?).ok()?;
    let path = PathBuf::from(std::ffi::OsStr::from_bytes(address.path_bytes()?));
    let name = path.file_name()?.to_str()?;
    Some(SlotId(name.strip_prefix('.')?.rsplit_once('.')?.1.parse().ok()?))
}

pub(super) fn own_name(path: &Path, slot: SlotId) -> PathBuf {
    sibling(path, &slot.to_string())
}

fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".");
    name.push(suffix);
    path.with_file_name(name)
}

/// A name that is too long for the kernel's structure gets a short one in its open directory first. The socket is bound to
/// that one for ever, so it tells the slot too.
fn bind_at(socket: &OwnedFd, own: &Path, directory: &OwnedFd, slot: SlotId) -> io::Result<()> {
    if own.as_os_str().as_bytes().len() <= UNIX_PATH_MAX_BYTES {
        return Ok(bind(socket, &SocketAddrUnix::new(own)?)?);
    }
    let short = format!("/proc/self/fd/{}/.handoff-{}.{slot}", directory.as_raw_fd(), std::process::id());
    remove_if_there(Path::new(&short))?;
    bind(socket, &SocketAddrUnix::new(&short)?)?;
    fs::rename(short, own)
}

fn directory(path: &Path) -> Result<OwnedFd, SlotError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    rustix::fs::open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| SlotError::Directory { path: path.to_owned(), error: error.into() })
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn failed(path: &Path, action: &'static str, error: io::Error) -> SlotError {
    SlotError::new(&ListenAddress::Unix(path.to_owned()), action, error)
}
