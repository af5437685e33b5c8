//! The requests to the kernel.

use netlink_packet_sock_diag::inet::{self, ExtensionFlags, InetRequest, SocketId};
use netlink_packet_sock_diag::unix::{self, ShowFlags, UnixRequest};
use netlink_packet_sock_diag::{AF_INET, IPPROTO_TCP};

use super::Cookie;

pub(super) fn at_port(family: u8, port: u16) -> SocketId {
    let id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    SocketId { source_port: port, ..id }
}

pub(super) fn tcp_request(
    family: u8,
    id: SocketId,
    states: inet::StateFlags,
    with_history: bool,
) -> InetRequest {
    let history = ExtensionFlags::INFO | ExtensionFlags::SKMEMINFO;
    let extensions = if with_history { history } else { ExtensionFlags::empty() };
    InetRequest { family, protocol: IPPROTO_TCP, extensions, states, socket_id: id }
}

pub(super) fn unix_request(inode: u32, cookie: Cookie) -> UnixRequest {
    UnixRequest {
        state_flags: unix::StateFlags::ESTABLISHED,
        inode,
        show_flags: ShowFlags::NAME | ShowFlags::RQLEN | ShowFlags::PEER,
        cookie,
    }
}
