//! The marks of a service's processes: one line per event, in a file that all of them append to. So a gap between two
//! processes is measured at its source, in the same way for every supervisor.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The kind of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The process is now the only one that works on the data.
    Begun,
    /// The process accepts from now on.
    Accepting,
    /// The process has accepted its last connection.
    Stopped,
    /// The process is ready for the supervisor's next upgrade.
    Reachable,
}

const WORDS: [(Event, &str); 4] = [
    (Event::Begun, "begun"),
    (Event::Accepting, "accepting"),
    (Event::Stopped, "stopped"),
    (Event::Reachable, "reachable"),
];

/// One event. The clocks belong to the machine, so marks of two processes are comparable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The kind of the event.
    pub event: Event,
    /// The pid of the process.
    pub pid: u32,
    /// Time in nanoseconds of the monotonic clock.
    pub monotonic_ns: u64,
    /// Time in nanoseconds since 1970.
    pub unix_ns: u64,
}

/// Writes marks.
#[derive(Debug)]
pub struct Marks(File);

impl Marks {
    /// Opens `path` for appending; creates it if necessary.
    pub fn open(path: &Path) -> io::Result<Self> {
        File::options().append(true).create(true).open(path).map(Self)
    }

    /// Records `event` with the current time. One write into the page cache.
    pub fn note(&self, event: Event) -> io::Result<()> {
        let (monotonic, unix) = (monotonic_ns(), nanos(ClockId::CLOCK_REALTIME));
        let word = WORDS.iter().find(|(each, _)| *each == event).map_or("", |(_, word)| word);
        (&self.0).write_all(format!("{word} {} {monotonic} {unix}\n", std::process::id()).as_bytes())
    }
}

/// Reads marks, and remembers its position.
#[derive(Debug)]
pub struct Reader {
    file: File,
    seen: Vec<Mark>,
    partial: String,
}

impl Reader {
    /// Opens `path`; creates it if necessary.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).append(true).create(true).open(path)?;
        Ok(Self { file, seen: Vec::new(), partial: String::new() })
    }

    /// All marks so far.
    pub fn all(&mut self) -> io::Result<&[Mark]> {
        self.file.read_to_string(&mut self.partial)?;
        let complete = self.partial.rfind('\n').map_or(0, |end| end + 1);
        let lines: String = self.partial.drain(..complete).collect();
        for line in lines.lines() {
            let mark = parse(line).ok_or_else(|| io::Error::other(format!("{line:?} is not a mark")))?;
            self.seen.push(mark);
        }
        Ok(&self.seen)
    }
}

fn parse(line: &str) -> Option<Mark> {
    let mut words = line.split(' ');
    let word = words.next()?;
    let (event, _) = WORDS.into_iter().find(|(_, each)| *each == word)?;
    let pid = words.next()?.parse().ok()?;
    let mut number = || words.next()?.parse().ok();
    Some(Mark { event, pid, monotonic_ns: number()?, unix_ns: number()? })
}

/// The current time on the clock of [`Mark::monotonic_ns`].
pub fn monotonic_ns() -> u64 {
    nanos(ClockId::CLOCK_MONOTONIC)
}

fn nanos(clock: ClockId) -> u64 {
    let now = clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
    now.as_secs() * 1_000_000_000 + u64::from(now.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_read_once_and_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("marks");
        let mut reader = Reader::open(&path).unwrap();
        assert!(reader.all().unwrap().is_empty());
        let marks = Marks::open(&path).unwrap();
        marks.note(Event::Accepting).unwrap();
        assert_eq!(reader.all().unwrap().len(), 1);
        marks.note(Event::Stopped).unwrap();
        let [first, second] = reader.all().unwrap() else { panic!("two marks") };
        assert_eq!((first.event, second.event), (Event::Accepting, Event::Stopped));
        assert!(first.monotonic_ns < second.monotonic_ns && first.pid == std::process::id());
    }
}
