//! Which member of a `SO_REUSEPORT` group gets new connections, and how many wait at one.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Which member of a group gets a new connection. Members are counted in the order in which they began to listen; an index
/// that no member has leaves the choice to the kernel's hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    /// The member that gets it, unless one of the following says otherwise.
    pub index: u32,
    /// An exception for one connection of this machine.
    pub private: Option<Private>,
    /// A part of the connections for another member.
    pub share: Option<Share>,
}

/// A connection whose source address is its destination address, which this machine alone can make, and whose source port is
/// this one, goes to a member of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Private {
    /// The source port.
    pub port: u16,
    /// The member.
    pub index: u32,
}

/// So many of 10,000 connections, by chance, go to another member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// How many of 10,000.
    pub per_10_000: u16,
    /// The member.
    pub index: u32,
}

impl Program {
    /// Everything goes to one member.
    pub fn to(index: u32) -> Self {
        Self { index, private: None, share: None }
    }

    /// The instructions, for a kernel that shows the packet from its IP header on at [`NETWORK`].
    fn code(self) -> Vec<SockFilter> {
        let mut code = Vec::new();
        if let Some(private) = self.private {
            code.extend(private.code());
        }
        if let Some(Share { per_10_000, index }) = self.share {
            code.push(load_word(RANDOM));
            code.push(instruction(ALU_MODULO, 10_000));
            code.push(jump(JUMP_AT_LEAST, per_10_000.into(), 1, 0));
            code.push(instruction(RETURN, index));
        }
        code.push(instruction(RETURN, self.index));
        code
    }
}

impl Private {
    /// Everything that does not fit jumps behind the last of these.
    fn code(self) -> Vec<SockFilter> {
        // IPv4 has the addresses at 12 and 16 and the ports behind a header of 20 bytes; IPv6 has them at 8, 24 and 40.
        let v4 = [(12, 16)];
        let v6 = [(8, 24), (12, 28), (16, 32), (20, 36)];
        let v6 = self.compare(&v6, 40, 0);
        let v4 = self.compare(&v4, 20, v6.len() as u8);
        let mut code = vec![
            instruction(LOAD_BYTE, NETWORK),
            instruction(ALU_AND, 0xf0),
            jump(JUMP_EQUAL, 0x40, 0, v4.len() as u8),
        ];
        code.extend(v4);
        code.extend(v6);
        code
    }

    /// `after` instructions follow before the end.
    fn compare(self, words: &[(u32, u32)], ports_at: u32, after: u8) -> Vec<SockFilter> {
        let len = words.len() * 4 + 3;
        let mut code = Vec::with_capacity(len);
        let skip = |done: usize| (len - done - 1) as u8 + after;
        for (source, destination) in words {
            code.push(load_word(NETWORK + source));
            code.push(instruction(COPY_TO_X, 0));
            code.push(load_word(NETWORK + destination));
            code.push(jump(JUMP_EQUAL_X, 0, 0, skip(code.len())));
        }
        code.push(instruction(LOAD_HALF, NETWORK + ports_at));
        code.push(jump(JUMP_EQUAL, self.port.into(), 0, skip(code.len())));
        code.push(instruction(RETURN, self.index));
        code
    }
}

/// Classic BPF, of linux/bpf_common.h and linux/filter.h.
const LOAD_BYTE: u16 = 0x30;
const LOAD_HALF: u16 = 0x28;
const LOAD_WORD: u16 = 0x20;
const COPY_TO_X: u16 = 0x07;
const ALU_AND: u16 = 0x54;
const ALU_MODULO: u16 = 0x94;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_EQUAL_X: u16 = 0x1d;
const JUMP_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;
/// Where the IP header is (`SKF_NET_OFF`). The data itself begins behind the transport header.
const NETWORK: u32 = -0x10_0000_i32 as u32;
/// A random number (`SKF_AD_OFF + SKF_AD_RANDOM`).
const RANDOM: u32 = (-0x1000_i32 + 56) as u32;

fn instruction(code: u16, k: u32) -> SockFilter {
    SockFilter { code, jt: 0, jf: 0, k }
}

fn load_word(k: u32) -> SockFilter {
    instruction(LOAD_WORD, k)
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> SockFilter {
    SockFilter { code, jt, jf, k }
}

/// Steers the group that `member` belongs to from now on, in one system call, atomic, without privilege. `member` must
/// listen and must not be an MPTCP socket.
pub fn attach(member: impl AsFd, program: Program) -> io::Result<()> {
    const SOL_SOCKET: c_int = 1;
    const SO_ATTACH_REUSEPORT_CBPF: c_int = 51;
    let code = program.code();
    let program = SockFprog { len: code.len() as u16, filter: code.as_ptr() };
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

/// `struct sock_filter` of linux/filter.h.
#[derive(Debug, Clone, Copy)]
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
        assert!(attach(std::fs::File::open("/dev/null").unwrap(), Program::to(0)).is_err());
    }

    /// What the kernel would do with a packet of this IP header, and this for chance.
    fn run(program: Program, packet: &[u8], random: u32) -> u32 {
        let code = program.code();
        let (mut at, mut a, mut x) = (0, 0_u32, 0_u32);
        let bytes = |k: u32, len: usize| {
            let from = k.wrapping_sub(NETWORK) as usize;
            packet[from..from + len].iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte))
        };
        loop {
            let SockFilter { code: what, jt, jf, k } = code[at];
            at += 1;
            let mut go = |holds: bool| at += usize::from(if holds { jt } else { jf });
            match what {
                LOAD_WORD if k == RANDOM => a = random,
                LOAD_WORD => a = bytes(k, 4),
                LOAD_HALF => a = bytes(k, 2),
                LOAD_BYTE => a = bytes(k, 1),
                COPY_TO_X => x = a,
                ALU_AND => a &= k,
                ALU_MODULO => a %= k,
                JUMP_EQUAL => go(a == k),
                JUMP_EQUAL_X => go(a == x),
                JUMP_AT_LEAST => go(a >= k),
                RETURN => return k,
                other => panic!("{other:#x} is not used"),
            }
        }
    }

    fn v4(source: [u8; 4], destination: [u8; 4], port: u16) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x45;
        packet[12..16].copy_from_slice(&source);
        packet[16..20].copy_from_slice(&destination);
        packet[20..22].copy_from_slice(&port.to_be_bytes());
        packet
    }

    fn v6(source: u128, destination: u128, port: u16) -> Vec<u8> {
        let mut packet = vec![0; 60];
        packet[0] = 0x60;
        packet[8..24].copy_from_slice(&source.to_be_bytes());
        packet[24..40].copy_from_slice(&destination.to_be_bytes());
        packet[40..42].copy_from_slice(&port.to_be_bytes());
        packet
    }

    #[test]
    fn only_the_private_connection_goes_to_the_private_member() {
        let program = Program { private: Some(Private { port: 4711, index: 7 }), ..Program::to(3) };
        let (own, other) = ([127, 0, 0, 1], [127, 0, 0, 2]);
        assert_eq!(run(program, &v4(own, own, 4711), 0), 7);
        assert_eq!(run(program, &v4(own, own, 4712), 0), 3);
        assert_eq!(run(program, &v4(own, other, 4711), 0), 3);
        assert_eq!(run(program, &v6(1, 1, 4711), 0), 7);
        assert_eq!(run(program, &v6(1, 1, 4710), 0), 3);
        for bit in [0, 40, 70, 127] {
            assert_eq!(run(program, &v6(1 ^ (1 << bit), 1, 4711), 0), 3, "bit {bit} of the address");
        }
        assert_eq!(run(Program::to(3), &v4(own, own, 4711), 0), 3);
    }

    #[test]
    fn a_share_is_as_large_as_it_says() {
        let share = Some(Share { per_10_000: 2_500, index: 1 });
        let program = Program { share, ..Program::to(0) };
        let got = (0..20_000).filter(|random| run(program, &v4([1; 4], [2; 4], 1), *random) == 1).count();
        assert_eq!(got, 5_000);
        let private = Program { private: Some(Private { port: 9, index: 5 }), ..program };
        assert_eq!(run(private, &v4([1; 4], [1; 4], 9), 0), 5);
        assert_eq!(run(private, &v4([1; 4], [1; 4], 8), 0), 1);
    }
}
