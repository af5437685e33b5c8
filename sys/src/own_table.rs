//! A table of descriptors that belongs to one thread.
//!
//! A new process begins with a copy of the table of the thread that starts it, and closes there what is not meant for it. To
//! close a file on FUSE or NFS is a request to its file system (the flush of close(2)), and the new process waits for the
//! answer. So a file of a service that is open anywhere in the daemon delays the starts of all services when its file system stops
//! answering. A thread with a table of its own has such files open without that: no other thread's child gets them.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use super::child::{block_signals, close_range};

/// What is open in every table, once it is known how threads of this process are woken.
static KEPT: Mutex<Option<BTreeSet<c_int>>> = Mutex::new(None);

thread_local! {
    static HAS_OWN: Cell<bool> = const { Cell::new(false) };
}

/// Keeps in all tables what this process has open to wake its threads by (eventfd(2)). Call it when the runtime is there, which has them
/// open until the process ends. Before that no thread gets a table of its own.
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

/// Likewise one that is open until the process ends.
pub fn keep(fd: BorrowedFd<'_>) {
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    kept.get_or_insert_default().insert(fd.as_raw_fd());
}

/// From now on the calling thread has a table of its own, with the standard streams, what is kept, and nothing else. What it opens is
/// open here alone, and is closed by the end of the thread at the latest. A descriptor of another thread has no meaning here, and
/// the other way round, so none may pass: call it before the thread has any. `/proc/self/fd` is the table of the first thread,
/// `/proc/thread-self/fd` this one. No signal handler runs here either. `false` on a
/// kernel before 5.9, which cannot; then the table is shared as before.
pub fn take_own_table() -> bool {
    let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(kept) = kept.as_ref().filter(|_| !has_own_table()) else { return has_own_table() };
    if block_signals().is_err() {
        return false;
    }
    let mut above = c_int::MAX;
    for number in kept.iter().rev().copied().chain([2]) {
        // The first call makes the table, and no later one fails where it did not.
        let flags = if has_own_table() { 0 } else { libc::CLOSE_RANGE_UNSHARE };
        if number < above && !close_range(number + 1, above, flags) {
            return has_own_table();
        }
        HAS_OWN.set(true);
        above = number - 1;
    }
    true
}

/// Whether the calling thread has one.
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
        // Nothing of this thread is open there: the end of the pipe is seen.
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
