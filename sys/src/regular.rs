//! Opens regular files only: opening a fifo would block until its other end opens.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::sys::statfs::{Statfs, fstatfs, statfs};

use super::errno::{Errno, errno_of};

/// Opens a regular file. `InvalidInput` for other types. Blocks on the file system only.
pub fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let refused = || io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file: move it away");
    let file = match options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path) {
        // A fifo without a reader, or a socket.
        Err(error) if errno_of(&error) == Some(Errno::ENXIO) => return Err(refused()),
        opened => opened?,
    };
    if file.metadata()?.is_file() { Ok(file) } else { Err(refused()) }
}

/// Opens a regular file for reading.
pub fn open_to_read(path: &Path) -> io::Result<File> {
    open(OpenOptions::new().read(true), path)
}

/// Creates or truncates a file with mode 0600.
pub fn create(path: &Path) -> io::Result<File> {
    open(OpenOptions::new().write(true).create(true).truncate(true).mode(0o600), path)
}

/// Reads the whole file.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_to_read(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads the whole file as text.
pub fn read_to_string(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    open_to_read(path)?.read_to_string(&mut text)?;
    Ok(text)
}

/// Whether a file is certainly on a local file system of this kernel. Any other may depend on a process or another
/// machine that may not respond. Blocks as long as the file system does.
pub fn is_local(file: impl AsFd) -> bool {
    fstatfs(file).is_ok_and(|found| is_of_kernel(&found))
}

/// Like [`is_local`], for an existing path or the directory in which it would be created. Opens nothing.
pub fn is_path_local(path: &Path) -> bool {
    let found = statfs(path).or_else(|_| statfs(path.parent().unwrap_or(path)));
    found.is_ok_and(|found| is_of_kernel(&found))
}

/// Whether files there are in memory, and not on a disk.
pub fn is_in_memory(path: &Path) -> bool {
    let kind = statfs(path).map(|found| found.filesystem_type().0 as u32);
    kind.is_ok_and(|kind| kind == libc::TMPFS_MAGIC as u32 || kind == RAMFS)
}

const RAMFS: u32 = 0x8584_58F6;

fn is_of_kernel(found: &Statfs) -> bool {
    const ZFS: u32 = 0x2FC1_2FC1;
    const LOCAL: [u32; 9] = [
        // Also covers ext2 and ext3.
        libc::EXT4_SUPER_MAGIC as u32,
        libc::XFS_SUPER_MAGIC as u32,
        libc::BTRFS_SUPER_MAGIC as u32,
        libc::F2FS_SUPER_MAGIC as u32,
        ZFS,
        libc::BCACHEFS_SUPER_MAGIC as u32,
        libc::TMPFS_MAGIC as u32,
        RAMFS,
        libc::OVERLAYFS_SUPER_MAGIC as u32,
    ];
    // On some kernels this is a signed 32-bit number.
    LOCAL.contains(&(found.filesystem_type().0 as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    #[test]
    fn files_of_the_kernel_are_not_those_of_a_memory_disk() {
        assert!(!is_in_memory(Path::new("/proc")) && !is_in_memory(Path::new("/nonexistent")));
        let shared = Path::new("/dev/shm");
        assert!(!shared.is_dir() || is_in_memory(shared));
    }

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let root = tempfile::tempdir().unwrap();
        let (fifo, file) = (root.path().join("fifo"), root.path().join("file"));
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        for path in [fifo.as_path(), Path::new("/dev/null"), root.path()] {
            assert!(read(path).is_err(), "{path:?}");
            assert!(create(path).is_err(), "{path:?}");
            assert!(open(OpenOptions::new().read(true).append(true).create(true), path).is_err(), "{path:?}");
        }
        assert_eq!(read(&file).unwrap_err().kind(), io::ErrorKind::NotFound);
        drop(create(&file).unwrap());
        std::fs::write(&file, "text").unwrap();
        assert_eq!(read_to_string(&file).unwrap(), "text");
    }
}
