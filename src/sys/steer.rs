//! Which member of a `SO_REUSEPORT` group gets new connections, and how many wait at one.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Sends all new connections of the group that `member` belongs to to the member with this index: members are counted
/// in the order in which they began to listen. An index that no member has leaves the choice to the kernel's hash. One
/// system call, atomic, no privilege. `member` must listen and must not be an MPTCP socket.
pub fn attach_constant(member: impl AsFd, index: u32) -> io::Result<()> {
    const SOL_SOCKET: c_int = 1;
    const SO_ATTACH_REUSEPORT_CBPF: c_int = 51;
    const BPF_RET_K: u16 = 0x06;
    let filter = [SockFilter { code: BPF_RET_K, jt: 0, jf: 0, k: index }];
    let program = SockFprog { len: 1, filter: filter.as_ptr() };
    // SAFETY: the program points to one instruction that lives until the call returns; the kernel copies it.
    let returned = unsafe {
        setsockopt(
            member.as_fd().as_raw_fd(),
            SOL_SOCKET,
            SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of::<SockFprog>() as u32,
        )
    };
    if returned == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Number of established connections that wait in the accept queue of a TCP listener. Those whose handshake is still
/// going on are not counted.
pub fn tcp_queue_len(listener: impl AsFd) -> io::Result<u32> {
    const IPPROTO_TCP: c_int = 6;
    const TCP_INFO: c_int = 11;
    const UNACKED_AT: usize = 24;
    // The first bytes of `struct tcp_info`, up to and with tcpi_unacked, which in a listener is the queue's length.
    let mut info = [0_u8; UNACKED_AT + 4];
    let mut len = info.len() as u32;
    // SAFETY: the buffer has `len` bytes, and any bytes are good for it.
    let returned = unsafe {
        getsockopt(listener.as_fd().as_raw_fd(), IPPROTO_TCP, TCP_INFO, (&raw mut info).cast(), &mut len)
    };
    if returned != 0 {
        return Err(io::Error::last_os_error());
    }
    let [.., a, b, c, d] = info;
    Ok(u32::from_ne_bytes([a, b, c, d]))
}

/// `struct sock_filter` of linux/filter.h.
#[repr(C)]
struct SockFilter {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

/// `struct sock_fprog` of linux/filter.h.
#[repr(C)]
struct SockFprog {
    len: u16,
    filter: *const SockFilter,
}

unsafe extern "C" {
    fn setsockopt(socket: c_int, level: c_int, name: c_int, value: *const c_void, len: u32) -> c_int;
    fn getsockopt(socket: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut u32) -> c_int;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn waiting_connections_are_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(tcp_queue_len(&listener).unwrap(), 0);
        let address = listener.local_addr().unwrap();
        let _clients = [TcpStream::connect(address).unwrap(), TcpStream::connect(address).unwrap()];
        assert_eq!(tcp_queue_len(&listener).unwrap(), 2);
        drop(listener.accept().unwrap());
        assert_eq!(tcp_queue_len(&listener).unwrap(), 1);
        assert!(tcp_queue_len(std::fs::File::open("/dev/null").unwrap()).is_err());
    }

    #[test]
    fn only_a_socket_can_be_steered() {
        assert!(attach_constant(std::fs::File::open("/dev/null").unwrap(), 0).is_err());
    }
}
