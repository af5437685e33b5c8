//! Mode and owner of a unix socket's file, which decide who may connect.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

/// Like a TCP port on loopback: open to every local user who can reach the directory. systemd has the same default.
const DEFAULT_MODE: u32 = 0o666;

/// Mode and owner that a new unix socket gets. Later changes, by the program or by hand, stay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Access {
    /// Permission bits; `None`: 0666.
    pub mode: Option<u32>,
    /// User id of the owner; `None`: the daemon's user.
    pub user: Option<u32>,
    /// Group id; `None`: the daemon's group.
    pub group: Option<u32>,
}

/// Sets owner and mode. The owner comes first, so that no wrong user gets access in between.
pub(super) fn set(name: &Path, access: &Access) -> io::Result<()> {
    if access.user.is_some() || access.group.is_some() {
        lchown(name, access.user, access.group)?;
    }
    fs::set_permissions(name, Permissions::from_mode(access.mode.unwrap_or(DEFAULT_MODE)))
}

/// Mode, user and group of a file.
pub(super) type FileAccess = (u32, u32, u32);

/// Reads them from a file.
pub(super) fn of(name: &Path) -> Option<FileAccess> {
    fs::symlink_metadata(name).map(|found| (found.mode() & 0o7777, found.uid(), found.gid())).ok()
}

/// Copies one file's mode and owner to another. Returns what it has read. Ignores failures: the file may belong to a
/// user who has changed it, and connections must still go somewhere.
pub(super) fn copy(from: &Path, to: &Path) -> Option<FileAccess> {
    let (wanted, found) = (of(from)?, of(to)?);
    let (mode, user, group) = wanted;
    if (user, group) != (found.1, found.2) {
        let _ = lchown(to, Some(user), Some(group));
    }
    if mode != found.0 {
        let _ = fs::set_permissions(to, Permissions::from_mode(mode));
    }
    Some(wanted)
}
