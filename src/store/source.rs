//! The given file, opened once, so that the checked file is the copied one.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::error::Error;
use super::meta::FileStamp;
use super::privileges;
use crate::config::check_binary;
use crate::sys::exposed::{Exposed, FileUse, check_exposure, check_found};
use crate::sys::path::NONBLOCK;

/// The given file.
#[derive(Debug)]
pub(super) struct SourceFile {
    pub(super) path: PathBuf,
    pub(super) form: SourceForm,
    /// The file; for a tree, its directory.
    pub(super) file: File,
    pub(super) stamp: FileStamp,
}

/// How it is imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SourceForm {
    /// Started as it is.
    Program,
    /// Unpacked.
    Archive(ArchiveFormat),
    /// Copied with all its content.
    Tree,
}

/// The format of an archive, determined by its first bytes and not its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ArchiveFormat {
    TarGz,
    TarXz,
    Zip,
}

/// RFC 1952; the format of .xz, 2.1.1.1; APPNOTE.TXT, 4.3.7.
const MAGICS: [(&[u8], ArchiveFormat); 3] = [
    (b"\x1f\x8b", ArchiveFormat::TarGz),
    (b"\xfd7zXZ\0", ArchiveFormat::TarXz),
    (b"PK\x03\x04", ArchiveFormat::Zip),
];

/// The kernel's limit of links to follow (path_resolution(7)).
const LINKS_MAX: usize = 40;

impl SourceFile {
    /// Opens `path`. Refuses what other users can write, and what is neither executable nor an archive.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        match check_exposure(path, FileUse::Copied) {
            // The file itself is checked after the open, once it is known to be a regular file.
            Ok(_) | Err(Exposed::File(_)) => {}
            Err(cause) => return Err(exposed(path, cause)),
        }
        // Opening a fifo without a writer would block.
        let file = File::options()
            .read(true)
            .custom_flags(NONBLOCK)
            .open(path)
            .map_err(|error| missing(path, error))?;
        let found = file.metadata().map_err(Error::io("examine it", path))?;
        let look = FileStamp::of(&found);
        let form = if found.is_dir() { SourceForm::Tree } else { form_of_file(path, &file, &found)? };
        check_found(path, &found).map_err(|cause| exposed(path, cause))?;
        Ok(Self { path: path.to_owned(), form, file, stamp: look })
    }

    /// Whether the file is still the opened one, neither written nor replaced.
    pub(super) fn is_unchanged(&self) -> Result<(), Error> {
        let now = self.file.metadata().map_err(Error::io("examine it", &self.path))?;
        let there = std::fs::metadata(&self.path).map(|found| (found.dev(), found.ino())).ok();
        let same = if self.form == SourceForm::Tree {
            (now.dev(), now.ino()) == (self.stamp.device, self.stamp.inode)
        } else {
            FileStamp::of(&now) == self.stamp
        };
        match same && there == Some((self.stamp.device, self.stamp.inode)) {
            true => Ok(()),
            false => Err(changed(&self.path)),
        }
    }

    /// The name of the file.
    pub(super) fn name(&self) -> &OsStr {
        self.path.file_name().unwrap_or(OsStr::new("program"))
    }

    /// The directory of the Python virtual environment that contains it, if any.
    pub(super) fn virtual_environment(&self) -> Option<PathBuf> {
        let above = |at: PathBuf| at.ancestors().skip(1).take(2).map(Path::to_owned).collect::<Vec<_>>();
        links(&self.path).into_iter().flat_map(above).find(|directory| directory.join("pyvenv.cfg").is_file())
    }
}

/// Whether `path` could be imported, as far as can be determined without reading it: a program, an archive, or a
/// directory that other users cannot replace. Accesses the file system.
pub fn check_source(path: &Path) -> Result<(), Error> {
    check_named(path)?;
    let given = SourceFile::open(path)?;
    privileges::check(&given.file, path)
}

/// Whether only trusted users can change what a service file names. Accesses the file system.
pub fn check_named(path: &Path) -> Result<(), Error> {
    check_exposure(path, FileUse::Named).map(|_| ()).map_err(|cause| exposed(path, cause))
}

/// It changed during the import.
pub(super) fn changed(path: &Path) -> Error {
    let cause = "it was written or replaced while it was copied";
    Error::refused(path, cause, "retry when it is complete; best, rename a complete file to this path")
}

/// Any user could change the given file or its path.
pub(super) fn exposed(path: &Path, cause: Exposed) -> Error {
    match cause {
        Exposed::Unreadable(_, error) => missing(path, error),
        cause => Error::refused(path, cause.to_string(), cause.hint()),
    }
}

fn missing(path: &Path, error: std::io::Error) -> Error {
    match check_binary(path) {
        Err(told) => told.into(),
        Ok(()) => Error::io("open it", path)(error),
    }
}

fn form_of_file(path: &Path, file: &File, found: &Metadata) -> Result<SourceForm, Error> {
    let mut start = Vec::new();
    if found.is_file() {
        file.take(8).read_to_end(&mut start).map_err(Error::io("read it", path))?;
    }
    match MAGICS.iter().find(|(magic, _)| start.starts_with(magic)) {
        Some((_, format)) => Ok(SourceForm::Archive(*format)),
        None => {
            check_binary(path)?;
            Ok(SourceForm::Program)
        }
    }
}

/// The path and its link targets, one after the other.
fn links(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_owned()];
    while found.len() < LINKS_MAX
        && let Some(at) = found.last()
        && let Ok(target) = std::fs::read_link(at)
    {
        let target = at.parent().unwrap_or(Path::new("/")).join(target);
        found.push(target);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{Permissions, create_dir, set_permissions, write};
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn program(path: &Path) {
        write(path, "#!/bin/sh\n").unwrap();
        mode(path, 0o755);
    }

    fn mode(path: &Path, bits: u32) {
        set_permissions(path, Permissions::from_mode(bits)).unwrap();
    }

    fn told(path: &Path) -> String {
        SourceFile::open(path).unwrap_err().to_string()
    }

    #[test]
    fn what_everybody_may_write_is_refused_wherever_it_stands() {
        let directory = tempfile::tempdir().unwrap();
        let (inner, link) = (directory.path().join("inner"), directory.path().join("link"));
        create_dir(&inner).unwrap();
        let file = inner.join("server");
        program(&file);
        symlink("inner/server", &link).unwrap();
        assert_eq!(SourceFile::open(&link).unwrap().form, SourceForm::Program);

        mode(&file, 0o757);
        assert!(told(&file).contains("server\" is world-writable"), "{}", told(&file));
        mode(&file, 0o755);
        mode(&inner, 0o777);
        for path in [&file, &link] {
            assert!(told(path).contains("inner\" is world-writable"), "{}", told(path));
        }
        mode(&inner, 0o1777);
        assert!(SourceFile::open(&file).is_ok(), "in a directory with the sticky bit others cannot");
    }

    #[test]
    fn each_obstacle_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("server");
        assert!(told(&file).contains("does not exist"));
        symlink("nowhere", directory.path().join("dangling")).unwrap();
        assert!(told(&directory.path().join("dangling")).contains("does not exist"));
        write(&file, "text").unwrap();
        assert!(told(&file).contains("not executable"));
        assert!(told(Path::new("/dev/null")).contains("a special file"), "{}", told(Path::new("/dev/null")));
        let fifo = directory.path().join("fifo");
        crate::sys::path::make_fifo(&fifo, 0o700).unwrap();
        assert!(told(&fifo).contains("a special file"));
        for (magic, format) in MAGICS {
            write(&file, magic).unwrap();
            assert_eq!(
                SourceFile::open(&file).unwrap().form,
                SourceForm::Archive(format),
                "needs no execute bit"
            );
        }
        assert_eq!(SourceFile::open(directory.path()).unwrap().form, SourceForm::Tree);
    }

    #[test]
    fn a_change_is_noticed_in_place_and_by_rename() {
        let directory = tempfile::tempdir().unwrap();
        let (file, other) = (directory.path().join("server"), directory.path().join("other"));
        program(&file);
        program(&other);
        let given = SourceFile::open(&file).unwrap();
        assert!(given.is_unchanged().is_ok());
        std::fs::rename(&other, &file).unwrap();
        assert!(given.is_unchanged().unwrap_err().to_string().contains("replaced"));
        let given = SourceFile::open(&file).unwrap();
        write(&file, "#!/bin/sh\n: other").unwrap();
        assert!(given.is_unchanged().is_err());
    }

    #[test]
    fn a_virtual_environment_is_known_by_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let bin = directory.path().join("bin");
        create_dir(&bin).unwrap();
        program(&bin.join("python"));
        let found = || SourceFile::open(&bin.join("python")).unwrap().virtual_environment();
        assert_eq!(found(), None);
        write(directory.path().join("pyvenv.cfg"), "").unwrap();
        assert_eq!(found().as_deref(), Some(directory.path()));
    }
}
