//! What was given: opened once, so that what is looked at is what is copied.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::error::Error;
use super::meta::Look;
use super::privileges;
use crate::config::check_binary;
use crate::sys::exposed::{Exposed, Use, check_exposure, check_found};
use crate::sys::path::NONBLOCK;

/// What was given.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) path: PathBuf,
    pub(super) form: Form,
    /// The file; of a tree, its directory.
    pub(super) file: File,
    pub(super) look: Look,
}

/// What has to be done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// It is started as it is.
    Program,
    /// It is unpacked.
    Archive(Format),
    /// It is copied with everything below it.
    Tree,
}

/// How an archive is packed. Told by its first bytes, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    TarGz,
    TarXz,
    Zip,
}

/// RFC 1952; the format of .xz, 2.1.1.1; APPNOTE.TXT, 4.3.7.
const MAGICS: [(&[u8], Format); 3] =
    [(b"\x1f\x8b", Format::TarGz), (b"\xfd7zXZ\0", Format::TarXz), (b"PK\x03\x04", Format::Zip)];

/// As many links are followed by the kernel (path_resolution(7)).
const LINKS_MAX: usize = 40;

impl Given {
    /// Opens what is at `path`. Refuses what others can write, and what cannot be started and is no archive.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        match check_exposure(path, Use::Copied) {
            // The file itself is looked at when it is open, and known to be one.
            Ok(_) | Err(Exposed::File(_)) => {}
            Err(cause) => return Err(exposed(path, cause)),
        }
        // A fifo that is nobody's would hold an open up.
        let file = File::options()
            .read(true)
            .custom_flags(NONBLOCK)
            .open(path)
            .map_err(|error| missing(path, error))?;
        let found = file.metadata().map_err(Error::io("examine it", path))?;
        let look = Look::of(&found);
        let form = if found.is_dir() { Form::Tree } else { form_of_file(path, &file, &found)? };
        check_found(path, &found).map_err(|cause| exposed(path, cause))?;
        Ok(Self { path: path.to_owned(), form, file, look })
    }

    /// Whether it still is what was opened: nobody has written it or put another in its place.
    pub(super) fn is_unchanged(&self) -> Result<(), Error> {
        let now = self.file.metadata().map_err(Error::io("examine it", &self.path))?;
        let there = std::fs::metadata(&self.path).map(|found| (found.dev(), found.ino())).ok();
        let same = if self.form == Form::Tree {
            (now.dev(), now.ino()) == (self.look.device, self.look.inode)
        } else {
            Look::of(&now) == self.look
        };
        match same && there == Some((self.look.device, self.look.inode)) {
            true => Ok(()),
            false => Err(changed(&self.path)),
        }
    }

    /// The name of the file.
    pub(super) fn name(&self) -> &OsStr {
        self.path.file_name().unwrap_or(OsStr::new("program"))
    }

    /// The directory of the virtual environment of Python that it is in, if it is in one.
    pub(super) fn virtual_environment(&self) -> Option<PathBuf> {
        let above = |at: PathBuf| at.ancestors().skip(1).take(2).map(Path::to_owned).collect::<Vec<_>>();
        links(&self.path).into_iter().flat_map(above).find(|directory| directory.join("pyvenv.cfg").is_file())
    }
}

/// Whether what is at `path` can be taken in, as far as that is told without reading it: a program, an archive, or a directory,
/// which nobody else can exchange. Looks at the file system.
pub fn check_source(path: &Path) -> Result<(), Error> {
    check_named(path)?;
    let given = Given::open(path)?;
    privileges::check(&given.file, path)
}

/// Whether what a service file names can be changed by nobody but who may. Looks at the file system.
pub fn check_named(path: &Path) -> Result<(), Error> {
    check_exposure(path, Use::Named).map(|_| ()).map_err(|cause| exposed(path, cause))
}

/// It was not the same at the end as at the beginning.
pub(super) fn changed(path: &Path) -> Error {
    let cause = "it was written or replaced while it was copied";
    Error::refused(path, cause, "ask again when it is whole; best, rename a whole file to this path")
}

/// What was given, or what is on the way to it, could be changed by anybody.
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

fn form_of_file(path: &Path, file: &File, found: &Metadata) -> Result<Form, Error> {
    let mut start = Vec::new();
    if found.is_file() {
        file.take(8).read_to_end(&mut start).map_err(Error::io("read it", path))?;
    }
    match MAGICS.iter().find(|(magic, _)| start.starts_with(magic)) {
        Some((_, format)) => Ok(Form::Archive(*format)),
        None => {
            check_binary(path)?;
            Ok(Form::Program)
        }
    }
}

/// The path, and what it leads to over links, one after the other.
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
        Given::open(path).unwrap_err().to_string()
    }

    #[test]
    fn what_everybody_may_write_is_refused_wherever_it_stands() {
        let directory = tempfile::tempdir().unwrap();
        let (inner, link) = (directory.path().join("inner"), directory.path().join("link"));
        create_dir(&inner).unwrap();
        let file = inner.join("server");
        program(&file);
        symlink("inner/server", &link).unwrap();
        assert_eq!(Given::open(&link).unwrap().form, Form::Program);

        mode(&file, 0o757);
        assert!(told(&file).contains("server\" is world-writable"), "{}", told(&file));
        mode(&file, 0o755);
        mode(&inner, 0o777);
        for path in [&file, &link] {
            assert!(told(path).contains("inner\" is world-writable"), "{}", told(path));
        }
        mode(&inner, 0o1777);
        assert!(Given::open(&file).is_ok(), "in a directory with the sticky bit others cannot");
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
            assert_eq!(Given::open(&file).unwrap().form, Form::Archive(format), "needs no execute bit");
        }
        assert_eq!(Given::open(directory.path()).unwrap().form, Form::Tree);
    }

    #[test]
    fn a_change_is_noticed_in_place_and_by_rename() {
        let directory = tempfile::tempdir().unwrap();
        let (file, other) = (directory.path().join("server"), directory.path().join("other"));
        program(&file);
        program(&other);
        let given = Given::open(&file).unwrap();
        assert!(given.is_unchanged().is_ok());
        std::fs::rename(&other, &file).unwrap();
        assert!(given.is_unchanged().unwrap_err().to_string().contains("replaced"));
        let given = Given::open(&file).unwrap();
        write(&file, "#!/bin/sh\n: other").unwrap();
        assert!(given.is_unchanged().is_err());
    }

    #[test]
    fn a_virtual_environment_is_known_by_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let bin = directory.path().join("bin");
        create_dir(&bin).unwrap();
        program(&bin.join("python"));
        let found = || Given::open(&bin.join("python")).unwrap().virtual_environment();
        assert_eq!(found(), None);
        write(directory.path().join("pyvenv.cfg"), "").unwrap();
        assert_eq!(found().as_deref(), Some(directory.path()));
    }
}
