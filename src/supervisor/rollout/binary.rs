//! The content hash of a binary, cached as long as the file looks the same.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use handoff_protocol::record::Binary;

use crate::store::{FileStamp, Id};
use crate::sys::regular;

/// The cached hashes.
#[derive(Debug, Clone, Default)]
pub(in crate::supervisor) struct Hashes(Arc<Mutex<HashMap<FileStamp, [u8; 32]>>>);

/// Maximum number of cached hashes.
const REMEMBERED: usize = 256;

impl Hashes {
    /// The binary at `path`. Reads the file unless its hash is cached. Blocks on the file system.
    pub(in crate::supervisor) fn identify(&self, path: &Path) -> io::Result<Binary> {
        // The file stays open, so that a file that replaces it meanwhile is not mistaken for it.
        let file = regular::open_to_read(path)?;
        let look = stamp_of(&file)?;
        let known = self.known().get(&look).copied();
        let sha256 = match known {
            Some(sha256) => sha256,
            None => {
                let sha256 = Id::of(&file)?.0;
                if self::stamp_of(&file)? == look {
                    let mut known = self.known();
                    if known.len() >= REMEMBERED {
                        known.clear();
                    }
                    known.insert(look, sha256);
                }
                sha256
            }
        };
        Ok(Binary { path: path.to_string_lossy().into_owned(), sha256 })
    }

    /// The same, without the cache.
    pub(in crate::supervisor) fn identify_blocking(path: &Path) -> io::Result<Binary> {
        let sha256 = Id::of(regular::open_to_read(path)?)?.0;
        Ok(Binary { path: path.to_string_lossy().into_owned(), sha256 })
    }

    fn known(&self) -> MutexGuard<'_, HashMap<FileStamp, [u8; 32]>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stamp_of(file: &File) -> io::Result<FileStamp> {
    Ok(FileStamp::of(&file.metadata()?))
}

/// Lower-case hexadecimal, as `sha256sum` prints it.
pub(in crate::supervisor) fn hex(sha256: &[u8; 32]) -> String {
    Id(*sha256).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_remembered_until_the_file_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("binary");
        std::fs::write(&path, "abc").unwrap();
        let hashes = Hashes::default();
        let found = hashes.identify(&path).unwrap();
        // FIPS 180-2, appendix B.1.
        assert_eq!(hex(&found.sha256), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(hashes.known().len(), 1);
        assert_eq!(hashes.identify(&path).unwrap(), found);
        assert_eq!(hashes.known().len(), 1);
        std::fs::write(&path, "abcd").unwrap();
        assert_ne!(hashes.identify(&path).unwrap(), found);
        assert_eq!(hashes.known().len(), 2);
    }

    #[test]
    fn a_missing_file_is_an_error() {
        let error = Hashes::default().identify(Path::new("/nonexistent/binary")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
