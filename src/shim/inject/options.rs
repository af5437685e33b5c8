//! Copies the options of a program's socket to the listener that replaces it.
//!
//! Relevant are options that accepted connections inherit, and the behavior of accept; for datagram sockets, the
//! information that comes with each datagram, and how the socket sends. Not copied are:
//!
//! - options of the address: `SO_REUSEADDR`, `SO_REUSEPORT`, `IPV6_V6ONLY`, `SO_BINDTODEVICE`, `IP_FREEBIND`,
//!   `IP_TRANSPARENT`. The supervisor owns them, and the listener is already bound;
//! - options that select a listener of a group: `SO_INCOMING_CPU`, filters. The supervisor owns them, too;
//! - `TCP_DEFER_ACCEPT`. It keeps a connection out of the accept queue until its first bytes arrive, so a listener with
//!   an empty queue could still have clients, which would be reset when it closes. It only affects how soon accept
//!   returns, so no program can depend on it;
//! - the backlog, which is the longest that the kernel allows, and a receive buffer for datagrams that is smaller than
//!   the slot's: it must hold what waits for the next process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::sys::descriptor::{is_nonblocking, set_nonblocking};
use crate::sys::seccomp::{get_option, set_option};
use crate::sys::socket::{AddressFamily, SockType, family_of, kind_of};

/// Copies the options for datagram information to another socket that later receives for the same program: the kernel
/// records some of the information on arrival, not on read. Never clears an option.
pub(crate) fn copy_datagram_information(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    let (from, to) = (from.as_fd(), to.as_fd());
    let family = family_of(to)?;
    let is_told =
        |setting: &&SocketOption| matches!(setting.rule, IfSetLater) && setting.applies(family, true);
    for setting in SETTINGS.iter().filter(is_told) {
        let _ = setting.copy(from, to, true);
    }
    Ok(())
}

/// Copies the options. `again`: another process of the same program has received the listener before, so options that
/// it has set since are kept. Copies `O_NONBLOCK` too, which belongs to the socket: a program that finds it changed
/// would hang or spin. An option that the kernel refuses, for lack of a privilege that the program has, stays
/// unchanged.
pub(super) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>, again: bool) -> io::Result<()> {
    let wanted = is_nonblocking(from)?;
    if is_nonblocking(to)? != wanted {
        set_nonblocking(to, wanted)?;
    }
    let family = family_of(to)?;
    let datagrams = kind_of(to)? == Some(SockType::Datagram);
    for setting in SETTINGS.iter().filter(|setting| setting.applies(family, datagrams)) {
        let _ = setting.copy(from, to, again);
    }
    let _ = copy_buffers(from, to, datagrams);
    Ok(())
}

struct SocketOption {
    class: SocketClass,
    level: i32,
    option: i32,
    rule: CopyRule,
}

enum SocketClass {
    Any,
    /// TCP and UDP.
    Ip,
    Tcp,
    Udp,
    /// TCP and UDP over IPv6.
    V6,
    /// UDP over IPv6.
    Udp6,
    Unix,
}

enum CopyRule {
    /// Always copied, even if unset: an earlier program may have set another value on the listener.
    Same,
    /// Copied if set; otherwise the listener keeps its own value.
    IfSet,
    /// Like `IfSet`, for datagram information. A program may enable it after the bind, and datagrams that arrived
    /// before lack it.
    IfSetLater,
}

use CopyRule::{IfSet, IfSetLater, Same};
use SocketClass::{Any, Ip, Tcp, Udp, Udp6, Unix, V6};

const SOL_SOCKET: i32 = 1;
const IPPROTO_IP: i32 = 0;
const IPPROTO_TCP: i32 = 6;
const IPPROTO_UDP: i32 = 17;
const IPPROTO_IPV6: i32 = 41;

const fn setting(of: SocketClass, level: i32, option: i32, take: CopyRule) -> SocketOption {
    SocketOption { class: of, level, option, rule: take }
}

const SETTINGS: [SocketOption; 44] = [
    setting(Tcp, SOL_SOCKET, 9, Same),           // SO_KEEPALIVE
    setting(Tcp, SOL_SOCKET, 10, Same),          // SO_OOBINLINE
    setting(Ip, SOL_SOCKET, 12, Same),           // SO_PRIORITY
    setting(Tcp, SOL_SOCKET, 13, Same),          // SO_LINGER
    setting(Unix, SOL_SOCKET, 16, Same),         // SO_PASSCRED
    setting(Tcp, SOL_SOCKET, 18, Same),          // SO_RCVLOWAT
    setting(Any, SOL_SOCKET, 20, Same),          // SO_RCVTIMEO: how long accept waits
    setting(Any, SOL_SOCKET, 21, Same),          // SO_SNDTIMEO
    setting(Ip, SOL_SOCKET, 36, Same),           // SO_MARK
    setting(Ip, SOL_SOCKET, 60, Same),           // SO_ZEROCOPY
    setting(Ip, IPPROTO_IP, 1, Same),            // IP_TOS
    setting(V6, IPPROTO_IPV6, 67, Same),         // IPV6_TCLASS
    setting(Tcp, IPPROTO_TCP, 1, IfSet),         // TCP_NODELAY: slots have it already
    setting(Tcp, IPPROTO_TCP, 4, Same),          // TCP_KEEPIDLE
    setting(Tcp, IPPROTO_TCP, 5, Same),          // TCP_KEEPINTVL
    setting(Tcp, IPPROTO_TCP, 6, Same),          // TCP_KEEPCNT
    setting(Tcp, IPPROTO_TCP, 13, Same),         // TCP_CONGESTION
    setting(Tcp, IPPROTO_TCP, 18, Same),         // TCP_USER_TIMEOUT
    setting(Tcp, IPPROTO_TCP, 23, IfSet),        // TCP_FASTOPEN: the length of its queue
    setting(Udp, SOL_SOCKET, 6, Same),           // SO_BROADCAST
    setting(Udp, SOL_SOCKET, 29, IfSetLater),    // SO_TIMESTAMP
    setting(Udp, SOL_SOCKET, 35, IfSetLater),    // SO_TIMESTAMPNS
    setting(Udp, SOL_SOCKET, 37, IfSetLater),    // SO_TIMESTAMPING
    setting(Udp, SOL_SOCKET, 40, IfSetLater),    // SO_RXQ_OVFL
    setting(Udp, SOL_SOCKET, 46, Same),          // SO_BUSY_POLL
    setting(Udp, SOL_SOCKET, 47, Same),          // SO_MAX_PACING_RATE
    setting(Udp, SOL_SOCKET, 61, Same),          // SO_TXTIME
    setting(Udp, IPPROTO_IP, 2, Same),           // IP_TTL
    setting(Udp, IPPROTO_IP, 8, IfSetLater),     // IP_PKTINFO
    setting(Udp, IPPROTO_IP, 10, Same),          // IP_MTU_DISCOVER
    setting(Udp, IPPROTO_IP, 11, Same),          // IP_RECVERR
    setting(Udp, IPPROTO_IP, 12, IfSetLater),    // IP_RECVTTL
    setting(Udp, IPPROTO_IP, 13, IfSetLater),    // IP_RECVTOS
    setting(Udp, IPPROTO_IP, 20, IfSetLater),    // IP_RECVORIGDSTADDR
    setting(Udp6, IPPROTO_IPV6, 16, Same),       // IPV6_UNICAST_HOPS
    setting(Udp6, IPPROTO_IPV6, 23, Same),       // IPV6_MTU_DISCOVER
    setting(Udp6, IPPROTO_IPV6, 25, Same),       // IPV6_RECVERR
    setting(Udp6, IPPROTO_IPV6, 49, IfSetLater), // IPV6_RECVPKTINFO
    setting(Udp6, IPPROTO_IPV6, 51, IfSetLater), // IPV6_RECVHOPLIMIT
    setting(Udp6, IPPROTO_IPV6, 62, Same),       // IPV6_DONTFRAG
    setting(Udp6, IPPROTO_IPV6, 66, IfSetLater), // IPV6_RECVTCLASS
    setting(Udp6, IPPROTO_IPV6, 74, IfSetLater), // IPV6_RECVORIGDSTADDR
    setting(Udp, IPPROTO_UDP, 103, Same),        // UDP_SEGMENT
    setting(Udp, IPPROTO_UDP, 104, IfSetLater),  // UDP_GRO
];

impl SocketOption {
    fn applies(&self, family: Option<AddressFamily>, datagrams: bool) -> bool {
        let (unix, v6) = (family == Some(AddressFamily::Unix), family == Some(AddressFamily::Inet6));
        match self.class {
            Any => true,
            Ip => !unix,
            Tcp => !unix && !datagrams,
            Udp => !unix && datagrams,
            V6 => v6,
            Udp6 => v6 && datagrams,
            Unix => unix,
        }
    }

    fn copy(&self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, adds: bool) -> io::Result<()> {
        let (mut wanted, mut found) = ([0; 32], [0; 32]);
        let len = get_option(from, self.level, self.option, &mut wanted)?;
        get_option(to, self.level, self.option, &mut found)?;
        let is_set = wanted[..len].iter().any(|byte| *byte != 0);
        // Does not set an equal value: that could need a privilege.
        if wanted == found || (adds || !matches!(self.rule, Same)) && !is_set {
            return Ok(());
        }
        set_option(to, self.level, self.option, &wanted[..len])
    }
}

/// Copies only the sizes that the program has set. The kernel tunes the others per connection, and setting them would
/// end that. It reports which ones were set (`SO_BUF_LOCK`, from 5.14 on).
fn copy_buffers(from: impl AsFd, to: impl AsFd, datagrams: bool) -> io::Result<()> {
    const SO_BUF_LOCK: i32 = 72;
    const SO_RCVBUF: i32 = 8;
    /// For each buffer: the bit that reports that it was set, its option, and the option that exceeds the
    /// administrator's limit.
    const BUFFERS: [(u32, i32, i32); 2] = [(1, 7, 32), (2, SO_RCVBUF, 33)]; // The first is SO_SNDBUF.
    let set = number(&from, SO_BUF_LOCK)?;
    for (_, option, force) in BUFFERS.into_iter().filter(|(bit, ..)| set & bit != 0) {
        let wanted = number(&from, option)?;
        if datagrams && option == SO_RCVBUF && wanted <= number(&to, option)? {
            continue;
        }
        // The kernel doubles the given value, and returns the double.
        let half = (wanted / 2).to_ne_bytes();
        set_option(&to, SOL_SOCKET, force, &half).or_else(|_| set_option(&to, SOL_SOCKET, option, &half))?;
    }
    Ok(())
}

fn number(socket: impl AsFd, option: i32) -> io::Result<u32> {
    let mut value = [0; 4];
    get_option(socket, SOL_SOCKET, option, &mut value)?;
    Ok(u32::from_ne_bytes(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::{SockFlag, socket};
    use nix::libc;
    use nix::sys::socket::{getsockopt, setsockopt, sockopt};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixListener;

    fn tcp() -> OwnedFd {
        socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty()).unwrap()
    }

    /// Maximum blocking time of a close.
    fn linger(seconds: i32) -> libc::linger {
        libc::linger { l_onoff: 1, l_linger: seconds }
    }

    #[test]
    fn what_connections_inherit_is_copied_and_taken_back() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        setsockopt(&listener, sockopt::TcpNoDelay, &true).unwrap();
        let theirs = tcp();
        setsockopt(&theirs, sockopt::KeepAlive, &true).unwrap();
        setsockopt(&theirs, sockopt::TcpKeepIdle, &77).unwrap();
        setsockopt(&theirs, sockopt::Linger, &linger(3)).unwrap();
        setsockopt(&theirs, sockopt::RcvBuf, &40_000).unwrap();
        setsockopt(&theirs, sockopt::Ipv4Tos, &16).unwrap();
        set_option(&theirs, IPPROTO_TCP, 23, &5_i32.to_ne_bytes()).unwrap();
        set_nonblocking(&theirs, true).unwrap();
        copy(theirs.as_fd(), listener.as_fd(), false).unwrap();

        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        set_nonblocking(&listener, false).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert!(
            getsockopt(&accepted, sockopt::KeepAlive).unwrap()
                && getsockopt(&accepted, sockopt::TcpNoDelay).unwrap()
        );
        assert_eq!(getsockopt(&accepted, sockopt::TcpKeepIdle).unwrap(), 77);
        assert_eq!(getsockopt(&accepted, sockopt::Linger), Ok(linger(3)));
        assert_eq!(getsockopt(&accepted, sockopt::RcvBuf).unwrap(), 80_000);
        assert_eq!(getsockopt(&accepted, sockopt::Ipv4Tos).unwrap(), 16);
        let mut queue = [0; 4];
        get_option(&listener, IPPROTO_TCP, 23, &mut queue).unwrap();
        assert_eq!(queue, 5_i32.to_ne_bytes());

        copy(tcp().as_fd(), listener.as_fd(), false).unwrap();
        assert!(!getsockopt(&listener, sockopt::KeepAlive).unwrap());
        assert_eq!(getsockopt(&listener, sockopt::Linger).unwrap().l_onoff, 0);
        assert_eq!(getsockopt(&listener, sockopt::Ipv4Tos).unwrap(), 0);
        assert!(getsockopt(&listener, sockopt::TcpNoDelay).unwrap());
    }

    #[test]
    fn blocking_is_as_the_program_has_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let blocks = || !is_nonblocking(&listener).unwrap();
        let theirs = tcp();
        for nonblocking in [true, true, false, false] {
            set_nonblocking(&theirs, nonblocking).unwrap();
            copy(theirs.as_fd(), listener.as_fd(), false).unwrap();
            assert_eq!(blocks(), !nonblocking);
        }
    }

    #[test]
    fn sizes_that_nobody_set_are_left_to_the_kernel() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        copy(tcp().as_fd(), listener.as_fd(), false).unwrap();
        assert_eq!(number(&listener, 72).unwrap(), 0);
    }

    #[test]
    fn a_deferred_accept_is_not_copied() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = tcp();
        set_option(&theirs, IPPROTO_TCP, 9, &5_i32.to_ne_bytes()).unwrap();
        copy(theirs.as_fd(), listener.as_fd(), false).unwrap();
        let mut value = [0; 4];
        get_option(&listener, IPPROTO_TCP, 9, &mut value).unwrap();
        assert_eq!(value, [0; 4]);
    }

    #[test]
    fn a_datagram_socket_tells_with_each_datagram_what_the_program_asked_for() {
        let asked = [
            (SOL_SOCKET, 40), // SO_RXQ_OVFL
            (SOL_SOCKET, 35), // SO_TIMESTAMPNS
            (IPPROTO_IP, 8),  // IP_PKTINFO
            (IPPROTO_IP, 13), // IP_RECVTOS
            (IPPROTO_IP, 10), // IP_MTU_DISCOVER
            (IPPROTO_IPV6, 49),
            (IPPROTO_IPV6, 66),
            (IPPROTO_UDP, 104),
        ];
        let slot = UdpSocket::bind("[::1]:0").unwrap();
        setsockopt(&slot, sockopt::RcvBuf, &100_000).unwrap();
        let theirs = || socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::empty()).unwrap();
        let with = theirs();
        for (level, option) in asked {
            set_option(&with, level, option, &1_i32.to_ne_bytes()).unwrap();
        }
        setsockopt(&with, sockopt::RcvBuf, &50_000).unwrap();
        setsockopt(&with, sockopt::SndBuf, &50_000).unwrap();
        let values =
            |socket: &dyn Fn(i32, i32) -> [u8; 4]| asked.map(|(level, option)| socket(level, option));
        let of = |socket: std::os::fd::BorrowedFd<'_>, level, option| {
            let mut value = [0; 4];
            get_option(socket, level, option, &mut value).unwrap();
            value
        };
        let before = values(&|level, option| of(slot.as_fd(), level, option));
        copy(with.as_fd(), slot.as_fd(), false).unwrap();
        let after = values(&|level, option| of(slot.as_fd(), level, option));
        assert_eq!(after, [1_i32.to_ne_bytes(); 8]);
        assert_eq!(getsockopt(&slot, sockopt::RcvBuf).unwrap(), 200_000, "it is never smaller");
        assert_eq!(getsockopt(&slot, sockopt::SndBuf).unwrap(), 100_000);
        copy(theirs().as_fd(), slot.as_fd(), false).unwrap();
        let mut expected = after;
        // The options for sending are not among the copied ones.
        expected[4] = before[4];
        assert_eq!(values(&|level, option| of(slot.as_fd(), level, option)), expected, "it may ask later");
        let resting = UdpSocket::bind("[::1]:0").unwrap();
        copy_datagram_information(slot.as_fd(), resting.as_fd()).unwrap();
        assert_eq!(values(&|level, option| of(resting.as_fd(), level, option)), expected);
    }

    #[test]
    fn another_process_of_a_program_takes_nothing_back() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        setsockopt(&listener, sockopt::KeepAlive, &true).unwrap();
        copy(tcp().as_fd(), listener.as_fd(), true).unwrap();
        assert!(getsockopt(&listener, sockopt::KeepAlive).unwrap());
        copy(tcp().as_fd(), listener.as_fd(), false).unwrap();
        assert!(!getsockopt(&listener, sockopt::KeepAlive).unwrap());
    }

    #[test]
    fn a_unix_listener_gets_what_fits_it() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("a")).unwrap();
        let theirs = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty()).unwrap();
        setsockopt(&theirs, sockopt::PassCred, &true).unwrap();
        copy(theirs.as_fd(), listener.as_fd(), false).unwrap();
        assert!(getsockopt(&listener, sockopt::PassCred).unwrap());
        // An IPv6 socket that becomes an IPv4 listener.
        let v6 = socket(AddressFamily::Inet6, SockType::Stream, SockFlag::empty()).unwrap();
        setsockopt(&v6, sockopt::KeepAlive, &true).unwrap();
        let v4 = TcpListener::bind("127.0.0.1:0").unwrap();
        copy(v6.as_fd(), v4.as_fd(), false).unwrap();
        assert!(getsockopt(&v4, sockopt::KeepAlive).unwrap());
    }
}
