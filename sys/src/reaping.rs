//! Reaps children by pid, or any child. [`super::process`] reaps by pidfd.
//!
//! nix has no names for real-time signals, and returns an error for a child that one of them ended. So its wrapper is
//! used only where the exit status does not matter.

use std::ffi::c_int;

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::errno::{Errno, retry};
use super::exit::from_wait_status;
use super::process::Exit;

/// Reaps any child of this process. Returns its pid and exit status. If `waits`, it blocks until a child ends;
/// otherwise `None` if none has. ECHILD if there is no child.
pub fn reap_any(waits: bool) -> Result<Option<(u32, Exit)>, Errno> {
    const ANY: libc::pid_t = -1;
    let mut status: c_int = 0;
    let options = if waits { 0 } else { libc::WNOHANG };
    // SAFETY: the kernel writes one integer, which lives until the call returns.
    let pid = Errno::result(unsafe { libc::waitpid(ANY, &raw mut status, options) })?;
    Ok((pid > 0).then(|| (pid.unsigned_abs(), from_wait_status(status))))
}

/// Reaps this child if it has ended. Ignores its status. Does not block.
pub fn reap_number(pid: u32) {
    let _ = waitpid(Pid::from_raw(pid.cast_signed()), Some(WaitPidFlag::WNOHANG));
}

/// Blocks until this child has ended. Ignores its status.
pub(super) fn await_end(pid: Pid) {
    let _ = retry(|| waitpid(pid, None));
}

#[cfg(test)]
#[expect(clippy::zombie_processes, reason = "what is tested reaps them")]
mod tests {
    use super::*;
    use crate::process::is_zombie;
    use std::process::Command;
    use std::time::{Duration, Instant};

    #[test]
    fn a_child_is_reaped_once() {
        let child = Command::new("/bin/true").spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        while !is_zombie(child.id()) {
            assert!(Instant::now() < until, "it does not end");
            std::thread::yield_now();
        }
        reap_number(child.id());
        assert!(!is_zombie(child.id()));
    }

    #[test]
    fn how_a_child_ended_is_told_for_each_signal() {
        // This must not reap children of other tests, so it runs in its own process.
        const VARIABLE: &str = "HANDOFF_TEST_REAPS";
        if std::env::var_os(VARIABLE).is_none() {
            let name = "reaping::tests::how_a_child_ended_is_told_for_each_signal";
            let own = std::env::current_exe().unwrap();
            let done = Command::new(own).args(["--exact", name]).env(VARIABLE, "").output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
            return;
        }
        assert_eq!(reap_any(true), Err(Errno::ECHILD));
        for signal in [9, 34, 64] {
            let child = Command::new("/bin/sh").args(["-c", &format!("kill -{signal} $$")]).spawn().unwrap();
            let ended = reap_any(true).unwrap().unwrap();
            assert_eq!(ended, (child.id(), Exit { code: None, signal: Some(signal) }));
        }
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "read line; exit 3"]).stdin(std::process::Stdio::piped());
        let mut child = shell.spawn().unwrap();
        assert_eq!(reap_any(false), Ok(None));
        drop(child.stdin.take());
        assert_eq!(reap_any(true), Ok(Some((child.id(), Exit { code: Some(3), signal: None }))));
    }
}
