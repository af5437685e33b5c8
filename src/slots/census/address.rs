//! Which sockets are at the address of a listener.

use std::ffi::OsStr;
use std::net::Ipv6Addr;
use std::path::Path;

use crate::config::{ListenAddress, UNIX_PATH_MAX_BYTES};
use crate::slots::diag::{SocketInfo, family_of};

pub(in crate::slots) fn family_and_port(address: &ListenAddress) -> Option<(u8, u16)> {
    match address {
        ListenAddress::Tcp(local) => Some((family_of(local.ip()), local.port())),
        ListenAddress::DualStack { port } => Some((family_of(Ipv6Addr::UNSPECIFIED.into()), *port)),
        // Only the server knows which datagrams belong together.
        _ => None,
    }
}

pub(in crate::slots) fn is_at(found: &SocketInfo, address: &ListenAddress) -> bool {
    match (address, found.local(), &found.name) {
        (ListenAddress::Tcp(wanted), Some(local), _) => {
            let any = wanted.ip().is_unspecified() && wanted.is_ipv4() == local.is_ipv4();
            wanted.port() == local.port() && (any || wanted.ip() == local.ip())
        }
        (ListenAddress::DualStack { port }, Some(local), _) => *port == local.port(),
        (ListenAddress::Unix(path), _, Some(name)) => is_name_of(path, name),
        _ => false,
    }
}

/// Whether a listener of the path may be bound to `name`; accepted sockets inherit that name. It is the path itself, a
/// slot's own name `.NAME.SLOT`, or the short temporary name used when that is too long for the kernel.
fn is_name_of(path: &Path, name: &OsStr) -> bool {
    let (own, bound) = (path.file_name().unwrap_or_default().as_encoded_bytes(), Path::new(name));
    let slot_name = |name: &OsStr| {
        let slot = name.as_encoded_bytes().strip_prefix(b".").and_then(|name| name.strip_prefix(own));
        slot.and_then(|rest| rest.strip_prefix(b".")).is_some_and(is_number)
    };
    let short_name = |name: &OsStr| {
        let pid_and_slot = name.to_str().and_then(|name| name.strip_prefix(".handoff-")?.split_once('.'));
        pid_and_slot.is_some_and(|(pid, slot)| is_number(pid.as_bytes()) && is_number(slot.as_bytes()))
    };
    let may_be_short = path.as_os_str().len() + "..1".len() > UNIX_PATH_MAX_BYTES;
    bound == path
        || bound.parent() == path.parent() && bound.file_name().is_some_and(slot_name)
        || may_be_short && bound.starts_with("/proc/self/fd") && bound.file_name().is_some_and(short_name)
}

fn is_number(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unix_listener_is_known_by_its_names() {
        let is = |path: &str, name: &str| is_name_of(Path::new(path), OsStr::new(name));
        assert!(is("/run/s.sock", "/run/s.sock"));
        assert!(is("/run/s.sock", "/run/.s.sock.12"));
        for other in
            ["/run/.s.sock.new", "/run/.s.sock.", "/tmp/.s.sock.1", "/run/s.sock.1", "/run/.t.sock.1", ""]
        {
            assert!(!is("/run/s.sock", other), "{other}");
        }
        let short = "/proc/self/fd/7/.handoff-4711.2";
        assert!(!is("/run/s.sock", short));
        let longest = format!("/{}", "l".repeat(UNIX_PATH_MAX_BYTES - 1));
        assert!(is(&longest, short));
        assert!(!is(&longest, "/proc/self/fd/7/.other-4711"));
    }
}
