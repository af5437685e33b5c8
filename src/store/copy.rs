//! Copies a file's content in the cheapest way that the file systems support.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::error::Error;
use crate::sys::errno::Errno;
use crate::sys::file_system::{copy_range, share_blocks};

/// The remaining number of bytes, and whether the result is still wanted.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    limit_bytes: u64,
    left_bytes: u64,
    called_off: Arc<AtomicBool>,
}

impl Budget {
    pub(super) fn new(limit_bytes: u64, called_off: Arc<AtomicBool>) -> Self {
        Self { limit_bytes, left_bytes: limit_bytes, called_off }
    }

    fn is_called_off(&self) -> bool {
        self.called_off.load(Ordering::Relaxed)
    }

    /// An error if the import was called off.
    pub(super) fn check_called_off(&self, given: &Path) -> Result<(), Error> {
        match self.is_called_off() {
            false => Ok(()),
            true => Err(Error::refused(given, "it was called off", "nothing has changed")),
        }
    }

    /// Subtracts `bytes`. `given` is for the error.
    pub(super) fn take(&mut self, bytes: u64, given: &Path) -> Result<(), Error> {
        self.check_called_off(given)?;
        let exceeded = || {
            let cause = format!("it has more than {} bytes", self.limit_bytes);
            Error::refused(given, cause, "if that is right, raise max_size in [update] of the service file")
        };
        self.left_bytes = self.left_bytes.checked_sub(bytes).ok_or_else(exceeded)?;
        Ok(())
    }
}

/// Size of one copy_file_range(2) call. The kernel copies at most 2 GiB at once.
const RANGE_BYTES: usize = 64 << 20;

/// Copies all of `from` to `to`, which is empty: shares blocks if possible (FICLONE, ioctl_ficlone(2)), otherwise lets
/// the kernel copy (copy_file_range(2)), otherwise reads and writes. Blocks; stops soon after it is called off. Returns
/// the length in bytes.
pub(super) fn copy(from: &File, to: &File, budget: &Budget) -> io::Result<u64> {
    if share_blocks(from, to).is_ok() {
        return Ok(to.metadata()?.len());
    }
    (&*from).rewind()?;
    let mut copied = 0;
    loop {
        if budget.is_called_off() {
            return Err(io::Error::other("it was called off"));
        }
        match copy_range(from, to, RANGE_BYTES) {
            // Some file systems return 0 for files whose content is generated on read.
            Ok(0) if copied == 0 => return copy_by_hand(from, to, budget),
            Ok(0) => return Ok(copied),
            Ok(n) => copied += n as u64,
            Err(Errno::EINTR) => {}
            Err(Errno::EXDEV | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EPERM)
                if copied == 0 =>
            {
                return copy_by_hand(from, to, budget);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn copy_by_hand(from: &File, mut to: &File, budget: &Budget) -> io::Result<u64> {
    let mut copied = 0;
    loop {
        match io::copy(&mut from.take(RANGE_BYTES as u64), &mut to)? {
            0 => return Ok(copied),
            _ if budget.is_called_off() => return Err(io::Error::other("it was called off")),
            n => copied += n,
        }
    }
}

/// Copies a reader to a new file within the budget. Blocks. Returns the length in bytes.
pub(super) fn pour(
    mut from: impl Read,
    to: &mut File,
    at: &Path,
    budget: &mut Budget,
    given: &Path,
) -> Result<u64, PourError> {
    let mut buffer = vec![0; 256 * 1024];
    let mut length = 0;
    loop {
        let n = from.read(&mut buffer).map_err(PourError::Read)?;
        if n == 0 {
            return Ok(length);
        }
        budget.take(n as u64, given).map_err(PourError::Other)?;
        to.write_all(&buffer[..n]).map_err(|error| PourError::Other(Error::io("write it", at)(error)))?;
        length += n as u64;
    }
}

/// The side of a copy that failed.
#[derive(Debug)]
pub(super) enum PourError {
    /// Reading failed.
    Read(io::Error),
    /// Writing failed, or the budget is exhausted.
    Other(Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_the_same_whatever_the_file_systems() {
        let content: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        let source = tempfile::tempdir().unwrap();
        let path = source.path().join("source");
        std::fs::write(&path, &content).unwrap();
        let budget = Budget::new(0, Arc::default());
        // A second one where /dev/shm is a separate file system.
        for place in [source.path(), Path::new("/dev/shm")] {
            let Ok(target) = tempfile::tempfile_in(place) else { continue };
            assert_eq!(copy(&File::open(&path).unwrap(), &target, &budget).unwrap(), content.len() as u64);
            let mut copied = Vec::new();
            let mut target = target;
            std::io::Seek::rewind(&mut target).unwrap();
            target.read_to_end(&mut copied).unwrap();
            assert!(copied == content, "in {place:?}");
        }
    }

    #[test]
    fn a_budget_is_kept_to_the_byte() {
        let mut budget = Budget::new(10, Arc::default());
        let given = Path::new("/given");
        assert!(budget.take(10, given).is_ok());
        let error = budget.take(1, given).unwrap_err();
        assert_eq!(error.to_string(), "/given: it has more than 10 bytes");
        assert!(error.hint().contains("max_size"));
    }
}
