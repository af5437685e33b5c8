//! Programs that register their socket with epoll before they bind it.
//!
//! The kernel ties a registration to the file, not to the descriptor number. So a registration from before the swap
//! watches the old file, and no connection would wake the program. It is repeated for the listener with the same events
//! and data, invisibly to the program.

use std::fs;
use std::io;
use std::os::fd::{AsFd, RawFd};

use super::target::CallingThread;
use crate::sys::seccomp::register_at;

/// A registration of a socket.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Registration {
    /// The epoll's descriptor number in the program.
    epoll: RawFd,
    events: u32,
    data: u64,
}

/// Finds the registrations of the socket at `number`, which has that inode.
pub(super) fn find(target: &CallingThread, number: RawFd, inode: u64) -> io::Result<Vec<Registration>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(target.proc("fd"))? {
        let entry = entry?;
        // Another thread may close a descriptor in the meantime.
        let Ok(kind) = fs::read_link(entry.path()) else { continue };
        let name = entry.file_name();
        let Some(epoll) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        if kind.as_os_str() == "anon_inode:[eventpoll]"
            && let Ok(text) = fs::read_to_string(target.proc("fdinfo").join(&name))
        {
            found.extend(registrations(epoll, &text, number, inode));
        }
    }
    Ok(found)
}

/// Registers `listener`, which the program now has at `number`.
pub(super) fn repeat(
    target: &CallingThread,
    registrations: &[Registration],
    number: RawFd,
    listener: impl AsFd,
) -> io::Result<()> {
    for Registration { epoll, events, data } in registrations {
        register_at(target.take(*epoll)?, &listener, number, *events, *data)?;
    }
    Ok(())
}

/// Parses lines such as `tfd: 5 events: 19 data: 5 pos:0 ino:1f4a sdev:8` of an epoll, see proc_pid_fdinfo(5). All
/// numbers but the first are hexadecimal.
fn registrations(epoll: RawFd, fdinfo: &str, number: RawFd, inode: u64) -> Vec<Registration> {
    let line = |line: &str| {
        let line = line.replace(':', ": ");
        let mut words = line.split_ascii_whitespace();
        let mut value = |name: &str| {
            words.by_ref().find(|word| *word == name)?;
            words.next()
        };
        let watched: RawFd = value("tfd:")?.parse().ok()?;
        let events = u32::from_str_radix(value("events:")?, 16).ok()?;
        let data = u64::from_str_radix(value("data:")?, 16).ok()?;
        let found = u64::from_str_radix(value("ino:")?, 16).ok()?;
        (watched == number && found == inode).then_some(Registration { epoll, events, data })
    };
    fdinfo.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_registrations_of_this_socket_count() {
        let text = "pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t1057\n\
            tfd:        7 events: 8000001d data: ffffffff00000007  pos:0 ino:1f4a sdev:8\n\
            tfd:        7 events:       19 data:                7  pos:0 ino:1f4b sdev:8\n\
            tfd:       17 events:       19 data:               17  pos:0 ino:1f4a sdev:8\n";
        let expected = Registration { epoll: 4, events: 0x8000_001d, data: 0xffff_ffff_0000_0007 };
        assert_eq!(registrations(4, text, 7, 0x1f4a), [expected]);
        assert_eq!(registrations(4, text, 8, 0x1f4a), []);
        assert_eq!(registrations(4, "tfd: 7 events: zz data: 0 pos:0 ino:1f4a", 7, 0x1f4a), []);
    }
}
