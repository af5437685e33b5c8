//! Signals that a process is to be deaf to, such that another one is to hear, and one that is to end it.

use std::ffi::c_int;
use std::fs;
use std::io;
use std::mem::MaybeUninit;

use nix::sys::signal::{SigHandler, Signal, kill, killpg, signal};
use nix::unistd::Pid;

use super::errno::Errno;

/// Ignores a signal in the whole process, from now on. A program that it starts through [`super::spawn`] hears it again.
pub fn ignore(which: Signal) -> io::Result<()> {
    // SAFETY: no handler of ours is installed, so nothing of this process can run at a bad time.
    Ok(unsafe { signal(which, SigHandler::SigIgn) }.map(drop)?)
}

/// Ends this process by a signal, also one that it blocks or ignores. Comes back if the signal ends no process.
pub fn die_by(signal: c_int) {
    // nix names no real-time signal, by which a process may end as well.
    let mut set = MaybeUninit::uninit();
    // SAFETY: the default is no handler of ours; the set is filled before it is read. The signal is for this thread, so no other one
    // takes it.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut());
        libc::raise(signal);
    }
}

/// Sends a signal to a process, which may be another one that has got the number by now. That it is gone is no error.
pub fn send_plain(pid: u32, signal: Signal) {
    if let Some(pid) = process(pid) {
        let _ = kill(pid, signal);
    }
}

/// Sends a signal to all members of a process group. That there is none any more is no error.
pub fn send_to_group(leader: u32, signal: Signal) {
    if let Some(leader) = process(leader) {
        let _ = killpg(leader, signal);
    }
}

/// 0 and negative numbers mean others than one process.
fn process(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().filter(|pid| *pid > 0).map(Pid::from_raw)
}

/// Sends a signal to a process as if nothing of it had been stopped. That it is gone already is no error.
///
/// The kernel delivers a signal for a process to its main thread, unless that thread blocks it. But no thread takes a signal while the
/// process is stopped, and after SIGCONT the first thread that wakes does. If the process catches the signal, the main thread may then
/// sleep on, and in many interpreters only the main thread runs the handler: so the signal goes to the main thread itself. If the
/// signal ends the process, the first thread must take it: until the main thread wakes, the others would begin work that the end cuts.
pub fn send(pid: u32, signal: Signal) {
    let Some(pid) = process(pid) else { return };
    // These are for all of it, whoever takes them.
    let is_order = [Signal::SIGKILL, Signal::SIGSTOP, Signal::SIGCONT].contains(&signal);
    let is_taken = !is_order && is_for_main_thread(&status_of_main_thread(pid), signal);
    if !(is_taken && send_to_main_thread(pid, signal).is_ok()) {
        let _ = kill(pid, signal);
    }
}

/// Empty if the process is gone.
fn status_of_main_thread(pid: Pid) -> String {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/status")).unwrap_or_default()
}

/// By the status of the main thread, whether the process catches the signal, and this thread is there and does not block it: see
/// proc_pid_status(5).
fn is_for_main_thread(status: &str, signal: Signal) -> bool {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        line.unwrap_or_default()
    };
    let is_in = |name: &str| {
        let set = u64::from_str_radix(field(name), 16);
        set.map(|set| set & (1 << (signal as c_int - 1)) != 0)
    };
    let is_there = field("State").starts_with(['R', 'S', 'D', 'T', 't', 'I']);
    is_there && is_in("SigBlk") == Ok(false) && is_in("SigCgt") == Ok(true)
}

fn send_to_main_thread(pid: Pid, signal: Signal) -> Result<(), Errno> {
    // nix does not have it, and not every C library does.
    let pid = pid.as_raw();
    // SAFETY: the call takes three numbers and no memory of this process.
    Errno::result(unsafe { libc::syscall(libc::SYS_tgkill, pid, pid, signal as c_int) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_main_thread_takes_a_signal_that_it_catches_and_does_not_block() {
        const NONE: &str = "0000000000000000";
        const TERM: &str = "0000000000004000";
        let status = |state: &str, blocked: &str, caught: &str| {
            format!("Name:\ta\nState:\t{state}\nSigBlk:\t{blocked}\nSigCgt:\t{caught}\n")
        };
        let takes = |status: &str| is_for_main_thread(status, Signal::SIGTERM);
        for state in ["S (sleeping)", "T (stopped)", "R (running)"] {
            assert!(takes(&status(state, NONE, TERM)), "{state}");
            assert!(takes(&status(state, "fffffffffffbbfff", TERM)), "all but SIGTERM, {state}");
            assert!(!takes(&status(state, TERM, TERM)), "{state}");
            assert!(!takes(&status(state, NONE, NONE)), "it ends the process, {state}");
            assert!(!takes(&status(state, NONE, "fffffffffffbbfff")), "{state}");
        }
        // The main thread has ended, and other threads have not.
        assert!(!takes(&status("Z (zombie)", NONE, TERM)));
        assert!(!takes(&status("S (sleeping)", "", TERM)));
        assert!(!takes(""));
    }
}
