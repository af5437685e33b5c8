//! Time without service when a new version dies on probation and the old one takes over again.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Deserialize;
use serde_json::json;

use crate::Error;
use crate::control::Outcome;
use crate::daemon::{Daemon, Holds, Home, kill};
use crate::deaths::{Answers, Dense, Row, longest};
use crate::marks::{Event, Reader, monotonic_ns};
use crate::programs::Programs;
use crate::rig::{Releases, free_address, wait_for};
use crate::spread::Spread;

const SERVICE: &str = "bench";

/// Kills a new version on probation `rounds` times in each mode.
pub fn measure(
    programs: &Programs,
    place: &Path,
    rounds: usize,
    interrupted: &AtomicBool,
) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    for (mode, [accepts, waits]) in [
        (
            "exclusive",
            [
                "killed on probation, exclusive mode: until the old process accepts",
                "the same: longest wait of a client",
            ],
        ),
        (
            "overlap",
            [
                "killed on probation, overlap mode: longest wait of a client without a fault",
                "the same: longest wait of a client",
            ],
        ),
    ] {
        let mut rig = Rig::start(programs, place, mode)?;
        let mut found = [Vec::new(), Vec::new()];
        for _ in 0..rounds {
            if interrupted.load(Ordering::Relaxed) {
                return Err("interrupted".into());
            }
            let times = rig.kill_on_probation(mode == "exclusive")?;
            found.iter_mut().zip(times).for_each(|(found, ns)| found.push(ns / 1000));
        }
        for (what, values) in [accepts, waits].into_iter().zip(found) {
            rows.push(Row { what, spread: Spread::of(values) });
        }
    }
    Ok(rows)
}

/// A daemon with one service.
struct Rig {
    // Before the home, which kills remaining processes.
    daemon: Daemon,
    home: Home,
    address: SocketAddr,
    marks: PathBuf,
    releases: Releases,
}

#[derive(Debug, Deserialize)]
struct Status {
    phase: Option<String>,
    pid: Option<u32>,
}

impl Rig {
    fn start(programs: &Programs, place: &Path, mode: &str) -> Result<Self, Error> {
        let home = Home::new(place, "probation-")?;
        let (data, marks) = (home.path("data"), home.path("marks"));
        std::fs::create_dir(&data)?;
        let releases = Releases::new(&programs.service, &home.path(""))?;
        let address = free_address()?;
        home.add_service(SERVICE, releases.current(), [&data, &marks], Holds::default(), address)?;
        home.extend_service(SERVICE, &format!("mode = {mode:?}\nprobation = \"10m\"\n"))?;
        let mut daemon = home.start_daemon(&programs.handoff, &[])?;
        let _: Outcome = daemon.client.call("start", json!({"service": SERVICE}))?;
        Ok(Self { daemon, home, address, marks, releases })
    }

    fn status(&mut self) -> Result<Status, Error> {
        self.daemon.client.call("status", json!({"service": SERVICE}))
    }

    /// Returns two durations in nanoseconds. First, in exclusive mode, the time until the old process accepts;
    /// otherwise the longest wait of a client before the kill. Second, the longest wait of a client after the kill.
    fn kill_on_probation(&mut self, exclusive: bool) -> Result<[u64; 2], Error> {
        let old = wait_for("the service to rest", || {
            let status = self.status()?;
            Ok(status.pid.filter(|_| status.phase.is_none()))
        })?;
        let mut client = self.home.client()?;
        let params = json!({"service": SERVICE, "binary": self.releases.other()});
        let upgrade = std::thread::spawn(move || client.call::<Outcome>("upgrade", params));
        let new = wait_for("the probation", || {
            let status = self.status()?;
            Ok(status.pid.filter(|_| status.phase.as_deref() == Some("probation")))
        })?;
        let mut reader = Reader::open(&self.marks)?;
        let seen = reader.all()?.len();
        let dense = Dense::start(self.address)?;
        let began = monotonic_ns();
        dense.more()?;
        let killed = monotonic_ns();
        kill(new);
        let outcome = upgrade.join().map_err(|_| "a thread panicked")??;
        if outcome.outcome != "rolled_back" {
            return Err(format!("the old version was not taken back: {}", outcome.outcome).into());
        }
        let Answers { at, .. } = dense.stop()?;
        let waited = longest(&at, killed, u64::MAX)?;
        if !exclusive {
            return Ok([longest(&at, began, killed)?, waited]);
        }
        let marks = &reader.all()?[seen..];
        let accepts = marks.iter().find(|mark| mark.event == Event::Accepting && mark.pid == old);
        let accepts = accepts.ok_or("the old process has left no mark")?;
        Ok([accepts.monotonic_ns.saturating_sub(killed), waited])
    }
}
