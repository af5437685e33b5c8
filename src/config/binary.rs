//! Whether a path can be executed, and why not.

use std::io;
use std::path::{Path, PathBuf};

use crate::sys::path::is_executable;

/// Why a binary cannot be started. `Display` names the path and the cause in one clause; [`BinaryError::hint`] says
/// what to do.
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
    /// The path cannot be examined.
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

/// Checks that `path` leads to a regular file that this process may execute. Does not check its contents.
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
    if is_executable(path) { Ok(()) } else { Err(BinaryError::NotExecutable(path.to_owned())) }
}

/// The directories of system programs. Some of these are several programs in one, which use the name of the call to
/// tell which.
const SYSTEM: [&str; 8] =
    ["/bin", "/sbin", "/lib", "/usr/bin", "/usr/sbin", "/usr/lib", "/usr/libexec", "/nix/store"];

/// Returns a path that does not change when a link in it does: `/srv/s3/releases/7/s3` for `/srv/s3/current/s3`. The
/// last component stays if it is a link to a system program, or the python of a virtual environment, because such a
/// program uses its name to find out what to do. A missing path stays as it is. Reads the file system.
pub fn resolve(path: &Path) -> PathBuf {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return path.to_owned() };
    let Ok(directory) = directory.canonicalize() else { return path.to_owned() };
    let named = directory.join(name);
    let Ok(real) = path.canonicalize() else { return named };
    let is_environment = directory.ancestors().take(2).any(|above| above.join("pyvenv.cfg").is_file());
    if is_environment || SYSTEM.iter().any(|system| real.starts_with(system)) { named } else { real }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_link_that_is_changed_later_changes_nothing() {
        use std::fs::{create_dir_all, write};
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        create_dir_all(top.join("releases/7/venv/bin")).unwrap();
        write(top.join("releases/7/s3"), "").unwrap();
        write(top.join("releases/7/venv/pyvenv.cfg"), "").unwrap();
        symlink("releases/7", top.join("current")).unwrap();
        symlink("releases/7/s3", top.join("s3")).unwrap();
        symlink("/bin/sh", top.join("releases/7/shell")).unwrap();
        symlink("../../s3", top.join("releases/7/venv/bin/python")).unwrap();
        for (path, real) in [
            ("current/s3", "releases/7/s3"),
            ("s3", "releases/7/s3"),
            ("current/shell", "releases/7/shell"),
            ("current/venv/bin/python", "releases/7/venv/bin/python"),
            ("current/none", "releases/7/none"),
            ("none/none", "none/none"),
        ] {
            assert_eq!(resolve(&top.join(path)), top.join(real));
        }
    }

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
