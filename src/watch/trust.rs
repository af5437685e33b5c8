//! Whether a file that appeared at a watched path may be run.

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::sys::exposed::{Exposed, FileUse, check_exposure};
use crate::sys::path::{NOFOLLOW, NONBLOCK};
use crate::sys::user::effective_user;

/// Why it is not taken. `Display` is a clause that names the path.
#[derive(Debug, thiserror::Error)]
pub enum Untrusted {
    /// It is not what a binary can be.
    #[error("{0:?} is not a regular file, or a link to one")]
    NotAFile(PathBuf),
    /// Another user could have put it there.
    #[error("{0:?} belongs to user {1}, who is neither root nor the user of the daemon")]
    Foreign(PathBuf, u32),
    /// Any user could have changed it.
    #[error(transparent)]
    Exposed(#[from] Exposed),
    /// It cannot be looked at.
    #[error("{0:?} cannot be read: {1}")]
    Unreadable(PathBuf, io::Error),
}

/// Opens the file at a path if only root and the user of this process can have put it there: the file, its directory,
/// and the same of a link that leads to it belong to one of the two, and nothing on the way is world-writable. Gives the
/// path without links, too. Looks at the file system.
pub fn open_trusted(path: &Path) -> Result<(PathBuf, File), Untrusted> {
    let found = owned_metadata(path)?;
    let target = check_exposure(path, FileUse::InPlace)?;
    if found.is_symlink() {
        let next = std::fs::read_link(path).map_err(|error| Untrusted::Unreadable(path.to_owned(), error))?;
        let next = path.parent().unwrap_or(Path::new("/")).join(next);
        // Any user may have made a link that a link points to.
        if owned_metadata(&next)?.is_symlink() {
            return Err(Untrusted::NotAFile(path.to_owned()));
        }
        owned_metadata(&target)?;
    }
    // Opening a fifo must not block, and a path that became a link meanwhile is not followed.
    let flags = NOFOLLOW | NONBLOCK;
    let unreadable = |error| Untrusted::Unreadable(target.clone(), error);
    let file = File::options().read(true).custom_flags(flags).open(&target).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(Untrusted::NotAFile(path.to_owned()));
    }
    Ok((target, file))
}

/// The file at a path itself, if the file and its directory have trusted owners.
fn owned_metadata(path: &Path) -> Result<std::fs::Metadata, Untrusted> {
    let own = effective_user();
    let owned = |path: &Path, found: std::fs::Metadata| match found.uid() {
        uid if uid == 0 || uid == own => Ok(found),
        uid => Err(Untrusted::Foreign(path.to_owned(), uid)),
    };
    let unreadable = |error| Untrusted::Unreadable(path.to_owned(), error);
    let directory = path.parent().unwrap_or(Path::new("/"));
    owned(directory, std::fs::metadata(directory).map_err(unreadable)?)?;
    owned(path, path.symlink_metadata().map_err(unreadable)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    #[test]
    fn only_what_root_or_the_user_put_there_is_opened() {
        let root = tempfile::tempdir().unwrap();
        let (file, link, twice) = (root.path().join("f"), root.path().join("l"), root.path().join("t"));
        fs::write(&file, "x").unwrap();
        symlink("f", &link).unwrap();
        symlink("l", &twice).unwrap();
        for path in [&file, &link] {
            assert_eq!(open_trusted(path).unwrap().0, file.canonicalize().unwrap());
        }
        assert!(matches!(open_trusted(&twice), Err(Untrusted::NotAFile(_))));
        assert!(matches!(open_trusted(root.path()), Err(Untrusted::NotAFile(_))));
        assert!(matches!(open_trusted(&root.path().join("none")), Err(Untrusted::Unreadable(..))));
        fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).unwrap();
        assert!(matches!(open_trusted(&link), Err(Untrusted::Exposed(Exposed::File(_)))));
        fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
        // Only root can give a file away.
        if chown(&file, Some(12_345), None).is_ok() {
            assert!(matches!(open_trusted(&link), Err(Untrusted::Exposed(Exposed::Owned(_, 12_345)))));
            chown(&file, Some(0), None).unwrap();
            chown(root.path(), Some(12_345), None).unwrap();
            assert!(matches!(open_trusted(&file), Err(Untrusted::Foreign(_, 12_345))));
        }
        let fifo = root.path().join("fifo");
        crate::sys::path::make_fifo(&fifo, 0o600).unwrap();
        assert!(open_trusted(&fifo).is_err());
    }
}
