use super::*;
use crate::descriptor::is_close_on_exec;
use std::fs::File;
use std::io::Read;
use std::time::{Duration, Instant};

fn pair() -> (Channel, Channel) {
    let (ours, theirs) = Channel::pair().unwrap();
    (ours, Channel::from_fd(theirs).unwrap())
}

fn recv(channel: &Channel) -> Option<(Vec<u8>, Packet)> {
    let mut buffer = Vec::new();
    let packet = channel.recv(&mut buffer).unwrap()?;
    Some((buffer[..packet.len].to_vec(), packet))
}

#[test]
fn packets_stay_whole_and_in_order() {
    let (a, b) = pair();
    a.send(b"one", &[]).unwrap();
    a.send(b"two", &[]).unwrap();
    assert_eq!(recv(&b).unwrap().0, b"one");
    assert_eq!(recv(&b).unwrap().0, b"two");
    drop(a);
    assert!(recv(&b).is_none());
}

#[test]
fn as_many_descriptors_as_the_kernel_allows_arrive_close_on_exec() {
    let (a, b) = pair();
    let file = File::open("/proc/self/comm").unwrap();
    a.send(b"x", &vec![file.as_fd(); FDS_MAX]).unwrap();
    let (_, packet) = recv(&b).unwrap();
    assert_eq!(packet.fds.len(), FDS_MAX);
    assert!(!packet.fds_lost && !packet.truncated);
    assert!(packet.fds.iter().all(|fd| is_close_on_exec(fd).unwrap()));
    let mut text = String::new();
    File::from(packet.fds.into_iter().next().unwrap()).read_to_string(&mut text).unwrap();
    assert!(!text.is_empty());
    assert!(a.send(b"x", &vec![file.as_fd(); FDS_MAX + 1]).is_err());
}

#[test]
fn a_packet_over_the_limit_is_marked() {
    let (a, b) = pair();
    a.send(&vec![7; FRAME_MAX], &[]).unwrap();
    a.send(&vec![7; FRAME_MAX + 1], &[]).unwrap();
    assert!(!recv(&b).unwrap().1.truncated);
    let (bytes, packet) = recv(&b).unwrap();
    assert!(packet.truncated);
    assert_eq!(bytes.len(), FRAME_MAX);
}

#[test]
fn what_a_peer_sent_before_it_closed_is_read_although_it_left_ours_unread() {
    let (a, b) = pair();
    b.send(b"never read", &[]).unwrap();
    a.send(b"last words", &[]).unwrap();
    drop(a);
    assert_eq!(recv(&b).unwrap().0, b"last words");
    assert!(recv(&b).is_none());
    assert_eq!(b.send(b"x", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn a_peer_that_closed_with_packets_unread_is_a_broken_pipe_at_once() {
    let (a, b) = pair();
    b.send(b"never read", &[]).unwrap();
    drop(a);
    // Until a child of another test executes its program, it holds the peer open.
    let until = Instant::now() + Duration::from_secs(10);
    let error = loop {
        assert!(Instant::now() < until, "the peer has not closed");
        if let Err(error) = b.send(b"x", &[]) {
            break error;
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn nonblocking_says_so() {
    let (a, b) = pair();
    b.set_nonblocking(true).unwrap();
    assert_eq!(b.recv(&mut Vec::new()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    a.set_nonblocking(true).unwrap();
    let full = std::iter::repeat_with(|| a.send(&[0; FRAME_MAX], &[])).find_map(Result::err).unwrap();
    assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn only_a_seqpacket_socket_is_taken() {
    let file = File::open("/dev/null").unwrap();
    assert!(Channel::from_fd(file.into()).unwrap_err().to_string().contains("not a socket"));
    let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(Channel::from_fd(stream.into()).unwrap_err().to_string().contains("SOCK_SEQPACKET"));
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(Channel::from_fd(tcp.into()).unwrap_err().to_string().contains("not a unix socket"));
}

#[test]
fn two_threads_that_receive_get_every_packet_whole() {
    const PACKETS: usize = 2_000;
    let (a, b) = pair();
    let receive = || {
        let mut got = Vec::new();
        while let Some((bytes, packet)) = recv(&b) {
            assert!(!packet.truncated, "of a packet of {} bytes", packet.len);
            got.push(bytes.len());
        }
        got
    };
    std::thread::scope(|scope| {
        let receivers = [scope.spawn(receive), scope.spawn(receive)];
        for number in 0..PACKETS {
            // A short packet, then a long one behind it.
            a.send(&vec![7; if number % 2 == 0 { 1 } else { 20_000 }], &[]).unwrap();
        }
        drop(a);
        let all: usize = receivers.map(|receiver| receiver.join().unwrap().len()).iter().sum();
        assert_eq!(all, PACKETS);
    });
}

#[test]
fn only_the_same_user_and_root_are_trusted() {
    assert!(is_trusted(1000, 1000) && is_trusted(0, 1000));
    assert!(!is_trusted(1001, 1000) && !is_trusted(1000, 0));
    assert!(Channel::pair().unwrap().0.has_trusted_peer().unwrap());
}
