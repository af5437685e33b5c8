//! A message with ancillary data: unix(7), cmsg(3).
//!
//! nix can send such messages. Its receive function returns no descriptors if the kernel truncated the ancillary data,
//! so those that did arrive would leak.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use handoff_protocol::frame::FDS_MAX;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

use super::errno::{ByNumber, Errno};

/// Sends bytes with copies of descriptors, if there are any.
pub(super) fn send(
    socket: impl AsFd,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    flags: MsgFlags,
) -> Result<usize, Errno> {
    let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let rights = if fds.is_empty() { &[][..] } else { &rights[..] };
    sendmsg::<UnixAddr>(socket.as_fd().as_raw_fd(), &[IoSlice::new(bytes)], rights, flags, None).by_number()
}

/// A received message. Its bytes are in the caller's buffer.
#[derive(Debug)]
pub struct Received {
    /// Length of the message in bytes; with `MSG_TRUNC` it may exceed the buffer.
    pub bytes: usize,
    /// The received descriptors, all close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// The pid of the sender, if the socket has `SO_PASSCRED` and the sender is visible in this pid namespace.
    pub sender: Option<u32>,
    /// The message was longer than the buffer.
    pub is_cut: bool,
    /// The kernel dropped ancillary data.
    pub is_stripped: bool,
}

/// Space for ancillary data, aligned as its header needs.
#[repr(C)]
union Space {
    _header: libc::cmsghdr,
    bytes: [MaybeUninit<u8>; SPACE_BYTES],
}

const SPACE_BYTES: usize = space_for(FDS_MAX);

/// Bytes needed for `fds` descriptors and the credentials of a sender.
const fn space_for(fds: usize) -> usize {
    // SAFETY: these only compute.
    unsafe {
        libc::CMSG_SPACE((fds * size_of::<RawFd>()) as u32) as usize
            + libc::CMSG_SPACE(size_of::<libc::ucred>() as u32) as usize
    }
}

/// Receives a message with up to `fds_max` descriptors; the kernel's limit is [`FDS_MAX`]. The kernel drops the rest.
pub fn receive(socket: impl AsFd, buffer: &mut [u8], fds_max: usize) -> Result<Received, Errno> {
    let mut space = Space { bytes: [MaybeUninit::uninit(); SPACE_BYTES] };
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all fields are integers and pointers, for which zero is valid.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut space).cast();
    header.msg_controllen = space_for(fds_max.min(FDS_MAX)) as _;
    // SAFETY: the header points to the buffer and the space with at most their lengths, and both live until the call
    // returns.
    let bytes = Errno::result(unsafe {
        libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC)
    })?;
    let mut received = Received {
        bytes: bytes.unsigned_abs(),
        fds: Vec::new(),
        sender: None,
        is_cut: header.msg_flags & libc::MSG_TRUNC != 0,
        is_stripped: header.msg_flags & libc::MSG_CTRUNC != 0,
    };
    // SAFETY: the kernel has filled the space up to the length in the header, with entries that contain their lengths.
    // They are read while both live. Each descriptor was created for this caller and is taken once.
    unsafe {
        let mut entry = libc::CMSG_FIRSTHDR(&raw const header);
        while !entry.is_null() {
            let data = libc::CMSG_DATA(entry);
            let length = (*entry).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
            match ((*entry).cmsg_level, (*entry).cmsg_type) {
                (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                    let numbers = data.cast::<RawFd>();
                    let count = length / size_of::<RawFd>();
                    let fds = (0..count).map(|at| numbers.add(at).read_unaligned());
                    received.fds.extend(fds.map(|number| OwnedFd::from_raw_fd(number)));
                }
                (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if length >= size_of::<libc::ucred>() => {
                    let pid = data.cast::<libc::ucred>().read_unaligned().pid;
                    received.sender = u32::try_from(pid).ok().filter(|pid| *pid > 0);
                }
                _ => {}
            }
            entry = libc::CMSG_NXTHDR(&raw const header, entry);
        }
    }
    Ok(received)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::is_close_on_exec;
    use crate::socket::{pair, pass_credentials};
    use nix::sys::socket::SockType;
    use std::io::Read;

    #[test]
    fn descriptors_and_the_sender_come_along() {
        let (ours, theirs) = pair(SockType::Datagram).unwrap();
        pass_credentials(&theirs).unwrap();
        let (told, telling) = std::io::pipe().unwrap();
        send(&ours, b"text", &[telling.as_fd(), ours.as_fd()], MsgFlags::empty()).unwrap();
        drop(telling);
        let mut buffer = [0; 8];
        let received = receive(&theirs, &mut buffer, 2).unwrap();
        assert_eq!((received.bytes, received.sender), (4, Some(std::process::id())));
        assert!(!received.is_cut && !received.is_stripped);
        assert_eq!(received.fds.len(), 2);
        assert!(received.fds.iter().all(|fd| is_close_on_exec(fd).unwrap()));
        drop(received);
        assert_eq!((&told).read(&mut buffer).unwrap(), 0, "no other copy is left");
    }

    #[test]
    fn what_is_dropped_is_told_and_what_has_arrived_does_not_stay_open() {
        let (ours, theirs) = pair(SockType::Datagram).unwrap();
        let (told, telling) = std::io::pipe().unwrap();
        send(&ours, b"longer", &[telling.as_fd(); FDS_MAX], MsgFlags::empty()).unwrap();
        drop(telling);
        let received = receive(&theirs, &mut [0; 2], 1).unwrap();
        assert!(received.is_cut && received.is_stripped);
        assert!((1..FDS_MAX).contains(&received.fds.len()), "{}", received.fds.len());
        drop(received);
        assert_eq!((&told).read(&mut [0]).unwrap(), 0, "no copy is left");
    }
}
