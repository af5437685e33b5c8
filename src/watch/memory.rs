//! Which contents were seen at a watched path: one that was tried is not tried again, also by the next daemon.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::sys::regular;

const FILE: &str = "watched";
/// Maximum number of remembered files.
const REMEMBERED_MAX: usize = 200;

/// The contents that were seen, as SHA-256 in hex, the newest last, in a file. Blocks on the file system.
#[derive(Debug)]
pub struct SeenContents {
    path: PathBuf,
    hashes: Vec<String>,
}

impl SeenContents {
    /// What is remembered in the state directory of a service. A file that is not there or damaged says nothing.
    pub fn open(directory: &Path) -> SeenContents {
        let path = directory.join(FILE);
        let text = regular::read_to_string(&path).unwrap_or_default();
        let is_hash = |line: &&str| line.len() == 64 && line.bytes().all(|byte| byte.is_ascii_hexdigit());
        let seen = text.lines().filter(is_hash).map(str::to_owned).collect();
        SeenContents { path, hashes: seen }
    }

    /// Whether this content was seen.
    pub fn has(&self, sha256: &str) -> bool {
        self.hashes.iter().any(|seen| seen == sha256)
    }

    /// Remembers it, on the disk when this returns.
    pub fn add(&mut self, sha256: &str) -> io::Result<()> {
        self.hashes.retain(|seen| seen != sha256);
        self.hashes.push(sha256.to_owned());
        self.hashes.drain(..self.hashes.len().saturating_sub(REMEMBERED_MAX));
        self.write()
    }

    /// Forgets it: it was not really tried.
    pub fn remove(&mut self, sha256: &str) -> io::Result<()> {
        self.hashes.retain(|seen| seen != sha256);
        self.write()
    }

    fn write(&self) -> io::Result<()> {
        let beside = self.path.with_extension("new");
        let mut file = regular::create(&beside)?;
        file.write_all(self.hashes.iter().map(|seen| format!("{seen}\n")).collect::<String>().as_bytes())?;
        file.sync_data()?;
        fs::rename(&beside, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_outlives_whoever_wrote_it_and_stays_short() {
        let root = tempfile::tempdir().unwrap();
        let hash = |number: usize| format!("{number:064x}");
        let mut memory = SeenContents::open(root.path());
        for number in 0..300 {
            memory.add(&hash(number)).unwrap();
        }
        memory.remove(&hash(299)).unwrap();
        let memory = SeenContents::open(root.path());
        assert_eq!(memory.hashes.len(), 199);
        assert!(memory.has(&hash(298)) && !memory.has(&hash(299)) && !memory.has(&hash(0)));
        fs::write(root.path().join(FILE), b"\xff\n").unwrap();
        assert!(!SeenContents::open(root.path()).has(&hash(298)));
    }
}
