//! A supervisor with one service that is upgraded, seen from outside.

use std::ffi::OsString;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use handoff::sys::file_system;
use handoff::sys::process::Signal;
use handoff::sys::signals::send_plain;

use crate::Error;
use crate::marks::{Event, Mark, Reader};

/// No wait is longer.
pub const LIMIT: Duration = Duration::from_secs(60);

/// One upgrade that was committed.
#[derive(Debug, Clone)]
pub struct Upgrade {
    /// From the request to the durable commit, by the supervisor's own clock.
    pub own_us: u64,
    /// From the request to the answer, as its client sees it.
    pub client_us: u64,
    /// From the old process's last accept to the new one's first, by the processes themselves.
    pub gap: Gap,
    /// How long nobody accepted, as the supervisor tells it, if it does.
    pub told_gap_us: Option<u64>,
    /// The phases with their lengths in microseconds, if the supervisor tells them.
    pub phases: Vec<(String, u64)>,
}

/// A time in which nobody accepts.
#[derive(Debug, Clone, Copy)]
pub struct Gap {
    /// How long it was.
    pub us: u64,
    /// When it began, in nanoseconds since 1970.
    pub begin_unix_ns: u64,
    /// When it ended, likewise.
    pub end_unix_ns: u64,
}

/// How a rig is to be started.
#[derive(Debug, Default)]
pub struct Options {
    /// How long the seal of the service takes.
    pub seal: Duration,
    /// A command that starts the supervisor, which is its last argument.
    pub wrapper: Vec<OsString>,
}

/// A running supervisor with one running service. It ends when it is dropped.
pub trait Rig {
    /// What it is called in the report.
    fn name(&self) -> &'static str;

    /// Where the service listens.
    fn address(&self) -> SocketAddr;

    /// The file of the service's marks.
    fn marks(&self) -> &Path;

    /// The supervisor's pid.
    fn supervisor(&self) -> u32;

    /// Upgrades the service to the other of its two binaries. Returns when the next upgrade may come. An upgrade that
    /// is not committed is an error.
    fn upgrade(&mut self) -> Result<Upgrade, Error>;

    /// Makes the binaries look as if they had been written just now.
    fn touch(&self) -> Result<(), Error>;
}

/// Two releases of one service, to be upgraded to alternately.
#[derive(Debug)]
pub struct Releases {
    files: [PathBuf; 2],
    current: usize,
}

impl Releases {
    /// Copies `program` into `directory` and waits until the disk has it, so that no upgrade waits for that.
    pub fn new(program: &Path, directory: &Path) -> Result<Self, Error> {
        let files = ["service-1", "service-2"].map(|name| directory.join(name));
        for file in &files {
            std::fs::copy(program, file)?;
        }
        file_system::sync(File::open(directory)?)?;
        Ok(Self { files, current: 0 })
    }

    /// The one that runs.
    pub fn current(&self) -> &Path {
        &self.files[self.current]
    }

    /// The one that does not run.
    pub fn other(&self) -> &Path {
        &self.files[1 - self.current]
    }

    /// Goes on to the other one.
    pub fn advance(&mut self) -> &Path {
        self.current = 1 - self.current;
        self.current()
    }

    /// See [`Rig::touch`].
    pub fn touch(&self) -> Result<(), Error> {
        for file in &self.files {
            // Not opened for writing, which a running program does not allow.
            File::open(file)?.set_modified(std::time::SystemTime::now())?;
        }
        Ok(())
    }
}

/// Finds in the marks what one upgrade has left there.
#[derive(Debug)]
pub struct Gaps {
    reader: Reader,
    seen: usize,
}

impl Gaps {
    /// Starts after the marks that there are.
    pub fn new(marks: &Path) -> Result<Self, Error> {
        let mut reader = Reader::open(marks)?;
        let seen = reader.all()?.len();
        Ok(Self { reader, seen })
    }

    /// The gap of the upgrade that has just been made. Its last mark may still be on the way.
    pub fn measure(&mut self) -> Result<Gap, Error> {
        wait_for("the marks of an upgrade", || {
            let marks = self.reader.all()?;
            let find = |event| marks[self.seen..].iter().find(|mark| mark.event == event).copied();
            let (Some(stopped), Some(accepting)) = (find(Event::Stopped), find(Event::Accepting)) else {
                return Ok(None);
            };
            self.seen = marks.len();
            gap(stopped, accepting).map(Some)
        })
    }
}

fn gap(stopped: Mark, accepting: Mark) -> Result<Gap, Error> {
    if stopped.pid == accepting.pid {
        return Err(format!("process {} was not replaced", stopped.pid).into());
    }
    let ns =
        accepting.monotonic_ns.checked_sub(stopped.monotonic_ns).ok_or("two processes accepted at a time")?;
    Ok(Gap { us: ns / 1000, begin_unix_ns: stopped.unix_ns, end_unix_ns: accepting.unix_ns })
}

/// Waits until `look` finds something.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>, Error>) -> Result<T, Error> {
    let until = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() > until {
            return Err(format!("waited too long for {what}").into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// An address that nobody listens on now.
pub fn free_address() -> Result<SocketAddr, Error> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Ends the process `pid` in order, and waits for `child`, which is it or has started it; ends that too if it lasts.
pub fn end(pid: u32, child: &mut Child) {
    send_plain(pid, Signal::SIGTERM);
    let ended = wait_for("the supervisor to end", || Ok(child.try_wait()?));
    if ended.is_err() {
        send_plain(pid, Signal::SIGKILL);
        let _ = child.kill();
        let _ = child.wait();
    }
}
