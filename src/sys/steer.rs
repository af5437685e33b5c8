//! Which member of a `SO_REUSEPORT` group gets new connections, and how many wait at one.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Lets `program` choose a member for every new connection of the group that `member` belongs to: members are counted in
/// the order in which they began to listen. An index that no member has leaves the choice to the kernel's hash. One system
/// call, atomic, no privilege. `member` must listen (or be a bound datagram socket) and must not be an MPTCP socket.
pub fn attach(member: impl AsFd, program: &[Instruction]) -> io::Result<()> {
    const SOL_SOCKET: c_int = 1;
    const SO_ATTACH_REUSEPORT_CBPF: c_int = 51;
    let len = u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = SockFprog { len, filter: program.as_ptr() };
    // SAFETY: the program points to `len` instructions that live until the call returns; the kernel copies them.
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

/// One instruction of classic BPF: `struct sock_filter` of linux/filter.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What to do.
    pub code: u16,
    /// How many instructions to pass over if a comparison holds.
    pub jt: u8,
    /// The same if it does not hold.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

/// `struct sock_fprog` of linux/filter.h.
#[repr(C)]
struct SockFprog {
    len: u16,
    filter: *const Instruction,
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
    fn only_a_socket_can_be_steered_and_only_by_a_program() {
        let give_0 = Instruction { code: 0x06, jt: 0, jf: 0, k: 0 };
        assert!(attach(std::fs::File::open("/dev/null").unwrap(), &[give_0]).is_err());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(attach(&listener, &[]).is_err(), "a program must return");
    }
}
