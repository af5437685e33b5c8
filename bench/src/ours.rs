//! The supervisor of this project: the daemon with a service file, upgraded over its control socket.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;

use crate::Error;
use crate::control::Outcome;
use crate::daemon::{Daemon, Holds, Home};
use crate::programs::Programs;
use crate::rig::{Gaps, Options, Releases, Rig, Upgrade, free_address};

const SERVICE: &str = "bench";

/// A daemon with one service.
#[derive(Debug)]
pub struct Ours {
    // Before the home, which kills remaining processes.
    daemon: Daemon,
    home: Home,
    address: SocketAddr,
    marks: PathBuf,
    releases: Releases,
    gaps: Gaps,
}

impl Ours {
    /// Starts the daemon and the service, with all their files in `place`.
    pub fn start(programs: &Programs, place: &Path, options: &Options) -> Result<Self, Error> {
        let home = Home::new(place, "ours-")?;
        let (data, marks) = (home.path("data"), home.path("marks"));
        std::fs::create_dir(&data)?;
        let releases = Releases::new(&programs.service, &home.path(""))?;
        let address = free_address()?;
        let holds = Holds { seal: options.seal, ..Holds::default() };
        home.add_service(SERVICE, releases.current(), [&data, &marks], holds, address)?;
        let mut daemon = home.start_daemon(&programs.handoff, &options.wrapper)?;
        let _: Outcome = daemon.client.call("start", json!({"service": SERVICE}))?;
        let gaps = Gaps::new(&marks)?;
        Ok(Self { home, daemon, address, marks, releases, gaps })
    }
}

impl Rig for Ours {
    fn name(&self) -> &'static str {
        "handoff"
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn marks(&self) -> &Path {
        &self.marks
    }

    fn supervisor(&self) -> u32 {
        self.daemon.pid
    }

    fn upgrade(&mut self) -> Result<Upgrade, Error> {
        let params = json!({"service": SERVICE, "binary": self.releases.advance()});
        let began = Instant::now();
        let outcome: Outcome = self.daemon.client.call("upgrade", params)?;
        let client_us = began.elapsed().as_micros().try_into()?;
        if outcome.outcome != "committed" {
            return Err(format!("an upgrade was not committed: {:?}", outcome.reason).into());
        }
        Ok(Upgrade {
            own_us: outcome.took_us,
            client_us,
            gap: self.gaps.measure()?,
            told_gap_us: outcome.accept_gap_us,
            phases: outcome.phases.into_iter().map(|phase| (phase.phase, phase.took_us)).collect(),
        })
    }

    fn touch(&self) -> Result<(), Error> {
        self.releases.touch()
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.home.log());
        }
    }
}
