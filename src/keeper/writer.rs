//! Writes one log in its own thread: a file system that does not answer blocks that log only.
//!
//! While the file system answers at once, lines are in the file when [`Writer::write`] returns. After a slow write the
//! caller does not wait again until everything has been written quickly; lines that do not fit into the queue in the
//! meantime are lost, and counted.

use std::cell::{Cell, RefCell};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use super::gate::{Dropped, Gate};
use super::journald::Journald;
use super::log::{Log, LogSettings, LogTotals, missing, note, text_size};

/// How long the caller waits for a write.
const WRITE_TIMEOUT: Duration = Duration::from_millis(250);
/// A write that takes longer is slow: waiting for each of them would throttle all other logs.
const SLOW_AFTER: Duration = Duration::from_millis(100);
/// A thread without work for this long exits.
const IDLE: Duration = Duration::from_secs(1);
/// Maximum size of the queue, in bytes.
const WAITING_MAX_BYTES: usize = 1 << 20;
/// The thread needs a small stack.
const STACK_BYTES: usize = 256 << 10;

/// How often the age of a log is looked at: this share of its maximum age, within limits.
const LOOKS_PER_AGE: u32 = 8;
const LOOK_LEAST: Duration = Duration::from_secs(1);
const LOOK_MOST: Duration = Duration::from_secs(3600);

/// One log.
#[derive(Debug)]
pub(super) struct Writer {
    dir: PathBuf,
    service: String,
    settings: Cell<LogSettings>,
    gate: RefCell<Gate>,
    looked_at: Cell<Instant>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<WriterState>,
    /// Signalled when there is something to write.
    begun: Condvar,
    /// Signalled when everything is written.
    ended: Condvar,
}

#[derive(Debug)]
struct WriterState {
    /// `None` while the thread writes.
    log: Option<Log>,
    /// Complete lines.
    waiting: Vec<u8>,
    /// Lines that did not fit into the queue.
    lost_lines: u64,
    lost_bytes: u64,
    /// Whether the missing lines should be reported now.
    is_report_due: bool,
    /// Whether the ages of the files should be looked at now.
    is_look_due: bool,
    settings: LogSettings,
    /// `None` while the thread writes.
    journald: Option<Journald>,
    totals: LogTotals,
    has_thread: bool,
    /// Whether the last write was slow.
    is_slow: bool,
}

impl Writer {
    /// `service` is named in what this reports itself.
    pub(super) fn new(dir: PathBuf, service: &str, settings: LogSettings) -> Self {
        let state = WriterState {
            log: Some(Log::new(dir.clone(), service, settings)),
            waiting: Vec::new(),
            lost_lines: 0,
            lost_bytes: 0,
            is_report_due: false,
            is_look_due: settings.max_age.is_some(),
            settings,
            journald: Some(Journald::new()),
            totals: LogTotals::default(),
            has_thread: false,
            is_slow: false,
        };
        let shared = Shared { state: Mutex::new(state), begun: Condvar::new(), ended: Condvar::new() };
        Self {
            dir,
            service: service.to_owned(),
            settings: Cell::new(settings),
            gate: RefCell::default(),
            looked_at: Cell::new(Instant::now()),
            shared: Arc::new(shared),
        }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn set(&self, settings: LogSettings) {
        self.settings.set(settings);
        self.shared.lock().settings = settings;
    }

    /// Whether a line of this length may be written. If others were dropped before it, that is appended to `lines`.
    pub(super) fn admit(&self, bytes: u64, now: Instant, lines: &mut Vec<u8>) -> bool {
        let Some(limit) = self.settings.get().max_rate_bytes else { return true };
        let mut gate = self.gate.borrow_mut();
        let passes = gate.admit(limit, bytes, now);
        if passes && let Some(dropped) = gate.take_dropped() {
            lines.extend_from_slice(self.note_of(dropped).as_bytes());
        }
        passes
    }

    /// When [`Writer::tick`] is due.
    pub(super) fn due(&self) -> Option<Instant> {
        let interval = |age: Duration| (age / LOOKS_PER_AGE).clamp(LOOK_LEAST, LOOK_MOST);
        let look = self.settings.get().max_age.map(|age| self.looked_at.get() + interval(age));
        [self.gate.borrow().due(), look].into_iter().flatten().min()
    }

    /// Does what is due.
    pub(super) fn tick(&self, now: Instant) {
        if self.due().is_none_or(|due| due > now) {
            return;
        }
        if self.gate.borrow().due().is_some_and(|due| due <= now) {
            self.report_dropped();
        }
        if self.settings.get().max_age.is_some() {
            self.looked_at.set(now);
            let mut state = self.shared.lock();
            state.is_look_due = true;
            self.wait(state);
        }
    }

    /// Reports what was dropped and is not reported yet.
    pub(super) fn report_dropped(&self) {
        let dropped = self.gate.borrow_mut().take_dropped();
        if let Some(dropped) = dropped {
            self.write(self.note_of(dropped).as_bytes());
        }
    }

    fn note_of(&self, dropped: Dropped) -> String {
        let text = missing(dropped.lines, dropped.bytes, "because the service wrote more than log.max_rate");
        note(&self.service, &text)
    }

    /// Returns the totals since the last call, and resets them.
    pub(super) fn take_totals(&self) -> LogTotals {
        std::mem::take(&mut self.shared.lock().totals)
    }

    /// Appends complete lines, or counts them as lost. `lines` ends with a newline.
    pub(super) fn write(&self, lines: &[u8]) {
        let mut state = self.shared.lock();
        if state.waiting.len() + lines.len() > WAITING_MAX_BYTES {
            let (count, bytes) = text_size(lines);
            state.lost_lines += count;
            state.lost_bytes += bytes;
        } else {
            state.waiting.extend_from_slice(lines);
        }
        self.wait(state);
    }

    /// Writes the number of missing lines, if there are any and the file is writable.
    pub(super) fn report_lost_lines(&self) {
        let mut state = self.shared.lock();
        state.is_report_due = true;
        self.wait(state);
    }

    /// Starts the thread if necessary, and waits for a moment.
    fn wait(&self, mut state: MutexGuard<'_, WriterState>) {
        if let Err(error) = self.shared.have_thread(&mut state) {
            // Without a thread no other code has the log.
            state.totals.last_error =
                format!("{}: no thread can be started for it: {error}", self.dir.display());
            return self.shared.write_all(state, |_| {});
        }
        self.shared.begun.notify_one();
        if state.is_slow {
            return;
        }
        let until = Instant::now() + WRITE_TIMEOUT;
        while !state.is_done() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.totals.last_error = format!("{}: it does not answer", self.dir.display());
                state.is_slow = true;
                return;
            }
            state = match self.shared.ended.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

impl WriterState {
    fn is_done(&self) -> bool {
        self.log.is_some() && !self.has_work()
    }

    fn has_work(&self) -> bool {
        !self.waiting.is_empty() || self.lost_lines > 0 || self.is_report_due || self.is_look_due
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, WriterState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn have_thread(self: &Arc<Self>, state: &mut WriterState) -> io::Result<()> {
        if !state.has_thread {
            let shared = Arc::clone(self);
            Builder::new().name("log".into()).stack_size(STACK_BYTES).spawn(move || shared.work())?;
            state.has_thread = true;
        }
        Ok(())
    }

    /// The body of the thread.
    fn work(&self) {
        let mut state = self.lock();
        loop {
            self.write_all(state, |shared| shared.ended.notify_all());
            state = self.lock();
            if state.has_work() && state.log.is_some() {
                continue;
            }
            let (woken, idle) = match self.begun.wait_timeout(state, IDLE) {
                Ok((state, idle)) => (state, idle.timed_out()),
                Err(poisoned) => (poisoned.into_inner().0, false),
            };
            state = woken;
            if idle && !state.has_work() {
                state.has_thread = false;
                return;
            }
        }
    }

    /// Writes the queue without the lock. Calls `ended` with the lock held when everything is written.
    fn write_all<'a>(&'a self, mut state: MutexGuard<'a, WriterState>, ended: impl Fn(&Self)) {
        while state.has_work() {
            let Some(mut log) = state.log.take() else { return };
            let Some(mut journald) = state.journald.take() else { return };
            let (lines, settings) = (std::mem::take(&mut state.waiting), state.settings);
            let lost = (std::mem::take(&mut state.lost_lines), std::mem::take(&mut state.lost_bytes));
            let is_look_due = std::mem::take(&mut state.is_look_due);
            state.is_report_due = false;
            log.set(settings);
            drop(state);
            let began = Instant::now();
            if lines.is_empty() {
                log.report_lost_lines();
            } else {
                log.write(&lines);
            }
            if lost.0 > 0 {
                log.count_missing(lost.0, lost.1);
                log.report_lost_lines();
            }
            if is_look_due {
                log.remove_old();
            }
            let took = began.elapsed();
            if settings.journald
                && let Some(note) = journald.send_all(&lines)
            {
                log.write(note.as_bytes());
            }
            state = self.lock();
            state.is_slow = took > SLOW_AFTER;
            state.totals.add(log.take_totals());
            (state.log, state.journald) = (Some(log), Some(journald));
        }
        ended(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> LogSettings {
        LogSettings { max_size_bytes: 10 << 20, files: 2, ..LogSettings::default() }
    }

    fn text(writer: &Writer) -> String {
        std::fs::read_to_string(writer.dir().join("current")).unwrap_or_default()
    }

    #[test]
    fn lines_are_in_the_file_at_once_and_the_thread_ends() {
        let root = tempfile::tempdir().unwrap();
        let writer = Writer::new(root.path().join("log"), "web", settings());
        let mut longest = Duration::ZERO;
        for number in 0..1_000 {
            let began = Instant::now();
            writer.write(format!("{number}\n").as_bytes());
            longest = longest.max(began.elapsed());
        }
        // After a slow write, as on a busy machine, the next ones are not waited for.
        if longest < SLOW_AFTER {
            assert_eq!(text(&writer).lines().count(), 1_000);
        }
        let until = Instant::now() + Duration::from_secs(20);
        while writer.shared.lock().has_thread {
            assert!(Instant::now() < until, "the thread stays");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(text(&writer).lines().count(), 1_000);
        assert_eq!(writer.take_totals().lost_lines, 0);
        let began = Instant::now();
        writer.write(b"last\n");
        if began.elapsed() < SLOW_AFTER {
            assert!(text(&writer).ends_with("999\nlast\n"));
        }
    }

    /// A log that its thread never returns stands for a file system that does not answer.
    #[test]
    fn one_that_does_not_answer_is_waited_for_once_and_what_has_no_room_is_counted() {
        let root = tempfile::tempdir().unwrap();
        let writer = Writer::new(root.path().join("log"), "web", settings());
        writer.write(b"first\n");
        let log = {
            let until = Instant::now() + Duration::from_secs(20);
            loop {
                assert!(Instant::now() < until, "the log comes back");
                if let Some(log) = writer.shared.lock().log.take() {
                    break log;
                }
            }
        };
        let began = Instant::now();
        let line = vec![b'x'; 1023];
        for _ in 0..1_100 {
            writer.write(&[&line[..], b"\n"].concat());
        }
        assert!(began.elapsed() < 20 * WRITE_TIMEOUT, "each was waited for: {:?}", began.elapsed());
        assert!(writer.take_totals().last_error.ends_with("it does not answer"));
        writer.shared.lock().log = Some(log);
        writer.write(b"late\n");
        let until = Instant::now() + Duration::from_secs(20);
        while !writer.shared.lock().is_done() {
            assert!(Instant::now() < until, "it catches up");
            std::thread::sleep(Duration::from_millis(5));
        }
        let lost = writer.take_totals().lost_lines;
        assert!(lost >= 76, "{lost} lines were lost");
        assert_eq!(text(&writer).lines().filter(|line| line.starts_with('x')).count() as u64 + lost, 1_101);
        assert!(text(&writer).contains(&format!("handoff: {lost} lines are missing here")));
    }
}
