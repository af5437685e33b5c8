//! The processes of a run, as the kernel reports them.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::crash_points::VARIABLE;
use crate::shim;
use crate::sys::lock::LOCK_FILE;

/// A process of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) kind: ProcessKind,
    /// Number of open descriptors.
    pub(super) fds: usize,
    /// Whether it holds the lock of a data directory.
    pub(super) locks: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ProcessKind {
    Daemon,
    Keeper,
    /// The process that the daemon started: the service, or the shim that runs it.
    Service,
    /// The process that a shim started.
    Program,
}

/// All processes with this harness socket in their environment. A zombie has no environment. With a `shim`, only the
/// shim counts as the service.
pub(super) fn processes(points: &Path, shim: bool) -> Vec<Process> {
    let mut mark = VARIABLE.as_bytes().to_vec();
    mark.push(b'=');
    mark.extend_from_slice(points.as_os_str().as_bytes());
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let marked = pids.filter(|pid| {
        fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|environ| environ.split(|byte| *byte == 0).any(|variable| variable == mark))
    });
    marked.map(|pid| inspect(pid, shim)).collect()
}

fn inspect(pid: u32, shim: bool) -> Process {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let kind = match line.split(|byte| *byte == 0).nth(1) {
        Some(b"daemon") => ProcessKind::Daemon,
        Some(b"keeper") => ProcessKind::Keeper,
        first if shim && first != Some(shim::VERB.as_bytes()) => ProcessKind::Program,
        _ => ProcessKind::Service,
    };
    let fds: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().collect();
    let locks = fds.iter().any(|fd| {
        let name = fd.file_name();
        fs::read_link(fd.path()).is_ok_and(|path| path.ends_with(LOCK_FILE))
            && fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", name.to_string_lossy()))
                .is_ok_and(|info| info.lines().any(|line| line.starts_with("lock:")))
    });
    Process { pid, kind, fds: fds.len(), locks }
}
