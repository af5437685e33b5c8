//! Watches files and directories for changes: inotify(7).

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;

use nix::sys::inotify::{self, InitFlags};

pub use nix::sys::inotify::AddWatchFlags;

use super::errno::{ByNumber, Errno};

/// An inotify instance: nonblocking, close-on-exec, and readable while events are pending.
#[derive(Debug)]
pub struct Inotify(inotify::Inotify);

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InotifyEvent {
    /// The number of the watch that reported it.
    pub watch: i32,
    /// The kind of event.
    pub mask: AddWatchFlags,
    /// The name of the entry, for a watched directory.
    pub name: Option<OsString>,
}

impl Inotify {
    /// Creates an instance that watches nothing.
    pub fn new() -> Result<Self, Errno> {
        inotify::Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map(Self).by_number()
    }

    /// Watches a path. Returns the number of the watch.
    pub fn add(&self, path: &Path, what: AddWatchFlags) -> Result<i32, Errno> {
        self.0.add_watch(path, what).map(inotify::WatchDescriptor::as_raw).by_number()
    }

    /// Reads pending events. EAGAIN if there are none.
    pub fn read(&self) -> Result<Vec<InotifyEvent>, Errno> {
        let event = |event: inotify::InotifyEvent| {
            let watch = event.wd.as_raw();
            InotifyEvent { watch, mask: event.mask, name: event.name }
        };
        Ok(self.0.read_events()?.into_iter().map(event).collect())
    }

    /// Discards all pending events, for callers that recheck everything.
    pub fn drain(&self) {
        while self.read().is_ok() {}
    }
}

impl AsFd for Inotify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Inotify {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_into_a_directory_is_told_once() {
        let directory = tempfile::tempdir().unwrap();
        let inotify = Inotify::new().unwrap();
        let watch = inotify.add(directory.path(), AddWatchFlags::IN_CREATE).unwrap();
        assert_eq!(inotify.read(), Err(Errno::EAGAIN));
        std::fs::write(directory.path().join("one"), "").unwrap();
        let event = InotifyEvent { watch, mask: AddWatchFlags::IN_CREATE, name: Some("one".into()) };
        assert_eq!(inotify.read(), Ok(vec![event]));
        std::fs::write(directory.path().join("two"), "").unwrap();
        inotify.drain();
        assert_eq!(inotify.read(), Err(Errno::EAGAIN));
        assert_eq!(inotify.add(Path::new("/nonexistent"), AddWatchFlags::IN_CREATE), Err(Errno::ENOENT));
    }
}
