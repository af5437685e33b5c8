//! Whether a socket still receives what clients send, and its mark.

use std::os::fd::AsFd;

use super::errno::Errno;
use super::poll::ends_of;
use super::socket::{SockType, accepts, cookie_of, is_connected, kind_of};

/// Whether a stream socket listens, or a datagram socket is unconnected. A connected datagram socket receives only from
/// its peer and has left its `SO_REUSEPORT` group.
pub fn listens(socket: impl AsFd) -> Result<bool, Errno> {
    if kind_of(&socket)? != Some(SockType::Datagram) {
        return accepts(socket);
    }
    Ok(!is_connected(socket)?)
}

/// Whether a unix listener, or a datagram socket, was shut down. Such a listener still reports that it listens, but
/// refuses every connection; such a datagram socket always reads end of file.
pub fn is_shut_down(listener: impl AsFd) -> bool {
    ends_of(listener).is_ok_and(|ends| ends.is_shut || ends.is_hung_up)
}

/// The first byte of the QUIC connection ids that belong to this socket. Every holder of the socket computes the same
/// byte: it is part of the socket's identity (`SO_COOKIE`).
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
