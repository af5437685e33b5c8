//! Matches what a program binds to a listener of the service. A table without side effects.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::bind_request::{BindAddress, BindRequest, SocketKind};
use crate::config::ListenAddress;

/// Why a bind matches no listener of the service. `Display` is a clause without a full stop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MismatchReason {
    /// A type of socket that no listener has.
    #[error("it is neither a stream socket nor a UDP socket")]
    OtherType,
    /// Datagrams, but the service file has a TCP address.
    #[error("it binds a datagram socket, but the service file has that address for TCP only; add udp:{0}")]
    Datagrams(SocketAddr),
    /// Port 0, or a unix socket without a name.
    #[error("it lets the kernel choose a free address")]
    Anything,
    /// The service file has no similar address.
    #[error("the service file has no such listener")]
    Unknown,
    /// The service file has another address with this port.
    #[error("the service file says {0}, which is another address; write the same in both places")]
    Elsewhere(ListenAddress),
    /// It binds all addresses, and the service file has several with this port.
    #[error("it binds all addresses at once, and the service file has several with this port: {}; write one", list(.0))]
    Several(Vec<ListenAddress>),
    /// A datagram socket of one family, but the service file has the other: client addresses would have a form that the
    /// program does not expect, and it could not answer.
    #[error("its socket is {}, but {listener} has the other address family, so it could not answer; {remedy}", family(*.v6))]
    Family {
        /// The listener that it would get.
        listener: ListenAddress,
        /// Whether the program's socket is of IPv6.
        v6: bool,
        /// What to write instead.
        remedy: String,
    },
    /// The address could not be read.
    #[error("cannot read what it binds: {0}")]
    Unreadable(String),
}

impl MismatchReason {
    /// Whether the service file has a listener with this port but another address.
    pub fn is_near(&self) -> bool {
        matches!(self, MismatchReason::Elsewhere(_) | MismatchReason::Several(_))
    }

    /// The intended listener if the program could not use it: then its bind is refused.
    pub fn refused(&self) -> Option<&ListenAddress> {
        match self {
            MismatchReason::Family { listener, .. } => Some(listener),
            _ => None,
        }
    }
}

fn family(v6: bool) -> &'static str {
    if v6 { "IPv6" } else { "IPv4" }
}

fn list(addresses: &[ListenAddress]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Selects a listener, as an index into `configured`.
///
/// | it binds | it gets |
/// |---|---|
/// | an address in the service file | that listener |
/// | all addresses of a port, IPv4, IPv6 or both, if the service file has one listener with the port | that listener |
/// | an IPv4-mapped address on an IPv6 socket | what the IPv4 address would get |
/// | the path of a unix socket in the service file | that listener |
/// | datagrams at one of these addresses | the same, of the UDP listeners, if they have the family of its socket; streams get one of the others |
/// | anything else | none |
pub fn choose(wanted: &BindRequest, configured: &[(String, ListenAddress)]) -> Result<usize, MismatchReason> {
    match (wanted.kind, wanted.address.clone().unmapped()) {
        (SocketKind::Other, _) => Err(MismatchReason::OtherType),
        (_, BindAddress::Inet(address)) if address.port() == 0 => Err(MismatchReason::Anything),
        (_, BindAddress::Inet(address)) => {
            let chosen = choose_ip(address, wanted, configured)?;
            check_family(address, wanted, &configured[chosen].1).map(|()| chosen)
        }
        (SocketKind::Datagrams, _) => Err(MismatchReason::OtherType),
        (SocketKind::Streams, BindAddress::Unix(path)) => {
            let same = |(_, address): &(_, ListenAddress)| *address == ListenAddress::Unix(path.clone());
            configured.iter().position(same).ok_or(MismatchReason::Unknown)
        }
        (_, BindAddress::Unnamed) => Err(MismatchReason::Anything),
        (_, BindAddress::Abstract(_) | BindAddress::Other(_)) => Err(MismatchReason::Unknown),
    }
}

fn choose_ip(
    address: SocketAddr,
    wanted: &BindRequest,
    configured: &[(String, ListenAddress)],
) -> Result<usize, MismatchReason> {
    let datagrams = wanted.kind == SocketKind::Datagrams;
    let of_this_kind = |at: &usize| configured[*at].1.is_datagram() == datagrams;
    let mut places = (0..configured.len()).filter(of_this_kind);
    if let Some(exact) = places.clone().find(|at| is_exactly(address, wanted.v6_only, &configured[*at].1)) {
        return Ok(exact);
    }
    let has_port = |said: &ListenAddress| said.ip().is_some_and(|(said, _)| said.port() == address.port());
    let with_port: Vec<usize> = places.by_ref().filter(|at| has_port(&configured[*at].1)).collect();
    match with_port[..] {
        [] if datagrams && configured.iter().any(|(_, said)| has_port(said)) => {
            Err(MismatchReason::Datagrams(address))
        }
        [] => Err(MismatchReason::Unknown),
        [only] if address.ip().is_unspecified() => Ok(only),
        [first, ..] if !address.ip().is_unspecified() => {
            Err(MismatchReason::Elsewhere(configured[first].1.clone()))
        }
        _ => Err(MismatchReason::Several(with_port.iter().map(|at| configured[*at].1.clone()).collect())),
    }
}

/// Streams can use the other family: the kernel reports the family of each connection. With datagrams, an IPv6 program
/// sees IPv4 addresses in their own form and cannot send to IPv6 ones; an IPv4 program sees IPv6 addresses.
fn check_family(
    address: SocketAddr,
    wanted: &BindRequest,
    listener: &ListenAddress,
) -> Result<(), MismatchReason> {
    let is_v6 = listener.ip().is_some_and(|(said, _)| said.is_ipv6());
    if wanted.kind != SocketKind::Datagrams || is_v6 == wanted.v6 {
        return Ok(());
    }
    let (kind, port) = (if listener.is_quic() { "quic" } else { "udp" }, address.port());
    let both = match listener.ip() {
        Some((_, false)) => {
            format!(", and {kind}:[::]:{port} as another listener if it has a socket for IPv6 too")
        }
        _ => String::new(),
    };
    let remedy = match (wanted.v6, address.ip().is_unspecified()) {
        (true, true) if wanted.v6_only => format!("write {kind}:[::]:{port}"),
        (true, true) => format!("write {kind}:*:{port}"),
        (true, false) => "have it use IPv4 sockets (Java: -Djava.net.preferIPv4Stack=true)".to_owned(),
        (false, true) => format!("write {kind}:0.0.0.0:{port}{both}"),
        (false, false) => format!("write {kind}:{address}"),
    };
    Err(MismatchReason::Family { listener: listener.clone(), v6: wanted.v6, remedy })
}

/// `[::]` on a dual-stack socket is `*` in the service file.
fn is_exactly(address: SocketAddr, v6_only: bool, said: &ListenAddress) -> bool {
    let both = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && !v6_only;
    said.ip().is_some_and(|(said, said_alone)| both != said_alone && same(address, said))
}

/// Ignores the flow, which is not part of an address, and a scope that the service file omits.
fn same(address: SocketAddr, said: SocketAddr) -> bool {
    let scopes_agree = match (address, said) {
        (SocketAddr::V6(a), SocketAddr::V6(b)) => b.scope_id() == 0 || a.scope_id() == b.scope_id(),
        _ => true,
    };
    address.ip() == said.ip() && address.port() == said.port() && scopes_agree
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `address`, then properties: `both` (IPv4 and IPv6), `datagram`; otherwise a stream. The address gives the
    /// family.
    fn wanted(text: &str) -> BindRequest {
        let mut words = text.split(' ');
        let address = words.next().unwrap();
        let address = match address.strip_prefix("unix:") {
            Some("") => BindAddress::Unnamed,
            Some(path) if path.starts_with('@') => BindAddress::Abstract(path.into()),
            Some(path) => BindAddress::Unix(path.into()),
            None => BindAddress::Inet(address.parse().unwrap()),
        };
        let more: Vec<&str> = words.collect();
        let carries = match more.contains(&"datagram") {
            true => SocketKind::Datagrams,
            false => SocketKind::Streams,
        };
        let v6 = matches!(&address, BindAddress::Inet(address) if address.is_ipv6());
        BindRequest { address, kind: carries, v6, v6_only: v6 && !more.contains(&"both") }
    }

    fn chosen(what: &str, configured: &[&str]) -> Result<String, MismatchReason> {
        let configured: Vec<_> =
            configured.iter().map(|text| (String::new(), text.parse().unwrap())).collect();
        choose(&wanted(what), &configured).map(|at| configured[at].1.to_string())
    }

    #[test]
    fn the_table() {
        // What is bound, what the service file has, and the match: "" if none.
        let rows: &[(&str, &[&str], &str)] = &[
            ("127.0.0.1:80", &["127.0.0.1:81", "127.0.0.1:80"], "127.0.0.1:80"),
            ("127.0.0.1:80", &["127.0.0.1:81"], ""),
            ("127.0.0.1:80", &["127.0.0.2:80"], ""),
            ("127.0.0.1:80", &["0.0.0.0:80"], ""),
            ("127.0.0.1:80", &["*:80"], ""),
            ("127.0.0.1:0", &["127.0.0.1:80"], ""),
            ("127.0.0.1:80 datagram", &["127.0.0.1:80"], ""),
            ("[::1]:80", &["127.0.0.1:80", "[::1]:80"], "[::1]:80"),
            ("[::1]:80 both", &["[::1]:80"], "[::1]:80"),
            ("[fe80::1%3]:80", &["[fe80::1]:80"], "[fe80::1]:80"),
            ("[fe80::1%3]:80", &["[fe80::1%4]:80"], ""),
            // All addresses.
            ("0.0.0.0:80", &["0.0.0.0:80", "[::]:80"], "0.0.0.0:80"),
            ("[::]:80", &["0.0.0.0:80", "[::]:80"], "[::]:80"),
            ("[::]:80 both", &["127.0.0.1:80", "*:80"], "*:80"),
            ("[::]:80", &["*:80"], "*:80"),
            ("[::]:80 both", &["[::]:80"], "[::]:80"),
            ("[::]:80 both", &["127.0.0.1:80", "127.0.0.1:81"], "127.0.0.1:80"),
            ("0.0.0.0:80", &["[::1]:80"], "[::1]:80"),
            ("0.0.0.0:80", &["*:80"], "*:80"),
            ("0.0.0.0:80", &["127.0.0.1:81"], ""),
            ("[::]:80 both", &["0.0.0.0:80", "[::]:80"], ""),
            ("0.0.0.0:80", &["127.0.0.1:80", "127.0.0.2:80"], ""),
            ("0.0.0.0:0", &["127.0.0.1:80"], ""),
            // An IPv4 address on an IPv6 socket, as in Java.
            ("[::ffff:127.0.0.1]:80 both", &["[::1]:80", "127.0.0.1:80"], "127.0.0.1:80"),
            ("[::ffff:0.0.0.0]:80 both", &["0.0.0.0:80", "[::]:80"], "0.0.0.0:80"),
            ("[::ffff:0.0.0.0]:80 both", &["127.0.0.1:80"], "127.0.0.1:80"),
            ("[::ffff:127.0.0.1]:80 both", &["*:80"], ""),
            // Datagrams, beside streams of the same port.
            ("127.0.0.1:80 datagram", &["127.0.0.1:80", "udp:127.0.0.1:80"], "udp:127.0.0.1:80"),
            ("127.0.0.1:80", &["udp:127.0.0.1:80", "127.0.0.1:80"], "127.0.0.1:80"),
            ("127.0.0.1:80", &["udp:127.0.0.1:80"], ""),
            ("[::]:80 both datagram", &["*:80", "udp:*:80"], "udp:*:80"),
            ("[::]:80 datagram", &["udp:[::]:80", "udp:0.0.0.0:80"], "udp:[::]:80"),
            ("0.0.0.0:80 datagram", &["0.0.0.0:80", "udp:127.0.0.1:80"], "udp:127.0.0.1:80"),
            // Of the other family.
            ("[::ffff:127.0.0.1]:80 both datagram", &["udp:127.0.0.1:80"], ""),
            ("[::]:80 both datagram", &["udp:127.0.0.1:80"], ""),
            ("[::]:80 both datagram", &["udp:0.0.0.0:80"], ""),
            ("[::]:80 both datagram", &["udp:[::1]:80"], "udp:[::1]:80"),
            ("[::]:80 datagram", &["udp:*:80"], "udp:*:80"),
            ("0.0.0.0:80 datagram", &["udp:*:80"], ""),
            ("0.0.0.0:80 datagram", &["udp:[::1]:80"], ""),
            ("0.0.0.0:80 datagram", &["udp:0.0.0.0:80", "udp:[::]:80"], "udp:0.0.0.0:80"),
            ("10.0.0.5:80 datagram", &["udp:0.0.0.0:80"], ""),
            ("0.0.0.0:0 datagram", &["udp:0.0.0.0:80"], ""),
            // Unix sockets.
            ("unix:/run/a", &["127.0.0.1:80", "unix:/run/b", "unix:/run/a"], "unix:/run/a"),
            ("unix:/run//a", &["unix:/run/a"], "unix:/run/a"),
            ("unix:/run/a", &["unix:/run/b"], ""),
            ("unix:/run/a datagram", &["unix:/run/a"], ""),
            ("unix:@/run/a", &["unix:/run/a"], ""),
            ("unix:", &["unix:/run/a"], ""),
        ];
        for (what, configured, expected) in rows {
            let found = chosen(what, configured).unwrap_or_default();
            assert_eq!(found, *expected, "{what} with {configured:?}");
        }
    }

    #[test]
    fn the_reasons_can_be_acted_on() {
        let why = |what, configured: &[&str]| chosen(what, configured).unwrap_err().to_string();
        assert!(why("127.0.0.1:80", &["*:80"]).contains("says *:80, which is another address"));
        assert!(why("[::]:80 both", &["0.0.0.0:80", "[::]:80"]).contains("0.0.0.0:80, [::]:80; write one"));
        assert_eq!(chosen("127.0.0.1:0", &["*:80"]), Err(MismatchReason::Anything));
        assert_eq!(chosen("unix:", &[]), Err(MismatchReason::Anything));
        assert_eq!(chosen("[::1]:80", &["[::1]:81"]), Err(MismatchReason::Unknown));
        assert_eq!(chosen("unix:/run/a datagram", &["unix:/run/a"]), Err(MismatchReason::OtherType));
        let remedy =
            |what, configured: &[&str]| why(what, configured).rsplit("; ").next().unwrap().to_owned();
        assert_eq!(remedy("[::]:80 both datagram", &["udp:0.0.0.0:80"]), "write udp:*:80");
        assert_eq!(remedy("[::]:80 datagram", &["quic:127.0.0.1:80"]), "write quic:[::]:80");
        let both =
            "write udp:0.0.0.0:80, and udp:[::]:80 as another listener if it has a socket for IPv6 too";
        assert_eq!(remedy("0.0.0.0:80 datagram", &["udp:*:80"]), both);
        assert_eq!(remedy("0.0.0.0:80 datagram", &["udp:[::1]:80"]), "write udp:0.0.0.0:80");
        let mapped = "[::ffff:127.0.0.1]:80 both datagram";
        assert!(remedy(mapped, &["udp:127.0.0.1:80"]).contains("preferIPv4Stack"));
        assert!(why("[::1]:80 datagram", &["[::1]:80"]).contains("add udp:[::1]:80"));
        assert_eq!(chosen("127.0.0.1:0 datagram", &["127.0.0.1:80"]), Err(MismatchReason::Anything));
    }
}
