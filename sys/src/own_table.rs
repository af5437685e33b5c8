//! A descriptor table that belongs to one thread.
//!
//! A new process starts with a copy of the descriptor table of the thread that starts it, and closes what it should not
//! have. Closing a file on FUSE or NFS sends a request to the file system (the flush of close(2)), and the new process
//! waits for the reply. So one service's file, open anywhere in the daemon, would delay the starts of all services when
//! its file system hangs. A thread with its own table can hold such files open: no other thread's child gets them.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use super::child::{block_signals, close_range};

/// The descriptors that stay open in every table. `None` until the descriptors that wake this process's threads are
/// known.
static KEPT: Mutex<Option<BTreeSet<c_int>>> = Mutex::new(None);

thread_local! {
    static HAS_OWN: Cell<bool> = const { Cell::new(false) };
}

/// Keeps the event descriptors of this process (eventfd(2)) in all tables: the runtime wakes threads with them and
/// holds them open until the process ends. Call it once the runtime exists. Until then no thread gets its own table.
pub fn keep_event_fds() -> io::Result<()> {
    let mut found: BTreeSet<c_int> = BTreeSet::new();
    for entry in std::fs::read_dir("/proc/self/fd")?.flatten() {
        let number = entry.file_name().to_str().and_then(|name| name.parse::<c_int>().ok());
        let is_event =
            std::fs::read_link(entry.path()).is_ok_and(|it| it.to_string_lossy().contains("[eventfd]"));
        found.extend(number.filter(|_| is_event));
    }
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().extend(found);
    Ok(())
}

/// Also keeps `fd`, which must stay open until the process ends.
pub fn keep(fd: BorrowedFd<'_>) {
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    kept.get_or_insert_default().insert(fd.as_raw_fd());
}

/// Gives the calling thread its own table with the standard streams and the kept descriptors only. What the thread
/// opens is open in this table alone, and closes when the thread ends at the latest.
///
/// Descriptors of other threads are invalid here and vice versa, so none may be passed: call it before the thread has
/// any. `/proc/self/fd` is the table of the main thread, `/proc/thread-self/fd` is this one. The thread also runs no
/// signal handlers. Returns `false` on kernels before 5.9, which lack the call; the table then stays shared.
pub fn take_own_table() -> bool {
    let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(kept) = kept.as_ref().filter(|_| !has_own_table()) else { return has_own_table() };
    if block_signals().is_err() {
        return false;
    }
    let mut above = c_int::MAX;
    for number in kept.iter().rev().copied().chain([2]) {
        // The first call makes the table; later calls cannot fail if it succeeded.
        let flags = if has_own_table() { 0 } else { libc::CLOSE_RANGE_UNSHARE };
        if number < above && !close_range(number + 1, above, flags) {
            return has_own_table();
        }
        HAS_OWN.set(true);
        above = number - 1;
    }
    true
}

/// Whether the calling thread has its own table.
pub fn has_own_table() -> bool {
    HAS_OWN.get()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write, pipe};
    use std::os::fd::AsRawFd;
    use std::path::Path;
    use std::sync::mpsc;

    #[test]
    fn what_a_thread_with_a_table_of_its_own_opens_no_other_thread_has() {
        let (mut reader, mut writer) = pipe().unwrap();
        keep_event_fds().unwrap();
        let (opened, number) = mpsc::channel();
        let (done, wait) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            assert!(!has_own_table());
            assert!(take_own_table() && take_own_table() && has_own_table());
            let file = File::open("/proc/self/exe").unwrap();
            opened.send(file.as_raw_fd()).unwrap();
            wait.recv().unwrap();
            drop(file);
        });
        let number = number.recv().unwrap();
        let program = std::fs::read_link("/proc/self/exe").unwrap();
        let ours = std::fs::read_link(Path::new("/proc/self/fd").join(number.to_string()));
        assert_ne!(ours.ok(), Some(program));
        // This thread has nothing open there, so the reader sees the end of the pipe.
        writer.write_all(b"x").unwrap();
        drop(writer);
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"x");
        done.send(()).unwrap();
        thread.join().unwrap();
        assert!(!has_own_table());
    }
}
