//! A program that ends by itself is started again as its service file says, and not for ever.

use std::net::{SocketAddr, TcpStream};

use handoff::control::api::{Request, ServiceStatus, State};
use handoff::sys::process::{Exit, Signal};

use crate::support::{Rig, ask, ask_over, executable, free_address, service, signal, wait_for};

/// Exits with the code that a client sends. With `fails`, it exits before it listens.
const PYTHON: &str = r#"
import os, socket, sys
host, port = sys.argv[1].split(":")
if os.path.exists(sys.argv[2]):
    os._exit(7)
listener = socket.create_server((host, int(port)))
while True:
    connection, _ = listener.accept()
    text = connection.recv(100).strip()
    connection.sendall(b"%d\n" % os.getpid())
    connection.close()
    if text.startswith(b"exit "):
        os._exit(int(text[5:]))
"#;

struct Ending {
    rig: Rig,
    address: SocketAddr,
}

impl Ending {
    fn serve(keys: &str) -> Self {
        let (rig, address) = (Rig::new(), free_address());
        let text = format!(
            "binary = \"/usr/bin/python3\"\nargs = [\"-c\", {PYTHON:?}, \"{address}\", {:?}]\nautostart = false\nstore = false\n\
             adapter = \"inject\"\n{keys}\n[listen]\nmain = \"{address}\"\n",
            rig.path("fails")
        );
        std::fs::write(rig.path("config/services/s.toml"), text).unwrap();
        rig.call(Request::Start(service("s"))).unwrap();
        Self { rig, address }
    }

    fn exits(&self, code: i32) -> u32 {
        ask(self.address, &format!("exit {code}")).unwrap().parse().unwrap()
    }

    /// Its status as soon as it is in this state, with no process.
    fn rests(&self, state: State) -> ServiceStatus {
        wait_for("its state", || {
            Some(self.rig.status("s")).filter(|status| status.state == state && status.pid.is_none())
        })
    }

    fn restart_daemon(&mut self) {
        let mut lost = self.rig.daemon.take().unwrap();
        lost.kill().unwrap();
        lost.wait().unwrap();
        self.rig.start_daemon();
    }
}

#[test]
fn a_program_that_has_done_what_it_should_is_not_started_again() {
    for (restart, code) in [("on-failure", 0), ("on-failure", 3), ("never", 3)] {
        let keys = format!("restart = \"{restart}\"\nsuccess_exit_codes = [3]\n");
        let mut ending = Ending::serve(&keys);
        ending.exits(code);
        for _ in 0..2 {
            let status = ending.rests(State::Exited);
            assert_eq!(status.problem, None, "{restart} {code}");
            assert_eq!(status.last_exit, Some(Exit { code: Some(code), signal: None }), "{restart} {code}");
            assert!(TcpStream::connect(ending.address).is_err(), "{restart} {code}");
            ending.restart_daemon();
        }
        ending.rig.call(Request::Start(service("s"))).unwrap();
        assert_eq!(ending.rig.settled("s").problem, None, "{restart} {code}");
    }
}

#[test]
fn a_failure_is_followed_by_a_start_unless_the_file_says_never() {
    let ending = Ending::serve("restart = \"on-failure\"");
    let first = ending.exits(1);
    let status = wait_for("another process", || {
        Some(ending.rig.settled("s")).filter(|status| status.pid.is_some_and(|pid| pid != first))
    });
    assert_eq!((status.restarts, status.last_exit), (1, Some(Exit { code: Some(1), signal: None })));

    let mut ending = Ending::serve("restart = \"never\"");
    let pid = ending.rig.status("s").pid.unwrap();
    signal(pid, Signal::SIGKILL);
    for _ in 0..2 {
        let status = ending.rests(State::Failed);
        assert_eq!(status.last_exit, Some(Exit { code: None, signal: Some(9) }));
        assert!(status.problem.unwrap().contains("not started again"));
        ending.restart_daemon();
    }
}

#[test]
fn a_service_that_keeps_failing_is_given_up_and_a_start_begins_again() {
    let hook = |rig: &Rig| rig.path("failed");
    let keys = "[backoff]\nfirst = \"10ms\"\nattempts = 3\n[hooks]\non_failed = [\"/bin/sh\", \"-c\", \"echo $HANDOFF_CAUSE >> $F\"]\n";
    let ending = Ending::serve("");
    let file = ending.rig.path("config/services/s.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let text = format!("{text}\n{}", keys.replace("$F", hook(&ending.rig).to_str().unwrap()));
    std::fs::write(&file, text).unwrap();
    // The changed keys count from the next request on.
    ending.rig.call(Request::Restart(service("s"))).unwrap();
    for round in 1..=2 {
        std::fs::write(ending.rig.path("fails"), "").unwrap();
        ending.exits(5);
        let status = ending.rests(State::Failed);
        let problem = status.problem.unwrap();
        assert!(problem.contains("3 times within 1m") && problem.contains("handoff start s"), "{problem}");
        assert!(
            problem.contains("exited with code 5") && problem.contains("exited with code 7"),
            "{problem}"
        );
        assert!(TcpStream::connect(ending.address).is_err(), "no client waits for nothing");
        let told = wait_for("the command", || {
            let told = std::fs::read_to_string(hook(&ending.rig)).unwrap_or_default();
            (told.lines().count() == round).then_some(told)
        });
        assert!(told.contains("so it is not started again"), "{told}");
        std::fs::remove_file(ending.rig.path("fails")).unwrap();
        ending.rig.call(Request::Start(service("s"))).unwrap();
        assert_eq!(ending.rig.settled("s").problem, None);
    }
}

#[test]
fn an_end_that_no_daemon_saw_counts_as_well() {
    let mut ending = Ending::serve("restart = \"never\"");
    let pid = ending.rig.status("s").pid.unwrap();
    let shim = ending.rig.status("s").shim.unwrap();
    let mut lost = ending.rig.daemon.take().unwrap();
    lost.kill().unwrap();
    lost.wait().unwrap();
    signal(pid, Signal::SIGKILL);
    wait_for("its shim to end", || handoff::sys::process::has_ended(shim).then_some(()));
    ending.rig.start_daemon();
    let problem = ending.rests(State::Failed).problem.unwrap();
    assert!(problem.contains("While no daemon was there") && problem.contains("never"), "{problem}");
    assert!(TcpStream::connect(ending.address).is_err(), "no client waits for nothing");
}

/// A new daemon opens no other listeners.
#[test]
fn a_client_that_waits_for_a_start_is_answered_although_the_daemon_is_lost() {
    let mut ending = Ending::serve("backoff = { first = \"60s\", max = \"60s\", attempts = 0 }");
    std::fs::write(ending.rig.path("fails"), "").unwrap();
    ending.exits(5);
    ending.rests(State::Backoff);
    let client = TcpStream::connect(ending.address).unwrap();
    let mut lost = ending.rig.daemon.take().unwrap();
    lost.kill().unwrap();
    lost.wait().unwrap();
    std::fs::remove_file(ending.rig.path("fails")).unwrap();
    ending.rig.start_daemon();
    let pid: u32 = ask_over(client, "x").unwrap().parse().unwrap();
    assert_eq!(ending.rig.settled("s").pid, Some(pid));
}

/// The upgrade has not ended it.
#[test]
fn a_program_that_exits_during_a_failing_upgrade_is_not_started_again() {
    let ending = Ending::serve("restart = \"on-failure\"\nmode = \"overlap\"");
    let bad = ending.rig.path("bad");
    std::fs::write(
        &bad,
        "#!/bin/sh\nwhile test ! -e \"$(dirname \"$0\")/goes\"; do sleep 0.05; done; exit 1\n",
    )
    .unwrap();
    executable(&bad);
    let outcome = std::thread::scope(|scope| {
        let upgrade = scope.spawn(|| ending.rig.upgrade("s", &bad));
        wait_for("it to be warming", || {
            (ending.rig.status("s").phase.as_deref() == Some("warming")).then_some(())
        });
        ending.exits(0);
        wait_for("it to be gone", || ending.rig.status("s").pid.is_none().then_some(()));
        std::fs::write(ending.rig.path("goes"), "").unwrap();
        upgrade.join().unwrap()
    });
    assert!(outcome.is_err(), "{outcome:?}");
    let status = ending.rests(State::Exited);
    assert_eq!(status.last_exit, Some(Exit { code: Some(0), signal: None }));
}
