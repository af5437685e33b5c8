//! The supervisor of this project: the daemon with a service file, upgraded over its control socket.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use serde_json::json;
use tempfile::TempDir;

use crate::Error;
use crate::control::{Client, Outcome, Pong};
use crate::programs::Programs;
use crate::rig::{Gaps, Options, Releases, Rig, Upgrade, end, free_address, wait_for};

const SERVICE: &str = "bench";

/// A daemon of its own with one service.
#[derive(Debug)]
pub struct Ours {
    directory: TempDir,
    /// The sockets, whose paths must be short.
    _runtime: TempDir,
    daemon: Child,
    pid: u32,
    client: Client,
    address: SocketAddr,
    marks: PathBuf,
    releases: Releases,
    gaps: Option<Gaps>,
}

impl Ours {
    /// Starts the daemon and the service, with all their files in `place`.
    pub fn start(programs: &Programs, place: &Path, options: &Options) -> Result<Self, Error> {
        let directory = tempfile::Builder::new().prefix("ours-").tempdir_in(place)?;
        let runtime = tempfile::Builder::new().prefix("handoff-bench-").tempdir()?;
        let path = |name: &str| directory.path().join(name);
        std::fs::create_dir_all(path("config/services"))?;
        std::fs::create_dir(path("data"))?;
        let releases = Releases::new(&programs.service, directory.path())?;
        let (address, marks) = (free_address()?, path("marks"));
        let (data, seal_ms) = (path("data"), options.seal.as_millis().to_string());
        let service = format!(
            "binary = {:?}\nargs = [{data:?}, {marks:?}, {seal_ms:?}]\nautostart = false\n[listen]\nmain = \"{address}\"\n",
            releases.current(),
        );
        std::fs::write(path("config/services").join(SERVICE).with_extension("toml"), service)?;

        let log = std::fs::File::create(path("daemon.log"))?;
        let mut command: Vec<_> = options.wrapper.clone();
        command.extend([programs.handoff.clone().into(), "daemon".into()]);
        let mut daemon = Command::new(&command[0])
            .args(&command[1..])
            .env("HANDOFF_CONFIG_DIR", path("config"))
            .env("HANDOFF_STATE_DIR", path("state"))
            .env("HANDOFF_RUNTIME_DIR", runtime.path())
            .env_remove("HANDOFF_LOG")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        let connected = connect(&runtime.path().join("control.sock"), &mut daemon, &path("daemon.log"));
        let (client, pid) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                end(daemon.id(), &mut daemon);
                return Err(error);
            }
        };
        let mut rig =
            Self { directory, _runtime: runtime, daemon, pid, client, address, marks, releases, gaps: None };
        let _: Outcome = rig.client.call("start", json!({"service": SERVICE}))?;
        rig.gaps = Some(Gaps::new(&rig.marks)?);
        Ok(rig)
    }
}

fn connect(socket: &Path, daemon: &mut Child, log: &Path) -> Result<(Client, u32), Error> {
    wait_for("the daemon to answer", || {
        if let Some(status) = daemon.try_wait()? {
            let log = std::fs::read_to_string(log).unwrap_or_default();
            return Err(format!("the daemon ended ({status}):\n{log}").into());
        }
        let Ok(mut client) = Client::connect(socket) else { return Ok(None) };
        let pong: Pong = client.call("ping", json!({}))?;
        Ok(Some((client, pong.pid)))
    })
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
        self.pid
    }

    fn upgrade(&mut self) -> Result<Upgrade, Error> {
        let params = json!({"service": SERVICE, "binary": self.releases.advance()});
        let began = Instant::now();
        let outcome: Outcome = self.client.call("upgrade", params)?;
        let client_us = began.elapsed().as_micros().try_into()?;
        if outcome.outcome != "committed" {
            return Err(format!("an upgrade was not committed: {:?}", outcome.reason).into());
        }
        Ok(Upgrade {
            own_us: outcome.took_us,
            client_us,
            gap: self.gaps.as_mut().ok_or("the service was not started")?.measure()?,
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
        end(self.pid, &mut self.daemon);
        if std::thread::panicking() {
            let log = self.directory.path().join("daemon.log");
            eprintln!("{}", std::fs::read_to_string(log).unwrap_or_default());
        }
    }
}
