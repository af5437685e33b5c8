//! The addresses on which a service listens.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// `sockaddr_un` has room for 108 bytes, including the final zero byte.
pub const UNIX_PATH_MAX_BYTES: usize = 107;

/// One address to listen on. The port is never 0: clients must know the address before the supervisor binds it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ListenAddress {
    /// `127.0.0.1:9000`, `[::1]:9000`, `0.0.0.0:9000` (v4 only), `[::]:9000` (v6 only).
    Tcp(SocketAddr),
    /// `*:9000`: one v6 socket that also accepts v4.
    DualStack {
        /// The port.
        port: u16,
    },
    /// `unix:/run/s3.sock`: an absolute path of at most [`UNIX_PATH_MAX_BYTES`].
    Unix(PathBuf),
    /// `udp:127.0.0.1:4433`, `udp:[::1]:4433`: datagrams.
    Udp(SocketAddr),
    /// `udp:*:4433`: datagrams, over one v6 socket that also accepts v4.
    UdpDualStack {
        /// The port.
        port: u16,
    },
    /// `quic:127.0.0.1:4433`, `quic:[::1]:4433`: datagrams. Those of QUIC connections are steered by connection id.
    Quic(SocketAddr),
    /// `quic:*:4433`: the same over one v6 socket that also accepts v4.
    QuicDualStack {
        /// The port.
        port: u16,
    },
}

impl ListenAddress {
    /// Whether two listeners cannot have these addresses at the same time. A wildcard takes every address of its
    /// port.
    pub fn conflicts_with(&self, other: &ListenAddress) -> bool {
        match (self.ip(), other.ip()) {
            // TCP and UDP ports are separate.
            _ if self.is_datagram() != other.is_datagram() => false,
            (Some(ours), Some(theirs)) => overlap(ours, theirs),
            _ => self == other,
        }
    }

    /// The address of the socket, and whether it accepts only one family: `[::]` with `false` also accepts v4. `None`
    /// for a unix socket.
    pub fn ip(&self) -> Option<(SocketAddr, bool)> {
        match self {
            ListenAddress::Tcp(local) | ListenAddress::Udp(local) | ListenAddress::Quic(local) => {
                Some((*local, true))
            }
            ListenAddress::DualStack { port }
            | ListenAddress::UdpDualStack { port }
            | ListenAddress::QuicDualStack { port } => {
                Some((SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), *port), false))
            }
            ListenAddress::Unix(_) => None,
        }
    }

    /// Whether it receives datagrams, not connections.
    pub fn is_datagram(&self) -> bool {
        matches!(self, ListenAddress::Udp(_) | ListenAddress::UdpDualStack { .. }) || self.is_quic()
    }

    /// Whether datagrams are assigned to processes by QUIC connection id.
    pub fn is_quic(&self) -> bool {
        matches!(self, ListenAddress::Quic(_) | ListenAddress::QuicDualStack { .. })
    }
}

/// Whether two sockets overlap. The flags say whether each accepts only one family.
fn overlap((ours, ours_alone): (SocketAddr, bool), (theirs, theirs_alone): (SocketAddr, bool)) -> bool {
    let is_any = |address: SocketAddr| address.ip().is_unspecified();
    let takes_both = |address: SocketAddr, alone: bool| is_any(address) && !alone;
    let same_family = ours.is_ipv4() == theirs.is_ipv4();
    ours.port() == theirs.port()
        && match same_family {
            true => ours == theirs || is_any(ours) || is_any(theirs),
            false => takes_both(ours, ours_alone) || takes_both(theirs, theirs_alone),
        }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddress::Tcp(address) => write!(f, "{address}"),
            ListenAddress::DualStack { port } => write!(f, "*:{port}"),
            ListenAddress::Unix(path) => write!(f, "unix:{}", path.display()),
            ListenAddress::Udp(address) => write!(f, "udp:{address}"),
            ListenAddress::UdpDualStack { port } => write!(f, "udp:*:{port}"),
            ListenAddress::Quic(address) => write!(f, "quic:{address}"),
            ListenAddress::QuicDualStack { port } => write!(f, "quic:*:{port}"),
        }
    }
}

/// Why a text is not a listen address. `Display` is one clause without a full stop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not one of the known forms.
    #[error("{0:?} is no listen address")]
    Form(String),
    /// An IP address or `*` without a port.
    #[error("{0:?} has no port")]
    NoPort(String),
    /// Port 0 means "any", which no client can know in advance.
    #[error("{0:?} asks for port 0, which is a different one at each start")]
    PortZero(String),
    /// A name instead of a number: it may resolve to another address tomorrow.
    #[error("{0:?} names a host; a listen address needs the IP address itself")]
    HostName(String),
    /// A v4 address in v6 notation.
    #[error("{0:?} is a v4 address written as v6; write it as v4")]
    Mapped(String),
    /// Every slot would get a copy of each datagram: the kernel does not steer them.
    #[error("{0:?} is a multicast address, whose datagrams go to every process that listens there")]
    Multicast(String),
    /// The path of a unix socket is not absolute or does not name a file.
    #[error("the unix socket path {0:?} is not the absolute path of a file")]
    NotAbsolute(PathBuf),
    /// The path of a unix socket does not fit into the structure of the kernel.
    #[error(
        "the unix socket path {path:?} has {length} bytes; the kernel takes at most {UNIX_PATH_MAX_BYTES}"
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// A zero byte in the path.
    #[error("the unix socket path {0:?} has a zero byte in it")]
    ZeroByte(PathBuf),
}

impl FromStr for ListenAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<ListenAddress, AddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return parse_unix(Path::new(path));
        }
        let (kind, rest) = ["udp:", "quic:"]
            .into_iter()
            .find_map(|kind| Some((kind, text.strip_prefix(kind)?)))
            .unwrap_or(("", text));
        Ok(match (kind, parse_ip(rest, text)?) {
            ("", address) => address,
            (_, ListenAddress::Tcp(address)) if is_shared(address) => {
                return Err(AddressError::Multicast(text.to_owned()));
            }
            ("udp:", ListenAddress::Tcp(address)) => ListenAddress::Udp(address),
            ("udp:", ListenAddress::DualStack { port }) => ListenAddress::UdpDualStack { port },
            (_, ListenAddress::Tcp(address)) => ListenAddress::Quic(address),
            (_, ListenAddress::DualStack { port }) => ListenAddress::QuicDualStack { port },
            (_, other) => other,
        })
    }
}

fn is_shared(address: SocketAddr) -> bool {
    address.ip().is_multicast() || address.ip() == IpAddr::V4(Ipv4Addr::BROADCAST)
}

/// Reads an address with a port. `text` is the whole value in the file.
fn parse_ip(address: &str, text: &str) -> Result<ListenAddress, AddressError> {
    if let Some(rest) = address.strip_prefix('*') {
        let port = rest.strip_prefix(':').ok_or_else(|| AddressError::NoPort(text.to_owned()))?;
        let port = parse_port(port).ok_or_else(|| AddressError::Form(text.to_owned()))?;
        return checked(ListenAddress::DualStack { port }, port, text);
    }
    let address: SocketAddr = address.parse().map_err(|_| explain(address, text))?;
    if let SocketAddr::V6(v6) = address
        && v6.ip().to_ipv4_mapped().is_some()
    {
        return Err(AddressError::Mapped(text.to_owned()));
    }
    checked(ListenAddress::Tcp(address), address.port(), text)
}

fn checked(address: ListenAddress, port: u16, text: &str) -> Result<ListenAddress, AddressError> {
    if port == 0 { Err(AddressError::PortZero(text.to_owned())) } else { Ok(address) }
}

/// Digits only: `u16::from_str` also accepts a plus sign.
fn parse_port(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn parse_unix(path: &Path) -> Result<ListenAddress, AddressError> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.contains(&0) {
        return Err(AddressError::ZeroByte(path.to_owned()));
    }
    if !path.is_absolute() || bytes.ends_with(b"/") || path.file_name().is_none() {
        return Err(AddressError::NotAbsolute(path.to_owned()));
    }
    if bytes.len() > UNIX_PATH_MAX_BYTES {
        return Err(AddressError::PathTooLong { path: path.to_owned(), length: bytes.len() });
    }
    Ok(ListenAddress::Unix(path.to_owned()))
}

/// Finds the most useful reason why `address`, a part of `text`, is not a socket address.
fn explain(address: &str, text: &str) -> AddressError {
    let bare = address.trim_start_matches('[').trim_end_matches(']');
    if bare.parse::<Ipv4Addr>().is_ok() || bare.parse::<Ipv6Addr>().is_ok() {
        return AddressError::NoPort(text.to_owned());
    }
    let host_and_port = address.rsplit_once(':').filter(|(_, port)| parse_port(port).is_some());
    match host_and_port {
        Some((host, _))
            if host.starts_with(|c: char| c.is_ascii_alphabetic())
                && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)) =>
        {
            AddressError::HostName(text.to_owned())
        }
        _ => AddressError::Form(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> ListenAddress {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn every_form_reads_and_prints_the_same() {
        for text in [
            "127.0.0.1:9000",
            "[::1]:9000",
            "[::]:9000",
            "0.0.0.0:9000",
            "*:9000",
            "unix:/run/s3.sock",
            "*:65535",
            "udp:127.0.0.1:4433",
            "udp:[::1]:4433",
            "udp:0.0.0.0:53",
            "udp:*:4433",
            "quic:[::]:443",
            "quic:*:443",
        ] {
            assert_eq!(parse(text).to_string(), text);
        }
    }

    #[test]
    fn mistakes_are_told_apart() {
        use AddressError as E;
        let long = format!("unix:/{}", "x".repeat(107));
        let error = |text: &str| text.parse::<ListenAddress>().expect_err(text);
        assert!(matches!(error(""), E::Form(_)));
        assert!(matches!(error("127.0.0.1"), E::NoPort(_)));
        assert!(matches!(error("[::1]"), E::NoPort(_)));
        assert!(matches!(error("::1"), E::NoPort(_)));
        assert!(matches!(error("*"), E::NoPort(_)));
        assert!(matches!(error("*:0"), E::PortZero(_)));
        assert!(matches!(error("127.0.0.1:0"), E::PortZero(_)));
        assert!(matches!(error("[::1]:0"), E::PortZero(_)));
        assert!(matches!(error("*:+5"), E::Form(_)));
        assert!(matches!(error("*:65536"), E::Form(_)));
        assert!(matches!(error("localhost:80"), E::HostName(_)));
        assert!(matches!(error("udp:localhost:53"), E::HostName(text) if text.starts_with("udp:")));
        assert!(matches!(error("udp:*"), E::NoPort(_)));
        assert!(matches!(error("udp:127.0.0.1:0"), E::PortZero(_)));
        assert!(matches!(error("udp:udp:127.0.0.1:53"), E::Form(_)));
        assert!(matches!(error("udp:224.0.0.251:5353"), E::Multicast(_)));
        assert!(matches!(error("udp:255.255.255.255:67"), E::Multicast(_)));
        assert!(matches!(error("300.0.0.1:80"), E::Form(_)));
        assert!(matches!(error("[::ffff:127.0.0.1]:80"), E::Mapped(_)));
        assert!(matches!(error("unix:run/s3.sock"), E::NotAbsolute(_)));
        assert!(matches!(error("unix:/run/"), E::NotAbsolute(_)));
        assert!(matches!(error("unix:/.."), E::NotAbsolute(_)));
        assert!(matches!(error("unix:"), E::NotAbsolute(_)));
        assert!(matches!(error("unix:/a\0b"), E::ZeroByte(_)));
        assert_eq!(error(&long), E::PathTooLong { path: long[5..].into(), length: 108 });
        assert!(long[..long.len() - 1].parse::<ListenAddress>().is_ok());
    }

    #[test]
    fn conflicts() {
        let conflict = |a: &str, b: &str| {
            let (a, b) = (parse(a), parse(b));
            assert_eq!(a.conflicts_with(&b), b.conflicts_with(&a));
            a.conflicts_with(&b)
        };
        assert!(conflict("127.0.0.1:1", "127.0.0.1:1"));
        assert!(conflict("*:1", "*:1"));
        assert!(conflict("*:1", "0.0.0.0:1"));
        assert!(conflict("*:1", "[::]:1"));
        assert!(conflict("unix:/run/a", "unix:/run//a"));
        assert!(!conflict("*:1", "*:2"));
        for (wildcard, one) in
            [("*:1", "127.0.0.1:1"), ("*:1", "[::1]:1"), ("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1")]
        {
            assert!(conflict(wildcard, one), "{wildcard} takes {one}");
            assert!(conflict(&format!("udp:{wildcard}"), &format!("quic:{one}")));
        }
        assert!(!conflict("0.0.0.0:1", "127.0.0.1:2"));
        assert!(!conflict("127.0.0.1:1", "127.0.0.2:1"));
        assert!(!conflict("0.0.0.0:1", "[::1]:1"));
        assert!(!conflict("[::]:1", "127.0.0.1:1"));
        assert!(!conflict("0.0.0.0:1", "[::]:1"));
        assert!(!conflict("unix:/run/a", "*:1"));
        assert!(conflict("udp:*:1", "udp:0.0.0.0:1"));
        assert!(conflict("udp:127.0.0.1:1", "udp:127.0.0.1:1"));
        assert!(!conflict("udp:127.0.0.1:1", "127.0.0.1:1"));
        assert!(!conflict("udp:*:1", "*:1"));
        assert!(conflict("udp:127.0.0.1:1", "quic:127.0.0.1:1"));
        assert!(conflict("udp:*:1", "quic:0.0.0.0:1"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*") {
            let _ = text.parse::<ListenAddress>();
        }

        #[test]
        fn what_parses_prints_and_parses_again(text in r"(udp:|quic:)?(\*|[0-9.]{7,9}|\[[0-9a-f:]{2,9}\]):[0-9]{1,5}|unix:/[a-z/.]{1,9}") {
            if let Ok(address) = text.parse::<ListenAddress>() {
                prop_assert_eq!(address.to_string().parse(), Ok(address));
            }
        }
    }
}
