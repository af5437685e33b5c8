//! A process whose start or upgrade is cancelled, late or unhealthy may have data to save. The supervisor stops it in
//! order, and starts the previous version again within that version's own time limits.

use std::os::unix::net::UnixDatagram;
use std::process::{Child, Stdio};

use handoff::control::api::{Ending, Outcome, Request};

use super::ending::Slow;
use super::wait_for;
use crate::support::{ask, executable, service};

/// While the socket `mute` exists, the server reports readiness to it, and the supervisor does not see the report.
const MUTE: &str =
    "d=$(dirname \"$0\")\nif test -S \"$d/mute\"; then export NOTIFY_SOCKET=\"$d/mute\"; fi\nexec SERVER";
const READY: [&str; 1] = ["READY=1"];
const GRANTS: &str = "notify = true\nstop_grace = \"20s\"\ndrain_grace = \"1s\"\n";

/// A service whose next processes never become ready.
fn mute(keys: &str) -> (Slow, UnixDatagram) {
    let slow = Slow::wrapped("exclusive", "3", &format!("{GRANTS}{keys}"), &READY, MUTE);
    let socket = UnixDatagram::bind(slow.rig.path("mute")).unwrap();
    (slow, socket)
}

/// Waits until a process other than `first` answers. Returns its pid.
fn serves_after(slow: &Slow, first: u32) -> u32 {
    let another = || ask(slow.address, "x").ok()?.parse().ok().filter(|pid| *pid != first);
    let pid = wait_for("another process to answer", another);
    // A process saves only if the file does not contain "saved" yet.
    std::fs::write(slow.rig.path("data/said"), "").unwrap();
    pid
}

fn has_saved(slow: &Slow, pid: u32) {
    assert_eq!(slow.said(), format!("{pid} asked\n{pid} saved\n"));
}

/// Stops the service and starts it again. Returns the start command and the new process, which answers requests but is
/// not ready.
fn hanging_start(slow: &Slow, first: u32) -> (Child, u32) {
    slow.outcome(Request::Stop(service("s")));
    let mut start = slow.rig.handoff(&["start", "s"]);
    let start = start.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    (start, serves_after(slow, first))
}

#[test]
fn an_upgrade_that_is_called_off_after_its_process_has_begun_lets_it_save() {
    let (slow, _socket) = mute("");
    let first = slow.pid();
    let outcome = std::thread::scope(|scope| {
        let restart = scope.spawn(|| slow.restart());
        let second = serves_after(&slow, first);
        assert_eq!(slow.rig.status("s").phase.as_deref(), Some("beginning"));
        std::fs::remove_file(slow.rig.path("mute")).unwrap();
        slow.outcome(Request::Cancel(service("s")));
        has_saved(&slow, second);
        restart.join().unwrap()
    });
    assert_eq!((outcome.outcome, outcome.restarted), (Ending::RolledBack, true), "{outcome:?}");
    assert_eq!((outcome.reason.as_deref(), outcome.killed), (Some("it was cancelled"), vec![]));
    assert_eq!(slow.rig.status("s").restarts, 0);
}

#[test]
fn a_start_that_hangs_after_it_has_begun_is_stopped_in_order() {
    let (slow, _socket) = mute("");
    let (mut start, pid) = hanging_start(&slow, slow.pid());
    let outcome = slow.outcome(Request::Stop(service("s")));
    assert_eq!((outcome.outcome, outcome.killed), (Ending::Stopped, vec![]));
    has_saved(&slow, pid);
    start.wait().unwrap();
}

#[test]
fn a_start_that_hangs_after_it_has_begun_ends_in_order_with_the_daemon() {
    let (mut slow, _socket) = mute("");
    let (mut start, pid) = hanging_start(&slow, slow.pid());
    assert!(slow.rig.stop_daemon().unwrap().success());
    has_saved(&slow, pid);
    start.wait().unwrap();
}

#[test]
fn a_start_that_is_late_ends_in_order() {
    let (slow, _socket) = mute("");
    let file = slow.rig.path("config/services/s.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("[listen]", "deadline = \"4s\"\n[listen]")).unwrap();
    let (mut start, _) = hanging_start(&slow, slow.pid());
    // The supervisor retries, so the next process may already have its stop signal.
    wait_for("a process to save", || slow.said().contains("saved").then_some(()));
    let said = slow.said();
    let pid = said.split_once(' ').unwrap().0;
    assert!(said.starts_with(&format!("{pid} asked\n{pid} saved\n")), "{said}");
    start.wait().unwrap();
}

#[test]
fn what_is_called_off_and_does_not_end_is_reported() {
    let keys = "notify = true\nstop_grace = \"600ms\"\ndrain_grace = \"1s\"\n";
    let slow = Slow::wrapped("exclusive", "-1", keys, &READY, MUTE);
    let _socket = UnixDatagram::bind(slow.rig.path("mute")).unwrap();
    let (mut start, pid) = hanging_start(&slow, slow.pid());
    let outcome = slow.outcome(Request::Stop(service("s")));
    assert_eq!(outcome.outcome, Ending::Stopped);
    assert!(outcome.killed.iter().any(|killed| killed.pid == pid && killed.after_ms >= 600), "{outcome:?}");
    start.wait().unwrap();
}

/// Returns the outcome of the upgrade, and the process that failed its probation.
fn fails_probation(slow: &Slow) -> (Outcome, u32) {
    let (sick, check) = (slow.rig.path("sick"), slow.rig.path("check"));
    std::fs::write(&check, format!("#!/bin/sh\ntest ! -e {}\n", sick.display())).unwrap();
    executable(&check);
    let file = slow.rig.path("config/services/s.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let checks = format!(
        "[probe]\nexec = [{check:?}]\n[probation]\ntime = \"10m\"\ninterval = \"20ms\"\nfailures = 3\n"
    );
    std::fs::write(&file, format!("{text}{checks}")).unwrap();
    let first = slow.pid();
    std::thread::scope(|scope| {
        let restart = scope.spawn(|| slow.restart());
        wait_for("the probation", || {
            (slow.rig.status("s").phase.as_deref() == Some("probation")).then_some(())
        });
        let second = serves_after(slow, first);
        std::fs::write(&sick, "").unwrap();
        (restart.join().unwrap(), second)
    })
}

#[test]
fn a_new_version_that_fails_its_probation_saves_before_the_old_one_is_started() {
    let slow = Slow::serve("exclusive", "3", "stop_grace = \"20s\"\ndrain_grace = \"1s\"\n");
    let (outcome, second) = fails_probation(&slow);
    assert_eq!((outcome.outcome, &outcome.killed), (Ending::RolledBack, &vec![]), "{outcome:?}");
    assert!(outcome.reason.unwrap().contains("did not pass its probation"));
    has_saved(&slow, second);
    let third = slow.pid();
    assert_ne!(third, second);
    assert_eq!((slow.rig.status("s").pid, slow.rig.status("s").restarts), (Some(third), 0));
}

#[test]
fn a_new_version_that_fails_its_probation_and_does_not_end_is_killed_and_reported() {
    let slow = Slow::serve("exclusive", "-1", "stop_grace = \"600ms\"\ndrain_grace = \"1s\"\n");
    let (outcome, second) = fails_probation(&slow);
    assert_eq!(outcome.outcome, Ending::RolledBack, "{outcome:?}");
    let is_told = |killed: &handoff::control::api::Killed| killed.pid == second && killed.after_ms >= 600;
    assert!(outcome.killed.iter().any(is_told), "{outcome:?}");
    assert_ne!(slow.pid(), second);
}

/// The old version takes longer than `resume_limit`, which applies only to a process that resumes.
#[test]
fn an_old_version_that_starts_slowly_after_a_rollback_is_let_do_so() {
    let script = "d=$(dirname \"$0\")\nif rm \"$d/bad\"; then exit 1; fi\nsleep 3\nexec SERVER";
    let slow = Slow::wrapped("exclusive", "0", "resume_limit = \"500ms\"\n", &[], script);
    let (first, shim) = (slow.pid(), slow.rig.status("s").shim.unwrap());
    std::fs::write(slow.rig.path("bad"), "").unwrap();
    let outcome = slow.restart();
    assert_eq!((outcome.outcome, outcome.restarted), (Ending::RolledBack, true), "{outcome:?}");
    assert!(outcome.reason.unwrap().contains("before it was ready"));
    let status = slow.rig.status("s");
    assert_eq!((status.shim, status.restarts), (Some(shim), 0));
    assert_ne!(slow.pid(), first);
}

/// The drain leaves enough time for the rest of the upgrade.
#[test]
fn a_request_that_may_be_cut_does_not_outlast_the_upgrade() {
    let limits = "stragglers = \"cut\"\ndeadline = \"6s\"\ndrain_grace = \"6s\"\n";
    let slow = Slow::serve("exclusive", "0", limits);
    let first = slow.pid();
    let request = slow.ask_slowly("slow 30");
    let outcome = slow.restart();
    assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
    assert!(outcome.took_us >= 2_000_000, "it gets most of its granted time: {outcome:?}");
    assert!(request.join().unwrap().is_err(), "it was cut");
    assert_ne!(slow.pid(), first);
}

/// The old program saves for longer than its deadline and one lease together. The successor waits that long.
#[test]
fn an_upgrade_goes_forward_however_long_the_old_program_saves() {
    let limits = "deadline = \"6s\"\nlease = \"2s\"\nstop_grace = \"40s\"\ndrain_grace = \"1s\"\n";
    let slow = Slow::serve("exclusive", "12", limits);
    let first = slow.pid();
    let outcome = slow.restart();
    assert_eq!((outcome.outcome, &outcome.killed), (Ending::Committed, &vec![]), "{outcome:?}");
    has_saved(&slow, first);
    assert_ne!(slow.pid(), first);
}
