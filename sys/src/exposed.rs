//! Whether an untrusted user could change the file at a path.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use super::errno::Errno;
use super::user::effective_user;

/// Maximum number of symbolic links to follow in one path: the kernel's limit (path_resolution(7)).
const LINKS_MAX: usize = 40;
const WRITABLE_BY_OTHERS: u32 = 0o002;
const WRITABLE_BY_GROUP: u32 = 0o020;
const STICKY: u32 = 0o1000;

/// Why a path is not trusted. `Display` is a clause that names the path.
#[derive(Debug, thiserror::Error)]
pub enum Exposed {
    /// The file is world-writable.
    #[error("{0:?} is world-writable")]
    File(PathBuf),
    /// The directory is world-writable, so any user can replace the file.
    #[error("the directory {0:?} is world-writable")]
    Directory(PathBuf),
    /// It lies in a world-writable directory and belongs to another user.
    #[error("{0:?} belongs to user {1} and lies in a world-writable directory")]
    Foreign(PathBuf, u32),
    /// Root would run it, and it belongs to another user.
    #[error("{0:?} belongs to user {1}, who could change what root runs")]
    Owned(PathBuf, u32),
    /// Root would run it, and a group may write to it.
    #[error("{0:?} is writable by group {1}, whose members could change what root runs")]
    Group(PathBuf, u32),
    /// It could not be examined.
    #[error("{0:?} cannot be examined: {1}")]
    Unreadable(PathBuf, io::Error),
}

impl Exposed {
    /// How the user can fix it, one clause.
    pub fn hint(&self) -> String {
        match self {
            Self::File(path) | Self::Directory(path) => format!("run: chmod o-w {}", path.display()),
            Self::Owned(path, _) => {
                format!("run: chown root {}; or run the daemon as that user", path.display())
            }
            Self::Group(path, _) => format!("run: chmod g-w {}", path.display()),
            Self::Foreign(..) => "put it where only its owner may write".to_owned(),
            Self::Unreadable(..) => {
                "check the path, and the permissions of the directories on the way".to_owned()
            }
        }
    }
}

/// How the file will be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileUse {
    /// Run in place. The path may go through a directory such as `/tmp` if the entry there belongs to root or to this
    /// process's user, but the file must not lie directly in such a directory.
    InPlace,
    /// Named in a service file, and copied later without review. If root copies it, the file and every directory on the
    /// path must belong to root and not be group-writable. The same holds for [`FileUse::InPlace`].
    Named,
    /// Copied, and the copy is verified. The owner does not matter. It may lie in a sticky directory such as `/tmp`,
    /// where only its owner can replace it.
    Copied,
}

/// Resolves `path`, which is absolute, through its symbolic links. Refuses a world-writable file or directory on the
/// way. Returns the path without links. Blocks on the file system.
pub fn check_exposure(path: &Path, purpose: FileUse) -> Result<PathBuf, Exposed> {
    let own = effective_user();
    let mut at = PathBuf::from("/");
    let mut ahead = steps(path);
    let mut links = 0;
    let mut open_to_all = false;
    while let Some(step) = ahead.pop_front() {
        if step == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&step);
        let unreadable = |error| Exposed::Unreadable(next.clone(), error);
        let found = std::fs::symlink_metadata(&next).map_err(unreadable)?;
        if open_to_all && found.uid() != 0 && found.uid() != own {
            return Err(Exposed::Foreign(next, found.uid()));
        }
        if found.is_symlink() {
            links += 1;
            if links > LINKS_MAX {
                return Err(unreadable(Errno::ELOOP.into()));
            }
            let target = std::fs::read_link(&next).map_err(unreadable)?;
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            steps(&target).into_iter().rev().for_each(|step| ahead.push_front(step));
            open_to_all = false;
            continue;
        }
        check_found(&next, &found)?;
        if own == 0 && purpose != FileUse::Copied {
            check_owner(&next, &found)?;
        }
        if open_to_all && !found.is_dir() {
            return Err(Exposed::Directory(at));
        }
        open_to_all = found.mode() & WRITABLE_BY_OTHERS != 0 && purpose == FileUse::InPlace;
        at = next;
    }
    Ok(at)
}

/// Refuses a world-writable file, and a world-writable directory without the sticky bit. `found` is the metadata of
/// `path`; for a symbolic link the check always passes.
pub fn check_found(path: &Path, found: &Metadata) -> Result<(), Exposed> {
    let is_open = found.mode() & WRITABLE_BY_OTHERS != 0 && !found.is_symlink();
    match found.is_dir() {
        true if is_open && found.mode() & STICKY == 0 => Err(Exposed::Directory(path.to_owned())),
        false if is_open => Err(Exposed::File(path.to_owned())),
        _ => Ok(()),
    }
}

/// Refuses a file that users other than root can change.
fn check_owner(path: &Path, found: &Metadata) -> Result<(), Exposed> {
    if found.uid() != 0 {
        return Err(Exposed::Owned(path.to_owned(), found.uid()));
    }
    let is_open = found.mode() & WRITABLE_BY_GROUP != 0 && found.gid() != 0;
    match is_open && !(found.is_dir() && found.mode() & STICKY != 0) {
        true => Err(Exposed::Group(path.to_owned(), found.gid())),
        false => Ok(()),
    }
}

fn steps(path: &Path) -> VecDeque<OsString> {
    let step = |component: Component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_file_that_only_its_owner_can_change_is_trusted() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(check_exposure(&file, FileUse::InPlace).unwrap(), file.canonicalize().unwrap());
        assert!(matches!(
            check_exposure(&root.path().join("none"), FileUse::InPlace),
            Err(Exposed::Unreadable(..))
        ));
        chmod(&file, 0o666);
        assert!(matches!(check_exposure(&file, FileUse::InPlace), Err(Exposed::File(path)) if path == file));
    }

    #[test]
    fn every_directory_on_the_way_counts_and_links_are_followed() {
        let root = tempfile::tempdir().unwrap();
        let (safe, open) = (root.path().join("safe"), root.path().join("open"));
        fs::create_dir_all(safe.join("below")).unwrap();
        fs::create_dir(&open).unwrap();
        let file = safe.join("below/file");
        fs::write(&file, "").unwrap();
        symlink(&file, open.join("link")).unwrap();
        symlink("../safe/below/../below/file", safe.join("link")).unwrap();
        assert_eq!(
            check_exposure(&safe.join("link"), FileUse::InPlace).unwrap(),
            file.canonicalize().unwrap()
        );
        assert!(check_exposure(&open.join("link"), FileUse::InPlace).is_ok());
        chmod(&open, 0o777);
        assert!(matches!(
            check_exposure(&open.join("link"), FileUse::InPlace),
            Err(Exposed::Directory(path)) if path == open
        ));
        chmod(&safe, 0o777);
        assert!(
            matches!(check_exposure(&file, FileUse::InPlace), Err(Exposed::Directory(path)) if path == safe)
        );
        symlink("round", root.path().join("round")).unwrap();
        assert!(matches!(
            check_exposure(&root.path().join("round"), FileUse::InPlace),
            Err(Exposed::Unreadable(..))
        ));
    }

    #[test]
    fn a_sticky_directory_is_passed_through_and_holds_nothing_trusted_itself() {
        let root = tempfile::tempdir().unwrap();
        let (shared, own) = (root.path().join("shared"), root.path().join("shared/own"));
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join("file"), "").unwrap();
        fs::write(shared.join("file"), "").unwrap();
        chmod(&shared, 0o1777);
        assert!(check_exposure(&own.join("file"), FileUse::InPlace).is_ok());
        assert!(check_exposure(&shared.join("file"), FileUse::Copied).is_ok());
        assert!(matches!(
            check_exposure(&shared.join("file"), FileUse::InPlace),
            Err(Exposed::Directory(path)) if path == shared
        ));
    }

    #[test]
    fn what_root_runs_is_changed_by_nobody_else() {
        use std::os::unix::fs::chown;
        let root = tempfile::tempdir().unwrap();
        let (place, link) = (root.path().join("place"), root.path().join("link"));
        let file = place.join("file");
        fs::create_dir(&place).unwrap();
        fs::write(&file, "").unwrap();
        symlink(&file, &link).unwrap();
        // Only root can give a file away; other users can test nothing here.
        if chown(&file, Some(12_345), None).is_err() {
            return;
        }
        for purpose in [FileUse::Named, FileUse::InPlace] {
            let told = || check_exposure(&link, purpose).unwrap_err();
            assert!(matches!(told(), Exposed::Owned(path, 12_345) if path == file));
            chown(&file, Some(0), None).unwrap();
            chown(&place, Some(12_345), None).unwrap();
            assert!(matches!(told(), Exposed::Owned(path, 12_345) if path == place));
            chown(&place, Some(0), Some(12_345)).unwrap();
            assert!(check_exposure(&link, purpose).is_ok());
            chmod(&place, 0o775);
            assert!(matches!(told(), Exposed::Group(path, 12_345) if path == place));
            assert!(check_exposure(&link, FileUse::Copied).is_ok());
            chmod(&place, 0o755);
            chown(&place, Some(0), Some(0)).unwrap();
            chown(&file, Some(12_345), None).unwrap();
        }
    }

    #[test]
    fn in_a_sticky_directory_a_stranger_is_found_out() {
        let root = tempfile::tempdir().unwrap();
        let theirs = root.path().join("theirs");
        fs::create_dir(&theirs).unwrap();
        fs::write(theirs.join("file"), "").unwrap();
        chmod(root.path(), 0o1777);
        // Only root can give a file away.
        if std::os::unix::fs::chown(&theirs, Some(12_345), None).is_ok() {
            assert!(matches!(
                check_exposure(&theirs.join("file"), FileUse::InPlace),
                Err(Exposed::Foreign(_, 12_345))
            ));
            assert!(check_exposure(&theirs.join("file"), FileUse::Copied).is_ok());
        }
    }
}
