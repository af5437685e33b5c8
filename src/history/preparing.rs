//! The history entry of an attempt whose new version is still imported and tried, before any journal records the attempt.
//! If the daemon exits meanwhile, the next daemon reports the attempt from this entry.
//!
//! The entry is a file next to the history. Each step replaces the whole file. Nothing waits for the disk.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use handoff_protocol::ids::HandoffId;

use super::Entry;
use crate::sys::regular;

const FILE: &str = "history.preparing";

/// Writes the entry. Blocks on the file system.
pub fn prepare(directory: &Path, entry: &Entry) -> io::Result<()> {
    let path = directory.join(FILE);
    let beside = path.with_added_extension("new");
    regular::create(&beside)?.write_all(&serde_json::to_vec(entry)?)?;
    fs::rename(beside, path)
}

/// The entry that an earlier daemon has left. Blocks on the file system.
pub fn prepared(directory: &Path) -> Option<Entry> {
    serde_json::from_slice(&regular::read(&directory.join(FILE)).ok()?).ok()
}

/// Removes the entry of this attempt. Blocks on the file system.
pub fn forget(directory: &Path, id: HandoffId) -> io::Result<()> {
    match prepared(directory) {
        Some(entry) if entry.id == id => fs::remove_file(directory.join(FILE)),
        _ => Ok(()),
    }
}
