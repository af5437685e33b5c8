//! Waiting until a file appears at a path, whole: inotify(7). Nothing is polled.
//!
//! What is watched is the directory of the file. If that is not there, the nearest one above it that is, until the way
//! is there again.

pub mod memory;
pub mod trust;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use tokio::io::unix::AsyncFd;

use crate::sys::errno::Errno;
use crate::sys::inotify::{AddWatchFlags, Inotify, InotifyEvent};
use crate::sys::readable::readable;

/// What happened at the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathEvent {
    /// A file appeared there, or its writer has closed it.
    Whole,
    /// A process writes into it.
    Written,
    /// It is gone.
    Gone,
    /// Events may be lost: look at the path.
    Look,
}

/// Finding the way to a path.
pub type PathLookup = Pin<Box<dyn Future<Output = io::Result<PathAnchor>>>>;

/// A path that is watched.
pub struct PathWatcher {
    path: PathBuf,
    find: Box<dyn Fn(PathBuf) -> PathLookup>,
    /// Whether the way has to be found again.
    is_lost: bool,
    inotify: AsyncFd<Inotify>,
    /// The watch of the nearest directory on the way, and the name that is waited for in it.
    nearest: (i32, OsString),
    /// Whether that is the directory of the file.
    is_there: bool,
    events: VecDeque<PathEvent>,
}

/// A directory on the way: whether it stays where it is.
const OWN_EVENTS: AddWatchFlags =
    AddWatchFlags::IN_DELETE_SELF.union(AddWatchFlags::IN_MOVE_SELF).union(AddWatchFlags::IN_ONLYDIR);
/// The nearest one: also what comes into it.
const ENTRY_EVENTS: AddWatchFlags =
    OWN_EVENTS.union(AddWatchFlags::IN_CREATE).union(AddWatchFlags::IN_MOVED_TO);
/// The directory of the file: also what becomes of the file.
const FILE_EVENTS: AddWatchFlags = ENTRY_EVENTS
    .union(AddWatchFlags::IN_CLOSE_WRITE)
    .union(AddWatchFlags::IN_MODIFY)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVED_FROM);
/// The way is another one than before.
const LOSS_EVENTS: AddWatchFlags = AddWatchFlags::IN_Q_OVERFLOW
    .union(AddWatchFlags::IN_UNMOUNT)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_IGNORED);
/// Directories that come and go all the time are not followed for ever.
const ATTEMPTS_MAX: usize = 100;

impl PathWatcher {
    /// Watches an absolute path. Its first event is [`PathEvent::Look`]. Blocks on the file system, here and in
    /// [`PathWatcher::next`].
    pub fn new(path: &Path) -> io::Result<PathWatcher> {
        let find = |path: PathBuf| -> PathLookup { Box::pin(std::future::ready(PathAnchor::find(&path))) };
        Self::at(path, PathAnchor::find(path)?, Box::new(find))
    }

    /// Likewise. `find` is [`PathAnchor::find`], wherever that may block.
    pub async fn by(path: &Path, find: impl Fn(PathBuf) -> PathLookup + 'static) -> io::Result<PathWatcher> {
        let nearest = find(path.to_owned()).await?;
        Self::at(path, nearest, Box::new(find))
    }

    fn at(
        path: &Path,
        nearest: PathAnchor,
        find: Box<dyn Fn(PathBuf) -> PathLookup>,
    ) -> io::Result<PathWatcher> {
        let PathAnchor { inotify, watch, name, is_there } = nearest;
        let (inotify, nearest) = (readable(inotify)?, (watch, name));
        let events = VecDeque::from([PathEvent::Look]);
        Ok(PathWatcher { path: path.to_owned(), find, is_lost: false, inotify, nearest, is_there, events })
    }

    /// The next thing that happens. May be dropped at any time without losing any.
    pub async fn next(&mut self) -> io::Result<PathEvent> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            if self.is_lost {
                let found = (self.find)(self.path.clone()).await?;
                self.inotify = readable(found.inotify)?;
                (self.nearest, self.is_there) = ((found.watch, found.name), found.is_there);
                self.is_lost = false;
                self.events.push_back(PathEvent::Look);
                continue;
            }
            let mut ready = self.inotify.readable().await?;
            let Ok(happened) = ready.try_io(|inotify| Ok(inotify.get_ref().read()?)) else { continue };
            drop(ready);
            self.add_events(&happened?);
        }
    }

    fn add_events(&mut self, happened: &[InotifyEvent]) {
        let ours =
            |it: &&InotifyEvent| it.watch == self.nearest.0 && it.name.as_ref() == Some(&self.nearest.1);
        let is_lost = happened.iter().any(|it| it.mask.intersects(LOSS_EVENTS));
        if is_lost || !self.is_there && happened.iter().any(|it| ours(&it)) {
            self.is_lost = true;
            return;
        }
        self.events.extend(happened.iter().filter(ours).filter_map(|it| event_of(it.mask, &self.path)));
    }
}

/// What an event about the file means.
fn event_of(what: AddWatchFlags, path: &Path) -> Option<PathEvent> {
    // A link is whole when it is there; so is another name of a file.
    let is_link = || path.symlink_metadata().is_ok_and(|found| found.is_symlink() || found.nlink() > 1);
    match () {
        () if what.intersects(AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO) => {
            Some(PathEvent::Whole)
        }
        () if what.intersects(AddWatchFlags::IN_CREATE) && is_link() => Some(PathEvent::Whole),
        () if what.intersects(AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MODIFY) => {
            Some(PathEvent::Written)
        }
        () if what.intersects(AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM) => {
            Some(PathEvent::Gone)
        }
        () => None,
    }
}

/// The way to a path, watched as far as it is there.
#[derive(Debug)]
pub struct PathAnchor {
    inotify: Inotify,
    /// The watch of the last directory that is there.
    watch: i32,
    /// What is to come in it.
    name: OsString,
    /// Whether it is the directory of the file.
    is_there: bool,
}

impl PathAnchor {
    /// Watches the way. Blocks on the file system.
    pub fn find(path: &Path) -> io::Result<Self> {
        let directory = path.parent().ok_or_else(|| io::Error::other("it is no path of a file"))?;
        for _ in 0..ATTEMPTS_MAX {
            let inotify = Inotify::new()?;
            let nearest = directory.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("/"));
            let is_there = nearest == directory;
            let name =
                path.strip_prefix(nearest).ok().and_then(|rest| rest.iter().next()).unwrap_or_default();
            // One that cannot be read cannot be watched; it is not the one that matters.
            for above in nearest.ancestors().skip(1) {
                let _ = inotify.add(above, OWN_EVENTS);
            }
            let watch = match inotify.add(nearest, if is_there { FILE_EVENTS } else { ENTRY_EVENTS }) {
                Ok(watch) => watch,
                Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
                Err(error) => return Err(error.into()),
            };
            // It may have come a moment before it was waited for.
            if is_there || !nearest.join(name).is_dir() {
                return Ok(Self { inotify, watch, name: name.to_owned(), is_there });
            }
        }
        Err(io::Error::other("the directories on the way do not stay"))
    }
}

#[cfg(test)]
mod tests;
