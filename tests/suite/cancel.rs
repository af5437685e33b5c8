//! An operation is cancelled: the old version serves on, and both callers get the outcome.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Output, Stdio};

use crate::support::{Rig, ask, ask_meanwhile, service, version, wait_for};
use handoff::control::api::{Ending, Outcome, Request, Response, State};
use handoff::control::{ClientError, Kind};
use handoff::sys::process::ProcessId;

/// Starts the command without waiting for its end.
fn begin(rig: &Rig, args: &[&str]) -> Child {
    rig.handoff(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn end(command: Child) -> (Option<i32>, String) {
    let Output { status, stdout, .. } = command.wait_with_output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap())
}

fn cancel(rig: &Rig) -> Result<Outcome, ClientError> {
    match rig.call(Request::Cancel(service("s")))? {
        Response::Outcome(outcome) => Ok(*outcome),
        other => panic!("{other:?}"),
    }
}

fn is_in(rig: &Rig, phase: &str) -> Option<()> {
    (rig.status("s").phase.as_deref() == Some(phase)).then_some(())
}

/// Begins an upgrade between releases with the given faults, cancels it in `phase`, and checks the result.
fn called_off(phase: &str, old_fault: &str, new_fault: &str, more: &str, meanwhile: impl FnOnce(SocketAddr)) {
    let rig = Rig::new();
    let address = rig.serve("s", "1", old_fault, more);
    let old = rig.status("s").pid;
    let binary = rig.release("2", new_fault);
    meanwhile(address);
    let upgrade = begin(&rig, &["upgrade", "s", "--binary", binary.to_str().unwrap()]);
    wait_for("the phase", || is_in(&rig, phase));
    let outcome = cancel(&rig).unwrap();
    assert_eq!((outcome.outcome, outcome.pid, outcome.generation.0), (Ending::RolledBack, old, 1));
    assert_eq!(outcome.reason.as_deref(), Some("it was cancelled"));
    assert_eq!(outcome.phases[0].phase, "greeting", "the report covers the whole upgrade: {outcome:?}");
    let (code, told) = end(upgrade);
    assert_eq!(code, Some(4));
    assert!(told.contains("rolled back") && told.contains("it was cancelled"), "{told}");
    let status = rig.status("s");
    assert_eq!((status.state, status.pid, version(address).as_str()), (State::Serving, old, "1"));
    assert!(crate::support::processes_of(&rig.path("testee-2")).is_empty(), "the new process is gone");
    // The cancelled upgrade has no effect on the next one.
    let good = rig.upgrade("s", &rig.release("3", "")).unwrap();
    assert_eq!((good.outcome, version(address).as_str()), (Ending::Committed, "3"));
}

#[test]
fn in_greeting() {
    called_off("greeting", "", "silent", "", |_| {});
}

#[test]
fn in_warming() {
    called_off("warming", "", "hang-while-warming", "", |_| {});
}

#[test]
fn in_draining() {
    let mut slow = None;
    called_off("draining", "", "", "", |address| {
        slow = Some(ask_meanwhile(address, "slow 10000"));
    });
    assert_eq!(slow.unwrap().join().unwrap().unwrap(), "1 slow 10000", "its request was finished");
}

#[test]
fn in_sealing() {
    called_off("sealing", "slow-seal-5000", "", "", |_| {});
}

#[test]
fn in_beginning() {
    called_off("beginning", "", "hang-after-begin", "", |_| {});
}

#[test]
fn in_beginning_beside_the_old_process() {
    called_off("beginning", "", "hang-after-begin", "mode = \"overlap\"", |_| {});
}

#[test]
fn the_exit_codes_are_0_for_the_cancel_and_4_for_the_upgrade() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "");
    let bad = rig.release("2", "hang-while-warming");
    let upgrade = begin(&rig, &["upgrade", "s", "--binary", bad.to_str().unwrap()]);
    wait_for("it to warm", || is_in(&rig, "warming"));
    let (code, told) = end(begin(&rig, &["cancel", "s"]));
    assert_eq!(code, Some(0));
    assert!(told.contains("rolled back") && told.contains("it was cancelled"), "{told}");
    let (code, upgraded) = end(upgrade);
    assert_eq!(code, Some(4));
    assert_eq!(upgraded, told, "both commands report the same duration");
    assert_eq!(version(address), "1");
}

#[test]
fn a_start_that_is_called_off_leaves_the_service_stopped() {
    let rig = Rig::new();
    let address = rig.write_service("s", &rig.release("1", "hang-while-warming"), "");
    let start = begin(&rig, &["start", "s"]);
    wait_for("it to warm", || is_in(&rig, "warming"));
    assert_eq!(cancel(&rig).unwrap().outcome, Ending::Stopped);
    let (code, told) = end(start);
    assert_eq!(code, Some(1), "it does not run, which was asked for: {told}");
    assert!(told.contains("s is stopped"), "{told}");
    assert_eq!(rig.status("s").state, State::Stopped);
    assert!(ask(address, "version").is_err(), "no process listens");
    assert!(crate::support::processes_of(&rig.path("testee-1")).is_empty());
}

/// A check of new versions that never ends.
struct EndlessCheck {
    place: tempfile::TempDir,
    program: PathBuf,
}

impl EndlessCheck {
    fn new() -> Self {
        let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (program, began) = (place.path().join("check"), place.path().join("began"));
        let begin = format!("echo $$ > {0}.new; mv {0}.new {0}", began.display());
        std::fs::write(&program, format!("#!/bin/sh\n{begin}\nexec sleep 1000\n")).unwrap();
        crate::support::executable(&program);
        Self { place, program }
    }

    /// The process of the check, once it runs.
    fn runs(&self) -> ProcessId {
        let began = self.place.path().join("began");
        let pid = wait_for("the check to run", || std::fs::read_to_string(&began).ok()?.trim().parse().ok());
        ProcessId::of(pid).unwrap()
    }
}

fn is_gone(process: &ProcessId) -> Option<()> {
    process.open().unwrap().is_none().then_some(())
}

#[test]
fn what_comes_before_the_new_process_can_be_called_off_too() {
    let rig = Rig::new();
    let check = EndlessCheck::new();
    let address = rig.serve("s", "1", "", &format!("store = true\npreflight = [{:?}]", check.program));
    let second = rig.release("2", "");
    let upgrade = begin(&rig, &["upgrade", "s", "--binary", second.to_str().unwrap()]);
    let checker = check.runs();
    let (code, told) = end(begin(&rig, &["cancel", "s"]));
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("it was cancelled before the new version was started"), "{told}");
    assert_eq!(end(upgrade).0, Some(6), "refused before it ran");
    wait_for("the check to be gone", || is_gone(&checker));
    assert_eq!(version(address), "1");
    assert!(cancel(&rig).is_err(), "nothing is under way any more");
    std::fs::write(&check.program, "#!/bin/sh\n").unwrap();
    assert_eq!(rig.upgrade("s", &second).unwrap().outcome, Ending::Committed);
    assert_eq!(version(address), "2");
}

#[test]
fn a_daemon_that_is_to_end_waits_for_no_check() {
    let mut rig = Rig::new();
    let check = EndlessCheck::new();
    rig.serve("s", "1", "", &format!("preflight = [{:?}]\npreflight_limit = \"1h\"", check.program));
    let second = rig.release("2", "");
    let upgrade = begin(&rig, &["upgrade", "s", "--binary", second.to_str().unwrap()]);
    let checker = check.runs();
    let mut daemon = rig.daemon.take().unwrap();
    crate::support::signal(daemon.id(), handoff::sys::process::Signal::SIGTERM);
    assert!(wait_for("the daemon to end", || daemon.try_wait().unwrap()).success());
    assert_ne!(end(upgrade).0, Some(0));
    wait_for("the check to be gone", || is_gone(&checker));
}

#[test]
fn where_nothing_is_under_way_nothing_is_called_off() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "");
    let refused = || match cancel(&rig) {
        Err(ClientError::Refused(error)) => error,
        other => panic!("{other:?}"),
    };
    let error = refused();
    assert_eq!(error.kind, Kind::NothingToCancel);
    assert_eq!(error.message, "Nothing that can be cancelled is under way for \"s\": it serves.");
    assert_eq!(end(begin(&rig, &["cancel", "s"])).0, Some(1));
    assert_eq!(version(address), "1");
    rig.call(Request::Stop(service("s"))).unwrap();
    assert!(refused().message.contains("it is stopped"));
}

/// A restart after a crash is not an operation of a caller, so it cannot be cancelled.
#[test]
fn a_restart_after_a_death_goes_on() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "slow-start-3000", "");
    crate::support::signal(rig.status("s").pid.unwrap(), handoff::sys::process::Signal::SIGKILL);
    wait_for("its restart", || is_in(&rig, "warming"));
    match cancel(&rig) {
        Err(ClientError::Refused(error)) => assert!(error.message.contains("it is being started"), "{error}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(version(address), "1");
}
