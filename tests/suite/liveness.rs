//! The supervisor watches a serving process. It replaces a process that is stopped or fails its probe, and the clients
//! wait.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{Rig, ask_meanwhile, signal, stop, version, wait_for};
use handoff::control::api::{Ending, Request, ServiceStatus, State};
use handoff::sys::process::Signal;

const MODES: [&str; 2] = ["mode = \"exclusive\"", "mode = \"overlap\""];
const LIVENESS: &str = "liveness = \"50ms\"";

/// Waits until another process serves.
fn replaced(rig: &Rig, before: u32) -> ServiceStatus {
    wait_for("another process", || {
        let status = rig.status("s");
        (status.state == State::Serving && status.phase.is_none() && status.pid != Some(before))
            .then_some(status)
    })
}

#[test]
fn a_process_that_is_stopped_at_rest_is_replaced_and_its_clients_are_answered() {
    for mode in MODES {
        let rig = Rig::new();
        let address = rig.serve("s", "1", "", &format!("{mode}\n{LIVENESS}"));
        let pid = rig.status("s").pid.unwrap();
        stop(pid);
        // The request waits at the listener until the next process answers it.
        assert_eq!(version(address), "1", "{mode}");
        let status = replaced(&rig, pid);
        assert_eq!(status.restarts, 1, "{mode}");
        let problem = status.problem.unwrap();
        let told = format!("The process {pid} did not serve: the process {pid} is stopped");
        assert!(problem.starts_with(&told) && problem.contains("(3 in a row)"), "{problem}");
        // The next process is watched as well, also after an upgrade.
        let outcome = rig.upgrade("s", &rig.release("2", "")).unwrap();
        assert_eq!(outcome.outcome, Ending::Committed, "{mode}: {outcome:?}");
        stop(outcome.pid.unwrap());
        assert_eq!(version(address), "2", "{mode}");
        assert_eq!(replaced(&rig, outcome.pid.unwrap()).restarts, 2, "{mode}");
    }
}

#[test]
fn the_next_daemon_watches_as_well() {
    let mut rig = Rig::new();
    let address = rig.serve("s", "1", "", LIVENESS);
    let pid = rig.status("s").pid.unwrap();
    crate::support::kill(rig.daemon.as_ref().unwrap().id());
    rig.daemon.take().unwrap().wait().unwrap();
    rig.start_daemon();
    wait_for("it to be taken over", || (rig.status("s").pid == Some(pid)).then_some(()));
    stop(pid);
    assert_eq!(version(address), "1");
    assert_eq!(replaced(&rig, pid).restarts, 1);
}

#[test]
fn a_process_that_does_not_pass_its_probe_any_more_is_replaced() {
    for mode in MODES {
        let rig = Rig::new();
        let well = rig.path("well");
        std::fs::write(&well, "").unwrap();
        let liveness = "[liveness]\ninterval = \"20ms\"\nfailures = 2";
        let probe = format!("[probe]\nexec = [\"/usr/bin/test\", \"-e\", {well:?}]");
        let address = rig.serve("s", "1", "", &format!("{mode}\n{liveness}\n{probe}"));
        let pid = rig.status("s").pid.unwrap();
        std::fs::remove_file(&well).unwrap();
        wait_for("it to be killed", || (!Path::new(&format!("/proc/{pid}/exe")).exists()).then_some(()));
        std::fs::write(&well, "").unwrap();
        let status = replaced(&rig, pid);
        assert_eq!(version(address), "1", "{mode}");
        let problem = status.problem.unwrap();
        assert!(problem.contains("did not serve: the probe failed: /usr/bin/test -e"), "{problem}");
        assert!(problem.contains("(2 in a row)"), "{problem}");
    }
}

#[test]
fn a_probe_that_cannot_be_carried_out_says_nothing_about_the_process() {
    let rig = Rig::new();
    let command = rig.path("command");
    std::fs::write(&command, "#!/bin/sh\n").unwrap();
    crate::support::executable(&command);
    let probe = format!("[probe]\nexec = [{command:?}]");
    let address = rig.serve("s", "1", "", &format!("liveness = \"20ms\"\n{probe}"));
    let pid = rig.status("s").pid;
    std::fs::remove_file(&command).unwrap();
    wait_for("five checks without a result", || {
        let log = rig.daemon_log();
        (log.matches("it cannot be looked whether the process serves").count() >= 5).then_some(())
    });
    assert_eq!((rig.status("s").pid, rig.status("s").restarts), (pid, 0));
    assert_eq!(version(address), "1");
}

/// This works without a probe, too: the standby takes over.
#[test]
fn a_new_version_that_is_stopped_on_probation_is_taken_back() {
    for mode in MODES {
        let rig = Rig::new();
        let probation = "[probation]\ntime = \"10m\"\ninterval = \"20ms\"";
        let address = rig.serve("s", "1", "", &format!("{mode}\n{probation}"));
        let old = rig.status("s").pid;
        let binary = rig.release("2", "");
        let (new, outcome) = std::thread::scope(|scope| {
            let upgrade = scope.spawn(|| rig.upgrade("s", &binary));
            let new = wait_for("the probation", || {
                let status = rig.status("s");
                (status.phase.as_deref() == Some("probation")).then_some(status.pid.unwrap())
            });
            stop(new);
            (new, upgrade.join().unwrap().unwrap())
        });
        assert_eq!((outcome.outcome, outcome.pid), (Ending::RolledBack, old), "{mode}: {outcome:?}");
        let told = outcome.reason.unwrap();
        assert!(told.contains("is stopped, by a signal or a debugger (3 in a row)"), "{mode}: {told}");
        assert_eq!(version(address), "1", "{mode}");
        // In overlap mode it gets its grace, like any other leaving process.
        signal(new, Signal::SIGCONT);
    }
}

/// The watch must not end a process that an upgrade waits for: the old process gets its grace.
#[test]
fn a_process_that_finishes_a_request_in_an_upgrade_is_not_watched() {
    let rig = Rig::new();
    let well = rig.path("well");
    std::fs::write(&well, "").unwrap();
    let probe = format!("[probe]\nexec = [\"/usr/bin/test\", \"-e\", {well:?}]");
    let address = rig.serve("s", "1", "", &format!("liveness = \"20ms\"\n{probe}"));
    // The copy takes time on a busy machine, so it is made first.
    let binary = rig.release("2", "");
    let slow = ask_meanwhile(address, "slow 5000");
    let outcome = rig.upgrade_and("s", &binary, "draining", || {
        std::fs::remove_file(&well).unwrap();
        assert!(slow.join().unwrap().unwrap().starts_with('1'), "the request was answered");
        std::fs::write(&well, "").unwrap();
    });
    assert_eq!(outcome.unwrap().outcome, Ending::Committed);
}

/// Answers and closes, closes at once, or resets, before the supervisor can check the connection.
const PYTHON: &str = r#"
import socket, struct, sys
host, port = sys.argv[1].split(":")
listener = socket.create_server((host, int(port)))
while True:
    connection, _ = listener.accept()
    if sys.argv[2] == "resets":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if sys.argv[2] == "answers":
        connection.sendall(b"ready\n")
    connection.close()
"#;

#[test]
fn a_program_that_is_done_with_a_connection_at_once_is_well() {
    for (does, mode) in [("answers", "overlap"), ("closes", "exclusive"), ("resets", "overlap")] {
        let rig = Rig::new();
        let address = crate::support::free_address();
        let text = format!(
            "binary = \"/usr/bin/python3\"\nargs = [\"-c\", {PYTHON:?}, \"{address}\", \"{does}\"]\nautostart = false\n\
             store = false\nadapter = \"inject\"\nmode = \"{mode}\"\nliveness = \"20ms\"\n[listen]\nmain = \"{address}\"\n"
        );
        std::fs::write(rig.path("config/services/s.toml"), text).unwrap();
        rig.call(Request::Start(crate::support::service("s"))).unwrap();
        let before = rig.status("s");
        let until = Instant::now() + Duration::from_millis(500);
        while Instant::now() < until {
            let status = rig.status("s");
            assert_eq!((status.pid, status.restarts), (before.pid, 0), "{does} {mode}: {status:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(!rig.daemon_log().contains("is not well"), "{does} {mode}");
    }
}
