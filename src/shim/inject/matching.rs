//! Which listener of the service a program means by what it binds. A table, without effects.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::wanted::{Address, Wanted};
use crate::config::ListenAddress;

/// Why a bind is none of a listener of the service. `Display` is a clause without a full stop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// Datagrams, or anything but a stream.
    #[error("it is no stream socket")]
    NotStream,
    /// Port 0, or a unix socket without a name.
    #[error("it asks for whatever is free")]
    Anything,
    /// The service file has nothing like it.
    #[error("the service file has no such listener")]
    Unknown,
    /// The service file has another address with this port.
    #[error("the service file says {0}, which is another address; write the same in both places")]
    Elsewhere(ListenAddress),
    /// It binds all addresses, and the service file has several with this port.
    #[error("it binds all addresses at once, and the service file has several with this port: {}; write one", list(.0))]
    Several(Vec<ListenAddress>),
    /// What it binds could not be found out.
    #[error("what it binds cannot be read: {0}")]
    Unreadable(String),
}

fn list(addresses: &[ListenAddress]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Chooses a listener by its place in `configured`.
///
/// | it binds | it gets |
/// |---|---|
/// | an address that the service file says as well | that listener |
/// | all addresses of a port, v4, v6 or both, where the service file has one listener with the port | that listener |
/// | a v4 address in v6 clothes, on a v6 socket | what the v4 address would get |
/// | the path of a unix socket that the service file says as well | that listener |
/// | anything else | none |
pub fn choose(wanted: &Wanted, configured: &[(String, ListenAddress)]) -> Result<usize, Why> {
    if !wanted.stream {
        return Err(Why::NotStream);
    }
    match wanted.address.clone().unmapped() {
        Address::Inet(address) if address.port() == 0 => Err(Why::Anything),
        Address::Inet(address) => choose_tcp(address, wanted, configured),
        Address::Unix(path) => {
            let same = |(_, address): &(_, ListenAddress)| *address == ListenAddress::Unix(path.clone());
            configured.iter().position(same).ok_or(Why::Unknown)
        }
        Address::Unnamed => Err(Why::Anything),
        Address::Abstract(_) | Address::Other(_) => Err(Why::Unknown),
    }
}

fn choose_tcp(
    address: SocketAddr,
    wanted: &Wanted,
    configured: &[(String, ListenAddress)],
) -> Result<usize, Why> {
    if let Some(exact) = configured.iter().position(|(_, said)| is_exactly(address, wanted.v6_only, said)) {
        return Ok(exact);
    }
    let with_port: Vec<usize> =
        (0..configured.len()).filter(|at| port(&configured[*at].1) == Some(address.port())).collect();
    match with_port[..] {
        [] => Err(Why::Unknown),
        [only] if address.ip().is_unspecified() => Ok(only),
        [first, ..] if !address.ip().is_unspecified() => Err(Why::Elsewhere(configured[first].1.clone())),
        _ => Err(Why::Several(with_port.iter().map(|at| configured[*at].1.clone()).collect())),
    }
}

/// `[::]` on a socket that takes v4 as well is what the service file writes as `*`.
fn is_exactly(address: SocketAddr, v6_only: bool, said: &ListenAddress) -> bool {
    let both = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && !v6_only;
    match said {
        ListenAddress::DualStack { port } => both && *port == address.port(),
        ListenAddress::Tcp(said) => !both && same(address, *said),
        ListenAddress::Unix(_) => false,
    }
}

/// The flow is no part of an address, and a scope that the service file leaves out does not count.
fn same(address: SocketAddr, said: SocketAddr) -> bool {
    let scopes_agree = match (address, said) {
        (SocketAddr::V6(a), SocketAddr::V6(b)) => b.scope_id() == 0 || a.scope_id() == b.scope_id(),
        _ => true,
    };
    address.ip() == said.ip() && address.port() == said.port() && scopes_agree
}

fn port(address: &ListenAddress) -> Option<u16> {
    match address {
        ListenAddress::Tcp(address) => Some(address.port()),
        ListenAddress::DualStack { port } => Some(*port),
        ListenAddress::Unix(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `address`, then what the socket is besides a stream: `both` (v4 and v6), `datagram`.
    fn wanted(text: &str) -> Wanted {
        let mut words = text.split(' ');
        let address = words.next().unwrap();
        let address = match address.strip_prefix("unix:") {
            Some("") => Address::Unnamed,
            Some(path) if path.starts_with('@') => Address::Abstract(path.into()),
            Some(path) => Address::Unix(path.into()),
            None => Address::Inet(address.parse().unwrap()),
        };
        let more: Vec<&str> = words.collect();
        Wanted { address, stream: !more.contains(&"datagram"), v6_only: !more.contains(&"both") }
    }

    fn chosen(what: &str, configured: &[&str]) -> Result<String, Why> {
        let configured: Vec<_> =
            configured.iter().map(|text| (String::new(), text.parse().unwrap())).collect();
        choose(&wanted(what), &configured).map(|at| configured[at].1.to_string())
    }

    #[test]
    fn the_table() {
        // What is bound, what the service file says, what is chosen: "" if nothing.
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
            // A v4 address on a v6 socket, as Java does it.
            ("[::ffff:127.0.0.1]:80 both", &["[::1]:80", "127.0.0.1:80"], "127.0.0.1:80"),
            ("[::ffff:0.0.0.0]:80 both", &["0.0.0.0:80", "[::]:80"], "0.0.0.0:80"),
            ("[::ffff:0.0.0.0]:80 both", &["127.0.0.1:80"], "127.0.0.1:80"),
            ("[::ffff:127.0.0.1]:80 both", &["*:80"], ""),
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
        assert_eq!(chosen("127.0.0.1:0", &["*:80"]), Err(Why::Anything));
        assert_eq!(chosen("unix:", &[]), Err(Why::Anything));
        assert_eq!(chosen("[::1]:80", &["[::1]:81"]), Err(Why::Unknown));
        assert_eq!(chosen("[::1]:80 datagram", &["[::1]:80"]), Err(Why::NotStream));
    }
}
