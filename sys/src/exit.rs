//! The exit status of a process that is not a child.
//!
//! Only a parent can wait for a process. For other processes, kernels from 6.15 on report the status through a pidfd
//! that was opened before the parent reaped the process (`PIDFD_GET_INFO` of linux/pidfd.h). If the parent never reaps,
//! as in a container without an init, the process stays a zombie and `/proc/<pid>/stat` has the status.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use super::errno::retry;
use super::poll::{PollFlags, poll_one};
use super::process::Exit;
use super::user::effective_user;

/// How far a process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessStatus {
    /// It is running or stopped.
    Runs,
    /// It has exited, and its parent has not reaped it yet. The pidfd is readable.
    Zombie,
    /// It has been reaped. The pidfd has `POLLHUP` from kernel 6.15 on; older kernels report it as a zombie.
    Reaped,
}

/// Returns the state from a pidfd. Does not block.
pub fn life(pidfd: impl AsFd) -> io::Result<ProcessStatus> {
    let events = retry(|| poll_one(&pidfd, PollFlags::POLLIN, Some(Duration::ZERO)))?;
    Ok(match () {
        () if events.contains(PollFlags::POLLHUP) => ProcessStatus::Reaped,
        () if events.contains(PollFlags::POLLIN) => ProcessStatus::Zombie,
        () => ProcessStatus::Runs,
    })
}

/// The exit status of a reaped process. `None` if it is not reaped yet, or the kernel is older than 6.15. Does not
/// block.
pub fn exit_of_reaped(pidfd: impl AsFd) -> Option<Exit> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the request encodes the size of the structure, and the kernel writes no more than that. The structure
    // lives until the call returns.
    unsafe { ioctls::pidfd_get_info(pidfd.as_fd().as_raw_fd(), &raw mut info) }.ok()?;
    (info.mask & PIDFD_INFO_EXIT != 0).then(|| from_wait_status(info.exit_code))
}

/// The exit status of a zombie. `None` if the process is not a zombie, or belongs to another user: then the kernel
/// hides the status. Does not block.
pub fn exit_of_zombie(pidfd: impl AsFd) -> Option<Exit> {
    let directory = format!("/proc/{}", pid_of(pidfd.as_fd())?);
    let own = effective_user();
    if fs::metadata(&directory).ok()?.uid() != own && own != 0 {
        return None;
    }
    let exit = zombie_exit(&fs::read_to_string(format!("{directory}/stat")).ok()?)?;
    // If the pid still belongs to this process, it did when the file was read.
    pid_of(pidfd.as_fd()).map(|_| exit)
}

/// The pid, unless the process has been reaped: the field `Pid` of `/proc/self/fdinfo`, see pidfd_open(2).
pub fn pid_of(pidfd: BorrowedFd<'_>) -> Option<u32> {
    let info = fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok().filter(|pid| *pid > 0)
}

/// Fields 3 (state) and 52 (exit code, as waitpid(2) returns it) of `/proc/<pid>/stat`. The program name may contain
/// blanks and parentheses, so fields are counted from the last `)`.
fn zombie_exit(stat: &str) -> Option<Exit> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    (fields.next()? == "Z").then_some(())?;
    Some(from_wait_status(fields.nth(48)?.parse().ok()?))
}

pub(super) fn from_wait_status(status: i32) -> Exit {
    match status & 0x7f {
        0 => Exit { code: Some((status >> 8) & 0xff), signal: None },
        signal => Exit { code: None, signal: Some(signal) },
    }
}

mod ioctls {
    nix::ioctl_readwrite!(pidfd_get_info, 0xff, 11, super::PidfdInfo);
}

const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// `struct pidfd_info` of linux/pidfd.h in its first version (`PIDFD_INFO_SIZE_VER0`). Newer kernels fill this much.
/// libc lacks it.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    /// pid, tgid, ppid, and four kinds of user and group ids.
    ids: [u32; 11],
    exit_code: i32,
}

const _: () = assert!(size_of::<PidfdInfo>() == 64);

#[cfg(test)]
mod tests {
    use super::super::process::{Signal, kill, pidfd_open, reap};
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::fd::OwnedFd;
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    const LIMIT: Duration = Duration::from_secs(10);

    /// A grandchild. Its parent, a child of this process, is stopped and so reaps nothing.
    struct Grandchild {
        middle: Child,
        pidfd: OwnedFd,
    }

    impl Grandchild {
        fn start(program: &str) -> Self {
            let script = format!("{program} & echo $!; kill -STOP $$; wait");
            let mut middle =
                Command::new("/bin/sh").args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
            let mut line = String::new();
            BufReader::new(middle.stdout.take().unwrap()).read_line(&mut line).unwrap();
            let pidfd = pidfd_open(line.trim().parse().unwrap()).unwrap();
            let process = Self { middle, pidfd };
            let stat = format!("/proc/{}/stat", process.middle.id());
            process.repeat("the middle stands still", || {
                fs::read_to_string(&stat).unwrap().rsplit_once(") ").unwrap().1.starts_with('T')
            });
            process
        }

        fn wait_until(&self, wanted: ProcessStatus) {
            self.repeat("its life is as wanted", || {
                // It may not have stopped itself yet.
                kill(&self.pidfd, Signal::SIGCONT).ok();
                life(&self.pidfd).unwrap() == wanted
            });
        }

        fn repeat(&self, what: &str, mut is_done: impl FnMut() -> bool) {
            let until = Instant::now() + LIMIT;
            while !is_done() {
                assert!(Instant::now() < until, "waited too long until {what}");
                std::thread::yield_now();
            }
        }

        /// Lets the parent continue.
        fn is_reaped(&mut self) {
            kill(pidfd_open(self.middle.id()).unwrap(), Signal::SIGCONT).unwrap();
            self.middle.wait().unwrap();
        }
    }

    impl Drop for Grandchild {
        fn drop(&mut self) {
            let _ = kill(&self.pidfd, Signal::SIGKILL);
            let _ = self.middle.kill();
            let _ = self.middle.wait();
        }
    }

    #[test]
    fn the_end_of_a_grandchild_is_told_before_and_after_it_is_reaped() {
        // Each program waits until its pidfd is open.
        for (program, expected) in [
            ("sh -c 'kill -STOP $$; exit 7'", Exit { code: Some(7), signal: None }),
            ("sh -c 'kill -STOP $$; exit 0'", Exit { code: Some(0), signal: None }),
            ("sh -c 'kill -STOP $$; kill -9 $$'", Exit { code: None, signal: Some(9) }),
        ] {
            let mut process = Grandchild::start(program);
            process.wait_until(ProcessStatus::Zombie);
            assert_eq!(exit_of_zombie(&process.pidfd), Some(expected));
            assert_eq!(exit_of_reaped(&process.pidfd), None);
            assert!(reap(process.pidfd.as_fd()).is_err());
            process.is_reaped();
            assert_eq!(exit_of_zombie(&process.pidfd), None);
            if kernel_reports_exit() {
                process.wait_until(ProcessStatus::Reaped);
                assert_eq!(exit_of_reaped(&process.pidfd), Some(expected));
            }
        }
    }

    #[test]
    fn a_process_that_runs_has_no_end() {
        let process = Grandchild::start("sleep 1000");
        assert_eq!(life(&process.pidfd).unwrap(), ProcessStatus::Runs);
        assert_eq!(exit_of_zombie(&process.pidfd), None);
        assert_eq!(exit_of_reaped(&process.pidfd), None);
    }

    #[test]
    fn only_a_zombie_has_an_exit_code() {
        let tail = (4..52).map(|field| field.to_string()).collect::<Vec<_>>().join(" ");
        let stat = |state: &str, code: i32| format!("12 (a) b) {state} {tail} {code}");
        assert_eq!(zombie_exit(&stat("Z", 0x300)), Some(Exit { code: Some(3), signal: None }));
        assert_eq!(zombie_exit(&stat("Z", 0x8b)), Some(Exit { code: None, signal: Some(11) }));
        assert_eq!(zombie_exit(&stat("S", 0x300)), None);
        assert_eq!(zombie_exit("12 (cut) Z 1 2"), None);
    }

    /// From 6.15 on.
    fn kernel_reports_exit() -> bool {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release.split('.').map(|number| number.parse::<u32>().unwrap_or_default());
        (numbers.next(), numbers.next()) >= (Some(6), Some(15))
    }
}
