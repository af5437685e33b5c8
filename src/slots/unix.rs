//! Opens unix listeners, and puts one of them at the path.
//!
//! The path belongs to the supervisor, and no program's socket has it as its name. Every slot has two names next to the
//! path for its whole life, both of the same file. The socket is bound to `.NAME.SLOT`: getsockname(2) returns it, and
//! programs remove it when they end. The supervisor relies on `.NAME.SLOT.kept`. The path is a hard link to that,
//! replaced atomically by `rename`: there is no moment without a listener, and a switch back works like a switch.
//!
//! Mode and owner belong to the file, so each slot has its own. Those of the file at the path are valid, even if
//! a user has changed them, and a switch copies them; see `access.rs`.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::access::{self, Access};
use super::{SlotError, SlotId};
use crate::config::{ListenAddress, UNIX_PATH_MAX_BYTES};
use crate::sys::descriptor::{is_nonblocking, set_nonblocking};
use crate::sys::errno::Errno;
use crate::sys::owner::{self, UnixPath};
use crate::sys::path::{hold_directory, hold_itself};
use crate::sys::poll::ends_of;
use crate::sys::socket::{
    self, AddressFamily, LONGEST_BACKLOG, SockFlag, SockType, bind_path, local_path, reset_on_close, socket,
};

/// The suffix of the name that the supervisor relies on.
const KEPT: &str = ".kept";
/// The prefix of a link's temporary name before it is renamed over the path.
const BESIDE: &str = "new-";

/// An error if a process listens at the path, or if it is not a socket.
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

/// Opens a listener at the slot's own names.
pub(super) fn listen(path: &Path, slot: SlotId, access: &Access) -> Result<OwnedFd, SlotError> {
    let directory = directory(path)?;
    let (bound, kept) = (own_name(path, slot), kept_name(path, slot));
    let listener = || -> io::Result<OwnedFd> {
        remove_if_there(&bound)?;
        remove_if_there(&kept)?;
        let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty())?;
        bind_at(&socket, &bound, &directory, slot)?;
        access::set(&bound, access)?;
        fs::hard_link(&bound, &kept)?;
        socket::listen(&socket, LONGEST_BACKLOG)?;
        Ok(socket)
    };
    listener().map_err(|error| failed(path, "listen on", error))
}

/// Opens a replacement for a socket that a program has shut down, with the same names, mode and owner.
pub(super) fn renew(path: &Path, slot: SlotId) -> Result<OwnedFd, SlotError> {
    let was_in_place = in_place(path) == Some(slot);
    let (mode, user, group) = match access::of(&name_of(path, slot)).or_else(|| access::of(path)) {
        Some((mode, user, group)) => (Some(mode), Some(user), Some(group)),
        None => (None, None, None),
    };
    let listener = listen(path, slot, &Access { mode, user, group })?;
    if was_in_place {
        put_in_place(path, slot)?;
    }
    Ok(listener)
}

/// Makes the path point to this slot, with its current mode and owner. Also restores the names of the slot.
pub(super) fn put_in_place(path: &Path, slot: SlotId) -> Result<(), SlotError> {
    replace(path, slot).map_err(|error| failed(path, "switch", error))
}

fn replace(path: &Path, slot: SlotId) -> io::Result<()> {
    let kept = link_names(path, slot)?;
    let before = in_place(path);
    if before == Some(slot) {
        return Ok(());
    }
    let before = before.map(|before| name_of(path, before));
    let copied = before.as_deref().and_then(|before| access::copy(before, &kept));
    if let Err(error) = fs::hard_link(&kept, path) {
        if error.kind() != io::ErrorKind::AlreadyExists {
            return Err(error);
        }
        // The daemon and a shim may run this at the same time.
        let beside = sibling(path, &format!("{BESIDE}{}", std::process::id()));
        remove_if_there(&beside)?;
        fs::hard_link(&kept, &beside)?;
        fs::rename(&beside, path)?;
    }
    // A concurrent change of mode or owner was made to the old file.
    if let Some(before) = before.filter(|before| access::of(before) != copied) {
        access::copy(&before, &kept);
    }
    Ok(())
}

/// Restores both names of a slot from one of them or the path. Returns the name to rely on.
fn link_names(path: &Path, slot: SlotId) -> io::Result<PathBuf> {
    let (bound, kept) = (own_name(path, slot), kept_name(path, slot));
    // The second name was removed.
    if identity(&kept).is_none() {
        fs::hard_link(&bound, &kept)?;
    }
    if identity(&bound).is_none()
        && let Err(error) = fs::hard_link(&kept, &bound)
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(error);
    }
    Ok(kept)
}

/// Restores the names of a slot that a program is about to receive, so that it can remove them.
pub(super) fn restore_names(path: &Path, slot: SlotId) -> Result<(), SlotError> {
    link_names(path, slot).map(drop).map_err(|error| failed(path, "mend the names of", error))
}

/// Sets mode and owner of a slot, as at its creation.
pub(super) fn set_access(path: &Path, slot: SlotId, access: &Access) -> Result<(), SlotError> {
    let name = name_of(path, slot);
    access::set(&name, access).map_err(|error| failed(path, "set the mode and the owner of", error))
}

/// The slot that the path points to.
pub(super) fn in_place(path: &Path) -> Option<SlotId> {
    let wanted = identity(path)?;
    let prefix = sibling(path, "").file_name()?.to_os_string().into_string().ok()?;
    let names = fs::read_dir(path.parent()?).ok()?.flatten().map(|entry| entry.file_name());
    let slot = |name: OsString| {
        let slot = name.to_str()?.strip_prefix(&prefix)?;
        slot.strip_suffix(KEPT).unwrap_or(slot).parse().ok().map(SlotId)
    };
    names.filter_map(slot).find(|slot| is_slot(path, *slot, wanted))
}

fn is_slot(path: &Path, slot: SlotId, wanted: (u64, u64)) -> bool {
    [kept_name(path, slot), own_name(path, slot)].iter().any(|name| identity(name) == Some(wanted))
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino())).ok()
}

/// Removes the path if it points to this slot and not to another socket.
pub(super) fn remove(path: &Path, slot: SlotId) {
    if identity(path).is_some_and(|found| is_slot(path, slot, found)) {
        let _ = remove_if_there(path);
    }
}

/// Removes the slot's own names. On failure, the next use of the name replaces it.
pub(super) fn forget(path: &Path, slot: SlotId) {
    let _ = remove_if_there(&own_name(path, slot));
    let _ = remove_if_there(&kept_name(path, slot));
}

/// Removes temporary links of processes that were killed during a switch.
pub(super) fn forget_links(path: &Path) {
    let (Some(directory), prefix) = (path.parent(), sibling(path, BESIDE)) else { return };
    let prefix = prefix.file_name().unwrap_or_default().as_bytes().to_owned();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name().as_bytes().starts_with(&prefix) {
            let _ = remove_if_there(&entry.path());
        }
    }
}

/// Opens the slot's own name, to connect to the slot.
pub(super) fn hold(path: &Path, slot: SlotId) -> io::Result<OwnedFd> {
    Ok(hold_itself(&name_of(path, slot))?)
}

/// 1 if a connection is queued, else 0.
pub(super) fn queue_len(listener: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(u32::from(ends_of(listener)?.is_readable))
}

/// Ends all connections queued at an unused listener. The listener is nonblocking for all holders in the meantime.
/// (`shutdown` would end a unix listener permanently and keep its queue, and would change the index of a TCP listener.)
pub(super) fn end_waiting(listener: BorrowedFd<'_>) -> io::Result<()> {
    let was_nonblocking = is_nonblocking(listener)?;
    set_nonblocking(listener, true)?;
    let ended = loop {
        match socket::accept(listener, SockFlag::empty()) {
            // Resets a TCP connection, so that the client sees that no process has it.
            Ok(ended) => drop(reset_on_close(&ended)),
            // EINVAL: it was shut down.
            Err(Errno::EAGAIN | Errno::EINVAL) => break Ok(()),
            Err(Errno::EINTR | Errno::ECONNABORTED) => {}
            Err(error) => break Err(error.into()),
        }
    };
    set_nonblocking(listener, was_nonblocking)?;
    ended
}

/// The slot in the name of a listener. `None` if it is not a unix socket, or has a name of another form.
pub(super) fn slot_by_name(listener: BorrowedFd<'_>) -> Option<SlotId> {
    let path = local_path(listener)?;
    let name = path.file_name()?.to_str()?;
    Some(SlotId(name.strip_prefix('.')?.rsplit_once('.')?.1.parse().ok()?))
}

/// The name that the socket of a slot is bound to.
fn own_name(path: &Path, slot: SlotId) -> PathBuf {
    sibling(path, &slot.to_string())
}

/// The name of a slot that no program gets.
fn kept_name(path: &Path, slot: SlotId) -> PathBuf {
    sibling(path, &format!("{slot}{KEPT}"))
}

/// An existing name of a slot, if there is one.
pub(super) fn name_of(path: &Path, slot: SlotId) -> PathBuf {
    let kept = kept_name(path, slot);
    if identity(&kept).is_some() { kept } else { own_name(path, slot) }
}

fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".");
    name.push(suffix);
    path.with_file_name(name)
}

/// If the name is too long for the kernel's structure, binds to a short name in its open directory first. The socket
/// keeps that name, so it contains the slot too.
fn bind_at(socket: &OwnedFd, own: &Path, directory: &OwnedFd, slot: SlotId) -> io::Result<()> {
    if own.as_os_str().as_bytes().len() <= UNIX_PATH_MAX_BYTES {
        return Ok(bind_path(socket, own)?);
    }
    let short = format!("/proc/self/fd/{}/.handoff-{}.{slot}", directory.as_raw_fd(), std::process::id());
    remove_if_there(Path::new(&short))?;
    bind_path(socket, Path::new(&short))?;
    fs::rename(short, own)
}

fn directory(path: &Path) -> Result<OwnedFd, SlotError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    hold_directory(parent)
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
