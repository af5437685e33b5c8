//! A network namespace of one's own, see network_namespaces(7).

use std::ffi::{c_char, c_short};
use std::fs;
use std::io;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, ioctl};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::process::{getegid, geteuid};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Moves this process into a network that has nothing but a loopback device, and where every port is free. Without privilege
/// it takes a user namespace too, in which this user is the same as outside. For a process of one thread; after an error it
/// may be in the namespaces or not, and should end.
pub fn enter_own_network() -> io::Result<()> {
    match unshare(UnshareFlags::NEWNET) {
        Err(Errno::PERM) => {
            let (user, group) = (geteuid().as_raw(), getegid().as_raw());
            unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNET)?;
            // Groups can be mapped without privilege only by a process that cannot leave any.
            fs::write("/proc/self/setgroups", "deny")?;
            fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
            fs::write("/proc/self/gid_map", format!("{group} {group} 1"))?;
        }
        other => other?,
    }
    raise_loopback()
}

fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    // SAFETY: unsharing is unsound for the table of descriptors, of which these flags have none.
    unsafe { unshare_unsafe(flags) }
}

fn raise_loopback() -> io::Result<()> {
    const IFF_UP: c_short = 1;
    const SIOCSIFFLAGS: Opcode = 0x8914;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut name = [0; 16];
    name[..2].copy_from_slice(&[b'l' as c_char, b'o' as c_char]);
    let request = InterfaceFlags { name, flags: IFF_UP, rest: [0; 22] };
    // SAFETY: the opcode is that of a request which reads a `struct ifreq`, and this is one.
    Ok(unsafe { ioctl(&socket, Setter::<SIOCSIFFLAGS, _>::new(request)) }?)
}

/// `struct ifreq` of linux/if.h, for a request about flags.
#[repr(C)]
struct InterfaceFlags {
    name: [c_char; 16],
    flags: c_short,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceFlags>() == 40);
