//! The path of the control socket.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};

use super::access::Access;
use super::server::CONNECTIONS_MAX;
use crate::config::UNIX_PATH_MAX_BYTES;
use crate::sys::descriptor::set_mode;
use crate::sys::socket::{AddressFamily, SockFlag, SockType, bind_path, listen, socket};

/// Why the control socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The path does not fit into the structure of the kernel.
    #[error(
        "the control socket path {path:?} has {length} bytes and the kernel takes at most \
         {UNIX_PATH_MAX_BYTES}; choose a shorter one with --runtime-dir"
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// A daemon answers there.
    #[error("another daemon answers on {0:?}; stop it, or choose another place with --runtime-dir")]
    InUse(PathBuf),
    /// A file that is not a socket is in the way.
    #[error("{0:?} is not a socket; it is in the way of the control socket: remove it")]
    NotASocket(PathBuf),
    /// The kernel refused.
    #[error("the control socket {path:?} cannot be opened: {error}; check its directory")]
    Io {
        /// The path.
        path: PathBuf,
        /// The error of the kernel.
        error: io::Error,
    },
}

/// The bound control socket. Drop removes the path, if it still belongs to this socket.
#[derive(Debug)]
pub struct Listener {
    socket: StdListener,
    path: PathBuf,
    /// Device and inode of the path.
    identity: (u64, u64),
    access: Access,
}

impl Listener {
    /// Binds the socket with mode 0600. Replaces the socket of a dead daemon, but not one on which a daemon answers.
    /// Needs no runtime, and does not block.
    pub fn bind(path: &Path) -> Result<Listener, BindError> {
        let length = path.as_os_str().len();
        if length > UNIX_PATH_MAX_BYTES {
            return Err(BindError::PathTooLong { path: path.to_owned(), length });
        }
        remove_stale(path)?;
        bind_private(path).map_err(|error| match error.kind() {
            // Another daemon bound it first.
            io::ErrorKind::AddrInUse => BindError::InUse(path.to_owned()),
            _ => BindError::Io { path: path.to_owned(), error },
        })
    }
}

impl Listener {
    /// Lets the members of groups connect. Until then, only the user of the daemon and root can.
    pub fn open_to(&mut self, access: Access) -> io::Result<()> {
        let (mode, group) = access.mode();
        // The group first: the mode is for it.
        std::os::unix::fs::lchown(&self.path, None, group)?;
        std::fs::set_permissions(&self.path, PermissionsExt::from_mode(mode))?;
        self.access = access;
        Ok(())
    }

    /// The groups whose members may connect.
    pub fn access(&self) -> Access {
        self.access
    }

    pub(super) fn socket(&self) -> &StdListener {
        &self.socket
    }

    /// Whether clients can reach this socket at its path.
    pub fn is_there(&self) -> bool {
        identity(&self.path).is_ok_and(|found| found == self.identity)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.is_there() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn remove_stale(path: &Path) -> Result<(), BindError> {
    let io_error = |error| BindError::Io { path: path.to_owned(), error };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BindError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match StdStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(io_error)
        }
        Err(error) => Err(io_error(error)),
        Ok(_) => Err(BindError::InUse(path.to_owned())),
    }
}

fn bind_private(path: &Path) -> io::Result<Listener> {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK)?;
    // Before bind: the path is created with the mode of the socket, so it is never open to others.
    set_mode(&socket, 0o600)?;
    bind_path(&socket, path)?;
    let listener = Listener {
        socket: socket.into(),
        path: path.to_owned(),
        identity: identity(path)?,
        access: Access::default(),
    };
    listen(&listener.socket, CONNECTIONS_MAX as i32)?;
    Ok(listener)
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}
