//! The socket for later supervisors. It is recreated if it or its directory is removed.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::sys::inotify::{AddWatchFlags, Inotify};
use crate::sys::path::set_umask;
use crate::sys::socket::{AddressFamily, SockFlag, SockType, bind_path, listen, socket};

/// Events that may remove the path. Other events in the directory are not watched.
const REMOVAL_EVENTS: AddWatchFlags =
    AddWatchFlags::IN_DELETE.union(AddWatchFlags::IN_MOVED_FROM).union(AddWatchFlags::IN_DELETE_SELF);
const MOVE_EVENTS: AddWatchFlags = AddWatchFlags::IN_MOVE_SELF.union(AddWatchFlags::IN_ONLYDIR);

/// The socket, and a watch on its path. Drop removes the path, unless another keeper has taken it over.
pub(super) struct WatchedSocket {
    path: PathBuf,
    listener: OwnedFd,
    /// Device and inode of the path.
    identity: (u64, u64),
    /// `None` if the kernel provides none: then a removed path is not restored.
    watch: Option<Inotify>,
}

/// What exists at the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PathStatus {
    /// This keeper's socket.
    Own,
    /// Nothing.
    Nothing,
    /// The socket of another keeper.
    Other,
}

impl WatchedSocket {
    /// Binds it for this user only, and replaces an existing socket: the supervisor starts one keeper at a time.
    ///
    /// The replacement is atomic: an old keeper restores its path when it is gone, and would otherwise be faster.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        // Not longer than the path, whose length is limited.
        let new = path.with_extension("new");
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut watched = Self::bind(&new)?;
        std::fs::rename(&new, path)?;
        path.clone_into(&mut watched.path);
        Ok(watched)
    }

    fn bind(path: &Path) -> io::Result<Self> {
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_NONBLOCK)?;
        set_umask(0o177);
        let bound = bind_path(&listener, path);
        set_umask(0o077);
        bound?;
        listen(&listener, 16)?;
        Ok(Self { path: path.to_owned(), listener, identity: identity(path)?, watch: watch(path).ok() })
    }

    pub(super) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Readable when something has happened to the path.
    pub(super) fn watch(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(AsFd::as_fd)
    }

    pub(super) fn find(&self) -> PathStatus {
        match identity(&self.path) {
            Ok(found) if found == self.identity => PathStatus::Own,
            Err(error) if error.kind() == io::ErrorKind::NotFound => PathStatus::Nothing,
            Ok(_) | Err(_) => PathStatus::Other,
        }
    }

    /// Handles such an event: restores the path, and its directory, if they are gone. Returns `false` if that must be
    /// retried.
    pub(super) fn handle_event(&mut self) -> bool {
        if let Some(watch) = &self.watch {
            watch.drain();
        }
        if self.find() == PathStatus::Nothing {
            let directory = self.path.parent().unwrap_or(Path::new("/"));
            let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
            match made.and_then(|()| Self::bind(&self.path)) {
                Ok(again) => *self = again,
                Err(_) => return false,
            }
        }
        true
    }
}

impl Drop for WatchedSocket {
    fn drop(&mut self) {
        if self.find() == PathStatus::Own {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn watch(path: &Path) -> io::Result<Inotify> {
    let inotify = Inotify::new()?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    inotify.add(directory, REMOVAL_EVENTS | MOVE_EVENTS)?;
    Ok(inotify)
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = std::fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}
