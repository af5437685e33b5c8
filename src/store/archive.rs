//! Reads archives: every member once, in order, and trusts nothing unchecked.
//!
//! A member outside of the target directory makes the whole archive invalid, even if that member is not needed: it is
//! malicious or a mistake.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;
use zip::ZipReadOptions;
use zip::read::Config;
use zip::result::ZipError;
use zip::unstable::read::ZipIterable;

use super::copy::Budget;
use super::error::Error;
use super::source::ArchiveFormat;

/// A member of an archive.
#[derive(Debug)]
pub(super) struct Member {
    /// The path below the target directory.
    pub(super) path: PathBuf,
    pub(super) kind: MemberKind,
    /// Its permissions, if the archive has them.
    pub(super) mode: Option<u32>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum MemberKind {
    /// The size in bytes, and whether it has an execute bit, if the archive records that.
    File {
        size: u64,
        executable: Option<bool>,
    },
    Directory,
    /// The target of a link, unchecked.
    Link(PathBuf),
    /// Another name of an earlier member.
    HardLink(PathBuf),
}

/// Processes a member and its content.
pub(super) type MemberVisitor<'a> = dyn FnMut(&Member, &mut dyn Read) -> Result<(), Error> + 'a;

/// Maximum number of members.
const MEMBERS_MAX: usize = 200_000;
/// Maximum size in bytes of the data between two members of a tar archive: long names and the like, which are held in
/// memory.
const BETWEEN_MAX_BYTES: u64 = 1 << 20;
/// Maximum memory for an .xz file; `xz -9` needs 65 MiB.
const XZ_MEMORY_MAX_KIB: u32 = 256 << 10;
/// Maximum length of a link target (PATH_MAX).
const LINK_MAX_BYTES: u64 = 4096;

/// Passes every member of an archive to `visit`. `given` is for messages. Blocks.
pub(super) fn each(
    format: ArchiveFormat,
    file: File,
    given: &Path,
    budget: &mut Budget,
    visit: &mut MemberVisitor,
) -> Result<(), Error> {
    let buffered = |file| BufReader::with_capacity(256 * 1024, file);
    match format {
        ArchiveFormat::TarGz => each_of_tar(MultiGzDecoder::new(buffered(file)), given, budget, visit),
        ArchiveFormat::TarXz => each_of_tar(
            XzReader::new_mem_limit(buffered(file), true, XZ_MEMORY_MAX_KIB),
            given,
            budget,
            visit,
        ),
        ArchiveFormat::Zip => each_of_zip(&file, given, budget, visit),
    }
}

/// The archive or its compression is damaged.
pub(super) fn damaged(given: &Path, error: &io::Error) -> Error {
    let cause = match error.kind() {
        io::ErrorKind::UnexpectedEof => "the archive is truncated".to_owned(),
        _ => format!("the archive is damaged: {error}"),
    };
    Error::refused(given, cause, "fetch it again, and compare its checksum")
}

fn each_of_tar(
    unpacked: impl Read,
    given: &Path,
    budget: &mut Budget,
    visit: &mut MemberVisitor,
) -> Result<(), Error> {
    let place = Rc::new(StreamPosition::default());
    let mut archive = tar::Archive::new(LimitedReader { inner: unpacked, position: Rc::clone(&place) });
    let broken = |error: io::Error| damaged(given, &error);
    place.allow(0);
    for (number, entry) in archive.entries().map_err(broken)?.enumerate() {
        let mut entry = entry.map_err(broken)?;
        count(number, given)?;
        let (kind, size) = (entry.header().entry_type(), entry.size());
        place.allow(size.saturating_add(512));
        budget.take(size, given)?;
        let Some(path) = inside(&entry.path_bytes(), given)? else { continue };
        let mode = entry.header().mode().map_err(broken)?;
        let executable = Some(mode & 0o111 != 0);
        let target = entry.link_name_bytes().map(|name| name.into_owned()).unwrap_or_default();
        let what = if kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() {
            MemberKind::File { size, executable }
        } else if kind.is_dir() {
            MemberKind::Directory
        } else if kind.is_symlink() {
            MemberKind::Link(OsStr::from_bytes(&target).into())
        } else if kind.is_hard_link() {
            MemberKind::HardLink(inside(&target, given)?.unwrap_or_default())
        } else if kind.is_pax_global_extensions() {
            continue;
        } else {
            return Err(bad_member(given, &path, "is neither a file nor a directory nor a link"));
        };
        visit(&Member { path, kind: what, mode: Some(mode) }, &mut entry)?;
    }
    // The checksum of the compression follows the end.
    place.allow(0);
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(broken)?;
    Ok(())
}

/// Reads the directory of the archive one member at a time: its declared length is not trusted either.
fn each_of_zip(
    file: &File,
    given: &Path,
    budget: &mut Budget,
    visit: &mut MemberVisitor,
) -> Result<(), Error> {
    let broken = |error: ZipError| damaged(given, &error.into());
    // Both seek before they read, so they can share one file position.
    let (directory, content) = (BufReader::new(file), BufReader::with_capacity(256 * 1024, file));
    let mut archive = ZipIterable::try_new(directory, Config::default()).map_err(broken)?;
    count(archive.len(), given)?;
    let mut members = archive.files_with_reader(content, ZipReadOptions::new()).map_err(broken)?;
    while let Some(entry) = members.next() {
        let mut entry = entry.map_err(broken)?;
        let size = entry.size();
        budget.take(size, given)?;
        let Some(path) = inside(entry.name_raw(), given)? else { continue };
        let what = if entry.is_dir() {
            MemberKind::Directory
        } else if entry.is_symlink() {
            let mut target = Vec::new();
            let read = (&mut entry).take(LINK_MAX_BYTES).read_to_end(&mut target);
            read.map_err(|error| damaged(given, &error))?;
            MemberKind::Link(OsStr::from_bytes(&target).into())
        } else {
            MemberKind::File { size, executable: entry.unix_mode().map(|mode| mode & 0o111 != 0) }
        };
        let mode = entry.unix_mode();
        // One byte more than declared, so that the reader reaches the end, where it compares the checksum.
        visit(&Member { path, kind: what, mode }, &mut entry.take(size.saturating_add(1)))?;
    }
    Ok(())
}

fn count(number: usize, given: &Path) -> Result<(), Error> {
    if number < MEMBERS_MAX {
        return Ok(());
    }
    let cause = format!("the archive has more than {MEMBERS_MAX} members");
    Err(Error::refused(given, cause, "take out what the program does not need"))
}

/// The path of a member below the target directory; `None` if it is that directory.
fn inside(name: &[u8], given: &Path) -> Result<Option<PathBuf>, Error> {
    let named = Path::new(OsStr::from_bytes(name));
    if name.contains(&0) {
        return Err(bad_member(given, named, "has a zero byte in its name"));
    }
    let mut path = PathBuf::new();
    for component in named.components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => {
                return Err(bad_member(given, named, "has an absolute path"));
            }
            Component::ParentDir => return Err(bad_member(given, named, "has .. in its path")),
        }
    }
    Ok((!path.as_os_str().is_empty()).then_some(path))
}

/// A member that makes the whole archive invalid.
pub(super) fn bad_member(given: &Path, member: &Path, why: &str) -> Error {
    let cause = format!("its member {} {why}", member.display());
    Error::refused(given, cause, "nothing of this archive was used; ask its publisher")
}

/// The position in a stream, and its current limit.
#[derive(Debug, Default)]
struct StreamPosition {
    read: Cell<u64>,
    allowed: Cell<u64>,
}

impl StreamPosition {
    /// Allows `bytes` more, plus the data between two members.
    fn allow(&self, bytes: u64) {
        self.allowed.set(self.read.get().saturating_add(bytes).saturating_add(BETWEEN_MAX_BYTES));
    }
}

/// A stream that enforces a limit.
struct LimitedReader<R> {
    inner: R,
    position: Rc<StreamPosition>,
}

impl<R: Read> Read for LimitedReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let read = self.position.read.get() + n as u64;
        self.position.read.set(read);
        match read <= self.position.allowed.get() {
            true => Ok(n),
            false => Err(io::Error::other("the data between two members is too long")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_outside() {
        let given = Path::new("/given");
        let found = |name: &[u8]| inside(name, given).map_err(|error| error.to_string());
        assert_eq!(found(b"./dist//bin/./s3"), Ok(Some("dist/bin/s3".into())));
        for name in [&b""[..], b".", b"./"] {
            assert_eq!(found(name), Ok(None));
        }
        for (name, why) in
            [(&b"/etc/passwd"[..], "absolute"), (b"a/../../b", ".."), (b"..", ".."), (b"a\0b", "zero byte")]
        {
            assert!(found(name).unwrap_err().contains(why), "{name:?}");
        }
    }
}
