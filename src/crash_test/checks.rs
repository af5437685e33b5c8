//! The checks after a run, when everything is at rest again: processes, their descriptors and locks, and leftover
//! files.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::observe::{Process, ProcessKind};
use super::workspace::Workspace;

/// Time for connections of the load, and for the replaced process, to end.
const SETTLE: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(20);
const CALM: Duration = Duration::from_millis(500);

/// The state after a run without faults, for comparison.
#[derive(Debug, Clone, Default)]
pub(super) struct Baseline {
    fds: BTreeMap<ProcessKind, usize>,
    locks: bool,
    runtime: Vec<String>,
}

/// Returns what is wrong, and the state for comparison with other runs.
pub(super) fn inspect(workspace: &Workspace, clean: Option<&Baseline>) -> (Vec<String>, Baseline) {
    if clean.is_none() {
        // The reference must not be taken while something is just opened.
        std::thread::sleep(CALM);
    }
    let until = Instant::now() + SETTLE;
    loop {
        let processes = workspace.processes();
        let now = Baseline::of(&processes, workspace.runtime_files());
        let found = wrong_with(workspace, &processes, &now, clean);
        if found.is_empty() || Instant::now() > until {
            return (found, now);
        }
        std::thread::sleep(TICK);
    }
}

fn wrong_with(
    workspace: &Workspace,
    processes: &[Process],
    now: &Baseline,
    clean: Option<&Baseline>,
) -> Vec<String> {
    let mut found = Vec::new();
    let of_shim = workspace.service.adapter.is_foreign().then_some(ProcessKind::Program);
    for kind in [ProcessKind::Daemon, ProcessKind::Keeper, ProcessKind::Service].into_iter().chain(of_shim) {
        let pids: Vec<u32> =
            processes.iter().filter(|process| process.kind == kind).map(|process| process.pid).collect();
        if pids.len() != 1 {
            found.push(format!("there should be one process of the kind {kind:?}: {pids:?}"));
        }
    }
    let holders = processes.iter().filter(|process| process.locks).count();
    if holders != usize::from(clean.unwrap_or(now).locks) {
        found.push(format!("{holders} processes hold the data lock"));
    }
    found.extend(clean.into_iter().flat_map(|clean| now.growth_over(clean)));
    found
}

impl Baseline {
    fn of(processes: &[Process], runtime: Vec<String>) -> Self {
        let fds = processes.iter().map(|process| (process.kind, process.fds)).collect();
        Self { fds, locks: processes.iter().any(|process| process.locks), runtime }
    }

    fn growth_over(&self, clean: &Self) -> Vec<String> {
        let mut growth = Vec::new();
        for (kind, fds) in &self.fds {
            let before = clean.fds.get(kind).copied().unwrap_or_default();
            if *fds > before {
                growth.push(format!("the {kind:?} has {fds} descriptors, {before} without a fault"));
            }
        }
        if self.runtime != clean.runtime {
            growth.push(format!(
                "in the runtime directory is {:?}, without a fault {:?}",
                self.runtime, clean.runtime
            ));
        }
        growth
    }
}
