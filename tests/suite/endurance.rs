//! Many upgrades of one service in a row: nothing grows.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{LIMIT, Rig, all_or, processes_of, version};
use handoff::control::api::Ending;

/// When to measure first. By then caches and pools have their full size, and in the longest run the history has been
/// shortened.
const WARM: [usize; 3] = [40, 100, 650];

/// The tolerated variation in the memory of a process that does not grow.
const RSS_SLACK_KIB: u64 = 1024;

/// The daemon shortens a larger journal. The records of one upgrade come on top.
const JOURNAL_MAX_BYTES: u64 = 64 * 1024 + 2048;

#[test]
fn upgrades_in_exclusive_mode_leave_nothing_behind() {
    endure(all_or(1000, 100), "");
}

#[test]
fn upgrades_in_overlap_mode_leave_nothing_behind() {
    endure(all_or(300, 100), "mode = \"overlap\"");
}

fn endure(upgrades: usize, more: &str) {
    let rig = Rig::new();
    let address = rig.serve("s", "0", "", more);
    let releases = ["1", "2"].map(|version| rig.release(version, ""));
    let began = Instant::now();
    let mut journal_bytes = 0;
    let first = WARM.into_iter().rfind(|warm| *warm < upgrades).unwrap();
    let mut warm = None;
    for n in 1..=upgrades {
        let outcome = rig.upgrade("s", &releases[n % 2]).unwrap();
        assert_eq!(outcome.outcome, Ending::Committed, "upgrade {n}: {outcome:?}");
        let journal = fs::metadata(rig.path("state/services/s/journal")).unwrap();
        journal_bytes = journal.len().max(journal_bytes);
        if n == first {
            warm = Some(Footprint::at_rest(&rig, Footprint::is_lasting()));
        }
    }
    let took = began.elapsed();
    let warm = warm.unwrap();
    println!("after {first}: {warm:?}");
    let last = Footprint::at_rest(&rig, |last| last.numbers() == warm.numbers());
    println!("{upgrades} upgrades {more} took {took:?}; the journal had at most {journal_bytes} bytes");
    println!("after {upgrades}: {last:?}");
    assert_eq!(version(address), (upgrades % 2 + 1).to_string());
    assert_eq!(rig.status("s").generation.0, upgrades as u64 + 1);
    assert!(journal_bytes <= JOURNAL_MAX_BYTES);
    for (before, after) in warm.processes.iter().zip(&last.processes) {
        assert!(after.rss_kib <= before.rss_kib + RSS_SLACK_KIB, "{}", after.name);
    }
}

/// The resources in use.
#[derive(Debug)]
struct Footprint {
    /// The daemon, the keeper and the service, in this order.
    processes: [Process; 3],
    files: usize,
}

#[derive(Debug)]
struct Process {
    name: String,
    fds: usize,
    threads: usize,
    rss_kib: u64,
}

impl Footprint {
    /// Waits until the last upgrade is completely over, and returns the footprint: no other process exists, not even a
    /// zombie of the daemon; the daemon's disk thread has ended, which takes another second; and `is_wanted` holds.
    /// Does not use the status, because a connection would count.
    fn at_rest(rig: &Rig, mut is_wanted: impl FnMut(&Self) -> bool) -> Self {
        let daemon = rig.daemon.as_ref().unwrap().id();
        let mut seen = None;
        let until = Instant::now() + LIMIT;
        while Instant::now() < until {
            let found = Self::of(rig, daemon);
            if found.as_ref().is_some_and(&mut is_wanted) {
                return found.unwrap();
            }
            seen = found.or(seen);
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("it does not come to rest, or something has grown: {seen:?}");
    }

    fn of(rig: &Rig, daemon: u32) -> Option<Self> {
        let children: [u32; 2] = children_of(daemon).try_into().ok()?;
        let mut processes = [daemon, children[0], children[1]].map(Process::of);
        processes[1..].sort_by_key(|process| process.name != "handoff-keeper");
        // One thread runs, and one waits for service files to read.
        let rests = processes[0].threads <= 2 && processes_of(rig.root.path()).len() <= 3;
        rests.then(|| Self { processes, files: files_below(rig.root.path()) })
    }

    /// The numbers that must not grow at all.
    fn numbers(&self) -> ([(usize, usize); 3], usize) {
        (self.processes.each_ref().map(|process| (process.fds, process.threads)), self.files)
    }

    /// Whether the numbers have been stable for a second. The daemon may not have noticed the end of the last client
    /// yet.
    fn is_lasting() -> impl FnMut(&Self) -> bool {
        let mut since = (None, Instant::now());
        move |found| {
            if since.0 != Some(found.numbers()) {
                since = (Some(found.numbers()), Instant::now());
            }
            since.1.elapsed() > Duration::from_secs(1)
        }
    }
}

impl Process {
    fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|value| value.split_whitespace().next()).unwrap_or_default().to_owned()
        };
        Self {
            name: field("Name"),
            fds: fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count),
            threads: field("Threads").parse().unwrap_or(0),
            rss_kib: field("VmRSS").parse().unwrap_or(0),
        }
    }
}

/// The children, including zombies.
fn children_of(parent: u32) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parent = format!("PPid:\t{parent}");
    pids.filter(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line == parent)
    })
    .collect()
}

fn files_below(directory: &Path) -> usize {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| 1 + if entry.path().is_dir() { files_below(&entry.path()) } else { 0 }).sum()
}
