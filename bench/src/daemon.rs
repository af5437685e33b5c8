//! A daemon of this project, with its own directories.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use handoff::sys::process::Signal;
use handoff::sys::signals::send_plain;
use serde_json::json;
use tempfile::TempDir;

use crate::Error;
use crate::control::{Client, Pong};
use crate::rig::{LIMIT, end};

/// Interval of the attempts to connect to a starting daemon.
const PAUSE: Duration = Duration::from_micros(200);

/// The directories of a daemon. Drop kills the processes that still run from them.
#[derive(Debug)]
pub struct Home {
    directory: TempDir,
    /// The directory of the sockets, whose paths must be short.
    runtime: TempDir,
}

/// The durations of the service's seal and drain.
#[derive(Debug, Clone, Copy, Default)]
pub struct Holds {
    /// Its seal.
    pub seal: Duration,
    /// Its drain.
    pub drain: Duration,
}

/// A running daemon, and a connection to it. Drop ends it cleanly.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    /// Its pid, which with a wrapper differs from that of the started process.
    pub pid: u32,
    /// The connection.
    pub client: Client,
}

impl Home {
    /// Creates the directories, most of them in `place`.
    pub fn new(place: &Path, prefix: &str) -> Result<Self, Error> {
        let directory = tempfile::Builder::new().prefix(prefix).tempdir_in(place)?;
        let runtime = tempfile::Builder::new().prefix("handoff-bench-").tempdir()?;
        std::fs::create_dir_all(directory.path().join("config/services"))?;
        Ok(Self { directory, runtime })
    }

    /// A path below the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a service file. `files` are the data directory and the marks.
    pub fn add_service(
        &self,
        name: &str,
        binary: &Path,
        files: [&Path; 2],
        holds: Holds,
        address: SocketAddr,
    ) -> Result<(), Error> {
        let [data, marks] = files;
        let [seal_ms, drain_ms] = [holds.seal, holds.drain].map(|hold| hold.as_millis().to_string());
        let text = format!(
            "binary = {binary:?}\nargs = [{data:?}, {marks:?}, {seal_ms:?}, {drain_ms:?}]\nautostart = false\nstore = false\n\
             [listen]\nmain = \"{address}\"\n"
        );
        Ok(std::fs::write(self.path("config/services").join(name).with_extension("toml"), text)?)
    }

    /// Inserts keys at the beginning of a service file.
    pub fn extend_service(&self, name: &str, keys: &str) -> Result<(), Error> {
        let file = self.path("config/services").join(name).with_extension("toml");
        let text = std::fs::read_to_string(&file)?;
        Ok(std::fs::write(&file, format!("{keys}{text}"))?)
    }

    /// Starts a daemon, and waits until it answers.
    pub fn start_daemon(&self, program: &Path, wrapper: &[OsString]) -> Result<Daemon, Error> {
        let log = std::fs::File::options().create(true).append(true).open(self.path("daemon.log"))?;
        let mut command = wrapper.to_vec();
        command.extend([program.into(), "daemon".into()]);
        let mut child = Command::new(&command[0])
            .args(&command[1..])
            .env("HANDOFF_CONFIG_DIR", self.path("config"))
            .env("HANDOFF_STATE_DIR", self.path("state"))
            .env("HANDOFF_RUNTIME_DIR", self.runtime.path())
            .env_remove("HANDOFF_LOG")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        match self.connect(&mut child) {
            Ok((client, pid)) => Ok(Daemon { child, pid, client }),
            Err(error) => {
                end(child.id(), &mut child);
                Err(error)
            }
        }
    }

    /// Another connection to the running daemon.
    pub fn client(&self) -> Result<Client, Error> {
        Client::connect(&self.runtime.path().join("control.sock"))
    }

    fn connect(&self, daemon: &mut Child) -> Result<(Client, u32), Error> {
        let until = Instant::now() + LIMIT;
        loop {
            if let Ok(mut client) = self.client() {
                let pong: Pong = client.call("ping", json!({}))?;
                return Ok((client, pong.pid));
            }
            if let Some(status) = daemon.try_wait()? {
                return Err(format!("the daemon ended ({status}):\n{}", self.log()).into());
            }
            if Instant::now() > until {
                return Err("waited too long for the daemon to answer".into());
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// The log output of the daemons.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("daemon.log")).unwrap_or_default()
    }

    /// The keeper processes of these directories, without zombies.
    pub fn keepers(&self) -> Vec<u32> {
        processes_with(&self.runtime.path().join("keeper.sock"))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for pid in [&self.directory, &self.runtime].into_iter().flat_map(|each| processes_with(each.path())) {
            kill(pid);
        }
    }
}

impl Daemon {
    /// Kills it, and waits until it is gone.
    pub fn kill(mut self) -> Result<(), Error> {
        kill(self.pid);
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // After a wait, the pid may be reused.
        if matches!(self.child.try_wait(), Ok(None)) {
            end(self.pid, &mut self.child);
        }
    }
}

/// Sends SIGKILL. ESRCH is ignored: the process already exited.
pub fn kill(pid: u32) {
    send_plain(pid, Signal::SIGKILL);
}

/// The processes with this path, or one below it, in their command line.
fn processes_with(path: &Path) -> Vec<u32> {
    let path = path.as_os_str().as_encoded_bytes();
    let names = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word.starts_with(path))
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(names).collect()
}
