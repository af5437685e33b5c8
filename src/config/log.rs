//! The table `[log]`.

use std::path::{Path, PathBuf};

use super::error::Report;
use super::table::Section;

const KEYS: &[&str] = &["max_size", "files", "max_age", "max_rate", "dir", "journald"];

/// A log file holds at least a page, so that rotation does not cost more than the lines. The same holds for a second.
const LEAST_BYTES: u64 = 4096;
const LEAST_AGE_MS: u64 = 1_000;

/// What becomes of the lines of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// Size at which a file is rotated.
    pub max_size_bytes: u64,
    /// The number of files that are kept, including the current one; at least 2.
    pub files: u32,
    /// The age at which lines are removed.
    pub max_age_ms: Option<u64>,
    /// Maximum number of bytes per second; what is over it is dropped.
    pub max_rate_bytes: Option<u64>,
    /// The directory of the files, if it is not the one in the state directory. An absolute path.
    pub dir: Option<PathBuf>,
    /// Whether journald gets the lines too.
    pub journald: bool,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            max_size_bytes: 10 << 20,
            files: 5,
            max_age_ms: None,
            max_rate_bytes: None,
            dir: None,
            journald: false,
        }
    }
}

pub(super) fn read(report: &mut Report, root: &Section) -> LogSettings {
    let mut settings = LogSettings::default();
    let Some(section) = root.section(report, "log", "log.") else { return settings };
    section.refuse_unknown(report, KEYS);
    if let Some(bytes) = section.size_bytes(report, "max_size", LEAST_BYTES) {
        settings.max_size_bytes = bytes;
    }
    if let Some(files) = section.count(report, "files", 2..=100) {
        settings.files = files;
    }
    if let Some(age) = section.duration_ms(report, "max_age", 1) {
        if age.value < LEAST_AGE_MS {
            section.wrong::<()>(
                report,
                "max_age",
                age.span,
                "is less than a second",
                "write for example \"7days\"",
            );
        }
        settings.max_age_ms = Some(age.value);
    }
    settings.max_rate_bytes = section.size_bytes(report, "max_rate", LEAST_BYTES);
    let example = "write an absolute path, such as \"/var/log/web\"";
    if let Some(dir) = section.string(report, "dir", example) {
        let path = Path::new(dir.value);
        if path.is_absolute() && !dir.value.contains('\0') {
            settings.dir = Some(path.to_owned());
        } else {
            section.wrong::<()>(report, "dir", dir.span, "is not an absolute path", example);
        }
    }
    settings.journald = section.boolean(report, "journald").unwrap_or(false);
    settings
}
