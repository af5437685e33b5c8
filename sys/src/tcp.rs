//! Examines and controls a TCP connection of another process through a duplicate of its descriptor.

use std::io;
use std::os::fd::AsFd;

use libc::{
    IPPROTO_TCP, SO_ATTACH_FILTER, SO_DETACH_FILTER, SO_RCVLOWAT, SO_REUSEADDR, SOL_SOCKET, TCP_QUEUE_SEQ,
    TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_REPAIR_WINDOW,
};

use super::descriptor::is_nonblocking;
use super::seccomp::{get_option, set_option};
use super::socket::{AddressFamily, SockFlag, SockType, socket};
use super::steer::{Instruction, attach_as};

const REPAIR_ON: i32 = 1;
/// Without a window probe, which would send a segment to the client.
const REPAIR_OFF_SILENTLY: i32 = -1;
const RECEIVE_QUEUE: i32 = 1;

/// Whether the last received segment was an acknowledgment without data, and so came after the last data. If nothing is
/// unread or unacknowledged, the client has received a response to everything it sent.
///
/// Needs CAP_NET_ADMIN (EPERM without). No process may use the connection during the call: data written at that moment
/// is lost.
pub fn ends_with_acknowledgment(socket: impl AsFd) -> io::Result<bool> {
    let socket = socket.as_fd();
    // Leaving repair mode clears it.
    let reuses = read(socket, SOL_SOCKET, SO_REUSEADDR)?;
    write(socket, IPPROTO_TCP, TCP_REPAIR, REPAIR_ON)?;
    let found = last_segments(socket);
    write(socket, IPPROTO_TCP, TCP_REPAIR, REPAIR_OFF_SILENTLY)?;
    if reuses != 0 {
        write(socket, SOL_SOCKET, SO_REUSEADDR, reuses)?;
    }
    let (next, window_update) = found?;
    Ok(next == window_update)
}

/// Whether this process may call [`ends_with_acknowledgment`].
pub fn may_ask() -> bool {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty());
    socket.is_ok_and(|socket| write(socket, IPPROTO_TCP, TCP_REPAIR, REPAIR_ON).is_ok())
}

/// The next expected sequence number, and that of the last segment that updated the window.
fn last_segments(socket: impl AsFd + Copy) -> io::Result<(i32, i32)> {
    write(socket, IPPROTO_TCP, TCP_REPAIR_QUEUE, RECEIVE_QUEUE)?;
    let next = read(socket, IPPROTO_TCP, TCP_QUEUE_SEQ)?;
    // struct tcp_repair_window, which libc lacks; snd_wl1 is its first word.
    let mut window = [0; 20];
    match get_option(socket, IPPROTO_TCP, TCP_REPAIR_WINDOW, &mut window)? {
        20 => Ok((next, i32::from_ne_bytes([window[0], window[1], window[2], window[3]]))),
        _ => Err(io::Error::other("the kernel's tcp_repair_window has another size")),
    }
}

/// Sets how many bytes make the connection readable (`SO_RCVLOWAT`). Returns the previous value. It affects nonblocking
/// reads only.
pub fn set_low_water(socket: impl AsFd, bytes: i32) -> io::Result<i32> {
    let before = read(&socket, SOL_SOCKET, SO_RCVLOWAT)?;
    write(&socket, SOL_SOCKET, SO_RCVLOWAT, bytes)?;
    Ok(before)
}

/// Whether the connection is blocking. A blocking read takes arriving data whatever the low-water mark is, and only
/// returns later.
pub fn is_blocking(socket: impl AsFd) -> io::Result<bool> {
    Ok(!is_nonblocking(socket)?)
}

/// Drops incoming segments with data, as if the network had lost them: the client retransmits after at least 200 ms.
/// Needs CAP_NET_ADMIN on recent kernels (EPERM).
pub fn drop_data(socket: impl AsFd) -> io::Result<()> {
    let is = |code, jt, jf, k| Instruction { code, jt, jf, k };
    // The length minus the header length: it truncates a segment without data to 0 bytes.
    let program = [
        is(0x30, 0, 0, 12),
        is(0x74, 0, 0, 4),
        is(0x64, 0, 0, 2),
        is(0x07, 0, 0, 0),
        is(0x80, 0, 0, 0),
        is(0x1c, 0, 0, 0),
        is(0x15, 0, 1, 0),
        is(0x06, 0, 0, u32::MAX),
        is(0x06, 0, 0, 0),
    ];
    attach_as(socket, SO_ATTACH_FILTER, &program)
}

/// Ends what [`drop_data`] began.
pub fn take_data(socket: impl AsFd) -> io::Result<()> {
    write(socket, SOL_SOCKET, SO_DETACH_FILTER, 0)
}

fn read(socket: impl AsFd, level: i32, name: i32) -> io::Result<i32> {
    let mut value = [0; 4];
    get_option(socket, level, name, &mut value)?;
    Ok(i32::from_ne_bytes(value))
}

fn write(socket: impl AsFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    set_option(socket, level, name, &value.to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::poll::{PollFlags, poll_one};
    use std::io::{ErrorKind, Read, Write, stderr};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn an_acknowledgment_behind_the_last_data_is_seen() {
        let (mut client, mut server) = pair();
        client.write_all(b"request").unwrap();
        server.read_exact(&mut [0; 7]).unwrap();
        match ends_with_acknowledgment(&server) {
            Ok(found) => assert!(!found, "the request is the last that came"),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return writeln!(stderr(), "not allowed here: {error}").unwrap();
            }
            Err(error) => panic!("{error}"),
        }
        server.write_all(b"answer").unwrap();
        client.read_exact(&mut [0; 6]).unwrap();
        // The client's kernel may delay its acknowledgment.
        let until = std::time::Instant::now() + Duration::from_secs(10);
        while !ends_with_acknowledgment(&server).unwrap() {
            assert!(std::time::Instant::now() < until, "no acknowledgment came");
            std::thread::sleep(Duration::from_millis(1));
        }
        // The connection still works.
        client.write_all(b"request").unwrap();
        server.read_exact(&mut [0; 7]).unwrap();
        server.write_all(b"answer").unwrap();
        client.read_exact(&mut [0; 6]).unwrap();
        assert_eq!(read(&server, SOL_SOCKET, SO_REUSEADDR).unwrap(), 1, "as its listener");
    }

    #[test]
    fn what_is_held_back_is_not_readable_until_it_is_let_in() {
        let (mut client, mut server) = pair();
        let before = set_low_water(&server, 1 << 20).unwrap();
        assert_eq!(before, 1);
        client.write_all(b"request").unwrap();
        server.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let is_readable = |socket: &TcpStream, ms: u64| {
            let found = poll_one(socket, PollFlags::POLLIN, Some(Duration::from_millis(ms)));
            !found.unwrap().is_empty()
        };
        assert!(!is_readable(&server, 20));
        assert!(set_low_water(&server, before).unwrap() > 1);
        assert!(is_readable(&server, 10_000));
        server.read_exact(&mut [0; 7]).unwrap();
    }

    #[test]
    fn what_is_dropped_comes_again() {
        let (mut client, mut server) = pair();
        assert!(is_blocking(&server).unwrap());
        match drop_data(&server) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return writeln!(stderr(), "not allowed here: {error}").unwrap();
            }
            Err(error) => panic!("{error}"),
        }
        client.write_all(b"request").unwrap();
        server.set_read_timeout(Some(Duration::from_millis(30))).unwrap();
        server.read_exact(&mut [0; 7]).unwrap_err();
        take_data(&server).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        server.read_exact(&mut [0; 7]).unwrap();
    }
}
