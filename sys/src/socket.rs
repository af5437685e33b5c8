//! Creates sockets and reads their addresses and properties.

use std::ffi::c_int;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{
    self as calls, Backlog, SockaddrLike, SockaddrStorage, UnixAddr, getsockopt, setsockopt, sockopt,
};
use nix::sys::time::TimeVal;

pub use nix::sys::socket::{AddressFamily, MsgFlags, Shutdown, SockFlag, SockProtocol, SockType};

use super::errno::{ByNumber, Errno};

/// The kernel caps it at `net.core.somaxconn`.
pub const LONGEST_BACKLOG: i32 = -1;

mod options {
    use nix::{getsockopt_impl, sockopt_impl};

    sockopt_impl!(
        /// The address family.
        Domain,
        GetOnly,
        libc::SOL_SOCKET,
        libc::SO_DOMAIN,
        i32
    );
    sockopt_impl!(
        /// The socket type. nix has this one, but only for types that it has names for.
        Type,
        GetOnly,
        libc::SOL_SOCKET,
        libc::SO_TYPE,
        i32
    );
    sockopt_impl!(
        /// The kernel's id of the socket.
        Cookie,
        GetOnly,
        libc::SOL_SOCKET,
        libc::SO_COOKIE,
        u64
    );
}

/// Creates a socket with the default protocol of its type; close-on-exec regardless of `flags`.
pub fn socket(family: AddressFamily, kind: SockType, flags: SockFlag) -> Result<OwnedFd, Errno> {
    calls::socket(family, kind, flags | SockFlag::SOCK_CLOEXEC, None).by_number()
}

/// Creates a netlink socket; close-on-exec.
pub fn netlink(protocol: SockProtocol) -> Result<OwnedFd, Errno> {
    calls::socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).by_number()
}

/// Creates a connected pair of unix sockets; both close-on-exec.
pub fn pair(kind: SockType) -> Result<(OwnedFd, OwnedFd), Errno> {
    calls::socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).by_number()
}

/// Accepts the next connection; close-on-exec regardless of `flags`.
pub fn accept(listener: impl AsFd, flags: SockFlag) -> Result<OwnedFd, Errno> {
    calls::accept4(listener, flags | SockFlag::SOCK_CLOEXEC).by_number()
}

/// Listens on a socket. The backlog is at most 4096, or [`LONGEST_BACKLOG`]: other values are EINVAL.
pub fn listen(socket: impl AsFd, backlog: i32) -> Result<(), Errno> {
    calls::listen(&socket, Backlog::new(backlog)?).by_number()
}

/// Binds a socket to a local address.
pub fn bind(socket: impl AsFd, address: SocketAddr) -> Result<(), Errno> {
    bind_at(socket, &SockaddrStorage::from(address))
}

/// Binds a unix socket to a path. ENAMETOOLONG for more than 107 bytes.
pub fn bind_path(socket: impl AsFd, path: &Path) -> Result<(), Errno> {
    bind_at(socket, &UnixAddr::new(path)?)
}

/// Binds a unix socket to a name in the abstract namespace, see unix(7).
pub fn bind_name(socket: impl AsFd, name: &[u8]) -> Result<(), Errno> {
    bind_at(socket, &UnixAddr::new_abstract(name)?)
}

/// Connects a socket. A nonblocking socket returns EINPROGRESS at first.
pub fn connect(socket: impl AsFd, address: SocketAddr) -> Result<(), Errno> {
    connect_to(socket, &SockaddrStorage::from(address))
}

/// Connects a unix socket. A nonblocking socket returns EAGAIN if the listener's queue is full.
pub fn connect_path(socket: impl AsFd, path: &Path) -> Result<(), Errno> {
    connect_to(socket, &UnixAddr::new(path)?)
}

fn bind_at(socket: impl AsFd, address: &dyn SockaddrLike) -> Result<(), Errno> {
    calls::bind(socket.as_fd().as_raw_fd(), address).by_number()
}

fn connect_to(socket: impl AsFd, address: &dyn SockaddrLike) -> Result<(), Errno> {
    calls::connect(socket.as_fd().as_raw_fd(), address).by_number()
}

/// The local address of a socket. EAFNOSUPPORT if it is not an IP address.
pub fn local_address(socket: impl AsFd) -> Result<SocketAddr, Errno> {
    let found: SockaddrStorage = calls::getsockname(socket.as_fd().as_raw_fd())?;
    let v4 = found.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
    let v6 = || found.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into()));
    v4.or_else(v6).ok_or(Errno::EAFNOSUPPORT)
}

/// The path of a unix socket; `None` if it has no path or is another kind of socket.
pub fn local_path(socket: impl AsFd) -> Option<PathBuf> {
    let found: UnixAddr = calls::getsockname(socket.as_fd().as_raw_fd()).ok()?;
    found.path().map(Path::to_owned)
}

/// Whether a socket is connected to a peer.
pub fn is_connected(socket: impl AsFd) -> Result<bool, Errno> {
    match calls::getpeername::<SockaddrStorage>(socket.as_fd().as_raw_fd()).by_number() {
        Ok(_) => Ok(true),
        Err(Errno::ENOTCONN) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Sends as much as fits. Returns the number of bytes.
pub fn send(socket: impl AsFd, bytes: &[u8], flags: MsgFlags) -> Result<usize, Errno> {
    calls::send(socket.as_fd().as_raw_fd(), bytes, flags).by_number()
}

/// Receives. Returns the number of bytes; with `MSG_TRUNC` the length of the whole datagram, even beyond the buffer.
pub fn recv(socket: impl AsFd, buffer: &mut [u8], flags: MsgFlags) -> Result<usize, Errno> {
    calls::recv(socket.as_fd().as_raw_fd(), buffer, flags).by_number()
}

/// Shuts down one or both directions of a connection, for all holders.
pub fn shutdown(socket: impl AsFd, how: Shutdown) -> Result<(), Errno> {
    calls::shutdown(socket.as_fd().as_raw_fd(), how).by_number()
}

/// The address family, if nix has a name for it. ENOTSOCK if it is not a socket.
pub fn family_of(socket: impl AsFd) -> Result<Option<AddressFamily>, Errno> {
    Ok(AddressFamily::from_i32(getsockopt(&socket, options::Domain)?))
}

/// The socket type, if nix has a name for it. ENOTSOCK if it is not a socket.
pub fn kind_of(socket: impl AsFd) -> Result<Option<SockType>, Errno> {
    Ok(SockType::try_from(getsockopt(&socket, options::Type)?).ok())
}

/// Whether a stream socket listens.
pub fn accepts(socket: impl AsFd) -> Result<bool, Errno> {
    getsockopt(&socket, sockopt::AcceptConn).by_number()
}

/// The kernel's id of a socket, the same for all holders (`SO_COOKIE`).
pub fn cookie_of(socket: impl AsFd) -> Result<u64, Errno> {
    getsockopt(&socket, options::Cookie).by_number()
}

/// Returns and clears the pending error of a socket (`SO_ERROR`).
pub fn error_of(socket: impl AsFd) -> Result<Option<Errno>, Errno> {
    let found: c_int = getsockopt(&socket, sockopt::SocketError)?;
    Ok((found != 0).then(|| Errno::from_raw(found)))
}

/// The process at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its pid; 0 if it is not visible in this pid namespace.
    pub pid: u32,
    /// Its effective user.
    pub user: u32,
}

/// The process that created the other end of a connected unix socket, or called listen(2) on it.
pub fn peer_of(socket: impl AsFd) -> Result<Peer, Errno> {
    let found = getsockopt(&socket, sockopt::PeerCredentials)?;
    Ok(Peer { pid: u32::try_from(found.pid()).unwrap_or(0), user: found.uid() })
}

/// Whether an IPv6 socket rejects IPv4 (`IPV6_V6ONLY`).
pub fn is_v6_only(socket: impl AsFd) -> Result<bool, Errno> {
    getsockopt(&socket, sockopt::Ipv6V6Only).by_number()
}

/// Sets whether an IPv6 socket rejects IPv4 (`IPV6_V6ONLY`).
pub fn set_v6_only(socket: impl AsFd, only: bool) -> Result<(), Errno> {
    setsockopt(&socket, sockopt::Ipv6V6Only, &only).by_number()
}

/// Allows binding despite connections of an earlier listener, live or in TIME_WAIT (`SO_REUSEADDR`).
pub fn reuse_address(socket: impl AsFd) -> Result<(), Errno> {
    setsockopt(&socket, sockopt::ReuseAddr, &true).by_number()
}

/// Allows other sockets of this user that also have this option on the same address (`SO_REUSEPORT`).
pub fn reuse_port(socket: impl AsFd) -> Result<(), Errno> {
    setsockopt(&socket, sockopt::ReusePort, &true).by_number()
}

/// Sends written data immediately, see tcp(7) (`TCP_NODELAY`).
pub fn set_nodelay(socket: impl AsFd) -> Result<(), Errno> {
    setsockopt(&socket, sockopt::TcpNoDelay, &true).by_number()
}

/// Makes close reset a TCP connection, so that the client sees that no process has it.
pub fn reset_on_close(socket: impl AsFd) -> Result<(), Errno> {
    setsockopt(&socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).by_number()
}

/// Makes the kernel attach the sender's credentials to each datagram (`SO_PASSCRED`).
pub fn pass_credentials(socket: impl AsFd) -> Result<(), Errno> {
    setsockopt(&socket, sockopt::PassCred, &true).by_number()
}

/// Sets the size of the receive buffer in bytes. With privilege it may exceed the administrator's limit, otherwise the
/// kernel caps it.
pub fn set_receive_buffer(socket: impl AsFd, bytes: usize) -> Result<(), Errno> {
    setsockopt(&socket, sockopt::RcvBufForce, &bytes)
        .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &bytes))
        .by_number()
}

/// Sets the timeout of receive calls.
pub fn set_receive_timeout(socket: impl AsFd, limit: Duration) -> Result<(), Errno> {
    setsockopt(&socket, sockopt::ReceiveTimeout, &time_val(limit)).by_number()
}

/// Sets the timeout of send and connect calls.
pub fn set_send_timeout(socket: impl AsFd, limit: Duration) -> Result<(), Errno> {
    setsockopt(&socket, sockopt::SendTimeout, &time_val(limit)).by_number()
}

fn time_val(time: Duration) -> TimeVal {
    TimeVal::new(time.as_secs().min(i64::MAX as u64) as i64, time.subsec_micros().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::is_close_on_exec;
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::UnixListener;

    #[test]
    fn addresses_come_back_as_they_were_given() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let given = UdpSocket::bind(address).unwrap();
            assert_eq!(local_address(&given), Ok(given.local_addr().unwrap()));
            let family = if address.starts_with('[') { AddressFamily::Inet6 } else { AddressFamily::Inet };
            let other = socket(family, SockType::Datagram, SockFlag::empty()).unwrap();
            let any_port = SocketAddr::new(given.local_addr().unwrap().ip(), 0);
            bind(&other, any_port).unwrap();
            assert_eq!(is_connected(&other), Ok(false));
            connect(&other, given.local_addr().unwrap()).unwrap();
            assert_eq!(is_connected(&other), Ok(true));
            assert_eq!(local_address(&other).unwrap().ip(), any_port.ip());
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(local_path(&listener), Some(path.clone()));
        assert_eq!(local_address(&listener), Err(Errno::EAFNOSUPPORT));
        assert_eq!(local_path(TcpListener::bind("127.0.0.1:0").unwrap()), None);
        let client = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty()).unwrap();
        connect_path(&client, &path).unwrap();
        assert_eq!(peer_of(&client).unwrap().pid, std::process::id());
        assert!(is_close_on_exec(&client).unwrap());
        assert!(is_close_on_exec(accept(&listener, SockFlag::empty()).unwrap()).unwrap());
        let long = directory.path().join("x".repeat(108));
        assert_eq!(bind_path(&client, &long), Err(Errno::ENAMETOOLONG));
    }

    #[test]
    fn what_a_socket_is_can_be_asked() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(family_of(&listener), Ok(Some(AddressFamily::Inet)));
        assert_eq!(kind_of(&listener), Ok(Some(SockType::Stream)));
        assert_eq!((accepts(&listener), error_of(&listener)), (Ok(true), Ok(None)));
        assert_ne!(cookie_of(&listener).unwrap(), cookie_of(TcpListener::bind("[::1]:0").unwrap()).unwrap());
        assert_eq!(family_of(std::fs::File::open("/dev/null").unwrap()), Err(Errno::ENOTSOCK));
        let (one, other) = pair(SockType::SeqPacket).unwrap();
        assert_eq!(send(&one, b"packet", MsgFlags::empty()), Ok(6));
        assert_eq!(recv(&other, &mut [0; 2], MsgFlags::MSG_TRUNC), Ok(6));
        set_receive_timeout(&other, Duration::from_millis(1)).unwrap();
        assert_eq!(recv(&other, &mut [0; 2], MsgFlags::empty()), Err(Errno::EAGAIN));
    }
}
