//! Reads from, and changes, the process whose call waits.

use std::ffi::c_int;
use std::io::{self, IoSliceMut};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, unshare};
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::{Pid, dup3};

use super::super::child::close_range;
use super::super::descriptor::duplicate_from;
use super::super::errno::{ByNumber, Errno};

/// Fills the buffer from the memory of another process, completely or not at all: EFAULT. EPERM if access is denied
/// (ptrace(2), "access mode checking").
pub fn read_memory(tid: u32, address: u64, buffer: &mut [u8]) -> io::Result<()> {
    let (Ok(tid), Ok(start)) = (c_int::try_from(tid), usize::try_from(address)) else {
        return Err(Errno::EFAULT.into());
    };
    let len = buffer.len();
    let remote = [RemoteIoVec { base: start, len }];
    match process_vm_readv(Pid::from_raw(tid), &mut [IoSliceMut::new(buffer)], &remote).by_number()? {
        count if count == len => Ok(()),
        _ => Err(Errno::EFAULT.into()),
    }
}

/// Reads a socket option as raw bytes. Returns their number.
pub fn get_option(socket: impl AsFd, level: i32, name: i32, value: &mut [u8]) -> io::Result<usize> {
    let mut len = value.len() as u32;
    // SAFETY: the buffer has `len` bytes, and any bytes are valid for it.
    let returned = unsafe {
        libc::getsockopt(socket.as_fd().as_raw_fd(), level, name, value.as_mut_ptr().cast(), &mut len)
    };
    Errno::result(returned)?;
    Ok(value.len().min(len as usize))
}

/// Sets a socket option from raw bytes without pointers: one that [`get_option`] can read.
pub fn set_option(socket: impl AsFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel reads the length of the value, and copies it.
    let returned = unsafe {
        libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, value.as_ptr().cast(), value.len() as u32)
    };
    Ok(Errno::result(returned).map(drop)?)
}

/// Registers a file with an epoll of another process, as if that process had registered its descriptor `number`.
///
/// The kernel identifies a registration by file and number, so the file must briefly have that number here, where
/// another file may be open. A thread with its own descriptor table does this: it can overwrite numbers safely.
pub fn register_at(
    epoll: impl AsFd,
    file: impl AsFd,
    number: RawFd,
    events: u32,
    data: u64,
) -> io::Result<()> {
    let (epoll, file) = (epoll.as_fd(), file.as_fd());
    let register = || {
        let registered = register_in_own_table(epoll, file, number, events, data);
        if registered.is_ok() {
            // The table belongs to this thread, which ends now. Close it explicitly: a waiter for the thread may
            // continue before the kernel has closed the table.
            close_range(0, c_int::MAX, 0);
        }
        registered
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("handoff-epoll".to_owned());
        thread.spawn_scoped(scope, register)?.join().unwrap_or_else(|_| Err(io::Error::other("panic")))
    })
}

fn register_in_own_table(
    epoll: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    number: RawFd,
    events: u32,
    data: u64,
) -> io::Result<()> {
    // This thread ends with the function. It uses no descriptor that another thread opens from now on, passes none on,
    // and closes only its own; it overwrites only its own copies. The kernel closes them.
    unshare(CloneFlags::CLONE_FILES).by_number()?;
    let away = |fd: BorrowedFd<'_>| -> io::Result<RawFd> {
        let in_the_way = fd.as_raw_fd() == number;
        Ok(if in_the_way { duplicate_from(fd, number + 1)?.into_raw_fd() } else { fd.as_raw_fd() })
    };
    let epoll = away(epoll)?;
    if file.as_raw_fd() != number {
        // SAFETY: never dropped; the number is free or this thread's own copy, and gets a file right now.
        let mut place = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
        dup3(file, &mut place, OFlag::O_CLOEXEC).by_number()?;
    }
    // SAFETY: both are open until the thread ends, and the first is never dropped here.
    let (epoll, file) =
        unsafe { (ManuallyDrop::new(Epoll(OwnedFd::from_raw_fd(epoll))), BorrowedFd::borrow_raw(number)) };
    let events = EpollFlags::from_bits_retain(events.cast_signed());
    Ok(epoll.add(file, EpollEvent::new(events, data)).by_number()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::epoll::EpollCreateFlags;
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    #[test]
    fn memory_is_read_whole_or_not_at_all() {
        let text = *b"some bytes";
        let mut buffer = [0; 10];
        read_memory(std::process::id(), text.as_ptr() as u64, &mut buffer).unwrap();
        assert_eq!(buffer, text);
        assert!(read_memory(std::process::id(), 8, &mut buffer).is_err());
        assert!(read_memory(std::process::id(), u64::MAX - 3, &mut buffer).is_err());
        assert!(read_memory(u32::MAX, text.as_ptr() as u64, &mut buffer).is_err());
    }

    #[test]
    fn a_registration_carries_the_data_and_leaves_what_is_at_the_number() {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (occupied, other_end) = std::io::pipe().unwrap();
        let numbers = [occupied.as_raw_fd(), epoll.0.as_raw_fd(), listener.as_raw_fd()];
        for (number, data) in numbers.into_iter().zip([11, 12, 13]) {
            register_at(&epoll.0, &listener, number, libc::EPOLLIN.cast_unsigned(), data).unwrap();
        }
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut events = [EpollEvent::empty(); 8];
        // The wait may end with the first of them.
        let (mut found, until) = (Vec::<u64>::new(), Instant::now() + Duration::from_secs(10));
        while found.len() < 3 && Instant::now() < until {
            let count = epoll.wait(&mut events, 5_000_u16).unwrap();
            found = events[..count].iter().map(EpollEvent::data).collect();
            found.sort_unstable();
        }
        assert_eq!(found, [11, 12, 13]);
        drop(other_end);
        assert_eq!(std::io::Read::read(&mut &occupied, &mut [0]).unwrap(), 0);
    }

    #[test]
    fn options_are_bytes() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let (level, keepalive) = (1, 9);
        set_option(&socket, level, keepalive, &1_i32.to_ne_bytes()).unwrap();
        let mut value = [0; 32];
        assert_eq!(get_option(&socket, level, keepalive, &mut value).unwrap(), 4);
        assert_eq!(value[..4], 1_i32.to_ne_bytes());
        assert!(get_option(std::fs::File::open("/dev/null").unwrap(), level, keepalive, &mut value).is_err());
    }
}
