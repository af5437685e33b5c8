//! The external view of a supervisor with one service.

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

/// Maximum duration of any wait.
pub const LIMIT: Duration = Duration::from_secs(60);

/// One committed upgrade.
#[derive(Debug, Clone)]
pub struct Upgrade {
    /// Time from the request to the durable commit in microseconds, by the supervisor's clock.
    pub own_us: u64,
    /// Time from the request to the response in microseconds, as seen by its client.
    pub client_us: u64,
    /// Time from the old process's last accept to the new one's first, from the marks.
    pub gap: Gap,
    /// Time without accepts in microseconds, if the supervisor reports it.
    pub told_gap_us: Option<u64>,
    /// The phases with their durations in microseconds, if the supervisor reports them.
    pub phases: Vec<(String, u64)>,
}

/// A time without accepts.
#[derive(Debug, Clone, Copy)]
pub struct Gap {
    /// Its duration in microseconds.
    pub us: u64,
    /// Its start in nanoseconds since 1970.
    pub begin_unix_ns: u64,
    /// Its end in nanoseconds since 1970.
    pub end_unix_ns: u64,
}

/// Start options of a rig.
#[derive(Debug, Default)]
pub struct Options {
    /// Duration of the service's seal.
    pub seal: Duration,
    /// A command that starts the supervisor, which is its last argument.
    pub wrapper: Vec<OsString>,
}

/// A running supervisor with one running service. Drop ends it.
pub trait Rig {
    /// Its name in the report.
    fn name(&self) -> &'static str;

    /// The address of the service.
    fn address(&self) -> SocketAddr;

    /// The file of the service's marks.
    fn marks(&self) -> &Path;

    /// The pid of the supervisor.
    fn supervisor(&self) -> u32;

    /// Upgrades the service to the other of its two binaries. Returns when the next upgrade is possible. An error if
    /// the upgrade is not committed.
    fn upgrade(&mut self) -> Result<Upgrade, Error>;

    /// Makes the binaries look newly written.
    fn touch(&self) -> Result<(), Error>;
}

/// Two releases of one service, for alternating upgrades.
#[derive(Debug)]
pub struct Releases {
    files: [PathBuf; 2],
    current: usize,
}

impl Releases {
    /// Copies `program` into `directory` and syncs it, so that no upgrade waits for that.
    pub fn new(program: &Path, directory: &Path) -> Result<Self, Error> {
        let files = ["service-1", "service-2"].map(|name| directory.join(name));
        for file in &files {
            std::fs::copy(program, file)?;
        }
        file_system::sync(File::open(directory)?)?;
        Ok(Self { files, current: 0 })
    }

    /// The running one.
    pub fn current(&self) -> &Path {
        &self.files[self.current]
    }

    /// The other one.
    pub fn other(&self) -> &Path {
        &self.files[1 - self.current]
    }

    /// Switches to the other one.
    pub fn advance(&mut self) -> &Path {
        self.current = 1 - self.current;
        self.current()
    }

    /// See [`Rig::touch`].
    pub fn touch(&self) -> Result<(), Error> {
        for file in &self.files {
            // Not opened for writing, which fails for a running program.
            File::open(file)?.set_modified(std::time::SystemTime::now())?;
        }
        Ok(())
    }
}

/// Finds the gaps of upgrades in the marks.
#[derive(Debug)]
pub struct Gaps {
    reader: Reader,
    seen: usize,
}

impl Gaps {
    /// Starts after the existing marks.
    pub fn new(marks: &Path) -> Result<Self, Error> {
        let mut reader = Reader::open(marks)?;
        let seen = reader.all()?.len();
        Ok(Self { reader, seen })
    }

    /// The gap of the last upgrade. Waits for its last mark.
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

/// Polls `look` until it returns a value.
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

/// A currently unused address.
pub fn free_address() -> Result<SocketAddr, Error> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Ends the process `pid` cleanly, and waits for `child`, which is the same process or its wrapper; kills that after
/// the time limit.
pub fn end(pid: u32, child: &mut Child) {
    send_plain(pid, Signal::SIGTERM);
    let ended = wait_for("the supervisor to end", || Ok(child.try_wait()?));
    if ended.is_err() {
        send_plain(pid, Signal::SIGKILL);
        let _ = child.kill();
        let _ = child.wait();
    }
}
