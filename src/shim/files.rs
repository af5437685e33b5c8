//! Files that a program keeps open without knowing of them: so whoever looks can tell that something of it is still there.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::left::{FIRST, First, Ropes};
use crate::sys::errno::Errno;
use crate::sys::file_lock::{FlockArg, flock};
use crate::sys::process::{ProcessId, name_of};
use crate::sys::user::real_user;

/// A lock that the program and everything that it starts hold together with the shim. It is free only when all of them are gone.
///
/// It belongs to the open file, so who has got that before the lock is taken holds it as well.
pub(super) struct ProgramLock {
    file: File,
    path: PathBuf,
    is_taken: bool,
}

impl ProgramLock {
    /// Takes nothing yet.
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
        Ok(Self { file, path, is_taken: false })
    }

    /// Takes it. What is left of an earlier program is killed: its shim is gone, or this one would not have the data lock. `own` is
    /// what this shim has started. Also when the lock is free, nothing of an earlier program is left after this: what a launcher
    /// started that closes what it does not know does not hold the lock. An error that names the lock, and its holder if that is
    /// known, if something does not end: the files of a process of another user, or of one with capabilities of its own, cannot be
    /// seen.
    pub(super) fn take(&mut self, own: impl Fn() -> Vec<u32>) -> io::Result<()> {
        self.take_within(ENDED_WITHIN, own)
    }

    fn take_within(&mut self, limit: Duration, own: impl Fn() -> Vec<u32>) -> io::Result<()> {
        let (until, mut pause) = (Instant::now() + limit, TICK);
        let noted = self.path.with_extension(FIRST);
        // A program that has ended in order as a whole has taken it back.
        let earlier = First::read(&noted).map(Ropes::of_first);
        loop {
            let is_free = match flock(&self.file, FlockArg::LockExclusiveNonblock) {
                Ok(()) => true,
                Err(Errno::EWOULDBLOCK) => false,
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let mut left = match &earlier {
                Some(ropes) => ropes.end(&own)?,
                None => BTreeSet::new(),
            };
            if is_free && left.is_empty() {
                let _ = fs::remove_file(noted);
                self.is_taken = true;
                return Ok(());
            }
            if !is_free {
                left.extend(Ropes::of_file(&self.path).end(&own)?);
            }
            if Instant::now() > until {
                return Err(io::Error::other(held(&self.path, &left)));
            }
            std::thread::sleep(pause);
            pause = (2 * pause).min(PAUSE_MAX);
        }
    }

    /// For the next one that takes it: the first process of the program, which leads a session of its own. What is there before it is
    /// taken is about another program. It is not put into the file, which the program has open.
    pub(super) fn note(&self, process: ProcessId, trace: &Path) -> io::Result<()> {
        if !self.is_taken {
            return Ok(());
        }
        First { process, trace: trace.to_owned() }.note(&self.path.with_extension(FIRST))
    }

    /// The program that has `trace` open is gone as a whole.
    pub(super) fn forget(&self, trace: &Path) {
        First::forget(&self.path.with_extension(FIRST), trace);
    }

    /// For the program. The lock belongs to all duplicates together.
    pub(super) fn duplicate(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }
}

/// Who holds it, for a person.
fn held(path: &Path, left: &BTreeSet<u32>) -> String {
    let who = match left.is_empty() {
        true => match unseen().as_slice() {
            [] => "a process whose files this user may not see".to_owned(),
            unseen => format!("a process whose files this user may not see, perhaps {}", unseen.join(", ")),
        },
        false => format!("process {}", named(left)),
    };
    format!(
        "{} is held by {who}, which an earlier program has left and which could not be ended; end it as root: \
         `fuser {0}` names it",
        path.display()
    )
}

/// Processes, for a person.
pub(crate) fn named(pids: &BTreeSet<u32>) -> String {
    let named: Vec<String> =
        pids.iter().map(|pid| format!("{pid} ({})", name_of(*pid).unwrap_or_default())).collect();
    named.join(", ")
}

/// Processes of this user whose files are not to be seen, for a person.
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

/// A file that is open in every process of the program. It is the last that is removed of what a shim has left: while it is there,
/// the daemon looks for the rest.
pub(super) struct Trace(File);

impl Trace {
    pub(super) fn leave(path: &Path) -> io::Result<Self> {
        Ok(Self(File::create(path)?))
    }

    pub(super) fn duplicate(&self) -> io::Result<OwnedFd> {
        Ok(self.0.try_clone()?.into())
    }
}

/// The directory of the sockets over which programs say that they are ready, beside the one of the sockets of adoption.
pub(super) const NOTIFY_DIR: &str = "notify";

/// For how long it is tried to end what a shim has left.
const ENDED_WITHIN: Duration = Duration::from_secs(5);
/// A process that was killed holds its files for a moment.
const TICK: Duration = Duration::from_millis(2);
/// To look at all processes costs some milliseconds: where it does not help it is done rarely.
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// More processes are not named.
const UNSEEN_MAX: usize = 5;

/// Kills what a shim that is gone has left, and removes its files. Blocks until nothing is left. Gives what could not be ended: then the
/// files stay, for the next look.
pub(crate) fn end_what_is_left(trace: &Path) -> BTreeSet<u32> {
    let (until, ropes) = (Instant::now() + ENDED_WITHIN, Ropes::of_trace(trace));
    let mut pause = TICK;
    // What cannot be looked at at all is nothing of this user.
    while let Ok(left) = ropes.end(Vec::new)
        && !left.is_empty()
    {
        if Instant::now() > until {
            return left;
        }
        std::thread::sleep(pause);
        pause = (2 * pause).min(PAUSE_MAX);
    }
    let _ = fs::remove_file(notify_path(trace));
    for extension in [super::PID, super::WAITS, super::REFUSED, super::SIDE, FIRST] {
        let _ = fs::remove_file(trace.with_extension(extension));
    }
    let _ = fs::remove_file(trace);
    BTreeSet::new()
}

/// Where a program says that it is ready whose shim leaves its files at this path. Not beside them: a program that has given its
/// privileges up must get there.
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
    use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};

    /// Before it executes its program, a child that one test starts has what the other one has open.
    fn alone() -> MutexGuard<'static, ()> {
        static ALONE: Mutex<()> = Mutex::new(());
        ALONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_within(path: &Path, limit: Duration) -> io::Result<ProgramLock> {
        let mut lock = ProgramLock::open(path.to_owned())?;
        lock.take_within(limit, Vec::new).map(|()| lock)
    }

    fn take(path: &Path) -> io::Result<ProgramLock> {
        take_within(path, ENDED_WITHIN)
    }

    #[test]
    fn whoever_has_the_file_open_is_ended_and_nobody_else() {
        let _alone = alone();
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
            assert!(Ropes::of_file(&path).end(Vec::new).unwrap().is_empty());
        }
    }

    /// It waits for its turn in its first bind.
    #[test]
    fn a_program_that_was_started_before_the_lock_was_taken_holds_it_as_well() {
        let _alone = alone();
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
        assert!(
            !path.with_extension(FIRST).exists(),
            "what is put down is about the one that holds the lock"
        );
        lock.take(|| vec![warm.id()]).unwrap();
        assert!(!left.wait().unwrap().success(), "it has been left by an earlier shim");
        assert!(warm.try_wait().unwrap().is_none(), "it is this shim's own");
        // The shim dies.
        drop(lock);
        let next = take(&path).unwrap();
        assert!(!warm.wait().unwrap().success(), "it was at work beside the next one");
        drop(next);
    }

    /// A process that cannot be looked at is played by one that has the lock by an open of its own.
    #[test]
    fn a_holder_that_cannot_be_found_is_told_and_one_that_was_put_down_is_ended() {
        let _alone = alone();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program.lock");
        // Held by this process, which is never ended: as if nobody could be seen to have it.
        let lock = take(&path).unwrap();
        let begun = Instant::now();
        let error = take_within(&path, Duration::from_millis(300)).map(drop).unwrap_err().to_string();
        assert!(error.contains("program.lock is held by a process whose files"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(3));
        // One that leads a session of its own, and has put its pid down.
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
        let _alone = alone();
        let dir = tempfile::tempdir().unwrap();
        for n in 0..200 {
            let path = dir.path().join(format!("trace-{n}"));
            File::create(&path).unwrap();
            let (begins, begun) = mpsc::channel();
            std::thread::scope(|scope| {
                let looking = scope.spawn(|| {
                    begins.send(()).unwrap();
                    Ropes::of_file(&path).end(Vec::new)
                });
                // At any moment of the look.
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
