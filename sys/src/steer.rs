//! Selects the member of a `SO_REUSEPORT` group for new connections, and counts the connections waiting at a listener.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// One classic BPF instruction, see linux/filter.h: code, jump offsets if a comparison holds or not, and the operand.
pub use libc::sock_filter as Instruction;

use super::errno::Errno;

/// Lets `program` choose a member for every new connection of `member`'s group. Members are numbered in the order in
/// which they began to listen. If the index has no member, the kernel's hash chooses. One atomic system call; needs no
/// privilege. `member` must listen (or be a bound datagram socket) and must not be an MPTCP socket.
pub fn attach(member: impl AsFd, program: &[Instruction]) -> io::Result<()> {
    attach_as(member, libc::SO_ATTACH_REUSEPORT_CBPF, program)
}

/// Attaches a program through a socket option.
pub(super) fn attach_as(socket: impl AsFd, option: c_int, program: &[Instruction]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // The kernel only reads them.
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the program points to `len` instructions that live until the call returns; the kernel copies them.
    let returned = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as u32,
        )
    };
    Ok(Errno::result(returned).map(drop)?)
}

/// Number of established connections in the accept queue of a TCP listener. Excludes unfinished handshakes.
pub fn tcp_queue_len(listener: impl AsFd) -> io::Result<u32> {
    // SAFETY: all fields are integers, for which zero is valid.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::tcp_info>() as u32;
    // SAFETY: the structure has `len` bytes, lives until the call returns, and any numbers are valid for it.
    let returned = unsafe {
        libc::getsockopt(
            listener.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    Errno::result(returned)?;
    // For a listener this is the length of the queue.
    Ok(info.tcpi_unacked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    #[test]
    fn waiting_connections_are_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(tcp_queue_len(&listener).unwrap(), 0);
        let address = listener.local_addr().unwrap();
        let _clients = [TcpStream::connect(address).unwrap(), TcpStream::connect(address).unwrap()];
        // On a busy machine the last packet of a handshake takes its time.
        let until = Instant::now() + Duration::from_secs(10);
        while tcp_queue_len(&listener).unwrap() < 2 {
            assert!(Instant::now() < until, "{:?}", tcp_queue_len(&listener));
        }
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
