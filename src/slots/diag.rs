//! Queries sockets from the kernel by `sock_diag` over netlink: all at a port, or a single one.
//!
//! Covers the network namespace of the calling thread, which must not change.

mod request;

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::inet::{self, InetRequest, InetResponse, SocketId};
use netlink_packet_sock_diag::unix::{self, UnixResponse, nlas::UnixDiagName};
pub(super) use netlink_packet_sock_diag::{AF_INET, AF_INET6};
use netlink_packet_sock_diag::{IPPROTO_UDP, SockDiagMessage, TCP_LISTEN};
use netlink_packet_sock_diag::{TCP_CLOSE_WAIT, TCP_ESTABLISHED, TCP_SYN_RECV};

use request::{at_port, tcp_request, unix_request};

use crate::sys::errno::{Errno, errno_of, retry};
use crate::sys::socket::{MsgFlags, SockProtocol, netlink, recv, send};

/// Maximum size of a datagram in a kernel dump.
const DATAGRAM_MAX: usize = 32 * 1024;

/// The kernel's wildcard for "any cookie".
pub(super) const ANY_COOKIE: [u8; 8] = [0xff; 8];

/// A netlink socket for sequential queries.
#[derive(Debug)]
pub(super) struct Diag {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// Identifies a socket. The kernel never reuses it while the machine runs.
pub(super) type Cookie = [u8; 8];

/// Identifies a socket in a query.
#[derive(Debug, Clone)]
pub(super) enum Key {
    /// Both ends; the id contains the cookie.
    Tcp { family: u8, id: SocketId },
    /// The kernel looks up unix sockets by inode.
    Unix { inode: u32, cookie: Cookie },
}

/// A socket as reported by the kernel.
#[derive(Debug, Clone)]
pub(super) struct SocketInfo {
    /// For another query.
    pub(super) key: Key,
    /// The inode in `socket:[...]` of the descriptor; 0 while it waits in an accept queue and after its close.
    pub(super) inode: u32,
    /// One of the kernel's `TCP_*` states, also for unix sockets.
    state: u8,
    /// Received bytes that are unread. For TCP, an unread end of data counts as one more.
    pub(super) unread: u32,
    /// Written bytes that the peer has not received.
    pub(super) unsent: u32,
    /// The owner's user id; not reported for unix sockets.
    pub(super) user: u32,
    /// For an IPv6 listener or datagram socket: whether it rejects IPv4.
    pub(super) is_v6_only: bool,
    /// The name of a unix socket.
    pub(super) name: Option<OsString>,
    /// The inode of the other end of a unix socket; 0 while that waits in an accept queue.
    pub(super) other_inode: Option<u32>,
    /// For TCP, if requested.
    pub(super) history: Option<TrafficHistory>,
}

/// Times and counters of a TCP connection, from `struct tcp_info`. The kernel's clock for them ticks every 1 to 10 ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct TrafficHistory {
    /// Since the last data was sent, or the handshake if there was none.
    pub(super) last_sent_ms: u32,
    /// Since the last data was received, or the handshake if there was none.
    pub(super) last_received_ms: u32,
    /// Since the last acknowledgment was received.
    pub(super) last_ack_ms: u32,
    /// Total received bytes, plus one if the client has ended its data.
    pub(super) bytes_received: u64,
    /// Written bytes that were not sent for the first time yet.
    pub(super) not_sent: u32,
    /// Sent segments with data.
    pub(super) segments_sent: u32,
    /// Received segments with data.
    pub(super) segments_received: u32,
    /// Bytes that the peer has acknowledged.
    pub(super) bytes_acked: u64,
    /// Received segments that were dropped.
    pub(super) dropped: u32,
}

impl SocketInfo {
    /// Whether it is one end of a connection that can still send responses: the client may have closed its sending
    /// side.
    pub(super) fn is_connection(&self) -> bool {
        matches!(self.state, TCP_ESTABLISHED | TCP_CLOSE_WAIT)
    }

    /// Whether the client has closed its sending side.
    pub(super) fn is_half_closed(&self) -> bool {
        self.state == TCP_CLOSE_WAIT
    }

    /// Whether it is in an incomplete handshake.
    pub(super) fn is_handshake(&self) -> bool {
        self.state == TCP_SYN_RECV
    }

    /// Whether it listens.
    pub(super) fn listens(&self) -> bool {
        self.state == TCP_LISTEN
    }

    /// The peer's address of a TCP or datagram socket.
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.key.peer()
    }

    /// The local address exactly as bound: an IPv4-mapped IPv6 address stays one.
    pub(super) fn bound_to(&self) -> Option<SocketAddr> {
        match &self.key {
            Key::Tcp { id, .. } => Some(SocketAddr::new(id.source_address, id.source_port)),
            Key::Unix { .. } => None,
        }
    }

    /// The local address of a TCP or datagram socket.
    pub(super) fn local(&self) -> Option<SocketAddr> {
        match &self.key {
            Key::Tcp { id, .. } => Some(SocketAddr::new(id.source_address.to_canonical(), id.source_port)),
            Key::Unix { .. } => None,
        }
    }
}

impl Key {
    /// The key of the TCP socket at `local` that is connected to `peer`.
    pub(super) fn tcp(local: SocketAddr, peer: SocketAddr) -> Key {
        let (source, destination) = (local.ip().to_canonical(), peer.ip().to_canonical());
        let scope = |address| if let SocketAddr::V6(v6) = address { v6.scope_id() } else { 0 };
        let id = SocketId {
            source_port: local.port(),
            destination_port: peer.port(),
            source_address: source,
            destination_address: destination,
            interface_id: scope(local).max(scope(peer)),
            cookie: ANY_COOKIE,
        };
        Key::Tcp { family: family_of(source), id }
    }

    /// The peer's address of a TCP or datagram socket.
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        match self {
            Key::Tcp { id, .. } => {
                Some(SocketAddr::new(id.destination_address.to_canonical(), id.destination_port))
            }
            Key::Unix { .. } => None,
        }
    }

    /// The cookie of the socket.
    pub(super) fn cookie(&self) -> Cookie {
        match self {
            Key::Tcp { id, .. } => id.cookie,
            Key::Unix { cookie, .. } => *cookie,
        }
    }
}

/// The kernel's number for the family of an address.
pub(super) fn family_of(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { AF_INET } else { AF_INET6 }
}

impl Diag {
    /// Opens the netlink socket. Needs no privilege.
    pub(super) fn open() -> io::Result<Diag> {
        Ok(Diag { socket: open_socket()?, sequence: 0, buffer: vec![0; DATAGRAM_MAX] })
    }

    /// Passes each connection of a family at a local port to `each`, until it breaks. IPv4 clients of a dual-stack
    /// listener count as IPv6. The kernel walks its whole table, and may skip a socket while its neighbor disappears.
    pub(super) fn tcp(
        &mut self,
        family: u8,
        port: u16,
        with_history: bool,
        each: impl FnMut(SocketInfo) -> ControlFlow<()>,
    ) -> io::Result<ControlFlow<()>> {
        let states = inet::StateFlags::ESTABLISHED | inet::StateFlags::CLOSE_WAIT;
        let request = tcp_request(family, at_port(family, port), states, with_history);
        self.ask(SockDiagMessage::InetRequest(request), true, each)
    }

    /// The same for handshakes at a local port. A handshake's cookie ends with the handshake.
    pub(super) fn handshakes(
        &mut self,
        family: u8,
        port: u16,
        each: impl FnMut(SocketInfo) -> ControlFlow<()>,
    ) -> io::Result<ControlFlow<()>> {
        let request = tcp_request(family, at_port(family, port), inet::StateFlags::SYN_RECV, false);
        self.ask(SockDiagMessage::InetRequest(request), true, each)
    }

    /// The same for connected datagram sockets of a family at a local port.
    pub(super) fn udp(
        &mut self,
        family: u8,
        port: u16,
        each: impl FnMut(SocketInfo) -> ControlFlow<()>,
    ) -> io::Result<ControlFlow<()>> {
        let request = tcp_request(family, at_port(family, port), inet::StateFlags::ESTABLISHED, false);
        let request = InetRequest { protocol: IPPROTO_UDP, ..request };
        self.ask(SockDiagMessage::InetRequest(request), true, each)
    }

    /// The same for TCP listeners at a local port, or unconnected UDP sockets.
    pub(super) fn open_to_all(
        &mut self,
        datagrams: bool,
        family: u8,
        port: u16,
        each: impl FnMut(SocketInfo) -> ControlFlow<()>,
    ) -> io::Result<ControlFlow<()>> {
        let request = match datagrams {
            false => tcp_request(family, at_port(family, port), inet::StateFlags::LISTEN, false),
            true => InetRequest {
                protocol: IPPROTO_UDP,
                ..tcp_request(family, at_port(family, port), inet::StateFlags::CLOSE, false)
            },
        };
        self.ask(SockDiagMessage::InetRequest(request), true, each)
    }

    /// The same for connected unix sockets.
    pub(super) fn unix(
        &mut self,
        each: impl FnMut(SocketInfo) -> ControlFlow<()>,
    ) -> io::Result<ControlFlow<()>> {
        self.ask(SockDiagMessage::UnixRequest(unix_request(0, ANY_COOKIE)), true, each)
    }

    /// Looks up one socket; `None` if it is gone.
    pub(super) fn look_up(&mut self, key: &Key, with_history: bool) -> io::Result<Option<SocketInfo>> {
        let request = match key {
            Key::Tcp { family, id } => {
                let request = tcp_request(*family, id.clone(), inet::StateFlags::all(), with_history);
                SockDiagMessage::InetRequest(request)
            }
            Key::Unix { inode, cookie } => SockDiagMessage::UnixRequest(unix_request(*inode, *cookie)),
        };
        let mut only = None;
        let asked = self.ask(request, false, |found| {
            only = Some(found);
            ControlFlow::Continue(())
        });
        match asked {
            Ok(_) => Ok(only),
            // ESTALE: another socket has taken its place.
            Err(error) if matches!(errno_of(&error), Some(Errno::ENOENT | Errno::ESTALE)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn ask(
        &mut self,
        request: SockDiagMessage,
        dump: bool,
        each: impl FnMut(SocketInfo) -> ControlFlow<()>,
    ) -> io::Result<ControlFlow<()>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = if dump { NLM_F_REQUEST | NLM_F_DUMP } else { NLM_F_REQUEST };
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        retry(|| send(&self.socket, &bytes, MsgFlags::empty()))?;

        let mut answer =
            DumpReader { dump, each, flow: ControlFlow::Continue(()), ended: None, unreadable: None };
        loop {
            let length = retry(|| recv(&self.socket, &mut self.buffer, MsgFlags::MSG_TRUNC))?;
            let datagram = self.buffer.get(..length).ok_or_else(|| bad("a datagram is too long"))?;
            answer.take(datagram, self.sequence)?;
            if let Some(ended) = answer.ended {
                // Unread answers would block the kernel's next dump.
                return ended.and(answer.unreadable.map_or(Ok(answer.flow), Err));
            }
            if answer.flow.is_break() {
                self.socket = open_socket()?;
                return Ok(answer.flow);
            }
        }
    }
}

fn open_socket() -> io::Result<OwnedFd> {
    Ok(netlink(SockProtocol::NetlinkSockDiag)?)
}

struct DumpReader<E> {
    dump: bool,
    each: E,
    flow: ControlFlow<()>,
    ended: Option<io::Result<()>>,
    unreadable: Option<io::Error>,
}

impl<E: FnMut(SocketInfo) -> ControlFlow<()>> DumpReader<E> {
    /// Parses the messages of a datagram. After an error the rest of the datagram is unreadable.
    fn take(&mut self, mut datagram: &[u8], sequence: u32) -> io::Result<()> {
        const HEADER: usize = 16;
        while datagram.len() >= HEADER && self.ended.is_none() && self.flow.is_continue() {
            let length = u32::from_ne_bytes([datagram[0], datagram[1], datagram[2], datagram[3]]) as usize;
            if length < HEADER || length > datagram.len() {
                return Err(bad("a message has a wrong length"));
            }
            match NetlinkMessage::<SockDiagMessage>::deserialize(&datagram[..length]) {
                Ok(message) if message.header.sequence_number != sequence => {}
                Ok(message) => self.take_message(message.payload),
                Err(error) => {
                    self.unreadable = Some(bad(&error.to_string()));
                    self.end_if_single();
                }
            }
            datagram = &datagram[length.next_multiple_of(4).min(datagram.len())..];
        }
        Ok(())
    }

    fn take_message(&mut self, payload: NetlinkPayload<SockDiagMessage>) {
        let code = match payload {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                match tcp_found(*response) {
                    Some(found) => self.flow = (self.each)(found),
                    None => self.unreadable = Some(bad("tcp_info is too short")),
                }
                return self.end_if_single();
            }
            NetlinkPayload::InnerMessage(SockDiagMessage::UnixResponse(response)) => {
                self.flow = (self.each)(unix_found(*response));
                return self.end_if_single();
            }
            NetlinkPayload::Done(done) => done.code,
            NetlinkPayload::Error(error) => error.raw_code(),
            _ => return,
        };
        let refused = || Err(io::Error::from_raw_os_error(code.saturating_abs()));
        self.ended = Some(if code == 0 { Ok(()) } else { refused() });
    }

    fn end_if_single(&mut self) {
        if !self.dump {
            self.ended = Some(Ok(()));
        }
    }
}

/// `None` if the kernel's `struct tcp_info` lacks required fields, which came with Linux 4.6.
fn tcp_found(response: InetResponse) -> Option<SocketInfo> {
    let (mut history, mut is_v6_only, mut dropped) = (None, false, 0);
    for nla in &response.nlas {
        match nla {
            inet::nlas::Nla::TcpInfo(info) => history = Some(TrafficHistory::read(info)?),
            inet::nlas::Nla::MemInfo(memory) => dropped = memory.drops,
            inet::nlas::Nla::SkV6Only(only) => is_v6_only = *only,
            _ => {}
        }
    }
    let header = response.header;
    Some(SocketInfo {
        key: Key::Tcp { family: header.family, id: header.socket_id },
        inode: header.inode,
        state: header.state,
        unread: header.recv_queue,
        unsent: header.send_queue,
        user: header.uid,
        is_v6_only,
        name: None,
        other_inode: None,
        history: history.map(|history| TrafficHistory { dropped, ..history }),
    })
}

fn unix_found(response: UnixResponse) -> SocketInfo {
    let (mut name, mut queues, mut other_inode) = (None, (0, 0), None);
    for nla in response.nlas {
        match nla {
            unix::nlas::Nla::Name(UnixDiagName::Pathname(path)) => name = Some(path),
            unix::nlas::Nla::ReceiveQueueLength(unread, unsent) => queues = (unread, unsent),
            unix::nlas::Nla::Peer(inode) => other_inode = Some(inode),
            _ => {}
        }
    }
    let header = response.header;
    SocketInfo {
        key: Key::Unix { inode: header.inode, cookie: header.cookie },
        inode: header.inode,
        state: header.state,
        unread: queues.0,
        unsent: queues.1,
        user: 0,
        is_v6_only: false,
        name,
        other_inode,
        history: None,
    }
}

impl TrafficHistory {
    fn read(info: &[u8]) -> Option<TrafficHistory> {
        let word = |at: usize| Some(u32::from_ne_bytes(info.get(at..at + 4)?.try_into().ok()?));
        let long = |at: usize| Some(u64::from_ne_bytes(info.get(at..at + 8)?.try_into().ok()?));
        Some(TrafficHistory {
            last_sent_ms: word(44)?,
            last_received_ms: word(52)?,
            last_ack_ms: word(56)?,
            bytes_acked: long(120)?,
            bytes_received: long(128)?,
            not_sent: word(144)?,
            segments_received: word(152)?,
            segments_sent: word(156)?,
            dropped: 0,
        })
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::other(format!("cannot read the kernel's answer about sockets: {what}"))
}
