//! How many files this process may have open: `RLIMIT_NOFILE` of getrlimit(2).

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::errno::{ByNumber, Errno};

/// There is no room for so many more files. `Display` is a sentence without a full stop.
#[derive(Debug, thiserror::Error)]
#[error(
    "{open} files are open, {limit} may be (RLIMIT_NOFILE), and {needed} more are needed; give the daemon a higher limit"
)]
pub struct NoRoom {
    /// How many are open.
    pub open: u64,
    /// How many may be.
    pub limit: u64,
    /// How many more are needed.
    pub needed: u64,
}

/// The number that may be open.
pub fn files_limit() -> u64 {
    limits().map_or(u64::MAX, |(current, _)| current)
}

/// Raises the limit as far as a process without privilege may. Gives what it was.
pub fn raise_files_limit() -> io::Result<u64> {
    let (before, maximum) = limits()?;
    setrlimit(Resource::RLIMIT_NOFILE, maximum, maximum).by_number()?;
    Ok(before)
}

/// Whether `needed` more files can be opened.
pub fn check_room_for_files(needed: u64) -> Result<(), NoRoom> {
    let limit = files_limit();
    // If it cannot be found out, the attempt will tell.
    let open = open_files().unwrap_or_default();
    if open.saturating_add(needed) <= limit { Ok(()) } else { Err(NoRoom { open, limit, needed }) }
}

/// From Linux 6.2 on the size of the directory is the number of its entries.
fn open_files() -> io::Result<u64> {
    match std::fs::metadata("/proc/self/fd")?.len() {
        0 => Ok(std::fs::read_dir("/proc/self/fd")?.count() as u64),
        number => Ok(number),
    }
}

/// Sets what may be open. At most as many as [`raise_files_limit`] would set.
pub fn set_files_limit(current: u64) -> io::Result<()> {
    Ok(setrlimit(Resource::RLIMIT_NOFILE, current, limits()?.1).by_number()?)
}

/// The soft and the hard limit. `u64::MAX` is none.
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
        let counted = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
        assert!(open_files().unwrap().abs_diff(counted) < 100);
    }
}
