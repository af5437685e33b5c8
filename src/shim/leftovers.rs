//! Finds and ends what remains of a program whose shim is gone, by any of these marks:
//!
//! - Each process has a certain file open without using it. A launcher that closes unknown descriptors (`npm`, Python's
//!   `subprocess`) starts processes without it.
//! - An environment variable names that file. `env -i`, and programs that write their title over the environment, lose
//!   it.
//! - The first process leads its own session, whose id stays valid after it is gone. `setsid` leaves the session.
//! - Descendants of these processes count too, while their parent exists.
//!
//! A process without any of these is not found. The environment is read only for processes that are no older than the
//! first one. A process that does not answer is left out (see `bounded.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::bounded::inspect_all;
use crate::sys::path::hold;
use crate::sys::process::{ProcessId, ProcessPosition, Signal, has_ended, kill, pidfd_open, place_of};
use crate::sys::regular;

/// The variable in each process of a program: the path of the file that it has open.
pub(crate) const VARIABLE: &str = "HANDOFF_TRACE";
/// The extension of the file in which a shim records the first process of its program.
pub(super) const FIRST: &str = "first";

/// Larger than any environment that the kernel allows with the usual limits.
const ENVIRONMENT_MAX_BYTES: u64 = 8 << 20;

/// The recorded first process of a program. No process of the program has this record open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FirstProcess {
    pub(super) process: ProcessId,
    /// The file that the program has open.
    pub(super) trace: PathBuf,
}

impl FirstProcess {
    /// Writes the record atomically.
    pub(super) fn note(&self, path: &Path) -> io::Result<()> {
        let beside = path.with_extension(format!("{FIRST}-{}", std::process::id()));
        fs::write(&beside, serde_json::to_vec(self)?)?;
        fs::rename(&beside, path)
    }

    /// Reads the record, if it is from this boot.
    pub(super) fn read(path: &Path) -> Option<Self> {
        let mut text = Vec::new();
        regular::open_to_read(path).ok()?.take(64 << 10).read_to_end(&mut text).ok()?;
        let first: Self = serde_json::from_slice(&text).ok()?;
        (first.process.boot_id == ProcessId::own().ok()?.boot_id).then_some(first)
    }

    /// Removes the record of the program with this file, which is completely gone. Keeps the record of another program.
    pub(super) fn forget(path: &Path, trace: &Path) {
        if Self::read(path).is_some_and(|first| first.trace == trace) {
            let _ = fs::remove_file(path);
        }
    }

    /// Whether another process has the pid. While the session exists the kernel does not reuse its id, so then the
    /// session has no members of ours.
    fn is_reused(&self) -> bool {
        ProcessId::of(self.process.pid).is_ok_and(|found| found.start_ticks != self.process.start_ticks)
    }
}

/// The marks of a program's processes.
#[derive(Default)]
pub(super) struct ProcessMarks {
    /// A file that they have open. Its path is never reused for another file.
    open: Option<PathBuf>,
    /// The environment entry.
    named: Option<OsString>,
    first: Option<FirstProcess>,
}

impl ProcessMarks {
    /// The marks of a program that has `trace` open.
    pub(super) fn of_trace(trace: &Path) -> Self {
        let named = Some([VARIABLE.as_ref(), trace.as_os_str()].join("=".as_ref()));
        Self { open: Some(trace.to_owned()), named, first: FirstProcess::read(&trace.with_extension(FIRST)) }
    }

    /// The marks of a program with this record.
    pub(super) fn of_first(first: FirstProcess) -> Self {
        Self { first: Some(first.clone()), ..Self::of_trace(&first.trace) }
    }

    /// Only the mark of an open file.
    pub(super) fn of_file(path: &Path) -> Self {
        Self { open: Some(path.to_owned()), ..Self::default() }
    }

    /// Kills every process of the program, stopped ones included, except this one and those in `own`. Returns the
    /// killed processes, which may exist for another moment.
    pub(super) fn end(&self, own: impl Fn() -> Vec<u32>) -> io::Result<BTreeSet<u32>> {
        let found = self.find(own)?;
        for (pid, place) in &found {
            // Opened before the check that the pid still belongs to the process.
            if let Ok(process) = pidfd_open(*pid)
                && place_of(*pid).is_some_and(|now| now.start_ticks == place.start_ticks)
            {
                let _ = kill(&process, Signal::SIGKILL);
            }
        }
        Ok(found.into_keys().collect())
    }

    fn find(&self, own: impl Fn() -> Vec<u32>) -> io::Result<BTreeMap<u32, ProcessPosition>> {
        let this = std::process::id();
        let pids =
            fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let search = Search {
            wanted: self.open.as_deref().and_then(|path| OpenFile::at(path).ok()),
            named: self.named.clone(),
            session: self.first.as_ref().filter(|first| !first.is_reused()).map(|first| first.process.pid),
            since: self.first.as_ref().map_or(0, |first| first.process.start_ticks),
        };
        let all = inspect_all(pids.filter(|pid| *pid != this).collect(), move |pid| search.position_of(pid))?;
        let all = all.into_iter().filter_map(|(pid, look)| Some((pid, look?)));
        let all: BTreeMap<u32, (ProcessPosition, bool)> = all.collect();
        let mut found: BTreeSet<u32> =
            all.iter().filter(|(_, (_, is_one))| *is_one).map(|(pid, _)| *pid).collect();
        let all: BTreeMap<u32, ProcessPosition> =
            all.into_iter().map(|(pid, (place, _))| (pid, place)).collect();
        loop {
            let children =
                all.iter().filter(|(pid, place)| !found.contains(pid) && found.contains(&place.parent));
            let children: Vec<u32> = children.map(|(pid, _)| *pid).collect();
            if children.is_empty() {
                break;
            }
            found.extend(children);
        }
        if !found.is_empty() {
            let own = own();
            found.retain(|pid| !own.contains(pid));
        }
        Ok(all.into_iter().filter(|(pid, _)| found.contains(pid)).collect())
    }
}

/// What is looked for.
struct Search {
    wanted: Option<OpenFile>,
    named: Option<OsString>,
    session: Option<u32>,
    /// No process of the program is older.
    since: u64,
}

impl Search {
    /// Where a process is, and whether it has a mark. `None` if it has ended.
    fn position_of(&self, pid: u32) -> Option<(ProcessPosition, bool)> {
        let place = place_of(pid).filter(|_| !has_ended(pid))?;
        let is_young = place.start_ticks >= self.since;
        let is_one = self.wanted.as_ref().is_some_and(|wanted| wanted.is_open_in(pid))
            || is_young && (Some(place.session) == self.session || self.is_named_by(pid));
        Some((place, is_one))
    }

    fn is_named_by(&self, pid: u32) -> bool {
        let Some(named) = &self.named else { return false };
        let mut text = Vec::new();
        let read = File::open(format!("/proc/{pid}/environ"))
            .and_then(|file| file.take(ENVIRONMENT_MAX_BYTES).read_to_end(&mut text));
        read.is_ok() && text.split(|byte| *byte == 0).any(|entry| entry == named.as_bytes())
    }
}

/// A file that processes may have open.
struct OpenFile {
    path: PathBuf,
    file: fs::Metadata,
    /// Its name in `/proc`.
    name: PathBuf,
}

impl OpenFile {
    fn at(path: &Path) -> io::Result<Self> {
        let open = hold(path)?;
        let name = fs::read_link(format!("/proc/thread-self/fd/{}", open.as_raw_fd()))?;
        Ok(Self { path: path.to_owned(), file: File::from(open).metadata()?, name })
    }

    /// Whether a process has the file open. `false` for other users' processes, which are not visible and have no files
    /// of ours. Follows descriptors only if the name matches: any other file may hang.
    fn is_open_in(&self, pid: u32) -> bool {
        let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        let is_open = fds.flatten().map(|fd| fd.path()).any(|fd| {
            fs::read_link(&fd).is_ok_and(|name| name == self.name)
                && fs::metadata(&fd).is_ok_and(|found| self.is(&found))
        });
        // The number of a removed file is reused at once, possibly for a file of an unrelated process: if the file
        // still exists after the search, the number was its own.
        is_open && fs::metadata(&self.path).is_ok_and(|found| self.is(&found))
    }

    fn is(&self, other: &fs::Metadata) -> bool {
        (self.file.dev(), self.file.ino()) == (other.dev(), other.ino())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::session_of;
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    /// Starts `script` in its own session. Returns when it has run up to its `echo`.
    fn session(script: &str, variable: Option<&Path>) -> (Child, FirstProcess) {
        let mut command = Command::new("setsid");
        command.args(["/bin/sh", "-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        variable.map(|path| command.env(VARIABLE, path));
        let mut child = command.spawn().unwrap();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
        assert_eq!(session_of(child.id()), Some(child.id()));
        let process = ProcessId::of(child.id()).unwrap();
        (child, FirstProcess { process, trace: variable.unwrap_or(Path::new("/nonexistent")).to_owned() })
    }

    fn end_all(marks: &ProcessMarks) {
        let until = Instant::now() + Duration::from_secs(10);
        while !marks.end(Vec::new).unwrap().is_empty() {
            assert!(Instant::now() < until, "they do not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The pids of processes with this argument.
    fn running(seconds: &str) -> Vec<u32> {
        let line = format!("sleep\0{seconds}\0");
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|found| found == line.as_bytes())
        })
        .collect()
    }

    #[test]
    fn each_rope_alone_is_enough_and_a_stopped_process_is_ended_as_well() {
        let dir = tempfile::tempdir().unwrap();
        let own = std::process::id();
        let trace = dir.path().join("id.tree");
        // The first process is gone, and no process has the file open.
        let cases = [
            ("the session", None, "sleep"),
            ("the variable", Some(trace.as_path()), "setsid sleep"),
            ("the parent", Some(trace.as_path()), "setsid sh -c 'env -i setsid \"$@\" & wait' - sleep"),
        ];
        for (n, (what, variable, start)) in cases.into_iter().enumerate() {
            let seconds = format!("{}.{own}{n}", 4000 + n);
            let (mut child, first) =
                session(&format!("{start} {seconds} >/dev/null & echo; read line"), variable);
            let until = Instant::now() + Duration::from_secs(10);
            let left = loop {
                match running(&seconds)[..] {
                    [pid] => break pid,
                    _ => assert!(Instant::now() < until, "{what}: it does not start"),
                }
                std::thread::yield_now();
            };
            kill(pidfd_open(left).unwrap(), Signal::SIGSTOP).unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
            assert_eq!(running(&seconds), [left], "{what}");
            let mut other = Command::new("/bin/cat").stdin(Stdio::piped()).spawn().unwrap();
            let another = FirstProcess { trace: dir.path().join("another.tree"), ..first.clone() };
            let stranger = FirstProcess {
                process: ProcessId {
                    start_ticks: first.process.start_ticks + 1_000_000,
                    ..first.process.clone()
                },
                ..another
            };
            assert!(ProcessMarks::of_first(stranger).end(Vec::new).unwrap().is_empty(), "{what}");
            end_all(&ProcessMarks::of_first(first));
            assert_eq!(running(&seconds), [0_u32; 0], "{what}");
            assert!(other.try_wait().unwrap().is_none());
            drop(other.stdin.take());
            assert!(other.wait().unwrap().success());
        }
    }

    #[test]
    fn what_is_put_down_is_read_in_this_boot_and_forgotten_by_its_own_program() {
        let dir = tempfile::tempdir().unwrap();
        let (path, trace) = (dir.path().join("program.first"), dir.path().join("id.tree"));
        let first = FirstProcess { process: ProcessId::own().unwrap(), trace: trace.clone() };
        assert_eq!(FirstProcess::read(&path), None);
        first.note(&path).unwrap();
        assert_eq!(FirstProcess::read(&path), Some(first.clone()));
        FirstProcess::forget(&path, &dir.path().join("another.tree"));
        assert_eq!(FirstProcess::read(&path), Some(first.clone()));
        FirstProcess::forget(&path, &trace);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let process = ProcessId { boot_id: "another".to_owned(), ..first.process };
        FirstProcess { process, trace }.note(&path).unwrap();
        assert_eq!(FirstProcess::read(&path), None);
        fs::write(&path, "rubbish").unwrap();
        assert_eq!(FirstProcess::read(&path), None);
    }
}
