//! Programs with capabilities, below a daemon without any: the daemon cannot inspect their descriptors.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use handoff::sys::process::Signal;
use handoff::sys::user::effective_user;
use serde_json::Value;

use crate::support::{Rig, ask, copy_program, free_address, signal, wait_for};

const NOBODY: u32 = 65_534;

/// With the argument `daemon` it forks into its own session. Then it serves at the inherited descriptor.
const PYTHON: &str = r#"
import os, socket, sys
if sys.argv[1] == "daemon" and os.fork():
    os._exit(0)
if sys.argv[1] == "daemon":
    os.setsid()
listener = socket.socket(fileno=3)
while True:
    connection, _ = listener.accept()
    if connection.recv(100):
        connection.sendall(b"%d\n" % os.getpid())
    connection.close()
"#;

/// A daemon of the user `nobody`, with a service whose program has a capability.
struct CapableService {
    rig: Rig,
    address: SocketAddr,
    daemon: Option<Child>,
}

impl CapableService {
    /// Returns `None` where this is not possible.
    fn serve(does: &str) -> Option<Self> {
        if effective_user() != 0 {
            eprintln!("not run: it needs root");
            return None;
        }
        let mut rig = Rig::new();
        rig.stop_daemon();
        let program = rig.path("python");
        // Copies the file itself, not a link to it.
        copy_program(fs::canonicalize("/usr/bin/python3").unwrap(), &program);
        // The directories belong to the previous daemon.
        for name in ["state", "run"] {
            fs::remove_dir_all(rig.path(name)).unwrap();
            fs::create_dir(rig.path(name)).unwrap();
            fs::set_permissions(rig.path(name), PermissionsExt::from_mode(0o700)).unwrap();
        }
        for name in ["", "data", "state", "run"] {
            chown(rig.path(name), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let given = Command::new("setcap").args(["cap_net_bind_service+ep"]).arg(&program).output();
        if !given.is_ok_and(|given| given.status.success()) {
            eprintln!("not run: it needs setcap, and CAP_SETFCAP");
            return None;
        }
        fs::set_permissions(rig.root.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let address = free_address();
        let text = format!(
            "binary = {program:?}\nargs = [\"-c\", {PYTHON:?}, \"{does}\"]\nautostart = false\nstore = false\n\
             working_dir = \"/\"\nadapter = \"listen-fds\"\nmode = \"exclusive\"\nstop_grace = \"1s\"\n[listen]\nmain = \"{address}\"\n"
        );
        fs::write(rig.path("config/services/s.toml"), text).unwrap();
        let mut unseen = Self { rig, address, daemon: None };
        let log = fs::File::create(unseen.rig.path("daemon.log")).unwrap();
        unseen.daemon =
            Some(unseen.as_nobody(&["daemon"]).stderr(log).stdout(Stdio::null()).spawn().unwrap());
        wait_for("the daemon to answer", || unseen.run(&["list"]).status.success().then_some(()));
        let started = unseen.run(&["start", "s"]);
        assert!(started.status.success(), "{started:?}");
        Some(unseen)
    }

    fn as_nobody(&self, args: &[&str]) -> Command {
        let handoff = self.rig.handoff(args);
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--bounding-set=-all,+net_bind_service",
        ]);
        command.arg(handoff.get_program()).args(handoff.get_args()).stdin(Stdio::null());
        command.envs(handoff.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.as_nobody(args).output().unwrap()
    }

    fn status(&self) -> Value {
        serde_json::from_slice(&self.run(&["status", "s", "--json"]).stdout).unwrap_or_default()
    }

    fn pid(&self, key: &str) -> Option<u32> {
        self.status()[key].as_u64().and_then(|pid| u32::try_from(pid).ok())
    }

    /// The client waits only briefly: perhaps no process accepts.
    fn answers(&self) -> Option<u32> {
        let connection = TcpStream::connect(self.address).ok()?;
        connection.set_read_timeout(Some(Duration::from_millis(300))).ok()?;
        crate::support::ask_over(connection, "x").ok()?.parse().ok()
    }
}

impl Drop for CapableService {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            signal(daemon.id(), Signal::SIGTERM);
            let until = Instant::now() + Duration::from_secs(20);
            while daemon.try_wait().unwrap().is_none() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        crate::support::processes_of(self.rig.root.path())
            .into_iter()
            .for_each(|pid| signal(pid, Signal::SIGKILL));
    }
}

/// Whether the user `nobody` cannot see the descriptors of the process.
fn is_unseen(pid: u32) -> bool {
    let looked = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "ls"])
        .arg(format!("/proc/{pid}/fd"))
        .output()
        .unwrap();
    !looked.status.success()
}

/// The processor time of all threads, in ticks.
fn ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[test]
fn a_program_that_cannot_be_looked_at_is_ended_when_its_shim_is_gone() {
    let Some(unseen) = CapableService::serve("plain") else { return };
    let first: u32 = ask(unseen.address, "x").unwrap().parse().unwrap();
    assert!(is_unseen(first), "the test has no effect");
    let shim = unseen.pid("shim").unwrap();
    signal(shim, Signal::SIGKILL);
    let second = wait_for("another program to serve", || unseen.answers().filter(|pid| *pid != first));
    assert!(!Path::new(&format!("/proc/{first}/fd/0")).exists(), "two programs: {first} and {second}");
}

/// The holder has left the session in which the shim would search for it, and holds the lock that the next shim waits
/// for.
#[test]
fn a_holder_of_the_lock_that_cannot_be_ended_is_reported_and_costs_nothing() {
    let Some(unseen) = CapableService::serve("daemon") else { return };
    let first: u32 = ask(unseen.address, "x").unwrap().parse().unwrap();
    assert!(is_unseen(first), "the test has no effect");
    let shim = unseen.pid("shim").unwrap();
    signal(shim, Signal::SIGKILL);
    let problem = wait_for("the holder to be reported", || {
        unseen.status()["problem"]
            .as_str()
            .filter(|problem| problem.contains("program.lock"))
            .map(str::to_owned)
    });
    assert!(problem.contains(&format!("{first} (python)")), "{problem}");
    // Measures the processor time during the retries.
    let (daemon, since) = (unseen.daemon.as_ref().unwrap().id(), Instant::now());
    let used = |pid| ticks(pid).unwrap_or_default();
    let (before, mut worst) = (used(daemon), 0);
    while since.elapsed() < Duration::from_secs(3) {
        if let Some(shim) = unseen.pid("shim") {
            worst = worst.max(used(shim));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    // 100 ticks are a second.
    assert!(used(daemon) - before < 100 && worst < 150, "{} and {worst} ticks in 3 s", used(daemon) - before);
    // Applies the reported remedy.
    signal(first, Signal::SIGKILL);
    let second = wait_for("another program to serve", || unseen.answers());
    assert_ne!(second, first);
}
