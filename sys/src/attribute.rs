//! Extended attributes of files: xattr(7). nix lacks these calls.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::errno::Errno;

/// Returns the value of an attribute. ERANGE if it is longer than `longest` bytes, ENODATA if the file lacks it.
pub fn get(file: impl AsFd, name: &CStr, longest: usize) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; longest];
    // SAFETY: the name is zero-terminated, the buffer has the given length, and both live until the call returns.
    let length = Errno::result(unsafe {
        libc::fgetxattr(file.as_fd().as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
    })?;
    value.truncate(length.unsigned_abs());
    Ok(value)
}

/// Whether the file at a path has an attribute. Follows symbolic links.
pub fn has(path: &Path, name: &CStr) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: both are zero-terminated strings that live until the call returns. Size 0: the kernel writes nothing.
    let length = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) };
    length >= 0
}

/// Sets an attribute; creates or replaces it.
pub fn set(file: impl AsFd, name: &CStr, value: &[u8]) -> Result<(), Errno> {
    // SAFETY: the name is zero-terminated, the value has the given length, and both live until the call returns.
    let returned = unsafe {
        libc::fsetxattr(file.as_fd().as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    Errno::result(returned).map(drop)
}

/// Removes an attribute. ENODATA if the file lacks it.
pub fn remove(file: impl AsFd, name: &CStr) -> Result<(), Errno> {
    // SAFETY: the name is zero-terminated and lives until the call returns.
    Errno::result(unsafe { libc::fremovexattr(file.as_fd().as_raw_fd(), name.as_ptr()) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_is_there_from_when_it_is_set_until_it_is_removed() {
        const NAME: &CStr = c"user.handoff";
        let file = tempfile::NamedTempFile::new().unwrap();
        match set(&file, NAME, b"value") {
            // Not every file system supports them.
            Err(Errno::EOPNOTSUPP) => return,
            done => done.unwrap(),
        }
        assert_eq!(get(&file, NAME, 64), Ok(b"value".to_vec()));
        assert_eq!(get(&file, NAME, 2), Err(Errno::ERANGE));
        assert!(has(file.path(), NAME));
        remove(&file, NAME).unwrap();
        assert!(!has(file.path(), NAME));
        assert_eq!(get(&file, NAME, 64), Err(Errno::ENODATA));
    }
}
