//! Follows a log through its rotation.
//!
//! A log directory holds `current`, the file that is written, and `1` (newest), `2` and so on. Rotation renames the
//! oldest first, then `current` to `1`, and then creates a new `current`. So a file only ever moves to the next
//! higher number. The follower keeps the file that it reads open, so that its inode number is not reused, and finds
//! it by that number. The file with the next lower number comes next.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::output::note;
use crate::sys::errno::Errno;
use crate::sys::inotify::{AddWatchFlags, Inotify};
use crate::sys::poll::{PollFd, PollFlags, found, poll};
use crate::sys::regular;

/// One file of a log.
pub(super) struct LogFile {
    pub file: File,
    identity: Identity,
}

impl LogFile {
    /// Whether it was removed. As long as it is open, its directory says nothing about its own removal.
    pub(super) fn is_removed(&self) -> bool {
        self.file.metadata().is_ok_and(|metadata| metadata.nlink() == 0)
    }
}

/// More files than any service file can configure. A higher number is not a file of the log.
const HIGHEST_NUMBER: u32 = 1000;

/// Maximum number of searches for a file that keeps moving. Each failure takes two rotations within microseconds, so
/// after this many the file was moved elsewhere.
const ATTEMPTS: usize = 100;

/// Device and inode.
type Identity = (u64, u64);

/// Opens all files of a log, newest first, each once even if the log is rotated in the meantime. An empty log is not
/// an error; a missing directory is.
pub(super) fn open_all(directory: &Path) -> io::Result<Vec<LogFile>> {
    let mut files: Vec<LogFile> = Vec::new();
    for path in paths(directory)? {
        match open(&path) {
            Ok(found) if files.iter().all(|file| file.identity != found.identity) => files.push(found),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

/// How often a directory that does not exist is looked for.
const SEARCH_INTERVAL: Duration = Duration::from_secs(1);

/// Waits for logs to grow.
pub(super) struct Watch(Inotify);

/// What ends a wait.
pub(super) enum Wake {
    /// Something may have changed in the directories with these numbers; -1 stands for all of them.
    Changed(Vec<i32>),
    /// The reader of standard output is gone.
    ReaderGone,
}

impl Watch {
    pub(super) fn new() -> io::Result<Watch> {
        Ok(Watch(Inotify::new()?))
    }

    /// Watches a directory: any change from now on ends a wait. Returns its number, which stays the same as long as it
    /// is the same directory.
    pub(super) fn add(&mut self, directory: &Path) -> io::Result<i32> {
        let changes = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        Ok(self.0.add(directory, changes)?)
    }

    /// Waits for a change. If a directory does not exist, `searches`, at most for [`SEARCH_INTERVAL`].
    pub(super) fn wait(&self, searches: bool) -> io::Result<Wake> {
        let stdout = io::stdout();
        let mut fds =
            [PollFd::new(self.0.as_fd(), PollFlags::POLLIN), PollFd::new(stdout.as_fd(), PollFlags::empty())];
        match poll(&mut fds, searches.then_some(SEARCH_INTERVAL)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        if found(&fds[1]).intersects(PollFlags::POLLERR | PollFlags::POLLHUP) {
            return Ok(Wake::ReaderGone);
        }
        match self.0.read() {
            Ok(events) => Ok(Wake::Changed(events.iter().map(|event| event.watch).collect())),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(Wake::Changed(Vec::new())),
            Err(error) => Err(error.into()),
        }
    }
}

/// Finds the next file of a log.
pub(super) struct Follower {
    directory: PathBuf,
}

impl Follower {
    pub(super) fn new(directory: &Path) -> Follower {
        Follower { directory: directory.to_owned() }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The file after `reading`, if the log was rotated.
    pub(super) fn next_after(&self, reading: Option<&LogFile>) -> io::Result<Option<LogFile>> {
        let Some(reading) = reading else { return Ok(open_all(&self.directory)?.pop()) };
        for _ in 0..ATTEMPTS {
            let paths = paths(&self.directory)?;
            let Some(place) = paths.iter().position(|path| identity_at(path) == Some(reading.identity))
            else {
                if reading.file.metadata()?.nlink() == 0 {
                    break;
                }
                // It moved on twice during the search.
                continue;
            };
            let Some(newer) = place.checked_sub(1) else { return Ok(None) };
            let next = match open(&paths[newer]) {
                // A rotation is in progress. The creation of the new file ends the wait.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                other => other?,
            };
            // If this file has not moved, the newer one had not moved either when it was opened.
            if identity_at(&paths[place]) == Some(reading.identity) {
                return Ok(Some(next));
            }
        }
        let oldest = open_all(&self.directory)?.pop();
        if oldest.is_some() {
            note(
                "Lines may be missing here: the file that was read was removed, or rotated faster than it was read.",
            );
        }
        Ok(oldest)
    }
}

/// The possible paths of the files of a log, newest first, without a gap. A listing during a rotation may miss a
/// file, so only its highest number is used.
fn paths(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let numbers = std::fs::read_dir(directory)?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|&number| number <= HIGHEST_NUMBER);
    // One more than the listing has: the oldest may be renamed before it is opened.
    let last = numbers.max().unwrap_or(0) + 1;
    let rotated = (1..=last).map(|number| directory.join(number.to_string()));
    Ok(std::iter::once(directory.join("current")).chain(rotated).collect())
}

fn open(path: &Path) -> io::Result<LogFile> {
    let file = regular::open_to_read(path).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => io::Error::other(format!("{}: {error}", path.display())),
        _ => error,
    })?;
    let identity = identity(&file.metadata()?);
    Ok(LogFile { file, identity })
}

fn identity_at(path: &Path) -> Option<Identity> {
    std::fs::metadata(path).ok().map(|metadata| identity(&metadata))
}

fn identity(metadata: &Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    struct Log {
        dir: tempfile::TempDir,
    }

    impl Log {
        fn new() -> Log {
            Log { dir: tempfile::tempdir().unwrap() }
        }

        fn append(&self, text: &str) {
            let path = self.dir.path().join("current");
            let mut file = File::options().create(true).append(true).open(path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }

        fn rotate(&self, keep: u32) {
            let at = |name: &str| self.dir.path().join(name);
            for number in (1..keep).rev() {
                let _ = std::fs::rename(at(&number.to_string()), at(&(number + 1).to_string()));
            }
            std::fs::rename(at("current"), at("1")).unwrap();
        }

        /// The text that a follower sees if it starts with `reading` and ends at the end of the log.
        fn follow(&self, mut reading: Option<LogFile>) -> String {
            let follower = Follower::new(self.dir.path());
            let mut seen = String::new();
            loop {
                let next = follower.next_after(reading.as_ref()).unwrap();
                if let Some(reading) = &mut reading {
                    reading.file.read_to_string(&mut seen).unwrap();
                }
                match next {
                    Some(next) => reading = Some(next),
                    None => return seen,
                }
            }
        }
    }

    #[test]
    fn no_line_is_lost_or_doubled_through_rotation() {
        let log = Log::new();
        log.append("a\n");
        let mut reading = open_all(log.dir.path()).unwrap();
        log.append("b\n");
        log.rotate(4);
        log.append("c\n");
        log.rotate(4);
        // An interrupted rotation: `current` is missing, which is neither the end nor an error.
        assert_eq!(log.follow(None), "a\nb\nc\n");
        log.append("d\n");
        assert_eq!(log.follow(reading.pop()), "a\nb\nc\nd\n");
        assert_eq!(log.follow(None), "a\nb\nc\nd\n", "from the oldest");
    }

    #[test]
    fn a_reader_that_was_overtaken_goes_on_with_the_oldest() {
        let log = Log::new();
        log.append("a\n");
        let mut reading = open_all(log.dir.path()).unwrap();
        for text in ["b\n", "c\n", "d\n", "e\n"] {
            log.rotate(2);
            log.append(text);
        }
        assert_eq!(log.follow(reading.pop()), "a\nc\nd\ne\n");
    }

    #[test]
    fn files_are_opened_newest_first() {
        let log = Log::new();
        assert!(open_all(log.dir.path()).unwrap().is_empty());
        for number in 0..12 {
            log.append(&number.to_string());
            if number < 11 {
                log.rotate(20);
            }
        }
        std::fs::write(log.dir.path().join("note.txt"), "x").unwrap();
        let texts: Vec<String> = open_all(log.dir.path())
            .unwrap()
            .into_iter()
            .map(|mut found| {
                let mut text = String::new();
                found.file.read_to_string(&mut text).unwrap();
                text
            })
            .collect();
        assert_eq!(texts, ["11", "10", "9", "8", "7", "6", "5", "4", "3", "2", "1", "0"]);
        assert!(open_all(&log.dir.path().join("missing")).is_err());
    }
}
