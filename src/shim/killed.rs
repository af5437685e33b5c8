//! The processes that a shim had to kill, in a file next to its program's files. The daemon reports them, even one
//! started later.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::control::api::Killed;
use crate::sys::regular;

/// The extension of the file.
const ENDING: &str = "killed";
/// Maximum number of bytes to read.
const READ_MAX_BYTES: u64 = 64 << 10;

/// Appends to the file, one JSON object per line. `own` is the path of a shim's files, without extension.
pub(super) fn note(own: &Path, killed: &[Killed]) -> io::Result<()> {
    let (mut before, beside) = (Vec::new(), temporary_path(own));
    let lines: Vec<String> = killed.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
    loop {
        before.extend(taken(own));
        fs::write(&beside, [&before, lines.join("\n").as_bytes(), b"\n"].concat())?;
        let put = fs::hard_link(&beside, own.with_extension(ENDING));
        // Another thread has written in the meantime.
        if put.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists) {
            continue;
        }
        let _ = fs::remove_file(&beside);
        return put;
    }
}

/// Reads and removes the file.
pub(crate) fn take(own: &Path) -> Vec<Killed> {
    taken(own).split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

/// Whether the file is such a report, or is being written or read.
pub(super) fn is_report(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.to_string_lossy().starts_with(ENDING))
}

/// The content of the file. It is renamed first, so that nothing is appended after the read.
fn taken(own: &Path) -> Vec<u8> {
    let (path, aside, mut text) = (own.with_extension(ENDING), temporary_path(own), Vec::new());
    let is_file = fs::symlink_metadata(&path).is_ok_and(|found| found.is_file());
    if is_file && fs::rename(&path, &aside).is_ok() {
        if let Ok(file) = regular::open_to_read(&aside) {
            // Of a file longer than any shim writes, the first lines.
            let _ = file.take(READ_MAX_BYTES).read_to_end(&mut text);
        }
        let _ = fs::remove_file(&aside);
    }
    text
}

/// A unique name next to the file.
fn temporary_path(own: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    own.with_extension(format!("{ENDING}-{}-{count}", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_down_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("01a1fd");
        let killed = |pid| Killed { pid, name: "redis-server".into(), after_ms: 5_000 };
        note(&own, &[killed(7), killed(8)]).unwrap();
        note(&own, &[killed(9)]).unwrap();
        assert_eq!(take(&own), [killed(7), killed(8), killed(9)]);
        assert_eq!(take(&own), []);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_of_any_length_is_taken_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("01a1fd");
        let killed = |pid| Killed { pid, name: "redis-server".into(), after_ms: 5_000 };
        let many: Vec<Killed> = (0..3_000).map(killed).collect();
        note(&own, &many).unwrap();
        let taken = take(&own);
        assert!(taken.len() > 100 && many.starts_with(&taken), "{}", taken.len());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_put_down_while_the_rest_is_taken_is_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("01a1fd");
        let mut taken = Vec::new();
        std::thread::scope(|scope| {
            let notes = scope.spawn(|| {
                for pid in 0..2_000 {
                    note(&own, &[Killed { pid, name: "redis-server".into(), after_ms: 5_000 }]).unwrap();
                }
            });
            while !notes.is_finished() {
                taken.extend(take(&own));
            }
        });
        taken.extend(take(&own));
        let pids: Vec<u32> = taken.into_iter().map(|killed| killed.pid).collect();
        assert_eq!(pids, (0..2_000).collect::<Vec<u32>>());
    }
}
