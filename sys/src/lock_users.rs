//! Which processes hold a lock of flock(2), and which wait for it.
//!
//! The lock belongs to an open file, which a child forked without exec shares. `/proc/locks` names the process that
//! took the lock, which may be gone; `/proc/PID/fdinfo` shows the locks of each open file. This module reads links
//! below `/proc` and never follows them: another process may have files open on a file system that hangs.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::process::name_of;

/// A process that holds or waits for a lock.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockUser {
    /// Its pid.
    pub pid: u32,
    /// The name of its program; empty if unavailable.
    pub name: String,
}

impl fmt::Display for LockUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.as_str() {
            "" => write!(f, "process {}", self.pid),
            name => write!(f, "process {} ({name})", self.pid),
        }
    }
}

/// The users of a lock at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LockUsers {
    /// The processes that hold it. Forked processes share one lock.
    pub holders: Vec<LockUser>,
    /// The processes that wait for it.
    pub waiters: Vec<LockUser>,
}

impl LockUsers {
    /// Examines the lock of a file. It misses holders in other pid namespaces and, without privilege, of other users,
    /// unless that process took the lock itself. Blocks on the file.
    pub fn of(path: &Path) -> LockUsers {
        let Ok(file) = fs::metadata(path) else { return LockUsers::default() };
        let (mut holders, waiters) =
            parse(&fs::read_to_string("/proc/locks").unwrap_or_default(), file.ino());
        if !holders.is_empty() {
            let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
            holders.retain(|pid| Path::new(&format!("/proc/{pid}")).exists());
            holders.extend(pids().filter(|pid| holds(*pid, &path)));
        }
        LockUsers { holders: named(holders), waiters: named(waiters) }
    }

    /// Returns the waiters only. This reads one file instead of examining every process of the machine.
    pub fn waiting_for(path: &Path) -> LockUsers {
        let Ok(file) = fs::metadata(path) else { return LockUsers::default() };
        let (_, waiters) = parse(&fs::read_to_string("/proc/locks").unwrap_or_default(), file.ino());
        LockUsers { holders: Vec::new(), waiters: named(waiters) }
    }

    /// The holders outside of `own`, as text for people; empty if there are none.
    pub fn holders_but(&self, own: &[u32]) -> String {
        describe(&self.holders, own)
    }

    /// The waiters outside of `own`, as text for people; empty if there are none.
    pub fn waiters_but(&self, own: &[u32]) -> String {
        describe(&self.waiters, own)
    }
}

fn describe(users: &[LockUser], own: &[u32]) -> String {
    let users = users.iter().filter(|user| !own.contains(&user.pid)).map(ToString::to_string);
    users.collect::<Vec<_>>().join(" and ")
}

/// The path of an open file of this name in a process. Reads links and follows none.
pub fn open_file_named(pid: u32, name: &str) -> Option<PathBuf> {
    links_of(pid).map(|(_, path)| path).find(|path| path.file_name().is_some_and(|found| found == name))
}

/// Parses lines such as `1: FLOCK  ADVISORY  WRITE 42 08:01:99 0 EOF`, and `1: -> FLOCK …` for a waiter. Returns the
/// pids of the holders and of the waiters. Matches the inode only: on btrfs the device differs from the one in stat(2).
fn parse(locks: &str, ino: u64) -> (BTreeSet<u32>, BTreeSet<u32>) {
    let (mut holders, mut waiters) = (BTreeSet::new(), BTreeSet::new());
    for line in locks.lines() {
        let mut words = line.split_ascii_whitespace().skip(1).peekable();
        let waits = words.next_if_eq(&"->").is_some();
        let words: Vec<&str> = words.collect();
        if let ["FLOCK", _, _, pid, file, ..] = words[..]
            && file.rsplit(':').next().and_then(|found| found.parse().ok()) == Some(ino)
            && let Ok(pid) = pid.parse::<u32>()
        {
            if waits {
                waiters.insert(pid)
            } else {
                holders.insert(pid)
            };
        }
    }
    (holders, waiters)
}

/// Whether one of its descriptors of this file has the lock.
fn holds(pid: u32, path: &Path) -> bool {
    links_of(pid).filter(|(_, open)| open == path).any(|(fd, _)| {
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
        info.lines().any(|line| line.starts_with("lock:") && line.contains("FLOCK"))
    })
}

fn links_of(pid: u32) -> impl Iterator<Item = (String, PathBuf)> {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    fds.filter_map(|fd| Some((fd.file_name().into_string().ok()?, fs::read_link(fd.path()).ok()?)))
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn named(pids: BTreeSet<u32>) -> Vec<LockUser> {
    pids.into_iter().map(|pid| LockUser { pid, name: name_of(pid).unwrap_or_default() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::{DataLock, LOCK_FILE};
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    #[test]
    fn lines_of_the_kernel() {
        let locks = "1: FLOCK  ADVISORY  WRITE 42 08:01:99 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 7 08:01:99 0 EOF\n\
                     2: POSIX  ADVISORY  WRITE 43 08:01:99 0 EOF\n3: FLOCK  ADVISORY  WRITE 44 08:01:199 0 EOF\nrubbish\n";
        assert_eq!(parse(locks, 99), (BTreeSet::from([42]), BTreeSet::from([7])));
        assert_eq!(parse(locks, 1), (BTreeSet::new(), BTreeSet::new()));
    }

    #[test]
    fn holders_are_found_whose_parent_took_the_lock_and_ended_and_so_are_waiters() {
        const PYTHON: &str = "import fcntl, os, sys, time\nfile = open(sys.argv[1], 'a')\nfcntl.flock(file, fcntl.LOCK_EX)\n\
                              child = os.fork()\nif child: print(child, flush=True); os._exit(0)\nsys.stdin.read()\n";
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(LOCK_FILE);
        DataLock::try_take(directory.path()).unwrap().unwrap().release().unwrap();
        assert_eq!(LockUsers::of(&path), LockUsers::default());
        let mut parent = Command::new("/usr/bin/python3")
            .args(["-I", "-c", PYTHON])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let hold_open = parent.stdin.take();
        let mut line = String::new();
        BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let child: u32 = line.trim().parse().unwrap();
        parent.wait().unwrap();
        let holder = LockUser { pid: child, name: name_of(child).unwrap() };
        assert_eq!(LockUsers::of(&path).holders, [holder]);
        assert_eq!(
            open_file_named(child, LOCK_FILE).as_deref(),
            Some(fs::canonicalize(&path).unwrap().as_path())
        );

        let mut waiter = Command::new("flock").arg(&path).arg("true").spawn().unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let found = loop {
            let found = LockUsers::of(&path);
            if !found.waiters.is_empty() || std::time::Instant::now() > until {
                break found;
            }
        };
        assert_eq!(found.waiters, [LockUser { pid: waiter.id(), name: "flock".to_owned() }]);
        assert!(found.holders_but(&[]).starts_with(&format!("process {child} (python3")), "{found:?}");
        assert_eq!(found.waiters_but(&[]), format!("process {} (flock)", waiter.id()));
        assert_eq!(found.holders_but(&[child]), "");
        assert_eq!(LockUsers::waiting_for(&path).waiters, found.waiters);
        drop(hold_open);
        waiter.wait().unwrap();
    }
}
