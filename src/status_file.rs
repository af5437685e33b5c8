//! The states of all services, as the daemon writes them for the time when it does not run: `<state>/status.json`.
//!
//! The file is replaced as a whole. It says which daemon wrote it and in which boot, so that a reader can tell how much
//! of it can still be true.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::Dirs;
use crate::control::api::ServiceStatus;
use crate::sys::process::ProcessId;
use crate::sys::regular;

/// The version of the form. A reader ignores a file of another version.
const VERSION: u32 = 1;

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusFile {
    version: u32,
    /// The daemon that wrote it.
    pub daemon: Writer,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// All services, by name.
    pub services: Vec<ServiceStatus>,
}

/// A daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// Its process.
    pub pid: u32,
    /// When that was started, in clock ticks since the boot.
    pub start_ticks: u64,
    /// The boot.
    pub boot_id: String,
}

/// What became of the daemon that wrote the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriterState {
    /// It runs.
    Runs,
    /// It has ended. Its services may still run.
    Ended,
    /// The machine was started again since.
    EarlierBoot,
}

impl StatusFile {
    /// A file of this process.
    pub fn of_this_process(at: u64, services: Vec<ServiceStatus>) -> io::Result<StatusFile> {
        let ProcessId { pid, start_ticks, boot_id } = ProcessId::own()?;
        Ok(StatusFile { version: VERSION, daemon: Writer { pid, start_ticks, boot_id }, at, services })
    }

    /// Puts it in place of the earlier one. Blocks, but does not sync: after a crash of the machine it says nothing that
    /// is still true.
    pub fn write(&self, dirs: &Dirs) -> io::Result<()> {
        let (path, beside) = (path(dirs), dirs.state.join("status.json.new"));
        let text = serde_json::to_vec(self)?;
        let mut file: File = regular::create(&beside)?;
        let written = file
            .set_permissions(PermissionsExt::from_mode(0o600))
            .and_then(|()| file.write_all(&text))
            .and_then(|()| fs::rename(&beside, &path));
        if written.is_err() {
            let _ = fs::remove_file(&beside);
        }
        written
    }

    /// Reads it. `None` if there is none that this program understands. Blocks.
    pub fn read(dirs: &Dirs) -> Option<StatusFile> {
        let text = regular::read_to_string(&path(dirs)).ok()?;
        serde_json::from_str(&text).ok().filter(|file: &StatusFile| file.version == VERSION)
    }

    /// What became of the daemon that wrote it.
    pub fn writer_state(&self) -> WriterState {
        let Writer { pid, start_ticks, boot_id } = &self.daemon;
        let own = ProcessId::own();
        match own {
            Ok(own) if own.boot_id != *boot_id => WriterState::EarlierBoot,
            _ => match ProcessId::of(*pid) {
                Ok(found) if found.start_ticks == *start_ticks => WriterState::Runs,
                _ => WriterState::Ended,
            },
        }
    }
}

fn path(dirs: &Dirs) -> PathBuf {
    Path::new(&dirs.state).join("status.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_what_became_of_its_writer() {
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs { config: "/c".into(), state: root.path().to_owned(), runtime: "/r".into() };
        assert_eq!(StatusFile::read(&dirs), None);
        let own = StatusFile::of_this_process(7, Vec::new()).unwrap();
        own.write(&dirs).unwrap();
        assert_eq!(StatusFile::read(&dirs), Some(own.clone()));
        assert_eq!(own.writer_state(), WriterState::Runs);
        assert_eq!(fs::metadata(path(&dirs)).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "nothing stays beside it");

        let with = |daemon: Writer| StatusFile { daemon, ..own.clone() }.writer_state();
        // Another process has this pid now.
        assert_eq!(with(Writer { start_ticks: 1, ..own.daemon.clone() }), WriterState::Ended);
        assert_eq!(with(Writer { boot_id: "other".into(), ..own.daemon.clone() }), WriterState::EarlierBoot);

        for text in [
            "",
            "{",
            "{\"version\":2}",
            &serde_json::to_string(&own).unwrap().replace("\"version\":1", "\"version\":2"),
        ] {
            fs::write(path(&dirs), text).unwrap();
            assert_eq!(StatusFile::read(&dirs), None, "{text}");
        }
    }
}
