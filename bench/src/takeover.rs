//! How long the next daemon takes to adopt all services after a kill.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::Error;
use crate::control::{Client, Outcome};
use crate::daemon::{Daemon, Holds, Home, kill};
use crate::idle::resident_kib;
use crate::probe::Prober;
use crate::programs::Programs;
use crate::rig::{LIMIT, Releases, wait_for};
use crate::spread::Spread;

/// Number of clients, each with its own service.
const CLIENTS: usize = 4;

/// The pause between a client's requests: with 2 processors, clients without pauses would dominate the measurement.
const PAUSE: Duration = Duration::from_millis(1);

/// Polling interval of the daemon's progress.
const ASK_AGAIN: Duration = Duration::from_micros(200);

/// The takeovers of one kind. A failed request, or a service with a changed process, is an error of the run.
#[derive(Debug, Serialize)]
pub struct Takeovers {
    /// The killed processes.
    pub killed: &'static str,
    /// Number of services.
    pub services: usize,
    /// Time from the start of the new daemon until it has adopted the last service.
    pub takeover: Spread,
    /// All requests of the clients, from before the kill until after the takeover.
    pub requests: Spread,
    /// Resident memory of the last daemon.
    pub resident_kib: u64,
}

/// The daemon's status of a service; only the needed fields.
#[derive(Debug, Deserialize)]
struct Status {
    service: String,
    state: String,
    pid: Option<u32>,
    problem: Option<String>,
}

/// A daemon with many services.
struct Fleet<'a> {
    programs: &'a Programs,
    // Before the home, which kills remaining processes.
    daemon: Option<Daemon>,
    home: Home,
    addresses: Vec<SocketAddr>,
    pids: BTreeMap<String, u32>,
}

/// Kills the daemon of `services` services `rounds` times; then as often together with its keeper.
pub fn measure(
    programs: &Programs,
    place: &Path,
    [services, rounds]: [usize; 2],
    interrupted: &AtomicBool,
) -> Result<Vec<Takeovers>, Error> {
    let mut fleet = Fleet::start(programs, place, services)?;
    let mut found = Vec::new();
    for (killed, keeper_too) in [("daemon", false), ("daemon and keeper", true)] {
        let (mut takeovers, mut requests) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            if interrupted.load(Ordering::Relaxed) {
                return Err("interrupted".into());
            }
            let probers: Vec<Prober> =
                fleet.addresses.iter().take(CLIENTS).map(|address| Prober::start(*address, PAUSE)).collect();
            let took = fleet.kill_and_start(keeper_too)?;
            takeovers.push(took.as_micros().try_into()?);
            for prober in probers {
                // Waits for a request under the new daemon.
                prober.longest_us()?;
                requests.extend(prober.stop()?);
            }
        }
        let daemon = fleet.daemon.as_ref().ok_or("there is no daemon")?;
        found.push(Takeovers {
            killed,
            services,
            takeover: Spread::of(takeovers),
            requests: Spread::of(requests),
            resident_kib: resident_kib(daemon.pid)?,
        });
    }
    Ok(found)
}

impl<'a> Fleet<'a> {
    fn start(programs: &'a Programs, place: &Path, services: usize) -> Result<Self, Error> {
        let home = Home::new(place, "fleet-")?;
        let releases = Releases::new(&programs.service, &home.path(""))?;
        let addresses = free_addresses(services)?;
        for (number, address) in addresses.iter().enumerate() {
            let name = name(number);
            let (data, marks) = (home.path(&format!("{name}.data")), home.path(&format!("{name}.marks")));
            std::fs::create_dir(&data)?;
            home.add_service(&name, releases.current(), [&data, &marks], Holds::default(), *address)?;
        }
        let mut daemon = home.start_daemon(&programs.handoff, &[])?;
        for number in 0..services {
            let _: Outcome = daemon.client.call("start", json!({"service": name(number)}))?;
        }
        let pids = under(&mut daemon.client, services)?.ok_or("not all services serve")?;
        Ok(Self { programs, daemon: Some(daemon), home, addresses, pids })
    }

    /// Kills the daemon and starts another one at once. Returns how long that took to adopt all services.
    fn kill_and_start(&mut self, keeper_too: bool) -> Result<Duration, Error> {
        if let Some(daemon) = self.daemon.take() {
            daemon.kill()?;
        }
        if keeper_too {
            self.home.keepers().into_iter().for_each(kill);
            wait_for("the keeper to be gone", || Ok(self.home.keepers().is_empty().then_some(())))?;
        }
        let began = Instant::now();
        let daemon = self.home.start_daemon(&self.programs.handoff, &[])?;
        let daemon = self.daemon.insert(daemon);
        let pids = loop {
            if let Some(pids) = under(&mut daemon.client, self.pids.len())? {
                break pids;
            }
            if began.elapsed() > LIMIT {
                return Err(format!("not all services were taken over:\n{}", self.home.log()).into());
            }
            // A client that never pauses would take processor time from the measured processes.
            std::thread::sleep(ASK_AGAIN);
        };
        let took = began.elapsed();
        match pids == self.pids {
            true => Ok(took),
            false => Err(format!("not all processes are the same:\n{}", self.home.log()).into()),
        }
    }
}

/// The pids of the services, once all of them serve under this daemon.
fn under(client: &mut Client, services: usize) -> Result<Option<BTreeMap<String, u32>>, Error> {
    let list: Vec<Status> = client.call("list", json!({}))?;
    if let Some(Status { service, problem: Some(problem), .. }) =
        list.iter().find(|status| status.problem.is_some())
    {
        return Err(format!("{service}: {problem}").into());
    }
    let serving = list.into_iter().filter(|status| status.state == "serving");
    let pids: BTreeMap<_, _> = serving.filter_map(|status| Some((status.service, status.pid?))).collect();
    Ok((pids.len() == services).then_some(pids))
}

/// Unused addresses that no client gets as its own: those are in 127.0.0.1.
fn free_addresses(count: usize) -> Result<Vec<SocketAddr>, Error> {
    let held = (0..count).map(|_| TcpListener::bind("127.0.0.2:0")).collect::<Result<Vec<_>, _>>()?;
    Ok(held.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?)
}

fn name(number: usize) -> String {
    format!("bench-{number}")
}
