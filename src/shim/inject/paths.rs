//! Programs that remove the path of their unix socket, before they bind or when they end, or move another file over it.
//!
//! The path belongs to the supervisor, and clients use it at every moment. So such a call returns success without being
//! executed. The name is compared first, which is free, and then the directory: only a path that is named like a
//! listener can block on a hanging file system.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ListenerProvider;
use super::target::CallingThread;
use crate::config::ListenAddress;
use crate::slots::UnixPathTarget;
use crate::sys::seccomp::{Call, SystemCall};

/// `AT_FDCWD` and `AT_REMOVEDIR` of fcntl.h.
const CURRENT_DIRECTORY: i32 = -100;
const REMOVES_DIRECTORY: u64 = 0x200;

/// The effect of a call on the path of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PathEffect {
    /// It removes or renames the path.
    Removed,
    /// It replaces the path.
    Replaced,
}

/// `None` if the call does not affect a listener.
pub(super) fn effect_on(
    target: &CallingThread,
    call: &Call,
    slots: &Arc<dyn ListenerProvider>,
) -> io::Result<Option<PathEffect>> {
    let [a, b, c, d] = call.args;
    let current = CURRENT_DIRECTORY as u64;
    let (from, over) = match call.system_call {
        SystemCall::UnlinkAt if c & REMOVES_DIRECTORY != 0 => return Ok(None),
        SystemCall::Unlink => ((current, a), None),
        SystemCall::UnlinkAt => ((a, b), None),
        SystemCall::Rename => ((current, a), Some((current, b))),
        SystemCall::RenameAt => ((a, b), Some((c, d))),
        SystemCall::Bind | SystemCall::Listen => return Ok(None),
    };
    let ours: Vec<ListenAddress> = slots.configured().into_iter().map(|(_, address)| address).collect();
    let is_ours = |(directory, path): (u64, u64)| -> io::Result<bool> {
        let path = PathBuf::from(OsStr::from_bytes(&target.text(path)?));
        Ok(ours.iter().any(|address| is_meant(address, &path, || target.below(directory as i32, &path))))
    };
    if is_ours(from)? {
        return Ok(Some(PathEffect::Removed));
    }
    match over {
        Some(over) if is_ours(over)? => Ok(Some(PathEffect::Replaced)),
        _ => Ok(None),
    }
}

/// Only a slot at the path is protected: the program may change any other file there.
fn is_meant(address: &ListenAddress, path: &Path, whole: impl Fn() -> PathBuf) -> bool {
    let ListenAddress::Unix(ours) = address else { return false };
    let same_directory = || {
        let identity = |directory: &Path| fs::metadata(directory).map(|found| (found.dev(), found.ino()));
        let theirs = identity(whole().parent()?).ok()?;
        Some(theirs == identity(ours.parent()?).ok()?)
    };
    path.file_name() == ours.file_name()
        && same_directory() == Some(true)
        && UnixPathTarget::of(address).is_some()
}
