//! How long clients wait when the supervisor or the service dies or freezes. One client sends requests back to back,
//! each over a new connection.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use handoff::sys::process::Signal;
use handoff::sys::signals::send_plain;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::Error;
use crate::control::{Client, Outcome};
use crate::daemon::{Daemon, Holds, Home, kill};
use crate::marks::{Event, Mark, Reader, monotonic_ns};
use crate::programs::Programs;
use crate::rig::{LIMIT, Releases, free_address, wait_for};
use crate::spread::Spread;

const SERVICE: &str = "bench";
/// Observation time before and after a fault.
const WINDOW: Duration = Duration::from_millis(300);
/// Duration of the service's drain and seal, which leaves time for a fault.
const HOLD: Duration = Duration::from_millis(100);
/// The default lease, plus a quarter.
const FREEZE: Duration = Duration::from_millis(6_250);

/// One row of the table.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The measured quantity.
    pub what: &'static str,
    /// Its distribution.
    pub spread: Spread,
}

/// Simulates each kind of death `rounds` times, and each freeze `freezes` times.
pub fn measure(
    programs: &Programs,
    place: &Path,
    [rounds, freezes]: [usize; 2],
    interrupted: &AtomicBool,
) -> Result<Vec<Row>, Error> {
    let mut found = Found::default();
    let mut rig = Rig::start(programs, place, Holds { seal: Duration::ZERO, drain: HOLD })?;
    for _ in 0..rounds {
        go_on(interrupted)?;
        rig.kill_supervisor(&mut found)?;
        rig.kill_service(&mut found)?;
        rig.kill_service_in_upgrade(&mut found)?;
    }
    drop(rig);
    let mut rig = Rig::start(programs, place, Holds { seal: HOLD, drain: Duration::ZERO })?;
    for _ in 0..freezes {
        go_on(interrupted)?;
        rig.stop_supervisor_in_upgrade(&mut found)?;
    }
    Ok(found.rows())
}

/// An error if the run was interrupted.
pub(crate) fn go_on(interrupted: &AtomicBool) -> Result<(), Error> {
    if interrupted.load(Ordering::Relaxed) { Err("interrupted".into()) } else { Ok(()) }
}

/// The results in nanoseconds, one value per round.
#[derive(Debug, Default)]
struct Found {
    calm: Vec<u64>,
    supervisor: Vec<u64>,
    starts: Vec<u64>,
    service: Vec<u64>,
    to_begun: Vec<u64>,
    begins: Vec<u64>,
    in_upgrade: Vec<u64>,
    frozen: Vec<u64>,
}

impl Found {
    fn rows(&self) -> Vec<Row> {
        let row =
            |what, values: Vec<u64>| Row { what, spread: Spread::of(values.iter().map(|ns| ns / 1000)) };
        let plain = |what, values: &Vec<u64>| row(what, values.clone());
        let less = |values: &[u64], by: &[u64]| -> Vec<u64> {
            values.iter().zip(by).map(|(value, by)| value.saturating_sub(*by)).collect()
        };
        vec![
            plain("without a fault, in 0.3 s", &self.calm),
            plain("supervisor killed at rest", &self.supervisor),
            row("the same, beyond that without a fault just before", less(&self.supervisor, &self.calm)),
            plain("start of the service, exec to accept", &self.starts),
            plain("service killed at rest", &self.service),
            row("the same, beyond a start just before", less(&self.service, &self.starts)),
            plain("begin of the new process, Begin to accept", &self.begins),
            plain("old process killed while it drains: until the new one begins", &self.to_begun),
            plain("the same: time without service", &self.in_upgrade),
            row("the same, beyond its begin", less(&self.in_upgrade, &self.begins)),
            plain(
                "supervisor stopped while the old process seals, which takes 0.1 s; lease 5 s",
                &self.frozen,
            ),
        ]
    }
}

/// A daemon with one service.
struct Rig<'a> {
    programs: &'a Programs,
    // Before the home, which kills remaining processes.
    daemon: Option<Daemon>,
    home: Home,
    address: SocketAddr,
    marks: PathBuf,
    releases: Releases,
}

/// The daemon's status of the service; only the needed fields.
#[derive(Debug, Deserialize)]
struct Status {
    state: String,
    phase: Option<String>,
    pid: Option<u32>,
}

impl<'a> Rig<'a> {
    fn start(programs: &'a Programs, place: &Path, holds: Holds) -> Result<Self, Error> {
        let home = Home::new(place, "deaths-")?;
        let (data, marks) = (home.path("data"), home.path("marks"));
        std::fs::create_dir(&data)?;
        let releases = Releases::new(&programs.service, &home.path(""))?;
        let address = free_address()?;
        home.add_service(SERVICE, releases.current(), [&data, &marks], holds, address)?;
        let mut daemon = home.start_daemon(&programs.handoff, &[])?;
        let _: Outcome = daemon.client.call("start", json!({"service": SERVICE}))?;
        Ok(Self { programs, daemon: Some(daemon), home, address, marks, releases })
    }

    fn client(&mut self) -> Result<&mut Client, Error> {
        Ok(&mut self.daemon.as_mut().ok_or("there is no daemon")?.client)
    }

    fn status(&mut self) -> Result<Status, Error> {
        self.client()?.call("status", json!({"service": SERVICE}))
    }

    /// The serving process, once the service is idle.
    fn pid(&mut self) -> Result<u32, Error> {
        wait_for("the service to rest", || {
            let status = self.status()?;
            Ok(status.pid.filter(|_| status.state == "serving" && status.phase.is_none()))
        })
    }

    fn kill_supervisor(&mut self, found: &mut Found) -> Result<(), Error> {
        let pid = self.pid()?;
        let client = Dense::start(self.address)?;
        let before = monotonic_ns();
        std::thread::sleep(WINDOW);
        let killed = monotonic_ns();
        self.daemon.take().ok_or("there is no daemon")?.kill()?;
        self.daemon = Some(self.home.start_daemon(&self.programs.handoff, &[])?);
        std::thread::sleep(WINDOW);
        let Answers { at, failed } = client.stop()?;
        if failed > 0 || self.pid()? != pid {
            return Err("the service noticed the end of its supervisor".into());
        }
        found.calm.push(longest(&at, before, killed)?);
        found.supervisor.push(longest(&at, killed, u64::MAX)?);
        Ok(())
    }

    /// With a fresh start each round: otherwise the pause before the restart would grow.
    fn kill_service(&mut self, found: &mut Found) -> Result<(), Error> {
        found.starts.push(self.start_alone()?);
        for verb in ["stop", "start"] {
            let _: Outcome = self.client()?.call(verb, json!({"service": SERVICE}))?;
        }
        let pid = self.pid()?;
        let mut reader = Reader::open(&self.marks)?;
        let seen = reader.all()?.len();
        let client = Dense::start(self.address)?;
        let killed = monotonic_ns();
        kill(pid);
        let accepts = wait_for("a restart", || Ok(find(&reader.all()?[seen..], Event::Accepting)))?;
        found.service.push(longest(&client.stop()?.at, killed, accepts.monotonic_ns)?);
        Ok(())
    }

    /// How long the service takes to start without a supervisor.
    fn start_alone(&self) -> Result<u64, Error> {
        let (data, marks) = (self.home.path("alone"), self.home.path("alone.marks"));
        std::fs::create_dir_all(&data)?;
        let mut reader = Reader::open(&marks)?;
        let seen = reader.all()?.len();
        let began = monotonic_ns();
        let mut child = Command::new(self.releases.current())
            .args([&data, &marks])
            .args(["0", "0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let accepts = wait_for("a start", || Ok(find(&reader.all()?[seen..], Event::Accepting)));
        child.kill()?;
        child.wait()?;
        Ok(accepts?.monotonic_ns.saturating_sub(began))
    }

    fn kill_service_in_upgrade(&mut self, found: &mut Found) -> Result<(), Error> {
        let pid = self.pid()?;
        let mut reader = Reader::open(&self.marks)?;
        let seen = reader.all()?.len();
        let client = Dense::start(self.address)?;
        let upgrade = self.begin_upgrade()?;
        wait_for("the drain", || Ok((self.status()?.phase.as_deref() == Some("draining")).then_some(())))?;
        let killed = monotonic_ns();
        kill(pid);
        let outcome = join(upgrade)?;
        let at = client.stop()?.at;
        if outcome.outcome != "committed" {
            return Err(format!("the upgrade did not go forward: {:?}", outcome.reason).into());
        }
        let marks = &reader.all()?[seen..];
        let (Some(begun), Some(accepts)) = (find(marks, Event::Begun), find(marks, Event::Accepting)) else {
            return Err("the new process has left no marks".into());
        };
        found.to_begun.push(begun.monotonic_ns.saturating_sub(killed));
        found.begins.push(accepts.monotonic_ns.saturating_sub(begun.monotonic_ns));
        found.in_upgrade.push(longest(&at, killed, accepts.monotonic_ns)?);
        Ok(())
    }

    fn stop_supervisor_in_upgrade(&mut self, found: &mut Found) -> Result<(), Error> {
        self.pid()?;
        let mut reader = Reader::open(&self.marks)?;
        let seen = reader.all()?.len();
        let client = Dense::start(self.address)?;
        let upgrade = self.begin_upgrade()?;
        wait_for("the seal", || Ok(find(&reader.all()?[seen..], Event::Stopped)))?;
        let stopped = monotonic_ns();
        let supervisor = self.daemon.as_ref().ok_or("there is no daemon")?.pid;
        send_plain(supervisor, Signal::SIGSTOP);
        std::thread::sleep(FREEZE);
        send_plain(supervisor, Signal::SIGCONT);
        join(upgrade)?;
        found.frozen.push(longest(&client.stop()?.at, stopped, u64::MAX)?);
        Ok(())
    }

    fn begin_upgrade(&mut self) -> Result<JoinHandle<Result<Outcome, Error>>, Error> {
        let mut client = self.home.client()?;
        let params = json!({"service": SERVICE, "binary": self.releases.advance()});
        Ok(std::thread::spawn(move || client.call("upgrade", params)))
    }
}

fn join<T>(thread: JoinHandle<Result<T, Error>>) -> Result<T, Error> {
    thread.join().unwrap_or_else(|_| Err("a thread panicked".into()))
}

fn find(marks: &[Mark], event: Event) -> Option<Mark> {
    marks.iter().find(|mark| mark.event == event).copied()
}

/// The longest time between two consecutive answers that ended after `from` and began by `to`.
pub(crate) fn longest(at: &[u64], from: u64, to: u64) -> Result<u64, Error> {
    let pairs = at.windows(2).filter(|pair| pair[1] > from && pair[0] < to);
    Ok(pairs.map(|pair| pair[1] - pair[0]).max().ok_or("the client was never answered")?)
}

/// The client that sends requests back to back.
pub(crate) struct Dense {
    stop: Arc<AtomicBool>,
    answers: Arc<Mutex<Answers>>,
    thread: JoinHandle<()>,
}

#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// The time of each answer.
    pub(crate) at: Vec<u64>,
    /// Number of requests whose connection was cut.
    failed: usize,
}

impl Dense {
    /// Starts the client. Returns after some answers.
    pub(crate) fn start(address: SocketAddr) -> Result<Self, Error> {
        let (stop, answers) = <(Arc<AtomicBool>, Arc<Mutex<Answers>>)>::default();
        let (theirs, noted) = (Arc::clone(&stop), Arc::clone(&answers));
        let thread = std::thread::spawn(move || {
            while !theirs.load(Ordering::Relaxed) {
                let answered = ask(address);
                let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
                match answered {
                    Ok(()) => noted.at.push(monotonic_ns()),
                    Err(_) => noted.failed += 1,
                }
            }
        });
        let client = Self { stop, answers, thread };
        client.more()?;
        Ok(client)
    }

    /// Waits for answers to requests from now on.
    pub(crate) fn more(&self) -> Result<(), Error> {
        let count = || self.answers.lock().unwrap_or_else(PoisonError::into_inner).at.len();
        let before = count();
        wait_for("answers to the client", || Ok((count() > before + 20).then_some(())))
    }

    pub(crate) fn stop(self) -> Result<Answers, Error> {
        self.more()?;
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "the client panicked")?;
        Ok(std::mem::take(&mut *self.answers.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn ask(address: SocketAddr) -> io::Result<()> {
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(LIMIT))?;
    connection.write_all(b"probe\n")?;
    let mut answer = String::new();
    BufReader::new(connection).read_line(&mut answer)?;
    if answer == "probe\n" { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_counts_where_it_reaches_into_the_time() {
        let at = [10, 20, 50, 55, 155, 160];
        assert_eq!(longest(&at, 0, u64::MAX).unwrap(), 100);
        assert_eq!(longest(&at, 0, 55).unwrap(), 30, "the long one began at 55");
        assert_eq!(longest(&at, 54, 56).unwrap(), 100);
        assert_eq!(longest(&at, 155, u64::MAX).unwrap(), 5, "the long one was over");
        assert!(longest(&[1], 0, 9).is_err());
    }
}
