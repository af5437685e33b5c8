//! Attributes of this process.

use std::ffi::CStr;
use std::fs;
use std::io;

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::gettid;

use super::errno::ByNumber;

/// Names the calling thread. On the main thread this names the process.
pub fn set_name(name: &CStr) -> io::Result<()> {
    Ok(prctl::set_name(name).by_number()?)
}

/// Makes this process a child subreaper: it becomes the parent of orphaned descendants.
pub fn adopt_orphans() -> io::Result<()> {
    Ok(prctl::set_child_subreaper(true).by_number()?)
}

/// Sends this process `signal` when its parent thread ends. The parent may already have ended before the call.
pub fn hear_end_of_parent(signal: Signal) -> io::Result<()> {
    Ok(prctl::set_pdeathsig(signal).by_number()?)
}

/// Disables core dumps.
pub fn leave_no_core() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE).by_number()?;
    Ok(setrlimit(Resource::RLIMIT_CORE, 0, hard).by_number()?)
}

/// The thread id of the calling thread.
pub fn thread() -> u32 {
    gettid().as_raw().unsigned_abs()
}

/// Whether the calling thread has `CAP_SYS_ADMIN` in its effective set.
pub fn is_administrator() -> bool {
    const CAP_SYS_ADMIN: u32 = 21;
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let found = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let found = found.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    found.is_some_and(|set| set & 1 << CAP_SYS_ADMIN != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_a_name_and_a_number() {
        let thread = std::thread::spawn(|| {
            set_name(c"handoff-named").unwrap();
            fs::read_to_string(format!("/proc/self/task/{}/comm", thread())).unwrap()
        });
        assert_eq!(thread.join().unwrap(), "handoff-named\n");
    }
}
