//! Whether a socket still gets what clients send, and by which mark.

use std::os::fd::AsFd;

use super::errno::Errno;
use super::poll::ends_of;
use super::socket::{SockType, accepts, cookie_of, is_connected, kind_of};

/// Whether a stream socket listens, or a datagram socket is open to all: one that is connected gets the datagrams of its peer
/// alone, and has left its group.
pub fn listens(socket: impl AsFd) -> Result<bool, Errno> {
    if kind_of(&socket)? != Some(SockType::Datagram) {
        return accepts(socket);
    }
    Ok(!is_connected(socket)?)
}

/// Whether a unix listener, or a datagram socket, was shut down. It still says that it listens, and refuses everybody, or is at its end
/// whenever it is read.
pub fn is_shut_down(listener: impl AsFd) -> bool {
    ends_of(listener).is_ok_and(|ends| ends.is_shut || ends.is_hung_up)
}

/// The byte with which connection ids of QUIC begin that belong to this socket. Everybody who holds the socket finds the same:
/// it is a part of its identity (`SO_COOKIE`).
pub fn mark(socket: impl AsFd) -> Result<u8, Errno> {
    let cookie = cookie_of(socket)?;
    Ok(cookie.to_ne_bytes().into_iter().fold(0, |mark, byte| mark ^ byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    #[test]
    fn what_is_open_to_all_is_told_from_what_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(listens(&listener), Ok(true));
        assert_eq!(listens(TcpStream::connect(listener.local_addr().unwrap()).unwrap()), Ok(false));
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let socket = UdpSocket::bind(address).unwrap();
            assert_eq!(listens(&socket), Ok(true));
            socket.connect(socket.local_addr().unwrap()).unwrap();
            assert_eq!(listens(&socket), Ok(false));
        }
        assert!(listens(std::fs::File::open("/dev/null").unwrap()).is_err());
    }
}
