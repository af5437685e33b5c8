//! The number of datagrams lost around the end of a program, in a file next to its shim's other files. The daemon
//! reports it, even one started later.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::sys::regular;

/// The extension of the file.
const ENDING: &str = "lost";

/// Appends a number, one per line.
pub(super) fn note(own: &Path, count: u32) -> io::Result<()> {
    let path = own.with_extension(ENDING);
    File::options().create(true).append(true).open(path)?.write_all(format!("{count}\n").as_bytes())
}

/// Reads and removes the file. Returns the sum.
pub(crate) fn take(own: &Path) -> u64 {
    let path = own.with_extension(ENDING);
    let Ok(text) = regular::read(&path) else { return 0 };
    let _ = fs::remove_file(&path);
    let numbers = String::from_utf8_lossy(&text);
    numbers.lines().filter_map(|line| line.parse::<u64>().ok()).fold(0, u64::saturating_add)
}

/// Whether the file is such a report.
pub(super) fn is_report(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == ENDING)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_down_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("01a1fd");
        assert_eq!(take(&own), 0);
        note(&own, 7).unwrap();
        note(&own, 35).unwrap();
        assert_eq!((take(&own), take(&own)), (42, 0));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
