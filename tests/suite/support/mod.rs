//! Shared parts of the end-to-end tests: a daemon in a temporary directory, releases of the test service, and waits
//! with a limit.

mod again;
pub mod at_end;
mod ports;
mod programs;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use handoff::control::api::{Claims, Outcome, Progress, Request, Response, ServiceStatus, State, Upgrade};
use handoff::control::{Client, ClientError};
use handoff_protocol::ids::ServiceName;
use programs::image_of;

pub use again::{again, arguments_for};
pub use ports::{close, free_address};
pub use programs::{copy_program, executable, write_program};

/// The amount of a long test: `all` with `TEST_ALL` in the environment, and otherwise a sample.
pub fn all_or<T>(all: T, sample: T) -> T {
    if std::env::var_os("TEST_ALL").is_some() { all } else { sample }
}

/// The limit of every wait in a test.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Waits until `look` returns a value. Panics with `what` after the limit.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + LIMIT;
    loop {
        let begin = Instant::now();
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "waited too long for: {what}");
        // An expensive look, such as a search of all processes, must not take the processor from its target.
        std::thread::sleep(Duration::from_millis(5).max(2 * begin.elapsed()));
    }
}

/// A daemon, its directories, and the services that it runs. All of it is gone when this is dropped.
pub struct Rig {
    pub root: tempfile::TempDir,
    pub daemon: Option<Child>,
}

impl Rig {
    /// A daemon with no services.
    pub fn new() -> Self {
        let root = tempfile::Builder::new().prefix("handoff-test-").tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("config/services")).unwrap();
        std::fs::create_dir_all(root.path().join("data")).unwrap();
        let mut rig = Self { root, daemon: None };
        rig.start_daemon();
        rig
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// `handoff` with the directories of this rig.
    pub fn handoff(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_handoff"));
        command
            .env("HANDOFF_CONFIG_DIR", self.path("config"))
            .env("HANDOFF_STATE_DIR", self.path("state"))
            .env("HANDOFF_RUNTIME_DIR", self.path("run"))
            .env("HANDOFF_LOG", "debug")
            .stdin(Stdio::null())
            .args(args);
        command
    }

    /// Runs `handoff` to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        self.handoff(args).output().unwrap()
    }

    pub fn start_daemon(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.path("daemon.log")).unwrap();
        self.start_daemon_logging_to(log.into());
    }

    pub fn start_daemon_logging_to(&mut self, log: Stdio) {
        self.daemon = Some(self.handoff(&["daemon"]).stdout(Stdio::null()).stderr(log).spawn().unwrap());
        wait_for("the daemon to answer", || {
            if let Some(status) = self.daemon.as_mut().and_then(|daemon| daemon.try_wait().unwrap()) {
                panic!("the daemon ended ({status}):\n{}", self.daemon_log());
            }
            // It connects before it knows its services, and answers after that.
            self.call(Request::Ping).ok()
        });
    }

    pub fn daemon_log(&self) -> String {
        std::fs::read_to_string(self.path("daemon.log")).unwrap_or_default()
    }

    /// Ends the daemon in order, which stops its services.
    pub fn stop_daemon(&mut self) -> Option<ExitStatus> {
        let mut daemon = self.daemon.take()?;
        signal(daemon.id(), handoff::sys::process::Signal::SIGTERM);
        let until = Instant::now() + LIMIT;
        loop {
            if let Some(status) = daemon.try_wait().unwrap() {
                return Some(status);
            }
            if Instant::now() > until {
                daemon.kill().unwrap();
                daemon.wait().unwrap();
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A release of the test service: a copy of the program with a stamp at its end.
    pub fn release(&self, version: &str, fault: &str) -> PathBuf {
        self.release_of("testee", version, fault)
    }

    /// A release of one of the example programs.
    pub fn release_of(&self, program: &str, version: &str, fault: &str) -> PathBuf {
        let path = self.path(&format!("{program}-{version}"));
        let stamp = format!("\ntestee version={version} fault={fault}\n");
        write_program(&path, &[&image_of(program)[..], stamp.as_bytes()].concat());
        path
    }

    /// Writes the file of service `name`. `more` comes before the tables.
    pub fn write_service(&self, name: &str, binary: &Path, more: &str) -> SocketAddr {
        let address = free_address();
        let data = self.path("data");
        // Copying each program takes time, so only tests of the store use it.
        let store = if more.contains("store = ") { "" } else { "store = false\n" };
        let text = format!(
            "binary = {binary:?}\nargs = [{data:?}]\nautostart = false\n{store}{more}\n[listen]\nmain = \"{address}\"\n"
        );
        std::fs::write(self.path(&format!("config/services/{name}.toml")), text).unwrap();
        address
    }

    /// A running service `name` at `version`.
    pub fn serve(&self, name: &str, version: &str, fault: &str, more: &str) -> SocketAddr {
        let address = self.write_service(name, &self.release(version, fault), more);
        self.call(Request::Start(service(name))).unwrap();
        address
    }

    pub fn call(&self, request: Request) -> Result<Response, ClientError> {
        Client::connect(&self.path("run/control.sock"))?.call(&request, &mut |_| {})
    }

    pub fn upgrade(&self, name: &str, binary: &Path) -> Result<Outcome, ClientError> {
        self.upgrade_with(name, binary, None, None)
    }

    pub fn upgrade_with(
        &self,
        name: &str,
        binary: &Path,
        deadline_ms: Option<u64>,
        drain_grace_ms: Option<u64>,
    ) -> Result<Outcome, ClientError> {
        let service = service(name);
        let claims = Claims::default();
        let upgrade =
            Upgrade { service, binary: Some(binary.to_owned()), deadline_ms, drain_grace_ms, claims };
        match self.call(Request::Upgrade(upgrade))? {
            Response::Outcome(outcome) => Ok(*outcome),
            other => panic!("{other:?}"),
        }
    }

    /// Upgrades, and runs `meanwhile` when the daemon reports this phase. Polls of the status could miss a phase,
    /// because each may take a second on a busy machine.
    pub fn upgrade_and(
        &self,
        name: &str,
        binary: &Path,
        phase: &str,
        meanwhile: impl FnOnce(),
    ) -> Result<Outcome, ClientError> {
        let upgrade = Upgrade {
            service: service(name),
            binary: Some(binary.to_owned()),
            deadline_ms: None,
            drain_grace_ms: None,
            claims: Claims::default(),
        };
        let mut left = Some(meanwhile);
        let mut on_progress = |progress: Progress| {
            if let Some(meanwhile) = left.take_if(|_| progress.phase == phase) {
                meanwhile();
            }
        };
        let mut client = Client::connect(&self.path("run/control.sock"))?;
        let ended = client.call(&Request::Upgrade(upgrade), &mut on_progress);
        assert!(left.is_none(), "it was never in the phase {phase}: {ended:?}");
        match ended? {
            Response::Outcome(outcome) => Ok(*outcome),
            other => panic!("{other:?}"),
        }
    }

    pub fn status(&self, name: &str) -> ServiceStatus {
        match self.call(Request::Status(service(name))).unwrap() {
            Response::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    /// The status, including the result of the daemon's look at the files of the service. A status waits for that look
    /// for a second, which may be too short on a busy machine.
    pub fn looked_at(&self, name: &str) -> ServiceStatus {
        let is_seen = |problem: &String| !problem.starts_with("It cannot be seen whether");
        wait_for("the look at its files", || {
            Some(self.status(name)).filter(|status| status.problem.as_ref().is_none_or(is_seen))
        })
    }

    /// Waits until the service serves and no operation is in progress. The recovery of a new daemon has no phase.
    pub fn settled(&self, name: &str) -> ServiceStatus {
        wait_for("it to serve without an operation in progress", || {
            Some(self.status(name)).filter(|status| status.state == State::Serving && status.phase.is_none())
        })
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the daemon\n{}", self.daemon_log());
            for name in std::fs::read_dir(self.path("state/services")).into_iter().flatten().flatten() {
                let log = std::fs::read_to_string(name.path().join("log/current")).unwrap_or_default();
                eprintln!("--- log of {:?}\n{log}", name.file_name());
            }
        }
        self.stop_daemon();
        // Leftovers of a killed daemon have this directory in their command line.
        for pid in processes_of(self.root.path()) {
            signal(pid, handoff::sys::process::Signal::SIGKILL);
        }
    }
}

/// The text of a log without the labels of its lines.
pub fn unlabelled(log: &str) -> String {
    let text = |line: &str| match line.splitn(7, ' ').collect::<Vec<_>>()[..] {
        [_, _, _, _, _, "|" | "+", text] => text.to_owned(),
        [_, _, _, _, _, "|" | "+"] => String::new(),
        _ => line.to_owned(),
    };
    log.lines().map(|line| text(line) + "\n").collect()
}

/// Processes whose program or command line contains `directory`.
pub fn processes_of(directory: &Path) -> Vec<u32> {
    let needle = directory.to_string_lossy().into_owned();
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        *pid != std::process::id()
            && (program.to_string_lossy().contains(&needle)
                || String::from_utf8_lossy(&line).contains(&needle))
    })
    .collect()
}

pub fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}

pub fn signal(pid: u32, signal: handoff::sys::process::Signal) {
    handoff::sys::signals::send_plain(pid, signal);
}

/// Kills a process, and waits until it has ended for the kernel. An ending process loses its program and command line
/// earlier.
pub fn kill(pid: u32) {
    use handoff::sys::poll::{PollFlags, poll_one};
    use handoff::sys::process::{Signal, kill, pidfd_open};

    let pidfd = pidfd_open(pid).unwrap();
    kill(&pidfd, Signal::SIGKILL).unwrap();
    let ended = poll_one(&pidfd, PollFlags::POLLIN, Some(LIMIT)).unwrap();
    assert!(!ended.is_empty(), "waited too long for the end of the process {pid}");
}

/// Stops a process. Waits for its last thread, because a running thread may still begin work.
pub fn stop(pid: u32) {
    signal(pid, handoff::sys::process::Signal::SIGSTOP);
    wait_for("it to stop", || handoff::sys::process::is_stopped(pid).then_some(()));
}

/// Stops a process for the whole of `time`, and then continues it.
pub fn freeze(pid: u32, time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        signal(pid, handoff::sys::process::Signal::SIGSTOP);
        std::thread::sleep(Duration::from_millis(10));
    }
    signal(pid, handoff::sys::process::Signal::SIGCONT);
}

/// The pause between two requests of a load client. Without it, a few clients would take the processor from all other
/// tests, and find no more errors.
pub fn pause() {
    std::thread::park_timeout(Duration::from_millis(2));
}

/// One request over its own connection.
pub fn ask(address: SocketAddr, line: &str) -> std::io::Result<String> {
    ask_over(TcpStream::connect(address)?, line)
}

/// The same over an existing connection.
pub fn ask_over(mut connection: TcpStream, line: &str) -> std::io::Result<String> {
    connection.set_read_timeout(Some(LIMIT))?;
    connection.write_all(format!("{line}\n").as_bytes())?;
    let mut answer = String::new();
    BufReader::new(connection).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(answer.trim_end().to_owned())
}

/// A request in progress: the server has accepted it when this returns. The thread returns its answer.
pub fn ask_meanwhile(address: SocketAddr, line: &str) -> std::thread::JoinHandle<std::io::Result<String>> {
    let (connection, line) = (TcpStream::connect(address).unwrap(), line.to_owned());
    let asked = std::thread::spawn(move || ask_over(connection, &line));
    // Connections are accepted in order.
    version(address);
    asked
}

/// Whether the kernel accepts a request and no process answers it for 1.5 s. Even on a busy machine, an answer takes
/// less time.
pub fn is_dark(address: SocketAddr) -> bool {
    let mut connection = TcpStream::connect(address).unwrap();
    connection.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
    connection.write_all(b"x\n").unwrap();
    let answer = std::io::Read::read(&mut connection, &mut [0; 64]);
    answer.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

/// The version that answers.
pub fn version(address: SocketAddr) -> String {
    let answer = ask(address, "version").unwrap();
    answer.split(' ').next().unwrap_or_default().to_owned()
}

/// A disk of 256 KiB, which only root can mount. It is gone when this is dropped.
pub struct SmallDisk(pub PathBuf);

impl SmallDisk {
    pub fn mount(path: &Path) -> Self {
        let mut mount = Command::new("mount");
        assert!(
            mount.args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(path).status().unwrap().success()
        );
        Self(path.to_owned())
    }

    /// Fills the disk to the last byte.
    pub fn fill(&self) {
        std::fs::write(self.0.join("fill"), vec![0; 1 << 20]).unwrap_err();
    }

    pub fn make_room(&self) {
        std::fs::remove_file(self.0.join("fill")).unwrap();
    }

    pub fn set_read_only(&self, is_read_only: bool) {
        let options = if is_read_only { "remount,ro" } else { "remount,rw" };
        assert!(Command::new("mount").args(["-o", options]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
