//! The messages of the shim itself, in the log that it shares with its program, and errors about handoff's own files that
//! the shim cannot create or write. Such an error is not the fault of the program, and its remedy is elsewhere.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use handoff_protocol::reason::OWN_FILE;

use super::listeners::check_sides;
use super::shim_config::ShimConfig;
use crate::keeper::LOG_PREFIX;
use crate::sys::lock::LOCK_FILE;
use crate::sys::regular;
use crate::sys::user::effective_user;

/// Writes a message to the log. The program may have ended within a line, so a line break comes first, in one write with
/// the message. If the program had completed its line, the keeper removes the empty line.
pub(super) fn log_line(message: std::fmt::Arguments<'_>) {
    // The log may have no reader any more.
    let _ = io::stderr().write_all(format!("\n{LOG_PREFIX}{message}\n").as_bytes());
}

/// An error if a file of handoff that the next program of an exclusive service needs cannot be used. Without this look,
/// that would be found out only after the serving program has ended.
pub(super) fn look_at_files(config: &ShimConfig) -> Result<(), String> {
    let lock = config.lock_path();
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    regular::open(&mut options, &lock).map_err(|error| own_error(&lock, "opened", &error))?;
    let data = config.shared_dir.join(LOCK_FILE);
    regular::open(options.mode(0o600), &data).map_err(|error| own_error(&data, "opened", &error))?;
    check_sides(&config.shared_dir)
}

/// A clause for a person: the file, the cause, and the file system that holds it.
pub(super) fn own_error(path: &Path, what: &str, error: &io::Error) -> String {
    use io::ErrorKind::{
        InvalidData, IsADirectory, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull,
    };
    let remedy = match error.kind() {
        StorageFull | QuotaExceeded => "make room there",
        ReadOnlyFilesystem => "make it writable",
        IsADirectory | InvalidData => return format!("{}; move it away", describe_error(path, what, error)),
        PermissionDenied => {
            let user = effective_user();
            return format!("{}; let the user {user} read and write it", describe_error(path, what, error));
        }
        _ => return describe_error(path, what, error),
    };
    let directory = path.parent().unwrap_or(path);
    let disk = Mount::of(directory).map_or_else(String::new, |disk| format!(" is on {disk}"));
    format!("{}; {}{disk}: {remedy}", describe_error(path, what, error), directory.display())
}

fn describe_error(path: &Path, what: &str, error: &dyn Display) -> String {
    format!("{OWN_FILE}{} cannot be {what}: {error}", path.display())
}

/// Whether a message of a shim is about such a file, not about its program.
pub(crate) fn is_own_error(message: &str) -> bool {
    message.starts_with(OWN_FILE)
}

/// A file system, its device, and its mount point.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    kind: String,
    source: String,
    at: PathBuf,
}

impl Mount {
    fn of(directory: &Path) -> Option<Self> {
        let device = std::fs::metadata(directory).ok()?.dev();
        let device = format!("{}:{}", major(device), minor(device));
        Self::among(&std::fs::read_to_string("/proc/self/mountinfo").ok()?, &device, directory)
    }

    /// Parses proc_pid_mountinfo(5). If the device is mounted more than once, returns the nearest mount.
    fn among(mounts: &str, device: &str, directory: &Path) -> Option<Self> {
        let parse = |line: &str| {
            let (mount, disk) = line.split_once(" - ")?;
            let (mut mount, mut disk) = (mount.split(' ').skip(2), disk.split(' '));
            let (number, at) = (mount.next()?, mount.nth(1)?);
            let (kind, source) = (disk.next()?.to_owned(), disk.next()?.to_owned());
            (number == device && directory.starts_with(at)).then(|| Self { kind, source, at: at.into() })
        };
        mounts.lines().filter_map(parse).max_by_key(|disk| disk.at.as_os_str().len())
    }
}

impl Display for Mount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the file system {} ({}) at {}", self.source, self.kind, self.at.display())
    }
}

/// See makedev(3).
fn major(device: u64) -> u64 {
    (device >> 8) & 0xfff | (device >> 32) & !0xfff
}

fn minor(device: u64) -> u64 {
    device & 0xff | (device >> 12) & !0xff
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "22 28 0:21 / /proc rw,nosuid shared:12 - proc proc rw\n\
        28 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
        30 28 0:26 / /run rw,nosuid shared:2 - tmpfs tmpfs rw,size=8k\n\
        31 30 254:0 /x /run/x rw - ext4 /dev/vda rw\n";

    #[test]
    fn the_nearest_mount_of_the_disk_is_named() {
        let message = |device, path: &str| {
            Mount::among(MOUNTS, device, Path::new(path)).map(|disk| disk.to_string()).unwrap_or_default()
        };
        assert_eq!(message("0:26", "/run/handoff/adopt"), "the file system tmpfs (tmpfs) at /run");
        assert_eq!(message("254:0", "/run/x/y"), "the file system /dev/vda (ext4) at /run/x");
        assert_eq!(message("254:0", "/var"), "the file system /dev/vda (ext4) at /");
        assert_eq!(message("0:99", "/var"), "");
        assert!(Mount::of(&std::env::temp_dir()).is_some());
    }

    #[test]
    fn an_error_about_a_file_of_handoff_differs_from_one_about_a_program() {
        let full = io::Error::from_raw_os_error(28);
        let said = own_error(&std::env::temp_dir().join("x.tree"), "made", &full);
        assert!(
            is_own_error(&said) && said.contains("No space left") && said.contains("make room"),
            "{said}"
        );
        assert!(!is_own_error("the program exited with code 28 before it was ready"));
    }
}
