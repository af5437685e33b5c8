//! Privileges of a program beyond those of its user. A copy loses them, unless they are set again.

use std::ffi::CStr;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::error::Error;
use crate::sys::attribute;
use crate::sys::file_system::gives_privileges;
use crate::sys::user::{effective_group, effective_user};

/// File capabilities (capabilities(7)).
const CAPABILITY: &CStr = c"security.capability";
/// VFS_CAP_REVISION_3 with its root user: 24 bytes, the longest that the kernel supports.
const CAPABILITY_MAX_BYTES: usize = 64;
const SET_USER: u32 = 0o4000;
const SET_GROUP: u32 = 0o2010;

/// Copies the file capabilities of the original, or refuses the file: without them the program would fail later and
/// unexpectedly. Write nothing to `to` afterwards; a write would remove them. Blocks.
pub(super) fn carry(from: &File, to: &File, given: &Path) -> Result<(), Error> {
    check_set_id(from, given)?;
    let Some(capability) = capability_of(from) else {
        // An existing version may have some.
        if capability_of(to).is_some() {
            let _ = attribute::remove(to, CAPABILITY);
        }
        return Ok(());
    };
    let stays = gives_privileges(to).unwrap_or(false);
    if !stays {
        let cause = "it has file capabilities, and the file system of the state directory (mounted nosuid) gives them no effect";
        return Err(Error::refused(
            given,
            cause,
            "set store = false in the service file, or mount it without nosuid",
        ));
    }
    if capability_of(to).as_ref() != Some(&capability) {
        let set = attribute::set(to, CAPABILITY, &capability);
        set.map_err(|_| lost(given))?;
    }
    Ok(())
}

/// Whether [`carry`] would succeed for a copy of this file, as far as this process can tell. Blocks.
pub(super) fn check(from: &File, given: &Path) -> Result<(), Error> {
    check_set_id(from, given)?;
    let may = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
        // CAP_SETFCAP, capabilities(7).
        effective.is_none_or(|bits| bits & 1 << 31 != 0)
    };
    if capability_of(from).is_some() && !may() { Err(lost(given)) } else { Ok(()) }
}

fn lost(given: &Path) -> Error {
    let cause =
        "it has file capabilities, which its copy in the store would not have: to set them takes CAP_SETFCAP";
    Error::refused(given, cause, "set store = false in the service file, or give the daemon CAP_SETFCAP")
}

/// A copy belongs to the daemon's user, so the bit would make it run as that user.
fn check_set_id(from: &File, given: &Path) -> Result<(), Error> {
    let Ok(found) = from.metadata() else { return Ok(()) };
    let (user, group) = (effective_user(), effective_group());
    let set_user = found.mode() & SET_USER != 0 && found.uid() != user;
    let set_group = found.mode() & SET_GROUP == SET_GROUP && found.gid() != group;
    if !found.is_file() || !(set_user || set_group) {
        return Ok(());
    }
    let (bit, whose) = if set_user { ("user", found.uid()) } else { ("group", found.gid()) };
    let cause =
        format!("it has the set-{bit}-ID bit of {bit} {whose}, which its copy in the store would not have");
    Err(Error::refused(given, cause, "set store = false in the service file, or take the bit away"))
}

fn capability_of(file: &File) -> Option<Vec<u8>> {
    attribute::get(file, CAPABILITY, CAPABILITY_MAX_BYTES).ok()
}
