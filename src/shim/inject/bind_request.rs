//! Parses what a program wants to bind from the bytes of its socket address.

use std::ffi::OsStr;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::config::ListenAddress;

/// The size of `struct sockaddr_storage`; the kernel refuses longer addresses.
pub(super) const ADDRESS_MAX_BYTES: usize = 128;

const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// An address passed to bind(2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BindAddress {
    /// IPv4 or IPv6.
    Inet(SocketAddr),
    /// A unix socket with a path, which may be relative.
    Unix(PathBuf),
    /// A unix socket in the abstract namespace.
    Abstract(Vec<u8>),
    /// A unix socket with a name chosen by the kernel.
    Unnamed,
    /// Another address family, such as netlink or packet.
    Other(u16),
}

/// What a program wants to bind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindRequest {
    /// The address.
    pub address: BindAddress,
    /// What the socket carries.
    pub kind: SocketKind,
    /// Whether it is an IPv6 socket.
    pub v6: bool,
    /// Whether it is an IPv6-only socket (`IPV6_V6ONLY`).
    pub v6_only: bool,
}

/// The kind of traffic of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketKind {
    /// `SOCK_STREAM`.
    Streams,
    /// `SOCK_DGRAM`.
    Datagrams,
    /// Any other type.
    Other,
}

impl BindRequest {
    /// The matching listener in the notation of a service file.
    pub(super) fn as_listener(&self) -> Option<ListenAddress> {
        let both =
            self.address == BindAddress::Inet((Ipv6Addr::UNSPECIFIED, self.port()?).into()) && !self.v6_only;
        match (self.kind, self.address.clone().unmapped()) {
            (SocketKind::Streams, BindAddress::Inet(address)) if both => {
                Some(ListenAddress::DualStack { port: address.port() })
            }
            (SocketKind::Streams, BindAddress::Inet(address)) => Some(ListenAddress::Tcp(address)),
            (SocketKind::Datagrams, BindAddress::Inet(address)) if both => {
                Some(ListenAddress::UdpDualStack { port: address.port() })
            }
            (SocketKind::Datagrams, BindAddress::Inet(address)) => Some(ListenAddress::Udp(address)),
            (SocketKind::Streams, BindAddress::Unix(path)) if path.is_absolute() => {
                Some(ListenAddress::Unix(path))
            }
            (_, _) => None,
        }
    }

    /// `None` for port 0, which the kernel chooses; 1 for addresses without ports.
    fn port(&self) -> Option<u16> {
        match &self.address {
            BindAddress::Inet(address) => Some(address.port()).filter(|port| *port > 0),
            _ => Some(1),
        }
    }
}

impl BindAddress {
    /// Parses a socket address. `None` if the kernel will refuse it.
    pub fn read(bytes: &[u8]) -> Option<BindAddress> {
        let (family, rest) = bytes.split_first_chunk()?;
        match u16::from_ne_bytes(*family) {
            AF_INET => v4(rest).map(|address| BindAddress::Inet(address.into())),
            AF_INET6 => v6(rest).map(|address| BindAddress::Inet(address.into())),
            AF_UNIX => Some(unix(rest)),
            family => Some(BindAddress::Other(family)),
        }
    }

    /// Converts an IPv4-mapped IPv6 address to IPv4.
    pub(super) fn unmapped(self) -> BindAddress {
        match self {
            BindAddress::Inet(SocketAddr::V6(v6)) => match v6.ip().to_ipv4_mapped() {
                Some(v4) => BindAddress::Inet(SocketAddr::new(v4.into(), v6.port())),
                None => BindAddress::Inet(v6.into()),
            },
            other => other,
        }
    }

    /// Makes a relative path absolute.
    pub(super) fn below(self, directory: &Path) -> BindAddress {
        match self {
            BindAddress::Unix(path) => BindAddress::Unix(directory.join(path)),
            other => other,
        }
    }
}

impl fmt::Display for BindAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BindAddress::Inet(address) => write!(f, "{address}"),
            BindAddress::Unix(path) => write!(f, "unix:{}", path.display()),
            BindAddress::Abstract(name) => write!(f, "unix:@{}", name.escape_ascii()),
            BindAddress::Unnamed => f.write_str("a unix socket without a name"),
            BindAddress::Other(family) => write!(f, "an address of family {family}"),
        }
    }
}

/// `struct sockaddr_in` without the family: port, address, and mandatory padding.
fn v4(bytes: &[u8]) -> Option<SocketAddrV4> {
    let (port, rest) = bytes.split_first_chunk()?;
    let ip: &[u8; 4] = rest.first_chunk()?;
    (bytes.len() >= 14).then(|| SocketAddrV4::new(Ipv4Addr::from(*ip), u16::from_be_bytes(*port)))
}

/// `struct sockaddr_in6` without the family: port, flow, address, and scope, which old programs may omit.
fn v6(bytes: &[u8]) -> Option<SocketAddrV6> {
    let (port, rest) = bytes.split_first_chunk()?;
    let (flow, rest) = rest.split_first_chunk()?;
    let (ip, rest) = rest.split_first_chunk::<16>()?;
    let scope = rest.first_chunk().map_or(0, |scope| u32::from_ne_bytes(*scope));
    let (port, flow) = (u16::from_be_bytes(*port), u32::from_be_bytes(*flow));
    Some(SocketAddrV6::new(Ipv6Addr::from(*ip), port, flow, scope))
}

/// `sun_path`: ends at the first zero or at the given length.
fn unix(path: &[u8]) -> BindAddress {
    match path {
        [] => BindAddress::Unnamed,
        [0, name @ ..] => BindAddress::Abstract(name.to_vec()),
        _ => {
            let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
            BindAddress::Unix(PathBuf::from(OsStr::from_bytes(path)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(family: u16, rest: &[u8]) -> Vec<u8> {
        [&family.to_ne_bytes(), rest].concat()
    }

    #[test]
    fn every_family_is_read() {
        let v4 = [&[0x23, 0x28, 127, 0, 0, 1][..], &[0; 8]].concat();
        let told = |family, rest: &[u8]| BindAddress::read(&bytes(family, rest)).unwrap().to_string();
        assert_eq!(told(AF_INET, &v4), "127.0.0.1:9000");
        let mut v6 = [0; 26];
        v6[..2].copy_from_slice(&[0x23, 0x28]);
        v6[21] = 1;
        assert_eq!(told(AF_INET6, &v6), "[::1]:9000");
        assert_eq!(told(AF_INET6, &v6[..22]), "[::1]:9000");
        v6[22..].copy_from_slice(&7_u32.to_ne_bytes());
        assert_eq!(told(AF_INET6, &v6), "[::1%7]:9000");
        assert_eq!(told(AF_UNIX, b"/run/a.sock\0garbage"), "unix:/run/a.sock");
        assert_eq!(told(AF_UNIX, b"a.sock"), "unix:a.sock");
        assert_eq!(told(AF_UNIX, b"\0name\x01"), "unix:@name\\x01");
        assert_eq!(BindAddress::read(&bytes(AF_UNIX, b"")), Some(BindAddress::Unnamed));
        assert_eq!(BindAddress::read(&bytes(16, b"")), Some(BindAddress::Other(16)));
    }

    #[test]
    fn what_the_kernel_refuses_is_none() {
        for bad in [&b""[..], b"\x02", &bytes(AF_INET, &[0; 13]), &bytes(AF_INET6, &[0; 21])] {
            assert_eq!(BindAddress::read(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_mapped_address_is_v4_and_a_relative_path_is_completed() {
        let mapped = BindAddress::Inet("[::ffff:127.0.0.1]:9000".parse().unwrap());
        assert_eq!(mapped.unmapped().to_string(), "127.0.0.1:9000");
        let v6 = BindAddress::Inet("[::1]:9000".parse().unwrap());
        assert_eq!(v6.clone().unmapped(), v6);
        assert_eq!(BindAddress::Unix("a".into()).below(Path::new("/run")).to_string(), "unix:/run/a");
        assert_eq!(BindAddress::Unix("/a".into()).below(Path::new("/run")).to_string(), "unix:/a");
    }
}
