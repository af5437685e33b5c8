//! Immutable files in memory: memfd_create(2), and the seals of fcntl(2).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use nix::sys::uio::pread;
use nix::unistd::write;

use super::errno::{ByNumber, Errno};

/// Seals that forbid changes of the content, the length and the seals.
fn seals() -> SealFlag {
    SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE
}

/// Creates a sealed file with this content.
pub fn sealed_file(content: &[u8]) -> io::Result<OwnedFd> {
    let file = memory()?;
    let mut left = content;
    while !left.is_empty() {
        match write(&file, left).by_number() {
            Ok(written) => left = &left[written..],
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals())).by_number()?;
    Ok(file)
}

/// Kernels before 6.3 reject the flag that forbids execution; newer ones can be configured to require it.
fn memory() -> io::Result<OwnedFd> {
    const NOEXEC_SEAL: MFdFlags = MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL);
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    match memfd_create("handoff-state", flags | NOEXEC_SEAL).by_number() {
        Err(Errno::EINVAL) => Ok(memfd_create("handoff-state", flags).by_number()?),
        file => Ok(file?),
    }
}

/// Creates an empty file in memory; close-on-exec. `name` is for debugging only.
pub fn memory_file(name: &str) -> io::Result<OwnedFd> {
    Ok(memfd_create(name, MFdFlags::MFD_CLOEXEC).by_number()?)
}

/// The length of a file in bytes, or `None` if it is not sealed.
pub fn sealed_length(file: impl AsFd) -> io::Result<Option<u64>> {
    match fcntl(&file, FcntlArg::F_GET_SEALS).by_number() {
        Ok(found) if SealFlag::from_bits_retain(found).contains(seals()) => {
            Ok(Some(u64::try_from(fstat(&file).by_number()?.st_size).unwrap_or_default()))
        }
        // It is not a memory file.
        Ok(_) | Err(Errno::EINVAL) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Reads up to `length` bytes from the start of a file. Leaves its position, which duplicates share, unchanged.
pub fn read_from_start(file: impl AsFd, length: usize) -> io::Result<Vec<u8>> {
    let mut content = vec![0; length];
    let mut read = 0;
    while read < length {
        match pread(&file, &mut content[read..], read as i64).by_number() {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    content.truncate(read);
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Seek, SeekFrom, Write};

    #[test]
    fn a_sealed_file_is_read_as_it_was_written_and_changes_no_more() {
        let content: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
        let file = sealed_file(&content).unwrap();
        assert_eq!(sealed_length(&file).unwrap(), Some(300_000));
        let mut file = File::from(file);
        file.seek(SeekFrom::End(0)).unwrap();
        assert_eq!(read_from_start(&file, 300_000).unwrap(), content);
        assert_eq!(read_from_start(&file, 300_001).unwrap().len(), 300_000);
        file.seek(SeekFrom::Start(0)).unwrap();
        assert!(file.write_all(b"x").is_err() && file.set_len(1).is_err() && file.set_len(300_001).is_err());
    }

    #[test]
    fn whatever_can_still_change_is_not_sealed() {
        assert_eq!(sealed_length(tempfile::tempfile().unwrap()).unwrap(), None);
        let (pipe, _writer) = std::io::pipe().unwrap();
        assert_eq!(sealed_length(&pipe).unwrap(), None);
        for missing in seals() {
            let file = memory().unwrap();
            fcntl(&file, FcntlArg::F_ADD_SEALS(seals().difference(missing))).unwrap();
            assert_eq!(sealed_length(&file).unwrap(), None, "{missing:?}");
        }
    }
}
