//! Processes by pidfd, and an identity that stays valid after the pid is reused.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use nix::sys::signal::Signal;

use super::clock::since_boot;
use super::errno::{Errno, errno_of, retry};
use super::pidfd;
use super::seccomp::read_memory;
use super::system_call::{blocked_call, threads_of};

/// The unit of times in `/proc`, which the kernel keeps for programs whatever its own clock does (`USER_HZ`).
const TICKS_PER_SECOND: u64 = 100;

/// Identifies a process among all that ever had its pid, across reboots.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// The pid.
    pub pid: u32,
    /// Start time in clock ticks since boot: field 22 of `/proc/<pid>/stat`.
    pub start_ticks: u64,
    /// The boot: `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

impl ProcessId {
    /// Reads the identity of the process that currently has this pid. `NotFound` if there is none.
    pub fn of(pid: u32) -> io::Result<ProcessId> {
        let stat = read_at_once(&format!("/proc/{pid}/stat")).map_err(|error| {
            // ESRCH instead of ENOENT: the process ended during the read.
            if errno_of(&error) == Some(Errno::ESRCH) { io::ErrorKind::NotFound.into() } else { error }
        })?;
        let start_ticks = start_ticks(&stat).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has no start time"))
        })?;
        Ok(ProcessId { pid, start_ticks, boot_id: boot_id()? })
    }

    /// Reads the identity of the calling process.
    pub fn own() -> io::Result<ProcessId> {
        ProcessId::of(std::process::id())
    }

    /// Opens the process if it still exists and is the same one. `None` if it is gone; a zombie still exists.
    pub fn open(&self) -> io::Result<Option<OwnedFd>> {
        let pidfd = match pidfd_open(self.pid) {
            Ok(pidfd) => pidfd,
            Err(error) if errno_of(&error) == Some(Errno::ESRCH) => return Ok(None),
            Err(error) => return Err(error),
        };
        // Checked after the open: if the pid is still the same process now, it was when it was opened.
        match ProcessId::of(self.pid) {
            Ok(found) if found == *self => Ok(Some(pidfd)),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// How a process ended. Exactly one field is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exited with code {code}"),
            (None, Some(signal)) => write!(f, "was ended by signal {signal}"),
            (None, None) => f.write_str("ended"),
        }
    }
}

/// Opens a process by its pid; close-on-exec. The pidfd becomes readable when the process has ended.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0);
    let pid = pid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not the pid of a process"))?;
    Ok(pidfd::open(pid, 0)?)
}

/// Like [`pidfd_open`], for a thread, which may have its own descriptor table. Kernels before 6.9 open processes only:
/// there it opens the thread's process `pid`.
pub fn pidfd_open_thread(thread: u32, pid: u32) -> io::Result<OwnedFd> {
    let open = |id: u32, flags| {
        let id = i32::try_from(id).ok().filter(|id| *id > 0).ok_or(Errno::ESRCH)?;
        pidfd::open(id, flags)
    };
    match open(thread, libc::PIDFD_THREAD) {
        Err(Errno::EINVAL) => Ok(open(pid, 0)?),
        other => Ok(other?),
    }
}

/// Reaps a child. `None` while it runs. Does not block. Reap each child once; the second time, and for any other
/// process, it is ECHILD.
pub fn reap(pidfd: BorrowedFd<'_>) -> io::Result<Option<Exit>> {
    wait(pidfd, libc::WEXITED | libc::WNOHANG)
}

/// Like [`reap`], but waits until the child has ended.
pub fn reap_blocking(pidfd: BorrowedFd<'_>) -> io::Result<Exit> {
    loop {
        if let Some(exit) = wait(pidfd, libc::WEXITED)? {
            return Ok(exit);
        }
    }
}

/// The process and all its descendants. This is a snapshot without a lock: a process that is born or loses its parent
/// in the meantime may be missing. Orphans belong to the nearest subreaper, so ask for the subreaper's tree.
pub fn tree_of(root: u32) -> Vec<u32> {
    // Some kernels are built without this file.
    static HAS_CHILDREN_FILE: OnceLock<bool> = OnceLock::new();
    let has_file = HAS_CHILDREN_FILE.get_or_init(|| Path::new("/proc/thread-self/children").exists());
    if *has_file {
        return tree(root, children_of);
    }
    let parents = parents();
    tree(root, |of| parents.iter().filter(|(_, parent)| *parent == of).map(|(pid, _)| *pid).collect())
}

fn tree(root: u32, children: impl Fn(u32) -> Vec<u32>) -> Vec<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        let new: Vec<u32> = children(*pid).into_iter().filter(|child| !found.contains(child)).collect();
        found.extend(new);
        next += 1;
    }
    found
}

/// Whether all threads of a process are stopped by a signal, or have ended.
pub fn is_stopped(pid: u32) -> bool {
    states_of(pid).all(|state| matches!(state, 'T' | 't' | 'Z' | 'X'))
}

/// Whether all threads of an existing process are stopped, by a signal or a debugger.
pub fn is_frozen(pid: u32) -> bool {
    is_stopped(pid) && states_of(pid).any(|state| matches!(state, 'T' | 't'))
}

/// The process that traces this one (ptrace(2)).
pub fn tracer_of(pid: u32) -> Option<u32> {
    let status = read_at_once(&format!("/proc/{pid}/status")).ok()?;
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
    tracer.trim().parse().ok().filter(|tracer| *tracer != 0)
}

/// Whether a debugger has stopped a thread of a process.
pub fn is_traced(pid: u32) -> bool {
    states_of(pid).any(|state| state == 't')
}

/// Whether a thread of a process is running, runnable, or waiting for a disk.
pub fn is_busy(pid: u32) -> bool {
    states_of(pid).any(|state| matches!(state, 'R' | 'D'))
}

/// Whether a thread of a process waits for a disk, or for another answer that it cannot give up waiting for.
pub fn is_waiting_for_disk(pid: u32) -> bool {
    states_of(pid).any(|state| state == 'D')
}

/// The processor time of a process so far, with that of its children that it has reaped.
pub fn cpu_time_of(pid: u32) -> Option<Duration> {
    let stat = read_at_once(&format!("/proc/{pid}/stat")).ok()?;
    let ticks: Option<Vec<u64>> = (14..=17).map(|number| stat_field(&stat, number)).collect();
    Some(Duration::from_millis(ticks?.into_iter().sum::<u64>() * 1_000 / TICKS_PER_SECOND))
}

/// How much a process has read from disks and written to them so far. `None` if this user may not see it.
pub fn disk_bytes_of(pid: u32) -> Option<u64> {
    let io = read_at_once(&format!("/proc/{pid}/io")).ok()?;
    let fields = io.lines().filter_map(|line| line.split_once(": "));
    let fields = fields.filter(|(name, _)| matches!(*name, "read_bytes" | "write_bytes"));
    Some(fields.filter_map(|(_, bytes)| bytes.parse::<u64>().ok()).sum())
}

/// How long ago a process was started, to a hundredth of a second, rounded up. `None` if it is gone.
pub fn age_of(pid: u32) -> Option<Duration> {
    let started = Duration::from_millis(place_of(pid)?.start_ticks * 1_000 / TICKS_PER_SECOND);
    Some(since_boot().saturating_sub(started))
}

/// The name of a process: that of its program, or one that it has set.
pub fn name_of(pid: u32) -> Option<String> {
    let name = read_at_once(&format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end_matches('\n').to_owned())
}

/// Whether a signal has its default action in a process: its main thread neither catches, ignores nor blocks it, and no
/// thread waits for it in sigwait(3), during which the kernel shows it as not blocked.
pub fn dies_of(pid: u32, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let bit = 1_u64 << (signal as i32 - 1);
    let sets = status.lines().filter_map(|line| line.split_once(":\t"));
    let sets = sets.filter(|(name, _)| ["SigBlk", "SigIgn", "SigCgt"].contains(name));
    let is_default = sets.filter_map(|(_, set)| u64::from_str_radix(set, 16).ok()).all(|set| set & bit == 0);
    is_default && threads_of(pid).all(|thread| awaited_by(pid, thread) & bit == 0)
}

/// The signals for which a thread waits in rt_sigtimedwait(2), bit by bit; none if it does not, or is out of reach. The
/// first argument of the call is the address of the set.
fn awaited_by(pid: u32, thread: u32) -> u64 {
    let call = blocked_call(pid, thread).filter(|call| call.number == libc::SYS_rt_sigtimedwait);
    let mut bits = [0; 8];
    match call {
        Some(call) if read_memory(thread, call.args[0], &mut bits).is_ok() => u64::from_ne_bytes(bits),
        _ => 0,
    }
}

/// Whether a process has ended and waits for its parent to reap it.
pub fn is_zombie(pid: u32) -> bool {
    let stat = read_at_once(&format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| stat_field::<char>(&stat, 3) == Some('Z'))
}

/// Whether all threads of a process have ended, or the process is gone. Other threads of a zombie may still run after
/// its main thread.
pub fn has_ended(pid: u32) -> bool {
    states_of(pid).all(|state| matches!(state, 'Z' | 'X'))
}

/// The position of a process in the process tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessPosition {
    /// Its parent; 0 if that is in another namespace.
    pub parent: u32,
    /// Its session: the pid of the session leader, which may be gone.
    pub session: u32,
    /// Start time in clock ticks since boot.
    pub start_ticks: u64,
}

/// Reads the position of a process at once; `None` if there is no such process.
pub fn place_of(pid: u32) -> Option<ProcessPosition> {
    let stat = read_at_once(&format!("/proc/{pid}/stat")).ok()?;
    let [parent, session] = [4, 6].map(|number| stat_field(&stat, number));
    Some(ProcessPosition { parent: parent?, session: session?, start_ticks: start_ticks(&stat)? })
}

/// The state letter of each thread: proc_pid_stat(5).
fn states_of(pid: u32) -> impl Iterator<Item = char> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let stats = threads.filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
    // The name, which may contain anything, is in parentheses; the state follows.
    stats.filter_map(|stat| stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()))
}

/// The children of a process. Each of its threads has a list of its own.
pub fn children_of(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// Every process with its parent.
fn parents() -> Vec<(u32, u32)> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, stat_field(&read_at_once(&format!("/proc/{pid}/stat")).ok()?, 4)?)))
        .collect()
}

/// The parent of a process; 0 if it is in another namespace.
pub fn parent_of(pid: u32) -> Option<u32> {
    stat_field(&read_at_once(&format!("/proc/{pid}/stat")).ok()?, 4)
}

/// The session of a process: the pid of its leader, which may be gone.
pub fn session_of(pid: u32) -> Option<u32> {
    stat_field(&read_at_once(&format!("/proc/{pid}/stat")).ok()?, 6)
}

/// Sends a signal to exactly this process, never to another one that reused its pid. ESRCH if it has been reaped.
pub fn kill(pidfd: impl AsFd, signal: Signal) -> io::Result<()> {
    Ok(pidfd::send_signal(pidfd.as_fd(), signal)?)
}

/// Not nix's waitid: nix has no names for real-time signals, and would return an error for a child that one of them
/// ended.
fn wait(pidfd: BorrowedFd<'_>, options: i32) -> io::Result<Option<Exit>> {
    let id = pidfd.as_raw_fd().unsigned_abs();
    // SAFETY: all fields are integers, for which zero is valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes the structure, which lives until the call returns.
    retry(|| Errno::result(unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, options) }))?;
    // SAFETY: the call has set these fields, or left them zero if no child has ended.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    let exit = match info.si_code {
        libc::CLD_EXITED => Exit { code: Some(status), signal: None },
        _ => Exit { code: None, signal: Some(status) },
    };
    Ok((pid != 0).then_some(exit))
}

/// One read for the whole file: the kernel generates the content at the first read, and `fs::read_to_string` would read
/// six times.
pub(super) fn read_at_once(path: &str) -> io::Result<String> {
    let mut buffer = [0; 1024];
    let count = fs::File::open(path)?.read(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..count]).into_owned())
}

/// The boot id. It does not change while this process lives.
fn boot_id() -> io::Result<String> {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    if let Some(known) = BOOT_ID.get() {
        return Ok(known.clone());
    }
    let found = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    Ok(BOOT_ID.get_or_init(|| found).clone())
}

/// The program name may contain blanks and parentheses, so fields are counted from the last `)`.
pub(super) fn stat_field<T: FromStr>(stat: &str, number: usize) -> Option<T> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(number - 3)?.parse().ok()
}

fn start_ticks(stat: &str) -> Option<u64> {
    stat_field(stat, 22)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    #[test]
    fn start_time_is_found_behind_any_name() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        assert_eq!(start_ticks(&format!("12 (sleep) {tail}")), Some(4711));
        assert_eq!(start_ticks(&format!("12 (a) b) (c) {tail}")), Some(4711));
        assert_eq!(start_ticks("12 (cut) S 1 2"), None);
        assert_eq!(start_ticks(""), None);
    }

    #[test]
    fn a_process_is_itself_until_it_is_reaped() {
        let own = ProcessId::own().unwrap();
        assert!(own.open().unwrap().is_some());
        assert!(ProcessId { start_ticks: own.start_ticks + 1, ..own.clone() }.open().unwrap().is_none());
        assert!(ProcessId { boot_id: "other".into(), ..own }.open().unwrap().is_none());

        let (mut child, pidfd) = start(Command::new("/bin/cat").stdin(Stdio::piped()));
        let id = ProcessId::of(child.id()).unwrap();
        assert!(id.open().unwrap().is_some());
        assert_eq!(reap(pidfd.as_fd()).unwrap(), None);
        drop(child.stdin.take());
        assert_eq!(reap_blocking(pidfd.as_fd()).unwrap(), Exit { code: Some(0), signal: None });
        assert!(reap(pidfd.as_fd()).is_err());
        assert!(kill(&pidfd, Signal::SIGTERM).is_err());
        assert!(id.open().unwrap().is_none());
        assert_eq!(ProcessId::of(id.pid).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_signal_is_told_from_a_code() {
        let (_child, pidfd) = start(Command::new("/bin/sleep").arg("1000"));
        kill(&pidfd, Signal::SIGKILL).unwrap();
        let exit = reap_blocking(pidfd.as_fd()).unwrap();
        assert_eq!(exit, Exit { code: None, signal: Some(9) });
        assert_eq!(exit.to_string(), "was ended by signal 9");
        assert!(pidfd_open(0).is_err());
        assert!(pidfd_open(u32::MAX).is_err());
    }

    #[test]
    fn a_tree_has_all_generations_whichever_way_it_is_asked() {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "/bin/sh -c '/bin/sleep 1000 & echo $!; wait' & wait"]);
        let (mut child, pidfd) = start(shell.stdout(Stdio::piped()));
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let grandchild: u32 = line.trim().parse().unwrap();

        let found = tree_of(child.id());
        let parents = parents();
        let of = |parent| parents.iter().filter(|found| found.1 == parent).map(|found| found.0).collect();
        let by_parents = tree(child.id(), of);
        let all_opened: Vec<OwnedFd> = found.iter().map(|pid| pidfd_open(*pid).unwrap()).collect();
        // Parents first: a shell whose child has ended ends as well, and may be gone before its turn.
        all_opened.iter().for_each(|process| kill(process, Signal::SIGKILL).unwrap());
        reap_blocking(pidfd.as_fd()).unwrap();
        assert_eq!((found.len(), found[0], found[2]), (3, child.id(), grandchild));
        assert_eq!(by_parents, found);
        assert_eq!(tree_of(child.id()), [child.id()]);
    }

    #[test]
    fn who_catches_or_ignores_a_signal_does_not_die_of_it() {
        for (trap, dies) in [("", true), ("trap : TERM;", false), ("trap '' TERM;", false)] {
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", &format!("{trap} echo; read line")]).stdin(Stdio::piped());
            let (mut child, pidfd) = start(shell.stdout(Stdio::piped()));
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
            assert_eq!(dies_of(child.id(), Signal::SIGTERM), dies, "{trap}");
            assert_eq!(name_of(child.id()).as_deref(), Some("sh"));
            kill(&pidfd, Signal::SIGKILL).unwrap();
            reap_blocking(pidfd.as_fd()).unwrap();
            assert_eq!(name_of(child.id()), None);
        }
    }

    #[test]
    fn who_waits_for_a_signal_does_not_die_of_it() {
        let waits = "import signal, sys, threading\nsignal.pthread_sigmask(signal.SIG_BLOCK, [15])\n\
                     threading.Thread(target=lambda: signal.sigwait([15])).start()\nprint(flush=True)\nsignal.sigwait([1])";
        let mut python = Command::new("python3");
        let (mut child, pidfd) = start(python.args(["-c", waits]).stdout(Stdio::piped()));
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
        let until = std::time::Instant::now() + Duration::from_secs(30);
        let dies = |signal| dies_of(child.id(), signal);
        while dies(Signal::SIGTERM) || dies(Signal::SIGHUP) || !dies(Signal::SIGUSR1) {
            assert!(std::time::Instant::now() < until);
        }
        kill(&pidfd, Signal::SIGKILL).unwrap();
        reap_blocking(pidfd.as_fd()).unwrap();
    }

    /// The child is reaped by its pidfd, not through std.
    fn start(command: &mut Command) -> (Child, OwnedFd) {
        let child = command.spawn().unwrap();
        let pidfd = pidfd_open(child.id()).unwrap();
        (child, pidfd)
    }
}
