//! Whether a serving process is watched, and when it is given up.

use super::error::Report;
use super::table::Section;

const KEYS: &[&str] = &["interval", "failures"];
const INTERVAL_MS: u64 = 1_000;
const FAILURES: u32 = 3;
/// The shortest pause: more frequent checks would use a processor.
const LEAST_INTERVAL_MS: u64 = 10;

/// How a serving process is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Liveness {
    /// Pause between two checks.
    pub interval_ms: u64,
    /// Consecutive failed checks after which the process is killed and started again.
    pub failures: u32,
}

impl Default for Liveness {
    fn default() -> Self {
        Self { interval_ms: INTERVAL_MS, failures: FAILURES }
    }
}

/// Reads `liveness`, as an interval or as a table. Without the key there are no checks.
pub(super) fn read(report: &mut Report, root: &Section) -> Option<Liveness> {
    if !root.has("liveness") {
        return None;
    }
    if !root.is_table("liveness") {
        let interval = root.duration_ms(report, "liveness", LEAST_INTERVAL_MS)?;
        return Some(Liveness { interval_ms: interval.value, ..Liveness::default() });
    }
    let section = root.section(report, "liveness", "liveness.")?;
    section.refuse_unknown(report, KEYS);
    let interval = section.duration_ms(report, "interval", LEAST_INTERVAL_MS);
    let failures = section.count(report, "failures", 1..=1_000).unwrap_or(FAILURES);
    Some(Liveness { interval_ms: interval.map_or(INTERVAL_MS, |found| found.value), failures })
}
