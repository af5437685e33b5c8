//! Counts system calls with strace: waits for the disk, and calls of idle processes.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use handoff::sys::process::Signal;
use handoff::sys::signals::send_plain;
use serde::Serialize;

use crate::Error;
use crate::rig::{Options, Rig, Upgrade, wait_for};

const SYNCS: [&str; 4] = ["fsync", "fdatasync", "sync_file_range", "syncfs"];

/// Waits for the disk in upgrades.
#[derive(Debug, Serialize)]
pub struct Syncs {
    /// The name of the rig.
    pub name: &'static str,
    /// Number of observed upgrades.
    pub upgrades: usize,
    /// Calls by the supervisor, per upgrade.
    pub supervisor: f64,
    /// Calls by the processes of the service, per upgrade.
    pub service: f64,
    /// Calls of all processes while none accepted, per upgrade.
    pub in_gap: f64,
}

/// Whether strace is available.
pub fn is_possible() -> bool {
    let probe = Command::new("strace").args(["-o", "/dev/null", "true"]).stderr(Stdio::null()).status();
    probe.is_ok_and(|status| status.success())
}

/// Observes `count` upgrades of the rig from `start`.
pub fn measure<R: Rig>(
    place: &Path,
    count: usize,
    start: impl FnOnce(&Options) -> Result<R, Error>,
) -> Result<Syncs, Error> {
    let output = place.join("strace");
    let calls = format!("trace={},execve,clone,clone3,fork,vfork", SYNCS.join(","));
    let mut wrapper: Vec<OsString> =
        ["strace", "-f", "-ttt", "-e", "signal=none", "-e", &calls, "-o"].map(OsString::from).into();
    wrapper.push(output.clone().into());
    let mut rig = start(&Options { wrapper, ..Options::default() })?;
    rig.upgrade()?;
    let began = unix_ns();
    let upgrades = (0..count).map(|_| rig.upgrade()).collect::<Result<Vec<Upgrade>, Error>>()?;
    let ended = unix_ns();
    let name = rig.name();
    drop(rig);

    let trace = Trace::parse(&std::fs::read_to_string(&output)?);
    let watched: Vec<&Sync> =
        trace.syncs.iter().filter(|sync| (began..ended).contains(&sync.unix_ns)).collect();
    let per_upgrade = |is_counted: &dyn Fn(&Sync) -> bool| {
        watched.iter().filter(|sync| is_counted(sync)).count() as f64 / count as f64
    };
    let gaps: Vec<_> =
        upgrades.iter().map(|upgrade| upgrade.gap.begin_unix_ns..upgrade.gap.end_unix_ns).collect();
    Ok(Syncs {
        name,
        upgrades: count,
        supervisor: per_upgrade(&|sync| !trace.is_service(sync.thread)),
        service: per_upgrade(&|sync| trace.is_service(sync.thread)),
        in_gap: per_upgrade(&|sync| gaps.iter().any(|gap| gap.contains(&sync.unix_ns))),
    })
}

fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The output of `strace -f -ttt`.
#[derive(Debug, Default)]
struct Trace {
    syncs: Vec<Sync>,
    parents: HashMap<u32, u32>,
    /// The last program that each process has executed.
    programs: HashMap<u32, PathBuf>,
}

#[derive(Debug)]
struct Sync {
    thread: u32,
    unix_ns: u64,
}

impl Trace {
    fn parse(text: &str) -> Self {
        let mut trace = Self::default();
        for line in text.lines() {
            let _ = trace.line(line);
        }
        trace
    }

    fn line(&mut self, line: &str) -> Option<()> {
        let (thread, rest) = line.trim_start().split_once(' ')?;
        let (time, call) = rest.trim_start().split_once(' ')?;
        let (thread, call) = (thread.parse().ok()?, call.trim_start());
        let name = call.strip_prefix("<... ").unwrap_or(call).split(['(', ' ']).next()?;
        if SYNCS.contains(&name) && !call.starts_with("<...") {
            self.syncs.push(Sync { thread, unix_ns: unix_ns_of(time)? });
        } else if name == "execve" {
            self.programs.insert(thread, call.split('"').nth(1)?.into());
        } else if ["clone", "clone3", "fork", "vfork"].contains(&name) {
            let (_, child) = call.rsplit_once(" = ")?;
            self.parents.insert(child.trim().parse().ok()?, thread);
        }
        Some(())
    }

    /// Whether a thread belongs to a service, by the last program that it or its nearest ancestor has executed.
    fn is_service(&self, thread: u32) -> bool {
        let mut ancestors = std::iter::successors(Some(thread), |thread| self.parents.get(thread).copied());
        let program = ancestors.find_map(|thread| self.programs.get(&thread));
        program.and_then(|path| path.file_name()?.to_str()).is_some_and(|name| name.starts_with("service-"))
    }
}

fn unix_ns_of(time: &str) -> Option<u64> {
    let (seconds, micros) = time.split_once('.')?;
    Some(seconds.parse::<u64>().ok()? * 1_000_000_000 + micros.parse::<u64>().ok()? * 1_000)
}

/// Counts the system calls of the process `pid` within `time`; `None` if strace is unavailable. Attaching strace
/// interrupts a waiting call, which is then repeated; so counting begins a second later.
pub fn count_system_calls(pid: u32, time: Duration, output: &Path) -> Result<Option<usize>, Error> {
    if !is_possible() {
        return Ok(None);
    }
    let mut strace = Command::new("strace")
        .args(["-f", "-ttt", "-p", &pid.to_string(), "-o"])
        .arg(output)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    std::thread::sleep(Duration::from_secs(1));
    let began = unix_ns();
    std::thread::sleep(time);
    let ended = unix_ns();
    send_plain(strace.id(), Signal::SIGINT);
    wait_for("strace to end", || Ok(strace.try_wait()?))?;
    let text = std::fs::read_to_string(output)?;
    // The thread id precedes the time, but only if there are several threads.
    let times = text.lines().filter_map(|line| line.split_whitespace().find_map(unix_ns_of));
    Ok(Some(times.filter(|time| (began..ended).contains(time)).count()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_told_apart_by_program() {
        let trace = Trace::parse(
            "10   1700000000.000001 execve(\"/x/handoff\", [\"handoff\", \"daemon\"], 0x1 /* 9 vars */) = 0\n\
             10   1700000000.000002 clone3({flags=CLONE_THREAD}, 88 <unfinished ...>\n\
             10   1700000000.000003 <... clone3 resumed> => {parent_tid=[11]}, 88) = 11\n\
             11   1700000000.000004 fdatasync(7 <unfinished ...>\n\
             11   1700000000.000005 <... fdatasync resumed>) = 0\n\
             10   1700000000.000006 vfork() = 12\n\
             12   1700000000.000007 execve(\"/x/service-1\", [\"service-1\"], 0x1 /* 9 vars */) = 0\n\
             12   1700000000.000008 clone3({flags=CLONE_THREAD} => {parent_tid=[13]}, 88) = 13\n\
             13   1700000000.000009 fsync(3) = 0\n",
        );
        let found: Vec<_> =
            trace.syncs.iter().map(|sync| (sync.thread, trace.is_service(sync.thread))).collect();
        assert_eq!(found, [(11, false), (13, true)]);
        assert_eq!(trace.syncs[0].unix_ns, 1_700_000_000_000_004_000);
    }
}
