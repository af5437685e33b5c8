//! An attempt whose new version is brought in and tried, which no journal knows of: what the next daemon tells of it, should this one
//! end meanwhile.
//!
//! It is a file beside the history, replaced as a whole at each step. Nobody waits for the disk.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use handoff_protocol::ids::HandoffId;

use super::Entry;
use crate::sys::regular;

const FILE: &str = "history.preparing";

/// Puts down what is to be told. Blocks on the file system.
pub fn prepare(directory: &Path, entry: &Entry) -> io::Result<()> {
    let path = directory.join(FILE);
    let beside = path.with_added_extension("new");
    regular::create(&beside)?.write_all(&serde_json::to_vec(entry)?)?;
    fs::rename(beside, path)
}

/// What an earlier daemon has left. Blocks on the file system.
pub fn prepared(directory: &Path) -> Option<Entry> {
    serde_json::from_slice(&regular::read(&directory.join(FILE)).ok()?).ok()
}

/// Forgets this attempt. Blocks on the file system.
pub fn forget(directory: &Path, id: HandoffId) -> io::Result<()> {
    match prepared(directory) {
        Some(entry) if entry.id == id => fs::remove_file(directory.join(FILE)),
        _ => Ok(()),
    }
}
