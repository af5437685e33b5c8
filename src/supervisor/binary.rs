//! The content hash of a binary, remembered as long as the file looks the same.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;

use handoff_protocol::record::Binary;
use sha2::{Digest, Sha256};

/// What changes when a file is written or replaced. `ctime` cannot be set back by a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Look {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Hashes that were computed before.
#[derive(Debug, Clone, Default)]
pub(super) struct Hashes(Rc<RefCell<HashMap<Look, [u8; 32]>>>);

/// A file that is kept open while its hash is computed, so that a file that replaces it meanwhile is not mistaken for it.
const REMEMBERED: usize = 256;

impl Hashes {
    /// The binary at `path`. Reads the file on another thread unless its hash is known.
    pub(super) async fn identify(&self, path: &Path) -> io::Result<Binary> {
        let file = File::open(path)?;
        let look = look(&file)?;
        let known = self.0.borrow().get(&look).copied();
        let sha256 = match known {
            Some(sha256) => sha256,
            None => {
                let (sha256, after) = tokio::task::spawn_blocking(move || {
                    Ok::<_, io::Error>((hash(&file)?, self::look(&file)?))
                })
                .await
                .map_err(io::Error::other)??;
                if after == look {
                    let mut known = self.0.borrow_mut();
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

    /// Like [`Hashes::identify`], but blocks.
    pub(super) fn identify_blocking(path: &Path) -> io::Result<Binary> {
        let sha256 = hash(&File::open(path)?)?;
        Ok(Binary { path: path.to_string_lossy().into_owned(), sha256 })
    }

    /// The hash, if it is known without reading the file.
    pub(super) fn known(&self, path: &Path) -> Option<Binary> {
        let look = look(&File::open(path).ok()?).ok()?;
        let sha256 = *self.0.borrow().get(&look)?;
        Some(Binary { path: path.to_string_lossy().into_owned(), sha256 })
    }
}

fn look(file: &File) -> io::Result<Look> {
    let meta = file.metadata()?;
    Ok(Look {
        device: meta.dev(),
        inode: meta.ino(),
        size: meta.size(),
        modified: (meta.mtime(), meta.mtime_nsec()),
        changed: (meta.ctime(), meta.ctime_nsec()),
    })
}

/// The content hash of an open file. Blocks.
pub(super) fn hash(mut file: &File) -> io::Result<[u8; 32]> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().into()),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// Lower-case hexadecimal, as `sha256sum` prints it.
pub(super) fn hex(sha256: &[u8; 32]) -> String {
    sha256.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_hash_is_remembered_until_the_file_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("binary");
        std::fs::write(&path, "abc").unwrap();
        let hashes = Hashes::default();
        assert!(hashes.known(&path).is_none());
        let found = hashes.identify(&path).await.unwrap();
        // FIPS 180-2, appendix B.1.
        assert_eq!(hex(&found.sha256), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(hashes.known(&path), Some(found.clone()));
        std::fs::write(&path, "abcd").unwrap();
        assert!(hashes.known(&path).is_none());
        assert_ne!(hashes.identify(&path).await.unwrap(), found);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_missing_file_is_an_error() {
        let error = Hashes::default().identify(Path::new("/nonexistent/binary")).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
