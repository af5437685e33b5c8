//! Files that a program keeps open unknowingly. They show whether any part of it is still running.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::leftovers::{FIRST, FirstProcess, ProcessMarks};
use crate::sys::errno::Errno;
use crate::sys::file_lock::{FlockArg, flock};
use crate::sys::process::{ProcessId, name_of};
use crate::sys::user::real_user;

/// A lock that the shim, the program and all its descendants hold together. It is free only when all of them are gone.
///
/// The lock belongs to the open file, so a process that inherited the file before the lock was taken holds it too.
pub(super) struct ProgramLock {
    file: File,
    path: PathBuf,
    is_taken: bool,
}

impl ProgramLock {
    /// Opens the file without locking it.
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
        Ok(Self { file, path, is_taken: false })
    }

    /// Takes the lock. Kills what remains of an earlier program: its shim is gone, or this one would not have the data
    /// lock. `own` lists the processes of this shim. Also kills remains that do not hold the lock, because a launcher
    /// closed unknown descriptors.
    ///
    /// If a process does not end, the error names the lock, and its holder if known: the files of other users'
    /// processes, or of processes with capabilities, are not visible.
    pub(super) fn take(&mut self, own: impl Fn() -> Vec<u32>) -> io::Result<()> {
        self.take_within(ENDED_WITHIN, own)
    }

    fn take_within(&mut self, limit: Duration, own: impl Fn() -> Vec<u32>) -> io::Result<()> {
        let (until, mut pause) = (Instant::now() + limit, TICK);
        let noted = self.path.with_extension(FIRST);
        // A program that ended completely has removed the note.
        let earlier = FirstProcess::read(&noted).map(ProcessMarks::of_first);
        loop {
            let is_free = match flock(&self.file, FlockArg::LockExclusiveNonblock) {
                Ok(()) => true,
                Err(Errno::EWOULDBLOCK) => false,
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let mut left = match &earlier {
                Some(marks) => marks.end(&own)?,
                None => BTreeSet::new(),
            };
            if is_free && left.is_empty() {
                let _ = fs::remove_file(noted);
                self.is_taken = true;
                return Ok(());
            }
            if !is_free {
                left.extend(ProcessMarks::of_file(&self.path).end(&own)?);
            }
            if Instant::now() > until {
                return Err(io::Error::other(held(&self.path, &left)));
            }
            std::thread::sleep(pause);
            pause = (2 * pause).min(PAUSE_MAX);
        }
    }

    /// Records the first process of the program, the session leader, for the next taker of the lock. Until the lock is
    /// taken, the record describes another program. It is not in the lock file, because the program has that open.
    pub(super) fn note(&self, process: ProcessId, trace: &Path) -> io::Result<()> {
        if !self.is_taken {
            return Ok(());
        }
        FirstProcess { process, trace: trace.to_owned() }.note(&self.path.with_extension(FIRST))
    }

    /// Removes the record: the program with `trace` is completely gone.
    pub(super) fn forget(&self, trace: &Path) {
        FirstProcess::forget(&self.path.with_extension(FIRST), trace);
    }

    /// A duplicate for the program. All duplicates share the lock.
    pub(super) fn duplicate(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }
}

/// Names the holder, for people.
fn held(path: &Path, left: &BTreeSet<u32>) -> String {
    let who = match left.is_empty() {
        true => match unseen().as_slice() {
            [] => "a process whose files are not visible to this user".to_owned(),
            unseen => {
                format!("a process whose files are not visible to this user, perhaps {}", unseen.join(", "))
            }
        },
        false => format!("process {}", named(left)),
    };
    format!(
        "{} is held by {who}, which an earlier program has left and which could not be ended; end it as root: \
         `fuser {0}` names it",
        path.display()
    )
}

/// Lists processes, for people.
pub(crate) fn named(pids: &BTreeSet<u32>) -> String {
    let named: Vec<String> =
        pids.iter().map(|pid| format!("{pid} ({})", name_of(*pid).unwrap_or_default())).collect();
    named.join(", ")
}

/// Processes of this user whose files are not visible, for people.
fn unseen() -> Vec<String> {
    let own = real_user().to_string();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_own = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let real = status.lines().find_map(|line| line.strip_prefix("Uid:"));
        real.and_then(|uids| uids.split_whitespace().next()).is_some_and(|uid| uid == own)
    };
    let is_unseen = |pid: &u32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd"));
        files.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    };
    let unseen = pids.filter(|pid| is_unseen(pid) && is_own(pid)).take(UNSEEN_MAX);
    unseen.map(|pid| format!("{pid} ({})", name_of(pid).unwrap_or_default())).collect()
}

/// A file that is open in every process of the program. It is removed last of a shim's files: while it exists, the
/// daemon looks for the others.
pub(super) struct Trace(File);

impl Trace {
    pub(super) fn leave(path: &Path) -> io::Result<Self> {
        Ok(Self(File::create(path)?))
    }

    pub(super) fn duplicate(&self) -> io::Result<OwnedFd> {
        Ok(self.0.try_clone()?.into())
    }
}

/// The directory of the sockets for readiness messages, next to the directory of the adoption sockets.
pub(super) const NOTIFY_DIR: &str = "notify";

/// Time limit to end the remains of a shim.
const ENDED_WITHIN: Duration = Duration::from_secs(5);
/// A killed process holds its files for a moment.
const TICK: Duration = Duration::from_millis(2);
/// Examining all processes takes milliseconds, so repeated attempts become less frequent.
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// Maximum number of processes to list.
const UNSEEN_MAX: usize = 5;

/// Kills the remains of a shim that is gone, and removes its files. Blocks until nothing is left. Returns the processes
/// that did not end, or an error if the processes cannot be examined. In both cases the files stay for the next attempt.
pub(crate) fn end_what_is_left(trace: &Path) -> io::Result<BTreeSet<u32>> {
    let (until, marks) = (Instant::now() + ENDED_WITHIN, ProcessMarks::of_trace(trace));
    let mut pause = TICK;
    loop {
        let left = marks.end(Vec::new)?;
        if left.is_empty() {
            break;
        }
        if Instant::now() > until {
            return Ok(left);
        }
        std::thread::sleep(pause);
        pause = (2 * pause).min(PAUSE_MAX);
    }
    remove_files(&trace.with_extension(""));
    // The one of a command has no extension.
    let _ = fs::remove_file(trace);
    Ok(BTreeSet::new())
}

/// Removes the files of a shim, complete or not, of whose program nothing is left. Keeps its socket, and its reports,
/// which the daemon takes. The trace is the last: while it exists, the daemon looks for the others.
pub(super) fn remove_files(own: &Path) {
    let _ = fs::remove_file(notify_path(own));
    let trace = own.with_extension(super::TRACE);
    let entries = own.parent().and_then(|directory| fs::read_dir(directory).ok());
    for path in entries.into_iter().flatten().flatten().map(|entry| entry.path()) {
        let is_own = path != own && path.with_extension("") == own;
        if is_own && path != trace && !super::killed::is_report(&path) && !super::lost::is_report(&path) {
            let _ = fs::remove_file(path);
        }
    }
    let _ = fs::remove_file(trace);
}

/// The socket for readiness messages of a program whose shim has its files at this path. It is in another directory: a
/// program that has dropped its privileges must reach it.
pub(super) fn notify_path(own_path: &Path) -> PathBuf {
    let name = Path::new(own_path.file_stem().unwrap_or_default());
    let above = own_path.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    above.join(NOTIFY_DIR).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::session_of;
    use std::process::{Command, Stdio};
    use std::sync::mpsc;

    /// Whether this process runs `test` alone. If not, another process has done that when this returns: until its exec, a child of another
    /// test has the open files of this one, and would be ended too.
    fn is_alone(test: &str) -> bool {
        const VARIABLE: &str = "HANDOFF_TEST_FILES_ALONE";
        if std::env::var_os(VARIABLE).is_some() {
            return true;
        }
        let (_, module) = module_path!().split_once("::").unwrap();
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", &format!("{module}::{test}"), "--nocapture"]).env(VARIABLE, "1");
        let output = again.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{output:?}");
        false
    }

    fn take_within(path: &Path, limit: Duration) -> io::Result<ProgramLock> {
        let mut lock = ProgramLock::open(path.to_owned())?;
        lock.take_within(limit, Vec::new).map(|()| lock)
    }

    fn take(path: &Path) -> io::Result<ProgramLock> {
        take_within(path, ENDED_WITHIN)
    }

    #[test]
    fn all_files_of_a_shim_are_removed_but_its_socket_and_its_reports() {
        let dir = tempfile::tempdir().unwrap();
        let kept = ["01a1", "01a1.killed", "01a1.killed-7-0", "01a1.lost", "01a2.left", "01a11.pid"];
        let removed = ["01a1.left", "01a1.pid-new", "01a1.first-7", "01a1.drains-new", "01a1.tree"];
        for name in kept.iter().chain(&removed) {
            fs::write(dir.path().join(name), "").unwrap();
        }
        remove_files(&dir.path().join("01a1"));
        let names =
            fs::read_dir(dir.path()).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap());
        assert_eq!(names.collect::<BTreeSet<_>>(), kept.map(str::to_owned).into());
    }

    #[test]
    fn whoever_has_the_file_open_is_ended_and_nobody_else() {
        if !is_alone("whoever_has_the_file_open_is_ended_and_nobody_else") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program.lock");
        let lock = take(&path).unwrap();
        let mut holder =
            Command::new("/bin/cat").stdin(Stdio::piped()).stdout(lock.duplicate().unwrap()).spawn().unwrap();
        let mut other = Command::new("/bin/cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        drop(lock);
        let again = take(&path).unwrap();
        assert!(!holder.wait().unwrap().success());
        assert!(other.try_wait().unwrap().is_none());
        drop(other.stdin.take());
        assert!(other.wait().unwrap().success());
        drop(again);
        for path in [path, dir.path().join("missing")] {
            assert!(ProcessMarks::of_file(&path).end(Vec::new).unwrap().is_empty());
        }
    }

    /// It is held in its first bind.
    #[test]
    fn a_program_that_was_started_before_the_lock_was_taken_holds_it_as_well() {
        if !is_alone("a_program_that_was_started_before_the_lock_was_taken_holds_it_as_well") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program.lock");
        let cat = |lock: &ProgramLock| {
            let held = lock.duplicate().unwrap();
            Command::new("/bin/cat").stdin(Stdio::piped()).stdout(held).spawn().unwrap()
        };
        let earlier = take(&path).unwrap();
        let mut left = cat(&earlier);
        drop(earlier);
        let mut lock = ProgramLock::open(path.clone()).unwrap();
        let mut warm = cat(&lock);
        lock.note(ProcessId::of(warm.id()).unwrap(), &path).unwrap();
        assert!(!path.with_extension(FIRST).exists(), "the record describes the holder of the lock");
        lock.take(|| vec![warm.id()]).unwrap();
        assert!(!left.wait().unwrap().success(), "it belongs to an earlier shim");
        assert!(warm.try_wait().unwrap().is_none(), "it is this shim's own");
        // The shim dies.
        drop(lock);
        let next = take(&path).unwrap();
        assert!(!warm.wait().unwrap().success(), "it ran beside its successor");
        drop(next);
    }

    /// A process that has the lock through its own open file stands for an invisible one.
    #[test]
    fn a_holder_that_cannot_be_found_is_told_and_one_that_was_put_down_is_ended() {
        if !is_alone("a_holder_that_cannot_be_found_is_told_and_one_that_was_put_down_is_ended") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program.lock");
        // Held by this process, which is never killed, so the holder appears invisible.
        let lock = take(&path).unwrap();
        let begun = Instant::now();
        let error = take_within(&path, Duration::from_millis(300)).map(drop).unwrap_err().to_string();
        assert!(error.contains("program.lock is held by a process whose files"), "{error}");
        assert!(begun.elapsed() < ENDED_WITHIN);
        // A session leader with a recorded pid.
        let mut noted = Command::new("setsid").args(["/bin/cat"]).stdin(Stdio::piped()).spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        while session_of(noted.id()) != Some(noted.id()) {
            assert!(Instant::now() < until, "it does not lead a session");
            std::thread::sleep(TICK);
        }
        lock.note(ProcessId::of(noted.id()).unwrap(), &dir.path().join("id.tree")).unwrap();
        let error = take_within(&path, Duration::from_millis(100)).map(drop).unwrap_err().to_string();
        assert!(error.contains("is held by"), "{error}");
        assert!(!noted.wait().unwrap().success());
        drop(lock);
        assert!(take(&path).is_ok());
    }

    #[test]
    fn nobody_is_ended_whose_file_got_the_number_of_one_that_was_removed() {
        if !is_alone("nobody_is_ended_whose_file_got_the_number_of_one_that_was_removed") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        for n in 0..200 {
            let path = dir.path().join(format!("trace-{n}"));
            File::create(&path).unwrap();
            let (begins, begun) = mpsc::channel();
            std::thread::scope(|scope| {
                let looking = scope.spawn(|| {
                    begins.send(()).unwrap();
                    ProcessMarks::of_file(&path).end(Vec::new)
                });
                // At any time during the search.
                begun.recv().unwrap();
                std::thread::sleep(Duration::from_micros(n % 20 * 20));
                fs::remove_file(&path).unwrap();
                let next = File::create(dir.path().join(format!("next-{n}"))).unwrap();
                let mut other = Command::new("/bin/cat").stdin(Stdio::piped()).stdout(next).spawn().unwrap();
                looking.join().unwrap().unwrap();
                drop(other.stdin.take());
                assert!(other.wait().unwrap().success(), "in round {n}");
            });
        }
    }
}
