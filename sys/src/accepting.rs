//! Whether a process waits at a listener for clients.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::held::sockets_of;
use super::seccomp::read_memory;
use super::system_call::{BlockedCall, blocked_call, threads_of};

/// Maximum number of descriptors of a poll(2) to examine.
const POLLED_MAX: usize = 1024;
/// The size of a `pollfd`, and of the set of select(2), in bytes.
const POLLFD: usize = 8;
const FD_SET: usize = 128;

/// Whether a process waits for clients at one of these listeners, by their inodes: one of its epolls watches it, or a
/// thread waits in accept, poll, select or a read of datagrams. A process that is busy, or that uses io_uring, shows
/// neither. `false` for a process that is out of reach.
pub fn awaits_clients(pid: u32, listeners: &BTreeSet<u32>) -> bool {
    let held = sockets_of(pid).into_iter().flatten().filter(|held| listeners.contains(&held.inode));
    let held: BTreeMap<u32, u32> = held.map(|held| (held.fd, held.inode)).collect();
    !held.is_empty()
        && (is_watched(pid, &held) || threads_of(pid).any(|thread| is_awaited(pid, thread, &held)))
}

/// Whether an epoll of the process watches one of the listeners. Reads the lines `tfd: 5 events: 19 data: 5 pos:0
/// ino:1f4a sdev:8` of proc_pid_fdinfo(5).
fn is_watched(pid: u32, held: &BTreeMap<u32, u32>) -> bool {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let is_epoll = |entry: &fs::DirEntry| {
        fs::read_link(entry.path()).is_ok_and(|kind| kind.as_os_str() == "anon_inode:[eventpoll]")
    };
    let infos = entries.filter(is_epoll).filter_map(|entry| {
        let number = entry.file_name().into_string().ok()?;
        fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()
    });
    infos
        .into_iter()
        .any(|info| info.lines().filter_map(watched).any(|(fd, ino)| held.get(&fd) == Some(&ino)))
}

/// The number and the inode of a watched descriptor.
fn watched(line: &str) -> Option<(u32, u32)> {
    let number = line.strip_prefix("tfd:")?.split_ascii_whitespace().next()?.parse().ok()?;
    let inode = line.split_ascii_whitespace().find_map(|word| word.strip_prefix("ino:"))?;
    Some((number, u32::from_str_radix(inode, 16).ok()?))
}

/// Whether a thread waits at one of the listeners.
fn is_awaited(pid: u32, thread: u32, held: &BTreeMap<u32, u32>) -> bool {
    let Some(BlockedCall { number, args }) = blocked_call(pid, thread) else { return false };
    // The kernel reads the lower half of a register.
    let is_held = |fd: u64| held.contains_key(&(fd as u32));
    if READS.contains(&number) {
        is_held(args[0])
    } else if POLLS.contains(&number) {
        let mut polled = vec![0; POLLFD * POLLED_MAX.min(args[1] as usize)];
        let read = read_memory(thread, args[0], &mut polled);
        read.is_ok()
            && polled
                .chunks_exact(POLLFD)
                .any(|one| is_held(u32::from_ne_bytes([one[0], one[1], one[2], one[3]]).into()))
    } else if SELECTS.contains(&number) {
        let mut set = [0; FD_SET];
        let bytes = (args[0] as usize).div_ceil(8).min(FD_SET);
        let read = read_memory(thread, args[1], &mut set[..bytes]);
        read.is_ok()
            && held.keys().any(|fd| set.get(*fd as usize / 8).is_some_and(|byte| byte >> (fd % 8) & 1 == 1))
    } else {
        false
    }
}

const READS: [i64; 5] =
    [libc::SYS_accept, libc::SYS_accept4, libc::SYS_recvfrom, libc::SYS_recvmsg, libc::SYS_recvmmsg];

#[cfg(target_arch = "x86_64")]
const POLLS: [i64; 2] = [libc::SYS_poll, libc::SYS_ppoll];
#[cfg(not(target_arch = "x86_64"))]
const POLLS: [i64; 1] = [libc::SYS_ppoll];

#[cfg(target_arch = "x86_64")]
const SELECTS: [i64; 2] = [libc::SYS_select, libc::SYS_pselect6];
#[cfg(not(target_arch = "x86_64"))]
const SELECTS: [i64; 1] = [libc::SYS_pselect6];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::inode;
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;
    use std::os::fd::OwnedFd;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    /// The listener is standard input.
    const PROGRAM: &str = "import os, select, socket, time\ns, (r, _) = socket.socket(fileno=0), os.pipe()\n\
        e, p = select.epoll(), select.poll()\nprint(flush=True)\n";

    #[test]
    fn who_waits_for_clients_differs_from_who_only_has_the_listener() {
        let ways = [
            ("s.accept()", true),
            ("p.register(s, select.POLLIN); p.poll()", true),
            ("select.select([s, r], [], [])", true),
            ("e.register(s); time.sleep(1000)", true),
            ("time.sleep(1000)", false),
            ("e.register(r, select.EPOLLIN); e.poll()", false),
            ("p.register(r, select.POLLIN); p.poll()", false),
            ("select.select([r], [s], [])", false),
            ("os.read(r, 1)", false),
        ];
        for (way, expected) in ways {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let sockets = BTreeSet::from([inode(&listener).unwrap() as u32]);
            let mut python = Command::new("python3");
            python.args(["-c", &format!("{PROGRAM}{way}")]).stdin(OwnedFd::from(listener));
            let mut child = python.stdout(Stdio::piped()).spawn().unwrap();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
            let (begun, mut found) = (Instant::now(), false);
            let patience = Duration::from_secs(if expected { 30 } else { 1 });
            while !found && begun.elapsed() < patience {
                std::thread::sleep(Duration::from_millis(10));
                found = awaits_clients(child.id(), &sockets);
            }
            let other = awaits_clients(child.id(), &BTreeSet::from([1]));
            child.kill().unwrap();
            child.wait().unwrap();
            assert_eq!((found, other), (expected, false), "{way}");
        }
    }

    #[test]
    fn the_lines_of_an_epoll_name_what_it_watches() {
        let line = "tfd:        7 events: 8000001d data: ffffffff00000007  pos:0 ino:1f4a sdev:8";
        assert_eq!(watched(line), Some((7, 0x1f4a)));
        assert_eq!(watched("pos:\t0"), None);
        assert_eq!(watched("ino:\t1057"), None);
    }
}
