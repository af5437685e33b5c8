//! Mode and owner of a unix socket's file, which say who may connect.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

/// Like a TCP port on the loopback: open to every local user who may pass the directory. Also what systemd does.
const DEFAULT_MODE: u32 = 0o666;

/// What is set when a unix socket is opened. Whatever is changed later, by the program or by hand, stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Access {
    /// Permission bits; 0666 if nothing is said.
    pub mode: Option<u32>,
    /// Who owns it, if not the user of the daemon.
    pub user: Option<u32>,
    /// Its group, if not that of the daemon.
    pub group: Option<u32>,
}

/// Sets what is said, and the default mode if none is. The owner comes first: nobody is let in meanwhile who should not be.
pub(super) fn set(name: &Path, access: &Access) -> io::Result<()> {
    if access.user.is_some() || access.group.is_some() {
        lchown(name, access.user, access.group)?;
    }
    fs::set_permissions(name, Permissions::from_mode(access.mode.unwrap_or(DEFAULT_MODE)))
}

/// Mode, user and group of a file.
pub(super) type Found = (u32, u32, u32);

/// What a name's file has.
pub(super) fn of(name: &Path) -> Option<Found> {
    fs::symlink_metadata(name).map(|found| (found.mode() & 0o7777, found.uid(), found.gid())).ok()
}

/// Gives one name's mode and owner to another's file, and tells what that was. What this process may not set stays: another
/// user has changed a file that is not this process's, and connections have to go somewhere.
pub(super) fn copy(from: &Path, to: &Path) -> Option<Found> {
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
