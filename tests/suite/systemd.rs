//! The daemon under a service manager: its notifications, its stored descriptors, and the descriptors that it receives
//! at its start.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use crate::support::{Rig, processes_of, signal, wait_for};
use handoff::control::api::Request;
use handoff::keeper::Client;
use handoff::sys::message::receive;
use handoff::sys::process::Signal;

/// A service manager that handles the messages of one unit.
struct Manager {
    unit: Arc<Mutex<Unit>>,
}

#[derive(Default)]
struct Unit {
    store: Vec<(String, OwnedFd)>,
    told: Vec<String>,
}

impl Manager {
    fn new(rig: &Rig) -> Self {
        let socket = UnixDatagram::bind(rig.path("notify.sock")).unwrap();
        let unit = Arc::new(Mutex::new(Unit::default()));
        let reader = Arc::clone(&unit);
        std::thread::spawn(move || read(&socket, &reader));
        Self { unit }
    }

    fn wait_for_message(&self, line: &str) {
        wait_for(line, || self.unit.lock().unwrap().told.iter().any(|told| told == line).then_some(()));
    }

    fn keys(&self) -> Vec<String> {
        self.unit.lock().unwrap().keys()
    }

    /// Starts the daemon with the stored descriptors, numbered from 3.
    fn start_daemon(&self, rig: &mut Rig) {
        // Passed as standard streams, which a shell moves: an inheritable descriptor of this process would reach
        // processes of other tests.
        const MOVES: [&str; 3] = ["3<&0", "4<&1", "5<&2"];
        let unit = self.unit.lock().unwrap();
        let given: Vec<OwnedFd> = unit.store.iter().map(|(_, fd)| fd.try_clone().unwrap()).collect();
        let moves = MOVES[..given.len()].join(" ");
        let script =
            format!(r#"exec {moves} </dev/null >>"$1" 2>&1; shift; export LISTEN_PID=$$; exec "$@""#);
        let daemon = rig.handoff(&["daemon"]);
        let names: Vec<_> = unit.store.iter().map(|(name, _)| name.as_str()).collect();
        let mut command = Command::new("/bin/bash");
        command.args(["-c", &script, "bash"]).arg(rig.path("daemon.log"));
        command.arg(daemon.get_program()).args(daemon.get_args());
        command.envs(daemon.get_envs().filter_map(|(name, value)| Some((name, value?))));
        if !given.is_empty() {
            command.env("LISTEN_FDS", given.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        }
        command.env("NOTIFY_SOCKET", rig.path("notify.sock"));
        let mut streams = given.into_iter().map(Stdio::from);
        let mut stream = || streams.next().unwrap_or_else(Stdio::null);
        command.stdin(stream()).stdout(stream()).stderr(stream());
        rig.daemon = Some(command.spawn().unwrap());
        drop(unit);
        wait_for("the daemon to answer", || {
            handoff::control::Client::connect(&rig.path("run/control.sock")).ok()?;
            rig.call(Request::Ping).ok()
        });
    }
}

fn read(socket: &UnixDatagram, unit: &Mutex<Unit>) {
    let mut bytes = [0; 4096];
    loop {
        let found = receive(socket, &mut bytes, 4).unwrap();
        unit.lock().unwrap().take(std::str::from_utf8(&bytes[..found.bytes]).unwrap(), found.fds);
    }
}

impl Unit {
    fn take(&mut self, text: &str, fds: Vec<OwnedFd>) {
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
        let has = |wanted| text.lines().any(|line| line == wanted);
        if has("FDSTORE=1") {
            assert!(has("FDPOLL=0"), "{text}");
            let name = name.unwrap().to_owned();
            assert!(!self.keys().contains(&name), "{name} is stored twice");
            self.store.extend(fds.into_iter().map(|fd| (name.clone(), fd)));
        } else if has("FDSTOREREMOVE=1") {
            self.store.retain(|(stored, _)| Some(stored.as_str()) != name);
        } else {
            self.told.extend(text.lines().map(ToOwned::to_owned));
        }
    }

    fn keys(&self) -> Vec<String> {
        let mut keys: Vec<_> = self.store.iter().map(|(name, _)| name.clone()).collect();
        keys.sort();
        keys
    }
}

fn held(rig: &Rig) -> Vec<String> {
    Client::connect(&rig.path("run/keeper.sock")).unwrap().list().unwrap()
}

#[test]
fn systemd_knows_how_it_stands_and_gives_back_what_it_was_given() {
    let mut rig = Rig::new();
    rig.stop_daemon();
    let manager = Manager::new(&rig);
    manager.start_daemon(&mut rig);
    manager.wait_for_message("READY=1");
    manager.wait_for_message("STATUS=0 of 0 services serve");
    let address = rig.serve("svc", "1", "none", "mode = \"overlap\"");
    manager.wait_for_message("STATUS=1 of 1 services serve");
    rig.upgrade("svc", &rig.release("2", "none")).unwrap();
    wait_for("the same to be stored and held", || {
        let keys = manager.keys();
        (keys == held(&rig) && keys.len() == 2).then_some(())
    });
    let [_, listener] = <[String; 2]>::try_from(manager.keys()).unwrap();
    assert_eq!(listener, "svc/main/2");

    let environment = std::fs::read(format!("/proc/{}/environ", rig.status("svc").pid.unwrap())).unwrap();
    let environment = String::from_utf8_lossy(&environment);
    assert!(!environment.contains("LISTEN_") && !environment.contains("NOTIFY_"), "{environment}");

    // All processes at once, as when the machine runs out of memory.
    let mut daemon = rig.daemon.take().unwrap();
    daemon.kill().unwrap();
    for pid in processes_of(rig.root.path()) {
        signal(pid, Signal::SIGKILL);
    }
    daemon.wait().unwrap();
    manager.unit.lock().unwrap().told.clear();
    let early = std::thread::spawn(move || crate::support::version(address));
    manager.start_daemon(&mut rig);
    manager.wait_for_message("READY=1");
    assert_eq!(early.join().unwrap(), "2", "a client that came without a running process is served");
    manager.wait_for_message("STATUS=1 of 1 services serve");
    wait_for("the new keeper to hold the same", || (held(&rig) == manager.keys()).then_some(()));
    assert_eq!(manager.keys()[1], listener);

    rig.stop_daemon();
    manager.wait_for_message("STOPPING=1");
    wait_for("nothing to be stored", || manager.keys().is_empty().then_some(()));
}
