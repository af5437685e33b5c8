//! Metadata of a version: an immutable part, written before the version exists, and a mutable part.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::sys::regular;

/// The SHA-256 of a file, or of the list of a tree's content. Identifies a version.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub [u8; 32]);

impl Id {
    /// Hashes everything that can be read. Blocks.
    pub fn of(mut content: impl Read) -> io::Result<Self> {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 256 * 1024];
        loop {
            match content.read(&mut buffer)? {
                0 => return Ok(Self(hasher.finalize().into())),
                n => hasher.update(&buffer[..n]),
            }
        }
    }
}

/// Lower-case hexadecimal, as `sha256sum` prints it.
impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Id {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a SHA-256, which has 64 hexadecimal digits");
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut id = [0; 32];
        for (byte, digits) in id.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        Ok(Self(id))
    }
}

impl Serialize for Id {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// File metadata that changes when a file is written or replaced. Programs cannot set `changed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileStamp {
    /// The device number.
    pub device: u64,
    /// The inode number.
    pub inode: u64,
    /// The size in bytes.
    pub size: u64,
    /// `st_mtime`: seconds and nanoseconds since 1970.
    pub modified: (i64, i64),
    /// `st_ctime`: seconds and nanoseconds since 1970.
    pub changed: (i64, i64),
}

impl FileStamp {
    /// From stat(2).
    pub fn of(found: &std::fs::Metadata) -> Self {
        Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }
}

/// The kind of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VersionKind {
    /// One file.
    File,
    /// A directory with all its content, one file of which is started.
    Tree,
}

/// Immutable metadata. On disk before the version exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionMetadata {
    /// The hash of its content, which names it.
    pub id: Id,
    /// Its kind.
    pub kind: VersionKind,
    /// The file to start, relative to the directory of its files.
    pub entry: PathBuf,
    /// Total size of its files.
    pub size_bytes: u64,
    /// The version text, from the version itself or from the user.
    pub version: Option<String>,
    /// When it was imported. Milliseconds since 1970-01-01 UTC, for people.
    pub added_unix_ms: u64,
}

/// The last source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The given path.
    pub path: PathBuf,
    /// The metadata of the file there, or of the directory itself.
    pub look: FileStamp,
    /// The digest of a directory's content, as [`super::PathRecord`] compares it.
    #[serde(default)]
    pub digest: Option<Id>,
    /// The hash of the file there; for an archive, of the archive.
    pub sha256: Id,
    /// The requested member of an archive or entry of a tree.
    pub member: Option<String>,
    /// Whether everything there was imported.
    pub tree: bool,
}

/// Mutable metadata. Losing it in a power failure costs no version.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UsageRecord {
    /// The last source.
    pub source: Option<Source>,
    /// The generations that it ran as, the newest last.
    pub generations: Vec<u64>,
    /// Those of them whose commit was undone, as after a probation that was not passed.
    #[serde(default)]
    pub undone: Vec<u64>,
    /// Whether it is kept until it is unpinned.
    pub pinned: bool,
    /// The version text reported by a process of it.
    #[serde(default)]
    pub told: Option<String>,
}

/// All metadata of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The immutable part.
    pub metadata: VersionMetadata,
    /// The mutable part.
    pub usage: UsageRecord,
}

impl Version {
    /// Its version text: as reported by a process, or as read or given at the import.
    pub fn name(&self) -> Option<&str> {
        self.usage.told.as_deref().or(self.metadata.version.as_deref())
    }
}

/// Maximum number of generations to remember.
const GENERATIONS_MAX: usize = 64;

impl UsageRecord {
    /// Records a commit as this generation. Returns whether that is new.
    pub(super) fn note(&mut self, generation: u64) -> bool {
        if self.generations.contains(&generation) {
            return false;
        }
        self.generations.push(generation);
        self.generations.sort_unstable();
        let surplus = self.generations.len().saturating_sub(GENERATIONS_MAX);
        self.generations.drain(..surplus);
        true
    }

    /// Records that the commit of this generation was undone. Returns whether that is new.
    pub(super) fn note_undone(&mut self, generation: u64) -> bool {
        self.note(generation);
        let generations = &self.generations;
        self.undone.retain(|undone| generations.contains(undone));
        if self.undone.contains(&generation) {
            return false;
        }
        self.undone.push(generation);
        true
    }

    /// Whether the commit of the last generation that it ran as was undone.
    pub fn is_undone(&self) -> bool {
        self.last_generation().is_some_and(|last| self.undone.contains(&last))
    }

    /// The last generation that it ran as.
    pub fn last_generation(&self) -> Option<u64> {
        self.generations.last().copied()
    }
}

/// Reads a file from [`write`].
pub(super) fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&regular::read(path)?)?)
}

/// Writes a new file.
pub(super) fn write(path: &Path, value: &impl Serialize) -> io::Result<File> {
    let mut file = File::create_new(path)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back() {
        // FIPS 180-2, appendix B.1.
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let id = Id::of(&b"abc"[..]).unwrap();
        assert_eq!(id.to_string(), text);
        assert_eq!(text.to_uppercase().parse(), Ok(id));
        for wrong in ["", "ba78", &format!("{text}0"), &text.replace('b', "g"), &"é".repeat(32)] {
            assert!(wrong.parse::<Id>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn generations_are_noted_once_and_the_oldest_are_forgotten() {
        let mut used = UsageRecord::default();
        assert!(used.note(3) && !used.note(3) && used.note(1));
        assert_eq!((used.generations.as_slice(), used.last_generation()), (&[1, 3][..], Some(3)));
        (4..200).for_each(|generation| assert!(used.note(generation)));
        assert_eq!((used.generations.len(), used.last_generation()), (GENERATIONS_MAX, Some(199)));
    }
}
