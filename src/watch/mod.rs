//! Waiting until a file appears at a path, whole: inotify(7). Nothing is polled.
//!
//! What is watched is the directory of the file. If that is not there, the nearest one above it that is, until the way
//! is there again.

pub mod memory;
pub mod trust;

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use crate::sys::readable::readable;

/// What happened at the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// A file was put there, or whoever wrote into it has closed it.
    Whole,
    /// Somebody writes into it.
    Written,
    /// It is gone.
    Gone,
    /// Something may have been missed: whoever wants to know has to look.
    Look,
}

/// A path that is watched.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    inotify: AsyncFd<OwnedFd>,
    /// The watch of the nearest directory on the way, and the name that is waited for in it.
    nearest: (i32, OsString),
    /// Whether that is the directory of the file.
    is_there: bool,
    news: VecDeque<News>,
}

/// A directory on the way: whether it stays where it is.
const STAYS: WatchFlags = WatchFlags::DELETE_SELF.union(WatchFlags::MOVE_SELF).union(WatchFlags::ONLYDIR);
/// The nearest one: also what comes into it.
const COMES: WatchFlags = STAYS.union(WatchFlags::CREATE).union(WatchFlags::MOVED_TO);
/// The directory of the file: also what becomes of the file.
const BECOMES: WatchFlags = COMES
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM);
/// The way is another one than before.
const LOST: ReadFlags = ReadFlags::QUEUE_OVERFLOW
    .union(ReadFlags::UNMOUNT)
    .union(ReadFlags::DELETE_SELF)
    .union(ReadFlags::MOVE_SELF)
    .union(ReadFlags::IGNORED);
const BUFFER_BYTES: usize = 16 << 10;
/// Directories that come and go all the time are not followed for ever.
const ATTEMPTS_MAX: usize = 100;

impl Watch {
    /// Watches an absolute path. Its first news is [`News::Look`].
    pub fn new(path: &Path) -> io::Result<Watch> {
        let (inotify, nearest, is_there) = establish(path)?;
        Ok(Watch { path: path.to_owned(), inotify, nearest, is_there, news: VecDeque::from([News::Look]) })
    }

    /// The next thing that happens. May be dropped at any time without losing any.
    pub async fn next(&mut self) -> io::Result<News> {
        loop {
            if let Some(news) = self.news.pop_front() {
                return Ok(news);
            }
            let mut ready = self.inotify.readable().await?;
            let Ok(happened) = ready.try_io(|inotify| read(inotify.get_ref().as_fd())) else { continue };
            drop(ready);
            self.take_in(&happened?)?;
        }
    }

    fn take_in(&mut self, happened: &[Happened]) -> io::Result<()> {
        let ours = |it: &&Happened| it.watch == self.nearest.0 && it.name.as_ref() == Some(&self.nearest.1);
        let is_lost = happened.iter().any(|it| it.what.intersects(LOST));
        if is_lost || !self.is_there && happened.iter().any(|it| ours(&it)) {
            (self.inotify, self.nearest, self.is_there) = establish(&self.path)?;
            self.news.push_back(News::Look);
            return Ok(());
        }
        self.news.extend(happened.iter().filter(ours).filter_map(|it| news(it.what, &self.path)));
        Ok(())
    }
}

/// One event.
struct Happened {
    watch: i32,
    what: ReadFlags,
    name: Option<OsString>,
}

/// What is there to be read now, or `WouldBlock`.
fn read(inotify: impl AsFd) -> io::Result<Vec<Happened>> {
    let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
    let mut reader = Reader::new(inotify, &mut buffer);
    let mut happened = Vec::new();
    loop {
        let event = reader.next()?;
        let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()).to_owned());
        happened.push(Happened { watch: event.wd(), what: event.events(), name });
        if reader.is_buffer_empty() {
            return Ok(happened);
        }
    }
}

/// What an event about the file means.
fn news(what: ReadFlags, path: &Path) -> Option<News> {
    // A link is whole when it is there; so is another name of a file.
    let is_link = || path.symlink_metadata().is_ok_and(|found| found.is_symlink() || found.nlink() > 1);
    match () {
        () if what.intersects(ReadFlags::CLOSE_WRITE | ReadFlags::MOVED_TO) => Some(News::Whole),
        () if what.intersects(ReadFlags::CREATE) && is_link() => Some(News::Whole),
        () if what.intersects(ReadFlags::CREATE | ReadFlags::MODIFY) => Some(News::Written),
        () if what.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM) => Some(News::Gone),
        () => None,
    }
}

/// Watches the way to a path as far as it is there: gives the watch of the last directory and what is to come in it, and
/// whether it is the directory of the file.
fn establish(path: &Path) -> io::Result<(AsyncFd<OwnedFd>, (i32, OsString), bool)> {
    let directory = path.parent().ok_or_else(|| io::Error::other("it is no path of a file"))?;
    for _ in 0..ATTEMPTS_MAX {
        let inotify = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let nearest = directory.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("/"));
        let is_there = nearest == directory;
        let name = path.strip_prefix(nearest).ok().and_then(|rest| rest.iter().next()).unwrap_or_default();
        // One that cannot be read cannot be watched; it is not the one that matters.
        for above in nearest.ancestors().skip(1) {
            let _ = add_watch(&inotify, above, STAYS);
        }
        let watch = match add_watch(&inotify, nearest, if is_there { BECOMES } else { COMES }) {
            Ok(watch) => watch,
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            Err(error) => return Err(error.into()),
        };
        // It may have come a moment before it was waited for.
        if is_there || !nearest.join(name).is_dir() {
            return Ok((readable(inotify)?, (watch, name.to_owned()), is_there));
        }
    }
    Err(io::Error::other("the directories on the way do not stay"))
}

#[cfg(test)]
mod tests;
