//! Path operations that std lacks.

use std::ffi::{CString, c_int};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{AccessFlags, access, mkfifo};

use super::errno::{ByNumber, Errno};

/// A flag for [`std::os::unix::fs::OpenOptionsExt::custom_flags`]: opening a fifo does not block.
pub const NONBLOCK: c_int = libc::O_NONBLOCK;
/// A flag for the same: opening a symbolic link fails with ELOOP.
pub const NOFOLLOW: c_int = libc::O_NOFOLLOW;

/// Opens a path with `O_PATH`: it gives no access to the content; close-on-exec. Opens no device and does not block on
/// fifos.
pub fn hold(path: &Path) -> Result<OwnedFd, Errno> {
    hold_with(path, OFlag::empty())
}

/// Like [`hold`], but opens a symbolic link itself.
pub fn hold_itself(path: &Path) -> Result<OwnedFd, Errno> {
    hold_with(path, OFlag::O_NOFOLLOW)
}

/// Like [`hold`], for a directory. ENOTDIR for anything else.
pub fn hold_directory(path: &Path) -> Result<OwnedFd, Errno> {
    hold_with(path, OFlag::O_DIRECTORY)
}

fn hold_with(path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    open(path, flags | OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).by_number()
}

/// Whether the real user of this process may execute the file.
pub fn is_executable(path: &Path) -> bool {
    access(path, AccessFlags::X_OK).is_ok()
}

/// The first component of an absolute path that the real user of this process may not pass or execute.
pub fn first_closed(path: &Path) -> Option<&Path> {
    let all: Vec<&Path> = path.ancestors().collect();
    all.into_iter().rev().find(|path| access(*path, AccessFlags::X_OK) == Err(nix::Error::EACCES))
}

/// Renames a file without replacing another one: EEXIST.
pub fn rename_to_new(from: &Path, to: &Path) -> Result<(), Errno> {
    let text = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL);
    let (from, to) = (text(from)?, text(to)?);
    // nix has it for one C library only, and others may lack the function, so it is called by number.
    // SAFETY: both are zero-terminated strings that live until the call returns.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            libc::AT_FDCWD,
            from.as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            libc::RENAME_NOREPLACE,
        )
    };
    Errno::result(returned).map(drop)
}

/// Creates a fifo with this mode, less the umask.
pub fn make_fifo(path: &Path, mode: u32) -> Result<(), Errno> {
    mkfifo(path, Mode::from_bits_truncate(mode)).by_number()
}

/// Sets the umask of the whole process.
pub fn set_umask(mask: u32) {
    umask(Mode::from_bits_truncate(mask));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_file_is_renamed_and_replaces_none() {
        let directory = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| directory.path().join(name));
        fs::write(&one, "1").unwrap();
        fs::write(&two, "2").unwrap();
        assert_eq!(rename_to_new(&one, &two), Err(Errno::EEXIST));
        fs::remove_file(&two).unwrap();
        rename_to_new(&one, &two).unwrap();
        assert_eq!((fs::read_to_string(&two).unwrap().as_str(), one.exists()), ("1", false));
        assert_eq!(rename_to_new(Path::new("a\0b"), &two), Err(Errno::EINVAL));
    }

    #[test]
    fn what_is_held_is_what_was_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let kind = |held: OwnedFd| fs::File::from(held).metadata().unwrap().file_type();
        assert!(kind(hold(&link).unwrap()).is_file() && kind(hold_itself(&link).unwrap()).is_symlink());
        assert!(kind(hold_directory(directory.path()).unwrap()).is_dir());
        assert_eq!(hold_directory(&file).unwrap_err(), Errno::ENOTDIR);
        assert!(is_executable(Path::new("/bin/sh")) && !is_executable(&file));
    }
}
