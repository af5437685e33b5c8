//! The environment of the demo: a temporary directory with a supervisor and one service.
//!
//! All programs run from files in the directory, so the processes to end are known: those whose executable is inside.
//! Dropping the rig ends them and removes the directory, however the demo ends.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use handoff::control::api::{Request, Response, ServiceStatus, State};
use handoff::control::{Client, ClientError};
use handoff::sys::process::Signal;
use handoff::sys::signals::send_plain;
use tempfile::TempDir;

use crate::Error;
use crate::binaries::Binaries;
use crate::load::LoadConfig;

/// The name of the service.
pub const SERVICE: &str = "s3";
/// Time limit for the supervisor or the service to start or end.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Polling interval.
const TICK: Duration = Duration::from_millis(10);

/// A supervisor in its own directory.
pub struct Rig {
    dir: TempDir,
    daemon: Option<Child>,
    endpoint: SocketAddr,
}

impl Rig {
    /// Creates the directory. Nothing runs yet.
    ///
    /// # Errors
    ///
    /// The directory cannot be created, or no port is free.
    pub fn new() -> Result<Self, Error> {
        let dir = tempfile::Builder::new().prefix("handoff-demo-").tempdir()?;
        for name in ["config/services", "state", "run", "data"] {
            fs::create_dir_all(dir.path().join(name))?;
        }
        let endpoint = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        Ok(Self { dir, daemon: None, endpoint })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The load for the service.
    pub fn config(&self, clients: usize) -> LoadConfig {
        let (access_key, secret_key) = ("demo-access-key".to_owned(), "demo-secret-key".to_owned());
        LoadConfig { endpoint: self.endpoint, access_key, secret_key, clients, seed: 1 }
    }

    /// Starts the supervisor with the service at `binary`, and waits until it serves. Blocks.
    ///
    /// # Errors
    ///
    /// One of them does not start; the text contains the supervisor's output.
    pub fn start(&mut self, binaries: &Binaries, binary: &Path) -> Result<(), Error> {
        self.write_service_file(binary)?;
        let handoff = self.path().join("handoff");
        fs::copy(&binaries.handoff, &handoff)?;
        let log = File::create(self.path().join("daemon.log"))?;
        let mut command = Command::new(&handoff);
        command.arg("daemon");
        for (option, name) in [("--config-dir", "config"), ("--state-dir", "state"), ("--runtime-dir", "run")]
        {
            command.arg(option).arg(self.path().join(name));
        }
        // In its own process group, so that Ctrl-C reaches only the demo, which then ends the rest cleanly.
        command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.daemon = Some(command.spawn().map_err(|error| format!("cannot start {handoff:?}: {error}"))?);
        self.wait_until_serving().map_err(|error| self.with_daemon_log(&error))
    }

    /// Sends a request to the supervisor. Blocks until its response.
    ///
    /// # Errors
    ///
    /// It is unreachable, or refuses.
    pub fn ask(socket: &Path, request: &Request) -> Result<Response, ClientError> {
        Client::connect(socket)?.call(request, &mut |_| {})
    }

    /// The socket for requests to the supervisor.
    pub fn socket(&self) -> PathBuf {
        self.path().join("run/control.sock")
    }

    /// Adds the end of the supervisor's output to an error.
    pub fn with_daemon_log(&self, error: &Error) -> Error {
        let log = fs::read_to_string(self.path().join("daemon.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(20)..].join("\n");
        format!("{error}\nThe supervisor said:\n{tail}").into()
    }

    fn write_service_file(&self, binary: &Path) -> Result<(), Error> {
        let config = self.config(0);
        let (access, secret) = (config.access_key, config.secret_key);
        let data = self.path().join("data");
        let text = format!(
            "binary = {binary:?}\n\
             args = [\"--access-key\", {access:?}, \"--secret-key\", {secret:?}, {data:?}]\n\
             mode = \"exclusive\"\n\
             deadline = \"20s\"\n\
             drain_grace = \"15s\"\n\
             \n\
             [listen]\n\
             s3 = \"{}\"\n",
            self.endpoint
        );
        fs::write(self.path().join("config/services/s3.toml"), text)?;
        Ok(())
    }

    fn wait_until_serving(&mut self) -> Result<(), Error> {
        let until = Instant::now() + TIMEOUT;
        loop {
            let problem: Error = match self.status() {
                Ok(status) if status.state == State::Serving => return Ok(()),
                Ok(status) if status.state == State::Failed => {
                    return Err(status.problem.unwrap_or_else(|| "the service has failed".into()).into());
                }
                Ok(status) => format!("the service is still {:?}", status.state).into(),
                Err(error) => error,
            };
            if let Some(status) = self.daemon.as_mut().map(Child::try_wait).transpose()?.flatten() {
                return Err(format!("the supervisor has ended with {status}").into());
            }
            if Instant::now() > until {
                return Err(format!("nothing serves after {TIMEOUT:?}: {problem}").into());
            }
            std::thread::sleep(TICK);
        }
    }

    fn status(&self) -> Result<ServiceStatus, Error> {
        match Self::ask(&self.socket(), &Request::Status(SERVICE.parse()?))? {
            Response::Status(status) => Ok(*status),
            other => Err(format!("the supervisor answered {other:?} to a status request").into()),
        }
    }

    /// Stops the service and then the supervisor, cleanly if possible, and removes the directory. Blocks for a few
    /// seconds at most.
    ///
    /// # Errors
    ///
    /// The service could not be stopped cleanly, or the directory cannot be removed. Everything else is removed
    /// anyway, as far as possible.
    pub fn stop(mut self) -> Result<(), Error> {
        let socket = self.socket();
        let stopped = SERVICE
            .parse()
            .map_err(Error::from)
            .and_then(|service| Self::ask(&socket, &Request::Stop(service)).map(drop).map_err(Error::from));
        let stopped = stopped.map_err(|error| self.with_daemon_log(&error));
        self.end_processes();
        let dir = self.dir.path().to_owned();
        fs::remove_dir_all(&dir).map_err(|error| format!("cannot remove {}: {error}", dir.display()))?;
        stopped
    }

    /// Ends every process whose executable is in the directory: first with SIGTERM, then with SIGKILL.
    fn end_processes(&mut self) {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            let until = Instant::now() + Duration::from_secs(5);
            let mut processes = processes_of(self.path());
            for pid in &processes {
                send_plain(*pid, signal);
            }
            while !processes.is_empty() && Instant::now() < until {
                if let Some(daemon) = &mut self.daemon {
                    // Reaps it; a zombie would still be found.
                    let _ = daemon.try_wait();
                }
                std::thread::sleep(TICK);
                processes = processes_of(self.path());
            }
        }
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.wait();
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if self.daemon.is_some() {
            self.end_processes();
        }
    }
}

fn processes_of(dir: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe.starts_with(dir)))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}
