//! Whether a path can be executed, and if not, why not.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

/// Why a binary cannot be started. `Display` names the path and the cause in one clause; [`BinaryError::hint`]
/// says what to do.
#[derive(Debug, thiserror::Error)]
pub enum BinaryError {
    /// Nothing is at the path.
    #[error("{0:?} does not exist")]
    Missing(PathBuf),
    /// A directory, a socket or the like is at the path.
    #[error("{0:?} is {1}, not a regular file")]
    NotAFile(PathBuf, &'static str),
    /// A regular file that this user may not execute.
    #[error("{0:?} is not executable for this user")]
    NotExecutable(PathBuf),
    /// The path could not be looked at.
    #[error("{0:?} cannot be examined: {1}")]
    Unreadable(PathBuf, io::Error),
}

impl BinaryError {
    /// What the user can do about it, one clause.
    pub fn hint(&self) -> String {
        match self {
            BinaryError::Missing(_) => "build or install it there, or correct the path".into(),
            BinaryError::NotAFile(..) => "name the program file itself".into(),
            BinaryError::NotExecutable(path) => format!("run: chmod +x {}", path.display()),
            BinaryError::Unreadable(..) => "check the permissions of the directories on the way".into(),
        }
    }
}

/// Checks that `path` leads to a regular file that this process may execute. Says nothing about what is in it.
pub fn check_binary(path: &Path) -> Result<(), BinaryError> {
    let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => BinaryError::Missing(path.to_owned()),
        _ => BinaryError::Unreadable(path.to_owned(), error),
    })?;
    if metadata.is_dir() {
        return Err(BinaryError::NotAFile(path.to_owned(), "a directory"));
    }
    if !metadata.is_file() {
        return Err(BinaryError::NotAFile(path.to_owned(), "a special file"));
    }
    access(path, Access::EXEC_OK).map_err(|_| BinaryError::NotExecutable(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn each_obstacle_has_its_own_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("server");
        assert!(matches!(check_binary(&file), Err(BinaryError::Missing(_))));
        assert!(matches!(check_binary(dir.path()), Err(BinaryError::NotAFile(_, "a directory"))));
        assert!(matches!(
            check_binary(Path::new("/dev/null")),
            Err(BinaryError::NotAFile(_, "a special file"))
        ));

        std::fs::write(&file, "#!/bin/sh\n").unwrap();
        let mode = |bits| std::fs::set_permissions(&file, PermissionsExt::from_mode(bits)).unwrap();
        mode(0o644);
        assert!(matches!(check_binary(&file), Err(BinaryError::NotExecutable(_))));
        assert!(matches!(check_binary(&file.join("below")), Err(BinaryError::Missing(_))));
        mode(0o755);
        assert!(check_binary(&file).is_ok());
    }
}
