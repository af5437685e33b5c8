//! The costs of an idle supervisor.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::Error;
use crate::syncs::count_system_calls;

/// One idle process.
#[derive(Debug, Serialize)]
pub struct Idle {
    /// Its name.
    pub name: String,
    /// Observation time in milliseconds: first with the kernel's counters, then again with strace.
    pub watched_ms: u64,
    /// Number of times that its threads were scheduled, from the kernel's counters.
    pub wakeups: u64,
    /// Number of its system calls, if strace is available.
    pub system_calls: Option<usize>,
    /// Resident memory.
    pub resident_kib: u64,
}

/// Observes the supervisor `pid` and its keeper, if it has one, for `time` with each method. Blocks for more than
/// twice that time.
pub fn measure(name: &str, pid: u32, time: Duration, place: &Path) -> Result<Vec<Idle>, Error> {
    let mut processes = vec![(name.to_owned(), pid)];
    processes.extend(keeper(pid)?.map(|keeper| (format!("{name}, keeper"), keeper)));
    // The runtime ends unneeded threads only after a while.
    std::thread::sleep(Duration::from_secs(3).min(time));
    let switches = || processes.iter().map(|(_, pid)| switches(*pid)).collect::<Result<Vec<_>, _>>();
    let before = switches()?;
    std::thread::sleep(time);
    let after = switches()?;
    let mut idle = Vec::new();
    for ((name, pid), (before, after)) in processes.iter().zip(before.into_iter().zip(after)) {
        idle.push(Idle {
            name: name.clone(),
            watched_ms: time.as_millis().try_into()?,
            wakeups: after.saturating_sub(before),
            system_calls: count_system_calls(*pid, time, &place.join("idle"))?,
            resident_kib: resident_kib(*pid)?,
        });
    }
    Ok(idle)
}

/// The child that holds listeners and log pipes: a process of the supervisor's own program.
fn keeper(supervisor: u32) -> Result<Option<u32>, Error> {
    let children = std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children"))?;
    let program = std::fs::read_link(format!("/proc/{supervisor}/exe"))?;
    let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    Ok(children
        .into_iter()
        .find(|pid: &u32| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program)))
}

/// A thread without context switches has not run, and so has made no system call.
fn switches(pid: u32) -> Result<u64, Error> {
    let mut sum = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = std::fs::read_to_string(thread?.path().join("status"))?;
        sum += field(&status, "voluntary_ctxt_switches:")? + field(&status, "nonvoluntary_ctxt_switches:")?;
    }
    Ok(sum)
}

/// Resident memory of a process in KiB.
pub fn resident_kib(pid: u32) -> Result<u64, Error> {
    field(&std::fs::read_to_string(format!("/proc/{pid}/status"))?, "VmRSS:")
}

fn field(status: &str, name: &str) -> Result<u64, Error> {
    let value =
        status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
    value.ok_or_else(|| format!("/proc does not say {name}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_wakes_is_seen() {
        let before = switches(std::process::id()).unwrap();
        std::thread::sleep(Duration::from_millis(1));
        assert!(switches(std::process::id()).unwrap() > before);
        assert!(resident_kib(std::process::id()).unwrap() > 100);
    }
}
