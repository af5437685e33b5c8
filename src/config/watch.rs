//! The path that is watched for new versions.

use std::path::{Path, PathBuf};

use super::error::Report;
use super::table::Section;

/// A watched path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchSettings {
    /// Absolute path of the file.
    pub path: PathBuf,
    /// How long the file must be unchanged.
    pub settle_ms: u64,
}

const SETTLE_MS: u64 = 2_000;
const HINT: &str = "write watch = \"/incoming/server\"";

/// Reads `watch` and `settle` of the table `[update]`.
pub(super) fn read(report: &mut Report, root: &Section) -> Option<WatchSettings> {
    let section = root.section(report, "update", "update.")?;
    let settle_ms = section.duration_ms(report, "settle", 0).map_or(SETTLE_MS, |found| found.value);
    if !section.has("watch") {
        section.refuse(report, "settle", "nothing is watched", "remove it, or add watch");
        return None;
    }
    let found = section.string(report, "watch", HINT)?;
    let path = Path::new(found.value);
    // The path is split into its parts, so it must be unambiguous.
    let is_plain = path.is_absolute() && path.file_name().is_some() && !path.iter().any(|part| part == "..");
    if !is_plain || found.value.contains('\0') || found.value.ends_with('/') {
        let cause = format!("{path:?} is not the absolute path of a file, without \"..\"");
        return section.wrong(report, "watch", found.span, &cause, HINT);
    }
    Some(WatchSettings { path: path.to_owned(), settle_ms })
}
