//! The groups of the process at the other end of a unix socket.

use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd};

use super::errno::Errno;

/// A process has at most this many groups (`NGROUPS_MAX`).
const GROUPS_MAX: usize = 65_536;

/// The supplementary groups of the process that connected the other end of a stream socket, as they were then:
/// `SO_PEERGROUPS` of unix(7). The primary group is not among them.
pub fn groups_of_peer(socket: impl AsFd) -> Result<Vec<u32>, Errno> {
    let mut groups = vec![0_u32; 64];
    loop {
        let mut bytes = (groups.len() * size_of::<u32>()) as libc::socklen_t;
        // SAFETY: the buffer has room for `bytes` bytes, and any bytes are valid group ids.
        let returned = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &mut bytes,
            )
        };
        let count = bytes as usize / size_of::<u32>();
        match Errno::result(returned) {
            Ok(_) => {
                groups.truncate(count);
                return Ok(groups);
            }
            // The kernel says how many there are.
            Err(Errno::ERANGE) if count > groups.len() && count <= GROUPS_MAX => groups.resize(count, 0),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::groups_of_peer;

    #[test]
    fn a_process_of_this_user_has_its_groups() {
        let (one, _other) = UnixStream::pair().unwrap();
        let mut found = groups_of_peer(&one).unwrap();
        let mut expected: Vec<u32> =
            nix::unistd::getgroups().unwrap().iter().map(|group| group.as_raw()).collect();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected);
    }
}
