//! Records a running command for the next daemon: a file below the runtime directory that the command and all its
//! descendants have open. It is created before the command and removed after its end. So whenever a daemon is killed,
//! either no command runs or its file exists.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{OnceLock, mpsc};
use std::thread::Builder;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::shim::{end_what_is_left, named};
use crate::sys::traced::{out_of_the_way, trace};

/// The directory of the files. A process that is not a daemon creates none.
static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();

/// From now on each command gets a file in this directory. Ends the commands of an earlier daemon there, with all their
/// descendants, side by side. Blocks until they are gone, at most for `limit`: one that waits for a disk ends later.
pub(crate) fn keep_traces_in(directory: PathBuf, limit: Duration) {
    let until = Instant::now() + limit;
    let mut ends = Vec::new();
    for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
        let path = entry.path();
        tracing::warn!(path = %path.display(), "ending a command that an earlier daemon has left behind");
        let (ended, end) = mpsc::channel();
        let end_it = move || {
            end_all_of(&path);
            let _ = ended.send(());
        };
        // Without a thread its file stays for the next daemon.
        let begun = Builder::new().name("hook".into()).spawn(end_it);
        ends.extend(begun.is_ok().then_some(end));
    }
    let _ = DIRECTORY.set(directory);
    for end in ends {
        let _ = end.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

/// Ends all processes of a command. Blocks until they are gone.
fn end_all_of(trace: &Path) {
    match end_what_is_left(trace) {
        Ok(left) if left.is_empty() => {}
        Ok(left) => tracing::error!("a command does not end: process {}", named(&left)),
        Err(error) => {
            tracing::error!("cannot look for the processes of a command ({}): {error}", trace.display())
        }
    }
}

/// The file of one command. Drop removes it.
#[derive(Debug)]
pub(crate) struct Trace(Option<PathBuf>);

impl Trace {
    /// Creates the file. The returned descriptor is for a command to start, and is then closed here.
    pub(crate) fn make() -> io::Result<(Self, Option<OwnedFd>)> {
        match DIRECTORY.get() {
            Some(directory) => Self::make_in(directory).map(|(trace, file)| (trace, Some(file))),
            None => Ok((Self(None), None)),
        }
    }

    /// Creates the file, and passes it to a command that is about to start.
    pub(crate) fn leave(command: &mut Command) -> io::Result<Self> {
        let (made, file) = Self::make()?;
        if let Some(file) = file {
            trace(command, file);
        }
        Ok(made)
    }

    fn make_in(directory: &Path) -> io::Result<(Self, OwnedFd)> {
        let path = directory.join(Uuid::now_v7().to_string());
        let file = File::create_new(&path).or_else(|error| match error.kind() {
            // Another program cleans up below the runtime directory.
            io::ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
                File::create_new(&path)
            }
            _ => Err(error),
        })?;
        Ok((Self(Some(path)), out_of_the_way(file)?))
    }

    /// Ends all descendants of the command, including those outside of its process group. Blocks until they are gone.
    pub(crate) fn end_all(mut self) {
        if let Some(path) = self.0.take() {
            end_all_of(&path);
        }
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::has_ended;
    use std::os::unix::process::CommandExt;

    #[test]
    fn whatever_a_command_has_started_is_ended() {
        let directory = tempfile::tempdir().unwrap();
        let pid = directory.path().join("pid");
        let traces = directory.path().join("traces");
        let script = format!(
            "setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $! > {0}.new; mv {0}.new {0}",
            pid.display()
        );
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &script]).process_group(0);
        let (made, file) = Trace::make_in(&traces).unwrap();
        trace(&mut command, file);
        assert!(command.status().unwrap().success());
        drop(command);
        let pid = fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
        assert!(!has_ended(pid), "it has left its group");
        made.end_all();
        assert!(has_ended(pid));
        assert_eq!(fs::read_dir(&traces).unwrap().count(), 0);
    }
}
