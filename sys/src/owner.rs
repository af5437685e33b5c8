//! Which process uses an address.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread::Builder;
use std::time::Duration;

use super::errno::Errno;
use super::socket::{AddressFamily, SockFlag, SockType, connect_path, peer_of, socket};

/// A process that holds a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Its pid.
    pub pid: u32,
    /// The name of its program, at most 15 bytes; empty if it is gone.
    pub name: String,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {} ({})", self.pid, self.name)
    }
}

impl Owner {
    /// Finds the process that holds the socket with this inode. Reads `/proc`.
    pub fn of_socket(inode: u64) -> Option<Owner> {
        holder_of_socket(inode)
    }

    /// Whether it is a daemon of handoff, or one of its own processes, which hold sockets for services. Compares the process
    /// name.
    pub fn is_supervisor(&self) -> bool {
        self.name.starts_with("handoff")
    }

    fn of(pid: u32) -> Owner {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Owner { pid, name: name.trim_end().to_owned() }
    }
}

/// Finds the process that prevents binding `address`: one that listens there or on a wildcard of the same port, or else
/// one with a connection from there. If several hold the socket, returns the supervisor. `None` if unknown, for example
/// for another user's process. Reads `/proc`; takes milliseconds with thousands of processes.
pub fn of_tcp(address: SocketAddr) -> Option<Owner> {
    in_the_way(TCP, address).iter().find_map(|entry| holder_of_socket(entry.inode))
}

/// Like [`of_tcp`], for UDP. Connected sockets come last, because they receive only from their peer.
pub fn of_udp(address: SocketAddr) -> Option<Owner> {
    in_the_way(UDP, address).iter().find_map(|entry| holder_of_socket(entry.inode))
}

/// Whether every UDP socket that could prevent binding `address` is connected to a peer.
pub fn is_open_to_none(address: SocketAddr) -> bool {
    in_the_way(UDP, address).iter().all(|entry| !entry.listens)
}

/// Sockets in the way, listening ones first.
fn in_the_way(Tables { files, listens }: Tables, address: SocketAddr) -> Vec<Entry> {
    let mut found: Vec<Entry> = files
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| table.lines().filter_map(|line| parse_line(line, listens)).collect::<Vec<_>>())
        .filter(|entry| entry.inode != 0 && stands_in_the_way(entry.local, address))
        .collect();
    found.sort_by_key(|entry| !entry.listens);
    found
}

/// The kernel's socket tables, and the state code of a listening or unconnected socket.
#[derive(Clone, Copy)]
struct Tables {
    files: [&'static str; 2],
    listens: &'static str,
}

const TCP: Tables = Tables { files: ["/proc/net/tcp", "/proc/net/tcp6"], listens: "0A" };
/// Datagram sockets have the state TCP_CLOSE until they are connected.
const UDP: Tables = Tables { files: ["/proc/net/udp", "/proc/net/udp6"], listens: "07" };

/// What exists at the path of a unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnixPath {
    /// Nothing.
    Free,
    /// A socket file without a listener: its process is gone.
    Stale,
    /// A process listens there; `Some` if it is known.
    InUse(Option<Owner>),
    /// A file of another type.
    NotASocket,
}

/// Examines `path`; tries to connect if it is a socket. Does not block.
pub fn of_unix(path: &Path) -> io::Result<UnixPath> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(UnixPath::Free),
        Err(error) => return Err(error),
        Ok(found) if !found.file_type().is_socket() => return Ok(UnixPath::NotASocket),
        Ok(_) => {}
    }
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK)?;
    match connect_path(&socket, path) {
        // The credentials are those of the process that called listen(2).
        Ok(()) => Ok(UnixPath::InUse(peer_of(&socket).ok().map(|peer| Owner::of(peer.pid)))),
        Err(Errno::ECONNREFUSED) => Ok(UnixPath::Stale),
        Err(Errno::ENOENT) => Ok(UnixPath::Free),
        // A full queue, or a socket of another type.
        Err(Errno::EAGAIN | Errno::EPROTOTYPE) => Ok(UnixPath::InUse(None)),
        Err(error) => Err(error.into()),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    local: SocketAddr,
    listens: bool,
    inode: u64,
}

/// Parses a line of these tables: number, local, remote, state, ..., and the inode as the tenth field.
fn parse_line(line: &str, listens: &str) -> Option<Entry> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (ip, port) = fields.get(1)?.split_once(':')?;
    let local = SocketAddr::new(parse_ip(ip)?, u16::from_str_radix(port, 16).ok()?);
    Some(Entry { local, listens: *fields.get(3)? == listens, inode: fields.get(9)?.parse().ok()? })
}

/// Words of four bytes, each printed as a number in host order: in memory they are in network order.
fn parse_ip(text: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(text.get(at * 8..at * 8 + 8)?, 16).ok()?.to_ne_bytes());
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for at in 0..4 {
                bytes[at * 4..at * 4 + 4].copy_from_slice(&word(at)?);
            }
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

/// Assumes that a wildcard of either family covers every address. At worst the result names an unrelated socket of the
/// same port second.
fn stands_in_the_way(found: SocketAddr, wanted: SocketAddr) -> bool {
    let (a, b) = (found.ip().to_canonical(), wanted.ip().to_canonical());
    found.port() == wanted.port() && (a == b || a.is_unspecified() || b.is_unspecified())
}

/// A look at all processes takes milliseconds, and on a busy machine longer.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// Whether a look still waits for a process.
static IS_STUCK: AtomicBool = AtomicBool::new(false);

/// Looks on another thread, and gives up after `limit`: what the kernel reports of a process may have to wait for the end of
/// its exec(2), and so for a file system that does not answer. While a look is stuck, none begins.
fn within<T: Send + 'static>(
    limit: Duration,
    is_stuck: &'static AtomicBool,
    look: impl FnOnce() -> Option<T> + Send + 'static,
) -> Option<T> {
    if is_stuck.load(Ordering::SeqCst) {
        return None;
    }
    let (tell, found) = sync_channel(1);
    let looker = move || {
        // The receiver may be gone.
        let _ = tell.send(look());
        is_stuck.store(false, Ordering::SeqCst);
    };
    Builder::new().name("handoff-owner".to_owned()).spawn(looker).ok()?;
    if let Ok(found) = found.recv_timeout(limit) {
        return found;
    }
    is_stuck.store(true, Ordering::SeqCst);
    // The answer may have come just before: then nothing takes the mark away again.
    let late = found.try_recv().ok()?;
    is_stuck.store(false, Ordering::SeqCst);
    late
}

fn holder_of_socket(inode: u64) -> Option<Owner> {
    within(CHECK_TIMEOUT, &IS_STUCK, move || holder_of_socket_now(inode))
}

/// Blocks while a process does not answer.
fn holder_of_socket_now(inode: u64) -> Option<Owner> {
    let wanted = format!("socket:[{inode}]");
    let mut pids: Vec<u32> = fs::read_dir("/proc")
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    let holds = |pid: &u32| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
        fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str()))
    };
    let mut holders = pids.into_iter().filter(holds).map(Owner::of).peekable();
    let first = holders.peek().cloned();
    holders.find(Owner::is_supervisor).or(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::UnixListener;
    use std::time::Instant;

    #[test]
    fn a_look_that_is_stuck_is_given_up_and_no_other_begins() {
        static STUCK: AtomicBool = AtomicBool::new(false);
        let (release, held) = sync_channel::<()>(0);
        let short = Duration::from_millis(20);
        assert_eq!(within(short, &STUCK, move || held.recv().ok().map(|()| 1)), None);
        assert_eq!(within(CHECK_TIMEOUT, &STUCK, || -> Option<i32> { panic!("it must not look") }), None);
        release.send(()).unwrap();
        let since = Instant::now();
        while within(CHECK_TIMEOUT, &STUCK, || Some(2)) != Some(2) {
            assert!(since.elapsed() < Duration::from_secs(30));
        }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_are_read() {
        let v4 = "   0: 0100007F:2328 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0";
        let entry = Entry { local: "127.0.0.1:9000".parse().unwrap(), listens: true, inode: 4711 };
        assert_eq!(parse_line(v4, "0A"), Some(entry));
        let v6 = "   0: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 01 \
                  00000000:00000000 00:00000000 00000000     0        0 12 1 0";
        let entry = Entry { local: "[::1]:22".parse().unwrap(), listens: false, inode: 12 };
        assert_eq!(parse_line(v6, "0A"), Some(entry));
        assert_eq!(
            parse_line("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when", "0A"),
            None
        );
        assert_eq!(parse_line("", "0A"), None);
    }

    #[test]
    fn a_listener_is_found_by_its_address_and_by_a_wildcard() {
        for bound in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0"] {
            let listener = TcpListener::bind(bound).unwrap();
            let address = listener.local_addr().unwrap();
            let owner = of_tcp(address).unwrap();
            assert_eq!(owner.pid, std::process::id());
            assert!(!owner.name.is_empty());
            assert_eq!(of_tcp(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port())), Some(owner));
        }
    }

    #[test]
    fn a_datagram_socket_is_found_and_a_connected_one_takes_nothing() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        assert_eq!(of_udp(address).unwrap().pid, std::process::id());
        assert!(!is_open_to_none(address));
        socket.connect(address).unwrap();
        assert_eq!(of_udp(address).unwrap().pid, std::process::id());
        assert!(is_open_to_none(address));
    }

    #[test]
    fn a_connection_is_found_where_nobody_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let owner = of_tcp(client.local_addr().unwrap()).unwrap();
        assert_eq!(owner.pid, std::process::id());
    }

    #[test]
    fn unix_paths_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        assert_eq!(of_unix(&path).unwrap(), UnixPath::Free);
        fs::write(&path, "").unwrap();
        assert_eq!(of_unix(&path).unwrap(), UnixPath::NotASocket);
        fs::remove_file(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        let UnixPath::InUse(Some(owner)) = of_unix(&path).unwrap() else { panic!("a process listens") };
        assert_eq!(owner.pid, std::process::id());
        drop(listener);
        // Until a child of another test executes its program, it holds the listener open.
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while of_unix(&path).unwrap() != UnixPath::Stale {
            assert!(std::time::Instant::now() < until, "{:?}", of_unix(&path));
        }
    }
}
