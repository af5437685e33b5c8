//! A private network namespace, see network_namespaces(7).

use std::ffi::{c_char, c_short};
use std::fs;
use std::io;
use std::os::fd::AsRawFd;

use nix::sched::{CloneFlags, unshare};

use super::errno::{ByNumber, Errno};
use super::socket::{AddressFamily, SockFlag, SockType, socket};
use super::user::{effective_group, effective_user};

/// Moves this process into a network namespace with only a loopback device, where every port is free. Without privilege
/// it also creates a user namespace, which maps this user to itself. For a single-threaded process. After an error the
/// namespaces may or may not have changed, so the process should exit.
pub fn enter_own_network() -> io::Result<()> {
    match unshare(CloneFlags::CLONE_NEWNET).by_number() {
        Err(Errno::EPERM) => {
            let (user, group) = (effective_user(), effective_group());
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).by_number()?;
            // An unprivileged process can map groups only after it gives up setgroups(2).
            fs::write("/proc/self/setgroups", "deny")?;
            fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
            fs::write("/proc/self/gid_map", format!("{group} {group} 1"))?;
        }
        other => other?,
    }
    raise_loopback()
}

fn raise_loopback() -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty())?;
    // SAFETY: all fields are integers, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b'l' as c_char, b'o' as c_char]);
    request.ifr_ifru.ifru_flags = libc::IFF_UP as c_short;
    // SAFETY: the request reads the structure, which lives until the call returns.
    Ok(unsafe { ioctls::set_interface_flags(socket.as_raw_fd(), &raw const request) }
        .map(drop)
        .by_number()?)
}

mod ioctls {
    nix::ioctl_write_ptr_bad!(set_interface_flags, libc::SIOCSIFFLAGS, libc::ifreq);
}
