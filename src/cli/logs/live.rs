//! Lines as they are written, of several logs.

use std::io;

use super::source::{LineReader, Source};
use crate::cli::follow::{Follower, LogFile, Wake, Watch};
use crate::log_record::time_of;

/// How much is read of one log before the others have their turn.
const TURN_BYTES: u64 = 256 << 10;

/// A log that is followed.
struct LiveLog {
    follower: Follower,
    /// `None` while its directory does not exist, or may be another one soon.
    watch: Option<i32>,
    current: Option<LogFile>,
    lines: LineReader,
    last_ms: u64,
    /// Whether there may be something to read.
    is_due: bool,
}

/// What happens to a log that is followed.
pub(super) enum Live<'a> {
    /// A line of the log with this index.
    Line(usize, &'a [u8]),
    /// There is no line for now.
    Rest,
}

/// A line, with the index of its log.
type Arrived = (u64, usize, Vec<u8>);

/// Calls `each` for every line from where the sources were read to, and before each wait, until it returns false or the
/// reader of standard output is gone.
pub(super) fn follow(
    sources: Vec<Source>,
    mut watch: Watch,
    mut each: impl FnMut(Live<'_>) -> bool,
) -> io::Result<()> {
    let mut logs: Vec<LiveLog> = sources.into_iter().map(|source| LiveLog::new(source, &mut watch)).collect();
    loop {
        let mut arrived: Vec<Arrived> = Vec::new();
        for (index, log) in logs.iter_mut().enumerate().filter(|(_, log)| log.is_due) {
            log.read(index, &mut watch, &mut arrived)?;
        }
        arrived.sort_by_key(|(at_ms, ..)| *at_ms);
        if !arrived.iter().all(|(_, index, line)| each(Live::Line(*index, line))) {
            return Ok(());
        }
        if logs.iter().any(|log| log.is_due) {
            continue;
        }
        if !each(Live::Rest) {
            return Ok(());
        }
        match watch.wait(logs.iter().any(|log| log.watch.is_none()))? {
            Wake::ReaderGone => return Ok(()),
            Wake::Changed(changed) => {
                for log in &mut logs {
                    log.is_due =
                        log.watch.is_none_or(|number| changed.contains(&number) || changed.contains(&-1));
                }
            }
        }
    }
}

impl LiveLog {
    fn new(source: Source, watch: &mut Watch) -> LiveLog {
        let directory = source.directory.clone();
        let number = watch.add(&directory).ok();
        let (current, lines) = source.into_live();
        LiveLog {
            follower: Follower::new(&directory),
            watch: number,
            current,
            lines,
            last_ms: 0,
            is_due: true,
        }
    }

    /// Reads what is there, up to a limit.
    fn read(&mut self, index: usize, watch: &mut Watch, arrived: &mut Vec<Arrived>) -> io::Result<()> {
        self.is_due = false;
        // Its directory may be another one than before.
        self.watch = watch.add(self.follower.directory()).ok();
        let next = match self.follower.next_after(self.current.as_ref()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.watch = None;
                None
            }
            other => other?,
        };
        let mut left_bytes = TURN_BYTES;
        // Only after the search for the next file: a file that has a newer one gets no more lines.
        if let Some(mut current) = self.current.take() {
            while let Some(line) = self.lines.next(&mut current.file, &mut left_bytes)? {
                self.push(index, line, arrived);
            }
            self.current = Some(current);
        }
        if left_bytes == 0 {
            self.is_due = true;
        } else if let Some(next) = next {
            if let Some(rest) = self.lines.take_rest() {
                self.push(index, rest, arrived);
            }
            (self.current, self.is_due) = (Some(next), true);
        }
        if self.current.as_ref().is_some_and(LogFile::is_removed) {
            self.watch = None;
        }
        Ok(())
    }

    fn push(&mut self, index: usize, line: Vec<u8>, arrived: &mut Vec<Arrived>) {
        self.last_ms = time_of(&line).unwrap_or(self.last_ms);
        arrived.push((self.last_ms, index, line));
    }
}
