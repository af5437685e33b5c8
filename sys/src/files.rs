//! The limit of open files of this process: `RLIMIT_NOFILE` of getrlimit(2).

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::errno::{ByNumber, Errno};

/// Too few descriptors are left under the limit. `Display` is a sentence without a full stop.
#[derive(Debug, thiserror::Error)]
#[error(
    "{open} files are open, {limit} may be (RLIMIT_NOFILE), and {needed} more are needed; give the daemon a higher limit"
)]
pub struct NoRoom {
    /// Descriptors open now.
    pub open: u64,
    /// The limit.
    pub limit: u64,
    /// Additional descriptors needed.
    pub needed: u64,
}

/// The soft limit.
pub fn files_limit() -> u64 {
    limits().map_or(u64::MAX, |(current, _)| current)
}

/// Raises the soft limit to the hard limit. Returns the previous soft limit.
pub fn raise_files_limit() -> io::Result<u64> {
    let (before, maximum) = limits()?;
    setrlimit(Resource::RLIMIT_NOFILE, maximum, maximum).by_number()?;
    Ok(before)
}

/// Checks that `needed` more files can be opened.
pub fn check_room_for_files(needed: u64) -> Result<(), NoRoom> {
    let limit = files_limit();
    // If the count is unavailable, the attempt to open reports the error.
    let open = open_files().unwrap_or_default();
    if open.saturating_add(needed) <= limit { Ok(()) } else { Err(NoRoom { open, limit, needed }) }
}

/// From Linux 6.2 on, the directory's size is its number of entries.
fn open_files() -> io::Result<u64> {
    match std::fs::metadata("/proc/self/fd")?.len() {
        0 => Ok(std::fs::read_dir("/proc/self/fd")?.count() as u64),
        number => Ok(number),
    }
}

/// Sets the soft limit. It cannot exceed what [`raise_files_limit`] sets.
pub fn set_files_limit(current: u64) -> io::Result<()> {
    Ok(setrlimit(Resource::RLIMIT_NOFILE, current, limits()?.1).by_number()?)
}

/// The soft and the hard limit. `u64::MAX` means unlimited.
fn limits() -> Result<(u64, u64), Errno> {
    getrlimit(Resource::RLIMIT_NOFILE).by_number()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_some_and_not_for_all() {
        check_room_for_files(1).unwrap();
        let error = check_room_for_files(u64::MAX).unwrap_err();
        assert!(error.open > 2 && error.limit == files_limit(), "{error:?}");
        // Another test may receive hundreds of descriptors between the two counts.
        let counted = || std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
        let began = std::time::Instant::now();
        while open_files().unwrap().abs_diff(counted()) > 20 {
            assert!(began.elapsed() < std::time::Duration::from_secs(10), "{:?}", open_files());
        }
    }
}
